"""Curves of a training run, over both phases."""

import itertools

import numpy as np

from kerastl.checks import received
from kerastl.errors import ArgumentError
from kerastl.evaluation.plots.drawing import QUIET, draw_grid, panels_of, round_ticks
from kerastl.tables import readable_seconds

_AUXILIARY = "auxiliary_"  # what the outputs of auxiliary heads are called begins so
_TRAINING, _VALIDATION, _BEST = "#8b98a5", "#1565c0", "#d9480f"
_PHASE_TITLES = {"head": "head", "fine_tune": "fine-tuning"}


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

    Example:
        >>> history = model.fit(*train, validation_data=validation, epochs=2, verbose=0)
        >>> kerastl.plot_history(history).savefig("curves.png")
    """
    phases = _phases_of(history)
    metrics = _panel_metrics(phases)
    panels = panels_of(axes, len(metrics), f"for {' and '.join(metrics)}", figsize=(5.6 * len(metrics), 3.9))
    best = _best_position(history, phases)
    for metric, panel in zip(metrics, panels, strict=True):
        _draw_curves(panel, phases, metric)
        _mark_phases(panel, phases)
        _mark_best(panel, phases, metric, best)
        _add_time_axis(panel, phases)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, frameon=False, fontsize=9)
    return panels[0].figure


def _phases_of(history) -> list[dict]:
    """Return `{"name", "values", "seconds", "start", "epochs"}` per phase; `start` counts the epochs before it."""
    both = {name: getattr(history, name) for name in ("head", "fine_tune") if hasattr(history, "head")}
    phases, start = [], 0
    for name, one in (both or {"training": history}).items():
        values = one if isinstance(one, dict) else getattr(one, "history", None) or {}
        epochs = len(values.get("loss", ()))
        if epochs:
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
    main = [key for key in keys if not key.startswith(_AUXILIARY)]
    # beside auxiliary heads the main output logs under its own name, and "loss" is the total
    loss = next((key for key in main if key.endswith("_loss") and len(main) < len(keys)), "loss")
    keys = [key for key in main if key != loss]
    accuracies = [key for key in keys if "acc" in key.lower()]
    return [loss, *(accuracies or [key for key in keys if not key.endswith("_loss")])[:1]]


def _series(phase, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a phase's epochs, counted from 1 over both phases, and its values."""
    values = np.array(phase["values"].get(key, ())[: phase["epochs"]], float)
    return phase["start"] + 1 + np.arange(len(values)), values


def _draw_curves(panel, phases, metric: str) -> None:
    for key, label, colour in ((metric, "training", _TRAINING), (f"val_{metric}", "validation", _VALIDATION)):
        for number, phase in enumerate(phases):
            # A line per phase: the second one starts from the first one's best epoch, not from its last
            epochs, values = _series(phase, key)
            once = label if number == 0 else "_nolegend_"
            if len(epochs):
                panel.plot(epochs, values, color=colour, label=once, marker="o", markersize=3.5, linewidth=1.6)
    last = phases[-1]["start"] + phases[-1]["epochs"]
    panel.set(xlim=(0.5, last + 0.5), xticks=round_ticks(last), xlabel="epoch", ylabel=metric.replace("_", " "))
    draw_grid(panel, "y")


def _mark_phases(panel, phases) -> None:
    if len(phases) < 2:
        return
    boundary = phases[1]["start"] + 0.5
    panel.axvspan(boundary, boundary + phases[1]["epochs"], color="#fff4e6", zorder=0, linewidth=0)
    panel.axvline(boundary, color=QUIET, linestyle="--", linewidth=1)
    style = {"ha": "center", "va": "bottom", "fontsize": 9, "color": QUIET, "transform": panel.get_xaxis_transform()}
    for phase in phases:
        panel.text(phase["start"] + 0.5 + phase["epochs"] / 2, 1.015, _PHASE_TITLES[phase["name"]], **style)


def _best_position(history, phases) -> int | None:
    """Return the best epoch counted over both phases; 0 for the starting weights; `None` where nobody knows."""
    best = getattr(history, "best_epoch", None)
    if best is None or not hasattr(history, "head"):
        return best
    starts = {"start": 0, **{phase["name"]: phase["start"] for phase in phases}}
    return starts[history.best_phase] + best if history.best_phase in starts else None


def _mark_best(panel, phases, metric: str, best: int | None) -> None:
    if best is None:
        return
    if best == 0:
        panel.plot([], [], " ", label="kept: the starting weights")
        return
    for key, phase in itertools.product((f"val_{metric}", metric), phases):
        epochs, values = _series(phase, key)
        for value in values[(epochs == best) & np.isfinite(values)]:
            ring = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 2, "color": _BEST}
            panel.plot([best], [value], "o", label=f"kept: epoch {best}, {value:.3f}", **ring)
            return


def _add_time_axis(panel, phases) -> None:
    seconds = [value for phase in phases for value in phase["seconds"][: phase["epochs"]]]
    epochs = sum(phase["epochs"] for phase in phases)
    if len(seconds) != epochs:
        return
    ends, ticks = np.cumsum(seconds), round_ticks(epochs)
    above = panel.secondary_xaxis(1.09 if len(phases) > 1 else 1.02)
    above.set_xticks(ticks, [readable_seconds(ends[tick - 1]) for tick in ticks])
    above.tick_params(labelsize=8, colors=QUIET, length=2)
    above.spines[:].set_visible(False)
    above.set_xlabel("time after that epoch", fontsize=8, color=QUIET)
