import keras
import numpy as np
import pytest

from kerastl.errors import ArgumentError, DataError, ModelError
from kerastl.evaluation.probabilities import class_names_for, class_probabilities, input_size
from kerastl.models import outputs


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
