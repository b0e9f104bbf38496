"""The table of backbones against Keras itself: constructors, sizes, preprocessing, what a model tells of itself."""

import dataclasses
import json
import sys

import keras
import numpy as np
import pytest

from kerastl.errors import ArgumentError, BackendError
from kerastl.models import backbones
from kerastl.models.backbones import (
    BACKBONES,
    IN_MODEL,
    backbone_row,
    check_input_shape,
    find_backbone_row,
    list_backbones,
    load_backbone,
    preprocess,
)

RANDOM_PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3)).astype("float32")


def preprocessing_of(row):
    """What Keras itself does for the family; for networks of our own, what their reference implementations do."""
    if row.family == "efficientnet_lite":
        return lambda pixels: (pixels - 127) / 128
    if row.constructor.__module__ == "kerastl.models.networks":
        return lambda pixels: keras.applications.imagenet_utils.preprocess_input(pixels, mode="torch")
    return getattr(keras.applications, row.family).preprocess_input


def run(model, images):
    return keras.ops.convert_to_numpy(model(images))


def test_every_constructor_of_keras_applications_has_a_row():
    constructors = {getattr(keras.applications, name) for name in dir(keras.applications) if name[0].isupper()}
    assert constructors <= {row.constructor for row in BACKBONES.values()}


def test_names_are_snake_case():
    assert all(name == name.lower() and name.isidentifier() for name in list_backbones())


@pytest.mark.slow
@pytest.mark.parametrize("name", list_backbones())
def test_the_native_size_is_the_constructor_default(name):
    row = backbone_row(name)
    model = row.constructor(weights=None)
    if row.family == "mobilenet_v3":  # takes any size unless told; its weights were trained at 224
        assert model.input_shape[1:] == (None, None, 3)
        assert row.native_size == 224
    else:
        assert model.input_shape[1:] == check_input_shape(row)


@pytest.mark.parametrize("name", list_backbones())
def test_preprocessing_in_the_graph_equals_that_of_the_family(name):
    row = backbone_row(name)
    inputs = keras.Input((8, 9, 3))
    outputs = preprocess(name, inputs)
    expected = preprocessing_of(row)(RANDOM_PIXELS.copy())
    if row.preprocessing == IN_MODEL:
        assert outputs is inputs
        np.testing.assert_array_equal(expected, RANDOM_PIXELS)
        return
    np.testing.assert_allclose(run(keras.Model(inputs, outputs), RANDOM_PIXELS), expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(preprocess(row, RANDOM_PIXELS), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "densenet121"])
def test_preprocessing_takes_integers_changes_nothing_in_place_and_is_saved_as_plain_keras(name, tmp_path):
    pixels = RANDOM_PIXELS.copy()
    from_floats = keras.ops.convert_to_numpy(preprocess(name, pixels))
    np.testing.assert_array_equal(pixels, RANDOM_PIXELS)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(preprocess(name, pixels.astype("uint8"))), from_floats)

    inputs = keras.Input((8, 9, 3))
    model = keras.Model(inputs, preprocess(name, inputs))
    model.save(tmp_path / "front.keras")
    assert "kerastl" not in json.dumps(model.get_config(), default=str)
    np.testing.assert_array_equal(run(keras.models.load_model(tmp_path / "front.keras"), pixels), run(model, pixels))


def test_a_row_may_hold_functions_of_its_own():
    def build_tiny(include_top=True, input_shape=None, weights=None, pooling=None, name="tiny_net"):
        assert not include_top
        inputs = keras.Input(input_shape)
        return keras.Model(inputs, keras.layers.Conv2D(4, 3, name="conv")(inputs), name=name)

    row = backbones.Backbone("tiny_net", build_tiny, "tiny", lambda pixels: pixels / 10.0, 16, smallest_size=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny_net", row)
        model = load_backbone("tiny_net", weights=None)
        assert model.input_shape == (None, 16, 16, 3)
        assert find_backbone_row(model) is row
        assert "tiny_net" in list_backbones()
    np.testing.assert_allclose(preprocess(row, RANDOM_PIXELS), RANDOM_PIXELS / 10, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("resnet_50", "'resnet50'"), ("MobileNetV2", "'mobilenet_v2'"), ("efficientnetb0", "'efficientnet_b0'")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, suggestion):
    with pytest.raises(ArgumentError, match=f"Did you mean {suggestion}.*Received: name='{name}'"):
        load_backbone(name, weights=None)


def test_input_shape_is_a_shape_a_number_or_the_native_size():
    row = backbone_row("xception")
    assert check_input_shape(row) == (299, 299, 3)
    assert check_input_shape(row, np.int64(96)) == (96, 96, 3)
    assert check_input_shape(row, [71, 80, 3]) == (71, 80, 3)
    with pytest.raises(ArgumentError, match=r"71×71 pixels or more.*not 71×70"):
        check_input_shape(row, (71, 70, 3))
    with pytest.raises(ArgumentError, match="Repeat grey images"):
        check_input_shape(row, (96, 96, 1))
    for wrong in [(96, 96), (None, None, 3), "96", (96.0, 96.0, 3), (96, 96, 3, 1)]:
        with pytest.raises(ArgumentError, match="one whole number for a square"):
            check_input_shape(row, wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include_top": False}, "no option `include_top`: a backbone has no top"),
        ({"classes": 5}, "`num_classes`"),
        ({"pooling": "average"}, "Did you mean 'avg'"),
        ({"alfa": 0.5}, "no option `alfa`. Did you mean 'alpha'"),
        ({"input_shape": 16}, "32×32 pixels or more"),
        ({"weights": "image_net"}, "Did you mean 'imagenet'"),
    ],
)
def test_arguments_are_checked_before_anything_is_built(options, message, monkeypatch):
    def build_nothing(include_top, input_shape, weights, alpha=1.0, pooling=None, classes=1, name=None):
        raise AssertionError("built something")

    row = dataclasses.replace(BACKBONES["mobilenet_v2"], constructor=build_nothing)
    monkeypatch.setitem(BACKBONES, "mobilenet_v2", row)
    with pytest.raises(ArgumentError, match=message):
        load_backbone("mobilenet_v2", **{"weights": None, **options})


def test_constructor_options_reach_the_constructor():
    model = load_backbone("mobilenet_v2", input_shape=(32, 40, 3), weights=None, alpha=0.35, pooling="avg")
    assert model.output_shape == (None, 1280)
    assert model.get_layer("Conv1").filters == 16
    assert find_backbone_row(model) is backbone_row("mobilenet_v2")


def test_channels_first_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    with pytest.raises(BackendError, match="channels last"):
        load_backbone("mobilenet_v2", weights=None)


def test_a_model_tells_whether_its_preprocessing_is_done(tmp_path):
    inputs = keras.Input((32, 32, 3))
    flips = keras.Sequential([keras.layers.RandomFlip(), keras.layers.RandomContrast(0.1)])

    def named_as_keras_names_it(x):
        x = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, name="conv1")(x))
        return keras.Model(inputs, x, name="mobilenet_0.25_32")

    plain, augmented = named_as_keras_names_it(inputs), named_as_keras_names_it(flips(inputs))
    prepared = named_as_keras_names_it(keras.applications.mobilenet.preprocess_input(flips(inputs)))
    rescaled = named_as_keras_names_it(keras.layers.Rescaling(1 / 127.5, -1)(inputs))
    plain.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    told = [find_backbone_row(model).preprocessing for model in (plain, loaded, augmented, prepared, rescaled)]
    assert told == ["tf", "tf", "tf", IN_MODEL, IN_MODEL]
    assert find_backbone_row(keras.Model(plain.input, plain.output, name="my_model")) is None


def test_a_model_without_its_own_preprocessing_says_what_is_missing():
    bare = load_backbone("mobilenet_v3_small", input_shape=32, weights=None, include_preprocessing=False)
    assert find_backbone_row(bare).preprocessing == "tf"


def test_without_keras_hub_the_error_names_the_one_for_this_keras(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    for version, bound in (("3.14.1", "keras-hub>=0.26,<0.30"), ("3.15.0", "keras-hub>=0.30")):
        monkeypatch.setattr(keras, "__version__", version)
        with pytest.raises(
            BackendError, match=rf'pip install "{bound}".*backbone=\'hub:dinov2_small\', keras=\'{version}\''
        ):
            load_backbone("hub:dinov2_small")
