"""Images beside what in them speaks for a class."""

import itertools
import math

import numpy as np

from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError
from kerastl.evaluation.plots.drawing import INK, colour_bar, displayable, hide_ticks, panels_of, percent, shorten

_COLOURS = "inferno"


def plot_grad_cam(
    images, heat_maps, probabilities=None, class_names=None, *, class_index=None, labels=None, count: int = 6, axes=None
):
    """Plot images, each beside itself under its heat map.

    Args:
        images: pixels 0–255, `(batch, height, width, 3)`.
        heat_maps: what `kerastl.grad_cam` returned, `(batch, height, width)` in 0–1.
        probabilities: outputs of the model, `(batch, classes)`: `kerastl.predict(model, images).probabilities`. With
            them each image is titled with the predicted class.
        class_names: one name per class; without them classes are called 0, 1, …
        class_index: the class, or one for each image, that was given to `grad_cam`; by default it took the predicted one.
        labels: the true classes as integers, `(batch,)`.
        count: how many images to show at most.
        axes: matplotlib axes to draw on, two for each image. Without them a figure is made.

    Returns:
        The axes in an array `(images shown, 2)`: the image, and the image under its heat map.

    Raises:
        ArgumentError: the lengths or sizes don't fit together, or there are too few axes.
        DataError: arrays that are no images.

    Example:
        >>> kerastl.plot_grad_cam(images[:2], kerastl.grad_cam(model, images[:2])).shape
        (2, 2)
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    images, heat_maps = _as_batches(images, heat_maps)
    shown_count = min(check_count("count", count), len(images))
    titles = _titles(heat_maps, probabilities, class_names, class_index, labels)
    panels = _pairs(axes, shown_count, np.divide(*heat_maps.shape[1:]), lines=titles[0][0].count("\n") + 1)
    for index, (left, right) in enumerate(panels):
        picture = displayable(images[index])
        left.imshow(picture)
        right.imshow(under_heat(picture, heat_maps[index]))
        for panel, title in zip((left, right), titles[index], strict=True):
            hide_ticks(panel)
            panel.set_title(title, fontsize=8.5, loc="left", color=INK)
    shrink = 1.0 if len(panels) <= 2 else 0.75 if len(panels) <= 4 else 0.5
    scale = ScalarMappable(Normalize(0, 1), _COLOURS)
    colour_bar(panels, scale, "heat (1: the image's largest)", "black", shrink=shrink, ticks=[0, 0.5, 1])
    return panels


def _as_batches(images, heat_maps) -> tuple[list, np.ndarray]:
    heat_maps = np.asarray(heat_maps, "float32")
    fits = heat_maps.ndim == 3 and len(heat_maps) == len(images) > 0
    if fits and all(np.shape(image)[:2] == heat_maps.shape[1:] for image in images):
        return list(images), heat_maps
    shapes = received(images=[np.shape(image) for image in list(images)[:3]], heat_maps=heat_maps.shape)
    raise ArgumentError(f"Expected images and one heat map of the same height and width for each. {shapes}")


def _titles(heat_maps, probabilities, class_names, class_index, labels) -> list[tuple[str, str]]:
    """Return what stands over each image and over its heat map."""
    count = len(heat_maps)
    given = None if probabilities is None else np.asarray(probabilities)
    _check_titles(count, given, class_names, class_index, labels)
    classes = given.argmax(axis=1) if given is not None else None
    asked = classes if class_index is None else np.broadcast_to(np.asarray(class_index), (count,))

    def called(index) -> str:
        return shorten(index if class_names is None else class_names[int(index)], 14)

    titles = []
    for index, heat in enumerate(heat_maps):
        over_image, over_heat = [], []
        if given is not None:
            over_image.append(f"predicted {called(classes[index])}, {percent(given[index].max())}")
        if labels is not None:
            over_image.append(f"true class {called(labels[index])}")
        if asked is not None:
            over_heat.append(f"{'speaks' if heat.any() else 'nothing speaks'} for {called(asked[index])}")
        if class_index is not None and given is not None:
            over_heat.append(f"probability {percent(given[index, asked[index]])}")
        both = itertools.zip_longest(over_image, over_heat, fillvalue="")
        titles.append(tuple(map("\n".join, zip(*both, strict=True))) or ("", ""))
    return titles


def _check_titles(count: int, given, class_names, class_index, labels) -> None:
    if given is not None and (given.ndim != 2 or len(given) != count):
        raise ArgumentError(f"Expected a row of probabilities for each image. {received(probabilities=given.shape)}")
    if labels is not None and len(labels) != count:
        raise ArgumentError(f"Expected a label for each of the {count} images. {received(labels=len(labels))}")
    if class_index is not None and np.shape(class_index) not in ((), (count,)):
        expected = f"Expected one class, or one for each of the {count} images."
        raise ArgumentError(f"{expected} {received(class_index=class_index)}")
    known = {len(one) for one in (class_names, None if given is None else given[0]) if one is not None}
    if len(known) > 1:
        columns = received(columns=given.shape[1], class_names=class_names)
        raise ArgumentError(f"Expected a class name for each column. {columns}")
    asked = [one for one in (class_index, labels) if one is not None and known]
    if any(np.min(one) < 0 or np.max(one) >= min(known) for one in asked):
        classes = received(class_index=class_index, labels=labels)
        raise ArgumentError(f"Expected classes from 0 to {min(known) - 1}. {classes}")


def under_heat(picture, heat) -> np.ndarray:
    """Return the image, RGB 0–255, in grey, the more covered by the colour of its heat the greater that is; RGB in 0–1."""
    from matplotlib import colormaps

    heat = np.clip(np.nan_to_num(heat), 0, 1)[..., None]
    grey = picture.mean(axis=-1, keepdims=True) / 255
    cover = 0.75 * heat
    return np.clip((1 - cover) * grey + cover * colormaps[_COLOURS](heat[..., 0])[..., :3], 0, 1)


def _pairs(axes, count: int, shape: float, lines: int) -> np.ndarray:
    """Return axes `(count, 2)`: one pair in a row, or two where there are several."""
    across = 1 if count == 1 else 2
    side = 2.5 if across == 1 else 2.2  # inches
    height = math.ceil(count / across) * (side * min(shape, 2.0) + 0.1 + 0.17 * lines)
    options = {"figsize": (2 * across * side + 0.8, max(1.4, height)), "layout": "compressed"}
    return panels_of(axes, 2 * count, "two for each image", columns=2 * across, **options).reshape(count, 2)
