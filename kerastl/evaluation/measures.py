"""How good is a model: scores in all and of each class, label or number, the confusion matrix, the worst mistakes."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from kerastl.checks import check_choice, check_count, received
from kerastl.data.batches import adapt, find_source
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.errors import DataError, ModelError
from kerastl.evaluation.inputs import check_range, preprocess
from kerastl.evaluation.probabilities import (
    VIEWS,
    check_thresholds,
    class_names_for,
    class_probabilities,
    decide,
    find_task,
)
from kerastl.models import outputs
from kerastl.tables import Printed, Table
from kerastl.training.scoring import prepare_labels


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """How well one class was recognized; what has no meaning (0 divided by 0) is `None`."""

    name: str  # of the class
    precision: float | None  # of the images that were called so, the share that are
    recall: float | None  # of the images that are so, the share that were called so
    f1: float | None  # the harmonic mean of the two
    support: int  # the number of images of this class


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """The most confident mistakes, the most confident first."""

    images: list[np.ndarray]  # uint8 RGB, `(height, width, 3)`
    labels: np.ndarray  # the true classes, `(count,)`, or the true labels or numbers, `(count, names)`
    probabilities: np.ndarray  # what the model predicted, `(count, classes)`
    positions: np.ndarray  # which images of the data they are, counted from 0


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation(Printed):
    """How a classifier does on labelled images; prints as a table.

    Attributes:
        class_names: in the order of the labels.
        confusion_matrix: counts, `(classes, classes)`; rows are the true class, columns the predicted one.
        mistakes: the most confident ones, with their images.
        views: how many views of each image were averaged.
        thresholds: from which probability on each of two classes was named; `None`: the more probable one.
    """

    class_names: list[str]
    confusion_matrix: np.ndarray
    mistakes: Mistakes
    views: int = 1
    thresholds: np.ndarray | None = None
    task = CLASSIFICATION

    @property
    def count(self) -> int:
        """The number of images."""
        return int(self.confusion_matrix.sum())

    @property
    def accuracy(self) -> float:
        """The share of images that were classified rightly."""
        return float(np.trace(self.confusion_matrix) / self.count)

    @property
    def standard_error(self) -> float:
        """The standard error of the accuracy by the binomial distribution, `sqrt(p (1 - p) / n)`."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.count)

    @property
    def majority_class(self) -> str:
        """The most frequent class of these images."""
        return self.class_names[int(self.confusion_matrix.sum(axis=1).argmax())]

    @property
    def majority_baseline(self) -> float:
        """The accuracy of always predicting the most frequent class of these images."""
        return float(self.confusion_matrix.sum(axis=1).max() / self.count)

    @property
    def per_class(self) -> list[ClassScore]:
        """Precision, recall, F1 and support of every class."""
        hits, support = np.diag(self.confusion_matrix), self.confusion_matrix.sum(axis=1)
        called = self.confusion_matrix.sum(axis=0)
        rows = zip(self.class_names, hits, called, support, strict=True)
        return [ClassScore(name, **_scores(*counts)) for name, *counts in rows]

    @property
    def scores(self) -> dict[str, float]:
        """The accuracy, by its name."""
        return {"accuracy": self.accuracy}

    @property
    def baseline(self) -> dict[str, float]:
        """The accuracy of always predicting the most frequent class, by its name."""
        return {"accuracy": self.majority_baseline}

    @property
    def baseline_name(self) -> str:
        """What the baseline is, in words."""
        return f"always predicting '{self.majority_class}'"

    def to_rows(self) -> list[dict]:
        """Return a dictionary per class, for pandas."""
        return [dataclasses.asdict(score) for score in self.per_class]

    def _tables(self) -> list[Table]:
        own = f"accuracy {self.accuracy:.3f} ± {self.standard_error:.3f} on {self.count} images"
        return [score_table(self.to_rows(), f"{own} (always '{self.majority_class}': {self.majority_baseline:.3f})")]


@dataclasses.dataclass(frozen=True, repr=False)
class OutputsEvaluation(Printed):
    """How a model does that gives each image several labels or numbers; prints as a table.

    A label counts as predicted from a probability of 0.5 on, or of its threshold. Scores are means over the labels or numbers.
    """

    task: str  # "multi-label" or "regression"
    class_names: list[str]  # of the labels or numbers, in the order of the columns
    labels: np.ndarray  # what is true, 0 and 1, or numbers, `(images, names)`
    outputs: np.ndarray  # what the model says, `(images, names)`
    mistakes: Mistakes  # the images with the surest wrong label, or the largest error
    views: int = 1  # how many views of each image were averaged
    thresholds: np.ndarray | None = None  # of each label

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def scores(self) -> dict[str, float | None]:
        """Average precision, F1 and accuracy (the share of labels that are right); of numbers MAE, RMSE and R²."""
        return self._mean_scores(self.to_rows())

    @property
    def baseline(self) -> dict[str, float | None]:
        """The scores of always saying the mean of these images' labels or numbers."""
        return self._mean_scores(self._rows(np.broadcast_to(self.labels.mean(axis=0), self.labels.shape)))

    baseline_name = "always the mean of these images"

    def to_rows(self) -> list[dict]:
        """Return a dictionary of scores per label or number, for pandas; what has no meaning is `None`."""
        return self._rows(self.outputs, self.thresholds)

    def _rows(self, outputs, thresholds=None) -> list[dict]:
        score = _label_scores if self.task == MULTI_LABEL else _number_scores
        said = decide(outputs, self.task, thresholds)
        columns = zip(self.class_names, self.labels.T, outputs.T, said.T, strict=True)
        return [{"name": name, **score(*values)} for name, *values in columns]

    def _mean_scores(self, rows: list[dict]) -> dict[str, float | None]:
        keys = ("average_precision", "f1", "accuracy") if self.task == MULTI_LABEL else ("mae", "rmse", "r2")
        known = {key: [row[key] for row in rows if row[key] is not None] for key in keys}
        return {key: float(np.mean(values)) if values else None for key, values in known.items()}

    def _tables(self) -> list[Table]:
        own, base = (", ".join(map(" ".join, shown_scores(one).items())) for one in (self.scores, self.baseline))
        headline = f"{own} on {self.count} images ({self.baseline_name}: {base})"
        return [score_table(self.to_rows(), headline, self.task)]


def _label_scores(labels: np.ndarray, probabilities: np.ndarray, said: np.ndarray) -> dict:
    scores = _scores((labels & said).sum(), said.sum(), labels.sum())
    support = scores.pop("support")  # comes last
    scores["average_precision"] = average_precision(labels, probabilities)
    scores["accuracy"] = float((said == labels).mean())
    return {**scores, "support": support}


def _number_scores(labels: np.ndarray, numbers: np.ndarray, _) -> dict:
    squares = float(((numbers - labels) ** 2).mean())
    variance = float(labels.var())
    r2 = 1 - squares / variance if variance else None
    mae = float(np.abs(numbers - labels).mean())
    return {"mae": mae, "rmse": math.sqrt(squares), "r2": r2, "support": len(labels)}


def _scores(hits: int, called: int, support: int) -> dict:
    """Return the fields of a `ClassScore` but its name."""

    def ratio(part, whole):
        return float(part / whole) if whole else None

    ratios = {"precision": ratio(hits, called), "recall": ratio(hits, support), "f1": ratio(2 * hits, called + support)}
    return {**ratios, "support": int(support)}


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Return the mean of the precision at each image that has the label, the surest first; equal scores count at once."""
    from sklearn.metrics import average_precision_score  # slow to import, and few calls need it

    return float(average_precision_score(labels, scores)) if labels.any() else None


_HEADINGS = {"f1": "F1", "mae": "MAE", "rmse": "RMSE", "r2": "R²", "support": "images"}
_FORMATS = {"support": "", "mae": ".4g", "rmse": ".4g"}


def shown_scores(scores: dict) -> dict[str, str]:
    """Return heading → figure of scores as they are printed; what has no meaning is a dash."""
    return {
        _HEADINGS.get(name, name.replace("_", " ")): "-" if value is None else format(value, _FORMATS.get(name, ".3f"))
        for name, value in scores.items()
    }


def score_table(rows: list[dict], title: str | None = None, task: str = CLASSIFICATION) -> Table:
    """Return the scores of each class, label or number as a table."""
    shown = [shown_scores({key: value for key, value in row.items() if key != "name"}) for row in rows]
    header = [{CLASSIFICATION: "class", MULTI_LABEL: "label", REGRESSION: "number"}[task], *shown[0]]
    cells = [[row["name"], *figures.values()] for row, figures in zip(rows, shown, strict=True)]
    return Table(header, cells, right=range(1, len(header)), title=title)


def evaluate(
    model: keras.Model,
    data,
    class_names=None,
    *,
    views: int = 1,
    mistakes: int = 12,
    preprocessing: Callable[..., Any] | str | None = "auto",
    task: str | None = None,
    thresholds=None,
) -> Evaluation | OutputsEvaluation:
    """Judge a model on labelled images, batch by batch.

    Args:
        model: a classifier of RGB images, or a model that gives them several labels or numbers, compiled or not.
        data: images and labels as `fit` takes them: a `tf.data.Dataset` of batches, such as `load_images(...).test`, a
            `keras.utils.PyDataset`, or a pair of arrays. Labels are integers or one-hot; rows of 0 and 1; or numbers.
        class_names: one name per class, label or number, in the order of the labels.
        views: 1, 2 or 4: how many flips of each image are averaged, see `predict`.
        mistakes: how many of the most confident mistakes, or of the largest errors, to keep.
        preprocessing: what is done to pixels 0–255 before the model, see `predict`. What `load_images` and Keras's
            `image_dataset_from_directory` return counts as files, all else as arrays.
        task, thresholds: what the outputs are, and from which probabilities on labels count, see `predict`.

    Returns:
        An `Evaluation`; of several labels or of numbers an `OutputsEvaluation`.

    Raises:
        DataError: no images, images or labels that don't fit the model, not one name per class.
        ArgumentError: another argument that can't be used.
        ModelError: the model is none of RGB images.

    Example:
        >>> evaluation = kerastl.evaluate(model, data.test, data.class_names)
        >>> evaluation.count, evaluation.majority_baseline
        (4, 0.5)
    """
    check_count("mistakes", mistakes, smallest=0)
    options = {"views": views, "preprocessing": preprocessing, "task": task}
    task, names, batches = run_on(model, data, class_names, **options)
    limits = check_thresholds(thresholds, names, task)
    kept, judged, count = Mistakes([], None, None, np.zeros(0, int)), [], 0
    for images, labels, values in batches:
        kept = _merge_mistakes(kept, images, labels, values, count, mistakes, task, limits)
        judged.append((labels, decide(values, task, limits) if task == CLASSIFICATION else values))
        count += len(images)
    labels, values = map(np.concatenate, zip(*judged, strict=True))
    if task != CLASSIFICATION:
        return OutputsEvaluation(task, names, labels, values, kept, views, limits)
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(matrix, (labels, values), 1)
    return Evaluation(names, matrix, kept, views, limits)


def run_on(
    model: keras.Model, data, class_names=None, *, views: int = 1, preprocessing="auto", task: str | None = None
) -> tuple[str, list[str], Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Return task, names, and what yields `(images, labels, outputs)` of each batch; arguments and errors as of `evaluate`.

    Labels are what `prepare_labels` returns, outputs what `class_probabilities` does.
    """
    check_choice("views", views, VIEWS)
    if len(inputs := getattr(model, "inputs", None) or ()) > 1:
        raise ModelError(
            f"The model must take images alone; judge others by `model.evaluate`. {received(model_inputs=len(inputs))}"
        )
    rows = adapt(data)
    task = find_task(model, class_names, labels=(rows.first or (None, None))[1], task=task)
    names = class_names_for(model, class_names, task)

    def batches():
        largest = 0
        for images, given_labels, _ in rows.batches():
            if not len(images):
                continue
            labels = prepare_labels(given_labels, len(names), task)
            if not largest:
                outputs.check_size(model, images)
                files = find_source(data) is not None or hasattr(data, "file_paths")
                check_range(outputs.pixel_range(model), preprocessing, [images], files=files)
            largest = max(largest, len(images))
            given = preprocess(images, preprocessing)
            yield images, labels, class_probabilities(model, given, views=views, batch_size=largest, task=task)
        if not largest:
            raise DataError(f"There are no images to evaluate on. {received(data=data)}")

    return task, names, batches()


def gather(batches) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and outputs of all images that `run_on` yields."""
    labels, values = zip(*(one[1:] for one in batches), strict=True)
    return np.concatenate(labels), np.concatenate(values)


def most_confident_mistakes(
    labels, probabilities, count: int, task: str = CLASSIFICATION, thresholds: np.ndarray | None = None
) -> np.ndarray:
    """Return the indexes of at most `count` wrong predictions, the most confident (of numbers the largest errors) first.

    `labels` are what `prepare_labels` returns, `probabilities` what the model predicted, `(n, classes)`.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if not len(labels):
        return np.zeros(0, dtype=int)
    confidence = wrongness(labels, probabilities, task, thresholds).max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    return order[confidence[order] > 0][:count]


def wrongness(labels: np.ndarray, outputs: np.ndarray, task: str, thresholds: np.ndarray | None = None) -> np.ndarray:
    """Return the error of each number, or how sure the model is of each wrong class or label, 0 of right ones."""
    if task == REGRESSION:
        return np.abs(outputs - labels)
    said = decide(outputs, task, thresholds)
    if task == CLASSIFICATION:
        named = np.arange(outputs.shape[1]) == said[:, None]
        return np.where(named & (said != labels)[:, None], outputs, 0.0)
    return np.where(said == labels, 0.0, np.where(said, outputs, 1 - outputs))


def _merge_mistakes(kept: Mistakes, images, labels, probabilities, start: int, count: int, *how) -> Mistakes:
    before = len(kept.images)
    positions = np.concatenate([kept.positions, start + np.arange(len(images))])
    if kept.labels is not None:
        labels = np.concatenate([kept.labels, labels])
        probabilities = np.concatenate([kept.probabilities, probabilities])
    order = most_confident_mistakes(labels, probabilities, count, *how)
    chosen = [kept.images[at] if at < before else np.clip(images[at - before], 0, 255).astype("uint8") for at in order]
    return Mistakes(chosen, labels[order], probabilities[order], positions[order])
