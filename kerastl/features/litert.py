"""The engine: who runs the trunk, LiteRT (once TensorFlow Lite) on a CPU where its conversion pays, else Keras's backend.

Never `model.predict` (half as fast), and never forced XLA on CPU (15 times slower on depthwise convolutions).
`ai-edge-litert` is the interpreter, which runs float32 and int8 models with XNNPACK.
"""

import contextlib
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

from kerastl import backend, costs, keras_internals
from kerastl.checks import check_count, received
from kerastl.errors import BackendError, KerastlError, ModelError

ENGINES = ("auto", "keras", "litert")

# What LiteRT spares and costs: it fuses what TensorFlow writes to memory between convolutions, so it spares time in proportion
# to the activations; converting takes time in proportion to layers and weights. Between what MobileNetV2 and ResNet50 gave
# on two cores with AVX-512 (1/16e9 and 1/45e9 s a byte) and on two without (1/10e9): either way little is lost near the line.
_SPARED_SECONDS_PER_ACTIVATION_BYTE = 1 / 20e9
_CONVERSION_SECONDS_PER_LAYER, _CONVERSION_SECONDS_PER_WEIGHT = 0.004, 0.15e-6

# Feature maps that stay in the processor's cache: MobileNetV2 runs a sixth faster with 2 images at a time than with 32
_LARGEST_CACHED_BYTES = 16 * 2**20

# Images in one run of the trunk: enough to fill the cores, few enough that activations stay in a few hundred MB; and
# enough to fill an accelerator
CPU_BATCH, ACCELERATOR_BATCH = 32, 256

# Bytes of weights up to which they are made constants to be run: it takes 14 times as much memory, a SavedModel 8 times, and
# large networks gain next to no time by it
_LARGEST_CONSTANTS = 400e6


def is_installed() -> bool:
    """Tell whether the interpreter, `ai-edge-litert`, is there."""
    return importlib.util.find_spec("ai_edge_litert") is not None


def litert_available() -> bool:
    """Tell whether LiteRT can run a trunk here: installed, on the TensorFlow backend, and no GPU that would do better."""
    return keras.backend.backend() == "tensorflow" and is_installed() and not backend.has_accelerator()


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_batch(model: keras.Model, largest_bytes: int = backend.LARGEST_KEPT_BLOCK) -> int:
    """Return how many images a CPU should run at once: a power of two, 32 at most, such that no tensor is larger."""
    nodes = [node for layer in keras_internals.flatten_layers(model) for node in keras_internals.calls_of(layer)]
    shapes = [tensor.shape[1:] for node in nodes for tensor in node.outputs if None not in tensor.shape[1:]]
    largest = 4 * max((math.prod(shape) for shape in shapes), default=1)
    return 2 ** min(5, max(1, largest_bytes // max(largest, 1)).bit_length() - 1)


def choose_engine(trunk: keras.Model, count: int | None, engine: str = "auto", verbose: int = 0, *, exact: bool = True):
    """Return the engine that runs a trunk over `count` images (times views) in the least time, its preparation included.

    "litert" insists: a `BackendError` where it isn't available, or can't run this trunk. Where it need not be `exact`, an
    accelerator computes in 16 bits.
    """
    if engine == "litert":
        return LiteRTEngine(trunk)
    # LiteRT would not follow a mixed policy, and plans for one size of images
    fits = all(layer.compute_dtype == "float32" for layer in trunk.layers) and None not in trunk.inputs[0].shape[1:]
    if engine == "keras" or count is None or not litert_available() or not fits or not _pays(trunk, count):
        return KerasEngine(trunk, exact)
    try:
        return LiteRTEngine(trunk)
    except BackendError as error:
        if verbose:
            print(f"LiteRT can't run this trunk, so Keras does: {error}")
        return KerasEngine(trunk, exact)


def _pays(trunk, count: int) -> bool:
    """Tell whether LiteRT spares more time over so many images than its conversion takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a layer of unknown cost was named by the plan already
        activations = sum(row.activation_bytes for row in costs.layer_costs(trunk))
    seconds = _CONVERSION_SECONDS_PER_LAYER * len(trunk.layers) + _CONVERSION_SECONDS_PER_WEIGHT * trunk.count_params()
    return count * activations * _SPARED_SECONDS_PER_ACTIVATION_BYTE > seconds


class KerasEngine:
    """The backend's compiled forward function; on an accelerator in 16 bits (`computing_in`), unless it is to be `exact`.

    `keeps` is whether the outputs stay where they are, as tensors. `batch` images are as many as fit into the memory: halved
    where they don't.
    """

    keeps = False

    def __init__(self, trunk: keras.Model, exact: bool = True):
        self.overlaps = backend.has_accelerator()  # whether a second thread would find something to do meanwhile
        self.half = None if exact else backend.half_type()
        self.name = f"keras {self.half}" if self.half else "keras"
        self.batch = ACCELERATOR_BATCH if self.overlaps else CPU_BATCH
        self._forward = backend.compiled_forward(trunk, None if self.overlaps else cpu_batch(trunk))

    def __call__(self, images: np.ndarray) -> list:
        """Return the trunk's outputs for a batch, `(batch, height, width, 3)`, as a list of arrays, or of tensors."""
        while True:
            try:
                parts = [self._run(images[at : at + self.batch]) for at in range(0, len(images), self.batch)]
                break
            except Exception as error:
                if self.batch == 1 or not backend.is_out_of_memory(error):
                    raise
                self.batch //= 2
        join = keras.ops.concatenate if self.keeps else np.concatenate
        return parts[0] if len(parts) == 1 else [join(one) for one in zip(*parts, strict=True)]

    def _run(self, images):
        outputs = self._forward(images)
        if self.keeps:
            return outputs
        return [np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(one, "float32"))) for one in outputs]


@contextlib.contextmanager
def computing_in(model: keras.Model, half: str | None):
    """Let a model's layers compute in 16 bits meanwhile, their weights as they are: what Keras calls a mixed policy."""
    policies = [(layer, layer.dtype_policy) for layer in model.layers if half and layer.compute_dtype == "float32"]
    for layer, _ in policies:
        layer.dtype_policy = f"mixed_{half}"
    try:
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


class LiteRTEngine:
    """LiteRT with XNNPACK: the trunk converted once, run in float32 on all cores. `BackendError` where that can't be."""

    name, overlaps, keeps, half, batch = "litert", False, False, None, CPU_BATCH

    def __init__(self, trunk: keras.Model):
        if not litert_available():
            raise BackendError(
                "LiteRT is not installed, or Keras doesn't run on TensorFlow. Install it with "
                '`pip install "kerastl[demo]"`, or take `engine="keras"`.'
            )
        try:
            self._model = LiteRTModel(convert_to_run(trunk))
        except ModelError as error:
            raise BackendError(str(error)) from error
        self._step = cpu_batch(trunk, _LARGEST_CACHED_BYTES)
        self._order = self._match_outputs(trunk)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the trunk's outputs for a batch, `(batch, height, width, 3)`, as a list of float32 arrays."""
        given = self._model(images, self._step)
        return [given[index] for index in self._order]

    def _match_outputs(self, trunk) -> list[int]:
        """Return which output of the interpreter is which of the trunk: by one image through both."""
        if len(trunk.outputs) == 1:
            return [0]
        probe = np.random.default_rng(0).uniform(0, 255, (1, *trunk.inputs[0].shape[1:])).astype("float32")
        wanted = [keras.ops.convert_to_numpy(value) for value in trunk(probe, training=False)]
        given, order = self._model(probe), []
        for value in wanted:
            fits = [i for i, other in enumerate(given) if other.shape == value.shape and i not in order]
            order.append(min(fits, key=lambda i: float(np.abs(given[i] - value).max())))
        return order


class LiteRTModel:
    """A LiteRT model, the content of a `.tflite` file, ready to run on the CPU, on all cores if nothing is said.

    `input_shape` begins with `None` for a batch of any size; `input_type` is NumPy's name of a type; `output_shapes` are
    without the batch. Raises `BackendError` without `ai-edge-litert`, `ModelError` for what it can't run.
    """

    def __init__(self, content: bytes, threads: int | None = None):
        if not is_installed():
            raise BackendError(
                'LiteRT is not installed. Install it with `pip install "kerastl[export]"` (or `[demo]`).'
            )
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

    def __call__(self, images: np.ndarray, step: int | None = None) -> list[np.ndarray]:
        """Run a batch, `(batch, height, width, 3)`, `step` images at a time, and return every output, `(batch, …)`.

        A model of a fixed batch size is given so many images at a time; the size must divide the number of images.
        """
        images = np.ascontiguousarray(images, dtype=self.input_type)
        step = self.input_shape[0] or step or max(1, len(images))
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


def _open_shape(details: dict) -> tuple[int | None, ...]:
    """Return the shape of a tensor, `None` where it is open."""
    signature = details.get("shape_signature")
    shape = details["shape"] if signature is None or not len(signature) else signature
    return tuple(None if side < 0 else int(side) for side in shape)


def convert_to_run(model: keras.Model) -> bytes:
    """Convert a model to float32 LiteRT for running it here and now; its outputs may come in another order.

    Writing, reading and freezing a SavedModel takes most of the time of a conversion. Here the converter is handed the graph
    of one call in inference mode, with the weights as constants in it, unless they are too large for that.
    """
    import tensorflow as tf

    with converting(model, "LiteRT"), tempfile.TemporaryDirectory() as folder:
        constant = with_constant_weights(model, _LARGEST_CONSTANTS)
        if constant is model:
            return saved_model_converter(model, folder).convert()
        pixels = model.inputs[0]
        forward = tf.function(lambda images: constant(images, training=False), autograph=False)
        concrete = forward.get_concrete_function(tf.TensorSpec((None, *pixels.shape[1:]), pixels.dtype, "pixels"))
        graph = _with_constant_captures(concrete)
        converter = tf.compat.v1.lite.TFLiteConverter(graph, concrete.inputs[:1], concrete.outputs)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return converter.convert()


@contextlib.contextmanager
def converting(model: keras.Model, what: str):
    """Keep a converter's chatter from the terminal, make a `ModelError` of whatever it raises, and give its memory back."""
    try:
        with backend.quiet_output(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (KerastlError, OSError):
        raise
    except Exception as error:  # converters raise whatever they meet, RuntimeError and MLIR's own among them
        raise ModelError(f"{model.name!r} can't be converted to {what}: {_reason(error)}") from error
    finally:
        backend.give_memory_back()  # the converter's copies of the weights, up to gigabytes


def saved_model_converter(model: keras.Model, folder: str, batch_size: int | None = None):
    """Return TensorFlow's converter of a SavedModel in a folder, for LiteRT's own operations alone."""
    import tensorflow as tf

    pixels = model.inputs[0]
    signature = keras.InputSpec(shape=(batch_size, *pixels.shape[1:]), dtype=pixels.dtype, name="pixels")
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda images: model(images, training=False), input_signature=[signature])
    archive.write_out(folder, verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return converter


def with_constant_weights(model: keras.Model, largest: float) -> keras.Model:
    """Return a model that computes the same, whose weights are constants, or the model itself where they are larger in all.

    Hundreds of variables take longer than all else of a conversion: of MobileNetV2 11 s of processor time, 2.1 s without.
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
    constant.inputs = model.inputs
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


def _reason(error: Exception) -> str:
    """Return what an MLIR error says, without the places in the converter's own code."""
    text = str(error)
    found = re.findall(r"error: (.+)", text)
    return (found[0] if found else text.strip().splitlines()[0] if text.strip() else type(error).__name__)[:300]
