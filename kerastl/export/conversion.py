"""LiteRT files: a Keras model converted, quantized where that is asked for; and how long a run of one takes."""

import csv
import io
import tempfile

import keras
import numpy as np

from kerastl import costs
from kerastl.checks import check_choice, check_count, received
from kerastl.errors import ArgumentError, BackendError
from kerastl.features.litert import LiteRTModel, converting, saved_model_converter, with_constant_weights

QUANTIZATIONS = (None, "float16", "dynamic", "int8")
"""What `convert` takes: float32; weights in float16; weights in int8 and activations quantized while it runs; or weights
and activations in int8, with ranges that representative images showed."""

# What of an int8 model may stay float32 at the start: so many operations with weights, with this part of all MACs, where the
# outputs come at least so many times nearer to those in float32, on so many of the representative images
_FLOAT_START, _FLOAT_MACS, _FLOAT_GAIN, _JUDGED_IMAGES = 4, 0.15, 1.5, 64
_WARM_UP = 5  # runs that don't count
_WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

# Bytes of weights up to which they are made constants to be saved: it takes some 30 times as much memory, 8 times without
_LARGEST_CONSTANTS = 100e6


def check_tensorflow() -> None:
    """Raise `BackendError` unless Keras runs on TensorFlow, which all exporters need."""
    if keras.backend.backend() != "tensorflow":
        raise BackendError(
            "Exporting needs Keras on TensorFlow. Set KERAS_BACKEND=tensorflow; a .keras file loads there, whatever "
            f"backend made it. {received(backend=keras.backend.backend())}"
        )


def convert(
    model: keras.Model,
    *,
    quantize: str | None = None,
    images: np.ndarray | None = None,
    batch_size: int | None = None,
    float_start: bool = False,
) -> bytes:
    """Return the content of a `.tflite` file; what the converter writes to the terminal is kept from it.

    Only LiteRT's own operations are allowed, none of TensorFlow's, which `ai-edge-litert` doesn't run: a model that needs
    others is refused here, by a `ModelError`. Inputs and outputs keep their type, in an int8 model as well.

    Args:
        model: a built model with one input, in inference mode; random layers do nothing in it.
        quantize: one of `QUANTIZATIONS`.
        images: representative images for `"int8"`, as the model takes them, `(count, height, width, 3)`.
        batch_size: fixed, or `None` for any. `"int8"` needs a fixed one.
        float_start: of `"int8"`: leave the first operations in float32 where the outputs for the representative images come
            clearly nearer by that. All further ones inherit what the first ones lose; see docs/export.md.
    """
    check_choice("quantize", quantize, QUANTIZATIONS)
    check_tensorflow()
    if quantize == "int8" and (images is None or not len(images)):
        raise ArgumentError(
            "int8 needs representative images, to see how large the activations get: some 100 of the training images. "
            f"{received(images=None if images is None else np.shape(images))}"
        )
    batch_size = 1 if quantize == "int8" and batch_size is None else batch_size
    with converting(model, "LiteRT"), tempfile.TemporaryDirectory() as folder:
        constant = with_constant_weights(model, _LARGEST_CONSTANTS)
        converter = saved_model_converter(constant, folder, batch_size)
        _set_up(converter, quantize, images)
        if quantize == "int8" and float_start:
            return _with_best_start(converter, model, images)
        return converter.convert()


def _set_up(converter, quantize, images) -> None:
    import tensorflow as tf

    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.representative_dataset = lambda: ([image[np.newaxis]] for image in images)


def _with_best_start(converter, model, images) -> bytes:
    """Return an int8 model with as few first operations in float32 as its outputs need, by TensorFlow's own debugger."""
    import tensorflow as tf

    images = images[np.unique(np.linspace(0, len(images) - 1, _JUDGED_IMAGES).astype(int))]
    parts = [model(images[start : start + 8], training=False) for start in range(0, len(images), 8)]
    expected = np.concatenate([keras.ops.convert_to_numpy(one) for one in parts])
    debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=lambda: [[images[:1]]])
    debugger.run()
    contents = [debugger.get_nondebug_quantized_model()]
    for names in _possible_starts(debugger, model):
        debugger.options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=names)
        contents.append(debugger.get_nondebug_quantized_model())
    errors = [float(np.abs(LiteRTModel(one)(images)[0] - expected).mean()) for one in contents]
    if not errors[0] > _FLOAT_GAIN * min(errors):  # NaN is for the gate to refuse
        return contents[0]
    return next(one for one, error in zip(contents, errors, strict=True) if error <= 1.1 * min(errors))


def _possible_starts(debugger, model) -> list[list[str]]:
    """Return the names of operations that may stay float32: all up to the first with weights, the second, …"""
    report = io.StringIO()
    debugger.layer_statistics_dump(report)
    report.seek(0)
    rows = list(csv.DictReader(report))
    macs = [row.macs for row in costs.layer_costs(model) if row.macs]
    few = int((np.cumsum(macs)[:_FLOAT_START] <= _FLOAT_MACS * sum(macs)).sum())
    ends = [place + 1 for place, row in enumerate(rows) if row["op_name"] in _WITH_WEIGHTS]
    return [[row["tensor_name"] for row in rows[:end]] for end in ends[:few]]


def measure_latency(models: list[LiteRTModel], *, repeats: int = 50, rounds: int = 5) -> list[np.ndarray]:
    """Time single images through several models in one run, so that their medians can be compared.

    Each of `rounds` runs one model after the other, each warm (the first runs don't count): whatever else the machine does
    meanwhile meets all of them. The image is noise: how long a network takes doesn't depend on what is in the picture.

    Returns:
        Seconds, an array `(repeats,)` for each model. Take medians and quartiles; means of latencies say more of the machine
        than of the model.
    """
    rounds = min(check_count("rounds", rounds), check_count("repeats", repeats))
    seconds = [[] for _ in models]
    noise = [np.random.default_rng(0).integers(0, 256, (1, *model.input_shape[1:])) for model in models]
    for turn in range(rounds):
        count = repeats * (turn + 1) // rounds - repeats * turn // rounds
        for model, image, kept in zip(models, noise, seconds, strict=True):
            for _ in range(_WARM_UP):
                model.time_once(image)
            kept.extend(model.time_once(image) for _ in range(count))
    return [np.array(one) for one in seconds]
