"""What the outputs of a model hold: which is the main one, its activation, its classes; and which images fit its input.

A model with several outputs (auxiliary heads) is judged by its first one, the main output.
"""

import keras
import numpy as np
from scipy.special import expit, softmax

from kerastl import keras_internals
from kerastl.checks import received
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.errors import DataError, ModelError, warn
from kerastl.models import graph
from kerastl.models.flatten import flatten_model

# Operations that hand the values on as they are: the activation stands before them
_PASSES_ON = {"Identity", "Flatten", "Reshape", "Squeeze", "Cast", "Dropout"}

LARGEST_SCALED = 16  # scaled pixels end at 1, or at 2.7 (by ImageNet's mean and deviation), or somewhat above
_WHITEST = 200  # no way to scale pixels goes up to this: Caffe's, minus the mean, goes up to 151
_NORMALIZATIONS = (*graph.NORMALIZATION_LAYERS, keras.layers.Normalization)
_PROBE_SIZE = 64  # of images for a model that takes any size


def main_output(outputs):
    """Return the first of a model's outputs: of a list or tuple, of a dictionary, or the one that it is."""
    if isinstance(outputs, dict):
        return next(iter(outputs.values()))
    if isinstance(outputs, (list, tuple)):
        return outputs[0]
    return outputs


def main_tensor(model: keras.Model):
    """Return the `KerasTensor` of the main output, or `None` for a subclassed model, which has no graph."""
    try:
        return main_output(model.output)
    except (AttributeError, ValueError):  # `Sequential` models that begin with a model have `outputs` alone
        return main_output(getattr(model, "outputs", None) or [None])


def output_kind(model: keras.Model) -> str | None:
    """Tell by the graph what the main output holds: `"softmax"`, `"sigmoid"`, `"logits"`, or `None` where it can't."""
    node = deciding_node(main_tensor(model))
    known = {"softmax": "softmax", "sigmoid": "sigmoid", "linear": "logits"}
    return known.get(activation_name(node.operation)) if node is not None else None


def main_index(model: keras.Model) -> int:
    """Return the place of the main output among the `outputs` of a Functional or Sequential model."""
    return [id(tensor) for tensor in graph.functional_of(model).outputs].index(id(main_tensor(model)))


def deciding_node(tensor):
    """Return the node of the graph that decides what an output holds: its activation's, or its last layer's.

    Reshapes, casts and dropout behind it, which hand the values on as they are, are passed over; nested models are
    looked into. `None` where there is no graph to follow.
    """
    if not keras_internals.has_history(tensor):
        return None
    node = keras_internals.node_of(tensor)
    operation = node.operation
    if isinstance(operation, keras.Model):
        inner = getattr(operation, "outputs", None) or [None]
        return deciding_node(inner[keras_internals.tensor_index(tensor)])
    is_linear = isinstance(operation, keras.layers.Activation) and activation_name(operation) == "linear"
    # The mean over the views of an exported model, (batch, views, units)
    is_linear |= type(operation).__name__ == "Mean" and operation.axis in (1, [1], (1,)) and len(tensor.shape) == 2
    if is_linear or type(operation).__name__ in _PASSES_ON:
        return deciding_node(node.input_tensors[0]) if node.input_tensors else None
    return node


def probabilities_under(model: keras.Model):
    """Return the layer whose softmax or sigmoid the softmax or sigmoid at the end is given, or `None` where all is well."""
    node = deciding_node(main_tensor(model))
    if node is None or activation_name(node.operation) not in ("softmax", "sigmoid"):
        return None
    if getattr(node.operation, "weights", None):  # a layer of its own, not the end of one
        return None
    under = deciding_node(node.input_tensors[0])
    return under.operation if under is not None and activation_name(under.operation) in ("softmax", "sigmoid") else None


def count_classes(model: keras.Model) -> int:
    """Return the number of classes of the main output, which must be `(batch, units)`; one sigmoid unit counts as two."""
    tensor = main_tensor(model)
    if tensor is None:
        raise ModelError(
            "Expected a Functional model, or a Sequential one that knows the size of its images, which tell the shape of "
            f"their output. {received(model=type(model).__name__)}. Wrap it: `keras.Model(inputs, model(inputs))` with "
            "`inputs = keras.Input((height, width, 3))`."
        )
    shape = tuple(tensor.shape)
    if len(shape) != 2 or shape[1] is None:
        raise ModelError(
            "Expected a classifier, whose main output is (batch, units), such as the end of a Dense layer. "
            f"{received(output_shape=shape)}. A backbone needs a head first: `kerastl.build_classifier`."
        )
    return 2 if shape[1] == 1 else shape[1]


def activation_name(operation) -> str | None:
    """Return the name of a layer's activation; of an operation or of a layer without one, its own."""
    return getattr(getattr(operation, "activation", None), "__name__", type(operation).__name__.lower())


def check_images(model, images: np.ndarray) -> None:
    """Raise `DataError` for a first batch of another image size or channels than the model's; warn of scaled pixels."""
    check_size(model, images)
    if pixel_range(model) == "0-255":
        warn_if_scaled(images)


def check_size(model, images: np.ndarray) -> None:
    """Raise `DataError` for images of another size or channels than the model's."""
    wanted = tuple(model.inputs[0].shape[1:]) if getattr(model, "inputs", None) else ()
    if len(wanted) != 3:
        return
    given = images.shape[1:]
    if len(given) != 3 or any(side not in (None, own) for side, own in zip(wanted, given, strict=True)):
        takes, holds = (" × ".join("any" if side is None else str(side) for side in sizes) for sizes in (wanted, given))
        raise DataError(
            f"The model {model.name!r} takes images of {takes}, the data holds images of {holds}. Load them "
            f"with `image_size={wanted[0]}`, or build the model with `input_shape={tuple(given)}`."
        )


def pixel_range(model) -> str | None:
    """Tell by the graph which pixels a model takes: `"0-255"`, `"scaled"` (such as 0–1), `"any"`, or `None`: it doesn't show.

    A black, a nearly black and a white image run as far as the first layers with weights; normalizations run too. What shrinks
    0–255 or centers it on zero was made for it. Other arithmetic was made for scaled pixels: a `Normalization` by a mean of
    0.485, `Rescaling(2, -1)`, a BatchNorm that was trained on 0–1. A fresh BatchNorm takes any.
    """
    if (found := probe_pixels(model)) is None:
        return None
    span, center, brighter, normalized = found
    if not brighter:
        return "any"
    if 0.9 < span / 255 < 1.1 and abs(center - 127.5) < 20:
        return "any" if normalized else None
    return "0-255" if span < 100 or abs(center) < span / 4 else "scaled"


def probe_pixels(model) -> tuple[float, float, bool, bool] | None:
    """Return what the first layers with weights are given for black and white: how far apart they are, and their middle.

    Also whether white counts for more than a little above black, and whether a normalization ran; `None` where nobody can
    tell. Medians, as BatchNorm divides a channel that never changes by next to nothing.
    """
    if not graph.is_walkable(model) or len(graph.functional_of(model).inputs[0].shape) != 4:
        return None
    reached, normalized = _reached_by_probe(flatten_model(model))
    if not reached or not all(np.isfinite(one).all() for one in reached):
        return None
    black, dark, white = np.concatenate([one.reshape(3, -1) for one in reached], axis=1)
    moves = white != black  # not what padding adds
    if not moves.any():
        return 0.0, 0.0, False, normalized
    span, center = np.median(np.abs(white - black)[moves]), np.median((white + black)[moves]) / 2
    return float(span), float(center), bool(np.median(np.abs(dark - black)[moves]) <= span / 2), normalized


def _reached_by_probe(flat) -> tuple[list[np.ndarray], bool]:
    """Return what the first layers with weights are given for pixels of 0, 1 and 255, and whether a normalization ran."""
    pixels, reached, normalized = flat.inputs[0], [], False
    size = [_PROBE_SIZE if side is None else side for side in pixels.shape[1:]]
    images = np.broadcast_to(np.array([0, 1, 255]).reshape(3, 1, 1, 1), (3, *size))
    known = {id(pixels): keras.ops.convert_to_tensor(images, pixels.dtype)}
    for node in graph.nodes_in_order(flat):
        if not node.input_tensors or any(id(tensor) not in known for tensor in node.input_tensors):
            continue
        if graph.has_weights(node.operation) and not isinstance(node.operation, _NORMALIZATIONS):
            given = (keras.ops.cast(known[id(tensor)], "float32") for tensor in node.input_tensors)
            reached += map(keras.ops.convert_to_numpy, given)
            continue
        normalized |= isinstance(node.operation, graph.NORMALIZATION_LAYERS)
        values = graph.call_in_inference(node.operation, *node.arguments.fill_in(known))
        known.update({id(tensor): value for tensor, value in zip(node.outputs, values, strict=True)})
    return reached, normalized


def warn_if_scaled(images: np.ndarray) -> bool:
    """Warn of pixels that look scaled already, floats within ±1.5 or negative ones, and tell whether they do."""
    found = scaled_range(images)
    if found:
        warn(
            f"The pixels look scaled already (from {found[0]:.3g} to {found[1]:.3g}). This model takes RGB 0–255, and scales "
            "them itself: remove `preprocess_input`, `Rescaling` or `/ 255` from the data."
        )
    return bool(found)


def scaled_range(images: np.ndarray) -> tuple[float, float] | None:
    """Return the smallest and largest pixel where they look scaled already, else `None`."""
    if images.size == 0 or images.dtype.kind != "f":
        return None
    low, high = float(images.min()), float(images.max())
    if low >= 0 and (high > 1.5 or high == 0):  # a black first batch says nothing
        return None
    if high >= _WHITEST:  # noise, or a sharp resizing, goes somewhat beyond 0 and 255
        return None
    # Infinity and NaN are another fault; features or the loss will tell
    return (low, high) if np.isfinite([low, high]).all() else None


def to_probabilities(values: np.ndarray, kind: str | None, task: str = CLASSIFICATION) -> np.ndarray:
    """Turn what the main output holds, `(batch, units)`, into float32 probabilities, `(batch, classes)`; numbers stay.

    One sigmoid unit gives two columns, `1 - p` and `p`. Logits go through softmax (or a sigmoid, for one unit). Several
    sigmoid units are given as they are, and need not sum to 1. `kind` is what `output_kind` says; `None`: told by the values.
    `ModelError`: another shape, NaN, infinite numbers, or a softmax over a single unit.
    """
    if values.ndim != 2:
        raise ModelError(
            "Expected a classifier, whose main output is (batch, units). "
            f"{received(output_shape=values.shape)}. A backbone needs a head first: `kerastl.build_classifier`."
        )
    if np.isnan(values).any() or (task == REGRESSION and np.isinf(values).any()):
        raise ModelError(
            "The outputs of the model are NaN or infinite: its weights were ruined in training (a learning rate that is too "
            "high, as a rule) or the pixels hold NaN."
        )
    if task == REGRESSION:
        return values
    if task == MULTI_LABEL:
        in_range = values.min(initial=0) >= 0 and values.max(initial=0) <= 1
        return expit(values) if kind == "logits" or not in_range else values
    kind = kind or _kind_by_value(values)
    if values.shape[1] == 1 and kind == "softmax":
        raise ModelError(
            "A softmax over a single unit is always 1, so this model can't tell anything apart. "
            "Build it with a sigmoid, or with two units."
        )
    if values.shape[1] == 1:
        positive = values if kind != "logits" else expit(values)
        return np.concatenate([1 - positive, positive], axis=1)
    return softmax(values, axis=1) if kind == "logits" else values


def _kind_by_value(values: np.ndarray) -> str:
    in_range = values.min() >= 0 and values.max() <= 1
    if values.shape[1] == 1:
        return "sigmoid" if in_range else "logits"
    return "softmax" if in_range and np.allclose(values.sum(axis=1), 1, atol=1e-2) else "logits"
