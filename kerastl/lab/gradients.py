"""Where the gradient goes: its norm per layer, and ReLUs that are dead. `diagnosis` puts it into a verdict."""

import dataclasses

import keras
import numpy as np

from kerastl.backend import gradients_of
from kerastl.checks import check_count
from kerastl.errors import ModelError
from kerastl.evaluation.explanation import as_maps, input_batches, operations_of, run
from kerastl.models.compiling import usual_loss
from kerastl.models.flatten import flatten_model
from kerastl.models.outputs import main_index
from kerastl.tables import NamedRows, Table

_RELU_FUNCTIONS = {"relu", "relu6"}
_RELU_OPERATIONS = {"ReLU", "Relu", "Relu6"}


@dataclasses.dataclass(frozen=True)
class GradientNorm:
    """What one layer's trainable weights are told by one batch."""

    layer: str  # its name, after the names of the nested models that hold it
    kind: str  # its class
    depth: int  # its place among the layers with trainable weights, from the input on, beginning with 1
    gradient_norm: float  # L2 norm of the loss's gradient with respect to all its trainable weights
    weight_norm: float  # L2 norm of these weights
    ratio: float  # gradient_norm / weight_norm; infinite where the weights are all zero


@dataclasses.dataclass(frozen=True)
class DeadRelus:
    """How much of one ReLU never passes anything."""

    layer: str  # its name, after the names of the nested models that hold it
    kind: str  # its class; a `Conv2D` or `Dense` where ReLU is its `activation`
    units: int  # its channels (of feature maps) or units
    dead_units: int  # those that were zero for every image, at every position
    dead_fraction: float  # dead_units / units
    zero_fraction: float  # of all values, how many were zero: about a half is what ReLU does to begin with


class _LayerRows(NamedRows):
    """Rows about one layer each; every field is a column."""

    key = "layer"
    row: type

    def _tables(self):
        columns = [field.name for field in dataclasses.fields(self.row)]
        cells = [[readable(getattr(row, column)) for column in columns] for row in self]
        return [Table([column.replace("_", " ") for column in columns], cells, right=range(2, len(columns)))]


class GradientNorms(_LayerRows):
    """The rows of `gradient_norms`, from the first layer to the last, and the `loss` they belong to."""

    row = GradientNorm
    loss: float


class DeadReluFractions(_LayerRows):
    """The rows of `dead_relu_fraction`, in the order in which the layers run."""

    row = DeadRelus


def readable(value) -> str:
    """Return a value as text; numbers that are not whole with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def gradient_norms(model: keras.Model, x, y) -> GradientNorms:
    """Measure the gradient of the loss on one batch, per layer with trainable weights, in one pass.

    The model runs as in training (dropout drops, BatchNorm that isn't frozen uses the batch), and stays as it was:
    nothing is trained, no statistic moves.

    Args:
        model: a model; compiled, its loss is used, else the cross-entropy that its last activation and `y` call for.
        x: one batch of inputs, as `fit` takes it; 32 to 256 images are a good measure.
        y: their labels, as `fit` takes them. One array for a model with several outputs: that of its main output, whose
            cross-entropy is used then.

    Raises:
        BackendError: a backend other than TensorFlow and JAX.
        ModelError: nothing is trainable, or it isn't compiled and no loss can be told.

    Example:
        >>> [row.layer for row in kerastl.gradient_norms(model, images, labels)]
        ['predictions']
    """
    layers = {path: one for path, one in _leaves(model).items() if getattr(one, "trainable_variables", None)}
    if not layers:
        raise ModelError("Nothing is trainable: every layer is frozen. `kerastl.unfreeze` some, then measure.")
    variables = {id(one): one for layer in layers.values() for one in layer.trainable_variables}
    loss, gradients = gradients_of(_loss_function(model, x, y), list(variables.values()))
    gradient_of = dict(zip(variables, gradients, strict=True))
    rows = []
    for depth, (path, layer) in enumerate(layers.items(), start=1):
        of_gradient = _norm([gradient_of[id(variable)] for variable in layer.trainable_variables])
        of_weights = _norm([variable.numpy() for variable in layer.trainable_variables])
        ratio = of_gradient / of_weights if of_weights else float("inf")
        rows.append(GradientNorm(path, type(layer).__name__, depth, of_gradient, of_weights, ratio))
    norms = GradientNorms(rows)
    norms.loss = loss
    return norms


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

    Example:
        >>> [(row.layer, row.units) for row in kerastl.dead_relu_fraction(model, images)]
        [('tiny/block1_relu', 8), ('tiny/block2_conv', 8)]
    """
    check_count("batch_size", batch_size)
    flat, seen = flatten_model(model), {}

    def watch(node, outputs):
        if not _is_relu(node.operation):
            return
        values = as_maps(outputs[0])
        by_unit = values.reshape(-1, values.shape[-1])
        alive, zeros, count = seen.get(node.operation, (False, 0, 0))
        seen[node.operation] = alive | (by_unit > 0).any(axis=0), zeros + (values == 0).sum(), count + values.size

    for known in input_batches(flat, x, batch_size):
        run(flat, known, flat.outputs, watch)
    rows, paths = [], {one: path for path, one in _leaves(model).items()}
    for operation, (alive, zeros, count) in seen.items():
        dead, kind = int((~alive).sum()), type(operation).__name__
        rows.append(DeadRelus(paths[operation], kind, len(alive), dead, dead / len(alive), float(zeros / count)))
    return DeadReluFractions(rows)


def _leaves(model: keras.Model) -> dict[str, keras.Operation]:
    """Return `{path: layer or operation}` of all that is below a model and no model itself, each once, in graph order."""
    found = {}
    for path, one in operations_of(model).items():
        if not isinstance(one, keras.Model):
            found.setdefault(id(one), (path, one))
    return dict(found.values())


def _loss_function(model, x, y):
    def compiled():
        return model.compute_loss(x=x, y=y, y_pred=model(x, training=True), training=True)

    has_several = len(getattr(model, "outputs", None) or [None]) > 1
    if model.compiled and (not has_several or isinstance(y, (dict, list, tuple))):
        return compiled
    one_hot = np.ndim(y) == 2 and np.shape(y)[1] > 1
    loss, main = usual_loss(model, "one-hot" if one_hot else "integer"), main_index(model)
    return lambda: keras.ops.mean(loss(y, keras.tree.flatten(model(x, training=True))[main]))


def _norm(arrays) -> float:
    """Return the L2 norm over all arrays, in float64: squares of vanishing gradients leave float32's range."""
    return float(np.sqrt(sum((np.asarray(array, "float64") ** 2).sum() for array in arrays)))


def _is_relu(operation) -> bool:
    activation = getattr(getattr(operation, "activation", None), "__name__", "")
    if type(operation).__name__ == "ReLU" and operation.negative_slope:
        return False
    return activation in _RELU_FUNCTIONS or type(operation).__name__ in _RELU_OPERATIONS
