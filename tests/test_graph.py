import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from kerastl.errors import KerastlWarning, ModelError
from kerastl.models import graph
from tests import models

APPLICATIONS = keras.applications

# number of dominators, number of blocks, last block and its first and last layer, as the architectures' papers have them
FAMILIES = {
    "ResNet50": (39, 17, "conv5_block3", "conv5_block3_1_conv", "conv5_block3_out"),
    "ResNet50V2": (None, 17, "conv5_block3", "conv5_block3_preact_bn", "post_relu"),
    "MobileNet": (None, 14, "block_13", "conv_dw_13", "conv_pw_13_relu"),
    "MobileNetV2": (74, 18, "block_16", "block_16_expand", "out_relu"),
    "MobileNetV3Small": (None, 12, "expanded_conv_10", "expanded_conv_10_expand", None),
    "EfficientNetB0": (83, 17, "block7a", "block7a_expand_conv", "top_activation"),
    "EfficientNetV2B0": (None, 22, "block6h", "block6h_expand_conv", "top_activation"),
    "DenseNet121": (79, 59, "conv5_block16", "conv5_block16_0_bn", "relu"),
    "InceptionV3": (29, 12, "mixed10", None, "mixed10"),
    "Xception": (25, 14, "block14", "block14_sepconv1", "block14_sepconv2_act"),
    "ConvNeXtTiny": (25, 19, "stage_3_block_2", "convnext_tiny_stage_3_block_2_depthwise_conv", None),
    "VGG16": (19, 5, "block5", "block5_conv1", "block5_pool"),
    "NASNetMobile": (5, 16, "cell_12", None, None),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_dominators_and_blocks_of_a_family(name):
    if name == "NASNetMobile" and keras.backend.backend() == "torch":
        pytest.skip("Keras has no NASNet on PyTorch")
    dominators, count, last, first_layer, last_layer = FAMILIES[name]
    model = getattr(APPLICATIONS, name)(include_top=False, weights=None, input_shape=(96, 96, 3))
    backbone = graph.find_backbone(model)
    blocks = graph.find_blocks(backbone)
    assert dominators in (None, len(graph.dominators(model)))
    assert (len(blocks), blocks[-1].name) == (count, last)
    assert first_layer in (None, blocks[-1].layer_names[0])
    assert last_layer in (None, blocks[-1].layer_names[-1])
    assert sum(block.parameters for block in blocks) == model.count_params()
    names = [layer_name for block in blocks for layer_name in block.layer_names]
    assert sorted(names) == sorted(layer.name for layer in backbone.layers)


def test_counting_layers_of_resnet50_and_mobilenet_v2_cuts_as_the_facts_say():
    resnet = APPLICATIONS.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3))
    assert [layer.name for layer in graph.find_backbone(resnet).layers[-10:]] == [
        layer.name for layer in graph.find_blocks(graph.find_backbone(resnet))[-1].layers
    ]
    mobilenet = APPLICATIONS.MobileNetV2(include_top=False, weights=None, input_shape=(64, 64, 3))
    assert graph.find_backbone(mobilenet).layers[-10].name == "block_16_expand_BN"


@pytest.mark.parametrize("build", [models.flat, models.nested, models.sequential])
def test_the_same_backbone_is_found_flat_nested_and_sequential(build):
    backbone = graph.find_backbone(build())
    bare = graph.find_backbone(models.tiny_backbone())
    assert [layer.name for layer in backbone.layers if layer.weights] == [
        layer.name for layer in bare.layers if layer.weights
    ]
    blocks = [(block.name, block.parameters) for block in graph.find_blocks(backbone)]
    assert blocks == [(block.name, block.parameters) for block in graph.find_blocks(bare)]


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_augmentation_is_not_counted_among_the_backbones_layers(build):
    plain = graph.find_backbone(build())
    augmented = graph.find_backbone(build(augmentation=True))
    assert [layer.name for layer in plain.layers] == [layer.name for layer in augmented.layers]


def test_a_model_loaded_from_disk_has_the_same_backbone(tmp_path):
    models.nested(augmentation=True).save(tmp_path / "model.keras")
    backbone = graph.find_backbone(keras.models.load_model(tmp_path / "model.keras"))
    assert backbone.name == "tiny"
    assert len(graph.find_blocks(backbone)) == 4


def test_a_backbone_with_its_own_pooling_is_found():
    base = APPLICATIONS.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg", alpha=0.35)
    model = keras.Sequential([keras.Input((32, 32, 3)), base, layers.Dense(2, activation="softmax")])
    backbone = graph.find_backbone(model)
    assert backbone.name == base.name
    assert graph.find_blocks(backbone)[-1].name == "block_16"


def test_a_heavy_head_does_not_hide_a_nested_backbone():
    inputs = keras.Input((32, 32, 3))
    x = layers.Flatten()(models.tiny_backbone()(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(64)(x)))
    assert graph.find_backbone(model).name == "tiny"


def test_a_small_nested_part_is_not_taken_for_the_backbone():
    # ConvNeXt's stem and its downsampling are nested models inside a flat backbone
    model = APPLICATIONS.ConvNeXtTiny(include_top=False, weights=None, input_shape=(32, 32, 3))
    assert graph.find_backbone(model).path == (model,)


def test_shared_layers_are_listed_once():
    inputs = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    x = layers.Conv2D(4, 1, name="after")(shared(shared(inputs)))
    model = keras.Model(inputs, models.head_layers(x))
    names = [name for block in graph.find_blocks(graph.find_backbone(model)) for name in block.layer_names]
    assert sorted(names) == ["after", "shared"]


def test_blocks_without_telling_names_are_segments_between_dominators():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm_a")(layers.Conv2D(4, 3, padding="same", name="first")(inputs))
    branch = layers.Conv2D(4, 1, name="left")(x)
    x = layers.Add(name="sum")([x, branch])
    model = keras.Model(inputs, models.head_layers(layers.ReLU(name="end")(x)))
    blocks = graph.find_blocks(graph.find_backbone(model))
    assert [(block.name, block.layer_names) for block in blocks] == [
        ("first", ("first", "norm_a")),
        ("left", ("left", "sum", "end")),
    ]


def test_convolutions_behind_the_last_named_block_raise_a_warning_that_names_the_way_out():
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 1)(models.backbone_layers(inputs))
    model = keras.Model(inputs, models.head_layers(x))
    with pytest.warns(KerastlWarning, match="backbone='conv2_block3_out'"):
        graph.find_backbone(model)
    backbone = graph.find_backbone(model, "conv2_block3_out")
    assert backbone.layers[-1].name == "conv2_block3_out"


def test_a_layer_that_others_go_around_can_not_end_the_backbone():
    with pytest.raises(ModelError, match="can't end the backbone"):
        graph.find_backbone(models.flat(), "conv2_block2_1_conv")


def test_an_unknown_backbone_name_offers_the_nearest():
    with pytest.raises(ModelError, match="Did you mean 'tiny'"):
        graph.find_backbone(models.nested(), "tinny")


def test_a_model_without_feature_maps_is_an_error_that_says_what_is_missing():
    inputs = keras.Input((4,))
    with pytest.raises(ModelError, match="height and width"):
        graph.find_backbone(keras.Model(inputs, layers.Dense(2)(inputs)))


def test_a_sequential_model_without_input_is_an_error_that_says_what_to_do():
    with pytest.raises(ModelError, match=r"keras\.Input"):
        graph.functional_of(keras.Sequential([layers.Dense(2)]))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["line", "residual", "fork"]), min_size=1, max_size=5))
def test_cutting_at_any_dominator_leaves_a_model_that_computes_the_same(shape):
    inputs = keras.Input((4, 4, 2))
    x = inputs
    for kind in shape:
        y = layers.Conv2D(2, 1)(x)
        if kind == "residual":
            y = layers.Add()([x, y])
        elif kind == "fork":
            y = layers.Concatenate()([y, layers.Conv2D(2, 3, padding="same")(x)])
            y = layers.Conv2D(2, 1)(y)
        x = y
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    images = keras.random.uniform((2, 4, 4, 2), seed=1)
    expected = keras.ops.convert_to_numpy(model(images))
    cuts = graph.dominators(model)
    assert len(cuts) >= len(shape) + 2
    for node in cuts[1:-1]:
        trunk, tail = keras.Model(inputs, node.outputs[0]), keras.Model(node.outputs[0], model.outputs[0])
        assert (keras.ops.convert_to_numpy(tail(trunk(images))) == expected).all()


def test_dropout_that_drops_nothing_is_not_random():
    """Transformers are full of it."""
    assert graph.is_random(layers.Dropout(0.1))
    assert not graph.is_random(layers.Dropout(0.0))
    assert graph.is_random(layers.GaussianNoise(0.1))


def test_a_backbone_may_hold_tokens_between_image_and_feature_map():
    inputs = keras.Input((8, 8, 3))
    x = layers.Reshape((16, 12))(inputs)
    for index in range(2):
        x = layers.Dense(12, name=f"mixer_{index}")(x)
    outputs = layers.Reshape((4, 4, 12), name="patches")(x)
    model = keras.Model(inputs, outputs)
    assert graph.last_spatial_node(model).operation.name == "patches"
    assert [block.name for block in graph.find_blocks(graph.find_backbone(model))] == ["mixer_0", "mixer_1"]
