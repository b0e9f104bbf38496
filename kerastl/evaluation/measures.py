"""How good is a classifier: accuracy, the confusion matrix, the scores of each class, the most confident mistakes."""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from kerastl.checks import check_choice, check_count, received
from kerastl.data.batches import adapt, find_source
from kerastl.errors import DataError
from kerastl.evaluation.probabilities import VIEWS, class_names_for, class_probabilities
from kerastl.models import outputs
from kerastl.tables import Printed, Table


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """How well one class was recognized; what has no meaning (0 divided by 0) is `None`.

    Attributes:
        name: the class.
        precision: of the images that were called so, the share that are.
        recall: of the images that are so, the share that were called so.
        f1: the harmonic mean of the two.
        support: the number of images of this class.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """The most confident mistakes, the most confident first.

    Attributes:
        images: uint8 RGB arrays `(height, width, 3)`.
        labels: the true classes, `(count,)`.
        probabilities: what the model predicted, `(count, classes)`.
        positions: which images of the data they are, counted from 0.
    """

    images: list[np.ndarray]
    labels: np.ndarray
    probabilities: np.ndarray
    positions: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation(Printed):
    """How a classifier does on labelled images; prints as a table.

    Attributes:
        class_names: in the order of the labels.
        confusion_matrix: counts, `(classes, classes)`; rows are the true class, columns the predicted one.
        mistakes: the most confident ones, with their images.
        views: how many views of each image were averaged.
    """

    class_names: list[str]
    confusion_matrix: np.ndarray
    mistakes: Mistakes
    views: int = 1

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

        def ratio(part, whole):
            return float(part / whole) if whole else None

        return [
            ClassScore(name, ratio(hit, calls), ratio(hit, total), ratio(2 * hit, calls + total), int(total))
            for name, hit, calls, total in zip(self.class_names, hits, called, support, strict=True)
        ]

    def to_rows(self) -> list[dict]:
        """Return a dictionary per class, for pandas."""
        return [dataclasses.asdict(score) for score in self.per_class]

    def _tables(self) -> list[Table]:
        headline = (
            f"accuracy {self.accuracy:.3f} ± {self.standard_error:.3f} on {self.count} images"
            f" (always {self.majority_class!r}: {self.majority_baseline:.3f})"
        )
        return [score_table(self.to_rows(), headline)]


def score_table(per_class: list[dict], title: str | None = None) -> Table:
    """Return precision, recall, F1 and support of each class as a table; what has no meaning is a dash."""
    rows = []
    for row in per_class:
        scores = ["-" if row[score] is None else f"{row[score]:.3f}" for score in ("precision", "recall", "f1")]
        rows.append([row["name"], *scores, str(row["support"])])
    return Table(["class", "precision", "recall", "F1", "images"], rows, right={1, 2, 3, 4}, title=title)


def evaluate(
    model: keras.Model,
    data,
    class_names=None,
    *,
    views: int = 1,
    mistakes: int = 12,
    preprocessing: Callable | str | None = "auto",
) -> Evaluation:
    """Judge a classifier on labelled images, batch by batch.

    Args:
        model: a classifier of RGB images, compiled or not.
        data: images and labels as `fit` takes them: a `tf.data.Dataset` of batches, such as `load_images(...).test`, a
            `keras.utils.PyDataset`, or a pair of arrays. Labels are integers or one-hot.
        class_names: one name per class, in the order of the labels.
        views: 1, 2 or 4: how many flips of each image are averaged, see `predict`.
        mistakes: how many of the most confident mistakes to keep.
        preprocessing: what is done to pixels 0–255 before the model, see `predict`. What `load_images` and Keras's
            `image_dataset_from_directory` return counts as files, all else as arrays.

    Returns:
        An `Evaluation`.

    Raises:
        DataError: no images, images or labels that don't fit the model, not one name per class.
        ArgumentError: another argument that can't be used.
        ModelError: the model is no classifier of RGB images.
    """
    check_choice("views", views, VIEWS)
    check_count("mistakes", mistakes, smallest=0)
    names = class_names_for(model, class_names)
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    kept = Mistakes([], np.zeros(0, int), np.zeros((0, len(names))), np.zeros(0, int))
    largest = 0
    for images, labels in adapt(data).labelled_batches(len(names)):
        if not largest:
            outputs.check_size(model, images)
            files = find_source(data) is not None or hasattr(data, "file_paths")
            outputs.check_range(outputs.pixel_range(model), preprocessing, [images], files=files)
        largest = max(largest, len(images))
        given = outputs.preprocess(images, preprocessing)
        probabilities = class_probabilities(model, given, views=views, batch_size=largest)
        kept = _merge_mistakes(kept, images, labels, probabilities, int(matrix.sum()), mistakes)
        np.add.at(matrix, (labels, probabilities.argmax(axis=1)), 1)
    if not matrix.any():
        raise DataError(f"There are no images to evaluate on. {received(data=data)}")
    return Evaluation(names, matrix, kept, views)


def most_confident_mistakes(labels, probabilities, count: int) -> np.ndarray:
    """Return the indexes of at most `count` wrong predictions, the most confident first.

    `labels` are integers, `(n,)`, `probabilities` what the model predicted, `(n, classes)`.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if not len(labels):
        return np.zeros(0, dtype=int)
    confidence = np.where(probabilities.argmax(axis=1) == labels, -1.0, probabilities.max(axis=1))
    order = np.argsort(-confidence, kind="stable")
    return order[confidence[order] >= 0][:count]


def _merge_mistakes(kept: Mistakes, images, labels, probabilities, start: int, count: int) -> Mistakes:
    """Return the `count` most confident of the mistakes kept so far and those of one more batch."""
    before = len(kept.images)
    positions = np.concatenate([kept.positions, start + np.arange(len(images))])
    labels = np.concatenate([kept.labels, labels])
    probabilities = np.concatenate([kept.probabilities, probabilities])
    order = most_confident_mistakes(labels, probabilities, count)
    chosen = [kept.images[at] if at < before else np.clip(images[at - before], 0, 255).astype("uint8") for at in order]
    return Mistakes(chosen, labels[order], probabilities[order], positions[order])
