"""Auxiliary heads on flat and nested models: they share the layers, train by plain `fit`, and leave no trace."""

import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl.errors import ArgumentError, ModelError
from kerastl.lab.auxiliary_heads import add_auxiliary_heads, auxiliary_training, remove_auxiliary_heads
from kerastl.models import freezing
from kerastl.training import recipe as training
from tests import models

QUIET = {"verbose": 0}
AT = ["conv2_block1", "conv2_block2"]
BLOCKS = ["stem", "conv2_block1", "conv2_block2", "conv2_block3"]
NAMES = ["predictions", "auxiliary_conv2_block1", "auxiliary_conv2_block2"]


def deeply_nested() -> keras.Model:
    """A backbone in a model with its preprocessing, in a classifier."""
    inputs = keras.Input((32, 32, 3))
    body = keras.Model(inputs, models.tiny_backbone()((inputs - 127.5) / 127.5), name="body")
    outer = keras.Input((32, 32, 3))
    return keras.Model(outer, models.head_layers(body(outer)), name="deep")


BUILDERS = [models.flat, models.nested, models.sequential, deeply_nested]


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(1)
    labels = np.arange(40) % 3
    images = generator.normal(labels[:, None, None, None] * 90.0 + 30, 20, (40, 32, 32, 3))
    return images.clip(0, 255).astype("float32"), labels


def outputs_of(model, images):
    outputs = model(images, training=False)
    return [keras.ops.convert_to_numpy(one) for one in (outputs if isinstance(outputs, list) else [outputs])]


def layer_named(model, name):
    return next(layer for layer in model._flatten_layers() if layer.name == name)


@pytest.mark.parametrize("build", BUILDERS)
def test_the_main_output_stays_the_same_bit_for_bit_and_so_do_the_parts_around_it(build, pixels, tmp_path):
    model = build()
    main = outputs_of(model, pixels[0])[0]
    extended = add_auxiliary_heads(model, AT)
    assert extended.output_names[1:] == NAMES[1:]
    assert [tuple(tensor.shape) for tensor in extended.outputs] == [(None, 3)] * 3
    with_heads = outputs_of(extended, pixels[0])
    np.testing.assert_array_equal(with_heads[0], main)
    for probabilities in with_heads:
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    extended.save(tmp_path / "extended.keras")
    loaded = keras.models.load_model(tmp_path / "extended.keras")
    for one in (remove_auxiliary_heads(extended), remove_auxiliary_heads(loaded)):
        np.testing.assert_array_equal(outputs_of(one, pixels[0])[0], main)
        assert (len(one.outputs), one.name) == (1, model.name)
        assert one.count_params() == model.count_params()
        assert [block.name for block in freezing.list_blocks(one)] == BLOCKS
        one.save(tmp_path / "one.keras")
        np.testing.assert_array_equal(outputs_of(keras.models.load_model(tmp_path / "one.keras"), pixels[0])[0], main)


@pytest.mark.parametrize("at", [AT, ["conv2_block1_1_conv", "conv2_block2_2_bn", "conv2_block2_add", "conv1_conv"]])
def test_compiled_predictions_stay_the_same_bit_for_bit_as_well(at, pixels):
    # the compiler might fuse a convolution with what follows, unless a head needs what is between
    model = models.nested()
    extended = add_auxiliary_heads(model, at)
    main = extended.predict(pixels[0], verbose=0)[0]
    np.testing.assert_array_equal(model.predict(pixels[0], verbose=0), main)
    np.testing.assert_array_equal(remove_auxiliary_heads(extended).predict(pixels[0], verbose=0), main)


def compiled(model, **options):
    how = auxiliary_training(model, **options)
    model.compile(keras.optimizers.Adam(0.01), **how.compile_arguments, run_eagerly=True)
    return how


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_training_it_trains_the_original_and_removing_keeps_the_trained_weights(build, data, tmp_path):
    model = build()
    before = models.snapshot(model)
    extended = add_auxiliary_heads(model, AT)
    how = compiled(extended)
    history = extended.fit(data[0], how.repeat(data[1]), validation_split=0.25, **QUIET).history
    assert {f"{prefix}{name}_accuracy" for name in NAMES for prefix in ("", "val_")} <= history.keys()
    assert len(models.changed(before, model)) > 20
    extended.save(tmp_path / "extended.keras")
    main = outputs_of(extended, data[0])[0]
    for one in (
        remove_auxiliary_heads(extended),
        remove_auxiliary_heads(keras.models.load_model(tmp_path / "extended.keras")),
    ):
        np.testing.assert_array_equal(outputs_of(one, data[0])[0], main)
    assert kerastl.fit(models.compiled(one), *data, **QUIET).history.keys() == {"loss", "accuracy"}


def test_the_total_is_the_main_loss_and_the_weighted_others(data):
    extended = add_auxiliary_heads(models.nested(), AT, weight=[0.5, 0])
    how = compiled(extended)
    assert how.compile_arguments["loss_weights"] == dict(zip(NAMES, [1.0, 0.5, 0.0], strict=True))
    logs = extended.evaluate(data[0], how.repeat(data[1]), batch_size=40, return_dict=True, **QUIET)
    assert logs["loss"] == pytest.approx(logs[f"{NAMES[0]}_loss"] + 0.5 * logs[f"{NAMES[1]}_loss"], rel=1e-4)


def test_labels_are_repeated_in_a_dataset_and_one_hot(data):
    tf = pytest.importorskip("tensorflow")
    extended = add_auxiliary_heads(models.nested(), AT)
    how = compiled(extended, loss="categorical_crossentropy", metrics=["accuracy"])
    labels = np.eye(3, dtype="float32")[data[1]]
    dataset = tf.data.Dataset.from_tensor_slices((data[0], labels)).batch(20)
    history = extended.fit(dataset.map(lambda images, one: (images, how.repeat(one))), shuffle=False, **QUIET).history
    assert np.isfinite(history["loss"]).all()


def test_kerastl_fit_does_what_keras_does(data):
    first, second = (add_auxiliary_heads(models.nested(), AT, dropout=0) for _ in range(2))
    second.set_weights(first.get_weights())
    for model in (first, second):
        freezing.freeze(model)
        how = compiled(model)
    arguments = {"y": how.repeat(data[1]), "epochs": 2, "shuffle": False, "validation_split": 0.25}
    ours = kerastl.fit(first, data[0], verbose=0, **arguments).history
    theirs = second.fit(data[0], verbose=0, **arguments).history
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="class_weight"):
        kerastl.fit(first, data[0], class_weight={0: 1.0, 1: 2.0, 2: 1.0}, **arguments, **QUIET)
    with pytest.raises(ArgumentError, match="has 3 outputs"):
        kerastl.fit(first, data[0], cache=True, **arguments, **QUIET)


def test_the_phases_send_several_outputs_to_plain_fit(data):
    with pytest.raises(ModelError, match=r"model\.fit.*auxiliary_training"):
        training.train_head(add_auxiliary_heads(models.nested(), AT), data, None, **QUIET)


def test_more_heads_can_be_added_later(data):
    once = add_auxiliary_heads(models.nested(), "conv2_block1", weight=0.2)
    twice = add_auxiliary_heads(once, "conv2_block2")
    assert twice.output_names == NAMES
    assert auxiliary_training(twice).compile_arguments["loss_weights"] == dict(zip(NAMES, [1.0, 0.2, 0.3], strict=True))
    np.testing.assert_array_equal(outputs_of(twice, data[0])[1], outputs_of(once, data[0])[1])
    assert remove_auxiliary_heads(twice).output_names == ["predictions"]
    with pytest.raises(ArgumentError, match="already"):
        add_auxiliary_heads(twice, "conv2_block2")


def test_a_head_sees_the_block_that_it_is_named_after(pixels):
    model = models.nested()
    extended = add_auxiliary_heads(model, ["conv2_block2", "conv2_block1_2_bn"])
    backbone = model.get_layer("tiny")
    for name, at in (("conv2_block2", "conv2_block2_out"), ("conv2_block1_2_bn", "conv2_block1_2_bn")):
        features_at = keras.Model(backbone.input, backbone.get_layer(at).output)((pixels[0] - 127.5) / 127.5)
        head = extended.get_layer(f"auxiliary_{name}")
        by_hand = head(keras.ops.mean(features_at, axis=(1, 2)))
        index = extended.output_names.index(head.name)
        np.testing.assert_allclose(by_hand, outputs_of(extended, pixels[0])[index], atol=1e-6)


@pytest.mark.parametrize(("units", "activation"), [(1, "sigmoid"), (4, None), (2, "softmax")])
def test_heads_have_the_units_and_the_activation_of_the_main_output(units, activation):
    backbone = models.tiny_backbone()
    pooled = layers.GlobalAveragePooling2D()(backbone.output)
    model = keras.Model(backbone.input, layers.Dense(units, activation=activation, name="main")(pooled))
    head = add_auxiliary_heads(model, "conv2_block1").get_layer("auxiliary_conv2_block1")
    assert (head.units, head.activation.__name__) == (units, activation or "linear")


def test_heads_stay_float32_under_a_mixed_policy(pixels):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        extended = add_auxiliary_heads(models.nested(), AT)
        values = extended(pixels[0])
        assert [keras.backend.standardize_dtype(one.dtype) for one in values[1:]] == ["float32"] * 2
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("at", "options", "message"),
    [
        ("conv2_blok1", {}, "Did you mean 'conv2_block1'"),
        ("predictions", {}, "layers or blocks of the backbone"),
        ("pool", {}, "layers or blocks of the backbone"),
        ([], {}, "`at` must be"),
        (["conv2_block1", "conv2_block1"], {}, "different names"),
        (3, {}, "`at` must be"),
        (AT, {"weight": [0.3]}, "each of the 2 heads"),
        (AT, {"weight": -1}, "at least 0"),
        (AT, {"weight": float("nan")}, "at least 0"),
        (AT, {"weight": "high"}, "at least 0"),
        (AT, {"dropout": 1.0}, "dropout"),
    ],
)
@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_what_cannot_be_done_is_said(build, at, options, message):
    with pytest.raises(ArgumentError, match=message):
        add_auxiliary_heads(build(), at, **options)


def test_models_that_heads_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="no auxiliary heads"):
        remove_auxiliary_heads(models.flat())
    with pytest.raises(ModelError, match="classifier"):
        add_auxiliary_heads(models.tiny_backbone(), "conv2_block1")
    base = models.tiny_backbone()
    pooled = layers.GlobalAveragePooling2D()(base.output)
    outputs = [layers.Dense(3, "softmax", name="kind")(pooled), layers.Dense(1, name="age")(pooled)]
    with pytest.raises(ModelError, match="age"):
        add_auxiliary_heads(keras.Model(base.input, outputs), "conv2_block1")
    with pytest.raises(ModelError, match="neither softmax"):
        add_auxiliary_heads(keras.Model(base.input, layers.Dense(3, "tanh")(pooled)), "conv2_block1")

    class Own(keras.Model):
        def train_step(self, *arguments):
            return {}

    with pytest.raises(ModelError, match="train_step"):
        add_auxiliary_heads(Own(base.input, layers.Dense(3, "softmax")(pooled)), "conv2_block1")
    inputs = keras.Input((32, 32, 3))
    x = layers.Reshape((16, 16, 8))(layers.Flatten(name="flat")(models.backbone_layers(inputs)))
    inner = keras.Model(inputs, x, name="inner")
    model = keras.Sequential([inner, layers.GlobalMaxPooling2D(), layers.Dense(2, "softmax")])
    with pytest.raises(ArgumentError, match="feature map"):
        add_auxiliary_heads(model, "flat")


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_freezing_finds_the_backbone_and_leaves_the_heads_trainable(build):
    model = build()
    extended = add_auxiliary_heads(model, AT)
    assert [block.layer_names for block in freezing.list_blocks(extended)] == [
        block.layer_names for block in freezing.list_blocks(model)
    ]
    freezing.freeze(extended)
    heads = {f"{name}/{weight}" for name in NAMES for weight in ("kernel", "bias")}
    assert {weight.path for weight in extended.trainable_variables} == heads
    freezing.unfreeze(extended, last_blocks=1)
    assert {weight.path.split("/")[-2] for weight in extended.trainable_variables} == {
        *("conv2_block3_1_conv", "conv2_block3_2_conv"),
        *NAMES,
    }
    summary = freezing.trainable_summary(extended)
    assert (summary.rows[-1].name, summary.rows[-1].parameters) == ("head", 3 * 27)
    assert {row.name: row.state for row in summary.rows}["conv2_block2"] == "frozen"


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_a_frozen_backbone_stays_frozen_in_the_new_model_and_in_the_one_given_back(build):
    model = freezing.freeze(build())
    extended = add_auxiliary_heads(model, AT)
    one = remove_auxiliary_heads(extended)
    assert len(extended.trainable_variables) == 6
    assert len(one.trainable_variables) == len(model.trainable_variables) == 2


def test_predict_and_evaluate_read_the_main_output(data):
    model = models.nested()
    extended = add_auxiliary_heads(model, AT)
    np.testing.assert_array_equal(
        kerastl.predict(extended, data[0]).probabilities, kerastl.predict(model, data[0]).probabilities
    )
    assert kerastl.evaluate(extended, data).accuracy == kerastl.evaluate(model, data).accuracy


def test_costs_count_the_heads():
    model = models.nested()
    extended = add_auxiliary_heads(model, AT)
    assert kerastl.model_cost(extended).macs - kerastl.model_cost(model).macs == 2 * 8 * 3
    assert kerastl.model_cost(remove_auxiliary_heads(extended)).macs == kerastl.model_cost(model).macs


def test_real_backbones_take_heads_at_their_blocks(pixels):
    model = kerastl.build_classifier("mobilenet_v2", 3, input_shape=32, weights=None, alpha=0.35, augmentation="flips")
    extended = kerastl.add_auxiliary_heads(model, ["block_6", "block_12"])
    assert extended.output_names == ["predictions", "auxiliary_block_6", "auxiliary_block_12"]
    assert len(extended.trainable_variables) == 6
    one = kerastl.remove_auxiliary_heads(extended)
    np.testing.assert_array_equal(outputs_of(one, pixels[0])[0], outputs_of(extended, pixels[0])[0])
