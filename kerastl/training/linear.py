"""Linear models fitted on plain arrays of features, the strength of their penalty chosen by cross-validation.

Softmax (multinomial logistic) regression for classes, one logistic regression for each of several labels, and ridge
regression for numbers. What comes back takes features as they are: `features @ fit.kernel + fit.bias` is what a `Dense`
layer with these weights computes. All features are divided by one number before, not each by its own spread: the penalty is
then on that layer's own weights. A feature that hardly varies would otherwise get a weight so large that the first steps of
fine-tuning, or eight bits instead of 32, turn the outputs upside down.
"""

import dataclasses
import functools
import warnings

import numpy as np
from scipy.special import expit, softmax

from kerastl.checks import received
from kerastl.errors import DataError

_FOLDS = 5
# So many numbers in the features and more: computing in 32 bits, with three folds, is what keeps it to minutes
_LARGE = 2 * 10**7
# scikit-learn's C times the number of features, strongest penalty first: the squares of a row's scaled features add up to
# that number in the mean. Of 1,280 features they are C = 0.0002 … 0.8
_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
# Of ridge regression 1/alpha times what the squares of all rows add up to
_RIDGE_STRENGTHS = tuple(10 ** (step / 2) for step in range(1, 12))
_MOST_STEPS = 1000
# The largest slope of the loss at which a fit ends that is only compared: a quarter fewer steps than at scikit-learn's
# 1e-4, and the same cross-entropy to the fourth digit
_ROUGHLY = 3e-4
# How far a class without images lies below the others, in nats: next to never predicted, and still able to learn
_ABSENT = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class LinearFit:
    """A linear model of features, and how good it is on rows that it was not fitted on.

    Attributes:
        kernel: float32 `(features, outputs)`, for features as they are.
        bias: float32 `(outputs,)`.
        activation: "softmax", "sigmoid" or "linear": what makes outputs of `features @ kernel + bias`.
        c: the chosen strength, scikit-learn's `C`, for scaled features; of ridge regression 1/alpha.
        probabilities: float32 `(rows, outputs)`: of each row, fitted without its fold; of numbers, what is predicted.
        accuracy: the part of rows whose class is predicted so; of labels, that of each label; of numbers, R².
        seen: of classes, bool `(rows,)`: whether other folds hold the row's class as well. If not, it could not be predicted.
    """

    kernel: np.ndarray
    bias: np.ndarray
    activation: str
    c: float
    probabilities: np.ndarray
    accuracy: float
    seen: np.ndarray | None = None

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities, or predicted numbers, float32 `(rows, outputs)`, of features `(rows, features)`."""
        logits = np.asarray(features, "float32") @ self.kernel + self.bias
        if self.activation == "softmax":
            return softmax(logits, axis=1)
        return expit(logits) if self.activation == "sigmoid" else logits


def _in_one_thread(fit):
    """Let NumPy and SciPy compute in one thread meanwhile.

    Products this small hardly gain by more, and threads that wait for each other are ten times slower on a busy machine.
    """

    @functools.wraps(fit)
    def fitting(features, *arguments, **options):
        from threadpoolctl import threadpool_limits  # comes with scikit-learn

        with warnings.catch_warnings(), threadpool_limits(None if np.size(features) >= _LARGE else 1):
            warnings.simplefilter("ignore")  # that so many steps were not enough
            return fit(features, *arguments, **options)

    return fitting


@_in_one_thread
def fit_softmax(features, labels, *, num_classes=None, sample_weights=None, groups=None, seed: int = 0) -> LinearFit:
    """Fit softmax regression: the logits of classes are linear in the features.

    The penalty on the squares of the kernel is the best of eight by the cross-entropy over five stratified folds. (Of C,
    see scikit-learn's `LogisticRegression`; solved by L-BFGS from the strongest penalty to the weakest, each from the last.)

    Args:
        features: `(rows, features)`, of any kind of number; constant ones get zero weights.
        labels: classes `(rows,)`, integers from 0 on.
        num_classes: outputs; default: the largest label and one more. A class without rows gets a low bias and no kernel.
        sample_weights: `(rows,)`, of the rows' losses, such as the weights of their classes.
        groups: `(rows,)`: rows of one value, such as views of one image, never lie in different folds.
        seed: of the folds.

    Raises:
        DataError: NaN or infinity, different lengths, labels of one class only, fewer than two groups, weights below 0, or
            above it in one fold at most.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        what = received(dtype=str(labels.dtype), shape=labels.shape)
        raise DataError(f"Expected classes `(rows,)`, whole numbers from 0 on. {what}")
    labels = labels.astype("int64")  # `bincount` of NumPy 2.1 takes no unsigned ones
    rows = _Rows(features, labels, sample_weights, groups, seed)
    largest = int(labels.max())
    if num_classes is not None and largest >= num_classes:
        raise DataError(f"Labels must be below `num_classes`. {received(largest=largest, num_classes=num_classes)}")
    if labels.min() == largest:
        raise DataError(f"All labels are of one class: there is nothing to tell apart. {received(label=largest)}")
    c, (held,), ((kernel, bias),) = _fit_by_cross_validation(rows, [labels], num_classes or largest + 1)
    accuracy = float((held.argmax(axis=1) == labels).mean())
    raw = rows.for_raw_features(kernel, bias)
    return LinearFit(*raw, "softmax", c, held.astype("float32"), accuracy, rows.in_several_folds(labels))


@_in_one_thread
def fit_sigmoid(features, labels, *, sample_weights=None, groups=None, seed: int = 0) -> LinearFit:
    """Fit one logistic regression for each of several labels, all with the penalty that is best for them together.

    Args:
        features, sample_weights, groups, seed: as in `fit_softmax`.
        labels: `(rows, labels)`, or `(rows,)` for one: 1 where the row has the label, and 0 where not. A label that all
            rows have, or none, gets a bias and no kernel.

    Raises:
        DataError: as `fit_softmax`; labels other than 0 and 1; no label that some rows have and others don't.
    """
    labels = np.asarray(labels)
    labels = labels[:, None] if labels.ndim == 1 else labels
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise DataError(f"Expected labels `(rows, labels)` of 0 and 1. {received(shape=labels.shape)}")
    labels = labels.astype("int64")
    rows = _Rows(features, np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1), sample_weights, groups, seed)
    if not np.ptp(labels, axis=0).any():
        raise DataError(f"All rows have the same labels: there is nothing to tell apart. {received(row=labels[0])}")
    c, held, fits = _fit_by_cross_validation(rows, list(labels.T), 2)
    kernel = np.stack([kernel[:, 1] - kernel[:, 0] for kernel, _ in fits], axis=1)
    bias = np.array([bias[1] - bias[0] for _, bias in fits])
    held = np.stack([one[:, 1] for one in held], axis=1).astype("float32")
    accuracy = float(((held > 0.5) == labels).mean())
    return LinearFit(*rows.for_raw_features(kernel, bias), "sigmoid", c, held, accuracy)


@_in_one_thread
def fit_ridge(features, numbers, *, sample_weights=None, groups=None, seed: int = 0) -> LinearFit:
    """Fit ridge regression: numbers that are linear in the features (Hoerl and Kennard, 1970).

    Args:
        features, sample_weights, groups, seed: as in `fit_softmax`.
        numbers: `(rows, numbers)`, or `(rows,)` for one.

    Raises:
        DataError: as `fit_softmax`, for numbers that are all the same as well.
    """
    numbers = np.asarray(numbers, "float64")
    numbers = numbers[:, None] if numbers.ndim == 1 else numbers
    if numbers.ndim != 2 or not np.isfinite(numbers).all():
        raise DataError(f"Expected finite numbers `(rows, numbers)`. {received(shape=numbers.shape)}")
    rows = _Rows(features, numbers[:, 0], sample_weights, groups, seed)
    distances = numbers - np.average(numbers, axis=0, weights=rows.weights)
    spread = np.average(distances**2, axis=0, weights=rows.weights)
    if not spread.any():
        raise DataError(f"All numbers are the same: there is nothing to predict. {received(row=numbers[0])}")
    held = np.zeros((len(_RIDGE_STRENGTHS), *numbers.shape))
    for train, test in rows.folds():
        for place, (kernel, bias) in enumerate(_ridge_path(rows, numbers, train)):
            held[place, test] = rows.values[test] @ kernel + bias
    squares = np.average((held - numbers) ** 2, axis=1, weights=rows.weights)[:, spread > 0] / spread[spread > 0]
    best = squares.mean(axis=1).argmin()
    kernel, bias = _ridge_path(rows, numbers, slice(None))[best]
    c = float(_RIDGE_STRENGTHS[best] / np.square(rows.values).sum())
    accuracy = float(1 - squares[best].mean())
    return LinearFit(*rows.for_raw_features(kernel, bias), "linear", c, held[best].astype("float32"), accuracy)


def folds_of(keys, groups=None, *, count: int = _FOLDS, seed: int = 0) -> np.ndarray:
    """Return the number of each row's fold, `(rows,)`: of each value of `keys` about as many in all folds, groups whole.

    Raises `DataError` for fewer than two groups.
    """
    keys, groups = np.asarray(keys), np.arange(len(keys)) if groups is None else np.asarray(groups)
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise DataError(f"Cross-validation needs at least two images. {received(images=len(first))}")
    shuffled = np.random.default_rng(seed).permutation(len(first))
    in_order = shuffled[np.argsort(keys[first][shuffled], kind="stable")]
    fold = np.empty(len(first), "int64")
    fold[in_order] = np.arange(len(first)) % min(count, len(first))  # dealt out like cards, class after class
    return fold[group.reshape(-1)]


def check_weights(weights, count: int) -> np.ndarray | None:
    """Return sample weights as float64 `(count,)`, of a column too, which `fit` takes as well.

    Raises `DataError` unless they are finite, from 0 on, and not all 0.
    """
    if weights is None:
        return None
    found = np.asarray(weights)
    found = found[:, 0] if found.shape == (count, 1) else found
    is_number = found.dtype.kind in "iufb" and found.shape == (count,) and np.isfinite(found).all()
    if not is_number or (found < 0).any() or not found.any():
        what = {"smallest": found.min().item(), "largest": found.max().item()} if is_number and count else {}
        raise DataError(
            f"Sample weights must be finite numbers `({count},)`, one for each image, from 0 on and not all 0. "
            f"{received(dtype=str(found.dtype), shape=found.shape, **what)}"
        )
    return found.astype("float64")


class _Rows:
    """Features, centred, scaled and turned into as few columns as hold them; weights; folds."""

    def __init__(self, features, keys, sample_weights, groups, seed):
        features = np.asarray(features)
        given = {"labels": keys, "sample_weights": sample_weights, "groups": groups}
        lengths = {name: len(one) for name, one in given.items() if one is not None}
        if features.ndim != 2 or any(length != len(features) for length in lengths.values()):
            raise DataError(f"Expected features `(rows, features)`. {received(features=features.shape, **lengths)}")
        large = features.size >= _LARGE
        values = features.astype("float32" if large else "float64")
        if not np.isfinite(values).all() or not len(values):
            raise DataError(f"Expected features without NaN or infinity. {received(features=features.shape)}")
        self.weights = check_weights(sample_weights, len(values))
        self._folds = folds_of(keys, groups, count=3 if large else _FOLDS, seed=seed)
        if self.weights is not None and not all(self.weights[train].any() for train, _ in self.folds()):
            raise DataError(
                "Cross-validation needs sample weights above 0 in several folds. Give more rows a weight. "
                f"{received(rows_with_weight=int(np.count_nonzero(self.weights)))}"
            )
        self._mean, deviation = values.mean(axis=0, dtype="float64"), values.std(axis=0, dtype="float64")
        varies = deviation > 1e-6 * np.abs(values).max(axis=0)
        self.strength = max(varies.sum(), 1)
        spread = np.sqrt(np.square(deviation[varies]).sum() / self.strength) or 1.0  # the same for all features
        self._scale = np.where(varies, spread, np.inf)
        values = ((values - self._mean) / self._scale).astype(values.dtype)
        is_wide = values.shape[1] > len(values) and values.any()  # of constant features no row spans anything
        self.values, self._turn = _in_row_space(values) if is_wide else (values, None)

    def folds(self):
        """Yield for each fold the indices of the rows to fit on, and of those to predict."""
        for fold in range(self._folds.max() + 1):
            yield np.flatnonzero(self._folds != fold), np.flatnonzero(self._folds == fold)

    def in_several_folds(self, labels) -> np.ndarray:
        """Tell of each row whether its class lies in more than one fold: only then was it seen before it was predicted."""
        pairs = np.unique(np.stack([labels, self._folds]), axis=1)
        return np.bincount(pairs[0])[labels] > 1

    def for_raw_features(self, kernel, bias) -> tuple[np.ndarray, np.ndarray]:
        """Return kernel and bias for features as they came, float32."""
        kernel = (kernel if self._turn is None else self._turn @ kernel) / self._scale[:, None]
        return kernel.astype("float32"), (bias - self._mean @ kernel).astype("float32")


def _in_row_space(values) -> tuple[np.ndarray, np.ndarray]:
    """Return rows in at most as many columns as there are rows, and the matrix that leads from those to the features.

    It is exact for what is penalized by its squares alone: the solution lies in the rows' span, whatever the axes there.
    """
    squares, vectors = np.linalg.eigh((values @ values.T).astype("float64"))
    kept = squares > max(squares[-1], 0) * 1e-10
    lengths, vectors = np.sqrt(squares[kept]), vectors[:, kept]
    return (vectors * lengths).astype(values.dtype), values.T @ (vectors / lengths)


def _fit_by_cross_validation(rows, targets, classes: int):
    """Fit a softmax regression for each target `(rows,)` at the strength that is best for all of them.

    Returns C, the held-out probabilities of each, and `(kernel, bias)` of each fitted on all rows.
    """
    values, best = rows.values.astype("float32"), (np.inf, None, None)  # twice as fast, and exact enough to compare by
    folds = [(train, test, [_Classifier(classes, _ROUGHLY) for _ in targets]) for train, test in rows.folds()]
    for strength in _STRENGTHS:
        c, held = float(strength / rows.strength), np.zeros((len(targets), len(values), classes))
        for train, test, classifiers in folds:
            for place, (target, classifier) in enumerate(zip(targets, classifiers, strict=True)):
                weights = None if rows.weights is None else rows.weights[train]
                kernel, bias = classifier.fit(values[train], target[train], c, weights)
                held[place, test] = softmax(values[test] @ kernel + bias, axis=1)
        loss = np.mean([cross_entropy(one, target, rows.weights) for one, target in zip(held, targets, strict=True)])
        if loss >= best[0]:
            break
        best = loss, c, held
    _, c, held = best
    return c, held, [_Classifier(classes).fit(rows.values, target, c, rows.weights) for target in targets]


class _Classifier:
    """Softmax regression that goes on from its last solution."""

    def __init__(self, classes: int, tolerance: float = 1e-4):
        from sklearn.linear_model import LogisticRegression  # costs a second, and few calls need it

        self._classes = classes
        self._model = LogisticRegression(max_iter=_MOST_STEPS, warm_start=True, tol=tolerance)

    def fit(self, values, target, c: float, weights) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel `(features, classes)` and the bias `(classes,)`."""
        kernel = np.zeros((values.shape[1], self._classes))
        counts = np.bincount(target, minlength=self._classes)
        present = counts.nonzero()[0]
        if len(present) == 1:
            return kernel, np.log(counts + 0.5)
        self._model.set_params(C=c)
        self._model.fit(values, target, weights)
        slopes, biases = self._model.coef_, self._model.intercept_
        if len(present) == 2:  # scikit-learn's are those of the second class alone
            slopes, biases = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-biases, biases]) / 2
        bias = np.full(self._classes, biases.min() - _ABSENT)
        kernel[:, present], bias[present] = slopes.T, biases
        return kernel, bias


def _ridge_path(rows, numbers, chosen) -> list:
    """Return `(kernel, bias)` of ridge regression on the chosen rows, for each strength."""
    values, numbers = rows.values[chosen].astype("float64"), numbers[chosen]
    weights = np.ones(len(values)) if rows.weights is None else rows.weights[chosen] / rows.weights[chosen].mean()
    center, mean = np.average(values, axis=0, weights=weights), np.average(numbers, axis=0, weights=weights)
    weighted = (values - center).T * weights
    squares, axes = np.linalg.eigh(weighted @ (values - center))
    along, total, path = axes.T @ (weighted @ (numbers - mean)), max(squares.sum(), 1e-12), []
    for strength in _RIDGE_STRENGTHS:
        kernel = axes @ (along / (np.maximum(squares, 0) + total / strength)[:, None])
        path.append((kernel, mean - center @ kernel))
    return path


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray, weights=None) -> float:
    """Return the mean cross-entropy in nats of probabilities `(rows, classes)` for classes `(rows,)`."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(np.average(-np.log(np.maximum(chosen, 1e-12)), weights=weights))
