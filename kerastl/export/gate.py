"""The gate: what was exported runs beside the Keras model on the same images, and doesn't leave where it answers worse."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable

import keras
import numpy as np

from kerastl.errors import GateError, KerastlWarning
from kerastl.models import outputs
from kerastl.tables import text_table

_CLASSES_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an export may lose.

    Attributes:
        accuracy_loss: of a quantized export, in parts of 1: 0.01 is one point. Without labels nobody knows the accuracy;
            as it can't fall by more than the part of the answers that changed, no more than this part may change.
        agreement: the part of the images on which a float32 export must name the class that Keras names.
    """

    accuracy_loss: float = 0.01
    agreement: float = 0.995


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one export answers, beside the Keras model.

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


class _Tally:
    """What is counted of one export, batch by batch."""

    def __init__(self, classes: int):
        self.count = self.agree = self.labelled = 0
        self.difference = 0.0
        self.broken = False
        self.images, self.keras_hits, self.hits = (np.zeros(classes, int) for _ in range(3))

    def add(self, reference, answers, labels) -> None:
        expected, given = reference.argmax(axis=1), answers.argmax(axis=1)
        self.count += len(reference)
        self.broken = self.broken or not np.isfinite(answers).all()
        self.agree += int((expected == given).sum())
        self.difference = max(self.difference, float(np.abs(reference - answers).max()))
        if labels is not None:
            self.labelled += len(labels)
            classes = len(self.images)
            self.images += np.bincount(labels, minlength=classes)
            self.keras_hits += np.bincount(labels[expected == labels], minlength=classes)
            self.hits += np.bincount(labels[given == labels], minlength=classes)

    def compared(self, name: str, quantize, class_names) -> Comparison:
        labelled = self.labelled == self.count
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
        return Comparison(
            name,
            quantize,
            self.count,
            agreement=self.agree / self.count,
            largest_difference=None if self.broken else self.difference,
            keras_accuracy=float(self.keras_hits.sum() / self.count) if labelled else None,
            accuracy=float(self.hits.sum() / self.count) if labelled else None,
            classes=classes if labelled else [],
        )


def compare(
    model: keras.Model,
    exported: dict[str, Callable[[np.ndarray], np.ndarray]],
    batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
    *,
    quantizations: dict[str, str | None],
    class_names: list[str],
    pixels: str = "float32",
) -> list[Comparison]:
    """Run a Keras model and what was exported of it on the same images.

    Args:
        model: the classifier that was exported, as it was before.
        exported: format → function from pixels to the output.
        batches: `(images, labels)`; labels are integers, or `None`.
        quantizations: format → what was quantized in it.
        class_names: one for each class.
        pixels: type that the exports take.

    Returns:
        A `Comparison` for each format, without a verdict.
    """
    kind = outputs.output_kind(model)
    tallies = {name: _Tally(len(class_names)) for name in exported}
    largest = 0
    for images, labels in batches:
        largest = max(largest, len(images))
        given = np.ascontiguousarray(np.rint(images) if pixels == "uint8" else images, dtype=pixels)
        reference = outputs.class_probabilities(model, given, batch_size=largest)
        for name, run in exported.items():
            tallies[name].add(reference, _probabilities(run(given), kind), labels)
    return [tally.compared(name, quantizations[name], class_names) for name, tally in tallies.items()]


def _probabilities(values, kind) -> np.ndarray:
    """Return probabilities, or the NaN as they are: an export that answers so is for the gate to refuse."""
    values = np.asarray(values, dtype="float32")
    if np.isfinite(values).all():
        return outputs.to_probabilities(values, kind)
    return np.full((len(values), 2 if values.shape[1] == 1 else values.shape[1]), np.nan, "float32")


def judge(comparison: Comparison, limits: Limits) -> Comparison:
    """Return the comparison with its verdict in `failure`."""
    return dataclasses.replace(comparison, failure=_failure(comparison, limits))


def _failure(one: Comparison, limits: Limits) -> str | None:
    if not one.count:
        return None
    if one.largest_difference is None:
        return "it answers NaN or infinity"
    if one.quantize is None and one.agreement < limits.agreement:
        return f"it names Keras's class for {one.agreement:.2%} of the images, and must for {limits.agreement:.2%}"
    if one.quantize is None:
        return None
    if one.accuracy is None and one.agreement < 1 - limits.accuracy_loss:
        return (
            f"it names Keras's class for {one.agreement:.2%} of the images, and must for {1 - limits.accuracy_loss:.2%} "
            "(without labels, so that it can lose no more accuracy than is allowed)"
        )
    lost = 0 if one.accuracy is None else one.keras_accuracy - one.accuracy
    if lost > limits.accuracy_loss + 1e-9:
        return f"it loses {100 * lost:.2f} points of accuracy, and may lose {100 * limits.accuracy_loss:.2f}"
    return None


def check(comparisons: list[Comparison], what: str) -> None:
    """Raise where one of the comparisons failed.

    Args:
        comparisons: judged ones.
        what: the images they were made on, in words.

    Raises:
        GateError: with the table.
    """
    failed = [one for one in comparisons if one.failure]
    if not failed:
        return
    reasons = "; ".join(f"{title_of(one)}: {one.failure}" for one in failed)
    raise GateError(
        f"The export was stopped, and nothing was written. Compared with Keras on {what}: {reasons}.",
        comparison_table(comparisons),
    )


def title_of(comparison: Comparison) -> str:
    """Return what an export is called in tables."""
    return f"{comparison.format} {comparison.quantize or 'float32'}"


def comparison_table(comparisons: list[Comparison]) -> str:
    """Return the comparisons as a table, and one of the classes below it where there are labels."""
    header = ["export", "images", "same class", "largest difference", "Keras's accuracy", "its accuracy", ""]
    rows = [
        [
            title_of(one),
            str(one.count),
            _share(one.agreement),
            "-" if one.largest_difference is None else f"{one.largest_difference:.2g}",
            _share(one.keras_accuracy),
            _share(one.accuracy),
            "FAILED" if one.failure else "passed" if one.count else "not run",
        ]
        for one in comparisons
    ]
    tables = [text_table(header, rows, right={1, 2, 3, 4, 5})]
    return "\n\n".join([*tables, *_class_table(comparisons)])


def _class_table(comparisons) -> list[str]:
    labelled = [one for one in comparisons if one.classes]
    if not labelled:
        return []
    losses = zip(*([entry["lost"] for entry in one.classes] for one in labelled), strict=True)
    order = np.argsort([-max(one) for one in losses], kind="stable")
    rows = [
        [
            labelled[0].classes[place]["name"],
            str(labelled[0].classes[place]["images"]),
            _share(labelled[0].classes[place]["keras"]),
            *(f"{0 - 100 * one.classes[place]['lost']:+.1f}" for one in labelled),
        ]
        for place in order[:_CLASSES_SHOWN]
    ]
    header = ["class", "images", "Keras", *(f"{title_of(one)}, points" for one in labelled)]
    return [text_table(header, rows, right=range(1, len(header)))]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def warn_of_what_was_not_run(comparisons: list[Comparison]) -> None:
    """Warn of exports that this system can't run, so that nobody takes them for compared ones."""
    names = [title_of(one) for one in comparisons if not one.count]
    if names:
        warnings.warn(
            f"{', '.join(names)} was written, but not compared with Keras: this system can't run it.",
            KerastlWarning,
            stacklevel=4,
        )
