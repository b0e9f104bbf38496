"""1×1 convolutions as matrix products: the same numbers, only for the length of training, and nothing of it in the model."""

import keras
import numpy as np
import pytest
from keras import layers

from kerastl.features.plan import CacheOptions
from kerastl.training import pointwise
from kerastl.training.session import fit
from tests import models

tf = pytest.importorskip("tensorflow")


class Own(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return 2 * super().convolution_op(inputs, kernel)


class Widened(layers.Conv2D):
    def call(self, inputs):
        return self.convolution_op(inputs, keras.ops.tile(self.kernel, (1, 3, 1, 1)))


KINDS = {
    "plain": (layers.Conv2D(5, 1), True),
    "strides": (layers.Conv2D(5, 1, strides=2), True),
    "other strides, padding": (layers.Conv2D(5, 1, strides=(3, 2), padding="same", use_bias=False), True),
    "activation": (layers.Conv2D(5, (1, 1), activation="relu"), True),
    "a larger kernel": (layers.Conv2D(5, (1, 3)), False),
    "groups": (layers.Conv2D(6, 1, groups=2), False),
    "bfloat16": (layers.Conv2D(5, 1, dtype="mixed_bfloat16"), False),
    "a convolution of one's own": (Own(5, 1), False),
    "another kernel in a call of one's own": (Widened(5, 1, use_bias=False), False),
    "depthwise": (layers.DepthwiseConv2D(1), False),
}


def outputs_and_gradients(model, images):
    @tf.function
    def run(pixels):
        with tf.GradientTape() as tape:
            outputs = model(pixels)
            loss = keras.ops.sum(keras.ops.cast(outputs, "float32") ** 3)
        return [outputs, *tape.gradient(loss, [variable.value for variable in model.trainable_variables])]

    run_of = run.get_concrete_function(tf.TensorSpec((None, *images.shape[1:]), "float32"))
    kinds = {operation.type for operation in run_of.graph.get_operations()}
    return [np.asarray(keras.ops.cast(one, "float32")) for one in run_of(tf.constant(images))], kinds


@pytest.mark.parametrize("size", [(None, None), (7, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_the_same_and_the_layer_is_as_before(kind, size):
    one, is_product = KINDS[kind]
    layer = type(one).from_config(one.get_config())
    inputs = keras.Input((*size, 4))
    model = keras.Model(inputs, keras.Sequential([layer])(inputs))  # one layer further down
    images = np.random.default_rng(0).normal(size=(3, 7, 8, 4)).astype("float32")
    expected, plain = outputs_and_gradients(model, images)
    with pointwise.convolutions_as_products(model):
        found, kinds = outputs_and_gradients(model, images)
    assert ("MatMul" in kinds) == is_product
    assert (kinds == plain) != is_product
    for first, second in zip(expected, found, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)
    assert "convolution_op" not in vars(layer)
    assert outputs_and_gradients(model, images)[1] == plain


def test_a_layer_is_as_before_after_an_error_too():
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 1, name="one")])

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pointwise.convolutions_as_products(model):
        stop()
    assert "convolution_op" not in vars(model.get_layer("one"))


def test_layers_are_as_before_when_an_interrupt_comes_as_they_are_prepared(monkeypatch):
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 1), layers.Conv2D(2, 1)])
    set_one = layers.Conv2D.__setattr__

    def interrupted(layer, name, value):
        set_one(layer, name, value)
        if layer is model.layers[1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(layers.Conv2D, "__setattr__", interrupted)
    with pytest.raises(KeyboardInterrupt), pointwise.convolutions_as_products(model):
        pass
    assert not any("convolution_op" in vars(layer) for layer in model.layers)


def classifier():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=4, activation="relu", name="frozen")(inputs)
    x = layers.Conv2D(6, 1, activation="relu", name="pointwise")(x)
    outputs = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    model.get_layer("frozen").trainable = False
    return models.compiled(model, 0.01)


@pytest.mark.parametrize(("options", "is_product"), [({}, True), ({"engine": "keras", "dtype": "float32"}, False)])
def test_training_on_features_uses_them_unless_it_is_to_be_as_in_keras(options, is_product, data, tmp_path):
    seen = []

    class Looks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append("convolution_op" in vars(self.model.get_layer("pointwise")))

    cached, plain, path = classifier(), classifier(), tmp_path / "kept.keras"
    kept = keras.callbacks.ModelCheckpoint(path)
    cache = CacheOptions(**options, insist=True)
    arguments = {"epochs": 2, "shuffle": False, "verbose": 0, "batch_size": 16}
    first = fit(cached, *data, cache=cache, callbacks=[Looks(), kept], validation_data=data, **arguments)
    second = plain.fit(*data, validation_data=data, **arguments)
    assert set(seen) == {is_product}
    for key, values in second.history.items():
        np.testing.assert_allclose(first.history[key], values, rtol=5e-3, err_msg=key)
    assert "convolution_op" not in vars(cached.get_layer("pointwise"))
    np.testing.assert_allclose(
        keras.models.load_model(path).predict(data[0], verbose=0), cached.predict(data[0], verbose=0)
    )
