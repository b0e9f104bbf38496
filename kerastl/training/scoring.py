"""How good are predictions of classes, labels or numbers, and how good those of a linear model or of nearest neighbours?"""

import dataclasses

import numpy as np

from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION, class_indices, label_kind
from kerastl.features.duplicates import nearest_neighbours
from kerastl.training.linear import LinearFit, cross_entropy, fit_ridge, fit_sigmoid, fit_softmax

_NEIGHBOURS = (1, 3, 5, 10, 20, 50)


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """How well the best linear model knows one class (the share found), one label (rightly told), or one number (R²)."""

    name: str
    score: float | None  # `None` where there is no image of the class
    images: int


def prepare_labels(labels, units: int, task: str) -> np.ndarray:
    """Return class indices `(count,)`, or truth values or numbers `(count, units)`; raises as `label_kind` does."""
    if task == CLASSIFICATION:
        return class_indices(labels, units)
    label_kind(labels, units, task)
    labels = np.asarray(labels, "float64").reshape(len(labels), units)
    return labels >= 0.5 if task == MULTI_LABEL else labels


@dataclasses.dataclass(frozen=True)
class Problem:
    """The task with its labels as `prepare_labels` returns them."""

    task: str
    names: list

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Return the labels in that form; raises `DataError` where they don't fit."""
        return prepare_labels(labels, len(self.names), self.task)

    def fit(self, features, targets, weights, seed) -> LinearFit:
        """Fit the linear model of the task; see `training.linear`."""
        options = {"sample_weights": weights, "seed": seed}
        if self.task == CLASSIFICATION:
            return fit_softmax(features, targets, num_classes=len(self.names), **options)
        return (fit_sigmoid if self.task == MULTI_LABEL else fit_ridge)(features, targets, **options)

    def loss(self, predicted, targets) -> float:
        """Return the mean cross-entropy in nats, of numbers 1 − R²."""
        if self.task == REGRESSION:
            return 1 - self.score(predicted, targets)
        if self.task == CLASSIFICATION:
            return cross_entropy(predicted, targets)
        both = np.stack([1 - predicted, predicted], axis=-1).reshape(-1, 2)
        return cross_entropy(both, targets.reshape(-1).astype(int))

    def score(self, predicted, targets) -> float:
        """Return the accuracy, or the mean R²; NaN where all numbers are the same, as R² has no meaning there."""
        if self.task == CLASSIFICATION:
            return float((predicted.argmax(axis=1) == targets).mean())
        scores = [one.score for one in self.per_class(predicted, targets) if one.score is not None]
        return float(np.mean(scores)) if scores else np.nan

    def per_class(self, predicted, targets) -> list[ClassAccuracy]:
        """Return how good predictions `(images, outputs)` are for each class, label or number."""
        rows = []
        for place, name in enumerate(self.names):
            if self.task == CLASSIFICATION:
                hits, count = predicted.argmax(axis=1)[targets == place] == place, int((targets == place).sum())
                score = float(hits.mean()) if count else None
            elif self.task == MULTI_LABEL:
                score, count = float(((predicted > 0.5) == targets)[:, place].mean()), len(targets)
            else:
                variance, count = targets[:, place].var(), len(targets)
                error = np.square(predicted[:, place] - targets[:, place]).mean()
                score = float(1 - error / variance) if variance else None
            rows.append(ClassAccuracy(str(name), score, count))
        return rows

    def standard_error(self, accuracy: float, images: int) -> float | None:
        """Return that of an accuracy by the binomial distribution; of numbers `None`."""
        return None if self.task == REGRESSION else float(np.sqrt(accuracy * (1 - accuracy) / images))


def task_of_labels(labels) -> str:
    """Tell by labels alone what they are for: rows of 0 and 1, whole numbers, or other numbers."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        one_hot = (labels >= 0).all() and np.allclose(labels.sum(axis=1), 1, atol=1e-3)
        return CLASSIFICATION if one_hot else MULTI_LABEL if np.isin(labels, (0, 1)).all() else REGRESSION
    return CLASSIFICATION if (labels == np.floor(labels)).all() and labels.min() >= 0 else REGRESSION


def neighbour_score(features, targets, problem) -> float:
    """Return the score of the nearest neighbours' mean, by cosine, with the best number of neighbours; none is its own."""
    rows = np.eye(len(problem.names))[targets] if problem.task == CLASSIFICATION else targets
    total, scores = np.zeros(rows.shape), []
    for count, near in enumerate(nearest_neighbours(features, _NEIGHBOURS[-1])[0].T, start=1):
        total += rows[near]
        if count in _NEIGHBOURS:
            scores.append(problem.score(total / count, targets))
    return max(scores)
