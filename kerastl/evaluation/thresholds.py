"""From which probability on does a label count? Chosen on validation images, for rare labels and for one of two classes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from kerastl.checks import check_choice, received
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL
from kerastl.errors import ArgumentError, warn
from kerastl.evaluation.measures import gather, run_on
from kerastl.evaluation.probabilities import THRESHOLD
from kerastl.tables import Printed, Table


def _f1(hits, called, support, count):
    return 2 * hits / (called + support)


def _balanced_accuracy(hits, called, support, count):
    return (hits / support + 1 - (called - hits) / (count - support)) / 2


METRICS = {"f1": _f1, "balanced_accuracy": _balanced_accuracy}
"""From how many of those called so are so, how many were called so, how many are so, and how many there are."""


@dataclasses.dataclass(frozen=True)
class Threshold:
    """From which probability on a label (or one of two classes) counts, and what that does to the score."""

    name: str
    threshold: float
    before: float | None  # the score at 0.5; `None` where all images have the label, or none
    after: float | None  # at the threshold, on the images that it was chosen on
    support: int  # the images that have it


@dataclasses.dataclass(frozen=True, repr=False)
class Thresholds(Printed, Mapping):
    """What `choose_thresholds` found: a dictionary from name to threshold, and a table. `rows` say what each one does."""

    rows: tuple[Threshold, ...]
    metric: str

    def __getitem__(self, name: str) -> float:
        return {row.name: row.threshold for row in self.rows}[name]

    def __iter__(self):
        return (row.name for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_rows(self) -> list[dict]:
        """Return a dictionary per label, for pandas."""
        return [dataclasses.asdict(row) for row in self.rows]

    def _tables(self) -> list[Table]:
        what = self.metric.replace("_", " ").replace("f1", "F1")
        header = ["label", "threshold", f"{what} at {THRESHOLD}", "at the threshold", "images"]
        scores = [["-" if one is None else f"{one:.3f}" for one in (row.before, row.after)] for row in self.rows]
        rows = zip(self.rows, scores, strict=True)
        cells = [[row.name, f"{row.threshold:.3f}", *shown, str(row.support)] for row, shown in rows]
        return [Table(header, cells, right=range(1, 5))]


def choose_thresholds(
    model: keras.Model,
    validation,
    class_names=None,
    *,
    metric: str | None = None,
    views: int = 1,
    preprocessing: Callable[..., Any] | str | None = "auto",
    task: str | None = None,
) -> Thresholds:
    """Choose on validation images from which probability on each label counts, or the second of two classes.

    At 0.5 a label that one image in fifty has is hardly ever told. Hand what comes back to `predict`, `evaluate` and
    `export_model` as `thresholds=`. Calibrate first: that moves probabilities, and with them the thresholds.

    Args:
        model: a classifier of two classes, or a model of several labels.
        class_names: one name per class or label, in order.
        views, preprocessing, task: 1 view is the plain image; "auto" and `None` go by the model, see `predict`.
        validation: images and labels as `evaluate` takes them; not those that the model will be judged on.
        metric: which score is to be greatest: "f1", or "balanced_accuracy", the mean of the shares of images with and
            without the label that were told rightly; default: F1 for labels, and balanced accuracy for two classes.
            A label that the model can't tell gets a threshold by F1 that finds it everywhere (Lipton et al. 2014).

    Returns:
        A `Thresholds`, which prints. A label without examples, or without counterexamples, keeps 0.5, with a warning.

    Raises:
        ArgumentError: more than two classes, numbers, or an argument that can't be used.
        DataError: no images, or labels that don't fit the model.

    Example:
        >>> model = kerastl.build_classifier(backbone, 2, task="multi-label", preprocessing=None)
        >>> thresholds = kerastl.choose_thresholds(model, (images, np.eye(3)[labels, :2]), ["petals", "thorns"])
        >>> list(thresholds)
        ['petals', 'thorns']
    """
    if metric is not None:
        check_choice("metric", metric, METRICS)
    options = {"views": views, "preprocessing": preprocessing, "task": task}
    task, names, batches = run_on(model, validation, class_names, **options)
    if task != MULTI_LABEL and (task != CLASSIFICATION or len(names) > 2):
        raise ArgumentError(
            "Thresholds are for models of several labels, or of two classes. Of more classes the most probable one is named: "
            f'against rare ones train with `class_weight="balanced"`. {received(task=task, names=names)}'
        )
    labels, probabilities = gather(batches)
    if task == CLASSIFICATION:
        names, labels, probabilities = names[1:], labels[:, None] == 1, probabilities[:, 1:]
    metric = metric or ("f1" if task == MULTI_LABEL else "balanced_accuracy")
    found = [best_threshold(*pair, metric) for pair in zip(labels.T, probabilities.T, strict=True)]
    if unknown := ", ".join(name for name, one in zip(names, found, strict=True) if one[1] is None):
        warn(f"Of the {len(labels)} images all have these labels, or none has: {unknown}. They keep {THRESHOLD}.")
    rows = zip(names, found, labels.sum(axis=0).tolist(), strict=True)
    return Thresholds(tuple(Threshold(name, *one, support) for name, one, support in rows), metric)


def best_threshold(
    labels: np.ndarray, probabilities: np.ndarray, metric: str
) -> tuple[float, float | None, float | None]:
    """Return the threshold of the greatest score, the score at 0.5, and that at the threshold.

    It lies midway between two probabilities; of equally good ones the nearest to 0.5 is taken, or 0.5 itself.

    Args:
        labels: which images have the label, bool `(count,)`.
        probabilities: what the model says of them, `(count,)`.
        metric: one of `METRICS`.
    """
    count, support = len(labels), int(labels.sum())
    if support in (0, count):
        return THRESHOLD, None, None
    probabilities = np.asarray(probabilities, "float64")
    order = np.argsort(-probabilities, kind="stable")
    last = np.append(np.diff(probabilities[order]) != 0, True)  # equal ones can't be told apart
    # none called first, then those of the greatest probability, and so on to all
    sure = np.concatenate([[1], probabilities[order][last], [0]])
    hits, called = np.append(0, np.cumsum(labels[order])[last]), np.append(0, np.flatnonzero(last) + 1)
    borders, scores = (sure[:-1] + sure[1:]) / 2, METRICS[metric](hits, called, support, count)
    said = probabilities >= THRESHOLD
    before = METRICS[metric]((labels & said).sum(), said.sum(), support, count)
    inside = (borders > 0) & (borders < 1)
    best = np.max(scores, where=inside, initial=before)
    if best <= before:
        return THRESHOLD, float(before), float(before)
    good = borders[(scores == best) & inside]
    return float(good[np.abs(good - THRESHOLD).argmin()]), float(before), float(best)
