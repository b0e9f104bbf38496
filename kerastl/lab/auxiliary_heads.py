"""Auxiliary heads: classifiers at earlier blocks, whose losses reach the first layers by a shorter way.

GoogLeNet had two of them (Szegedy et al., "Going deeper with convolutions", 2015), for the gradient's sake; what they do is
closer to regularization (Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016). They are taken
off when training is over. A model with heads is plain Keras, and plain `fit` trains it:

    model = kerastl.add_auxiliary_heads(model, ["block_12", "block_14"])
    how = auxiliary_training(model)
    model.compile("adam", **how.compile_arguments)
    model.fit(images, how.repeat(labels))
"""

import typing
import weakref
from collections.abc import Callable

import keras

from kerastl.checks import check_fraction, nearest, received
from kerastl.errors import ArgumentError, ModelError
from kerastl.models import compiling, graph, outputs
from kerastl.models.flatten import flatten_model, opens

AUXILIARY = "auxiliary_"
_WEIGHT = 0.3  # of each auxiliary loss in the total, as in GoogLeNet
_WEIGHTS = weakref.WeakKeyDictionary()


class AuxiliaryTraining(typing.NamedTuple):
    """How a model with auxiliary heads is trained by plain Keras.

    Attributes:
        compile_arguments: for `model.compile(optimizer, **compile_arguments)`: loss, its weight in the total, and metrics of
            each output, by output name.
        repeat: from labels `(batch, …)` to what `fit` wants as `y`, a tuple of the same labels for each output; also for
            `dataset.map(lambda images, labels: (images, how.repeat(labels)))`. Sample weights are repeated in the same way;
            Keras takes no `class_weight` with several outputs.
    """

    compile_arguments: dict
    repeat: Callable


def add_auxiliary_heads(
    model: keras.Model,
    at: str | list[str],
    *,
    weight: float | list[float] = _WEIGHT,
    dropout: float = 0.2,
    backbone: str | None = None,
) -> keras.Model:
    """Return a model with further outputs: a classifier at each of some blocks, beside the main one.

    Each head is global average pooling, dropout and a dense layer with the units and the activation of the main output, in
    float32 (GoogLeNet's had a convolution and 1024 hidden units besides). The outputs are a list, the main one first; it
    keeps its name, the others are called `auxiliary_` and the name in `at`. The layers are shared: training the new model
    trains the given one. The new model is not compiled: `kerastl.lab.auxiliary_heads.auxiliary_training` says what `compile`
    and `fit` take. `kerastl.fit` trains it as `model.fit` does; `predict` and `evaluate` of this package read the main output.

    Args:
        model: a Functional or Sequential classifier with one output, or with auxiliary heads already; flat or nested: a
            model within it comes back opened up, its layers beside the others.
        at: names of layers or blocks of the backbone (`list_blocks`), one or a list. A block is tapped at its end.
        weight: of the auxiliary losses in the total, at least 0, one for all or one for each head; 0.3 is GoogLeNet's. It is
            not saved with the model: one read from disk has 0.3.
        dropout: rate in front of the dense layer, in [0, 1); 0.2 as in `build_classifier`.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.

    Returns:
        A new `keras.Model` of the same name. It saves to `.keras` and loads where this package is not installed.

    Raises:
        ArgumentError: a name that the backbone doesn't have, that has no height and width, or has a head already; weights
            that don't fit.
        ModelError: no backbone, a main output that is no `(batch, units)` of softmax, sigmoid or logits, other outputs, or
            a subclass with its own `call` or `train_step`.

    Example:
        >>> kerastl.add_auxiliary_heads(model, "block1").output_names
        ['predictions', 'auxiliary_block1']
    """
    names, weights = _check_heads(at, weight)
    dropout = check_fraction("dropout", dropout, zero=True, one=False)
    units, activation = _main_output(model)
    _check_plain(model)
    found, flat = graph.find_backbone(model, backbone), flatten_model(model)
    taken = {layer.name for layer in model.layers}
    for name in names:
        if f"{AUXILIARY}{name}" in taken:
            raise ArgumentError(f"There is a head at {name!r} already. {received(at=at)}")
    heads = [_head(_tensor_at(flat, found, name), f"{AUXILIARY}{name}", units, activation, dropout) for name in names]
    new = keras.Model(flat.input, [*flat.outputs, *heads], name=model.name)
    added = {f"{AUXILIARY}{name}": value for name, value in zip(names, weights, strict=True)}
    _WEIGHTS[new] = {**_WEIGHTS.get(model, {}), **added}
    return new


def auxiliary_training(model: keras.Model, loss=None, metrics=("accuracy",)) -> AuxiliaryTraining:
    """Tell what `compile` and `fit` take for a model with auxiliary heads.

    Args:
        model: what `add_auxiliary_heads` returned, or what was read from its file.
        loss: of every output, by Keras's name or as a loss; default: the cross-entropy that the main output's activation and
            integer labels call for. One-hot labels: "categorical_crossentropy".
        metrics: of every output, by Keras's names.

    Raises:
        ModelError: there are no auxiliary heads.
    """
    auxiliary = _auxiliary_names(model)
    names = list(model.output_names)
    loss = compiling.usual_loss(model, "integer") if loss is None else loss
    weights = {**dict.fromkeys(auxiliary, _WEIGHT), **_WEIGHTS.get(model, {})}
    arguments = {
        "loss": dict.fromkeys(names, loss),
        "loss_weights": {name: float(weights.get(name, 1.0)) for name in names},
        "metrics": {name: list(metrics) for name in names},
    }
    return AuxiliaryTraining(arguments, lambda labels: (labels,) * len(names))


def remove_auxiliary_heads(model: keras.Model) -> keras.Model:
    """Return the model without its auxiliary heads: one output, the trained weights, the same predictions bit for bit.

    Args:
        model: what `add_auxiliary_heads` returned, trained or not, also after saving and loading: names tell which outputs
            are auxiliary.

    Returns:
        A new `keras.Model` of the same name that shares the layers, not compiled; the given one goes on working.

    Raises:
        ModelError: there are no auxiliary heads, or the model's graph can't be walked.

    Example:
        >>> both = kerastl.add_auxiliary_heads(model, "block1")
        >>> kerastl.remove_auxiliary_heads(both).output_names
        ['predictions']
    """
    auxiliary = _auxiliary_names(model)
    functional = graph.functional_of(model)
    pairs = zip(model.output_names, functional.outputs, strict=True)
    (main,) = (tensor for name, tensor in pairs if name not in auxiliary)
    return keras.Model(functional.input, main, name=model.name)


def _auxiliary_names(model) -> list[str]:
    """Return the names of the auxiliary outputs, which the main one, the first, never is; raise where there are none."""
    graph.functional_of(model)
    names = [name for name in model.output_names[1:] if name.startswith(AUXILIARY)]
    if not names:
        raise ModelError(
            f"The model {model.name!r} has no auxiliary heads: outputs whose names begin with {AUXILIARY!r}. "
            f"{received(outputs=list(model.output_names))}"
        )
    return names


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
    others = getattr(model, "output_names", [])[1:]
    foreign = [name for name in others if not name.startswith(AUXILIARY)]
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
            f"No head can be put on {model.name!r}: it is subclassed, and its own `call` or `train_step` would be lost. "
            f"{received(model=type(model).__name__)}. Rebuild it with `keras.Model(inputs, outputs)`."
        )


def _tensor_at(flat, found: graph.Backbone, name: str):
    """Return the feature map at a layer of the backbone, or at the end of a block, in the flat model."""
    nodes = {id(node.operation): node for node in graph.nodes_in_order(flat)}
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
