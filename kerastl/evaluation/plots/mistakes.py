"""The most confident mistakes."""

import math

import numpy as np

from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError, DataError
from kerastl.evaluation.measures import most_confident_mistakes
from kerastl.evaluation.plots.drawing import FRAME, INK, QUIET, empty_figure, new_figure, percent, shorten


def plot_mistakes(images, labels, probabilities, class_names, *, names=None, count: int = 12):
    """Plot the images that were classified wrongly with the greatest confidence, the most confident first.

    They show wrong labels, look-alike classes and what the model doesn't look at, faster than any figure does.

    Args:
        images: pixels 0-255, `(n, height, width, 3)`, or a list of `(height, width, 3)`.
        labels: the true classes as integers, `(n,)`.
        probabilities: outputs of the model, `(n, classes)`.
        class_names: one name per class.
        names: a caption for each image, such as its file name.
        count: how many to show at most.

    Returns:
        The `matplotlib.figure.Figure`; where nothing was mistaken it says so.

    Raises:
        ArgumentError: the lengths don't fit together.
    """
    check_count("count", count)
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    _check_lengths(images, labels, probabilities, class_names, names)
    chosen = most_confident_mistakes(labels, probabilities, count)
    if not len(chosen):
        return empty_figure(f"No mistakes among {len(labels)} image{'s' * (len(labels) != 1)}.")
    columns = min(4, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = new_figure(figsize=(2.5 * columns, 3.05 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, index in zip(panels, chosen, strict=False):
        caption = names[index] if names is not None else None
        _draw_mistake(panel, images[index], labels[index], probabilities[index], class_names, caption)
    for panel in panels[len(chosen) :]:
        panel.set_axis_off()
    return figure


def _check_lengths(images, labels, probabilities, class_names, names) -> None:
    lengths = {"images": len(images), "labels": len(labels), "probabilities": len(probabilities)}
    if names is not None:
        lengths["names"] = len(names)
    if len(set(lengths.values())) > 1:
        raise ArgumentError(f"Expected as many of each. {received(**lengths)}")
    if probabilities.ndim != 2 or (len(labels) and probabilities.shape[1] != len(class_names)):
        raise ArgumentError(
            "Expected a column of probabilities for each class name. "
            f"{received(probabilities=probabilities.shape, class_names=len(class_names))}"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(class_names)):
        raise DataError(f"Expected labels from 0 to {len(class_names) - 1}. {received(largest=int(labels.max()))}")


def _draw_mistake(panel, image, label, probabilities, class_names, caption) -> None:
    panel.imshow(np.clip(np.asarray(image), 0, 255).astype("uint8"))
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_color(FRAME)
    called = int(probabilities.argmax())
    said = f"predicted {shorten(class_names[called], 17)}, {percent(probabilities[called])}"
    true = f"true class {shorten(class_names[label], 17)}, {percent(probabilities[label])}"
    panel.set_title(f"{said}\n{true}", fontsize=8.5, loc="left", color=INK)
    if caption:
        panel.set_xlabel(shorten(caption, 30), fontsize=7.5, color=QUIET)
