"""Gradient norms against depth, of one model or of several side by side."""

import numpy as np

from kerastl.checks import received
from kerastl.errors import ArgumentError
from kerastl.evaluation.plots.drawing import INK, QUIET, draw_grid, label_left_edge, panels_of, round_ticks, shorten

_KERNELS, _NORMALIZATION, _BROKEN = "#1565c0", "#8b98a5", "#d9480f"

# With more layers than these their names would not be legible
_NAMED_LAYERS = 12


def plot_gradient_norms(norms, *, axes=None):
    """Plot the gradient's norm against depth, on a logarithmic scale: a straight fall towards the input is one that vanishes.

    Layers with kernels are joined by a line; normalization, whose gradients have another scale, stands beside it. Norms
    of exactly zero, which a logarithmic scale has no place for, are marked at the lower edge, NaN and infinity at the upper.

    Args:
        norms: what `gradient_norms` or `diagnose_depth` returned; to compare several models, a dictionary `{name: that}`.
        axes: matplotlib axes to draw on, one per model. Without them a figure is made.

    Returns:
        The axes; for a dictionary an array of them, one per model, with a common scale.

    Raises:
        ArgumentError: nothing to plot, something else, or fewer axes than models.

    Example:
        >>> axes = kerastl.plot_gradient_norms(kerastl.gradient_norms(model, images, labels))
        >>> axes.get_yscale()
        'log'
    """
    models = {name: _rows(one) for name, one in (norms if isinstance(norms, dict) else {None: norms}).items()}
    if not models:
        raise ArgumentError(f"Expected the gradient norms of at least one model. {received(norms=norms)}")
    panels = panels_of(axes, len(models), "one for each model", figsize=(1.2 + 4.4 * len(models), 3.9))
    lowest, highest = _limits([row.gradient_norm for rows in models.values() for row in rows])
    for panel, (name, rows) in zip(panels, models.items(), strict=True):
        _draw(panel, rows)
        panel.set_yscale("log")
        panel.set_ylim(lowest, highest)
        panel.tick_params(axis="y", which="minor", left=False)
        if name is not None:
            panel.set_title(shorten(name, 44), fontsize=10.5, color=INK)
    label_left_edge(panels, "L2 norm of the gradient")
    return panels if isinstance(norms, dict) else panels[0]


def _rows(norms) -> list:
    rows = getattr(norms, "norms", norms)  # a diagnosis holds them
    rows = list(rows) if isinstance(rows, (list, tuple)) else []
    if rows and all(hasattr(row, "gradient_norm") and hasattr(row, "layer") for row in rows):
        return rows
    raise ArgumentError(
        "Expected what `kerastl.gradient_norms` or `kerastl.diagnose_depth` returned, or a dictionary of those by name. "
        f"{received(norms=type(norms).__name__)}"
    )


def _limits(values) -> tuple[float, float]:
    """Return limits around what can be drawn, with room at the edges for marks of what can't."""
    logs = np.log10([value for value in values if np.isfinite(value) and value > 0])
    low, high = (logs.min(), logs.max()) if len(logs) else (-6, 0)
    room = max(0.35, 0.07 * (high - low))
    return float(10.0 ** max(low - room, -307)), float(10.0 ** min(high + room, 307))


def _draw(panel, rows) -> None:
    depths = np.arange(1, len(rows) + 1)
    values = np.array([float(row.gradient_norm) for row in rows])
    is_normal = np.array(["Normalization" in row.kind for row in rows])
    drawable = np.isfinite(values) & (values > 0)
    if not is_normal.all():
        kernels = np.where(drawable, values, np.nan)[~is_normal]  # a gap where nothing can be drawn
        line = {"marker": "o", "markersize": 3.8, "linewidth": 1.4, "color": _KERNELS}
        panel.plot(depths[~is_normal], kernels, label="layers with kernels", zorder=3, **line)
    if is_normal.any():
        chosen = is_normal & drawable
        dots = {"marker": "o", "linestyle": "none", "markersize": 3.6, "markerfacecolor": "white"}
        panel.plot(depths[chosen], values[chosen], color=_NORMALIZATION, label="normalization", zorder=2, **dots)
    edge = {"transform": panel.get_xaxis_transform(), "clip_on": False, "zorder": 4, "color": _BROKEN, "markersize": 5}
    for what, chosen, height, marker in (
        ("exactly zero", values == 0, 0.03, "v"),
        ("NaN or infinite", ~np.isfinite(values), 0.97, "x"),
    ):
        if count := int(chosen.sum()):
            label = f"{what}: {count} layer{'s' * (count > 1)}"
            panel.plot(depths[chosen], np.full(count, height), marker, label=label, **edge)
    _label(panel, rows)


def _label(panel, rows) -> None:
    count = len(rows)
    panel.set_xlim(1 - max(0.5, 0.02 * count), count + max(0.5, 0.02 * count))
    if count <= _NAMED_LAYERS:
        names = [shorten(row.layer.rpartition("/")[2], 22) for row in rows]
        slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor", "fontsize": 8.5}
        panel.set_xticks(range(1, count + 1), names, **slant)
    else:
        panel.set_xticks(round_ticks(count))
        panel.set_xlabel("layer, counted from the input", color=QUIET)
    draw_grid(panel, "y")
    panel.legend(frameon=False, fontsize=8.5, loc="best")
