"""ReLUs that are dead."""

import dataclasses

import keras
import numpy as np

from kerastl.lab.gradients.rows import Table
from kerastl.lab.gradients.running import batches, run

_RELU_FUNCTIONS = {"relu", "relu6"}
_RELU_OPERATIONS = {"ReLU", "Relu", "Relu6"}


@dataclasses.dataclass(frozen=True)
class DeadRelus:
    """How much of one ReLU never passes anything.

    Attributes:
        layer: the layer's name, after the names of the nested models that hold it.
        kind: its class; a `Conv2D` or `Dense` where ReLU is its `activation`.
        units: its channels (of feature maps) or units.
        dead_units: those that were zero for every image, at every position.
        dead_fraction: dead_units / units.
        zero_fraction: of all values, how many were zero. About a half is what ReLU does to begin with.
    """

    layer: str
    kind: str
    units: int
    dead_units: int
    dead_fraction: float
    zero_fraction: float


class DeadReluFractions(Table):
    """The rows of `dead_relu_fraction`, in the order in which the layers run."""

    columns = ("layer", "kind", "units", "dead_units", "dead_fraction", "zero_fraction")


def dead_relu_fraction(model: keras.Model, x, *, batch_size: int = 32) -> DeadReluFractions:
    """Count the units of every ReLU that are zero for all of the images, and the zeros among all values.

    Looks into nested models; ReLU and ReLU6 as layers, as `activation` of other layers, and as operations. The model
    runs in inference mode.

    Args:
        model: a Functional or Sequential model.
        x: images or other inputs, an array; for several inputs a list of arrays. The more, the surer: a unit is dead
            only as far as these images go.
        batch_size: how many run at once.

    Raises:
        ModelError: a subclassed model, whose layers can't be followed.
    """
    seen = {}

    def watch(operation, path, inputs, outputs):
        if _is_relu(operation):
            values = np.asarray(keras.ops.convert_to_numpy(outputs[0]))
            positive = (values > 0).reshape(-1, *values.shape[1:])
            axis = 1 if values.ndim == 4 and keras.config.image_data_format() == "channels_first" else -1
            by_unit = np.moveaxis(positive, axis, -1).reshape(-1, values.shape[axis])
            alive, zeros, count, kind = seen.get(path, (False, 0, 0, type(operation).__name__))
            seen[path] = alive | by_unit.any(axis=0), zeros + (values == 0).sum(), count + values.size, kind

    for batch in batches(x, batch_size):
        run(model, batch, watch)
    rows = []
    for path, (alive, zeros, count, kind) in seen.items():
        dead = int((~alive).sum())
        rows.append(DeadRelus(path, kind, len(alive), dead, dead / len(alive), float(zeros / count)))
    return DeadReluFractions(rows)


def _is_relu(operation) -> bool:
    activation = getattr(getattr(operation, "activation", None), "__name__", "")
    if type(operation).__name__ == "ReLU" and operation.negative_slope:
        return False
    return activation in _RELU_FUNCTIONS or type(operation).__name__ in _RELU_OPERATIONS
