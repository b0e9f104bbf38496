"""Whether probabilities are true: how often a model was right against how sure it was."""

import numpy as np

from kerastl.evaluation.calibration import BINS, Calibration, reliability
from kerastl.evaluation.plots.drawing import QUIET, draw_grid, panels_of


def plot_reliability(found, labels=None, *, bins: int = BINS, axes=None):
    """Plot how often a model was right against how sure it was, in bins; bars on the dashed line are honest.

    Bars below the line: it is too sure. The share of all images in each bin is drawn as a step near the bottom.

    Args:
        found: what `calibrate` returned, for a panel before and one after; or probabilities, `(count, classes)`, with
            `labels`, the true classes `(count,)`; or those of labels, both `(count, labels)`.
        bins: of equal width, for probabilities.
        axes: to draw on, one or two.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        DataError: probabilities and labels that don't fit each other.

    Example:
        >>> found = kerastl.predict(model, images)
        >>> kerastl.plot_reliability(found.probabilities, labels).savefig("reliability.png")
    """
    if isinstance(found, Calibration):
        curves = {"before": found.before, "after": found.after}
    else:
        curves = {"": reliability(found, labels, bins)}
    panels = panels_of(axes, len(curves), "one for each panel", figsize=(4.2 * len(curves), 4.0))
    for panel, (when, curve) in zip(panels, curves.items(), strict=True):
        _draw(panel, curve)
        panel.set_title(f"{when + ': ' if when else ''}calibration error {curve.error:.3f}", loc="left", fontsize=10)
    panels[0].set_ylabel("share that is right")
    return panels[0].figure


def _draw(panel, curve) -> None:
    edges = np.linspace(0, 1, len(curve.count) + 1)
    filled = curve.count > 0
    panel.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1)
    width = 0.9 / len(curve.count)
    middles = (edges[:-1] + edges[1:]) / 2
    panel.bar(middles[filled], curve.accuracy[filled], width=width, color="#1565c0", alpha=0.75)
    dots = {"color": "#d9480f", "markersize": 4, "label": "mean of a bin"}
    panel.plot(curve.confidence[filled], curve.accuracy[filled], "o", **dots)
    panel.stairs(curve.count / curve.count.sum(), edges, color=QUIET, linewidth=1, label="share of the images")
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="how sure")
    draw_grid(panel)
    panel.legend(loc="upper left", frameon=False, fontsize=9)
