import keras
import numpy as np
import pytest
from keras import layers

from kerastl.errors import ModelError
from kerastl.features.cut import find_cuts
from kerastl.models import freezing
from kerastl.models.flatten import flatten_model
from tests import models

BUILDERS = [models.flat, models.nested, models.sequential]


def application(name, size=64, nested=False, **options):
    base = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(size, size, 3), **options)
    inputs = keras.Input((size, size, 3)) if nested else base.input
    x = base(inputs, training=False) if nested else base.output
    return keras.Model(inputs, models.head_layers(x))


def latest(model):
    return find_cuts(model)[-1]


@pytest.mark.parametrize("nested", [False, True])
def test_the_cuts_that_the_notes_recipe_needs(nested):
    resnet = freezing.unfreeze(application("ResNet50", nested=nested), last_layers=10)
    assert latest(resnet).layer_names == ("conv5_block2_out",)
    mobilenet = freezing.unfreeze(application("MobileNetV2", 224, nested=nested), last_layers=10)
    names = {cut.layer_names[0]: cut.values_per_image for cut in find_cuts(mobilenet)}
    assert list(names)[-1] == "block_16_expand_relu"
    assert (names["block_16_expand_relu"], names["block_15_add"]) == (47_040, 7_840)


def test_a_boundary_inside_a_residual_block_moves_to_the_blocks_input():
    model = freezing.unfreeze(models.nested(), from_layer="conv2_block3_2_conv")
    assert latest(model).layer_names == ("conv2_block2_out",)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(
    "choice", [None, {"last_blocks": 1}, {"last_blocks": 3}, {"last_layers": 3, "batch_norm": True}]
)
def test_tail_of_trunk_is_the_model_and_shares_its_weights(build, choice, pixels):
    model = build()
    freezing.freeze(model) if choice is None else freezing.unfreeze(model, **choice)
    cut = latest(model)
    trunk, tail = cut.trunk(), cut.tail()
    assert not trunk.trainable_variables
    assert [id(one) for one in tail.trainable_variables] == [id(one) for one in model.trainable_variables]
    np.testing.assert_array_equal(tail(trunk(pixels[0], training=False)), model(pixels[0], training=False))


@pytest.mark.parametrize("build", BUILDERS)
def test_a_head_on_a_frozen_backbone_is_cut_behind_the_pooling(build):
    cut = latest(freezing.freeze(build()))
    assert cut.values_per_image == 8
    assert cut.trunk_macs / cut.model_macs > 0.99


def test_dropout_in_the_head_stays_in_the_tail_and_dropout_in_the_backbone_runs_in_inference_mode():
    inputs = keras.Input((32, 32, 3))
    x = layers.SpatialDropout2D(0.5, name="inside")(layers.Conv2D(4, 3, name="first")(inputs))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3, name="second")(x))
    x = layers.Dropout(0.5, name="outside")(x)
    model = keras.Model(inputs, layers.Dense(3, name="predictions")(x))
    model.get_layer("first").trainable = model.get_layer("second").trainable = False
    cut = latest(model)
    assert cut.layer_names == ("pool",)
    assert cut.random_inside == ("inside",)
    assert "outside" in [layer.name for layer in cut.tail().layers]


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_augmentation_in_front_is_no_part_of_the_trunk(build, pixels):
    model = freezing.freeze(build(augmentation=True))
    cut = latest(model)
    assert cut.augments
    assert not any("flip" in layer.name or "augmentation" in layer.name for layer in cut.trunk().layers)
    np.testing.assert_allclose(
        cut.tail()(cut.trunk()(cut.front()(pixels[0], training=False))),
        model(pixels[0], training=False),
        rtol=1e-5,
        atol=1e-6,
    )


def test_batch_norm_that_runs_ends_the_trunk():
    model = models.nested()
    freezing.freeze(model)
    model.get_layer("tiny").get_layer("conv2_block2_1_bn").trainable = True
    assert latest(model).layer_names == ("conv2_block1_out",) or "conv2_block2" not in latest(model).layer_names[0]


def test_nothing_frozen_means_no_cut():
    assert find_cuts(models.nested()) == []


def test_layers_of_one_name_in_outer_and_inner_model_are_no_obstacle(pixels):
    inner_inputs = keras.Input((32, 32, 3))
    inner = keras.Model(inner_inputs, layers.Conv2D(4, 3, name="same", trainable=False)(inner_inputs), name="inner")
    inputs = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(inner(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="same")(x))
    cut = latest(model)
    np.testing.assert_array_equal(cut.tail()(cut.trunk()(pixels[0])), model(pixels[0]))
    assert {layer.name for layer in model.layers} >= {"same", "inner"}
    assert inner.layers[1].name == "same"


def test_flattening_is_done_once_and_adds_no_nodes_the_second_time():
    model = models.nested()
    assert flatten_model(model) is flatten_model(model)
    plain = models.flat()
    assert flatten_model(plain) is plain


def test_several_inputs_are_refused():
    first, second = keras.Input((8,)), keras.Input((8,))
    x = layers.Dense(4, trainable=False)(layers.Concatenate()([first, second]))
    with pytest.raises(ModelError, match="2 inputs"):
        find_cuts(keras.Model([first, second], layers.Dense(2)(x)))


def test_several_outputs_are_refused():
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, models.head_layers(models.backbone_layers(inputs)))
    side = layers.Dense(3)(layers.GlobalAveragePooling2D()(model.get_layer("conv2_block1_out").output))
    with pytest.raises(ModelError, match="2 outputs"):
        find_cuts(freezing.freeze(keras.Model(inputs, [model.output, side])))


def test_a_batch_norm_whose_statistics_move_ends_the_trunk_though_it_has_no_weights_that_train():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, trainable=False, name="frozen")(inputs)
    x = layers.BatchNormalization(center=False, scale=False, name="running")(x)
    model = keras.Model(inputs, models.head_layers(layers.Conv2D(4, 1, trainable=False)(x)))
    assert latest(model).layer_names == ("frozen",)
    model.get_layer("running").trainable = False
    assert latest(model).layer_names == ("pool",)


def test_images_of_any_size_are_cut_where_the_features_have_one_size():
    inputs = keras.Input((None, None, 3))
    model = freezing.freeze(keras.Model(inputs, models.head_layers(models.backbone_layers(inputs))))
    assert [cut.layer_names for cut in find_cuts(model)] == [("pool",)]
