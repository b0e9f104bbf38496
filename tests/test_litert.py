"""Models keep their answers on their way to LiteRT, and what can't go there is told so."""

import keras
import numpy as np
import pytest

from kerastl import litert
from kerastl.errors import ArgumentError, BackendError, ModelError
from tests import models

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the converter is TensorFlow's"),
    pytest.mark.skipif(not litert.is_installed(), reason="needs ai-edge-litert"),
]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return models.nested(32, augmentation=True)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype("float32")


@pytest.fixture(scope="module")
def converted(model):
    return litert.convert(model)


def answers_of(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def test_a_converted_model_answers_as_keras_does_at_any_batch_size(model, images, converted):
    runner = litert.LiteRTModel(converted, threads=1)
    assert runner.input_shape == (None, 32, 32, 3)
    assert runner.input_type == "float32"
    assert runner.output_shapes == [(3,)]
    for count in (8, 1, 3):
        np.testing.assert_allclose(runner(images[:count])[0], answers_of(model, images[:count]), rtol=1e-4, atol=1e-6)


def test_a_fixed_batch_size_is_fed_piece_by_piece(model, images):
    runner = litert.LiteRTModel(litert.convert(model, batch_size=1))
    assert runner.input_shape == (1, 32, 32, 3)
    np.testing.assert_allclose(runner(images)[0], answers_of(model, images), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("quantize", "share", "tolerance"), [("float16", 0.75, 0.01), ("int8", 0.6, 0.1)])
def test_quantized_models_are_smaller_and_answer_nearly_the_same(quantize, share, tolerance, images):
    model = models.flat(32, width=32)
    whole = litert.convert(model)
    small = litert.convert(model, quantize=quantize, images=images)
    runner = litert.LiteRTModel(small)
    assert runner.input_type == "float32"
    assert len(small) < share * len(whole)
    np.testing.assert_allclose(runner(images)[0], answers_of(model, images), atol=tolerance)


def test_latencies_of_several_models_come_from_one_run(converted):
    seconds = litert.measure_latency([litert.LiteRTModel(converted, threads=n) for n in (1, 2)], repeats=7, rounds=3)
    assert [len(one) for one in seconds] == [7, 7]
    assert all((one > 0).all() for one in seconds)


def test_what_cannot_be_converted_is_refused_with_the_operation(images):
    class Determinant(keras.layers.Layer):
        def call(self, x):
            return keras.ops.det(x[..., :3, :3, 0])[:, None]

    inputs = keras.Input((32, 32, 3))
    with pytest.raises(ModelError, match="MatrixDeterminant"):
        litert.convert(keras.Model(inputs, Determinant()(inputs)))


@pytest.mark.parametrize("images", [None, np.zeros((0, 32, 32, 3))])
def test_int8_needs_images(model, images):
    with pytest.raises(ArgumentError, match="representative images"):
        litert.convert(model, quantize="int8", images=images)


def test_an_unknown_quantization_is_refused(model):
    with pytest.raises(ArgumentError, match="'int8'"):
        litert.convert(model, quantize="int4")


def test_what_is_no_litert_model_is_refused(converted):
    with pytest.raises(ModelError, match="LiteRT can't read"):
        litert.LiteRTModel(b"no model at all")


def test_images_of_another_size_are_refused_and_the_next_ones_taken(converted, images):
    runner = litert.LiteRTModel(converted)
    with pytest.raises(ModelError, match=r"can't take these images.*shape=\(8, 16, 16, 3\)"):
        runner(images[:, ::2, ::2])
    assert runner(images)[0].shape == (8, 3)


def test_a_missing_interpreter_is_an_error_that_names_the_extra(converted, monkeypatch):
    monkeypatch.setattr(litert, "is_installed", lambda: False)
    with pytest.raises(BackendError, match=r"kerastl\[export\]"):
        litert.LiteRTModel(converted)
