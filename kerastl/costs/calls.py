"""Run a model's graph on shapes alone: which layer is called on what, in which order.

Everything that `costs` tells is a sum over the calls that `trace` lists. Nested models are followed into, a shared
layer is listed once for each time it runs, and shapes that the model leaves open are filled in from `input_shape`.
"""

import contextlib
import dataclasses
import functools
import math
from typing import NamedTuple

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.checks import received
from kerastl.errors import ArgumentError, ModelError
from kerastl.models.graph import functional_of, is_walkable, nodes_in_order


@dataclasses.dataclass(frozen=True)
class Call:
    """One run of a layer, or of an operation such as the `Add` behind `x + y`; specs are `KerasTensor`s with batch 1."""

    operation: object  # the `keras.layers.Layer` or `keras.Operation` that runs
    path: str  # its name, after the names of the nested models that hold it: `resnet50/conv1_conv`
    arguments: tuple  # what it is called with, `(args, kwargs)`, tensors replaced by their specs
    inputs: tuple  # specs of the tensors among the arguments
    outputs: tuple  # specs of what it returns, each an object of its own: two calls never share one


class Graph(NamedTuple):
    """Input tensors, nodes in topological order, output tensors."""

    inputs: list
    nodes: list
    outputs: list


class Trace(NamedTuple):
    """One run of a model on one image: what goes in, the calls in the order in which Keras runs them, what comes out."""

    inputs: list
    calls: list[Call]
    outputs: list


def trace(model: keras.Model, input_shape=None) -> Trace:
    """List the calls of one run of `model` on a batch of one.

    Takes and raises what `layer_costs` does.
    """
    calls = []
    if is_walkable(model):
        graph = _walked(model)
        specs = _input_specs(graph.inputs, input_shape)
    else:
        graph = _subclassed(model, input_shape)
        specs = graph.inputs
    return Trace(specs, calls, run_graph(graph, specs, "", calls))


def itemsize(dtype: str) -> int:
    """Return the bytes that one element takes; types below a byte are stored in one."""
    name = keras.backend.standardize_dtype(dtype)
    return 1 if name == "string" else np.dtype(name).itemsize


def spec_bytes(spec) -> int:
    """Return the bytes of one tensor."""
    return math.prod(spec.shape) * itemsize(spec.dtype)


def run_graph(graph: Graph, specs, prefix: str, calls: list) -> list:
    """Send shapes through a graph, append its calls to `calls`, and return the specs of its outputs."""
    known = {id(tensor): spec for tensor, spec in zip(graph.inputs, specs, strict=True)}
    for node in graph.nodes:
        if node.is_input:
            given = tuple(known[id(tensor)] for tensor in node.outputs if id(tensor) in known)
            if given and not prefix:
                calls.append(Call(node.operation, node.operation.name, ((), {}), (), given))
        elif all(id(tensor) in known for tensor in node.input_tensors):
            outputs = _run_node(node, known, prefix, calls)
            known.update((id(tensor), spec) for tensor, spec in zip(node.outputs, outputs, strict=True))
    return [known[id(tensor)] for tensor in graph.outputs]


def symbolic_graph(layer, arguments) -> Graph | None:
    """Run `layer.call` on symbolic tensors and return the graph of what it calls; `None` where that can't be done.

    This looks into subclassed models, and into layers that were put together from Keras layers and operations. A `call`
    that uses anything else (TensorFlow functions, NumPy, Python conditions on values) can't be looked into. `arguments`
    are `(args, kwargs)`, tensors as `KerasTensor`.
    """

    def fresh(value):
        return keras.KerasTensor(value.shape, value.dtype) if isinstance(value, keras.KerasTensor) else value

    args, kwargs = keras.tree.map_structure(fresh, arguments)
    inputs = specs_in((args, kwargs))
    with contextlib.ExitStack() as stack:
        # Else `part.output` of the layer's parts would no longer be what it was
        stack.callback(keras_internals.forget_calls(keras_internals.flatten_layers(layer)))
        stack.enter_context(contextlib.suppress(Exception))
        outputs = specs_in(layer.call(*args, **kwargs))
        return Graph(inputs, keras_internals.nodes_in_order(keras.Function(inputs, outputs)), outputs)
    return None


def specs_in(arguments) -> list:
    """Return the tensors among a call's arguments, in order."""
    return [value for value in keras.tree.flatten(arguments) if isinstance(value, keras.KerasTensor)]


def _subclassed(model, input_shape) -> Graph:
    if isinstance(model, keras.Sequential) or not isinstance(model, keras.Model):
        functional_of(model)  # raises, and says what is missing
    if not model.built:
        raise ModelError(f"The model {model.name!r} has no weights yet. Call it once on a batch, or `build` it.")
    if input_shape is None:
        raise ArgumentError(
            f"The subclassed model {model.name!r} doesn't tell its input: pass "
            f"`input_shape=(height, width, channels)`, without the batch axis. {received(input_shape=None)}"
        )
    specs = keras.tree.map_shape_structure(lambda shape: keras.KerasTensor((1, *shape)), input_shape)
    graph = symbolic_graph(model, ((specs,), {}))
    if graph is None:
        raise ModelError(
            f"The `call` of the subclassed model {model.name!r} ({type(model).__name__}) can't be followed: it must "
            "use Keras layers and `keras.ops` alone. Rebuild it with `keras.Model(inputs, outputs)`."
        )
    return graph


def _walked(model) -> Graph:
    functional = functional_of(model)
    return Graph(list(functional.inputs), nodes_in_order(model), list(functional.outputs))


def _input_specs(references, input_shape) -> list:
    """Return one spec with batch 1 for each of the model's inputs, sizes filled in from `input_shape`."""
    names = [reference.name for reference in references]
    if input_shape is None:
        shapes = [None] * len(names)
    elif isinstance(input_shape, dict):
        shapes = [input_shape[name] for name in names] if set(input_shape) == set(names) else []
    else:
        is_one = all(size is None or isinstance(size, int) for size in input_shape)
        shapes = [input_shape] if is_one else list(input_shape)
    if len(shapes) != len(names):
        raise ArgumentError(
            f"`input_shape` needs {len(names)} shapes, for the inputs {', '.join(map(repr, names))}. "
            f"{received(input_shape=input_shape)}"
        )
    return [_filled_in(reference, shape, input_shape) for reference, shape in zip(references, shapes, strict=True)]


def _filled_in(reference, shape, input_shape):
    """Return the spec of one input; raise where sizes are missing or contradict the model."""
    built = tuple(reference.shape[1:])
    shape = built if shape is None else shape
    if len(shape) != len(built) or any(
        None not in (size, was) and size != was for size, was in zip(shape, built, strict=True)
    ):
        raise ArgumentError(
            f"`input_shape` doesn't fit input {reference.name!r}, which was built for {built} (without the batch axis; "
            f"None: any size). {received(input_shape=input_shape)}"
        )
    sizes = tuple(was if size is None else size for size, was in zip(shape, built, strict=True))
    if None in sizes:
        raise ArgumentError(
            f"Input {reference.name!r} has no fixed size, {sizes}, and costs depend on it: pass "
            f"`input_shape=(height, width, channels)`, without the batch axis. {received(input_shape=input_shape)}"
        )
    return keras.KerasTensor((1, *sizes), dtype=reference.dtype, name=reference.name)


def _run_node(node, known, prefix, calls) -> list:
    args, kwargs = node.arguments.fill_in(known)
    inputs = specs_in((args, kwargs))
    operation, path = node.operation, prefix + node.operation.name
    inner = _walked(operation) if is_walkable(operation) else None
    if inner is None and isinstance(operation, keras.Model):
        inner = symbolic_graph(operation, (args, kwargs))
    if inner is not None and len(inner.inputs) == len(inputs):
        return run_graph(inner, inputs, path + "/", calls)
    outputs = _output_specs(node, inputs, args, kwargs)
    calls.append(Call(operation, path, (args, kwargs), tuple(inputs), tuple(outputs)))
    return outputs


def _output_specs(node, inputs, args, kwargs) -> list:
    """Return fresh specs of a call's outputs: as the model recorded them, or computed where it left sizes open."""
    recorded = [tuple(tensor.shape) for tensor in node.input_tensors]
    unchanged = all(spec.shape[1:] == shape[1:] for spec, shape in zip(inputs, recorded, strict=True))
    shapes = [tuple(tensor.shape) for tensor in node.outputs]
    if not unchanged or any(None in shape[1:] for shape in shapes):
        shapes = _computed_shapes(node.operation, args, kwargs)
    batches = {None, *(shape[0] for shape in recorded if shape)}
    single = [(1, *shape[1:]) if shape and shape[0] in batches else shape for shape in shapes]
    return [keras.KerasTensor(shape, dtype=tensor.dtype) for shape, tensor in zip(single, node.outputs, strict=True)]


def _computed_shapes(operation, args, kwargs) -> list:
    reason = "it depends on the values"
    # A layer's own rule may leave sizes open (EinsumDense), then its `call` is traced
    for compute in (operation.compute_output_spec, functools.partial(keras.Operation.compute_output_spec, operation)):
        try:
            shapes = [tuple(output.shape) for output in keras.tree.flatten(compute(*args, **kwargs))]
            if not any(None in shape[1:] for shape in shapes):
                return shapes
        except Exception as error:  # a user's layer may raise anything
            reason = error
    sizes = ", ".join(str(tuple(spec.shape)) for spec in specs_in((args, kwargs)))
    raise ModelError(
        f"The output shape of layer {operation.name!r} ({type(operation).__name__}) can't be computed for inputs of "
        f"shape {sizes}: {reason}"
    )
