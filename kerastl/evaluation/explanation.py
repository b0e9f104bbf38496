"""Grad-CAM: which part of an image speaks for a class."""

import dataclasses

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.backend import check_gradients, gradients_of
from kerastl.checks import check_count, nearest, received
from kerastl.errors import ArgumentError, ModelError
from kerastl.evaluation.places import as_maps, find_node, image_batch, input_values, operations_of, read
from kerastl.models import graph, outputs
from kerastl.models.flatten import flatten_model

_LOCAL_POOLING = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)


def grad_cam(
    model: keras.Model, images, *, class_index=None, layer: str | None = None, batch_size: int = 32
) -> np.ndarray:
    """Return heat maps of what in each image speaks for a class: gradient-weighted class activation maps.

    After Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization" (ICCV
    2017): each feature map of a layer counts by the mean of the class score's gradient over it, the sum is cut off at
    zero, and brought to the image's size (bilinearly). As in the paper the score is the one *before* the softmax: the
    probability's gradient vanishes where the model is sure, and holds what speaks against other classes. Of one sigmoid
    unit, which stands for class 1, class 0 has the negative score. Where the last activation is another one, or can't be
    told, the output itself is the score.

    Nested backbones, preprocessing and augmentation in the graph need no preparation; the model runs in inference mode
    and stays as it is.

    Args:
        model: a classifier, Functional or Sequential, with one input; of several outputs the main one, the first, counts.
        images: what the model takes, `(batch, height, width, channels)`, or one image; RGB 0–255 for a classifier of this
            package.
        class_index: the class to speak for, one for all images or one for each, `(batch,)`. Default: the class that the
            model finds most probable for each image.
        layer: name of a layer with height and width that leads to the main output, as in `feature_maps`. Default: the
            last one before global pooling or flattening (and before local pooling that ends a backbone, as in VGG).
        batch_size: images that run at once.

    Returns:
        float32, `(batch, height, width)` of the images' size, from 0 to 1: each map is divided by its largest value. All
        zero where nothing at that layer speaks for the class. Maps of different images don't compare in strength.

    Raises:
        BackendError: a backend other than TensorFlow and JAX.
        ModelError: no such layer (the nearest names are given), no layer with height and width, a subclassed model, a
            model with several inputs, one that is no classifier, or answers with NaN.
        ArgumentError: a class that there isn't.
        DataError: images that the model doesn't take.
    """
    check_gradients()
    batch_size = check_count("batch_size", batch_size)
    flat = flatten_model(model)
    images = image_batch(model, flat, images)
    classes = _classes(model, class_index, len(images))
    score = _score(model, flat)
    place = _default_place(model, flat, score) if layer is None else _named_place(model, flat, score, layer)
    parts = []
    for start in range(0, len(images), batch_size):
        chosen = None if classes is None else classes[start : start + batch_size]
        parts.append(_coarse_maps(flat, images[start : start + batch_size], place, score, chosen))
    return _enlarge(np.concatenate(parts), images.shape[1:3])


@dataclasses.dataclass(frozen=True)
class _Score:
    """Where the class scores are read: at a node of the flat graph, before its activation or behind it."""

    node: object
    before_activation: bool

    def read(self, flat, known):
        """Return `(batch, classes)`; one unit `s` becomes two columns, `-s` and `s`."""
        values = read(flat, known, self.node, before_activation=self.before_activation)
        values = keras.ops.cast(keras.ops.reshape(values, (values.shape[0], -1)), "float32")
        return keras.ops.concatenate([-values, values], axis=1) if values.shape[1] == 1 else values


def _score(model, flat) -> _Score:
    output = flat.outputs[outputs.main_index(model)]
    node = outputs.deciding_node(output)
    if id(node) not in {id(one) for one in graph.nodes_in_order(flat)}:  # it lies in a model that can't be opened up
        return _Score(keras_internals.node_of(output), before_activation=False)
    return _Score(node, before_activation=outputs.output_kind(model) in ("softmax", "sigmoid"))


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


def _default_place(model, flat, score):
    last = graph.last_spatial_node(flat, [score.node.outputs[0]])
    chain = graph.dominators(flat, [score.node.outputs[0]])
    before = chain[: chain.index(last) + 1] if last is not None else []
    for node in reversed(before):
        if _has_places(node.outputs[0]) and not isinstance(node.operation, _LOCAL_POOLING):
            return node
    raise ModelError(
        f"The model {model.name!r} has no layer with weights and with height and width that everything passes before "
        "pooling. Name one with `layer=`."
    )


def _has_places(tensor) -> bool:
    """Tell whether a tensor is a feature map of more than one position."""
    sides = tensor.shape[2:] if keras.config.image_data_format() == "channels_first" else tensor.shape[1:3]
    return graph.has_grid(tensor) and tuple(sides) != (1, 1)


def _named_place(model, flat, score, layer: str):
    node = find_node(model, flat, layer)
    leading = graph.ancestors([score.node.outputs[0]])
    if id(node) in leading and node is not score.node and _has_places(node.outputs[0]):
        return node
    fitting = [one for one in graph.nodes_in_order(flat, [score.node.outputs[0]]) if _has_places(one.outputs[0])]
    inside = {id(one.operation) for one in fitting if one is not score.node}
    names = [path.rpartition("/")[2] for path, one in operations_of(model).items() if id(one) in inside]
    raise ModelError(
        f"Expected a layer with height and width that leads to the main output.{nearest(layer, names)} "
        f"{received(layer=layer, output_shape=tuple(node.outputs[0].shape))}"
    )


def _coarse_maps(flat, images, place, score, classes) -> np.ndarray:
    """Return the maps at the layer's own size, `(batch, rows, columns)`, at least zero."""
    tensor = place.outputs[0]
    known = input_values(flat, images)
    features = keras.ops.cast(read(flat, known, place), "float32")
    variable = keras.Variable(features, dtype="float32")

    def chosen_scores():
        features = keras.ops.cast(keras.ops.convert_to_tensor(variable), tensor.dtype)
        scores = score.read(flat, {**known, id(tensor): features})
        chosen = keras.ops.argmax(scores, axis=1) if classes is None else classes
        # Images don't see each other in inference mode, so the gradient of the sum holds each image's own
        return keras.ops.sum(keras.ops.take_along_axis(scores, chosen[:, None], axis=1))

    _, (gradient,) = gradients_of(chosen_scores, [variable])
    maps, gradient = as_maps(features), as_maps(gradient)
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    heat = np.maximum((maps * weights).sum(axis=-1), 0)
    if not np.isfinite(heat).all():
        raise ModelError(
            "The model answers NaN or infinity: its weights were ruined in training (a learning rate that is too high, as "
            "a rule) or the pixels hold NaN."
        )
    return heat


def _enlarge(heat: np.ndarray, size) -> np.ndarray:
    """Return the maps at the images' size, each divided by its largest value."""
    grown = keras.ops.image.resize(heat[..., None], tuple(size), interpolation="bilinear", data_format="channels_last")
    grown = np.maximum(keras.ops.convert_to_numpy(grown)[..., 0], 0)
    largest = grown.max(axis=(1, 2), keepdims=True)
    return np.divide(grown, largest, out=np.zeros_like(grown), where=largest > 0)
