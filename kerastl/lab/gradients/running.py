"""Run a model's graph layer by layer on real tensors, nested models unfolded, and watch what passes."""

import keras

from kerastl.checks import check_count
from kerastl.models.graph import call_in_inference, functional_of, is_walkable, nodes_in_order


def batches(x, batch_size: int):
    """Yield the inputs of one batch after the other as lists of tensors; `x` is an array, or a list with one per input."""
    check_count("batch_size", batch_size)
    inputs = list(x) if isinstance(x, (list, tuple)) else [x]
    for start in range(0, len(inputs[0]), batch_size):
        yield [keras.ops.convert_to_tensor(one[start : start + batch_size]) for one in inputs]


def run(model: keras.Model, inputs: list, watch, *, prefix: str = "") -> list:
    """Run a model in inference mode and show every call of a layer or operation to `watch`.

    Args:
        model: a Functional or Sequential model.
        inputs: one tensor for each of its inputs.
        watch: called as `watch(operation, path, inputs, outputs)` with lists of tensors; the path has the names of the
            nested models in front, as in `costs.layer_costs`.
        prefix: of the paths.

    Returns:
        The outputs, in the order of `model.outputs`.

    Raises:
        ModelError: a subclassed model, whose layers can't be followed.
    """
    functional = functional_of(model)
    arrivals = zip(functional.inputs, inputs, strict=True)
    values = {id(tensor): keras.ops.cast(value, tensor.dtype) for tensor, value in arrivals}
    for node in nodes_in_order(model):
        operation = node.operation
        if node.is_input:
            continue
        args, kwargs = node.arguments.fill_in(values)
        arriving = [values[id(tensor)] for tensor in node.input_tensors]
        if is_walkable(operation):
            outputs = run(operation, arriving, watch, prefix=f"{prefix}{operation.name}/")
        else:
            outputs = call_in_inference(operation, args, kwargs)
            watch(operation, prefix + operation.name, arriving, outputs)
        values.update((id(tensor), value) for tensor, value in zip(node.outputs, outputs, strict=True))
    return [values[id(tensor)] for tensor in functional.outputs]


def leaf_layers(model: keras.Model, prefix: str = "") -> list[tuple[str, keras.layers.Layer]]:
    """Return `(path, layer)` of all layers below a model that are no models themselves, each once, in graph order."""
    found = {}
    for layer in model.layers:
        path = prefix + layer.name
        inner = leaf_layers(layer, f"{path}/") if isinstance(layer, keras.Model) else [(path, layer)]
        for leaf_path, leaf in inner:
            found.setdefault(id(leaf), (leaf_path, leaf))
    return list(found.values())


def has_kernel(weights) -> bool:
    """Tell whether one of the weights is a matrix or a filter, not a bias or a factor per channel."""
    return any(len(weight.shape) > 1 for weight in weights)
