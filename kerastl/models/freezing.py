"""Freeze and unfreeze the backbone of any Keras model, and see what is trainable.

`layer.trainable = False` alone is easy to get wrong: layers are counted from the wrong end, BatchNorm statistics keep
moving, and a change after `compile` is silently ignored by the next `fit`. The verbs here set the exact state, leave
BatchNorm frozen, and un-compile the model, so that a forgotten `recompile` raises instead of training the wrong weights.
"""

import dataclasses
import math

import keras

from kerastl import keras_internals
from kerastl.checks import check_count, check_exactly_one, check_fraction, nearest, received
from kerastl.errors import ArgumentError, ModelError
from kerastl.models import graph
from kerastl.models.graph import Block
from kerastl.tables import Printed, Table


def freeze(model: keras.Model, *, backbone: str | None = None) -> keras.Model:
    """Freeze the whole backbone, in place, and return the model; the head stays as it is.

    It must be recompiled afterwards (`kerastl.recompile` or `compile`); until then `fit` raises.

    Args:
        model: a Functional or Sequential classifier, flat or nested, or a bare backbone.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.

    Raises:
        ModelError: no backbone can be found.

    Example:
        >>> [weight.path.split("/")[-2] for weight in kerastl.freeze(model).trainable_weights]
        ['predictions', 'predictions']
    """
    _set_state(graph.find_backbone(model, backbone), ())
    return model


def check_head_learns(model: keras.Model, backbone: str | None = None) -> None:
    """Raise `ModelError` where nothing outside the backbone is trainable: once that is frozen, nothing would learn."""
    found = graph.find_backbone(model, backbone)
    inside = {id(weight) for layer in (*found.layers, *found.before) for weight in layer.weights}
    if all(id(weight) in inside for weight in model.trainable_weights):
        raise ModelError(
            f"The head of {model.name!r} must be trainable. Run `model.trainable = True; kerastl.freeze(model)` first. "
            f"{received(trainable=model.trainable, trainable_weights=len(model.trainable_weights))}"
        )


def unfreeze(
    model: keras.Model,
    *,
    last_blocks: int | None = None,
    last_layers: int | None = None,
    from_layer: str | None = None,
    fraction: float | None = None,
    batch_norm: bool = False,
    backbone: str | None = None,
) -> keras.Model:
    """Make the end of the backbone trainable, and freeze what precedes it, in place; return the model. The head stays as is.

    BatchNorm layers stay frozen, and so run in inference mode, unless `batch_norm=True`: on small batches their moving
    statistics drift away from the pretrained ones and accuracy collapses (the Keras guide on transfer learning says
    to pass `training=False`; inside a functional model `fit` overrides that).

    Exactly one of `last_blocks`, `last_layers`, `from_layer` and `fraction` is given. All count over the backbone's own
    layers, never the head's. The model must be recompiled afterwards; until then `fit` raises.

    Args:
        model: a Functional or Sequential classifier, flat or nested, or a bare backbone.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.
        last_blocks: number of blocks at the end (`list_blocks` shows them).
        last_layers: number of layers at the end, those without weights counted too.
        from_layer: name of the first layer (or block) to train; it is included.
        fraction: part of the backbone's layers, counted from the end, in (0, 1]; rounded up to whole layers.
        batch_norm: also train the BatchNorm layers after the boundary (their statistics move then).

    Raises:
        ArgumentError: none or several of the four, a count or name that the backbone doesn't have, or a choice that
            makes nothing trainable.
        ModelError: no backbone can be found.

    Example:
        >>> model = kerastl.unfreeze(model, last_blocks=1)
        >>> [weight.path.split("/")[-2] for weight in model.trainable_weights]
        ['block2_conv', 'block2_conv', 'predictions', 'predictions']
    """
    check_exactly_one(last_blocks=last_blocks, last_layers=last_layers, from_layer=from_layer, fraction=fraction)
    found = graph.find_backbone(model, backbone)
    layers = _chosen_layers(found, last_blocks, last_layers, from_layer, fraction)
    spared = [] if batch_norm else [one for layer in layers for one in graph.batch_norm_layers(layer)]
    spared_weights = {id(weight) for one in spared for weight in one.weights}
    if all(id(weight) in spared_weights for layer in layers for weight in layer.weights):
        raise ArgumentError(
            f"Nothing would become trainable: {', '.join(repr(layer.name) for layer in layers[:10])} hold no weights"
            f"{'' if batch_norm else ' but BatchNorm, which stays frozen'}. Choose more layers, or whole blocks "
            f"with `last_blocks`. {received(last_layers=last_layers, from_layer=from_layer, fraction=fraction)}"
        )
    _set_state(found, layers, batch_norm)
    return model


def list_blocks(model: keras.Model, *, backbone: str | None = None) -> list[Block]:
    """Return the backbone's blocks from first to last: `.name`, `.layer_names`, `.parameters`.

    Args:
        model: a Functional or Sequential classifier, flat or nested, or a bare backbone.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.

    Raises:
        ModelError: no backbone can be found.

    Example:
        >>> [(block.name, block.parameters) for block in kerastl.list_blocks(model)]
        [('block1', 248), ('block2', 584)]
    """
    return graph.find_blocks(graph.find_backbone(model, backbone))


def _chosen_layers(found, last_blocks, last_layers, from_layer, fraction) -> list:
    layers = list(found.layers)
    if last_blocks is not None:
        blocks = graph.find_blocks(found)
        count = check_count("last_blocks", last_blocks, largest=len(blocks), unit=f"{found.name!r} has {len(blocks)}")
        return [layer for block in blocks[-count:] for layer in block.layers]
    if from_layer is not None:
        return layers[_index_of(found, from_layer) :]
    if last_layers is not None:
        count = check_count("last_layers", last_layers, largest=len(layers), unit=f"{found.name!r} has {len(layers)}")
    else:
        count = math.ceil(round(check_fraction("fraction", fraction) * len(layers), 6))
    return layers[len(layers) - count :]


def _index_of(found, name: str) -> int:
    names = [layer.name for layer in found.layers]
    if name in names:
        return names.index(name)
    blocks = {block.name: block for block in graph.find_blocks(found)}
    if name in blocks:
        return names.index(blocks[name].layer_names[0])
    raise ArgumentError(
        f"`from_layer` must name a layer or block of the backbone {found.name!r}."
        f"{nearest(name, [*names, *blocks])} {received(from_layer=name)}. `kerastl.list_blocks(model)` shows them."
    )


def _set_state(found: graph.Backbone, trainable, batch_norm: bool = False) -> None:
    """Set every layer of the backbone: those in `trainable` on, all others, and what stands before, off; un-compile.

    Setting `trainable` on a container sets everything in it, and a container that is off hides what is on in it: so the
    containers go first, then the leaves, and the head gets back what it had.
    """
    chosen = {id(leaf) for leaf in graph.leaf_layers(*trainable)}
    own = (*found.layers, *found.before)
    everything = graph.leaf_layers(*own)
    inside = {id(leaf) for leaf in everything}
    head = [(leaf, leaf.trainable) for leaf in graph.leaf_layers(found.path[0]) if id(leaf) not in inside]
    for container in (*found.path, *(layer for layer in own if isinstance(layer, keras.Model))):
        if not container.trainable:
            container.trainable = True
    for leaf, state in head:
        leaf.trainable = state
    for leaf in everything:
        # every part of a composite layer by itself: BatchNorm goes with the policy, not with its owner; and on TensorFlow
        # setting `trainable` to the value that a container has already doesn't reach what is in it
        for part in keras_internals.flatten_layers(leaf):
            is_batch_norm = isinstance(part, keras.layers.BatchNormalization)
            part.trainable = id(leaf) in chosen and (batch_norm or not is_batch_norm)
    if not chosen and len(found.path) > 1:
        found.path[-1].trainable = False  # so that the familiar `backbone.trainable = True` unfreezes it again
    for one in keras_internals.flatten_layers(found.path[0]):
        if isinstance(one, keras.Model):
            one.compiled = False  # so that the next `fit` raises; `recompile` still finds the settings


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One block of the backbone, or the head, in a `TrainableSummary`."""

    name: str
    layers: int
    trainable_layers: int
    batch_norm: str
    parameters: int
    trainable_parameters: int

    @property
    def state(self) -> str:
        if not self.trainable_parameters:
            return "frozen"
        return "trainable" if self.trainable_parameters == self.parameters else "partly trainable"


@dataclasses.dataclass(frozen=True, repr=False)
class TrainableSummary(Printed):
    """What of a model is trainable, block by block; prints as a table, and renders as one in a notebook.

    Attributes:
        rows: one `SummaryRow` per block of the backbone, then one for the head (if there is one).
        parameters: all weights of the model.
        trainable_parameters: those that `fit` changes by gradients.
    """

    model_name: str
    backbone_name: str
    rows: tuple[SummaryRow, ...]
    parameters: int
    trainable_parameters: int

    def to_rows(self) -> list[dict]:
        """Return the rows as dictionaries, for pandas."""
        return [{**dataclasses.asdict(row), "state": row.state} for row in self.rows]

    def _tables(self):
        def cells(name, layers, state, batch_norm, parameters, trainable):
            return (name, str(layers), state, batch_norm, f"{parameters:,}", f"{trainable:,}")

        body = [
            cells(row.name, row.layers, row.state, row.batch_norm, row.parameters, row.trainable_parameters)
            for row in self.rows
        ]
        layers = sum(row.layers for row in self.rows)
        body.append(cells("total", layers, "", "", self.parameters, self.trainable_parameters))
        header = ("block", "layers", "state", "BatchNorm", "parameters", "trainable")
        title = f"{self.model_name} (backbone: {self.backbone_name})"
        return [Table(header, body, right={1, 4, 5}, title=title, total=True)]


def trainable_summary(model: keras.Model, *, backbone: str | None = None) -> TrainableSummary:
    """Return what of the model is trainable: per block, layers, state, BatchNorm policy and parameters; and totals.

    `print` it, or let a notebook render it.

    Args:
        model: a Functional or Sequential classifier, flat or nested, or a bare backbone.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.

    Raises:
        ModelError: no backbone can be found.

    Example:
        >>> print(kerastl.trainable_summary(model))
        tiny_classifier (backbone: tiny)
        -----------------------------------------------------------
        block   layers  state      BatchNorm  parameters  trainable
        -----------------------------------------------------------
        block1       3  frozen     frozen            248          0
        block2       1  frozen     none              584          0
        head         3  trainable  none               27         27
        -----------------------------------------------------------
        total        7                               859         27
    """
    found = graph.find_backbone(model, backbone)
    blocks = graph.find_blocks(found)
    effective = {id(variable) for variable in model.trainable_variables}
    rows = [_row("before the backbone", found.before, effective)] if found.before else []
    rows += [_row(block.name, block.layers, effective) for block in blocks]
    inside = {id(leaf) for leaf in graph.leaf_layers(*found.layers, *found.before)}
    outside = [leaf for leaf in graph.leaf_layers(model) if id(leaf) not in inside]
    head = [leaf for leaf in outside if not isinstance(leaf, keras.layers.InputLayer)]
    if any(leaf.weights for leaf in head):
        rows.append(_row("head", head, effective))
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return TrainableSummary(model.name, found.name, tuple(rows), model.count_params(), trainable)


def _row(name: str, layers, effective: set[int]) -> SummaryRow:
    leaves = graph.leaf_layers(*layers)
    weights = {id(weight): weight for leaf in leaves for weight in leaf.weights}
    trained = [weight for key, weight in weights.items() if key in effective]
    batch_norms = [one for leaf in leaves for one in graph.batch_norm_layers(leaf)]
    return SummaryRow(
        name=name,
        layers=len(leaves),
        trainable_layers=sum(any(id(weight) in effective for weight in leaf.weights) for leaf in leaves),
        batch_norm=_batch_norm_policy(batch_norms),
        parameters=sum(math.prod(weight.shape) for weight in weights.values()),
        trainable_parameters=sum(math.prod(weight.shape) for weight in trained),
    )


def _batch_norm_policy(batch_norms) -> str:
    running = sum(one.trainable for one in batch_norms)
    if not running:
        return "frozen" if batch_norms else "none"
    return "trainable" if running == len(batch_norms) else f"{running} of {len(batch_norms)} trainable"
