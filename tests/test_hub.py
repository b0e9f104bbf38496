"""Backbones of KerasHub, tiny and random, by the real constructors of their families; `make test-hub` runs this."""

import keras
import numpy as np
import pytest

import kerastl
from kerastl.errors import ArgumentError, ModelError, WeightsUnavailableError
from kerastl.features.cut import find_cuts
from kerastl.features.plan import CacheOptions
from kerastl.models import graph, hub
from kerastl.models.backbones import backbone_row
from kerastl.models.weights import describe_weights

keras_hub = pytest.importorskip("keras_hub")

SIZE = 32
TRANSFORMER = {"patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 8}
PIXELS = np.random.default_rng(0).integers(0, 256, (12, SIZE, SIZE, 3)).astype("float32")
LABELS = np.arange(12) % 3


def vit(size=SIZE, **options):
    return keras_hub.models.ViTBackbone(image_shape=(size, size, 3), mlp_dim=16, **TRANSFORMER, **options)


def deit():
    return keras_hub.models.DeiTBackbone(image_shape=(SIZE, SIZE, 3), intermediate_dim=16, **TRANSFORMER)


def dinov2(size=SIZE):
    options = {"intermediate_dim": 16, "num_register_tokens": 2, "position_embedding_shape": (48, 48, 3)}
    return keras_hub.models.DINOV2Backbone(image_shape=(size, size, 3), **TRANSFORMER, **options)


def siglip_tower():
    return keras_hub.models.SigLIPVisionEncoder(image_shape=(SIZE, SIZE, 3), intermediate_dim=16, **TRANSFORMER)


def clip_tower():
    return keras_hub.models.CLIPVisionEncoder(image_shape=(SIZE, SIZE, 3), intermediate_dim=16, **TRANSFORMER)


def resnet():
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )


# Constructor, tokens in front of the patches, and the names of the transformer's layers
TRANSFORMERS = [
    (vit, 1, ["transformer_block_1", "transformer_block_2", "transformer_block_3"]),
    (dinov2, 3, ["layers_0", "layers_1", "layers_2"]),
    (clip_tower, 1, ["encoder_block_0", "encoder_block_1", "encoder_block_2"]),
    (siglip_tower, 0, ["encoder_block_0", "encoder_block_1", "encoder_block_2"]),
]
BUILDERS = [build for build, _, _ in TRANSFORMERS] + [deit]


@pytest.fixture
def converter():
    return keras_hub.layers.ImageConverter(image_size=(SIZE, SIZE), scale=[0.01, 0.02, 0.03], offset=[-1.0, -2.0, -3.0])


def run(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def randomize(model):
    """Other numbers everywhere, as layers that begin at one or zero would hide what goes wrong."""
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if "position_embeddings" not in weight.path:  # DINOv2 computes some of these from others
            weight.assign_add(generator.normal(scale=0.1, size=weight.shape))
    return model


@pytest.mark.parametrize(("build", "extra", "_"), [*TRANSFORMERS, (deit, 2, [])])
def test_the_feature_map_is_what_the_backbone_gives(build, extra, _):
    backbone = randomize(build())
    opened = hub.open_backbone(backbone)
    scaled = PIXELS / 255
    found, outputs = run(opened, scaled), run(backbone, scaled if build in (vit, deit) else {"images": scaled})
    assert found.shape == (12, 4, 4, 16)
    whole = outputs[:, 0] if extra else outputs
    np.testing.assert_allclose(found[..., 8:], np.broadcast_to(whole[:, None, None], (12, 4, 4, 8)), atol=1e-5)
    if extra:
        np.testing.assert_allclose(found[..., :8].reshape(12, 16, 8), outputs[:, extra:], atol=1e-5)


def test_patches_alone_where_there_is_no_class_token():
    backbone = vit(use_class_token=False)
    assert hub.open_backbone(backbone).output_shape == (None, 4, 4, 8)


def test_a_convolutional_network_keeps_its_feature_map_and_takes_any_size():
    backbone = resnet()
    opened = hub.open_backbone(backbone, (SIZE, SIZE, 3))
    np.testing.assert_allclose(run(opened, PIXELS), run(backbone, PIXELS), atol=1e-4)
    assert len(kerastl.list_blocks(opened)) == 5  # the stem and four units


@pytest.mark.parametrize(("build", "_", "names"), TRANSFORMERS)
def test_blocks_are_the_layers_of_the_transformer(build, _, names, converter):
    model = kerastl.build_classifier(build(), 3, preprocessing=converter)
    blocks = kerastl.list_blocks(model)
    assert [block.name for block in blocks][1:4] == names
    kerastl.unfreeze(model, from_layer=names[-1])
    expected = {id(weight) for block in blocks[3:] for layer in block.layers for weight in layer.weights}
    head = {id(weight) for weight in model.get_layer("predictions").weights}
    assert {id(weight) for weight in model.trainable_weights} == expected | head


def test_a_stack_that_can_not_be_opened_is_one_block(converter):
    """DeiT's encoder: its layers return attention scores or `None` beside their tensor."""
    model = kerastl.build_classifier(deit(), 3, preprocessing=converter)
    assert [block.name for block in kerastl.list_blocks(model)] == ["deit_patching_and_embedding", "deit_encoder"]


def test_the_last_blocks_of_a_vision_transformer(converter):
    model = kerastl.build_classifier(vit(), 3, preprocessing=converter)
    kerastl.unfreeze(model, last_blocks=1)
    layers = {layer.name for layer in graph.leaf_layers(model) if layer.trainable and layer.weights}
    assert layers == {"transformer_block_3", "ln", "predictions"}


def test_pixels_are_scaled_by_plain_keras_operations_as_the_converter_does(converter):
    backbone = randomize(vit())
    model = kerastl.build_classifier(backbone, 3, preprocessing=converter, dropout=0)
    base = model.get_layer(graph.find_backbone(model).name)
    before = [one for one in model.operations if one is not base]
    assert all(type(one).__module__.startswith("keras.") for one in before)
    through_converter = run(base, keras.ops.convert_to_numpy(converter(PIXELS))).mean(axis=(1, 2))
    kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in model.get_layer("predictions").weights)
    expected = keras.ops.convert_to_numpy(keras.ops.softmax(through_converter @ kernel + bias))
    np.testing.assert_allclose(run(model, PIXELS), expected, atol=1e-5)


@pytest.mark.parametrize("build", BUILDERS)
def test_stored_features_train_the_same_weights(build, converter):
    weights = {}
    for cache in (False, CacheOptions(dtype="float32", engine="keras")):
        keras.utils.set_random_seed(3)
        model = kerastl.build_classifier(randomize(build()), 3, preprocessing=converter, dropout=0)
        kerastl.unfreeze(model, last_blocks=1)
        assert find_cuts(model)[-1].trunk_macs > 0
        model.compile("sgd", "sparse_categorical_crossentropy")
        kerastl.fit(model, PIXELS, LABELS, epochs=2, batch_size=4, shuffle=False, cache=cache, verbose=0)
        weights[bool(cache)] = model.get_weights()
    for plain, cached in zip(weights[False], weights[True], strict=True):
        np.testing.assert_allclose(cached, plain, atol=1e-5)


@pytest.mark.parametrize(
    "build", [vit, dinov2, clip_tower, siglip_tower, resnet]
)  # KerasHub's DeiT encoder has no working `get_config`
def test_a_classifier_is_saved_and_loaded(build, converter, tmp_path):
    model = kerastl.build_classifier(randomize(build()), 3, input_shape=SIZE, preprocessing=converter)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(run(loaded, PIXELS), run(model, PIXELS), atol=1e-6)
    assert [block.name for block in kerastl.list_blocks(loaded)] == [block.name for block in kerastl.list_blocks(model)]


# ------------------------------------------------------------------------------------------ Presets, by name


@pytest.fixture
def preset(tmp_path, converter):
    """Write a preset as KerasHub does, and return its name for kerastl."""

    def write(backbone, converter_class, **options):
        folder = str(tmp_path / "tiny_preset")
        backbone.save_to_preset(folder)
        converter_class(**{**converter.get_config(), "name": None, **options}).save_to_preset(folder)
        return f"hub:{folder}"

    return write


def test_a_preset_comes_with_its_weights_size_and_preprocessing(preset):
    backbone = randomize(vit())
    name = preset(backbone, keras_hub.layers.ViTImageConverter)
    assert backbone_row(name).native_size == SIZE
    base = kerastl.load_backbone(name)
    assert (base.name, base.trainable_weights) == ("tiny_preset", [])
    np.testing.assert_allclose(run(base, PIXELS), run(hub.open_backbone(backbone), PIXELS), atol=1e-5)
    assert describe_weights(base).source == "hub"
    random = kerastl.load_backbone(name, weights=None)
    assert np.abs(run(random, PIXELS) - run(base, PIXELS)).max() > 0.1

    model = kerastl.build_classifier(name, 3, dropout=0)
    known = kerastl.build_classifier(
        backbone, 3, preprocessing=keras_hub.layers.ImageConverter.from_preset(name[4:]), dropout=0
    )
    known.set_weights(model.get_weights())
    np.testing.assert_allclose(run(model, PIXELS), run(known, PIXELS), atol=1e-6)


def test_another_image_size_where_the_network_takes_it(preset):
    name = preset(dinov2(), keras_hub.layers.DINOV2ImageConverter)
    assert kerastl.load_backbone(name, input_shape=48).output_shape == (None, 6, 6, 16)


def test_another_image_size_where_it_does_not(preset):
    name = preset(vit(), keras_hub.layers.ViTImageConverter)
    with pytest.raises(
        WeightsUnavailableError, match=r"(?s)could not read the preset.*image size.*Received: backbone="
    ):
        kerastl.load_backbone(name, input_shape=48)


def test_of_siglip_the_image_tower_is_taken(preset):
    text = keras_hub.models.SigLIPTextEncoder(
        vocabulary_size=16,
        embedding_dim=8,
        hidden_dim=8,
        num_layers=1,
        num_heads=2,
        intermediate_dim=16,
        max_sequence_length=4,
    )
    both = randomize(keras_hub.models.SigLIPBackbone(siglip_tower(), text))
    base = kerastl.load_backbone(preset(both, keras_hub.layers.SigLIPImageConverter))
    expected = run(both.vision_encoder, {"images": PIXELS})
    np.testing.assert_allclose(run(base, PIXELS)[:, 0, 0, 8:], expected, atol=1e-5)


def test_a_preset_that_is_not_there():
    with pytest.raises(WeightsUnavailableError, match="could not read the preset 'no_such_preset'"):
        kerastl.load_backbone("hub:no_such_preset")


def test_a_model_alone_does_not_tell_its_preprocessing():
    with pytest.raises(ArgumentError, match="ImageConverter"):
        kerastl.build_classifier(vit(), 3)


def test_a_converter_that_does_more_is_refused():
    class Inverting(keras_hub.layers.ImageConverter):
        def call(self, inputs):
            return 255 - inputs

    with pytest.raises(ArgumentError, match="scales and shifts"):
        kerastl.build_classifier(vit(), 3, preprocessing=Inverting())


def test_a_backbone_for_text_is_refused():
    text = keras_hub.models.BertBackbone(
        vocabulary_size=16, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=4
    )
    with pytest.raises(ModelError, match="doesn't take one batch of images"):
        hub.open_backbone(text)
