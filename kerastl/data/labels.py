"""Class labels: integers or one-hot, checked against the number of classes, and weighed."""

import numpy as np

from kerastl.checks import received
from kerastl.errors import DataError


def label_kind(labels: np.ndarray, num_classes: int) -> str:
    """Return "integer" or "one-hot", having checked the labels against the number of classes.

    Labels are `(count,)` or `(count, 1)` integers in 0…num_classes − 1, or `(count, num_classes)` one-hot (or smoothed:
    rows of non-negative numbers that add up to 1).

    Raises:
        DataError: no labels, labels of another form, out of range, or no finite numbers.
    """
    if labels is None:
        raise DataError("Expected batches of (images, labels), or a pair of arrays. Received: no labels")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iufb" or not np.isfinite(labels).all():
        raise DataError(
            f"Labels must be finite numbers: class indices or one-hot rows. {received(dtype=str(labels.dtype))}"
        )
    if labels.ndim == 2 and labels.shape[1] == num_classes and num_classes > 1:
        if (labels < 0).any() or not np.allclose(labels.sum(axis=1), 1, atol=1e-3):
            raise DataError(
                "One-hot labels must be rows that add up to 1 (multi-label classification is out of scope). "
                f"{received(first_row=labels[0].tolist())}"
            )
        return "one-hot"
    if labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != 1):
        raise DataError(
            f"Labels must be integers `(count,)`, or one-hot `(count, {num_classes})`, as the model has {num_classes} "
            f"classes. {received(shape=labels.shape)}"
        )
    if (labels != np.floor(labels)).any() or labels.min(initial=0) < 0 or labels.max(initial=0) >= num_classes:
        raise DataError(
            f"Labels must be whole numbers from 0 to {num_classes - 1}, as the model has {num_classes} classes. "
            f"{received(smallest=labels.min().item(), largest=labels.max().item())}"
        )
    return "integer"


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
