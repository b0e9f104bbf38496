"""What a layer makes of images, and what it looks for."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerastl.checks import check_count, nearest, received
from kerastl.errors import ModelError
from kerastl.evaluation.explanation import as_maps, find_node, image_batch, input_batches, named, operations_of, read
from kerastl.models.flatten import flatten_model


def feature_maps(
    model: keras.Model,
    images,
    layer: str,
    *,
    before_activation: bool = False,
    batch_size: int = 32,
    preprocessing: Callable[..., Any] | str | None = "auto",
) -> np.ndarray:
    """Return what a layer makes of images, in inference mode: augmentation and dropout are inactive.

    Args:
        model: a Functional or Sequential model, flat or nested to any depth.
        images: what the model takes, `(batch, height, width, channels)`, or one image; RGB 0–255 for a classifier of this
            package.
        layer: name of a layer, or of a nested model. Where several nested models hold layers of one name, the nested
            model's name comes first: `"mobilenetv2_1.00_224/Conv_1"`. Of a layer that runs several times the last run
            counts.
        before_activation: return what goes into the layer's activation instead of what comes out: what a
            `Conv2D(…, activation="relu")` computes before it cuts the negative part off, or the input of a `ReLU` layer.
            For a layer without an activation it makes no difference.
        batch_size: images that run at once.
        preprocessing: what is done to pixels 0–255 before the model, see `kerastl.predict`.

    Returns:
        float32, `(batch, height, width, channels)`, channels last in any case; of a layer whose output has no height and
        width its output, such as `(batch, units)`.

    Raises:
        ModelError: no such layer (the nearest names are given), a subclassed model, or a model with several inputs.
        DataError: images that the model doesn't take.

    Example:
        >>> kerastl.feature_maps(model, images, "block2_conv").shape
        (30, 13, 13, 8)
    """
    check_count("batch_size", batch_size)
    flat = flatten_model(model)
    node = find_node(model, flat, layer)
    images = image_batch(model, flat, images, preprocessing)
    batches = input_batches(flat, images, batch_size)
    return np.concatenate([as_maps(read(flat, one, node, before_activation=before_activation)) for one in batches])


def layer_filters(model: keras.Model, layer: str) -> np.ndarray:
    """Return the filters of a two-dimensional convolution.

    Args:
        model: a model, flat or nested to any depth.
        layer: name of the convolution; where several nested models hold one of that name, the nested model's name comes first.

    Returns:
        float32, `(height, width, input channels, filters)`; of a depthwise convolution `(height, width, channels, filters
        for each channel)`, and of a separable one its depthwise part.

    Raises:
        ModelError: no such layer, or it is no two-dimensional convolution (the nearest are given).

    Example:
        >>> kerastl.layer_filters(model, "block1_conv").shape
        (3, 3, 3, 8)
    """
    operations = operations_of(model)
    found = named(operations, layer)
    kernel = _kernel(found)
    if kernel is None:
        convolutions = [path.rpartition("/")[2] for path, one in operations.items() if _kernel(one) is not None]
        near = nearest(layer, convolutions) or f" Convolutions are {', '.join(map(repr, convolutions[:5]))}, …"
        raise ModelError(
            f"Expected a two-dimensional convolution, which has filters.{near if convolutions else ''} "
            f"{received(layer=layer, kind=type(found).__name__)}"
        )
    return kernel


def _kernel(layer) -> np.ndarray | None:
    if isinstance(layer, (keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)):
        kernel = getattr(layer, "depthwise_kernel", getattr(layer, "kernel", None))
    elif isinstance(layer, (keras.layers.Conv2D, keras.layers.Conv2DTranspose)):
        kernel = layer.kernel
    else:
        return None
    kernel = keras.ops.convert_to_numpy(keras.ops.cast(kernel, "float32"))
    return kernel.swapaxes(2, 3) if isinstance(layer, keras.layers.Conv2DTranspose) else kernel
