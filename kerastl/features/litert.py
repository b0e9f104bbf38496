"""LiteRT (once TensorFlow Lite): convert a Keras model, run what came of it on the CPU, and time it.

Keras's exporter drives the TensorFlow converter; `ai-edge-litert` is the interpreter, which runs float32 and int8 models
with XNNPACK.
"""

import importlib.util
import math
import os
import re
import tempfile
import threading
import time
import warnings

import keras
import numpy as np

from kerastl import backend
from kerastl.checks import check_choice, check_count, received
from kerastl.errors import ArgumentError, BackendError, ModelError

QUANTIZATIONS = (None, "float16", "dynamic", "int8")
"""What `convert` takes: float32; weights in float16; weights in int8 and activations quantized while it runs; or weights
and activations in int8, with ranges that representative images showed."""

# What of an int8 model may stay float32 at the start: so many operations with weights, with this part of all MACs, where the
# answers come at least so many times nearer to those in float32, on so many of the representative images
_FLOAT_START, _FLOAT_MACS, _FLOAT_GAIN, _JUDGED_IMAGES = 4, 0.15, 1.5, 64

# Bytes of weights up to which they are made constants: Keras's exporter takes some 30 times as much memory then (8 times
# without), and the converter by itself 14 times. Large networks gain next to no time by it.
_CONSTANTS_TO_EXPORT, _CONSTANTS_TO_RUN = 100e6, 400e6

_MISSING = 'LiteRT is not installed. Install it with `pip install "kerastl[export]"` (or `[demo]`).'


def is_installed() -> bool:
    """Tell whether the interpreter, `ai-edge-litert`, is there."""
    return importlib.util.find_spec("ai_edge_litert") is not None


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def convert(
    model: keras.Model,
    *,
    quantize: str | None = None,
    images: np.ndarray | None = None,
    batch_size: int | None = None,
    float_start: bool = False,
) -> bytes:
    """Convert a model to LiteRT; what the converter writes to the terminal is kept from it.

    Only LiteRT's own operations are allowed, none of TensorFlow's, which `ai-edge-litert` doesn't run: a model that needs
    others is refused here. Inputs and outputs keep their type, in an int8 model as well.

    Args:
        model: a built model with one input, in inference mode; random layers do nothing in it.
        quantize: one of `QUANTIZATIONS`.
        images: representative images for `"int8"`, as the model takes them, `(count, height, width, 3)`. TensorFlow's
            guide to post-training quantization advises 100 to 500.
        batch_size: fixed, or `None` for any. `"int8"` needs a fixed one.
        float_start: of `"int8"`: leave the first operations in float32 where the answers to the representative images come
            clearly nearer by that. All further ones inherit what the first ones lose; see docs/export.md.

    Returns:
        What goes into a `.tflite` file.

    Raises:
        ArgumentError: another quantization, or `"int8"` without images.
        BackendError: Keras doesn't run on TensorFlow.
        ModelError: the converter can't do it.
    """
    check_choice("quantize", quantize, QUANTIZATIONS)
    if keras.backend.backend() != "tensorflow":
        raise BackendError(
            "The conversion to LiteRT needs Keras on TensorFlow. Set KERAS_BACKEND=tensorflow; a .keras file loads there "
            f"whatever backend made it. {received(backend=keras.backend.backend())}"
        )
    if quantize == "int8" and (images is None or not len(images)):
        raise ArgumentError(
            "int8 needs representative images, to see how large the activations get: some 100 of the training images. "
            f"{received(images=None if images is None else np.shape(images))}"
        )
    options = _converter_options(quantize, images)
    choose_start = float_start and quantize == "int8" and is_installed() and _find_quantizer() is not None
    if choose_start:
        options["_experimental_calibrate_only"] = True
    tensor = model.inputs[0]
    shape = (1 if quantize == "int8" and batch_size is None else batch_size, *tensor.shape[1:])
    options["input_signature"] = [keras.InputSpec(shape=shape, dtype=tensor.dtype, name="pixels")]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        try:
            with backend.quiet_output(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _with_constant_weights(model, _CONSTANTS_TO_EXPORT).export(
                    path, format="litert", verbose=False, **options
                )
                with open(path, "rb") as file:
                    content = file.read()
                content = _with_best_start(content, images) if choose_start else content
                return content if quantize in (None, "float16") else _with_shared_vectors(content)
        except Exception as error:  # the converter raises whatever it meets, RuntimeError and MLIR's own among them
            raise ModelError(f"{model.name!r} can't be converted to LiteRT: {_reason(error)}") from error
        finally:
            backend.give_memory_back()  # the converter's copies of the weights, up to gigabytes


def convert_to_run(model: keras.Model) -> bytes:
    """Convert a model to float32 LiteRT for running it here and now: the same network as `convert` makes, sooner.

    Keras's exporter hands a SavedModel to the converter; writing, reading and freezing that takes most of the time. Here the
    converter is handed the graph of one call, with the weights as constants in it.

    Args:
        model: as `convert` takes it; its outputs may come in another order.

    Raises:
        ModelError: the converter can't do it.
    """
    constant = _with_constant_weights(model, _CONSTANTS_TO_RUN)
    if constant is model:
        return convert(model)
    import tensorflow as tf

    pixels = model.inputs[0]
    try:
        with backend.quiet_output(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            forward = tf.function(lambda images: constant(images, training=False), autograph=False)
            concrete = forward.get_concrete_function(tf.TensorSpec((None, *pixels.shape[1:]), pixels.dtype, "pixels"))
            graph = _with_constant_captures(concrete)
            converter = tf.compat.v1.lite.TFLiteConverter(graph, concrete.inputs[:1], concrete.outputs)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            return converter.convert()
    except Exception as error:  # the converter raises whatever it meets, RuntimeError and MLIR's own among them
        raise ModelError(f"{model.name!r} can't be converted to LiteRT: {_reason(error)}") from error
    finally:
        backend.give_memory_back()  # the converter's copies of the weights, up to gigabytes


def _with_constant_weights(model: keras.Model, largest: float) -> keras.Model:
    """Return a model that computes the same, whose weights are constants, or the model itself where they are larger in all.

    Saving, loading and freezing hundreds of variables takes longer than all else of a conversion: of MobileNetV2 11 s of
    processor time for 2.1 s without (DenseNet121: 25 and 6.7 s), with the same numbers in the file.
    """
    if sum(math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in model.variables) > largest:
        return model
    values = [(variable, keras.ops.convert_to_numpy(variable)) for variable in model.variables]

    class Constant(keras.Model):
        def call(self, pixels, training=None):
            constants = [(variable, keras.ops.convert_to_tensor(value)) for variable, value in values]
            with keras.StatelessScope(state_mapping=constants):
                return model(pixels, training=False)

    constant = Constant(name=model.name)
    constant.built = True
    return constant


def _with_constant_captures(concrete):
    """Return a function's graph in which what it took from outside, such as the mean of a Normalization layer, is constant."""
    import tensorflow as tf

    graph = concrete.graph.as_graph_def()
    values = {inside.op.name: outside for outside, inside in concrete.graph.captures}
    for node in graph.node:
        if node.name in values:
            value = tf.make_tensor_proto(values[node.name].numpy())
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = value.dtype
            node.attr["value"].tensor.CopyFrom(value)
    return graph


def _converter_options(quantize, images) -> dict:
    """Return the settings of `tf.lite.TFLiteConverter` that Keras's exporter hands on."""
    import tensorflow as tf

    builtins = tf.lite.OpsSet.TFLITE_BUILTINS
    options = {"target_spec": {"supported_ops": [builtins]}}
    if quantize is None:
        return options
    options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        options["target_spec"]["supported_types"] = [tf.float16]
    if quantize == "int8":
        options["target_spec"]["supported_ops"] = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, builtins]
        options["representative_dataset"] = lambda: ([image[np.newaxis]] for image in images)
    return options


def _find_schema():
    """Return the classes that a `.tflite` file is read into, or `None` where TensorFlow hides them."""
    try:
        from tensorflow.lite.python import schema_py_generated
    except ImportError:
        return None
    return schema_py_generated


def _with_shared_vectors(content: bytes) -> bytes:
    """Return a quantized model in a smaller file: equal zero points and steps are written once.

    The converter writes a zero point of eight bytes for each channel of kernels and biases, and all of them are 0: a tenth
    of MobileNetV2's file. In a flatbuffer several tables may point to one vector.
    """
    schema = _find_schema()
    if schema is None:
        return content
    import flatbuffers

    written = {}

    class Shared(schema.QuantizationParametersT):
        def Pack(self, builder):
            vectors = {"Scale": self.scale, "ZeroPoint": self.zeroPoint, "Min": self.min, "Max": self.max}
            types = {name: "int64" if name == "ZeroPoint" else "float32" for name in vectors}
            vectors = {
                name: np.asarray(one, types[name]) for name, one in vectors.items() if one is not None and len(one)
            }
            keys = {name: (one.dtype.str, one.tobytes()) for name, one in vectors.items()}
            for name, key in keys.items():
                if key not in written:
                    written[key] = builder.CreateNumpyVector(vectors[name])
            schema.QuantizationParametersStart(builder)
            for name, key in keys.items():
                getattr(schema, f"QuantizationParametersAdd{name}")(builder, written[key])
            schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
            return schema.QuantizationParametersEnd(builder)

    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.quantization is not None and tensor.quantization.details is None:
                tensor.quantization.__class__ = Shared
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _find_quantizer():
    """Return the converter's last step, from a calibrated model to one in int8, or `None` where TensorFlow hides it."""
    if _find_schema() is None:
        return None
    try:
        from tensorflow.lite.python.convert import mlir_quantize
    except ImportError:
        return None
    return mlir_quantize


def _with_best_start(calibrated: bytes, images) -> bytes:
    """Return a calibrated float32 model in int8, with as few first operations in float32 as its answers need."""
    quantize = _find_quantizer()
    images = images[np.unique(np.linspace(0, len(images) - 1, _JUDGED_IMAGES).astype(int))]
    expected = LiteRTModel(calibrated)(images)[0]
    contents = [quantize(calibrated, denylisted_nodes=names) for names in _possible_starts(calibrated)]
    errors = [float(np.abs(LiteRTModel(one)(images)[0] - expected).mean()) for one in contents]
    if not errors[0] > _FLOAT_GAIN * min(errors):  # NaN is for the gate to refuse
        return contents[0]
    return next(one for one, error in zip(contents, errors, strict=True) if error <= 1.1 * min(errors))


def _possible_starts(content: bytes) -> list[set[str]]:
    """Return the names of operations that may stay float32: none, then all up to the first with weights, the second, …"""
    schema = _find_schema()
    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    graph = model.subgraphs[0]
    work, names = [], []
    for operation in graph.operators:
        result = graph.tensors[operation.outputs[0]]
        names.append(result.name.decode())
        kernels = [graph.tensors[place] for place in operation.inputs if place >= 0]
        kernels = [one for one in kernels if one.shape is not None and model.buffers[one.buffer].data is not None]
        kernels = [one for one in kernels if len(one.shape) in (2, 4)]
        is_weighted = _operation_code(model, operation) in (
            schema.BuiltinOperator.CONV_2D,
            schema.BuiltinOperator.DEPTHWISE_CONV_2D,
            schema.BuiltinOperator.FULLY_CONNECTED,
        )
        # Each number of the result takes as many multiplications as a kernel has weights for its channel
        macs = np.prod(result.shape[1:-1], initial=1) * np.prod(kernels[0].shape) if is_weighted and kernels else 0
        work.append(float(macs))
    share = np.cumsum(work) / max(sum(work), 1)
    ends = [place + 1 for place in np.flatnonzero(work)[:_FLOAT_START] if share[place] <= _FLOAT_MACS]
    return [set(names[:end]) for end in (0, *ends)]


def _operation_code(model, operation) -> int:
    code = model.operatorCodes[operation.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def _reason(error: Exception) -> str:
    """Return what an MLIR error says, without the places in the converter's own code."""
    text = str(error)
    found = re.findall(r"error: (.+)", text)
    return (found[0] if found else text.strip().splitlines()[0] if text.strip() else type(error).__name__)[:300]


class LiteRTModel:
    """A LiteRT model, ready to run on the CPU.

    Args:
        content: of a `.tflite` file.
        threads: as many as there are cores when nothing is said.

    Attributes:
        input_shape: of its one input; `None` for a batch of any size.
        input_type: NumPy's name of the type of its input.
        output_shapes: of its outputs, without the batch.

    Raises:
        BackendError: `ai-edge-litert` is not installed.
        ModelError: the content is no LiteRT model, or one that this interpreter can't run.
    """

    def __init__(self, content: bytes, threads: int | None = None):
        if not is_installed():
            raise BackendError(_MISSING)
        from ai_edge_litert.interpreter import Interpreter

        threads = usable_cores() if threads is None else check_count("threads", threads)
        try:
            with backend.quiet_output():
                self._interpreter = Interpreter(model_content=content, num_threads=threads)
                inputs = self._interpreter.get_input_details()
                self._outputs = self._interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT can't read the model: {_reason(error)}") from error
        if len(inputs) != 1:
            raise ModelError(f"Expected a LiteRT model with one input. {received(inputs=len(inputs))}")
        self._content = content  # the interpreter reads it where it lies
        self._input, self._lock, self._ready = inputs[0]["index"], threading.Lock(), None
        self.input_type = np.dtype(inputs[0]["dtype"]).name
        self.input_shape = _open_shape(inputs[0])
        self.output_shapes = [_open_shape(one)[1:] for one in self._outputs]

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Run a batch, `(batch, height, width, 3)`, and return every output, `(batch, …)`.

        A model of a fixed batch size is given so many images at a time; the size must divide the number of images.

        Raises:
            ModelError: the interpreter fails, as on images of another size.
        """
        images = np.ascontiguousarray(images, dtype=self.input_type)
        step = self.input_shape[0] or max(1, len(images))
        with self._lock:
            parts = [self._run(images[start : start + step]) for start in range(0, len(images), step)]
        return parts[0] if len(parts) == 1 else [np.concatenate(one) for one in zip(*parts, strict=True)]

    def time_once(self, image: np.ndarray) -> float:
        """Run once on what the model takes, a batch of one size, and return the seconds of the run alone."""
        with self._lock:
            self._prepare(np.ascontiguousarray(image, dtype=self.input_type))
            start = time.perf_counter()
            self._interpreter.invoke()
            return time.perf_counter() - start

    def _run(self, images) -> list[np.ndarray]:
        self._prepare(images)
        try:
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT can't run the model: {_reason(error)}") from error
        return [self._interpreter.get_tensor(one["index"]) for one in self._outputs]

    def _prepare(self, images) -> None:
        """Reserve memory for a batch of this size, where that isn't done yet, and hand the images over."""
        try:
            if self._ready != images.shape:
                with backend.quiet_output():
                    self._interpreter.resize_tensor_input(self._input, list(images.shape), strict=True)
                    self._interpreter.allocate_tensors()
                self._ready = images.shape
            self._interpreter.set_tensor(self._input, images)
        except (ValueError, RuntimeError) as error:
            self._ready = None
            raise ModelError(
                f"LiteRT can't take these images: {_reason(error)}. The model takes {self.input_shape}. "
                f"{received(shape=images.shape)}"
            ) from error


def measure_latency(
    models: list[LiteRTModel], *, repeats: int = 50, rounds: int = 5, warm_up: int = 5, seed: int = 0
) -> list[np.ndarray]:
    """Time single images through several models in one run, so that their medians can be compared.

    Each round runs one model after the other, each warm: whatever else the machine does meanwhile meets all of them. Take
    medians, and the quartiles for the spread; means of latencies say more of the machine than of the model.

    Args:
        models: what to time; the number of threads is theirs.
        repeats: timed runs of each model.
        rounds: how many turns they are spread over.
        warm_up: runs before each turn that don't count.
        seed: of the image, which is noise: how long a network takes doesn't depend on what is in the picture.

    Returns:
        Seconds, an array `(repeats,)` for each model.
    """
    rounds = min(check_count("rounds", rounds), check_count("repeats", repeats))
    check_count("warm_up", warm_up, smallest=0)
    seconds = [[] for _ in models]
    noise = [np.random.default_rng(seed).integers(0, 256, (1, *model.input_shape[1:])) for model in models]
    for turn in range(rounds):
        count = repeats * (turn + 1) // rounds - repeats * turn // rounds
        for model, image, kept in zip(models, noise, seconds, strict=True):
            for _ in range(warm_up):
                model.time_once(image)
            kept.extend(model.time_once(image) for _ in range(count))
    return [np.array(one) for one in seconds]


def _open_shape(details: dict) -> tuple[int | None, ...]:
    """Return the shape of a tensor, `None` where it is open."""
    signature = details.get("shape_signature")
    shape = details["shape"] if signature is None or not len(signature) else signature
    return tuple(None if side < 0 else int(side) for side in shape)
