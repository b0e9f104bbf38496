"""Where a model can be cut in two: the trunk, which is frozen and runs once, and the tail, which trains.

The cut is the latest tensor before which nothing trains and from which alone everything after it can be computed. In
NASNet, whose cells pass on two tensors, it is two. Which of the places is taken, `plan.choose_cuts` says.
"""

import dataclasses
import math
import warnings

import keras

from kerastl import costs, keras_internals
from kerastl.errors import KerastlWarning, ModelError
from kerastl.models import graph
from kerastl.models.flatten import connect, flatten_model

USUAL_SIDE = 224  # pixels, to weigh the layers of a model that takes images of any size


@dataclasses.dataclass(frozen=True)
class Cut:
    """A place to cut a model."""

    flat: keras.Model = dataclasses.field(repr=False)  # the model in one graph (`flatten_model`)
    start: object = dataclasses.field(repr=False)  # where the trunk begins: the input, or what the augmentation gives
    tensors: tuple = dataclasses.field(repr=False)  # the one tensor, or two, that the trunk hands to the tail
    layer_names: tuple[str, ...]  # the layers that make them
    trunk_macs: int  # multiply-accumulates of the trunk for one image
    model_macs: int  # those of the whole model
    random_inside: tuple[str, ...] = ()  # names of random layers in the trunk; they run in inference mode

    @property
    def augments(self) -> bool:
        """Whether random layers stand in front of the trunk."""
        return self.start is not self.flat.inputs[0]

    @property
    def values_per_image(self) -> int:
        """Numbers that the trunk hands over for one image."""
        return sum(math.prod(tensor.shape[1:]) for tensor in self.tensors)

    def front(self) -> keras.Model | None:
        """Return the augmentation (and what stands before it), or `None` where there is none."""
        return connect(self.flat.inputs, [self.start], "front") if self.augments else None

    def trunk(self, *others: "Cut") -> keras.Model:
        """Return the trunk: from `start` to the cut; with later cuts of the same model, to those as well."""
        return connect([self.start], tensors_of((self, *others)), "trunk")

    def tail(self) -> keras.Model:
        """Return the tail: from the cut to the model's outputs. It shares the model's layers."""
        return connect(self.tensors, self.flat.outputs, "tail")


def tensors_of(cuts) -> list:
    """Return the tensors of several cuts of one model, in their order, each once."""
    return list({id(tensor): tensor for cut in cuts for tensor in cut.tensors}.values())


def find_cuts(model: keras.Model) -> list[Cut]:
    """Return the places to cut a model as it is frozen now, earliest first; none where nothing with weights is frozen.

    Cuts of one tensor; where those leave out more than half of what two tensors would spare (NASNet), cuts of two. Raises
    `ModelError` where the model's graph can't be walked, or has several inputs or outputs.
    """
    flat = flatten_model(model)
    for kind, tensors in (("inputs", flat.inputs), ("outputs", flat.outputs)):
        if len(tensors) != 1:
            raise ModelError(f"The model {model.name!r} has {len(tensors)} {kind}; only models with one can be cut.")
    positions = _positions(flat)
    size = tuple(side or USUAL_SIDE for side in flat.inputs[0].shape[1:])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No cost formula", KerastlWarning)  # an estimate will do here
        macs = {row.name: row.macs for row in costs.layer_costs(flat, size)} if positions else {}
    cuts = [cut for live, nodes in positions if (cut := _cut(flat, live, nodes, macs)) is not None]
    single, double = [[cut for cut in cuts if len(cut.tensors) == width] for width in (1, 2)]
    reach = single[-1].trunk_macs if single else 0
    return double if double and double[-1].trunk_macs > 2 * reach else single


def _positions(flat) -> list[tuple[list, list]]:
    """Return the places up to which everything is frozen and something holds weights, and which need one tensor or two.

    Each is `(the tensors that are still needed there, the nodes before it)`. A random layer inside the trunk is one that
    weights follow; behind the last weights it belongs to the head, and must go on drawing.
    """
    found, nodes, weighted, pending_random = [], [], False, False
    for node, live in graph.live_tensors(flat):
        if not is_frozen(node.operation):
            break
        nodes.append(node)
        if graph.has_weights(node.operation):
            weighted, pending_random = True, False
        elif graph.is_random(node.operation):
            pending_random = weighted
        if weighted and not pending_random and len(live) <= 2:
            found.append((live, list(nodes)))
    return found


def is_frozen(operation) -> bool:
    """Tell whether training changes nothing in an operation: no trainable weights, no running BatchNorm."""
    if not isinstance(operation, keras.layers.Layer):
        return True
    if operation.trainable_variables:
        return False
    return not any(layer.trainable and layer.weights for layer in graph.batch_norm_layers(operation))


def _cut(flat, live, nodes, macs) -> Cut | None:
    start, inside = _start(flat, nodes)
    if start is None or any(None in tensor.shape[1:] for tensor in live):
        return None
    names = tuple(keras_internals.node_of(tensor).operation.name for tensor in live)
    trunk_macs = sum({node.operation.name: macs.get(node.operation.name, 0) for node in nodes}.values())
    return Cut(flat, start, tuple(live), names, trunk_macs, sum(macs.values()), inside)


def _start(flat, nodes):
    """Return where the trunk begins, behind the augmentation in front, and the random layers inside the trunk."""
    weighted = next((index for index, node in enumerate(nodes) if graph.has_weights(node.operation)), len(nodes))
    front = [node for node in nodes[:weighted] if graph.is_random(node.operation)]
    inside = tuple(node.operation.name for node in nodes[weighted:] if graph.is_random(node.operation))
    if not front:
        return flat.inputs[0], inside
    live = next(live for node, live in graph.live_tensors(flat, flat.outputs) if node is front[-1])
    return (live[0] if len(live) == 1 and live[0] is front[-1].outputs[0] else None), inside
