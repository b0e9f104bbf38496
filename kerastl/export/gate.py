"""The gate: what was exported runs beside the Keras model on the same images, and is stopped where its outputs are worse."""

import dataclasses
from collections.abc import Callable, Iterable

import keras
import numpy as np

from kerastl.checks import check_fraction
from kerastl.errors import GateError, warn
from kerastl.evaluation.probabilities import class_probabilities, to_probabilities
from kerastl.models import outputs
from kerastl.tables import Printed, Table

_CLASSES_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an export may lose.

    Attributes:
        accuracy_loss: of a quantized export, in parts of 1: 0.01 is one point. Without labels nobody knows the accuracy;
            as it can't fall by more than the part of the classes that changed, no more than this part may change.
        agreement: the part of the images on which a float32 export must name the class that Keras names.
    """

    accuracy_loss: float = 0.01
    agreement: float = 0.995

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, check_fraction(field.name, getattr(self, field.name), zero=True))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The outputs of one export, beside those of the Keras model.

    Attributes:
        format: of the export.
        quantize: what was quantized, `None` for float32.
        count: number of images; 0 where the export can't run on this system.
        agreement: part of the images with the same most probable class.
        largest_difference: between two probabilities of the same class for the same image.
        keras_accuracy, accuracy: of Keras and of the export; `None` without labels.
        classes: a dictionary per class with `name`, `images`, `keras` and `exported` (the part recognized) and `lost`.
        failure: why it doesn't pass, or `None`.
    """

    format: str
    quantize: str | None
    count: int
    agreement: float | None = None
    largest_difference: float | None = None
    keras_accuracy: float | None = None
    accuracy: float | None = None
    classes: list[dict] = dataclasses.field(default_factory=list)
    failure: str | None = None

    @property
    def title(self) -> str:
        """What the export is called in tables."""
        return f"{self.format} {self.quantize or 'float32'}"


class Comparisons(Printed, tuple):
    """A tuple of comparisons that prints as a table, and one of the classes below it where there are labels."""

    def _tables(self):
        header = ["export", "images", "same class", "largest difference", "Keras's accuracy", "its accuracy", ""]
        rows = [
            [
                one.title,
                str(one.count),
                _share(one.agreement),
                "-" if one.largest_difference is None else f"{one.largest_difference:.2g}",
                _share(one.keras_accuracy),
                _share(one.accuracy),
                "FAILED" if one.failure else "passed" if one.count else "not run",
            ]
            for one in self
        ]
        return [Table(header, rows, right={1, 2, 3, 4, 5}), *self._class_table()]

    def _class_table(self):
        labelled = [one for one in self if one.classes]
        if not labelled:
            return []
        same_class = list(zip(*(one.classes for one in labelled), strict=True))
        same_class.sort(key=lambda entries: -max(entry["lost"] for entry in entries))
        rows = [
            [
                entries[0]["name"],
                str(entries[0]["images"]),
                _share(entries[0]["keras"]),
                *(f"{0 - 100 * entry['lost']:+.1f}" for entry in entries),
            ]
            for entries in same_class[:_CLASSES_SHOWN]
        ]
        header = ["class", "images", "Keras", *(f"{one.title}, points" for one in labelled)]
        return [Table(header, rows, right=range(1, len(header)))]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


class _Tally:
    """What is counted of one export, batch by batch."""

    def __init__(self, classes: int):
        self.count = self.agree = self.labelled = 0
        self.difference = 0.0
        self.broken = False
        self.images, self.keras_hits, self.hits = (np.zeros(classes, int) for _ in range(3))

    def add(self, reference, probabilities, labels) -> None:
        expected, given = reference.argmax(axis=1), probabilities.argmax(axis=1)
        self.count += len(reference)
        self.broken = self.broken or not np.isfinite(probabilities).all()
        self.agree += int((expected == given).sum())
        self.difference = max(self.difference, float(np.abs(reference - probabilities).max()))
        if labels is not None:
            self.labelled += len(labels)
            classes = len(self.images)
            self.images += np.bincount(labels, minlength=classes)
            self.keras_hits += np.bincount(labels[expected == labels], minlength=classes)
            self.hits += np.bincount(labels[given == labels], minlength=classes)

    def compared(self, name: str, quantize, class_names) -> Comparison:
        difference = None if self.broken else self.difference
        whole = Comparison(name, quantize, self.count, self.agree / self.count, difference)
        if self.labelled < self.count:
            return whole
        classes = [
            {
                "name": label,
                "images": int(images),
                "keras": float(before / images),
                "exported": float(after / images),
                "lost": float((before - after) / images),
            }
            for label, images, before, after in zip(class_names, self.images, self.keras_hits, self.hits, strict=True)
            if images
        ]
        accuracies = [float(hits.sum() / self.count) for hits in (self.keras_hits, self.hits)]
        return dataclasses.replace(whole, keras_accuracy=accuracies[0], accuracy=accuracies[1], classes=classes)


def compare(
    model: keras.Model,
    exported: dict[str, Callable[[np.ndarray], np.ndarray]],
    batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
    *,
    quantizations: dict[str, str | None],
    limits: Limits,
    class_names: list[str],
    pixels: str,
) -> Comparisons:
    """Run a Keras model and what was exported of it on the same images.

    Args:
        model: the classifier that was exported, as it was before.
        exported: format → function from pixels to the output, of those that run on this system.
        batches: `(images, labels)`; labels are integers, or `None`.
        quantizations: of all formats → what was quantized in it.
        limits: what may be lost.
        class_names: one for each class.
        pixels: type that the exports take.

    Returns:
        A judged `Comparison` for each format, in the order of those that run here, then the others.
    """
    kind = outputs.output_kind(model)
    tallies = {name: _Tally(len(class_names)) for name in exported}
    largest = 0
    for images, labels in batches:
        largest = max(largest, len(images))
        given = np.ascontiguousarray(np.rint(images) if pixels == "uint8" else images, dtype=pixels)
        reference = class_probabilities(model, given, batch_size=largest)
        for name, run in exported.items():
            tallies[name].add(reference, _probabilities(run(given), kind), labels)
    compared = [tally.compared(name, quantizations[name], class_names) for name, tally in tallies.items()]
    others = [Comparison(name, quantize, 0) for name, quantize in quantizations.items() if name not in exported]
    return Comparisons([*(judge(one, limits) for one in compared), *others])


def _probabilities(values, kind) -> np.ndarray:
    """Return probabilities, or the NaN as they are: an export with such outputs is for the gate to refuse."""
    values = np.asarray(values, dtype="float32")
    if np.isfinite(values).all():
        return to_probabilities(values, kind)
    return np.full((len(values), 2 if values.shape[1] == 1 else values.shape[1]), np.nan, "float32")


def judge(comparison: Comparison, limits: Limits) -> Comparison:
    """Return the comparison with its verdict in `failure`."""
    return dataclasses.replace(comparison, failure=_failure(comparison, limits))


def _failure(one: Comparison, limits: Limits) -> str | None:
    if not one.count:
        return None
    if one.largest_difference is None:
        return "its outputs hold NaN or infinity"
    if one.quantize is None or one.accuracy is None:
        needed = limits.agreement if one.quantize is None else 1 - limits.accuracy_loss
        why = "" if one.quantize is None else " (without labels, so that it can lose no more accuracy than is allowed)"
        if one.agreement < needed:
            return f"it names Keras's class for {one.agreement:.2%} of the images, and must for {needed:.2%}{why}"
        return None
    lost = one.keras_accuracy - one.accuracy
    if lost > limits.accuracy_loss + 1e-9:
        return f"it loses {100 * lost:.2f} points of accuracy, and may lose {100 * limits.accuracy_loss:.2f}"
    return None


def check(comparisons: Comparisons, what: str) -> None:
    """Raise `GateError`, with the table, where one of the comparisons failed; `what` says which images were used."""
    failed = [one for one in comparisons if one.failure]
    if failed:
        reasons = "; ".join(f"{one.title}: {one.failure}" for one in failed)
        raise GateError(
            f"The export was stopped, and nothing was written. Compared with Keras on {what}: {reasons}.",
            str(comparisons),
        )


def warn_of_what_was_not_run(comparisons: Comparisons) -> None:
    """Warn of exports that this system can't run, so that nobody takes them for compared ones."""
    names = [one.title for one in comparisons if not one.count]
    if names:
        warn(
            f"{', '.join(names)} was written, but not compared with Keras: this system can't run it.",
        )
