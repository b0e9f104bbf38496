"""Models keep their outputs on their way to LiteRT, and what can't go there is told so."""

import logging
import os
import threading

import keras
import numpy as np
import pytest

from kerastl import backend
from kerastl.errors import ArgumentError, BackendError, ModelError
from kerastl.export import conversion
from kerastl.features import litert
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
    return conversion.convert(model)


def outputs_of(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def test_a_converted_model_computes_what_keras_does_at_any_batch_size(model, images, converted):
    runner = litert.LiteRTModel(converted, threads=1)
    assert runner.input_shape == (None, 32, 32, 3)
    assert runner.input_type == "float32"
    assert runner.output_shapes == [(3,)]
    for count in (8, 1, 3):
        np.testing.assert_allclose(runner(images[:count])[0], outputs_of(model, images[:count]), rtol=1e-4, atol=1e-6)


def test_a_fixed_batch_size_is_fed_piece_by_piece(model, images):
    runner = litert.LiteRTModel(conversion.convert(model, batch_size=1))
    assert runner.input_shape == (1, 32, 32, 3)
    np.testing.assert_allclose(runner(images)[0], outputs_of(model, images), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("convert", [conversion.convert, litert.convert_to_run])
def test_a_network_too_large_for_constants_computes_the_same(convert, model, images, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("weights were made constants")

    monkeypatch.setattr(conversion, "_LARGEST_CONSTANTS", 0)
    monkeypatch.setattr(litert, "_LARGEST_CONSTANTS", 0)
    monkeypatch.setattr(keras, "StatelessScope", refuse)  # what constants are put in the variables' place with
    np.testing.assert_allclose(
        litert.LiteRTModel(convert(model))(images)[0], outputs_of(model, images), rtol=1e-4, atol=1e-6
    )


def test_what_layers_hold_besides_weights_is_converted_too(images):
    """EfficientNet and ConvNeXt scale pixels by a Normalization layer, whose mean is no weight."""
    inputs = keras.Input((32, 32, 3))
    outputs = keras.layers.Conv2D(4, 3)(
        keras.layers.Normalization(mean=[90.0, 100, 110], variance=[9.0, 16, 25])(inputs)
    )
    model = keras.Model(inputs, outputs)
    for convert in (conversion.convert, litert.convert_to_run):
        given = litert.LiteRTModel(convert(model))(images)[0]
        np.testing.assert_allclose(given, outputs_of(model, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("quantize", "share", "tolerance"), [("float16", 0.75, 0.01), ("int8", 0.6, 0.1)])
def test_quantized_models_are_smaller_and_compute_nearly_the_same(quantize, share, tolerance, images):
    model = models.flat(32, width=32)
    whole = conversion.convert(model)
    small = conversion.convert(model, quantize=quantize, images=images)
    runner = litert.LiteRTModel(small)
    assert runner.input_type == "float32"
    assert len(small) < share * len(whole)
    np.testing.assert_allclose(runner(images)[0], outputs_of(model, images), atol=tolerance)


def uneven_start() -> keras.Model:
    """A classifier whose first layer is a hundred times louder in one channel than in those that the rest looks at."""
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="uneven")(keras.layers.Rescaling(1 / 127.5, -1)(inputs))
    x = keras.layers.DepthwiseConv2D(1, use_bias=False, name="levelling")(x)
    for _ in range(3):
        x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    loud = np.array([100.0] + [1.0] * 7)
    uneven, levelling = model.get_layer("uneven"), model.get_layer("levelling")
    uneven.kernel.assign(uneven.kernel * loud)
    levelling.kernel.assign((1 / loud).reshape(1, 1, 8, 1))
    return model


def test_a_start_that_int8_would_spoil_stays_float32(images):
    keras.utils.set_random_seed(0)
    model = uneven_start()
    expected = outputs_of(model, images)
    contents = [conversion.convert(model, quantize="int8", images=images, float_start=keep) for keep in (False, True)]
    errors = [np.abs(litert.LiteRTModel(one)(images)[0] - expected).mean() for one in contents]
    assert errors[1] < 0.5 * errors[0]
    assert len(contents[1]) < 1.2 * len(contents[0])


def test_a_start_that_is_most_of_the_work_goes_into_int8(images):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    contents = [conversion.convert(model, quantize="int8", images=images, float_start=keep) for keep in (False, True)]
    np.testing.assert_array_equal(*[litert.LiteRTModel(one)(images)[0] for one in contents])


def test_loggers_are_quiet_meanwhile_and_speak_again(capfd):
    logger, said = logging.getLogger("kerastl.tests.quiet"), []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with backend.quiet_output():
            logger.error("within")
            os.write(2, b"native\n")
        logger.error("after")
    finally:
        logger.removeHandler(handler)
    assert said == ["after"]
    assert "native" not in capfd.readouterr().err


def test_threads_that_are_quiet_at_once_leave_nothing_silent(capfd):
    inside, outside = threading.Barrier(2), threading.Event()

    def overlap():
        with backend.quiet_output():
            inside.wait()
            outside.wait()

    thread = threading.Thread(target=overlap)
    thread.start()
    with backend.quiet_output():
        inside.wait()
    outside.set()
    thread.join()
    os.write(2, b"heard\n")
    assert "heard" in capfd.readouterr().err
    assert logging.root.manager.disable == logging.NOTSET


def test_latencies_of_several_models_come_from_one_run(converted):
    seconds = conversion.measure_latency(
        [litert.LiteRTModel(converted, threads=n) for n in (1, 2)], repeats=7, rounds=3
    )
    assert [len(one) for one in seconds] == [7, 7]
    assert all((one > 0).all() for one in seconds)


def test_what_cannot_be_converted_is_refused_with_the_operation(images):
    class Determinant(keras.layers.Layer):
        def call(self, x):
            return keras.ops.det(x[..., :3, :3, 0])[:, None]

    inputs = keras.Input((32, 32, 3))
    with pytest.raises(ModelError, match="MatrixDeterminant"):
        conversion.convert(keras.Model(inputs, Determinant()(inputs)))


@pytest.mark.parametrize("images", [None, np.zeros((0, 32, 32, 3))])
def test_int8_needs_images(model, images):
    with pytest.raises(ArgumentError, match="representative images"):
        conversion.convert(model, quantize="int8", images=images)


def test_an_unknown_quantization_is_refused(model):
    with pytest.raises(ArgumentError, match="'int8'"):
        conversion.convert(model, quantize="int4")


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
