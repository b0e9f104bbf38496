"""Where in a model a layer is, and what the graph gives there.

A model is opened up into one flat graph that shares its layers (`features.flatten`): a tensor inside a nested backbone
is then a tensor like any other, whatever preprocessing and augmentation stand in front of it.
"""

import collections

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.checks import nearest, received
from kerastl.data import batches as inputs
from kerastl.errors import DataError, ModelError
from kerastl.models import graph

# Activations as operations (`keras.ops.relu(x)`), which hold no weights and change no shape
_ACTIVATION_OPERATIONS = {
    *("Celu", "Elu", "Gelu", "HardSigmoid", "HardSilu", "HardTanh", "LeakyRelu", "LogSigmoid", "LogSoftmax", "Relu"),
    *("Relu6", "Selu", "Sigmoid", "Silu", "Softmax", "Softplus", "Softsign", "SquarePlus", "Tanh"),
}


def find_node(model: keras.Model, flat: keras.Model, name: str):
    """Return the node of the flat graph that a layer's output comes from; of a shared layer the last one.

    Args:
        model: as the user has it.
        flat: of `flatten_model`.
        name: of a layer, an operation or a nested model; with the names of the nested models in front
            (`"backbone/conv1"`) where several layers are called the same.

    Raises:
        ModelError: no layer of that name, several, or one that the graph doesn't show.
    """
    operation, nodes = named(operations_of(model), name), graph.nodes_in_order(flat)
    shown = {id(node.operation) for node in nodes}
    while id(operation) not in shown and graph.is_walkable(operation):  # a nested model: what gives its output
        operation = keras_internals.node_of(graph.functional_of(operation).outputs[0]).operation
    if id(operation) not in shown:
        raise ModelError(
            f"The layer {name!r} lies in a subclassed model, whose graph can't be followed. "
            "Take the output of that model as a whole, by its name."
        )
    return [node for node in nodes if node.operation is operation][-1]


def operations_of(model: keras.Model, prefix: str = "") -> dict:
    """Return `{path: layer, operation or nested model}` of all that is below a model, inputs left out."""
    found = {}
    for one in graph.functional_of(model).operations if graph.is_walkable(model) else model.layers:
        if isinstance(one, keras.layers.InputLayer):
            continue
        found[prefix + one.name] = one
        if isinstance(one, keras.Model):
            found.update(operations_of(one, f"{prefix}{one.name}/"))
    return found


def named(operations: dict, name: str):
    """Return what has this path, or else this name in any nested model.

    Raises:
        ModelError: nothing has, or several have.
    """
    if name in operations:
        return operations[name]
    paths = {path: one for path, one in operations.items() if path.rpartition("/")[2] == name}
    if len({id(one) for one in paths.values()}) > 1:
        raise ModelError(
            f"Several layers are called so. Pass one of {', '.join(map(repr, paths))}. {received(layer=name)}"
        )
    if not paths:
        names = dict.fromkeys([path.rpartition("/")[2] for path in operations] + list(operations))
        raise ModelError(f"No layer of that name.{nearest(name, names)} {received(layer=name)}")
    return next(iter(paths.values()))


def image_batch(model: keras.Model, flat: keras.Model, images) -> np.ndarray:
    """Return images as an array `(batch, height, width, channels)` that fits the model; one image becomes a batch.

    Raises:
        ModelError: the model has several inputs.
        DataError: no images, or of another size than the model takes.
    """
    if len(flat.inputs) != 1:
        raise ModelError(f"Expected a model with one input, of images. {received(inputs=len(flat.inputs))}")
    expected = "Expected an array of images, (batch, height, width, channels), all of the size that the model takes."
    try:
        array = keras.ops.convert_to_numpy(images) if keras.ops.is_tensor(images) else np.asarray(images)
    except ValueError as error:  # a list of images of several sizes
        raise DataError(f"{expected} {received(images=type(images).__name__)}") from error
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.dtype.kind not in "buif" or not len(array):
        raise DataError(f"{expected} {received(shape=array.shape, dtype=str(array.dtype))}")
    inputs.check_images(
        model, array[:0]
    )  # of an empty batch it checks the size alone: models of others scale differently
    return array


def input_values(flat: keras.Model, images: np.ndarray) -> dict:
    """Return what `read` starts from: the flat graph's input with a batch of images."""
    tensor = flat.inputs[0]
    return {id(tensor): keras.ops.cast(keras.ops.convert_to_tensor(images), tensor.dtype)}


def read(flat: keras.Model, known: dict, node, *, before_activation: bool = False):
    """Run the graph in inference mode, as far as needed, and return the tensor that a node gives.

    Args:
        flat: of `flatten_model`.
        known: `{id of a KerasTensor: its value}`; nothing before them runs.
        node: of the flat graph.
        before_activation: return what the node's activation is given instead.
    """
    if not before_activation or not has_activation(node.operation):
        return _values(flat, known, [node.outputs[0]])[id(node.outputs[0])]
    values = _values(flat, known, node.input_tensors)
    if _is_activation(node.operation):
        return values[id(node.input_tensors[0])]
    arguments, options = node.arguments.fill_in(values)
    return graph.call_in_inference(_without_activation(node.operation), arguments, options)[0]


def has_activation(operation) -> bool:
    """Tell whether an operation is an activation, or a layer with one at its end (`Conv2D(…, activation="relu")`)."""
    return _is_activation(operation) or _inline_activation(operation) is not None


def _is_activation(operation) -> bool:
    is_layer = ".layers.activations." in type(operation).__module__
    return is_layer or type(operation).__name__ in _ACTIVATION_OPERATIONS


def _inline_activation(operation):
    """Return the activation at a layer's end; `None` without one. Recurrent layers use theirs inside."""
    activation = getattr(operation, "activation", None)
    if isinstance(operation, keras.layers.RNN) or not callable(activation):
        return None
    return None if getattr(activation, "__name__", "") == "linear" else activation


def _without_activation(layer):
    """Return a twin of a layer that shares everything with it, weights included, but for its activation."""
    twin = object.__new__(type(layer))  # `copy.copy` would save the layer and load it again
    vars(twin).update(vars(layer))
    vars(twin)["activation"] = keras.activations.linear
    return twin


def _values(flat, known: dict, wanted) -> dict:
    """Return `{id: value}` of the wanted tensors; what no later node takes is let go on the way."""
    values, needed = dict(known), _nodes_behind(known, wanted)
    nodes = [node for node in graph.nodes_in_order(flat, wanted) if id(node) in needed]
    uses = collections.Counter(
        id(tensor) for tensor in [*wanted, *(one for node in nodes for one in node.input_tensors)]
    )
    for node in nodes:
        outputs = graph.call_in_inference(node.operation, *node.arguments.fill_in(values))
        for tensor, value in zip(node.outputs, outputs, strict=True):
            values.setdefault(id(tensor), value)
        for tensor in node.input_tensors:
            uses[id(tensor)] -= 1
            if not uses[id(tensor)]:
                values.pop(id(tensor), None)
    return values


def _nodes_behind(known: dict, wanted) -> set[int]:
    """Return the ids of the nodes that must run to get from the known tensors to the wanted ones."""
    needed, stack = set(), list(wanted)
    while stack:
        tensor = stack.pop()
        node = keras_internals.node_of(tensor)
        if id(tensor) not in known and id(node) not in needed:
            needed.add(id(node))
            stack.extend(node.input_tensors)
    return needed


def as_maps(values) -> np.ndarray:
    """Return a tensor as a float32 array, feature maps with their channels last."""
    array = keras.ops.convert_to_numpy(keras.ops.cast(values, "float32"))
    is_first = array.ndim == 4 and keras.config.image_data_format() == "channels_first"
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if is_first else array
