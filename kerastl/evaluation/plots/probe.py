"""What `probe` found: which block knows most, and what more photographs would bring."""

import numpy as np

from kerastl.checks import received
from kerastl.errors import ArgumentError
from kerastl.evaluation.plots.drawing import INK, QUIET, draw_grid, panels_of, shorten

_LINEAR, _NEIGHBOURS, _HELD, _JOINED = "#1565c0", "#8b98a5", "#2e7d32", "#d9480f"


def plot_probe(result, *, axes=None):
    """Plot the scores of a probe over the backbone's blocks, and beside them over the number of training images.

    A dashed line is that of several blocks side by side, where they were tried. Bars of the learning curve are the standard
    deviation of several draws.

    Args:
        result: what `probe` returned.
        axes: two matplotlib axes to draw on. Without them a figure is made.

    Returns:
        The figure.

    Raises:
        ArgumentError: something else, or fewer axes.

    Example:
        >>> kerastl.plot_probe(kerastl.probe(model, data, verbose=0)).savefig("probe.png")
    """
    if not all(hasattr(result, name) for name in ("rows", "curve", "measured")):
        raise ArgumentError(f"Expected what `kerastl.probe` returned. {received(result=type(result).__name__)}")
    blocks, learning = panels_of(axes, 2, "for the blocks and the learning curve", figsize=(11.5, 4.4))
    what = "R²" if result.task == "regression" else "accuracy"
    _draw_blocks(blocks, result, what)
    _draw_curve(learning, result, what)
    return blocks.figure


def _draw_blocks(panel, result, what: str) -> None:
    single = [row for row in result.rows if " + " not in row.name]
    places = np.arange(len(single))
    options = {"marker": "o", "markersize": 4, "linewidth": 1.4}
    panel.plot(places, [row.neighbours for row in single], color=_NEIGHBOURS, label="nearest neighbours", **options)
    panel.plot(places, [row.linear for row in single], color=_LINEAR, label="linear, cross-validated", **options)
    if result.measured == "validation":
        held = [row.validation for row in single]
        panel.plot(places, held, color=_HELD, label="linear, on validation images", **options)
    for row in result.rows[len(single) :]:
        style = {"color": _JOINED, "linestyle": "--", "linewidth": 1.4}
        panel.axhline(row.linear, label=f"best {row.name.count(' + ') + 1} side by side", **style)
    slant = {"rotation": 55, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}
    every = -(-len(single) // 30)  # more names would not be legible
    panel.set_xticks(places[::every], [shorten(row.name, 20) for row in single[::every]], **slant)
    panel.set_ylabel(what)
    panel.set_title("what each block knows", fontsize=10.5, color=INK)
    draw_grid(panel)
    panel.legend(loc="lower right", frameon=False, fontsize=8.5)


def _draw_curve(panel, result, what: str) -> None:
    images, scores = [one.images for one in result.curve], [one.score for one in result.curve]
    spreads = [one.spread or 0 for one in result.curve]
    panel.errorbar(images, scores, yerr=spreads, color=_LINEAR, marker="o", markersize=4, linewidth=1.4, capsize=3)
    panel.set_xscale("log", base=2)
    panel.set_xticks(images, [str(one) for one in images])
    panel.minorticks_off()
    panel.set_xlabel("training images", color=QUIET)
    panel.set_ylabel(what)
    panel.set_title(result.advice, fontsize=9, color=INK, wrap=True)
    draw_grid(panel)
