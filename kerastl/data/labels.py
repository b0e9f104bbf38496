"""Labels: of one class, of several labels or of numbers; checked against the head, counted, and weighed."""

import collections
import unicodedata

import numpy as np

from kerastl.checks import received
from kerastl.errors import DataError
from kerastl.tables import is_readable

TASKS = CLASSIFICATION, MULTI_LABEL, REGRESSION = "classification", "multi-label", "regression"
"""What labels and a head are for: one class of several; several labels or none; numbers."""


def label_kind(labels: np.ndarray, num_classes: int, task: str = CLASSIFICATION) -> str:
    """Return "integer", "one-hot", "multi-hot" or "number", having checked the labels against the head's task and units.

    Of classes, labels are `(count,)` or `(count, 1)` integers in 0…num_classes − 1, or `(count, num_classes)` one-hot (or
    smoothed: rows of non-negative numbers that add up to 1). Of several labels they are `(count, num_classes)`, each from
    0 to 1, and of numbers `(count, num_classes)`, or `(count,)` for one. Raises `DataError` for all else; it says which
    head such labels need.
    """
    if labels is None:
        raise DataError("Expected batches of (images, labels), or a pair of arrays. Received: no labels")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iufb" or not np.isfinite(labels).all():
        raise DataError(
            f"Labels must be finite numbers: classes, rows of 0 and 1, or what to predict. {received(dtype=str(labels.dtype))}"
        )
    if task != CLASSIFICATION:
        return _check_rows(labels, num_classes, task)
    if labels.ndim == 2 and labels.shape[1] == num_classes and num_classes > 1:
        if (labels < 0).any() or not np.allclose(labels.sum(axis=1), 1, atol=1e-3):
            raise _misfit(labels, "One-hot labels must be rows that add up to 1.", first_row=labels[0].tolist())
        return "one-hot"
    if labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != 1):
        expected = f"Labels must be integers `(count,)`, or one-hot `(count, {num_classes})`"
        raise _misfit(labels, f"{expected}, as the model has {num_classes} classes.", shape=labels.shape)
    if (labels != np.floor(labels)).any() or labels.min(initial=0) < 0 or labels.max(initial=0) >= num_classes:
        expected = f"Labels must be whole numbers from 0 to {num_classes - 1}, as the model has {num_classes} classes."
        raise _misfit(labels, expected, smallest=labels.min().item(), largest=labels.max().item())
    return "integer"


def _check_rows(labels: np.ndarray, units: int, task: str) -> str:
    """Return what `label_kind` does of labels for a head of several labels or of numbers."""
    if labels.shape[1:] != (units,) and not (task == REGRESSION and units == 1 and labels.ndim == 1):
        expected = f"A {task} head of {units} units takes labels `(count, {units})`."
        raise _misfit(labels, expected, shape=labels.shape)
    if task == MULTI_LABEL and ((labels < 0) | (labels > 1)).any():
        expected = "Labels of a multi-label head must be 1 where the image has the label, and 0 where not."
        raise _misfit(labels, expected, largest=labels.max().item())
    return "multi-hot" if task == MULTI_LABEL else "number"


def _misfit(labels: np.ndarray, expected: str, **what) -> DataError:
    """Return the error for labels that don't fit the head; it names the call for a head that they fit."""
    if labels.ndim > 2 or not labels.size:
        return DataError(f"{expected} {received(**what)}")
    count, largest = labels.shape[1] if labels.ndim == 2 else 1, labels.max().item()
    if labels.min() < 0 or (labels != np.floor(labels)).any() or (count > 1 and largest > 1):
        task = REGRESSION
    elif count > 1:
        task = CLASSIFICATION if (labels.sum(axis=1) == 1).all() else MULTI_LABEL
    else:
        task, count = CLASSIFICATION, max(int(largest) + 1, 2)
    call = f'`build_classifier(backbone, {count}, task="{task}")`'
    return DataError(f"{expected} For these build the head with {call}. {received(**what)}")


def label_array(labels, count: int, task: str) -> np.ndarray:
    """Return what a dataset yields for an image's class, for the indices of its labels (of `count`), or for its number."""
    if task != MULTI_LABEL:
        return np.array(labels, "int32" if task == CLASSIFICATION else "float32")
    return np.array([np.isin(np.arange(count), indices) for indices in labels], "float32").reshape(-1, count)


def count_labels(parts: list[np.ndarray], names, task: str) -> tuple[str, str, list[list]]:
    """Return a table's first heading, what there is how often, and its rows: a column for each part and one for all."""
    parts = [*parts, np.concatenate(parts)]
    if task == REGRESSION:
        measures = {"mean": np.mean, "smallest": np.min, "largest": np.max}
        rows = [[name, *(f"{measure(part):.4g}" for part in parts)] for name, measure in measures.items()]
        return "", f"numbers of {names[0]!r}", rows
    what, several = ("class", "classes") if task == CLASSIFICATION else ("label", "labels")
    counts = [np.bincount(one, minlength=len(names)) if one.ndim == 1 else one.sum(axis=0, dtype=int) for one in parts]
    return what, f"{len(names)} {several}", [[name, *row] for name, *row in zip(names, *counts, strict=True)]


def check_names(names, advice: str) -> None:
    """Raise `DataError` for names of classes that are not readable text in one line, or look alike."""
    for name in names:
        if not is_readable(name):
            raise DataError(
                "Class names are printed, and written to text files, so they must be readable text in one line. "
                f"{advice} {received(name=name)}"
            )
    twins = collections.Counter(unicodedata.normalize("NFC", name) for name in names).most_common(1)
    if twins and twins[0][1] > 1:
        raise DataError(
            "Two class names look alike, as one is written with letters and accents apart (Unicode's NFC and NFD). "
            f"{advice} {received(name=twins[0][0])}"
        )


def class_indices(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the class of each label, int64 `(count,)`; raises as `label_kind` does."""
    one_hot = label_kind(labels, num_classes) == "one-hot"
    labels = np.asarray(labels)
    return (labels.argmax(axis=1) if one_hot else labels.reshape(-1)).astype("int64")


def balanced_class_weight(labels: np.ndarray, num_classes: int) -> dict[int, float]:
    """Return weights that give every class the same say: `count / (classes present × count of the class)`.

    The formula is scikit-learn's `class_weight="balanced"` (King and Zeng, 2001).
    """
    counts = np.bincount(class_indices(labels, num_classes), minlength=num_classes)
    present = int((counts > 0).sum())
    return {index: float(counts.sum() / (present * count)) for index, count in enumerate(counts) if count}
