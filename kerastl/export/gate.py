"""The gate: what was exported runs beside the Keras model on the same images, and is stopped where its outputs are worse."""

import dataclasses
from collections.abc import Callable, Iterable

import keras
import numpy as np

from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.errors import GateError, warn
from kerastl.evaluation.inputs import preprocess
from kerastl.evaluation.probabilities import check_thresholds, class_probabilities, decide
from kerastl.models.outputs import to_probabilities
from kerastl.tables import Printed, Table

_CLASSES_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an export may lose, see `export_model`.

    Without labels nobody knows the accuracy; as it can't fall by more than the part of the classes that changed, no more than
    `accuracy_loss` of them may change. Of several labels an image it is the share of labels that are right; of numbers R²,
    without labels that of the export's numbers against Keras's. `agreement` is of the images or, there or not, of the labels;
    no number may differ by more than 1 − `agreement` standard deviations.
    """

    accuracy_loss: float = 0.01
    agreement: float = 0.995


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The outputs of one export, beside those of the Keras model.

    Differences are between two probabilities of the same class for the same image; between two numbers, in standard
    deviations of the labels (without labels, of Keras's numbers). Accuracies are `None` without labels.
    """

    format: str
    quantize: str | None  # `None` for float32
    count: int  # number of images; 0 where the export can't run on this system
    agreement: float | None = None  # part of the images with the same class, or of the same labels; R² of numbers
    largest_difference: float | None = None
    keras_accuracy: float | None = None  # of numbers R²
    accuracy: float | None = None  # the export's
    # One per class with `name`, `images`, `keras` and `exported` (the part recognized) and `lost`
    classes: list[dict] = dataclasses.field(default_factory=list)
    failure: str | None = None  # why it doesn't pass
    task: str = CLASSIFICATION
    mean_difference: float | None = None  # of numbers

    @property
    def title(self) -> str:
        """What the export is called in tables."""
        return f"{self.format} {self.quantize or 'float32'}"


class Comparisons(Printed, tuple):
    """A tuple of comparisons that prints as a table, and one of the classes below it where there are labels."""

    def _tables(self):
        header = ["export", "images", "same class", "largest difference", "Keras's accuracy", "its accuracy", ""]
        if self and self[0].task == MULTI_LABEL:
            header[2] = "same labels"
        elif self and self[0].task == REGRESSION:
            header[2:6] = ["R² against Keras", "largest difference (in deviations)", "Keras's R²", "its R²"]
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
    task: str = CLASSIFICATION,
    views: int = 1,
    kind: str | None = None,
    thresholds=None,
) -> Comparisons:
    """Run a Keras model, as it was before, and what was exported of it on the same images.

    Args:
        exported: format → function from pixels, whose type is `pixels`, to the output, of those that run on this system.
        batches: `(images, labels)`; labels are as `prepare_labels` returns them, or `None`.
        quantizations: of all formats → what was quantized in it.
        views, kind: how many flips were averaged in what was exported, and what its outputs hold, as `output_kind` says.
        thresholds: from which probabilities on labels count, see `predict`.

    Returns:
        A judged `Comparison` for each format, in the order of those that run here, then the others.
    """
    expected, known, found, differences = [], [], {name: [] for name in exported}, dict.fromkeys(exported, 0.0)
    thresholds, largest = check_thresholds(thresholds, class_names, task), 0
    for images, labels in batches:
        largest = max(largest, len(images))
        given = np.ascontiguousarray(np.rint(images) if pixels == "uint8" else images, dtype=pixels)
        prepared = preprocess(given, preprocessing)
        reference = class_probabilities(model, prepared, views=views, batch_size=largest, task=task)
        expected.append(decide(reference, task, thresholds))
        known.append(labels)
        for name, run in exported.items():
            probabilities = _probabilities(run(given), kind, task)
            found[name].append(decide(probabilities, task, thresholds))
            differences[name] = np.maximum(differences[name], np.abs(reference - probabilities).max())  # NaN stays
    compared = []
    labels = None if any(one is None for one in known) else np.concatenate(known)
    for name, decided in found.items():
        pair = np.concatenate(expected), np.concatenate(decided)
        if task == REGRESSION:
            figures = _figures_of_numbers(*pair, labels)
        else:
            figures = _figures(*pair, labels, differences[name], class_names)
        one = Comparison(name, quantizations[name], task=task, **figures)
        compared.append(dataclasses.replace(one, failure=failure_of(one, limits)))
    others = [name for name in quantizations if name not in exported]
    return Comparisons([*compared, *(Comparison(name, quantizations[name], 0, task=task) for name in others)])


def _figures(expected, given, labels, difference, class_names) -> dict:
    """Return the figures of a `Comparison` of classes, `(count,)`, or of labels, `(count, labels)`."""
    figures = {
        "count": len(expected),
        "agreement": float((expected == given).mean()),
        "largest_difference": None if np.isnan(difference) else float(difference),
    }
    if labels is None:
        return figures
    classes = []
    for index, name in enumerate(class_names):
        own, kept, exported = (one == index if one.ndim == 1 else one[:, index] for one in (labels, expected, given))
        images, before, after = (int(one.sum()) for one in (own, own & kept, own & exported))
        if images:
            shares = {"keras": before / images, "exported": after / images, "lost": (before - after) / images}
            classes.append({"name": name, "images": images, **shares})
    accuracies = {"keras_accuracy": float((expected == labels).mean()), "accuracy": float((given == labels).mean())}
    return {**figures, **accuracies, "classes": classes}


def _figures_of_numbers(expected, given, labels) -> dict:
    """Return the figures of a `Comparison` of numbers, `(count, numbers)`."""
    figures = {"count": len(expected)}
    if not np.isfinite(given).all():
        return figures
    known = expected if labels is None else labels
    # Numbers that hardly vary, on noise for one, have no deviation to go by
    deviations = np.maximum(known.std(axis=0), 1e-3 * np.abs(known).mean(axis=0)) + 1e-12
    differences = np.abs(given - expected) / deviations
    measures = {
        "agreement": 1 - float((differences**2).mean()),
        "largest_difference": float(differences.max()),
        "mean_difference": float(differences.mean()),
    }
    if labels is not None:
        for name, said in (("keras_accuracy", expected), ("accuracy", given)):
            measures[name] = 1 - float((((said - labels) / deviations) ** 2).mean())
    return {**figures, **measures}


def _probabilities(values, kind, task: str) -> np.ndarray:
    """Return probabilities or numbers, or NaN: an export with such outputs is for the gate to refuse."""
    values = np.asarray(values, dtype="float32")
    if np.isfinite(values).all():
        return to_probabilities(values, kind, task)
    return np.full((len(values), max(2 if task == CLASSIFICATION else 1, values.shape[1])), np.nan, "float32")


def failure_of(one: Comparison, limits: Limits) -> str | None:
    """Say why an export doesn't pass, or return `None`."""
    if not one.count:
        return None
    if one.largest_difference is None:
        return "its outputs hold NaN or infinity"
    if one.quantize is not None and one.accuracy is not None:
        lost, allowed = one.keras_accuracy - one.accuracy, limits.accuracy_loss
        what = "R²" if one.task == REGRESSION else "accuracy"
        said = f"it loses {100 * lost:.2f} points of {what}, and may lose {100 * allowed:.2f}"
        return said if lost > allowed + 1e-9 else None
    if one.task == REGRESSION and one.quantize is None:
        far, allowed = one.largest_difference, 1 - limits.agreement
        said = f"a number is {far:.2g} standard deviations from Keras's, and may be {allowed:.2g}"
        return said if far > allowed else None
    needed = limits.agreement if one.quantize is None else 1 - limits.accuracy_loss
    why = "" if one.quantize is None else " (without labels, so that it can lose no more accuracy than is allowed)"
    said = {
        REGRESSION: f"R² of its numbers against Keras's is {one.agreement:.2%}, and must be {needed:.2%}",
        MULTI_LABEL: f"{one.agreement:.2%} of its labels are Keras's, and must be {needed:.2%}",
        CLASSIFICATION: f"it names Keras's class for {one.agreement:.2%} of the images, and must for {needed:.2%}",
    }[one.task]
    return said + why if one.agreement < needed else None


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
