"""The temperature that makes probabilities true: what divides the logits for the least log loss (Guo et al., 2017)."""

import numpy as np

from kerastl.checks import received
from kerastl.errors import DataError

_LARGEST = 50.0  # temperature, and inverse of the smallest
# The least that a probability counts as: of two, of which float32 rounds one up to 1, and of more
_TWO_FLOOR, _FLOOR = 1e-8, 1e-30


def find_temperature(probabilities, labels) -> np.ndarray:
    """Return the temperature of the least log loss, `()`, or one for each of several labels, `(labels,)`.

    `probabilities` are `(count, classes)` and `labels` classes `(count,)`, or both are of labels, in one shape. NaN where
    there is no such temperature: every image is right, or too many are wrong for any.
    """
    probabilities, labels = check_both(probabilities, labels)
    if probabilities.shape != labels.shape:
        return np.array(_temperature(probabilities, labels.astype(int)))
    columns = zip(probabilities.T, labels.T.astype(int), strict=True)
    return np.array([_temperature(np.stack([1 - one, one], axis=1), label) for one, label in columns])


def _temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    scores = np.log(probabilities)
    true = scores[np.arange(len(labels)), labels].mean()

    def slope(inverse: float) -> float:
        """Of the loss by the inverse of the temperature; it only rises, as the loss is convex in it."""
        powers = np.exp(inverse * (scores - scores.max(axis=1, keepdims=True)))
        return (powers * scores).sum(axis=1) @ (1 / powers.sum(axis=1)) / len(scores) - true

    from scipy import optimize  # slow to import, and few calls need it

    low, high = 1 / _LARGEST, _LARGEST
    return 1 / optimize.brentq(slope, low, high) if slope(low) < 0 < slope(high) else np.nan


def scale(probabilities, temperature, labels) -> np.ndarray:
    """Return the probabilities of logits divided by the temperature; what `labels` is like says which kind they are."""
    probabilities, labels = check_both(probabilities, labels)
    powers = probabilities ** (1 / temperature)
    if probabilities.shape == labels.shape:
        return powers / (powers + (1 - probabilities) ** (1 / temperature))
    return powers / powers.sum(axis=1, keepdims=True)


def log_losses(probabilities, labels) -> np.ndarray:
    """Return -log of the probability of what is true, `(count,)`; of several labels the mean over them."""
    probabilities, labels = check_both(probabilities, labels)
    if probabilities.shape == labels.shape:
        losses = -np.log(np.where(labels, probabilities, 1 - probabilities))
        return losses.reshape(len(losses), -1).mean(axis=1)
    return -np.log(probabilities[np.arange(len(labels)), labels.astype(int)])


def least_log_losses(probabilities, labels) -> np.ndarray:
    """Return the `log_losses` at the temperature from 1/50 to 50 that makes their mean the least."""
    found = find_temperature(probabilities, labels)
    ends = [
        scale(probabilities, np.where(np.isnan(found), end, found), labels) for end in (1 / _LARGEST, 1.0, _LARGEST)
    ]
    return min((log_losses(one, labels) for one in ends), key=np.mean)


def check_both(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities, none of them 0 or 1, and labels as arrays; raise `DataError` where they don't fit."""
    probabilities, labels = np.asarray(probabilities, "float64"), np.asarray(labels)
    one_each = probabilities.ndim == 2 and labels.shape == probabilities.shape[:1]
    if not probabilities.size or not (one_each or labels.shape == probabilities.shape):
        expected = "Expected probabilities `(count, classes)` and classes `(count,)`, or labels in the shape of theirs."
        raise DataError(f"{expected} {received(probabilities=probabilities.shape, labels=labels.shape)}")
    if not (probabilities.min() >= 0 and probabilities.max() <= 1):
        expected = "Expected probabilities from 0 to 1: `kerastl.predict(...).probabilities`, say."
        raise DataError(f"{expected} {received(smallest=probabilities.min(), largest=probabilities.max())}")
    floor = _TWO_FLOOR if labels.shape == probabilities.shape or probabilities.shape[1] == 2 else _FLOOR
    return np.clip(probabilities, floor, 1 - floor), labels
