"""The gate: what was exported runs beside the Keras model on the same images, and is stopped where its outputs are worse."""

import dataclasses
from collections.abc import Callable, Iterable

import keras
import numpy as np

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
        tables = [Table(header, rows, right={1, 2, 3, 4, 5})]
        labelled = [one for one in self if one.classes]
        if labelled:
            same_class = list(zip(*(one.classes for one in labelled), strict=True))
            same_class.sort(key=lambda entries: -max(entry["lost"] for entry in entries))
            header = ["class", "images", "Keras", *(f"{one.title}, points" for one in labelled)]
            rows = [
                [first["name"], str(first["images"]), _share(first["keras"])]
                + [f"{0 - 100 * entry['lost']:+.1f}" for entry in (first, *others)]
                for first, *others in same_class[:_CLASSES_SHOWN]
            ]
            tables.append(Table(header, rows, right=range(1, len(header))))
        return tables


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def compare(
    model: keras.Model,
    exported: dict[str, Callable[[np.ndarray], np.ndarray]],
    batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
    *,
    quantizations: dict[str, str | None],
    limits: Limits,
    class_names: list[str],
    pixels: str,
    preprocessing="auto",
) -> Comparisons:
    """Run a Keras model and what was exported of it on the same images.

    Args:
        model: the classifier that was exported, as it was before.
        exported: format → function from pixels to the output, of those that run on this system.
        batches: `(images, labels)`; labels are integers, or `None`.
        quantizations: of all formats → what was quantized in it.
        limits, class_names: what may be lost; one name for each class.
        pixels: type that the exports take.
        preprocessing: what the Keras model needs and the exports hold, see `outputs.preprocess`.

    Returns:
        A judged `Comparison` for each format, in the order of those that run here, then the others.
    """
    kind = outputs.output_kind(model)
    expected, known, found, differences = [], [], {name: [] for name in exported}, dict.fromkeys(exported, 0.0)
    largest = 0
    for images, labels in batches:
        largest = max(largest, len(images))
        given = np.ascontiguousarray(np.rint(images) if pixels == "uint8" else images, dtype=pixels)
        reference = class_probabilities(model, outputs.preprocess(given, preprocessing), batch_size=largest)
        expected.append(reference.argmax(axis=1))
        known.append(np.full(len(images), -1) if labels is None else labels)
        for name, run in exported.items():
            probabilities = _probabilities(run(given), kind)
            found[name].append(probabilities.argmax(axis=1))
            differences[name] = np.maximum(differences[name], np.abs(reference - probabilities).max())  # NaN stays
    compared = []
    for name, classes in found.items():
        figures = _figures(*map(np.concatenate, (expected, classes, known)), differences[name], class_names)
        one = Comparison(name, quantizations[name], **figures)
        compared.append(dataclasses.replace(one, failure=failure_of(one, limits)))
    others = [Comparison(name, quantize, 0) for name, quantize in quantizations.items() if name not in exported]
    return Comparisons([*compared, *others])


def _figures(expected, given, labels, difference, class_names) -> dict:
    """Return the figures of a `Comparison`; accuracies where no image is without a label (-1)."""
    figures = {
        "count": len(expected),
        "agreement": float((expected == given).mean()),
        "largest_difference": None if np.isnan(difference) else float(difference),
    }
    if (labels < 0).any():
        return figures
    classes = []
    for index, name in enumerate(class_names):
        own = labels == index
        images, before, after = (int(one.sum()) for one in (own, own & (expected == index), own & (given == index)))
        if images:
            shares = {"keras": before / images, "exported": after / images, "lost": (before - after) / images}
            classes.append({"name": name, "images": images, **shares})
    accuracies = {"keras_accuracy": float((expected == labels).mean()), "accuracy": float((given == labels).mean())}
    return {**figures, **accuracies, "classes": classes}


def _probabilities(values, kind) -> np.ndarray:
    """Return probabilities, or the NaN as they are: an export with such outputs is for the gate to refuse."""
    values = np.asarray(values, dtype="float32")
    if np.isfinite(values).all():
        return to_probabilities(values, kind)
    return np.full((len(values), max(2, values.shape[1])), np.nan, "float32")


def failure_of(one: Comparison, limits: Limits) -> str | None:
    """Say why an export doesn't pass, or return `None`."""
    if not one.count:
        return None
    if one.largest_difference is None:
        return "its outputs hold NaN or infinity"
    if one.quantize is not None and one.accuracy is not None:
        lost = one.keras_accuracy - one.accuracy
        if lost > limits.accuracy_loss + 1e-9:
            return f"it loses {100 * lost:.2f} points of accuracy, and may lose {100 * limits.accuracy_loss:.2f}"
        return None
    needed = limits.agreement if one.quantize is None else 1 - limits.accuracy_loss
    why = "" if one.quantize is None else " (without labels, so that it can lose no more accuracy than is allowed)"
    if one.agreement < needed:
        return f"it names Keras's class for {one.agreement:.2%} of the images, and must for {needed:.2%}{why}"
    return None


def check(comparisons: Comparisons, what: str) -> None:
    """Raise `GateError`, with the table, where an export failed on `what`; warn of those that this system can't run."""
    failed = [f"{one.title}: {one.failure}" for one in comparisons if one.failure]
    if failed:
        raise GateError(
            f"The export was stopped, and nothing was written. Compared with Keras on {what}: {'; '.join(failed)}.",
            str(comparisons),
        )
    if names := [one.title for one in comparisons if not one.count]:
        warn(f"{', '.join(names)} was written, but not compared with Keras: this system can't run it.")
