"""What was taken for what: the confusion matrix, and the most confident mistakes."""

import math

import numpy as np

from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError, DataError
from kerastl.evaluation.measures import most_confident_mistakes
from kerastl.evaluation.plots.drawing import FRAME, INK, QUIET, empty_figure, hide_ticks, panels_of, percent, shorten


def plot_confusion_matrix(matrix, class_names, *, axes=None):
    """Plot how often each class was taken for each other: rows are the true class, columns the predicted one.

    Colour is the share of the true class, so that rare classes are as visible as common ones. Counts are written into
    the cells of up to 25 classes.

    Args:
        matrix: counts, `(classes, classes)`.
        class_names: one name per class.
        axes: matplotlib axes to draw on. Without them a figure is made, whose size follows the number of classes.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: the matrix is not square, or there is not one name per class.

    Example:
        >>> kerastl.plot_confusion_matrix([[8, 1], [0, 9]], ["daisy", "rose"]).savefig("confusion_matrix.png")
    """
    matrix = np.asarray(matrix)
    names = [shorten(name, 24) for name in class_names]
    if matrix.ndim != 2 or matrix.shape != (len(names), len(names)):
        expected = "Expected a square matrix with a row and a column for each class name."
        raise ArgumentError(f"{expected} {received(shape=matrix.shape, class_names=len(names))}")
    count = len(names)
    per_class = 0.75 if count <= 6 else 0.5 if count <= 14 else 0.36 if count <= 25 else 0.165
    inches = min(max(2.2, per_class * count), 20.0)
    margin = 0.8 + 0.075 * max(map(len, names), default=0)
    # "compressed" is the layout for pictures of a fixed shape; "constrained" cuts their labels off
    options = {"figsize": (inches + margin + 0.9, inches + margin), "layout": "compressed"}
    [axes] = panels_of(axes, 1, "for the matrix", **options)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # The square root makes a few per cent of mistakes visible beside a dark diagonal
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    _label_matrix(axes, names, inches / count)
    if count <= 25:
        _write_counts(axes, matrix, shares)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=max(20, 5 * inches))
    bar.set_ticks(np.sqrt([0, 0.05, 0.25, 0.5, 0.75, 1]), labels=["0", "5 %", "25 %", "50 %", "75 %", "100 %"])
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return axes.figure


def _label_matrix(axes, names: list[str], cell: float) -> None:
    step = max(1, math.ceil(0.13 / cell))
    places, shown = range(0, len(names), step), names[::step]
    size = min(10.0, max(6.0, cell * 72 * 0.62))
    axes.set_yticks(places, shown, fontsize=size)
    fits = max(map(len, shown), default=0) * size * 0.6 < cell * 72 * step
    anchor = {"ha": "center"} if fits else {"ha": "right", "rotation": 40, "rotation_mode": "anchor"}
    if not fits and len(names) > 14:
        anchor.update(rotation=90, va="center")
    axes.set_xticks(places, shown, fontsize=size, **anchor)
    axes.tick_params(length=2)
    if len(names) > 6:
        edges = np.arange(len(names) + 1) - 0.5
        for draw in (axes.vlines, axes.hlines):
            draw(edges, edges[0], edges[-1], color="#e3e9f0", linewidth=0.4)
    axes.set(xlabel="predicted", ylabel="true")
    axes.spines[:].set_color(FRAME)


def _write_counts(axes, matrix, shares) -> None:
    few = len(matrix) <= 6
    style = {"ha": "center", "va": "center", "fontsize": 11 if few else 9 if len(matrix) <= 14 else 7}
    for (row, column), value in np.ndenumerate(matrix):
        if value or few:
            share = shares[row, column]
            below = f"\n{100 * share:.0f} %" if few and matrix[row].sum() else ""
            axes.text(column, row, f"{value:g}{below}", color="white" if share > 0.35 else INK, **style)


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

    Example:
        >>> found = kerastl.predict(model, images)
        >>> kerastl.plot_mistakes(images, labels, found.probabilities, data.class_names).savefig("mistakes.png")
    """
    check_count("count", count)
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    _check_lengths(images, labels, probabilities, class_names, names)
    chosen = most_confident_mistakes(labels, probabilities, count)
    if not len(chosen):
        return empty_figure(f"No mistakes among {len(labels)} image{'s' * (len(labels) != 1)}.")
    titles = [_mistake_title(labels[index], probabilities[index], class_names) for index in chosen]
    captions = [names[index] if names is not None else None for index in chosen]
    return plot_images([images[index] for index in chosen], titles, captions)


def plot_images(images, titles, captions):
    """Plot images in rows of four, each below its title and above its caption (or `None`); return the figure."""
    columns = min(4, len(images))
    figsize = (2.5 * columns, 3.05 * math.ceil(len(images) / columns))
    panels = panels_of(None, len(images), "one for each image", columns=columns, figsize=figsize)
    for panel, image, title, caption in zip(panels, images, titles, captions, strict=True):
        panel.imshow(np.clip(np.asarray(image), 0, 255).astype("uint8"))
        hide_ticks(panel)
        panel.set_title(title, fontsize=8.5, loc="left", color=INK)
        if caption:
            panel.set_xlabel(shorten(caption, 30), fontsize=7.5, color=QUIET)
    return panels[0].figure


def _check_lengths(images, labels, probabilities, class_names, names) -> None:
    given = {"images": images, "labels": labels, "probabilities": probabilities, "names": names}
    lengths = {name: len(one) for name, one in given.items() if one is not None}
    if len(set(lengths.values())) > 1:
        raise ArgumentError(f"Expected as many of each. {received(**lengths)}")
    if probabilities.ndim != 2 or (len(labels) and probabilities.shape[1] != len(class_names)):
        shapes = received(probabilities=probabilities.shape, class_names=len(class_names))
        raise ArgumentError(f"Expected a column of probabilities for each class name. {shapes}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(class_names)):
        raise DataError(f"Expected labels from 0 to {len(class_names) - 1}. {received(largest=int(labels.max()))}")


def _mistake_title(label, probabilities, class_names) -> str:
    called = int(probabilities.argmax())
    said = f"predicted {shorten(class_names[called], 17)}, {percent(probabilities[called])}"
    true = f"true class {shorten(class_names[label], 17)}, {percent(probabilities[label])}"
    return f"{said}\n{true}"
