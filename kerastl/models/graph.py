"""Find the backbone in a flat or nested model, walk its layers, find its dominators and its blocks.

A *dominator* of the output is a node of the layer graph through which everything flows. They come from one pass over the
nodes in topological order: after a dominator, its output is the only tensor that is still needed. Blocks end at them.
"""

import collections
import dataclasses
import inspect
import itertools
import re

import keras

from kerastl import keras_internals
from kerastl.checks import nearest, received
from kerastl.errors import ModelError, warn

NORMALIZATION_LAYERS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
    keras.layers.RMSNormalization,
)

_GLOBAL_POOLING = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)

# How the families of keras.applications and the networks of this package name the layers of one block. The first
# pattern that fits wins; what it captures is the block's name, in the form given.
_BLOCK_PATTERNS = {
    r"(?:.*_)?(stage_?\d+_block_?\d+)(?:_|$)": "{}",  # ConvNeXt, ShuffleNet
    r"(conv\d+_block\d+)(?:_|$)": "{}",  # ResNet, DenseNet
    r"(block\d+_\d+)(?:_mixed|_conv|_ac)?$": "{}",  # InceptionResNetV2
    r"(block_\d+)(?:_|$)": "{}",  # MobileNetV2
    r"(block\d+[a-z]?)(?:_|$)": "{}",  # EfficientNet, VGG, Xception
    r"(mixed_?\d+[a-z]?)$": "{}",  # Inception names only the last layer of a block
    r"(expanded_conv(?:_\d+)?)(?:_[a-z]|$)": "{}",  # MobileNetV3, and the first block of MobileNetV2
    r"(fire\d+)(?:_|$)": "{}",  # SqueezeNet
    r"conv_(?:dw|pw|pad)_(\d+)(?:_|$)": "block_{}",  # MobileNet
    r"(?:.*_)?(?:normal|reduction|adjust)_(?:.*?_)?((?:stem_)?\d+)$": "cell_{}",  # NASNet
}
_AUTOMATIC_NAME = re.compile(r"(?:conv2d|dense|depthwise_conv2d|separable_conv2d|conv2d_transpose)(?:_\d+)?$")


@dataclasses.dataclass(frozen=True)
class Block:
    """One unit of a backbone.

    Attributes:
        name: as the layers' names tell it (`conv5_block3`), or the first weighted layer's name.
        layers: the block's layers, in the backbone's order.

    Example:
        >>> kerastl.list_blocks(model)[0].layer_names
        ('block1_conv', 'block1_bn', 'block1_relu')
    """

    name: str
    layers: tuple = dataclasses.field(repr=False)

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Number of weights, BatchNorm's moving statistics included (as `count_params` counts)."""
        return sum(layer.count_params() for layer in self.layers if layer.built)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Where the backbone of a model is.

    `path` leads from the given model down to the one that owns the backbone's layers; one model when it is flat. `layers`,
    in the order of `model.layers`, leave out the input and the augmentation in front of the first weighted layer. `before`
    are the weighted layers in front of a nested backbone, `output` is its last `KerasTensor`, `name` the nested model's, or
    that of a flat backbone's last layer.
    """

    path: tuple
    layers: tuple
    before: tuple
    output: object
    name: str


def functional_of(model):
    """Return the `Functional` behind a model: itself, or what a built `Sequential` holds; else raise `ModelError`."""
    if (inner := keras_internals.functional_inside(model)) is not None:
        return inner
    if isinstance(model, keras.Sequential):
        raise ModelError(
            f"The Sequential model {model.name!r} has no input shape yet, so its graph can't be walked. "
            "Add a `keras.Input` as its first layer, or call it once on a batch."
        )
    raise ModelError(
        f"Expected a Functional or Sequential model, whose graph can be walked. {received(model=type(model).__name__)}. "
        "Rebuild the model with `keras.Model(inputs, outputs)`."
    )


def is_walkable(layer) -> bool:
    """Tell whether a layer is a model with a graph of its own."""
    return isinstance(layer, keras.Model) and keras_internals.functional_inside(layer) is not None


def ancestors(tensors, known=()) -> dict:
    """Return `{id: node}` of all that the tensors are computed from, their own included; from tensors of known ids on."""
    seen, stack = {}, list(tensors)
    while stack:
        tensor = stack.pop()
        node = keras_internals.node_of(tensor)
        if id(tensor) not in known and id(node) not in seen:
            seen[id(node)] = node
            stack.extend(node.input_tensors)
    return seen


def nodes_in_order(model, outputs=None) -> list:
    """Return the nodes that the outputs (default: the model's) are computed from, in topological order."""
    functional = functional_of(model)
    wanted = ancestors(functional.outputs if outputs is None else outputs)
    return [node for node in keras_internals.nodes_in_order(functional) if id(node) in wanted]


def live_tensors(model, outputs=None):
    """Yield each node in topological order with the tensors that later nodes or the outputs (default: the model's) need."""
    outputs = functional_of(model).outputs if outputs is None else outputs
    nodes = nodes_in_order(model, outputs)
    uses = collections.Counter(map(id, itertools.chain(outputs, *(node.input_tensors for node in nodes))))
    live = {}
    for node in nodes:
        for tensor in node.input_tensors:
            uses[id(tensor)] -= 1
            if not uses[id(tensor)]:
                live.pop(id(tensor), None)
        live.update({id(tensor): tensor for tensor in node.outputs if uses[id(tensor)]})
        yield node, list(live.values())


def dominators(model, outputs=None) -> list:
    """Return the nodes, in order, whose one output tensor alone decides the outputs (default: the model's first one)."""
    outputs = [functional_of(model).outputs[0]] if outputs is None else outputs
    return [node for node, live in live_tensors(model, outputs) if len(live) == 1 and live[0] is node.outputs[0]]


def has_grid(tensor) -> bool:
    """Tell whether a tensor is an image or a feature map: `(batch, height, width, channels)`."""
    return len(tensor.shape) == 4


def leaf_layers(*layers) -> list:
    """Return the layers, each once, with what models hold, at any depth, in place of the models."""
    found = {}
    for layer in layers:
        inner = leaf_layers(*layer.layers) if isinstance(layer, keras.Model) else [layer]
        found.update({id(leaf): leaf for leaf in inner})
    return list(found.values())


def batch_norm_layers(layer) -> list:
    """Return the BatchNormalization layers in a layer or model, at any depth, itself included."""
    return [one for one in keras_internals.flatten_layers(layer) if isinstance(one, keras.layers.BatchNormalization)]


def is_random(operation) -> bool:
    """Tell whether a layer draws random numbers in training: augmentation, dropout, noise, or a model that holds one."""
    for one in keras_internals.flatten_layers(operation) if isinstance(operation, keras.layers.Layer) else ():
        told_by_class = "random" in type(one).__name__.lower() or ".regularization." in type(one).__module__
        draws = told_by_class or getattr(one, "seed_generator", None) is not None
        draws = draws and getattr(one, "rate", None) != 0  # transformers are full of dropout that drops nothing
        if draws and not isinstance(one, keras.layers.ActivityRegularization):  # which is in dropout's module
            return True
    return False


def call_in_inference(operation, arguments, options) -> list:
    """Call a layer or operation as `model(x, training=False)` would, not by its own default; return its outputs as a list."""
    if "training" in inspect.signature(operation.call).parameters:
        options = {**options, "training": False}
    return keras.tree.flatten(operation(*arguments, **options))


def has_weights(layer) -> bool:
    """Tell whether a layer holds weights (seeds of random layers don't count)."""
    return bool(layer.weights) if isinstance(layer, keras.layers.Layer) else False


def find_backbone(model, backbone: str | None = None) -> Backbone:
    """Find the backbone of a model; raise `ModelError` where there is none.

    Nested: the inner model that holds most of the weights of the convolutional part. Flat: everything up to the last
    dominator that still has height and width, and that no global pooling or flattening precedes. Where the model leaves it
    open, `backbone` names the nested model, or the last layer of a flat backbone.
    """
    if backbone is not None:
        return _named_backbone(model, backbone)
    path = [model]
    while (inner := _nested_backbone(path[-1])) is not None:
        path.append(inner)
    if len(path) > 1:
        return _backbone(path)
    last = last_spatial_node(model)
    if last is None:
        raise ModelError(
            f"No backbone was found in {model.name!r}: nothing with weights has an output with height and width. "
            "Pass `backbone=` with the name of a nested model, or of the backbone's last layer."
        )
    found = _backbone(path, last)
    _warn_if_open(found)
    return found


def _named_backbone(model, name: str) -> Backbone:
    for path in _paths(model):
        for layer in path[-1].layers:
            if layer.name != name:
                continue
            if is_walkable(layer):
                return _backbone([*path, layer])
            nodes = [node for node in dominators(path[-1]) if node.operation is layer]
            if nodes:
                return _backbone(path, nodes[-1])
            raise ModelError(
                f"Layer {name!r} can't end the backbone: other paths go around it. Choose the layer where they meet again."
            )
    names = [layer.name for path in _paths(model) for layer in path[-1].layers]
    raise ModelError(f"No layer of that name.{nearest(name, names)} {received(backbone=name)}")


def _paths(model) -> list:
    """Return the model, and every nested model with its way down to it."""
    found, queue = [], [[model]]
    while queue:
        path = queue.pop(0)
        found.append(path)
        queue.extend([*path, layer] for layer in path[-1].layers if is_walkable(layer))
    return found


def _nested_backbone(model):
    """Return the nested model that holds more than half of the weights of the convolutional part, or `None`."""
    chain = dominators(model) if is_walkable(model) else []
    layers = [node.operation for node in chain] if is_walkable(model) else model.layers
    candidates = [layer for layer in layers if is_walkable(layer) and has_weights(layer)]
    candidates = [layer for layer in candidates if has_grid(functional_of(layer).inputs[0])]
    best = max(candidates, key=lambda layer: layer.count_params(), default=None)
    if best is None or not is_walkable(model):
        return best
    last = last_spatial_node(model)
    end = chain[max(layers.index(best), -1 if last is None else chain.index(last))]
    part = {id(node.operation): node.operation for node in nodes_in_order(model, end.outputs)}
    total = sum(layer.count_params() for layer in part.values() if has_weights(layer))
    return best if best.count_params() > total / 2 else None


def last_spatial_node(model, outputs=None):
    """Return the last dominator before global pooling or flattening, `None` if nothing there has weights; see `dominators`."""
    last = None
    for node in dominators(model, outputs) if is_walkable(model) else []:
        pools = isinstance(node.operation, _GLOBAL_POOLING)
        if not pools and len(node.outputs) == 1 and has_grid(node.outputs[0]):
            last = node
        elif _is_computed(model, last):  # images that become tokens are no feature map yet
            break
    return last if _is_computed(model, last) else None


def _is_computed(model, node) -> bool:
    """Tell whether weights went into what a node gives."""
    return node is not None and any(has_weights(one.operation) for one in nodes_in_order(model, node.outputs))


def _backbone(path, last=None) -> Backbone:
    """Return the backbone that ends at the node `last` of the path's last model; without one, that model as a whole."""
    owner = path[-1]
    if not is_walkable(owner):
        raise ModelError(f"The nested model {owner.name!r} is subclassed: its layers' order can't be told.")
    layers, name = owner.layers, owner.name
    if last is not None:
        inside = {id(node.operation) for node in nodes_in_order(owner, last.outputs)}
        layers, name = [layer for layer in layers if id(layer) in inside], last.operation.name
    first = next((index for index, layer in enumerate(layers) if has_weights(layer)), len(layers))
    kept = [layer for index, layer in enumerate(layers) if index >= first or not is_random(layer)]
    kept = tuple(layer for layer in kept if not isinstance(layer, keras.layers.InputLayer))
    end = last or last_spatial_node(owner)
    output = (functional_of(owner) if end is None else end).outputs[0]
    return Backbone(tuple(path), kept, _before(path), output, name)


def _before(path) -> tuple:
    """Return the weighted layers that come before the nested model on each level of the path."""
    found = []
    for outer, inner in itertools.pairwise(path):
        nodes = nodes_in_order(outer) if is_walkable(outer) else []
        place = next((node for node in nodes if node.operation is inner), None)
        earlier = nodes_in_order(outer, place.input_tensors) if place else []
        found += [node.operation for node in earlier if has_weights(node.operation)]
    return tuple(dict.fromkeys(found))


def _warn_if_open(backbone: Backbone) -> None:
    """Warn where unnamed convolutions follow the last named block: they may be the head's."""
    named = [index for index, layer in enumerate(backbone.layers) if block_key(layer.name)]
    if not named:
        return
    late = [layer.name for layer in backbone.layers[named[-1] + 1 :] if _AUTOMATIC_NAME.match(layer.name)]
    if late:
        warn(
            f"It is not clear whether {', '.join(late)} belong to the backbone; they are taken as part of it. "
            f"Pass `backbone={backbone.layers[named[-1]].name!r}` (its last layer) if they are the head's."
        )


def block_key(name: str) -> str | None:
    """Return the name of the block that a layer's name tells, or `None`."""
    for pattern, form in _BLOCK_PATTERNS.items():
        if match := re.match(pattern, name):
            return form.format(match.group(1))
    return None


def find_blocks(backbone: Backbone) -> list[Block]:
    """Split a backbone into blocks: by names where they tell, else by dominators that hold a weighted layer."""
    segments = _segments(backbone)
    named = any(block_key(layer.name) for layer in backbone.layers)
    groups = _blocks_by_name(segments) if named else _blocks_by_weights(segments)
    return [Block(name, tuple(sorted(layers, key=backbone.layers.index))) for name, layers in groups.items()]


def _segments(backbone: Backbone) -> list[list]:
    """Return the backbone's layers, cut after every dominator."""
    owner = backbone.path[-1]
    waiting = {id(layer): layer for layer in backbone.layers}
    ends = {id(node) for node in dominators(owner, [backbone.output])}
    segments, current = [], []
    for node in nodes_in_order(owner, [backbone.output]):
        if id(node.operation) in waiting:
            current.append(waiting.pop(id(node.operation)))
        if id(node) in ends and current:
            segments.append(current)
            current = []
    # what a nested backbone still does behind its last feature map (its own pooling, say)
    current += waiting.values()
    if current:
        segments.append(current)
    return segments


def _blocks_by_name(segments) -> dict[str, list]:
    groups, present = collections.defaultdict(list), "stem"
    for segment in segments:
        waiting = []  # layers without a name go with the next that has one, else with the last before them
        for layer in segment:
            waiting.append(layer)
            if key := block_key(layer.name):
                groups[key] += waiting
                present, waiting = key, []
        groups[present] += waiting
    return groups


def _blocks_by_weights(segments) -> dict[str, list]:
    groups, present = {}, []
    for segment in segments:
        weighted = [layer for layer in segment if has_weights(layer)]
        if any(not isinstance(layer, NORMALIZATION_LAYERS) for layer in weighted):
            present = groups[weighted[0].name] = [] if groups else present  # the first takes what precedes it
        present += segment
    return groups or {segments[0][0].name: present}
