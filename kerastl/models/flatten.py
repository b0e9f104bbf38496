"""One graph for a model with models in it: the same layers and weights, nested graphs opened up.

A cut can fall anywhere in a nested backbone; in one flat graph it is a tensor like any other.
"""

import contextlib
import operator
import weakref

import keras

from kerastl import keras_internals
from kerastl.models import graph

_FLATTENED = weakref.WeakKeyDictionary()


def flatten_model(model: keras.Model) -> keras.Model:
    """Return a model with a single graph that shares the layers of `model`: its own where nothing is nested, or a kept one.

    Nested Functional and Sequential models are opened up, at any depth; subclassed ones stay closed.
    """
    functional = graph.functional_of(model)
    if not any(opens(layer) for layer in functional.layers):
        return functional
    if model not in _FLATTENED:
        inputs = [
            keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=f"flat_input_{index}")
            for index, tensor in enumerate(functional.inputs)
        ]
        outputs = replay(functional, inputs)
        _FLATTENED[model] = connect(inputs, outputs, f"{model.name}_flat")
    return _FLATTENED[model]


def connect(inputs, outputs, name: str) -> keras.Model:
    """Return `keras.Model(inputs, outputs)`, single tensors for lists of one, layers with equal names allowed.

    Keras refuses two layers of one name, as opened models may hold: they are told apart while the model is made.
    """
    inputs, outputs = list(inputs), list(outputs)
    with _unique_names(inputs, outputs):
        return keras.Model(*(one[0] if len(one) == 1 else one for one in (inputs, outputs)), name=name)


def opens(layer) -> bool:
    """Tell whether a nested model is nothing but its graph (a subclass may do more in its `call`)."""
    if not graph.is_walkable(layer):
        return False
    usual = keras.Sequential if isinstance(layer, keras.Sequential) else keras_internals.functional_class()
    return type(layer).call is usual.call


def replay(functional, inputs, leave_out=lambda operation: False, call=operator.call) -> list:
    """Run a graph's operations again on other inputs, nested models opened up, `leave_out` passed over; return outputs.

    `call(operation, *arguments, **options)` runs one; by default it calls it.
    """
    known = {id(old): new for old, new in zip(functional.inputs, inputs, strict=True)}
    for node in graph.nodes_in_order(functional):
        if all(id(tensor) in known for tensor in node.outputs):
            continue
        arguments, options = node.arguments.fill_in(known)
        if opens(node.operation):
            results = replay(graph.functional_of(node.operation), keras.tree.flatten(arguments), leave_out, call)
        elif leave_out(node.operation):
            results = keras.tree.flatten(arguments)[:1]
        else:
            results = keras.tree.flatten(call(node.operation, *arguments, **options))
        known.update({id(old): new for old, new in zip(node.outputs, results, strict=True)})
    return [known[id(tensor)] for tensor in functional.outputs]


@contextlib.contextmanager
def _unique_names(inputs, outputs):
    nodes = graph.ancestors(outputs, known={id(tensor) for tensor in inputs})
    operations = {id(node.operation): node.operation for node in nodes.values()}
    renamed, taken = [], set()
    for operation in operations.values():
        if operation.name in taken:
            renamed.append((operation, operation.name))
            operation.name = f"{operation.name}__{len(renamed)}"
        taken.add(operation.name)
    try:
        yield
    finally:
        for operation, name in renamed:
            operation.name = name
