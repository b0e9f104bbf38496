import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerastl.costs import layer_costs
from kerastl.errors import ArgumentError
from kerastl.models import blocks

layers = keras.layers


def block_model(block, *arguments, size=16, channels=16, **options):
    inputs = keras.Input((size, size, channels))
    return keras.Model(inputs, block(inputs, *arguments, name="unit", **options))


def randomize(model, seed=0):
    """Give every weight a random value, BatchNorm's statistics included, so that no layer can hide."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        shapes = [weight.shape for weight in layer.weights]
        small = isinstance(layer, layers.BatchNormalization)
        layer.set_weights([generator.uniform(0.5, 1.5, s) if small else generator.normal(0, 0.1, s) for s in shapes])


def copy_weights(source, target):
    """Copy layer for layer, in the order of the layers, and check that every shape is the same on the way."""
    pairs = list(zip(weighted(source), weighted(target), strict=True))
    for left, right in pairs:
        assert [w.shape for w in left.weights] == [w.shape for w in right.weights], (left.name, right.name)
        right.set_weights(left.get_weights())
    return pairs


def weighted(model):
    return [layer for layer in model.layers if layer.weights]


def resnet50_of_blocks(input_shape):
    inputs = keras.Input(input_shape)
    x = layers.ZeroPadding2D(3)(inputs)
    x = layers.Conv2D(64, 7, strides=2, name="conv1_conv")(x)
    x = layers.BatchNormalization(epsilon=blocks.RESNET_EPSILON, name="conv1_bn")(x)
    x = layers.ZeroPadding2D(1)(layers.ReLU()(x))
    x = layers.MaxPooling2D(3, strides=2)(x)
    for stage, (filters, count) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=2):
        for number in range(1, count + 1):
            stride = 2 if number == 1 and stage > 2 else 1
            x = blocks.bottleneck_block(x, filters, stride=stride, name=f"conv{stage}_block{number}")
    return keras.Model(inputs, x)


def mobilenet_v2_of_blocks(input_shape, alpha):
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(blocks.make_divisible(32 * alpha), 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization(epsilon=1e-3, momentum=0.999)(x))
    x = blocks.inverted_residual_block(x, 16, expansion=1, alpha=alpha, name="expanded_conv")
    number = 1
    for filters, count, first_stride in [(24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)]:
        for repeat in range(count):
            stride = first_stride if repeat == 0 else 1
            x = blocks.inverted_residual_block(x, filters, stride=stride, alpha=alpha, name=f"block_{number}")
            number += 1
    x = layers.Conv2D(1280, 1, use_bias=False)(x)
    x = layers.BatchNormalization(epsilon=1e-3, momentum=0.999)(x)
    return keras.Model(inputs, layers.ReLU(6.0)(x))


def assert_same_network(reference, ours, size):
    """Random weights copied over; the outputs must agree to 1e-5 of their own size."""
    randomize(reference)
    pairs = copy_weights(reference, ours)
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype("float32")
    expected = np.asarray(reference.predict_on_batch(images))
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(
        np.asarray(ours.predict_on_batch(images)), expected, rtol=1e-5, atol=1e-5 * expected.max()
    )
    return pairs


def test_resnet50_of_bottleneck_blocks_is_keras_resnet50():
    reference = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    pairs = assert_same_network(reference, resnet50_of_blocks((64, 64, 3)), 64)
    assert [left.name for left, _ in pairs] == [right.name for _, right in pairs]
    assert len(pairs) == 106


@pytest.mark.parametrize("alpha", [1.0, 0.75, 0.5, 0.35])
def test_mobilenet_v2_of_inverted_residual_blocks_is_keras_mobilenet_v2(alpha):
    shape = (64, 64, 3)
    reference = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=shape, alpha=alpha)
    pairs = assert_same_network(reference, mobilenet_v2_of_blocks(shape, alpha), 64)
    inside = [(left.name, right.name) for left, right in pairs if left.name.startswith(("block", "expanded"))]
    assert len(inside) == 100
    assert all(left == right for left, right in inside)


def test_mobilenet_of_depthwise_separable_blocks_is_keras_mobilenet():
    reference = keras.applications.MobileNet(weights=None, include_top=False, input_shape=(64, 64, 3), alpha=0.5)
    inputs = keras.Input((64, 64, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    filters = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    for number, count in enumerate(filters, start=1):
        stride = 2 if number in (2, 4, 6, 12) else 1
        x = blocks.depthwise_separable_block(x, count, stride=stride, alpha=0.5, name=f"block_{number}")
    assert_same_network(reference, keras.Model(inputs, x), 64)


@pytest.mark.parametrize(
    ("block", "arguments", "options", "output"),
    [
        (blocks.bottleneck_block, (8,), {}, (16, 16, 32)),
        (blocks.bottleneck_block, (8,), {"stride": 2}, (8, 8, 32)),
        (blocks.bottleneck_block, (4,), {}, (16, 16, 16)),
        (blocks.basic_block, (16,), {}, (16, 16, 16)),
        (blocks.basic_block, (24,), {"stride": 2}, (8, 8, 24)),
        (blocks.depthwise_separable_block, (24,), {"stride": 2}, (8, 8, 24)),
        (blocks.inverted_residual_block, (16,), {}, (16, 16, 16)),
        (blocks.inverted_residual_block, (24,), {"stride": 2, "kernel_size": 5}, (8, 8, 24)),
        (blocks.fire_module, (4, 12), {}, (16, 16, 24)),
        (blocks.shuffle_unit, (48,), {"groups": 4, "stride": 2}, (8, 8, 48)),
        (blocks.shuffle_unit, (16,), {"groups": 2}, (16, 16, 16)),
    ],
)
def test_shapes_and_names(block, arguments, options, output):
    model = block_model(block, *arguments, **options)
    assert model.output_shape[1:] == output
    assert all(layer.name.startswith("unit_") for layer in model.layers[1:])
    values = np.random.default_rng(0).normal(size=(2, 16, 16, 16))
    assert np.isfinite(np.asarray(model.predict_on_batch(values.astype("float32")))).all()


def test_a_block_of_zero_weights_is_its_shortcut():
    """What makes it residual: with nothing learned, the input passes (the notes' block would give zeros)."""
    images = np.random.default_rng(0).uniform(size=(1, 16, 16, 16)).astype("float32")
    for block, arguments in [
        (blocks.bottleneck_block, (4,)),
        (blocks.basic_block, (16,)),
        (blocks.shuffle_unit, (16,)),
    ]:
        options = {"groups": 2} if block is blocks.shuffle_unit else {}
        model = block_model(block, *arguments, **options)
        for layer in model.layers:
            if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D)):
                layer.set_weights([0 * weight for weight in layer.get_weights()])
        np.testing.assert_allclose(np.asarray(model.predict_on_batch(images)), images, rtol=1e-6)


def test_the_linear_bottleneck_keeps_negative_values_and_the_wide_layers_do_not():
    model = block_model(blocks.inverted_residual_block, 24)
    randomize(model)
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype("float32")
    narrow, wide = keras.Model(
        model.input, [model.output, model.get_layer("unit_expand_relu").output]
    ).predict_on_batch(images)
    assert np.asarray(narrow).min() < 0
    assert 0 <= np.asarray(wide).min() <= np.asarray(wide).max() <= 6


def test_identity_where_it_fits_projection_where_it_does_not():
    names = [layer.name for layer in block_model(blocks.basic_block, 16).layers]
    assert "unit_0_conv" not in names
    forced = [layer.name for layer in block_model(blocks.basic_block, 16, projection=True).layers]
    assert "unit_0_conv" in forced
    assert "unit_0_conv" in [layer.name for layer in block_model(blocks.basic_block, 32).layers]
    with pytest.raises(ArgumentError, match=r"stride 1.*Received: channels=16, stride=2"):
        block_model(blocks.basic_block, 16, stride=2, projection=False)


def test_channel_shuffle_is_reshape_transpose_flatten():
    inputs = keras.Input((None, None, 12))
    model = keras.Model(inputs, blocks.channel_shuffle(inputs, 3))
    values = np.random.default_rng(0).normal(size=(2, 3, 5, 12)).astype("float32")
    expected = values.reshape(2, 3, 5, 3, 4).swapaxes(3, 4).reshape(2, 3, 5, 12)
    np.testing.assert_array_equal(np.asarray(model.predict_on_batch(values)), expected)


def test_shuffled_groups_see_channels_of_every_group():
    inputs = keras.Input((4, 4, 12))
    x = layers.Conv2D(12, 1, groups=3, use_bias=False)(inputs)
    unshuffled = keras.Model(inputs, layers.Conv2D(12, 1, groups=3, use_bias=False)(x))
    shuffled = keras.Model(inputs, layers.Conv2D(12, 1, groups=3, use_bias=False)(blocks.channel_shuffle(x, 3)))

    def reached_by_first_channel(model):
        for layer in model.layers:
            layer.set_weights([np.ones_like(weight) for weight in layer.get_weights()])
        values = np.zeros((1, 4, 4, 12), "float32")
        values[..., 0] = 1
        return int((np.asarray(model.predict_on_batch(values))[0, 0, 0] != 0).sum())

    assert reached_by_first_channel(unshuffled) == 4
    assert reached_by_first_channel(shuffled) == 12


def test_a_network_with_channel_shuffle_is_saved_and_loads_as_plain_keras(tmp_path):
    model = block_model(blocks.shuffle_unit, 48, groups=4, stride=2)
    model.save(tmp_path / "unit.keras")
    loaded = keras.models.load_model(tmp_path / "unit.keras")
    values = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype("float32")
    np.testing.assert_array_equal(
        np.asarray(loaded.predict_on_batch(values)), np.asarray(model.predict_on_batch(values))
    )


@pytest.mark.parametrize(
    ("filters", "options"),
    [(10, {}), (48, {"groups": 5}), (32, {}), (16, {"stride": 2}), (46, {"groups": 2, "stride": 2})],
)
def test_shuffle_units_that_cannot_be_built_are_refused(filters, options):
    with pytest.raises(ArgumentError, match=r"Received: channels=16, filters="):
        block_model(blocks.shuffle_unit, filters, **{"groups": 3, **options})


@pytest.mark.parametrize(
    ("block", "arguments"),
    [
        (blocks.bottleneck_block, (0,)),
        (blocks.basic_block, (16.5,)),
        (blocks.fire_module, (4, 0)),
        (blocks.inverted_residual_block, (-8,)),
        (blocks.depthwise_separable_block, (0,)),
    ],
)
def test_impossible_numbers_of_channels_are_refused(block, arguments):
    with pytest.raises(ArgumentError, match="Received"):
        block_model(block, *arguments)


@given(channels=st.floats(1, 4000))
def test_make_divisible_is_a_near_multiple_that_loses_at_most_a_tenth(channels):
    rounded = blocks.make_divisible(channels)
    assert rounded % 8 == 0
    assert rounded >= 0.9 * channels
    assert rounded <= max(8, channels + 8)


def test_separable_blocks_cost_what_the_formula_says():
    rows = layer_costs(block_model(blocks.depthwise_separable_block, 24))
    ratio = (rows["unit_depthwise"].macs + rows["unit_pointwise"].macs) / (16 * 16 * 9 * 16 * 24)
    assert ratio == pytest.approx(1 / 24 + 1 / 9)
