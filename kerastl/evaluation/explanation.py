"""Grad-CAM: which part of an image speaks for a class. And how a layer is found and read, which the lab does too.

A model is opened up into one flat graph that shares its layers (`models.flatten`): a tensor inside a nested backbone is
then a tensor like any other, whatever preprocessing and augmentation stand in front of it.
"""

import collections
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.backend import check_gradients, gradients_of
from kerastl.checks import check_count, nearest, received
from kerastl.errors import ArgumentError, DataError, ModelError
from kerastl.evaluation.inputs import check_range, preprocess
from kerastl.models import graph, outputs
from kerastl.models.flatten import flatten_model

_LOCAL_POOLING = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)

# Activations as operations (`keras.ops.relu(x)`) are called as the functions are
_ACTIVATION_OPERATIONS = {name.replace("_", "") for name in dir(keras.activations)}


def grad_cam(
    model: keras.Model,
    images,
    *,
    class_index=None,
    layer: str | None = None,
    batch_size: int = 32,
    preprocessing: Callable[..., Any] | str | None = "auto",
) -> np.ndarray:
    """Return heat maps of what in each image speaks for a class: gradient-weighted class activation maps.

    After Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization" (ICCV
    2017): each feature map of a layer counts by the mean of the class score's gradient over it, the sum is cut off at
    zero, and brought to the image's size (bilinearly). As in the paper the score is the one *before* the softmax: the
    probability's gradient vanishes where the model is sure, and holds what speaks against other classes. Of one sigmoid
    unit, which stands for class 1, class 0 has the negative score. Any other output is the score itself.

    Nested backbones, preprocessing and augmentation need no preparation; the model runs in inference mode and stays as it is.

    Args:
        model: a classifier, Functional or Sequential, with one input; of several outputs the main one, the first, counts.
        images: what the model takes, `(batch, height, width, channels)`, or one image; RGB 0–255 for a classifier of this
            package.
        class_index: the class to speak for, one for all images or one for each, `(batch,)`. Default: the most probable.
        layer: name of a layer with height and width that leads to the main output, as in `feature_maps`. Default: the
            last one before global pooling or flattening (and before local pooling that ends a backbone, as in VGG).
        batch_size: images that run at once.
        preprocessing: what is done to pixels 0–255 before the model, see `predict`.

    Returns:
        float32, `(batch, height, width)` of the images' size, from 0 to 1: each map is divided by its largest value. All
        zero where nothing at that layer speaks for the class. Maps of different images don't compare in strength.

    Raises:
        BackendError: a backend other than TensorFlow and JAX.
        ModelError: no such layer, or none with height and width; a subclassed model, one with several inputs, one that is
            no classifier, or whose outputs are NaN.
        ArgumentError: a class that there isn't.
        DataError: images that the model doesn't take.

    Example:
        >>> kerastl.grad_cam(model, images[:2]).shape
        (2, 32, 32)
    """
    check_gradients()
    check_count("batch_size", batch_size)
    flat = flatten_model(model)
    images = image_batch(model, flat, images, preprocessing)
    classes = _classes(model, class_index, len(images))
    end, before_activation = _score_place(model, flat)
    place = _default_place(model, flat, end) if layer is None else _named_place(model, flat, end, layer)
    parts = []
    for number, known in enumerate(input_batches(flat, images, batch_size)):
        chosen = None if classes is None else classes[number * batch_size :][:batch_size]
        parts.append(_coarse_maps(flat, known, place, end, before_activation, chosen))
    return _enlarge(np.concatenate(parts), images.shape[1:3])


def _score_place(model, flat) -> tuple:
    """Return the node of the flat graph whose class scores count, and whether they are read before its activation."""
    output = flat.outputs[outputs.main_index(model)]
    node = outputs.deciding_node(output)
    if all(one is not node for one in graph.nodes_in_order(flat)):  # it lies in a model that can't be opened up
        return keras_internals.node_of(output), False
    return node, outputs.output_kind(model) in ("softmax", "sigmoid")


def _classes(model, class_index, count: int) -> np.ndarray | None:
    """Return a class for each image, or `None` for the most probable ones."""
    classes = outputs.count_classes(model)
    if class_index is None:
        return None
    asked = np.asarray(class_index)
    fits = asked.dtype.kind in "iu" and asked.shape in ((), (count,))
    if not fits or asked.min() < 0 or asked.max() >= classes:
        raise ArgumentError(
            f"`class_index` must be a whole number from 0 to {classes - 1}, or an array with one for each of the {count} "
            f"images. {received(class_index=class_index)}"
        )
    return np.broadcast_to(asked, (count,)).astype("int32")


def _default_place(model, flat, end):
    last = graph.last_spatial_node(flat, end.outputs)
    chain = graph.dominators(flat, end.outputs)
    for node in reversed(chain[: chain.index(last) + 1] if last is not None else []):
        if _has_places(node.outputs[0]) and not isinstance(node.operation, _LOCAL_POOLING):
            return node
    raise ModelError(
        f"The model {model.name!r} has no layer with weights and with height and width that everything passes before "
        "pooling. Name one with `layer=`."
    )


def _named_place(model, flat, end, layer: str):
    node = find_node(model, flat, layer)
    leading = [one for one in graph.nodes_in_order(flat, end.outputs) if one is not end and _has_places(one.outputs[0])]
    if any(one is node for one in leading):
        return node
    inside = {id(one.operation) for one in leading}
    names = [path.rpartition("/")[2] for path, one in operations_of(model).items() if id(one) in inside]
    raise ModelError(
        f"Expected a layer with height and width that leads to the main output.{nearest(layer, names)} "
        f"{received(layer=layer, output_shape=tuple(node.outputs[0].shape))}"
    )


def _has_places(tensor) -> bool:
    """Tell whether a tensor is a feature map of more than one position."""
    sides = tensor.shape[2:] if keras.config.image_data_format() == "channels_first" else tensor.shape[1:3]
    return graph.has_grid(tensor) and tuple(sides) != (1, 1)


def _coarse_maps(flat, known, place, end, before_activation, classes) -> np.ndarray:
    """Return the maps at the layer's own size, `(batch, rows, columns)`, at least zero."""
    tensor = place.outputs[0]
    features = keras.ops.cast(read(flat, known, place), "float32")
    variable = keras.Variable(features, dtype="float32")

    def chosen_scores():
        features = keras.ops.cast(keras.ops.convert_to_tensor(variable), tensor.dtype)
        values = read(flat, {**known, id(tensor): features}, end, before_activation=before_activation)
        scores = keras.ops.cast(keras.ops.reshape(values, (values.shape[0], -1)), "float32")
        if scores.shape[1] == 1:  # of one unit: for class 0 and for class 1
            scores = keras.ops.concatenate([-scores, scores], axis=1)
        chosen = keras.ops.argmax(scores, axis=1) if classes is None else classes
        # Images don't see each other in inference mode, so the gradient of the sum holds each image's own
        return keras.ops.sum(keras.ops.take_along_axis(scores, chosen[:, None], axis=1))

    _, (gradient,) = gradients_of(chosen_scores, [variable])
    maps, gradient = as_maps(features), as_maps(gradient)
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    heat = np.maximum((maps * weights).sum(axis=-1), 0)
    if not np.isfinite(heat).all():
        raise ModelError(
            "The model's outputs are NaN or infinite: its weights were ruined in training (a learning rate that is too high, "
            "as a rule) or the pixels hold NaN."
        )
    return heat


def _enlarge(heat: np.ndarray, size) -> np.ndarray:
    """Return the maps at the images' size, each divided by its largest value."""
    grown = keras.ops.image.resize(heat[..., None], tuple(size), interpolation="bilinear", data_format="channels_last")
    grown = np.maximum(keras.ops.convert_to_numpy(grown)[..., 0], 0)
    largest = grown.max(axis=(1, 2), keepdims=True)
    return np.divide(grown, largest, out=np.zeros_like(grown), where=largest > 0)


def find_node(model: keras.Model, flat: keras.Model, name: str):
    """Return the node of the flat graph (of `flatten_model`) that a layer's output comes from; of a shared layer the last.

    `name` is of a layer, an operation or a nested model; with the names of the nested models in front
    (`"backbone/conv1"`) where several layers are called the same. `ModelError`: there is none, or the graph doesn't show it.
    """
    operation, shown = named(operations_of(model), name), {node.operation: node for node in graph.nodes_in_order(flat)}
    while operation not in shown and graph.is_walkable(operation):  # a nested model: what gives its output
        operation = keras_internals.node_of(graph.functional_of(operation).outputs[0]).operation
    if operation in shown:
        return shown[operation]
    raise ModelError(
        f"The layer {name!r} lies in a subclassed model, whose graph can't be followed. "
        "Take the output of that model as a whole, by its name."
    )


def operations_of(model: keras.Model) -> dict:
    """Return `{path: layer, operation or nested model}` below a model, the names of nested models in the path's front."""
    found = {}
    for one in graph.functional_of(model).operations if graph.is_walkable(model) else model.layers:
        if not isinstance(one, keras.layers.InputLayer):
            found[one.name] = one
        if isinstance(one, keras.Model):
            found |= {f"{one.name}/{path}": inner for path, inner in operations_of(one).items()}
    return found


def named(operations: dict, name: str):
    """Return what has this path, or else this name in any nested model; raise `ModelError` where nothing has, or several."""
    if name in operations:
        return operations[name]
    paths = {path: one for path, one in operations.items() if path.rpartition("/")[2] == name}
    if not paths:
        names = dict.fromkeys([path.rpartition("/")[2] for path in operations] + list(operations))
        raise ModelError(f"No layer of that name.{nearest(name, names)} {received(layer=name)}")
    if len(set(paths.values())) > 1:
        choice = ", ".join(map(repr, paths))
        raise ModelError(f"Several layers are called so. Pass one of {choice}. {received(layer=name)}")
    return next(iter(paths.values()))


def image_batch(model: keras.Model, flat: keras.Model, images, preprocessing="auto") -> np.ndarray:
    """Return images, preprocessed, as an array `(batch, height, width, channels)` for the model; one image becomes a batch.

    `ModelError`: it has several inputs; `DataError`: no images, or of another size; `ArgumentError`: pixels of another range.
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
    outputs.check_size(model, array)
    check_range(outputs.pixel_range(model), preprocessing, [array])
    return preprocess(array, preprocessing)


def input_batches(flat: keras.Model, x, batch_size: int):
    """Yield `{id of an input of the flat graph: its values}` batch by batch; `x` is an array, or one for each input."""
    inputs = list(x) if isinstance(x, (list, tuple)) else [x]
    for start in range(0, len(inputs[0]), batch_size):
        part = [keras.ops.convert_to_tensor(one[start : start + batch_size]) for one in inputs]
        pairs = zip(flat.inputs, part, strict=True)
        yield {id(tensor): keras.ops.cast(values, tensor.dtype) for tensor, values in pairs}


def read(flat: keras.Model, known: dict, node, *, before_activation: bool = False):
    """Run the graph in inference mode, as far as needed, and return the tensor that a node gives.

    Nothing before the tensors of `known`, `{id of a KerasTensor: its value}`, runs. `before_activation` returns what the
    node's activation is given instead.
    """
    operation, kind = node.operation, type(node.operation)
    is_activation = ".layers.activations." in kind.__module__ or kind.__name__.lower() in _ACTIVATION_OPERATIONS
    # Recurrent layers use theirs inside
    ends_in_one = callable(getattr(operation, "activation", None)) and not isinstance(operation, keras.layers.RNN)
    if not before_activation or not (is_activation or ends_in_one):
        return run(flat, known, [node.outputs[0]])[id(node.outputs[0])]
    values = run(flat, known, node.input_tensors)
    if is_activation:
        return values[id(node.input_tensors[0])]
    # A twin that shares all else with the layer, weights included; `copy.copy` would save the layer and load it again
    twin = object.__new__(kind)
    vars(twin).update({**vars(operation), "activation": keras.activations.linear})
    arguments, options = node.arguments.fill_in(values)
    return graph.call_in_inference(twin, arguments, options)[0]


def run(flat: keras.Model, known: dict, wanted, watch=None) -> dict:
    """Run the graph in inference mode, as far as needed, and return `{id: value}` of the wanted tensors.

    What no later node takes is let go on the way. `watch(node, outputs)` sees what each node gives.
    """
    values, needed = dict(known), graph.ancestors(wanted, known)
    nodes = [node for node in graph.nodes_in_order(flat, wanted) if id(node) in needed]
    uses = collections.Counter(map(id, itertools.chain(wanted, *(node.input_tensors for node in nodes))))
    for node in nodes:
        outputs = graph.call_in_inference(node.operation, *node.arguments.fill_in(values))
        if watch is not None:
            watch(node, outputs)
        for tensor, value in zip(node.outputs, outputs, strict=True):
            values.setdefault(id(tensor), value)
        for tensor in node.input_tensors:
            uses[id(tensor)] -= 1
            if not uses[id(tensor)]:
                values.pop(id(tensor), None)
    return values


def as_maps(values) -> np.ndarray:
    """Return a tensor as a float32 array, feature maps with their channels last."""
    array = keras.ops.convert_to_numpy(keras.ops.cast(values, "float32"))
    is_first = array.ndim == 4 and keras.config.image_data_format() == "channels_first"
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if is_first else array
