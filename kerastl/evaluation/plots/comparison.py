"""Backbones compared: published accuracy, accuracy on one's own images, and multiply-accumulates, against measured time."""

import numpy as np

from kerastl.checks import check_choice
from kerastl.errors import ArgumentError
from kerastl.evaluation.plots.drawing import FRAME, INK, QUIET, draw_grid, panels_of

_POINTS, _CHOSEN = "#1565c0", "#d9480f"

# Where a name may stand beside its point: distance in points, and direction; those first that read best
_DIRECTIONS = np.radians([0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240])
_PLACES = [
    (distance, np.array([np.cos(turn), np.sin(turn)]))
    for distance in (7, 12, 18, 26, 36, 48, 64)
    for turn in _DIRECTIONS
]


def plot_comparison(comparison, *, precision: str = "float32", threads: int = 1, axes=None):
    """Plot what was compared against latency: published accuracy and MACs, or the accuracy on one's own images.

    Of a `choose_backbone` there is one panel: upright bars are standard errors, the dashed line joins the Pareto front, whose
    names are bold, and a ring marks the recommended backbone. Of a `compare_backbones` there are two, ImageNet accuracy and
    MACs against latency: they don't agree on which backbone is cheap.

    Bars across the points are the quartiles of the latency. The dashed line is where all points would lie if time were
    proportional to MACs, at the median speed of those shown. Axes are logarithmic for values more than eight times apart.

    Args:
        comparison: what `compare_backbones` or `choose_backbone` returned.
        precision: `"float32"` or `"int8"`.
        threads: one of the comparison's numbers of threads.
        axes: two matplotlib axes to draw on, or one of them for `choose_backbone`. Without them a figure is made.

    Returns:
        The `matplotlib.figure.Figure`. Backbones without that latency are left out; those without a published accuracy
        are left out of the first panel.

    Raises:
        ArgumentError: no backbone was timed so, or there are fewer than two axes.
    """
    check_choice("precision", precision, ("float32", "int8"))
    check_choice("threads", threads, comparison.threads)
    rows = [row for row in comparison.rows if (precision, threads) in row.latency]
    if not rows:
        raise ArgumentError(f"No backbone was timed in {precision}: {comparison.rows[0].problems}.")
    if hasattr(comparison, "recommended"):
        return _plot_choice(comparison, rows, precision, threads, axes)
    panels = panels_of(axes, 2, "for accuracy and for MACs", figsize=(11.5, 4.6))
    published = [row for row in rows if row.top1 is not None]
    drawn = []
    for panel, shown, heights in (
        (panels[0], published, [row.top1.percent for row in published]),
        (panels[1], rows, [row.macs / 1e6 for row in rows]),
    ):
        times = _times(shown, precision, threads)
        _draw_points(panel, times, heights)
        _name_time(panel, precision, threads)
        drawn.append((panel, [row.name for row in shown], times, np.array(heights)))
    panels[0].set_ylabel("ImageNet top-1, published, %")
    panels[1].set_ylabel("multiply-accumulates, millions")
    _draw_proportional(panels[1], times[1], heights)
    panels[0].figure.draw_without_rendering()  # places can be told once the layout is settled
    for one in drawn:
        _name_points(*one)
    return panels[0].figure


def _plot_choice(choice, rows, precision, threads, axes):
    """Plot the scores on one's own images against the latency, with the Pareto front and the recommended backbone."""
    (panel,) = panels_of(axes, 1, "for the scores", figsize=(8, 5.2))
    names, times = [row.name for row in rows], _times(rows, precision, threads)
    scores, errors = np.array([choice.scores[name] for name in names]).T
    panel.errorbar(times[1], scores, yerr=errors, fmt="none", ecolor=FRAME, elinewidth=1.2, capsize=3)
    _draw_points(panel, times, scores)
    front, chosen = (
        [index for index, name in enumerate(names) if name in one] for one in (choice.front, [choice.recommended])
    )
    front.sort(key=lambda index: scores[index])
    panel.plot(times[1, front], scores[front], "--", color=QUIET, linewidth=1, label="Pareto front")
    ring = {"s": 190, "facecolors": "none", "edgecolors": _CHOSEN, "linewidths": 1.8, "label": "recommended"}
    panel.scatter(times[1, chosen], scores[chosen], **ring)
    panel.legend(loc="lower right", frameon=False, fontsize=9)
    _name_time(panel, precision, threads)
    panel.set_ylabel(f"{choice.what}, {choice.measured}")
    panel.figure.draw_without_rendering()
    _name_points(panel, names, times, scores, bold=choice.front)
    return panel.figure


def _times(rows, precision, threads) -> np.ndarray:
    """Return lower quartiles, medians and upper quartiles in milliseconds, `(3, rows)`."""
    latencies = [row.latency[precision, threads] for row in rows]
    return 1000 * np.array([(one.lower, one.median, one.upper) for one in latencies]).reshape(-1, 3).T


def _name_time(panel, precision, threads) -> None:
    panel.set_xlabel(f"milliseconds for one image, {precision}, {threads} thread{'s' * (threads > 1)}")


def _draw_points(panel, times, heights) -> None:
    lower, median, upper = times
    spread = [median - lower, upper - median]
    panel.errorbar(median, heights, xerr=spread, fmt="o", color=_POINTS, ecolor=QUIET, elinewidth=1.2, markersize=6)
    panel.margins(x=0.16, y=0.12)
    if not _made_logarithmic(panel.xaxis, median):
        panel.set_xlim(left=0)
    draw_grid(panel)


def _made_logarithmic(axis, values) -> bool:
    """Make the axis of far-apart values logarithmic, with plain numbers at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if max(values, default=0) <= 8 * min(values, default=0):
        return False
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
    return True


def _draw_proportional(panel, times, millions) -> None:
    """Draw MACs in proportion to time, at the median speed of all."""
    if not _made_logarithmic(panel.yaxis, millions):
        panel.set_ylim(bottom=0)
    speed = np.median(np.array(millions) / times)
    limits = panel.get_xlim(), panel.get_ylim()
    line = np.geomspace(max(limits[0][0], 1e-3 * limits[0][1]), limits[0][1], 100)
    panel.plot(line, speed * line, "--", color=QUIET, linewidth=1, label="time proportional to MACs")
    panel.set(xlim=limits[0], ylim=limits[1])
    panel.legend(loc="upper left", frameon=False, fontsize=9)


def _name_points(panel, names, times, heights, bold=()) -> None:
    """Write each backbone's name beside its point, where it covers nothing else, or as little as can be."""
    pixels = panel.figure.dpi / 72
    taken, inside = _taken(panel, times, heights, pixels), panel.bbox.extents[None]
    style = {"fontsize": 8.5, "color": INK, "ha": "center", "va": "center"}
    for name, point in zip(names, zip(times[1], heights, strict=True), strict=True):
        style["weight"] = "bold" if name in bold else "normal"
        probe = panel.annotate(name, (0, 0), xycoords="figure pixels", **style)
        extent = probe.get_window_extent()
        probe.remove()
        half = np.array([extent.width / 2 + pixels, extent.height / 2])
        # measured from the label's edge, so that long names don't cover the point
        places = [(turn * (distance * pixels + half), distance) for distance, turn in _PLACES]
        boxes = [_boxes(panel.transData.transform(point) + offset, half) for offset, _ in places]
        best = np.argmin([_shared(box, taken) + _shared(box, box[None]) - _shared(box, inside) for box in boxes])
        offset, distance = places[best]
        taken = np.vstack([taken, boxes[best]])
        line = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        options = {"textcoords": "offset points", "arrowprops": line if distance > 12 else None, **style}
        panel.annotate(name, point, xytext=offset / pixels, **options).set_in_layout(False)


def _taken(panel, times, heights, pixels) -> np.ndarray:
    """Return boxes, in pixels, that no name should cover: points, bars, the dashed line, the legend."""
    left, middle, right = (panel.transData.transform(np.column_stack([ends, heights])) for ends in times)
    margin = np.array([1, 4]) * pixels
    taken = [_boxes(middle, 4 * pixels), np.hstack([left - margin, right + margin])]
    for line in panel.lines:
        if line.get_linestyle() == "--":
            corners = panel.transData.transform(np.column_stack(line.get_data()))
            taken.append(_boxes(np.linspace(corners[:-1], corners[1:], 8).reshape(-1, 2), pixels))
    legend = panel.get_legend()
    return np.vstack(taken if legend is None else [*taken, legend.get_window_extent().extents])


def _boxes(centres, half) -> np.ndarray:
    """Return `(left, bottom, right, top)` around each centre."""
    return np.hstack([centres - half, centres + half])


def _shared(box, others) -> float:
    """Return the area that a box shares with others, summed."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return np.clip(sides, 0, None).prod(axis=1).sum()
