"""Pictures of a training run: curves over both phases, the confusion matrix, the most confident mistakes.

Every function returns a `matplotlib.figure.Figure` that belongs to no global state: show it as the last line of a
notebook cell, or write it with `figure.savefig("curves.png")`. Nothing here calls `plt.show` or touches pyplot.
"""

import functools
import io
import math

import numpy as np

from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError, DataError
from kerastl.several_outputs import AUXILIARY

_TRAINING, _VALIDATION, _BEST, _QUIET = "#8b98a5", "#1565c0", "#d9480f", "#5f6b76"
_PHASE_TITLES = {"head": "head", "fine_tune": "fine-tuning", "training": ""}


def plot_history(history, *, axes=None):
    """Plot loss and accuracy of a run: both phases on one axis of epochs, with the time they took above it.

    The boundary between the phases is marked, and so is the best epoch, whose weights were kept. Of a model with auxiliary
    heads the main output's curves are drawn.

    Args:
        history: a `TransferResult`, a Keras `History`, or its dictionary `{"loss": [...], "val_loss": [...], ...}`.
        axes: matplotlib axes to draw on, one per panel (loss, then accuracy). Without them a figure is made.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: `history` holds no epoch, or there are fewer axes than panels.
    """
    phases = _phases_of(history)
    metrics = _panel_metrics(phases)
    if axes is None:
        figure = _new_figure(figsize=(5.6 * len(metrics), 3.9))
        axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    axes = list(np.atleast_1d(axes).ravel())
    if len(axes) < len(metrics):
        raise ArgumentError(f"Expected {len(metrics)} axes, for {' and '.join(metrics)}. {received(axes=len(axes))}")
    best = _best_position(history, phases)
    for metric, panel in zip(metrics, axes, strict=False):
        _draw_curves(panel, phases, metric)
        _mark_phases(panel, phases)
        _mark_best(panel, phases, metric, best)
        _add_time_axis(panel, phases)
        _legend_below(panel)
    return axes[0].figure


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
    """
    matrix = np.asarray(matrix)
    names = [_shorten(name, 24) for name in class_names]
    if matrix.ndim != 2 or matrix.shape != (len(names), len(names)):
        raise ArgumentError(
            "Expected a square matrix with a row and a column for each class name. "
            f"{received(shape=matrix.shape, class_names=len(names))}"
        )
    count = len(names)
    inches = _matrix_inches(count)
    if axes is None:
        margin = 0.8 + 0.075 * max(map(len, names), default=0)
        # "compressed" is the layout for pictures of a fixed shape; "constrained" cuts their labels off
        figure = _new_figure(figsize=(inches + margin + 0.9, inches + margin), layout="compressed")
        axes = figure.subplots()
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


def plot_mistakes(images, labels, probabilities, class_names, *, names=None, count: int = 12):
    """Plot the images that were classified wrongly with the greatest confidence, the most confident first.

    They show wrong labels, look-alike classes and what the model doesn't look at, sooner than any figure does.

    Args:
        images: pixels 0-255, `(n, height, width, 3)`, or a list of `(height, width, 3)`.
        labels: the true classes as integers, `(n,)`.
        probabilities: what the model answered, `(n, classes)`.
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
    figure = _new_figure(figsize=(2.5 * columns, 3.05 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, index in zip(panels, chosen, strict=False):
        caption = names[index] if names is not None else None
        _draw_mistake(panel, images[index], labels[index], probabilities[index], class_names, caption)
    for panel in panels[len(chosen) :]:
        panel.set_axis_off()
    return figure


def most_confident_mistakes(labels, probabilities, count: int) -> np.ndarray:
    """Return the indexes of the wrong answers, the most confident first, at most `count`.

    Args:
        labels: the true classes as integers, `(n,)`.
        probabilities: what the model answered, `(n, classes)`.
        count: how many at most.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if not len(labels):
        return np.zeros(0, dtype=int)
    confidence = np.where(probabilities.argmax(axis=1) == labels, -1.0, probabilities.max(axis=1))
    order = np.argsort(-confidence, kind="stable")
    return order[confidence[order] >= 0][:count]


def empty_figure(text: str):
    """Return a figure that holds nothing but a line of text."""
    figure = _new_figure(figsize=(5, 1.5))
    panel = figure.subplots()
    panel.set_axis_off()
    panel.text(0.5, 0.5, text, ha="center", va="center", fontsize=12)
    return figure


def _new_figure(**options):
    from matplotlib.figure import Figure

    figure = Figure(**{"layout": "constrained", **options})
    # A notebook shows what has a PNG of its own, whether or not pyplot was ever imported in it
    figure._repr_png_ = functools.partial(_as_png, figure)
    return figure


def _as_png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _phases_of(history) -> list[dict]:
    """Return `{"name", "values", "seconds", "start"}` per phase; `start` counts the epochs before it."""
    named = (
        [("head", history.head), ("fine_tune", history.fine_tune)]
        if hasattr(history, "head")
        else [("training", history)]
    )
    phases, start = [], 0
    for name, one in named:
        values = one if isinstance(one, dict) else getattr(one, "history", None) or {}
        epochs = len(values.get("loss", ()))
        if not epochs:
            continue
        seconds = list(getattr(one, "epoch_seconds", None) or ())
        phases.append({"name": name, "values": values, "seconds": seconds, "start": start, "epochs": epochs})
        start += epochs
    if phases:
        return phases
    raise ArgumentError(
        "Expected a TransferResult, a Keras History or its dictionary, with the `loss` of at least one epoch. "
        f"{received(history=type(history).__name__)}"
    )


def _panel_metrics(phases) -> list[str]:
    keys = [key for key in phases[0]["values"] if not key.startswith("val_") and key not in ("loss", "learning_rate")]
    main = [key for key in keys if not key.startswith(AUXILIARY)]
    # beside auxiliary heads the main output logs under its own name, and "loss" is the total
    loss = next((key for key in main if key.endswith("_loss") and len(main) < len(keys)), "loss")
    keys = [key for key in main if key != loss]
    accuracies = [key for key in keys if "acc" in key.lower()]
    return [loss, *(accuracies or [key for key in keys if not key.endswith("_loss")])[:1]]


def _series(phases, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs (from 1, over both phases) and values; phases that lack the key leave a gap."""
    epochs, values = [], []
    for phase in phases:
        found = phase["values"].get(key, [])[: phase["epochs"]]
        epochs += [phase["start"] + index + 1 for index in range(len(found))]
        values += [float(value) for value in found]
    return np.array(epochs), np.array(values)


def _draw_curves(panel, phases, metric: str) -> None:
    for key, label, colour in ((metric, "training", _TRAINING), (f"val_{metric}", "validation", _VALIDATION)):
        for number, phase in enumerate(phases):
            # A line per phase: the second one starts from the first one's best epoch, not from its last
            epochs, values = _series([phase], key)
            once = label if number == 0 else "_nolegend_"
            if len(epochs):
                panel.plot(epochs, values, color=colour, label=once, marker="o", markersize=3.5, linewidth=1.6)
    last = phases[-1]["start"] + phases[-1]["epochs"]
    panel.set_xlim(0.5, last + 0.5)
    panel.set_xticks(_round_ticks(last))
    panel.set_xlabel("epoch")
    panel.set_ylabel(metric.replace("_", " "))
    panel.grid(axis="y", color="#e3e7eb", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)


def _round_ticks(last: int) -> list[int]:
    """Return at most about eight whole epochs, the first included."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if last / step <= 8)
    if step == 2:
        return list(range(1, last + 1, 2))
    return sorted({1, *range(step, last + 1, step)})


def _mark_phases(panel, phases) -> None:
    if len(phases) < 2:
        return
    boundary = phases[1]["start"] + 0.5
    last = phases[1]["start"] + phases[1]["epochs"] + 0.5
    panel.axvspan(boundary, last, color="#fff4e6", zorder=0, linewidth=0)
    panel.axvline(boundary, color=_QUIET, linestyle="--", linewidth=1)
    for phase in phases:
        middle = phase["start"] + 0.5 + phase["epochs"] / 2
        text = _PHASE_TITLES[phase["name"]]
        across = panel.get_xaxis_transform()
        panel.text(middle, 1.015, text, transform=across, ha="center", va="bottom", fontsize=9, color=_QUIET)


def _best_position(history, phases) -> int | None:
    """Return the best epoch counted over both phases; 0 for the starting weights; `None` where nobody knows."""
    if hasattr(history, "head"):
        if history.best_phase == "start":
            return 0
        starts = {phase["name"]: phase["start"] for phase in phases}
        return starts[history.best_phase] + history.best_epoch if history.best_phase in starts else None
    best = getattr(history, "best_epoch", None)
    return int(best) if best is not None else None


def _mark_best(panel, phases, metric: str, best: int | None) -> None:
    if best is None:
        return
    if best == 0:
        panel.plot([], [], " ", label="kept: the starting weights")
        return
    for key in (f"val_{metric}", metric):
        epochs, values = _series(phases, key)
        at = np.flatnonzero(epochs == best)
        if len(at) and np.isfinite(values[at[0]]):
            value = values[at[0]]
            label = f"kept: epoch {best}, {value:.3f}"
            ring = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 2, "color": _BEST}
            panel.plot([best], [value], "o", label=label, **ring)
            return


def _add_time_axis(panel, phases) -> None:
    seconds = [value for phase in phases for value in phase["seconds"][: phase["epochs"]]]
    epochs = sum(phase["epochs"] for phase in phases)
    if len(seconds) != epochs:
        return
    ends = np.cumsum(seconds)
    ticks = _round_ticks(epochs)
    above = panel.secondary_xaxis(1.09 if len(phases) > 1 else 1.02)
    above.set_xticks(ticks, [_clock(ends[tick - 1]) for tick in ticks])
    above.tick_params(labelsize=8, colors=_QUIET, length=2)
    above.spines[:].set_visible(False)
    above.set_xlabel("time after that epoch", fontsize=8, color=_QUIET)


def _clock(seconds: float) -> str:
    """Return `12 s`, `3:05` (minutes) or `1:02:30` (hours)."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _legend_below(panel) -> None:
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, frameon=False, fontsize=9)


def _matrix_inches(count: int) -> float:
    per_class = 0.75 if count <= 6 else 0.5 if count <= 14 else 0.36 if count <= 25 else 0.165
    return min(max(2.2, per_class * count), 20.0)


def _label_matrix(axes, names: list[str], cell: float) -> None:
    step = max(1, math.ceil(0.13 / cell))
    places = list(range(0, len(names), step))
    size = min(10.0, max(6.0, cell * 72 * 0.62))
    shown = [names[place] for place in places]
    axes.set_yticks(places, shown, fontsize=size)
    upright = len(names) > 14
    fits = max(map(len, shown), default=0) * size * 0.6 < cell * 72 * step
    rotation = 0 if fits else 90 if upright else 40
    anchor = {"rotation": rotation, "ha": "center" if rotation in (0, 90) else "right", "rotation_mode": "anchor"}
    if rotation == 90:
        anchor.update(ha="right", va="center")
    axes.set_xticks(places, shown, fontsize=size, **anchor)
    axes.tick_params(length=2)
    if len(names) > 6:
        edges = np.arange(len(names) + 1) - 0.5
        axes.vlines(edges, -0.5, len(names) - 0.5, color="#e3e9f0", linewidth=0.4)
        axes.hlines(edges, -0.5, len(names) - 0.5, color="#e3e9f0", linewidth=0.4)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_color("#c5ccd3")


def _write_counts(axes, matrix, shares) -> None:
    count = len(matrix)
    for row in range(count):
        total = matrix[row].sum()
        for column in range(count):
            value = matrix[row, column]
            if not value and count > 6:
                continue
            percent = f"\n{100 * shares[row, column]:.0f} %" if count <= 6 and total else ""
            size = (11 if count <= 6 else 9) if count <= 14 else 7
            colour = "white" if shares[row, column] > 0.35 else "#24313d"
            axes.text(column, row, f"{value:g}{percent}", ha="center", va="center", fontsize=size, color=colour)


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
    panel.spines[:].set_color("#c5ccd3")
    answer = int(probabilities.argmax())
    said = f"predicted {_shorten(class_names[answer], 17)}, {_percent(probabilities[answer])}"
    true = f"true class {_shorten(class_names[label], 17)}, {_percent(probabilities[label])}"
    panel.set_title(f"{said}\n{true}", fontsize=8.5, loc="left", color="#24313d")
    if caption:
        panel.set_xlabel(_shorten(caption, 30), fontsize=7.5, color=_QUIET)


def _percent(probability: float) -> str:
    """Return a whole percentage, but never 0 % or 100 % for what is not exactly that."""
    percent = 100 * float(probability)
    if 99 < percent < 100:
        return ">99 %"
    return "<1 %" if 0 < percent < 1 else f"{percent:.0f} %"


def _shorten(name, length: int) -> str:
    """Return the name with its middle left out where it is too long: ends tell names apart as often as beginnings."""
    name = str(name)
    if len(name) <= length:
        return name
    front = (length - 1) * 2 // 3
    return f"{name[:front]}…{name[len(name) - (length - 1 - front) :]}"
