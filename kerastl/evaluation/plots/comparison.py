"""Backbones compared: published accuracy, and multiply-accumulates, against measured time."""

import itertools
import math

import numpy as np

from kerastl.checks import check_choice
from kerastl.errors import ArgumentError
from kerastl.evaluation.plots.drawing import INK, QUIET, given_axes, new_figure

_POINTS = "#1565c0"

# Where a name may stand beside its point: distances in points, and directions, those first that read best
_DISTANCES = (7, 12, 18, 26, 36, 48, 64)
_DIRECTIONS = (0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240)


def plot_comparison(comparison, *, precision: str = "float32", threads: int = 1, axes=None):
    """Plot ImageNet accuracy against latency, and MACs against latency: they don't agree on which backbone is cheap.

    Bars across the points are the quartiles of the latency. The dashed line of the second panel is where all points would
    lie if time were proportional to MACs, at the median speed of those shown. Axes are logarithmic where the largest value is
    more than eight times the smallest.

    Args:
        comparison: what `compare_backbones` returned.
        precision: `"float32"` or `"int8"`.
        threads: one of the comparison's numbers of threads.
        axes: two matplotlib axes to draw on. Without them a figure is made.

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
    if axes is None:
        axes = new_figure(figsize=(11.5, 4.6)).subplots(1, 2)
    axes = given_axes(axes, 2, "for accuracy and for MACs")
    judged = [row for row in rows if row.top1 is not None]
    latencies = {row.name: row.latency[precision, threads] for row in rows}
    _draw_points(axes[0], judged, latencies, [row.top1.percent for row in judged])
    axes[0].set_ylabel("ImageNet top-1, published, %")
    _draw_points(axes[1], rows, latencies, [row.macs / 1e6 for row in rows])
    _draw_proportional(axes[1], rows, latencies)
    axes[1].set_ylabel("multiply-accumulates, millions")
    what = f"one image, {precision}, {threads} thread{'s' * (threads > 1)}"
    for panel in axes:
        panel.set_xlabel(f"milliseconds for {what}")
    figure = axes[0].figure
    figure.draw_without_rendering()  # places can be told once the layout is settled
    _name_points(axes[0], judged, latencies, [row.top1.percent for row in judged])
    _name_points(axes[1], rows, latencies, [row.macs / 1e6 for row in rows])
    return figure


def _draw_points(panel, rows, latencies, heights) -> None:
    times = [1000 * latencies[row.name].median for row in rows]
    spread = [
        [1000 * (latencies[row.name].median - latencies[row.name].lower) for row in rows],
        [1000 * (latencies[row.name].upper - latencies[row.name].median) for row in rows],
    ]
    panel.errorbar(times, heights, xerr=spread, fmt="o", color=_POINTS, ecolor=QUIET, elinewidth=1.2, markersize=6)
    panel.margins(x=0.16, y=0.12)
    if _is_wide(times):
        _make_logarithmic(panel.xaxis)
    else:
        panel.set_xlim(left=0)
    panel.grid(color="#e3e7eb", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _is_wide(values) -> bool:
    return max(values) > 8 * min(values)


def _make_logarithmic(axis) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw_proportional(panel, rows, latencies) -> None:
    """Draw MACs in proportion to time, at the median speed of all."""
    millions = [row.macs / 1e6 for row in rows]
    if _is_wide(millions):
        _make_logarithmic(panel.yaxis)
    else:
        panel.set_ylim(bottom=0)
    times = [1000 * latencies[row.name].median for row in rows]
    speed = np.median(np.array(millions) / times)
    limits = panel.get_xlim(), panel.get_ylim()
    line = np.geomspace(max(limits[0][0], 1e-3 * limits[0][1]), limits[0][1], 100)
    panel.plot(line, speed * line, "--", color=QUIET, linewidth=1, label="time proportional to MACs")
    panel.set_xlim(limits[0])
    panel.set_ylim(limits[1])
    panel.legend(loc="upper left", frameon=False, fontsize=9)


def _name_points(panel, rows, latencies, heights) -> None:
    """Write each backbone's name beside its point, where nothing else stands."""
    pixels = panel.figure.dpi / 72
    points = [(1000 * latencies[row.name].median, height) for row, height in zip(rows, heights, strict=True)]
    taken = _taken(panel, rows, latencies, points, pixels)
    for row, point in zip(rows, points, strict=True):
        place = panel.transData.transform(point)
        style = {"fontsize": 8.5, "color": INK, "ha": "center", "va": "center"}
        probe = panel.annotate(row.name, (0, 0), xycoords="figure pixels", **style)
        extent = probe.get_window_extent()
        probe.remove()
        half = extent.width / 2 + pixels, extent.height / 2
        x, y, distance, box = _free_place(place, half, pixels, taken, panel.bbox.extents)
        taken.append(box)
        line = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        line = line if distance > _DISTANCES[1] else None
        offset = (x / pixels, y / pixels)
        text = panel.annotate(row.name, point, xytext=offset, textcoords="offset points", arrowprops=line, **style)
        text.set_in_layout(False)


def _taken(panel, rows, latencies, points, pixels) -> list:
    """Return boxes, in pixels, that no name should cover: points, bars, the dashed line, the legend."""
    taken = []
    for row, (_, height) in zip(rows, points, strict=True):
        ends = [(1000 * time, height) for time in (latencies[row.name].lower, latencies[row.name].upper)]
        (left, y), (right, _) = panel.transData.transform(ends)
        taken.append((left - pixels, y - 4 * pixels, right + pixels, y + 4 * pixels))
        taken.append(
            _box(panel.transData.transform((1000 * latencies[row.name].median, height)), 0, 0, *[4 * pixels] * 2)
        )
    for line in panel.lines:
        if line.get_linestyle() == "--":
            places = panel.transData.transform(np.column_stack(line.get_data()))
            between = [place for ends in itertools.pairwise(places) for place in np.linspace(*ends, 8)]
            taken += [_box(place, 0, 0, pixels, pixels) for place in between]
    legend = panel.get_legend()
    return taken if legend is None else [*taken, legend.get_window_extent().extents]


def _free_place(point, half, pixels, taken, inside):
    """Return offset, distance and box of the first place around a point that overlaps nothing; else of the least bad."""
    best = None
    for distance in _DISTANCES:
        for direction in _DIRECTIONS:
            across, up = math.cos(math.radians(direction)), math.sin(math.radians(direction))
            # measured from the label's edge, so that long names don't cover the point
            x = across * (distance * pixels + half[0])
            y = up * (distance * pixels + half[1])
            box = _box(point, x, y, *half)
            overlap = sum(_overlap(box, other) for other in taken) + _outside(box, inside)
            if best is None or overlap < best[0]:
                best = overlap, x, y, distance, box
            if not overlap:
                return best[1:]
    return best[1:]


def _box(point, x, y, half_width, half_height):
    return (
        point[0] + x - half_width,
        point[1] + y - half_height,
        point[0] + x + half_width,
        point[1] + y + half_height,
    )


def _overlap(one, other) -> float:
    """Return the area that two boxes `(left, bottom, right, top)` share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box, inside) -> float:
    """Return how much of a box lies outside another."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, inside)
