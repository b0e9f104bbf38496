"""Feature maps and filters, channel by channel."""

import math

import numpy as np

from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError
from kerastl.evaluation.plots.drawing import QUIET, colour_bar, hide_ticks, panels_of

_COLUMNS = 8
_WEIGHTS = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "interpolation": "nearest"}
_SMALL_TITLE = {"fontsize": 7, "color": QUIET, "pad": 2}


def plot_feature_maps(maps, *, image: int = 0, channels=None, count: int = 32, axes=None):
    """Plot the feature maps of one image, a panel for each channel, all on one scale of colours.

    Maps with negative values (before a ReLU) are drawn in two colours that meet in white at zero.

    Args:
        maps: what `kerastl.feature_maps` returned, `(batch, height, width, channels)`, or one image's of it.
        image: which image of the batch.
        channels: indexes of the channels to show; default: the first `count`.
        count: how many to show at most.
        axes: matplotlib axes to draw on, one per channel shown. Without them a figure is made.

    Returns:
        The axes, one per channel, in an array.

    Raises:
        ArgumentError: an array of another shape, an image or channel that there isn't, too few axes.

    Example:
        >>> maps = kerastl.feature_maps(model, images[:1], "block2_conv")
        >>> kerastl.plot_feature_maps(maps, count=4).shape
        (4,)
    """
    count = check_count("count", count)
    maps = np.asarray(maps, "float32")
    if maps.ndim not in (3, 4) or not maps.size:
        raise ArgumentError(f"Expected feature maps (batch, height, width, channels). {received(shape=maps.shape)}")
    if maps.ndim == 4:
        maps = maps[check_count("image", image, smallest=0, largest=len(maps) - 1)]
    chosen = _chosen(channels, maps.shape[-1], count)
    finite = maps[..., chosen][np.isfinite(maps[..., chosen])]
    limit = float(np.percentile(np.abs(finite), 99.8)) if finite.size else 0.0
    signed = bool((finite < 0).any())
    colours = {"cmap": "RdBu_r", "vmin": -(limit or 1)} if signed else {"cmap": "viridis", "vmin": 0}
    panels = _grid(axes, len(chosen), "one for each channel", shape=np.divide(*maps.shape[:2]))
    for panel, channel in zip(panels, chosen, strict=True):
        drawn = panel.imshow(maps[..., channel], vmax=limit or 1, interpolation="nearest", **colours)
        panel.set_title(str(channel), **_SMALL_TITLE)
        hide_ticks(panel)
    colour_bar(panels, drawn, "activation", extend="both" if signed else "max")
    return panels


def plot_filters(filters, *, count: int = 32, axes=None):
    """Plot the filters of a convolution, each divided by its largest weight.

    Filters over RGB are drawn in colour, grey being zero. Depthwise filters, and those over one channel, are drawn in red
    (positive) and blue. Of others there is a row of panels for each of the first filters, with the first input
    channels. Pointwise filters (1×1) have no shape: one panel shows them as a matrix.

    Args:
        filters: what `kerastl.layer_filters` returned, `(height, width, input channels, filters)`.
        count: how many panels to draw at most.
        axes: matplotlib axes to draw on, one per panel. Without them a figure is made.

    Returns:
        The axes in an array.

    Raises:
        ArgumentError: an array of another shape, or too few axes.

    Example:
        >>> kerastl.plot_filters(kerastl.layer_filters(model, "block1_conv")).shape
        (8,)
    """
    count = check_count("count", count)
    filters = np.asarray(filters, "float32")
    if filters.ndim != 4 or not filters.size:
        raise ArgumentError(
            f"Expected filters (height, width, input channels, filters). {received(shape=filters.shape)}"
        )
    if filters.shape[:2] == (1, 1):
        return _plot_matrix(filters[0, 0], axes)
    tiles, columns = _tiles(filters, count)
    panels = _grid(axes, len(tiles), "one for each panel", columns=columns, largest=1.2)
    for panel, (title, tile) in zip(panels, tiles, strict=True):
        drawn = panel.imshow(tile, **_WEIGHTS)
        panel.set_title(title, **_SMALL_TITLE)
        hide_ticks(panel)
    if tiles[0][1].ndim == 2:
        colour_bar(panels, drawn, "weight ÷ largest of the filter")
    return panels


def _tiles(filters, count: int) -> tuple[list[tuple[str, np.ndarray]], int]:
    """Return `(title, picture)` for each panel, RGB in 0–1 or weights in −1…1, and how many stand in a row."""
    inputs, outputs = filters.shape[2:]
    if outputs == 1 < inputs != 3:  # depthwise: each channel has a filter of its own
        filters, inputs, outputs = np.swapaxes(filters, 2, 3), 1, inputs
    scaled = _scaled(filters, axis=(0, 1, 2))
    if inputs == 3:
        return [(str(index), 0.5 + scaled[..., index] / 2) for index in range(min(outputs, count))], _COLUMNS
    if inputs == 1:
        return [(str(index), scaled[:, :, 0, index]) for index in range(min(outputs, count))], _COLUMNS
    across = min(inputs, _COLUMNS, count)
    down = min(outputs, max(1, count // across))
    places = [(row, column) for row in range(down) for column in range(across)]
    return [(f"{row} ← {column}", scaled[:, :, column, row]) for row, column in places], across


def _scaled(weights, axis) -> np.ndarray:
    return weights / np.maximum(np.abs(weights).max(axis=axis, keepdims=True), 1e-12)


def _plot_matrix(matrix, axes):
    tall, wide = matrix.shape
    figsize = (6.4, 1.2 + 5.0 * min(1.4, max(0.25, tall / wide)))
    panels = panels_of(axes, 1, "for the matrix", figsize=figsize)
    drawn = panels[0].imshow(_scaled(matrix, axis=0), aspect="auto", **_WEIGHTS)
    panels[0].set(xlabel="filter", ylabel="input channel")
    colour_bar(panels, drawn, "weight ÷ largest of the filter")
    return panels


def _chosen(channels, available: int, count: int) -> list[int]:
    if channels is None:
        return list(range(min(count, available)))
    chosen = [int(channel) for channel in np.atleast_1d(channels)][:count]
    if chosen and all(0 <= channel < available for channel in chosen):
        return chosen
    raise ArgumentError(f"`channels` must be indexes from 0 to {available - 1}. {received(channels=channels)}")


def _grid(axes, count: int, what: str, *, shape: float = 1.0, columns: int = _COLUMNS, largest: float = 2.4):
    """Return `count` panels in rows of `columns`, each `shape` times as high as wide and at most `largest` inches wide."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(columns, count)
    side = min(largest, 9.2 / columns)
    figsize = (side * columns + 0.9, max(1.4, (side * shape + 0.2) * math.ceil(count / columns)))
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02, compress=True)
    return panels_of(axes, count, what, columns=columns, figsize=figsize, layout=layout)
