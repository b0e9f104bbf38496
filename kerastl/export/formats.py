"""The formats: how each is written, and how what was written is run again."""

import contextlib
import dataclasses
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from kerastl import backend
from kerastl.export import conversion
from kerastl.features import litert
from kerastl.models import outputs


@dataclasses.dataclass(frozen=True)
class Format:
    """One format, and how it is made of a model and read again."""

    path: str  # of its file or folder in the bundle
    packages: tuple[str, ...]  # that it needs, as they are imported
    write: Callable  # of `(model, path, quantize, images, opset)`
    load: Callable  # from a path to a function from pixels, `(batch, height, width, 3)`, to `(batch, units)`
    quantizes: tuple[str, ...] = ()  # which quantizations change it
    output_name: str | None = "output_0"  # `None`: by what it holds, see `onnx_output_name`
    system: str | None = None  # the only one that can run it, as `sys.platform` calls it; `None`: all can

    def runs_here(self) -> bool:
        """Tell whether this system can run it at all."""
        return self.system in (None, sys.platform)


def write(
    name: str, model: keras.Model, path: Path, quantize: str | None, images: np.ndarray | None, opset: int | None = None
) -> None:
    """Write a model of `inference_model` in a format, quantized as `convert` has it; `ModelError`: it can't be done."""
    with litert.converting(model, name):
        FORMATS[name].write(model, path, quantize, images, opset)


def newest_opset() -> int:
    """Return the newest opset of ONNX that tf2onnx writes; every onnxruntime since 1.14 (2023) reads it."""
    from tf2onnx import constants

    return max(constants.OPSET_TO_IR_VERSION)


def onnx_output_name(kind: str | None) -> str:
    """Return what an output of this kind, as `output_kind` tells it, is called in ONNX."""
    return "probabilities" if kind in ("softmax", "sigmoid") else "outputs"


def load(name: str, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from pixels, `(batch, height, width, 3)`, to the exported model's output, `(batch, units)`."""
    with backend.quiet_output(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FORMATS[name].load(path)


def _write_litert(model, path, quantize, images, opset) -> None:
    path.write_bytes(conversion.convert(model, quantize=quantize, images=images, batch_size=1, float_start=True))


def _load_litert(path):
    runner = litert.LiteRTModel(path.read_bytes())
    return lambda pixels: runner(pixels)[0]


def _write_saved_model(model, path, quantize, images, opset) -> None:
    model.export(str(path), format="tf_saved_model", verbose=False)


def _load_saved_model(path):
    import tensorflow as tf

    module = tf.saved_model.load(str(path))
    return lambda pixels: module.serve(tf.constant(pixels)).numpy()


def _write_onnx(model, path, quantize, images, opset) -> None:
    import onnx

    tensor = model.inputs[0]
    # Without a signature Keras 3.15 insists on a model that was called on numbers before
    signature = [keras.InputSpec(shape=tensor.shape, dtype=tensor.dtype, name="pixels")]
    opset = newest_opset() if opset is None else opset
    model.export(str(path), format="onnx", verbose=False, input_signature=signature, opset_version=opset)
    written = onnx.load(path)
    pixels, result = written.graph.input[0], written.graph.output[0]
    renamed = {result.name: onnx_output_name(outputs.output_kind(model))}  # it was "Identity:0"
    for node in written.graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    result.name = renamed[result.name]
    for tensor in (pixels, result):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(written, path)


def _load_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


def _write_coreml(model, path, quantize, images, opset) -> None:
    import coremltools
    import tensorflow as tf

    shape = (1, *model.inputs[0].shape[1:])
    # Of a SavedModel, which holds its function under two names, coremltools 9.0 says that it takes a single function only
    function = tf.function(lambda pixels: model(pixels, training=False))
    function = function.get_concrete_function(tf.TensorSpec(shape, model.inputs[0].dtype, name="pixels"))
    precision = coremltools.precision.FLOAT16 if quantize == "float16" else coremltools.precision.FLOAT32
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars, which Python writes, unlike all else here
        converted = coremltools.convert(
            [function],
            source="tensorflow",
            inputs=[coremltools.TensorType(shape=shape, name="pixels")],
            compute_precision=precision,
        )
    converted.save(str(path))


def _load_coreml(path):
    import coremltools

    converted = coremltools.models.MLModel(str(path))

    def run(pixels):
        return np.concatenate([next(iter(converted.predict({"pixels": one[np.newaxis]}).values())) for one in pixels])

    return run


_ONNX_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")
_LITERT_QUANTIZES = tuple(filter(None, conversion.QUANTIZATIONS))
FORMATS: dict[str, Format] = {
    "litert": Format("model.tflite", ("ai_edge_litert",), _write_litert, _load_litert, _LITERT_QUANTIZES),
    "saved_model": Format("saved_model", (), _write_saved_model, _load_saved_model),
    "onnx": Format("model.onnx", _ONNX_PACKAGES, _write_onnx, _load_onnx, output_name=None),
    "coreml": Format("model.mlpackage", ("coremltools",), _write_coreml, _load_coreml, ("float16",), system="darwin"),
}
