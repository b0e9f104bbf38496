"""How well labels and numbers were told: average precision label by label, and predicted numbers against true ones."""

import numpy as np

from kerastl.evaluation.plots.drawing import INK, QUIET, draw_grid, panels_of, shorten

_LABELS_SHOWN = 60
_BARS, _LINE = "#1565c0", "#d9480f"


def plot_label_scores(rows: list[dict], count: int, *, axes=None):
    """Plot the average precision of each label as a bar, the highest at the top, beside what guessing would reach.

    Of more than 60 labels the lowest are shown. `rows` are what `evaluate(...).to_rows()` returned for several labels an
    image, `count` is the number of images. Returns the figure.
    """
    # In the picture they go upwards; what no image has stands at the bottom
    known = sorted(rows, key=lambda row: -1 if row["average_precision"] is None else row["average_precision"])
    shown = known[:_LABELS_SHOWN]
    names = [shorten(row["name"], 28) for row in shown]
    size = (5.6 + 0.075 * max(map(len, names)), 1.2 + 0.25 * len(shown))
    [panel] = panels_of(axes, 1, "for the bars", figsize=size)
    places, values = np.arange(len(shown)), [row["average_precision"] or 0 for row in shown]
    panel.barh(places, values, height=0.7, color=_BARS)
    shares = [row["support"] / count for row in shown]
    panel.vlines(shares, places - 0.42, places + 0.42, color=_LINE, linewidth=1.6, label="guessing")
    for place, row in enumerate(shown):
        value = row["average_precision"]
        said = "no image has it" if value is None else f"{value:.2f}"
        panel.text((value or 0) + 0.012, place, said, va="center", fontsize=8, color=INK)
    panel.set_yticks(places, names, fontsize=8.5)
    few = f", the lowest {len(shown)} of {len(rows)} labels" if len(shown) < len(rows) else ""
    panel.set(xlim=(0, 1.1), ylim=(-0.6, len(shown) - 0.4), xlabel=f"average precision{few}")
    panel.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    panel.tick_params(length=2)
    draw_grid(panel, "x")
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)
    return panel.figure


def plot_numbers(labels, outputs, names, *, axes=None):
    """Plot predicted numbers against true ones, both `(images, numbers)`, a panel for each number; return the figure."""
    columns = min(3, len(names))
    size = (4.4 * columns, 4.3 * -(-len(names) // columns))
    panels = panels_of(axes, len(names), "one for each number", columns=columns, figsize=size)
    for panel, name, true, said in zip(panels, names, np.transpose(labels), np.transpose(outputs), strict=True):
        low, high = min(true.min(), said.min()), max(true.max(), said.max())
        room = 0.05 * (high - low) or 1.0
        limits = (low - room, high + room)
        panel.plot(limits, limits, color=QUIET, linestyle="--", linewidth=1, label="equal")
        dots = {"s": 22, "alpha": 0.6 if len(true) < 500 else 0.25, "linewidths": 0}
        panel.scatter(true, said, color=_BARS, **dots)
        name = shorten(name, 28)
        panel.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"true {name}", ylabel=f"predicted {name}")
        panel.locator_params(nbins=6)
        draw_grid(panel)
        panel.legend(loc="upper left", frameon=False, fontsize=9)
    return panels[0].figure
