"""Auxiliary heads: classifiers at earlier blocks, whose losses reach the first layers by a shorter way.

GoogLeNet had two of them (Szegedy et al., "Going deeper with convolutions", 2015), for the gradient's sake; what they do is
closer to regularization (Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016). They are taken
off when training is over.
"""

import keras

from kerastl import keras_internals
from kerastl.checks import check_fraction, nearest, received
from kerastl.errors import ArgumentError, ModelError
from kerastl.models import compiling, graph, outputs, several_outputs
from kerastl.models.flatten import opens
from kerastl.models.several_outputs import AUXILIARY, AUXILIARY_WEIGHT


def add_auxiliary_heads(
    model: keras.Model,
    at: str | list[str],
    *,
    weight: float | list[float] = AUXILIARY_WEIGHT,
    dropout: float = 0.2,
    backbone: str | None = None,
) -> keras.Model:
    """Return a model with further outputs: a classifier at each of some blocks, beside the main one.

    Each head is global average pooling, dropout and a dense layer with the units and the activation of the main output, in
    float32 (GoogLeNet's had a convolution and 1024 hidden units besides). The outputs are a list, the main one first; it
    keeps its name, the others are called `auxiliary_` and the name in `at`, and so are their losses and metrics in the logs.
    The layers are shared: training the new model trains the given one.

    A compile that the model has is kept: each head gets the main output's loss and metrics (but for metrics that can't be
    made anew from their config), the total is the main loss plus `weight` times each head's, and the optimizer is a fresh
    one with the same settings. A model that was not compiled is compiled so by `train_head` or `fine_tune`.

    `kerastl.fit`, `train_head`, `fine_tune` and `transfer_learn` give every output the one `y`, take class weights, and
    judge by the main output. `model.fit` wants labels for each: `model.fit(x, [y] * len(model.outputs))`. Running the
    frozen part once works as well: what a head in the frozen part takes, pooled, is stored beside the rest. `predict` and
    `evaluate` of this package read the main output; `model.predict` returns all.

    Args:
        model: a Functional or Sequential classifier with one output, or with auxiliary heads already; flat or nested. A
            Sequential one comes back as a functional one.
        at: names of layers or blocks of the backbone (`list_blocks`), one or a list. A block is tapped at its end.
        weight: of the auxiliary losses in the total, at least 0, one for all or one for each head. 0.3 is GoogLeNet's. It is
            part of the compile: saving a model that was never compiled forgets it, and 0.3 is taken.
        dropout: rate in front of the dense layer, in [0, 1); 0.2 as in `build_classifier`.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.

    Returns:
        A new `keras.Model` of the same name. It saves to `.keras` and loads where this package is not installed.

    Raises:
        ArgumentError: a name that the backbone doesn't have, that has no height and width, or has a head already; weights
            that don't fit.
        ModelError: no backbone, a main output that is no `(batch, units)` of softmax, sigmoid or logits, other outputs, or
            a subclass with its own `call` or `train_step`.
    """
    names, weights = _check_heads(at, weight)
    dropout = check_fraction("dropout", dropout, zero=True, one=False)
    units, activation = _main_output(model)
    _check_plain(model)
    found = graph.find_backbone(model, backbone)
    taps = [_tensor_at(found, name) for name in names]
    taken = {layer.name for layer in model.layers}
    for name in names:
        if f"{AUXILIARY}{name}" in taken:
            raise ArgumentError(f"There is a head at {name!r} already. {received(at=at)}")
    _, present, tapped = _opened(found.path, taps)
    heads = [
        _head(tensor, f"{AUXILIARY}{name}", units, activation, dropout)
        for tensor, name in zip(tapped, names, strict=True)
    ]
    new = keras.Model(graph.functional_of(model).input, [*present, *heads], name=model.name)
    _keep_trainable(new, model)
    added = dict(zip((f"{AUXILIARY}{name}" for name in names), weights, strict=True))
    several_outputs.remember_loss_weights(new, several_outputs.loss_weights(model) | added)
    _compile_like(new, model)
    return new


def remove_auxiliary_heads(model: keras.Model) -> keras.Model:
    """Return the model without its auxiliary heads: one output, the trained weights, the same predictions bit for bit.

    Args:
        model: what `add_auxiliary_heads` returned, trained or not, also after saving and loading: names tell which outputs
            are auxiliary.

    Returns:
        A new `keras.Model` of the same name that shares the layers; the given one goes on working. Where it was compiled,
        the new one is, with the main output's loss and metrics and a fresh optimizer of the same settings.

    Raises:
        ModelError: there are no auxiliary heads, or the model's graph can't be walked.
    """
    functional = graph.functional_of(model)
    auxiliary = several_outputs.auxiliary_names(model)
    if not auxiliary:
        raise ModelError(
            f"The model {model.name!r} has no auxiliary heads: outputs whose names begin with {AUXILIARY!r}. "
            f"{received(outputs=several_outputs.output_names(model))}"
        )
    names = several_outputs.output_names(model)
    kept = [tensor for name, tensor in zip(names, functional.outputs, strict=True) if name not in auxiliary]
    new = _trimmed(model, kept)
    _compile_like(new, model)
    return new


def _check_heads(at, weight) -> tuple[list[str], list[float]]:
    names = [at] if isinstance(at, str) else list(at) if isinstance(at, (list, tuple)) else []
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ArgumentError(
            "`at` must be the name of a layer or block of the backbone, or a list of different names "
            f"(`kerastl.list_blocks(model)` shows them). {received(at=at)}"
        )
    weights = list(weight) if isinstance(weight, (list, tuple)) else [weight] * len(names)
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in weights)
    if len(weights) != len(names) or not numbers or not all(0 <= one < float("inf") for one in weights):
        raise ArgumentError(
            f"`weight` must be a number of at least 0, or one for each of the {len(names)} heads. {received(weight=weight)}"
        )
    return names, [float(one) for one in weights]


def _main_output(model) -> tuple[int, str | None]:
    """Return units and activation of the main output; raise where it is no classifier's, or has others beside it."""
    outputs.count_classes(model)
    others = several_outputs.output_names(model)[1:]
    foreign = [name for name in others if name not in several_outputs.auxiliary_names(model)]
    if foreign or isinstance(getattr(model, "output", None), dict):
        raise ModelError(
            f"Expected a model with one output, or with auxiliary heads beside it. {received(outputs=[*others])}"
        )
    kind = outputs.output_kind(model)
    if kind is None:
        raise ModelError(
            f"The last activation of {model.name!r} is neither softmax, sigmoid nor linear, so no head can be made like it."
        )
    return outputs.main_tensor(model).shape[-1], None if kind == "logits" else kind


def _check_plain(model) -> None:
    """Raise for a subclass that does more than its graph says: the model with heads would not do that any more."""
    graph.functional_of(model)
    if not opens(model) or type(model).train_step is not keras.Model.train_step:
        raise ModelError(
            f"No head can be hung into {model.name!r}: it is subclassed, and its own `call` or `train_step` would be lost. "
            f"{received(model=type(model).__name__)}. Rebuild it with `keras.Model(inputs, outputs)`."
        )


def _tensor_at(found: graph.Backbone, name: str):
    """Return the feature map at a layer of the backbone, or at the end of a block."""
    nodes = {id(node.operation): node for node in graph.nodes_in_order(found.path[-1], [found.output])}
    layers = {layer.name: (layer,) for layer in found.layers}
    blocks = {block.name: block.layers for block in graph.find_blocks(found)}
    if name not in layers and name not in blocks:
        raise ArgumentError(
            f"`at` must name layers or blocks of the backbone {found.name!r}.{nearest(name, [*blocks, *layers])} "
            f"{received(at=name)}. `kerastl.list_blocks(model)` shows them."
        )
    for layer in reversed(layers.get(name) or blocks[name]):
        node = nodes.get(id(layer))
        if node is not None and len(node.outputs) == 1 and graph.has_grid(node.outputs[0]):
            return node.outputs[0]
    raise ArgumentError(
        f"A head needs a feature map, `(batch, height, width, channels)`, which {name!r} doesn't give. {received(at=name)}"
    )


def _head(features, name: str, units: int, activation, dropout: float):
    x = keras.layers.GlobalAveragePooling2D(name=f"{name}_pool")(features)
    if dropout:
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return keras.layers.Dense(units, activation=activation, dtype="float32", name=name)(x)


def _opened(path, taps) -> tuple:
    """Return a model's inputs, its outputs, and the taps in the innermost model, as tensors of one graph.

    In a flat model they are that. A nested one becomes a model with the taps as further outputs, and what stands behind it
    is connected anew; what stands before stays as it is.
    """
    functional = graph.functional_of(path[0])
    if len(path) == 1:
        return functional.input, functional.outputs, taps
    inner = path[1]
    nodes = [node for node in graph.nodes_in_order(functional) if node.operation is inner]
    if len(nodes) != 1:
        raise ModelError(f"No head can be hung into {inner.name!r}: {functional.name!r} uses it {len(nodes)} times.")
    _check_plain(inner)
    inputs, ends, inner_taps = _opened(path[1:], taps)
    tapped = keras.Model(inputs, [*ends, *inner_taps], name=inner.name)
    _keep_trainable(tapped, inner)
    arguments, options = nodes[0].arguments.fill_in(_themselves(nodes[0]))
    results = keras.tree.flatten(tapped(*arguments, **options))
    known = dict(zip(map(id, nodes[0].outputs), results, strict=False))
    for node in graph.nodes_in_order(functional):
        _connect_anew(node, known)
    ends = [known.get(id(tensor), tensor) for tensor in functional.outputs]
    return functional.input, ends, results[len(nodes[0].outputs) :]


def _trimmed(model, wanted) -> keras.Model:
    """Return a model with some of its outputs only; nested models lose the outputs that these don't need."""
    functional = graph.functional_of(model)
    nodes = graph.nodes_in_order(functional, wanted)
    needed = {id(tensor) for tensor in wanted} | {id(tensor) for node in nodes for tensor in node.input_tensors}
    known = {}
    for node in nodes:
        kept = [index for index, tensor in enumerate(node.outputs) if id(tensor) in needed]
        if len(kept) == len(node.outputs) or not opens(node.operation):
            _connect_anew(node, known)
            continue
        ends = graph.functional_of(node.operation).outputs
        inner = _trimmed(node.operation, [ends[index] for index in kept])
        arguments, options = node.arguments.fill_in(_themselves(node) | known)
        results = keras.tree.flatten(inner(*arguments, **options))
        known.update((id(node.outputs[index]), result) for index, result in zip(kept, results, strict=True))
    ends = [known.get(id(tensor), tensor) for tensor in wanted]
    new = keras.Model(functional.input, ends[0] if len(ends) == 1 else ends, name=model.name)
    _keep_trainable(new, model)
    return new


def _connect_anew(node, known: dict) -> None:
    """Call an operation once more where one of its inputs is another tensor now; `known` goes from old to new."""
    if all(id(tensor) in known for tensor in node.outputs):
        return
    if not any(id(tensor) in known for tensor in node.input_tensors):
        return
    arguments, options = node.arguments.fill_in(_themselves(node) | known)
    results = keras.tree.flatten(node.operation(*arguments, **options))
    known.update(zip(map(id, node.outputs), results, strict=True))


def _themselves(node) -> dict:
    return {id(tensor): tensor for tensor in node.input_tensors}


def _keep_trainable(new, old) -> None:
    """Let a new container of the same layers be frozen where the old one is; the layers stay as they are."""
    if old.trainable:
        return
    states = [(layer, layer.trainable) for layer in keras_internals.flatten_layers(new, include_self=False)]
    new.trainable = False
    for layer, state in states:
        layer.trainable = state


def _compile_like(new, old) -> None:
    """Compile a model as another one of more or fewer outputs was; a new head gets the main output's loss and metrics.

    Where the other was un-compiled by `freeze` or `unfreeze`, the new one is so too, and a `recompile` brings it back.
    """
    if not compiling.was_compiled(old):
        return
    settings = compiling.compile_settings(old)
    names = several_outputs.output_names(new)
    loss, metrics, weighted_metrics, weights = (
        _for_outputs(old, settings.pop(kind, None), names)
        for kind in ("loss", "metrics", "weighted_metrics", "loss_weights")
    )
    loss = {name: _single(value) for name, value in loss.items()}
    added = several_outputs.loss_weights(new)
    present = several_outputs.output_names(old)
    weights = {name: _single(value) if name in present else added[name] for name, value in weights.items()}
    settings |= {"metrics": _copies(metrics), "weighted_metrics": _copies(weighted_metrics)}
    if len(names) == 1:
        settings |= {"loss": loss[names[0]], "loss_weights": weights[names[0]]}
        settings |= {kind: settings[kind] and settings[kind][names[0]] for kind in ("metrics", "weighted_metrics")}
    elif any(one is not None for one in loss.values()):
        weights = {name: 1.0 if one is None else float(one) for name, one in weights.items()}
        settings |= {"loss": loss, "loss_weights": weights}
    optimizer = compiling.fresh_optimizer(old.optimizer, compiling.learning_rate_setting(old))
    new.compile(optimizer=optimizer, **settings)
    new.compiled = old.compiled


def _for_outputs(old, setting, names) -> dict:
    """Return what an argument of `compile` says of each output; of those that weren't there, the main output's."""
    present = several_outputs.output_names(old)
    if isinstance(setting, dict):
        found = {name: setting.get(name) for name in present}
    elif isinstance(setting, (list, tuple)) and len(setting) == len(present) > 1:
        found = dict(zip(present, setting, strict=True))
    else:
        found = dict.fromkeys(present, setting)
    return {name: found[name if name in found else several_outputs.main_name(old)] for name in names}


def _single(value):
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _copies(metrics: dict) -> dict | None:
    """Return the metrics of each output, objects made anew from their config: one can't count for two outputs."""
    copies = {}
    for name, given in metrics.items():
        made = [_copy(one) for one in keras.tree.flatten(given)] if given is not None else []
        copies[name] = [one for one in made if one is not None]
    return {name: made for name, made in copies.items() if made} or None


def _copy(metric):
    if not isinstance(metric, keras.metrics.Metric):
        return metric
    try:
        return type(metric).from_config(metric.get_config())
    except (TypeError, ValueError, NotImplementedError):
        return None
