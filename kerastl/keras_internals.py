"""Every private name of Keras that this package uses, each in one function; nowhere else is an underscore name of Keras read.

Tried on Keras 3.15.1. `tests/test_keras_internals.py` has a test for each function, so that an upgrade of Keras says which
one broke. What Keras offers publicly instead was looked for and isn't there; where it comes, the function goes.
"""

import contextlib
import functools

import keras

# Everything that `fit` calls on a model and that a subclass may want to change
_STEPS = ("__call__", "call", "fit", "evaluate", "train_step", "test_step", "compute_loss", "compute_metrics")
_STEPS += ("metrics", "get_metrics_result", "reset_metrics", "make_train_function", "make_test_function")
_STEPS += ("stateless_compute_loss",)
_INPUT_SPECS = ("input_spec", "_manual_input_spec")


def flatten_layers(layer) -> list:
    """Return a layer or model and everything below it, at any depth: `Layer._flatten_layers`."""
    return list(layer._flatten_layers())


def child_layers(layer) -> list:
    """Return what a layer holds directly: `Layer._flatten_layers(recursive=False)`."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def functional_inside(model):
    """Return the graph behind a model: itself, or `Sequential._functional`; `None` where there is no graph to walk."""
    inner = getattr(model, "_functional", None) if isinstance(model, keras.Sequential) else model
    return inner if hasattr(inner, "_nodes_by_depth") else None


def nodes_in_order(function) -> list:
    """Return the nodes of a `keras.Function` or functional model as it runs them: `_nodes_by_depth`, deepest first."""
    by_depth = function._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def has_history(tensor) -> bool:
    """Tell whether a tensor is part of a graph: `KerasTensor._keras_history`."""
    return getattr(tensor, "_keras_history", None) is not None


def node_of(tensor):
    """Return the node of the graph that made a `KerasTensor`: `_keras_history` and `Operation._inbound_nodes`."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def tensor_index(tensor) -> int:
    """Return which output of its node a `KerasTensor` is: `_keras_history.tensor_index`."""
    return tensor._keras_history.tensor_index


def calls_of(operation) -> list:
    """Return the nodes of all graphs in which an operation is called: `Operation._inbound_nodes`; a list of its own."""
    return list(operation._inbound_nodes)


def forget_calls(layers):
    """Return a function that takes back what later calls leave on `layers`: `_inbound_nodes` and `_outbound_nodes`."""
    before = [(layer, list(layer._inbound_nodes), list(layer._outbound_nodes)) for layer in layers]

    def put_back():
        for layer, inbound, outbound in before:
            layer._inbound_nodes[:] = inbound
            layer._outbound_nodes[:] = outbound

    return put_back


@functools.cache
def functional_class():
    """Return the class of functional models, which Keras doesn't export."""
    inputs = keras.Input((1,))
    return type(keras.Model(inputs, keras.layers.Identity()(inputs)))


def methods_of_its_own(model) -> list[str]:
    """Return the methods that `fit` calls which a Functional or Sequential model, or its class, has of its own."""
    usual = keras.Sequential if isinstance(model, keras.Sequential) else functional_class()
    changed = {name for name in _STEPS if getattr(type(model), name, None) is not getattr(usual, name, None)}
    return [name for name in _STEPS if name in changed or name in vars(model)]


@contextlib.contextmanager
def calls_replaced(model, call):
    """Let `call(original, inputs, **options)` answer where a model is called, for the length of a `with`.

    A method on the object hides that of its class. `Model.input_spec`, which would refuse other inputs than the model's own,
    is off meanwhile; setting it leaves `Functional._manual_input_spec` behind.
    """
    original, specs = model.call, {name: model.__dict__[name] for name in _INPUT_SPECS if name in model.__dict__}

    def replaced(inputs, training=None, mask=None, **options):
        return call(original, inputs, training=training, mask=mask, **options)

    model.call, model.input_spec = replaced, None
    try:
        yield
    finally:
        del model.call
        for name in _INPUT_SPECS:
            model.__dict__.pop(name, None)
        model.__dict__.update(specs)


def compile_arguments(model) -> dict | None:
    """Return the live arguments of the last `compile`, `None` without one: `Model._compile_config.config`.

    `get_compile_config()` gives a serialized copy, which loses custom objects, and nothing once `compiled` is false.
    """
    config = getattr(model, "_compile_config", None)
    return None if config is None else config.config


def rate_setting(optimizer):
    """Return the rate, or the schedule itself, where `learning_rate` gives its present value: `Optimizer._learning_rate`."""
    return optimizer._learning_rate


def optimized_variables(optimizer) -> list:
    """Return the variables that a built optimizer trains: `Optimizer._trainable_variables`."""
    return list(optimizer._trainable_variables)


@contextlib.contextmanager
def rates_scaled(optimizer, factors: dict):
    """Multiply the learning rate of variables, `{id(variable): factor}`, for a `with`, and the weight decay that goes with it.

    Scaled gradients would do nothing under Adam. The optimizer stays Keras's own, and is saved as such. It takes one step for
    each factor; what it keeps for all variables together, as Nadam its `_u_product`, still moves once:
    `Optimizer._backend_update_step`, `_apply_weight_decay`.
    """
    step, decay = optimizer._backend_update_step, optimizer._apply_weight_decay
    own = (optimizer._iterations, optimizer._learning_rate)

    def groups(variables, *others):
        found = {}
        for row in zip(variables, *others, strict=True):
            found.setdefault(factors.get(id(row[0]), 1.0), []).append(row)
        return [(factor, *map(list, zip(*rows, strict=True))) for factor, rows in found.items()]

    def scaled_step(gradients, variables, learning_rate):
        attributes = vars(optimizer).values()
        shared = [one for one in attributes if isinstance(one, keras.Variable) and not any(one is each for each in own)]
        before = [keras.ops.copy(one) for one in shared]
        for place, (factor, some, their_gradients) in enumerate(groups(variables, gradients)):
            for variable, value in zip(shared, before, strict=True) if place else ():
                optimizer.assign(variable, value)
            step(their_gradients, some, learning_rate * factor)

    def scaled_decay(variables):
        whole = optimizer.weight_decay
        try:
            for factor, some in groups(variables) if whole else ():
                optimizer.weight_decay = whole * factor
                decay(some)
        finally:
            optimizer.weight_decay = whole

    optimizer._backend_update_step, optimizer._apply_weight_decay = scaled_step, scaled_decay
    try:
        yield
    finally:
        del optimizer._backend_update_step, optimizer._apply_weight_decay


def copy_weight_decay_exclusions(optimizer, fresh) -> None:
    """Tell a fresh optimizer what `exclude_from_weight_decay` told the old one; `get_config` leaves it out."""
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if hasattr(optimizer, name):
            setattr(fresh, name, getattr(optimizer, name))


def seed_generators(layer) -> list:
    """Return the random generators that a layer holds itself: `Layer._seed_generators`."""
    return list(getattr(layer, "_seed_generators", []))


def distribution_strategy(model):
    """Return the `tf.distribute` strategy under which a model was made, or `None`: `Trainer._distribute_strategy`."""
    return getattr(model, "_distribute_strategy", None)


def dataset_steps(dataset):
    """Yield each step of a `tf.data.Dataset`, the last one first: TensorFlow's `Dataset._inputs`."""
    waiting = [dataset]
    while waiting:
        step = waiting.pop()
        yield step
        waiting += step._inputs() if hasattr(step, "_inputs") else []


def draws_random_numbers(step) -> bool:
    """Tell whether the function of a dataset's step does: `_map_func`. What can't be looked into draws nothing."""
    with contextlib.suppress(AttributeError):
        graph = step._map_func.function.graph.as_graph_def()
        nodes = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
        return any("Random" in node.op for node in nodes)
    return False


def keeps_what_it_reads(step) -> bool:
    """Tell whether a step of a `tf.data.Dataset` is a `cache`: the class `CacheDataset`."""
    return "Cache" in type(step).__name__
