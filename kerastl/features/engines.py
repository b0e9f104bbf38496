"""Who runs the trunk: LiteRT on CPU where its conversion pays, else the backend's compiled forward function.

Never `model.predict` (half as fast), and never forced XLA on CPU (15 times slower on depthwise convolutions).
"""

import math
import warnings

import keras
import numpy as np

from kerastl import backend, costs, keras_internals
from kerastl.checks import check_choice
from kerastl.errors import BackendError, ModelError
from kerastl.features import litert
from kerastl.features.litert import usable_cores

ENGINES = ("auto", "keras", "litert")

# What LiteRT spares and costs: it fuses what TensorFlow writes to memory between convolutions, so it spares time in proportion
# to the activations; converting takes time in proportion to layers and weights. Between what MobileNetV2 and ResNet50 gave
# on two cores with AVX-512 (1/16e9 and 1/45e9 s a byte) and on two without (1/10e9): either way little is lost near the line.
_SPARED_SECONDS_PER_ACTIVATION_BYTE = 1 / 20e9
_CONVERSION_SECONDS_PER_LAYER, _CONVERSION_SECONDS_PER_WEIGHT = 0.004, 0.15e-6

# Feature maps that stay in the processor's cache: MobileNetV2 runs a sixth sooner with 2 images at a time than with 32
_LARGEST_CACHED_BYTES = 16 * 2**20


def cpu_batch(model: keras.Model, largest_bytes: int = backend.LARGEST_KEPT_BLOCK) -> int:
    """Return how many images a CPU should run at once: a power of two, 32 at most, such that no tensor is larger."""
    nodes = [node for layer in keras_internals.flatten_layers(model) for node in keras_internals.calls_of(layer)]
    shapes = [tensor.shape[1:] for node in nodes for tensor in node.outputs if None not in tensor.shape[1:]]
    largest = 4 * max((math.prod(shape) for shape in shapes), default=1)
    return 2 ** min(5, max(1, largest_bytes // max(largest, 1)).bit_length() - 1)


class KerasEngine:
    """The backend's compiled forward function, in the precision of the model's policy.

    Attributes:
        overlaps: whether a second thread would find something to do while a batch is run.
    """

    name = "keras"

    def __init__(self, trunk: keras.Model):
        self.overlaps = backend.has_accelerator()
        self._forward = backend.compiled_forward(trunk, None if self.overlaps else cpu_batch(trunk))

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the trunk's outputs for a batch, `(batch, height, width, 3)`, as a list of arrays."""
        return self._forward(images)


class LiteRTEngine:
    """LiteRT with XNNPACK: the trunk converted once, run in float32 on all cores.

    Args:
        trunk: the model to convert.
        threads: CPU threads; as many as there are cores when nothing is said.

    Raises:
        BackendError: `ai-edge-litert` is not installed, or the trunk can't be converted.
    """

    name, overlaps = "litert", False

    def __init__(self, trunk: keras.Model, threads: int | None = None):
        if not litert_available():
            raise BackendError(
                "LiteRT is not installed, or Keras doesn't run on TensorFlow. Install it with "
                '`pip install "kerastl[demo]"`, or take `engine="keras"`.'
            )
        try:
            self._model = litert.LiteRTModel(litert.convert_to_run(trunk), threads or usable_cores())
        except ModelError as error:
            raise BackendError(str(error)) from error
        self._step = cpu_batch(trunk, _LARGEST_CACHED_BYTES)
        self._order = self._match_outputs(trunk)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the trunk's outputs for a batch, `(batch, height, width, 3)`, as a list of float32 arrays."""
        starts = range(0, max(len(images), 1), self._step)
        parts = [self._model(images[start : start + self._step]) for start in starts]
        given = [one[0] if len(parts) == 1 else np.concatenate(one) for one in zip(*parts, strict=True)]
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


def litert_available() -> bool:
    """Tell whether LiteRT can run a trunk here: installed, on the TensorFlow backend, and no GPU that would do better."""
    if keras.backend.backend() != "tensorflow" or not litert.is_installed():
        return False
    return not backend.has_accelerator()


def choose_engine(trunk: keras.Model, count: int | None, engine: str = "auto", verbose: int = 0):
    """Return the engine that runs a trunk over `count` images soonest, its preparation included.

    Args:
        trunk: the frozen part, from images to features.
        count: images (times views) that it will run over; `None` when that isn't known.
        engine: "auto", "keras", or "litert", which insists.
        verbose: 0 says nothing of a conversion that failed.

    Raises:
        ArgumentError: another name.
        BackendError: "litert" can't be had.
    """
    check_choice("engine", engine, ENGINES)
    if engine == "litert":
        return LiteRTEngine(trunk)
    if engine == "keras" or not litert_available() or not _is_float32(trunk) or not _pays(trunk, count):
        return KerasEngine(trunk)
    try:
        return LiteRTEngine(trunk)
    except BackendError as error:
        if verbose:
            print(f"LiteRT can't run this trunk, so Keras does: {error}")
        return KerasEngine(trunk)


def _is_float32(trunk) -> bool:
    """Tell whether the trunk computes in float32; LiteRT would not follow a mixed policy."""
    return all(layer.compute_dtype == "float32" for layer in trunk.layers)


def _pays(trunk, count: int | None) -> bool:
    if count is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a layer of unknown cost was named by the plan already
        activations = sum(row.activation_bytes for row in costs.layer_costs(trunk))
    spared = count * activations * _SPARED_SECONDS_PER_ACTIVATION_BYTE
    conversion = (
        _CONVERSION_SECONDS_PER_LAYER * len(trunk.layers) + _CONVERSION_SECONDS_PER_WEIGHT * trunk.count_params()
    )
    return spared > conversion
