import keras
import numpy as np
import pytest
from keras import layers

from kerastl.errors import ArgumentError, DataError, ModelError
from kerastl.evaluation.probabilities import class_names_for, class_probabilities, input_size
from kerastl.models import outputs
from tests import models


def dense_model(units, activation, size=8):
    inputs = keras.Input((size, size, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    return keras.Model(inputs, keras.layers.Dense(units, activation=activation)(pooled))


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3)).astype("float32")


@pytest.mark.parametrize(("activation", "kind"), [("softmax", "softmax"), ("sigmoid", "sigmoid"), (None, "logits")])
def test_output_kind_of_the_last_dense_layer(activation, kind):
    assert outputs.output_kind(dense_model(3, activation)) == kind


def test_output_kind_looks_through_nested_models_and_plain_layers():
    inner = dense_model(3, "softmax")
    inputs = keras.Input((8, 8, 3))
    assert outputs.output_kind(keras.Model(inputs, inner(inputs))) == "softmax"
    assert outputs.output_kind(keras.Sequential([keras.Input((8, 8, 3)), inner])) == "softmax"
    through = keras.layers.Activation("linear", dtype="float32")(inner(inputs))
    assert outputs.output_kind(keras.Model(inputs, keras.layers.Dropout(0.1)(through))) == "softmax"


def test_output_kind_of_softmax_layers_and_operations():
    logits = dense_model(3, None)
    for last in (keras.layers.Softmax(), keras.layers.Activation("softmax"), keras.ops.softmax):
        assert outputs.output_kind(keras.Model(logits.input, last(logits.output))) == "softmax"


def test_probabilities_of_logits_equal_those_of_softmax(images):
    softmax, logits = dense_model(3, "softmax"), dense_model(3, None)
    logits.set_weights(softmax.get_weights())
    expected = softmax.predict(images, verbose=0)
    np.testing.assert_allclose(class_probabilities(softmax, images), expected, rtol=1e-5)
    np.testing.assert_allclose(class_probabilities(logits, images), expected, rtol=1e-4, atol=1e-6)


def test_one_sigmoid_unit_gives_two_columns(images):
    sigmoid, logit = dense_model(1, "sigmoid"), dense_model(1, None)
    for model in (sigmoid, logit):
        model.set_weights([np.array([[0.01], [0.0], [-0.01]]), np.array([0.3])])
    positive = sigmoid.predict(images, verbose=0)
    for model in (sigmoid, logit):
        found = class_probabilities(model, images)
        assert outputs.count_classes(model) == 2
        np.testing.assert_allclose(found, np.concatenate([1 - positive, positive], axis=1), rtol=1e-4)


def test_a_subclassed_model_is_judged_by_its_values(images):
    class Wrapped(keras.Model):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    softmax, logits = dense_model(3, "softmax"), dense_model(3, None)
    logits.set_weights(softmax.get_weights())
    expected = softmax.predict(images, verbose=0)
    for inner in (softmax, logits):
        model = Wrapped(inner)
        assert outputs.output_kind(model) is None
        np.testing.assert_allclose(class_probabilities(model, images), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", ["list", "dictionary"])
def test_the_first_of_several_outputs_is_the_main_one(images, form):
    inputs = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    main = keras.layers.Dense(3, activation="softmax")(pooled)
    aside = keras.layers.Dense(2, activation="softmax")(pooled)
    both = [main, aside] if form == "list" else {"z_main": main, "aside": aside}
    model = keras.Model(inputs, both)
    expected = keras.Model(inputs, main).predict(images, verbose=0)
    assert outputs.count_classes(model) == 3
    np.testing.assert_allclose(class_probabilities(model, images), expected, rtol=1e-5)


def test_views_average_the_flips(images):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(inputs)))
    model.set_weights([weight * 0.01 for weight in model.get_weights()])

    def plain(batch):
        return model.predict(batch, verbose=0)

    mirrored = (plain(images) + plain(images[:, :, ::-1])) / 2
    four = (plain(images) + plain(images[:, ::-1]) + plain(images[:, :, ::-1]) + plain(images[:, ::-1, ::-1])) / 4
    np.testing.assert_allclose(class_probabilities(model, images, views=2), mirrored, rtol=1e-4)
    np.testing.assert_allclose(class_probabilities(model, images, views=4), four, rtol=1e-4)
    with pytest.raises(ArgumentError, match="`views` must be one of 1, 2, 4"):
        class_probabilities(model, images, views=3)


@pytest.mark.filterwarnings("ignore:.*softmax over axis")
def test_nan_and_one_softmax_unit_and_feature_maps_are_errors(images):
    model = dense_model(3, "softmax")
    model.set_weights([weight * np.nan for weight in model.get_weights()])
    with pytest.raises(ModelError, match="NaN"):
        class_probabilities(model, images)
    with pytest.raises(ModelError, match="always 1"):
        class_probabilities(dense_model(1, "softmax"), images)
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
    for ask in (outputs.count_classes, lambda one: class_probabilities(one, images)):
        with pytest.raises(ModelError, match="build_classifier"):
            ask(backbone)


def test_class_names_are_counted():
    model = dense_model(3, "softmax")
    assert class_names_for(model, ("a", "b", "c")) == ["a", "b", "c"]
    assert class_names_for(model, None) == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"each of the model's 3 classes.*which is 2"):
        class_names_for(model, ["a", "b"])
    with pytest.raises(DataError, match="which is 1"):
        class_names_for(model, "abc")


def test_input_size_of_models_that_are_out_of_scope():
    assert input_size(dense_model(2, "softmax", size=12)) == (12, 12)
    grey = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    with pytest.raises(ModelError, match="RGB"):
        input_size(grey)
    first, second = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    with pytest.raises(ModelError, match="one input"):
        input_size(keras.Model([first, second], keras.layers.Add()([first, second])))


def behind(*front, head=True):
    """A classifier with these layers or functions in front of its first convolution."""
    x = inputs = keras.Input((16, 16, 3))
    for one in front:
        x = one(x)
    x = layers.Conv2D(4, 3)(x) if head else x
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def trained_norm(mean, variance):
    norm = layers.BatchNormalization()
    norm.build((None, 16, 16, 3))
    norm.set_weights([np.ones(3), np.zeros(3), np.full(3, mean), np.full(3, variance)])
    return norm


IMAGENET = {"mean": [0.485, 0.456, 0.406], "variance": [0.229**2, 0.224**2, 0.225**2]}
RANGES = {
    "0-255": [
        [layers.Rescaling(1 / 255)],
        [layers.Rescaling(1 / 127.5, offset=-1)],
        [layers.RandomFlip(), layers.Rescaling(1 / 255), layers.Normalization(**IMAGENET)],
        [keras.Sequential([layers.RandomRotation(0.1), layers.Rescaling(1 / 255)])],
        [layers.Lambda(lambda pixels: pixels / 255)],
        [lambda pixels: pixels - 127.5],
        [keras.applications.resnet50.preprocess_input, layers.ZeroPadding2D(3)],
        [keras.applications.mobilenet_v2.preprocess_input],
        [keras.applications.densenet.preprocess_input],
        [trained_norm(120, 5000)],
        [trained_norm(20, 100)],
    ],
    "scaled": [
        [layers.Normalization(**IMAGENET)],
        [layers.Rescaling(2.0, offset=-1)],
        [layers.Rescaling(255.0)],
        [lambda pixels: pixels * 0.5 + 0.5],
        [lambda pixels: 1 - pixels],
        [trained_norm(0.45, 0.08)],
        [trained_norm(0.1, 0.3)],
    ],
    "any": [[layers.BatchNormalization()], [layers.LayerNormalization()]],
    None: [
        [],
        [layers.Rescaling(1.0)],
        [lambda pixels: pixels + 0.0],
        [lambda pixels: pixels * 1.0],
        [lambda pixels: pixels * 127.5 + 127.5, keras.applications.mobilenet_v2.preprocess_input],
        [layers.RandomFlip(), layers.ZeroPadding2D(1)],
    ],
}


@pytest.mark.parametrize("takes", RANGES)
def test_the_range_of_pixels_is_taken_from_the_graph(takes):
    for number, front in enumerate(RANGES[takes]):
        flat = behind(*front)
        inputs = keras.Input((16, 16, 3))
        for model in (flat, keras.Model(inputs, flat(inputs)), keras.Sequential([keras.Input((16, 16, 3)), flat])):
            assert outputs.pixel_range(model) == takes, number


def test_the_range_of_models_without_a_convolution_and_of_any_size_and_without_a_graph():
    assert outputs.pixel_range(models.colours()) == "0-255"
    assert outputs.pixel_range(behind(head=False)) is None
    inputs = keras.Input((None, None, 3))
    assert outputs.pixel_range(keras.Model(inputs, layers.Conv2D(2, 1)(layers.Rescaling(1 / 255)(inputs)))) == "0-255"
    assert outputs.pixel_range(keras.Sequential([layers.Rescaling(1 / 255), layers.Dense(2)])) is None


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore:.*HDF5")
def test_a_loaded_model_takes_what_the_saved_one_did(ending, tmp_path):
    for takes, front in (("0-255", layers.Rescaling(1 / 255)), ("scaled", trained_norm(0.45, 0.08))):
        behind(front).save(tmp_path / f"model.{ending}")
        assert outputs.pixel_range(keras.models.load_model(tmp_path / f"model.{ending}")) == takes


@pytest.mark.parametrize(
    "front", [[], [layers.Rescaling(1.0)], [layers.BatchNormalization()], [trained_norm(0.45, 0.08)]]
)
def test_scaled_pixels_of_a_model_that_was_made_for_them_are_no_reason_to_warn(front, recwarn):
    pixels = np.random.default_rng(0).random((4, 16, 16, 3), "float32")
    outputs.check_images(behind(*front), pixels)
    outputs.check_images(behind(layers.Rescaling(1 / 255)), pixels * 255)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="look scaled already"):
        outputs.check_images(behind(layers.Rescaling(1 / 255)), pixels)
