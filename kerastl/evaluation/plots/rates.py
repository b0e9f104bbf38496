"""What `find_learning_rate` found: the loss after short runs against their rate."""

import math

from kerastl.checks import received
from kerastl.errors import ArgumentError
from kerastl.evaluation.plots.drawing import QUIET, draw_grid, panels_of

_RUNS, _SUGGESTED = "#1565c0", "#d9480f"


def plot_learning_rates(result, *, axes=None):
    """Plot the validation loss after each short run against its peak learning rate, and the suggestion.

    The bars are standard errors of the difference to the lowest loss. The dashed line is the head alone. Runs that diverged
    are crosses at the upper edge.

    Args:
        result: what `find_learning_rate` returned.
        axes: matplotlib axes to draw on. Without them a figure is made.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: something else, or no axes.

    Example:
        >>> result = kerastl.find_learning_rate(model, train, validation, rates=[1e-4, 1e-3], steps=5, verbose=0)
        >>> kerastl.plot_learning_rates(result).savefig("rates.png")
    """
    if not all(hasattr(result, name) for name in ("runs", "suggestion", "start")):
        raise ArgumentError(
            f"Expected what `kerastl.find_learning_rate` returned. {received(result=type(result).__name__)}"
        )
    [panel] = panels_of(axes, 1, "for the rates", figsize=(5.6, 3.9))
    whole = [one for one in result.runs if math.isfinite(one.loss)]
    broken = [one.learning_rate for one in result.runs if not math.isfinite(one.loss)]
    rates, losses, errors = zip(*((one.learning_rate, one.loss, one.error) for one in whole), strict=True)
    panel.errorbar(rates, losses, errors, color=_RUNS, marker="o", markersize=4, elinewidth=1, capsize=2)
    panel.axhline(result.start, color=QUIET, linestyle="--", linewidth=1, label="the head alone")
    panel.axvline(result.suggestion, color=_SUGGESTED, linewidth=1.4, label=f"suggestion {result.suggestion:.1e}")
    if broken:
        places = {"transform": panel.get_xaxis_transform(), "clip_on": False}
        panel.plot(broken, [1.0] * len(broken), "x", color=_SUGGESTED, label="diverged", **places)
    panel.set_xscale("log")
    panel.set_xlabel("peak learning rate", color=QUIET)
    panel.set_ylabel(f"validation loss after {result.steps} steps")
    draw_grid(panel)
    panel.legend(frameon=False, fontsize=8.5)
    return panel.figure
