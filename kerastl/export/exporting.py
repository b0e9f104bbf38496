"""From the trained model to the phone: formats, the gate, and the sealed bundle.

Rooms, in the order in which they use each other: `inference` (what of the model leaves), `formats` (how it is written and
run again), `images` (what it is compared on), `gate` (whether it may leave).
"""

import dataclasses
import datetime
import os
from pathlib import Path

import keras
import numpy as np

from kerastl.checks import check_choice, check_fraction, received
from kerastl.data.images import RESIZES
from kerastl.errors import ArgumentError, DataError
from kerastl.evaluation import report
from kerastl.export import bundle, gate
from kerastl.export import formats as writing
from kerastl.export.conversion import QUANTIZATIONS
from kerastl.export.formats import FORMATS
from kerastl.export.gate import Comparison, Limits, comparison_table
from kerastl.export.images import GateImages, gate_images, representative_images
from kerastl.export.inference import PIXEL_TYPES, inference_model
from kerastl.files import check_output_folder, new_folder
from kerastl.models import outputs
from kerastl.models.weights import describe_weights

__all__ = [
    "BUNDLE_FILES",
    "FORMATS",
    "PIXEL_TYPES",
    "Comparison",
    "comparison_table",
    "export_model",
    "inference_model",
]

BUNDLE_FILES = (bundle.CARD, bundle.LABELS, *(one.path for one in FORMATS.values()))
"""What a bundle may hold, by names. Only a folder with nothing else in it is ever replaced."""


# What converts and runs the exports, whose versions belong on the card
_PACKAGES = ("ai-edge-litert", "tf2onnx", "onnxruntime", "coremltools")

# What the card says of itself; `details` may add all else
_CARD_KEYS = (
    *("format", "created", "model_name", "input", "output", "classes", "models", "gate", "versions", "files", "seal"),
)


@dataclasses.dataclass
class _Job:
    """One export: what was asked for, checked, and what came of it so far."""

    model: keras.Model
    exported: keras.Model
    quantizations: dict[str, str | None]
    labels: list[str]
    representative: np.ndarray | None
    images: GateImages
    limits: Limits
    pixels: str
    resize: str
    details: dict
    verbose: int
    comparisons: list[Comparison] = dataclasses.field(default_factory=list)


def export_model(
    model: keras.Model,
    folder: str | os.PathLike,
    *,
    formats: tuple[str, ...] | str = ("litert",),
    quantize: str | None = None,
    representative=None,
    held_out=None,
    labels=None,
    pixels: str = "float32",
    resize: str = "squash",
    image_size: int | tuple[int, int] | None = None,
    accuracy_loss: float = 0.01,
    agreement: float = 0.995,
    details: dict | None = None,
    overwrite: bool = False,
    verbose: int = 1,
) -> bundle.Bundle:
    """Export a classifier into a sealed bundle, if it answers there as it does in Keras.

    Augmentation and dropout stay behind. Every format is written, read again, and run beside the Keras model on the same
    images. Where it answers worse than the limits allow, nothing is written and the error holds the table. A bundle is a
    folder with the models, `labels.txt` and `model_card.json`; see `docs/export.md` and `load_bundle`.

    LiteRT's model takes one image at a time, `(1, height, width, 3)`; SavedModel and ONNX take batches of any size. What
    they take are pixels 0–255, and what they answer is what the model's main output holds.

    Args:
        model: a Functional or Sequential classifier that computes in float32, flat or nested; its state doesn't change.
        folder: where the bundle is to be.
        formats: of `"litert"`, `"saved_model"`, `"onnx"` and `"coreml"`, one or several. Core ML runs on macOS only; on
            other systems it is written without having passed the gate, with a warning, and the card says so.
        quantize: of LiteRT. `"float16"`: weights are stored in half the bytes (Core ML computes in float16, too).
            `"dynamic"`: weights in int8, activations quantized while it runs. `"int8"`: both in int8, with the ranges of
            representative images. The other formats stay float32.
        representative: images (with labels or without) as `fit` takes them: training images, of which 200 are used. For
            `"int8"`.
        held_out: images that nothing was trained on, for the gate, best with labels. Without them the representative ones
            are used, without those noise; the table and the card say so.
        labels: class names, in the order of the outputs; default: `0`, `1`, …
        pixels: type of the input, `"float32"` or `"uint8"`.
        resize: how images are brought to the input's size, as in training; for the card.
        image_size: pixels, one number or `(height, width)`, for a model that takes any size.
        accuracy_loss: what a quantized export may lose at most, 0.01 for one point. Without labels at most this part of
            the answers may change.
        agreement: part of the images on which a float32 export must name the class that Keras names.
        details: more for the card, such as `{"weights": …, "data": …, "metrics": …}`.
        overwrite: whether an earlier bundle at `folder` is replaced. It is lost only when the new one has passed.
        verbose: 0 prints nothing.

    Returns:
        The `Bundle`, read back.

    Raises:
        GateError: the export answers worse than the limits allow; its `table` says how much.
        ArgumentError: an argument that can't be used.
        DataError: no images where some were given, images that don't fit, not one name per class.
        ModelError: no classifier of RGB images, or one that an exporter can't convert.
        BackendError: a package is missing, or Keras doesn't run on TensorFlow.
        OutputError: the folder exists, or holds something else than a bundle, or can't be written.
    """
    quantizations = _check_formats(formats, quantize)
    check_choice("resize", resize, RESIZES)
    limits = Limits(
        check_fraction("accuracy_loss", accuracy_loss, zero=True), check_fraction("agreement", agreement, zero=True)
    )
    names = _check_labels(model, labels)
    _check_details(details)
    exported = inference_model(model, pixels=pixels, image_size=image_size)
    check_output_folder(folder, overwrite=overwrite, files=BUNDLE_FILES, what="bundle")
    calibration = None if representative is None else representative_images(representative, exported)
    if quantize == "int8" and calibration is None:
        raise ArgumentError(
            "int8 needs `representative=`, images that show how large the activations get: training images, such as "
            f"`load_images(...).train`. Held-out ones are for the gate. {received(representative=None)}"
        )
    images = gate_images(held_out, calibration, exported, len(names))
    job = _Job(
        model, exported, quantizations, names, calibration, images, limits, pixels, resize, dict(details or {}), verbose
    )
    with new_folder(folder, overwrite=overwrite, files=BUNDLE_FILES, what="bundle") as place:
        _write_models(job, place)
        _pass_gate(job, place)
        (place / bundle.LABELS).write_text("\n".join(names) + "\n", encoding="utf-8")
        bundle.write_card(place, report.plain_values(_card(job)))
    return bundle.load_bundle(Path(folder).expanduser().resolve())


def _check_formats(formats, quantize) -> dict[str, str | None]:
    """Return format → quantization, once all that is needed for them is there."""
    formats = [formats] if isinstance(formats, str) else list(formats)
    if not formats or len(set(formats)) != len(formats):
        raise ArgumentError(f"`formats` must name one format or several, each once. {received(formats=formats)}")
    for name in formats:
        check_choice("formats", name, FORMATS)
    check_choice("quantize", quantize, QUANTIZATIONS)
    if quantize is not None and not any(quantize in FORMATS[name].quantizes for name in formats):
        fitting = [name for name, one in FORMATS.items() if quantize in one.quantizes]
        raise ArgumentError(
            f"`quantize={quantize!r}` is for {' and '.join(map(repr, fitting))} alone. {received(formats=formats)}"
        )
    for name in formats:
        writing.check_packages(name)
    return {name: quantize if quantize in FORMATS[name].quantizes else None for name in formats}


def _check_labels(model, labels) -> list[str]:
    """Return the names, one a line: some hold line breaks, which would shift all that follow."""
    names = [" ".join(name.split()) for name in outputs.class_names_for(model, labels)]
    if not all(names):
        raise DataError(f"A class name must not be empty. {received(labels=labels)}")
    return names


def _check_details(details) -> None:
    taken = [key for key in details or () if key in _CARD_KEYS]
    if taken:
        raise ArgumentError(f"The card says these itself: leave them out of `details`. {received(details=taken)}")


def _write_models(job: _Job, place: Path) -> None:
    for name, quantize in job.quantizations.items():
        if job.verbose:
            print(f"Writing {name} {quantize or 'float32'} …", flush=True)
        pixels = None if job.representative is None else job.representative.astype(job.pixels)
        writing.write(name, job.exported, place / FORMATS[name].path, quantize, pixels)


def _pass_gate(job: _Job, place: Path) -> None:
    """Compare what was written with the Keras model; raise where it does worse."""
    run_here = {name: quantize for name, quantize in job.quantizations.items() if FORMATS[name].runs_here()}
    loaded = {name: writing.load(name, place / FORMATS[name].path) for name in run_here}
    compared = gate.compare(
        job.model,
        loaded,
        _with_bar(job),
        quantizations=job.quantizations,
        class_names=job.labels,
        pixels=job.pixels,
    )
    compared = [gate.judge(one, job.limits) for one in compared]
    others = [Comparison(name, quantize, 0) for name, quantize in job.quantizations.items() if name not in run_here]
    job.comparisons = [*compared, *others]
    gate.check(job.comparisons, job.images.in_words())
    if job.verbose:
        print(f"Compared with Keras on {job.images.in_words()}:\n\n{comparison_table(job.comparisons)}", flush=True)
    gate.warn_of_what_was_not_run(job.comparisons)


def _with_bar(job: _Job):
    bar = keras.utils.Progbar(job.images.total, unit_name="batch") if job.verbose and job.images.total else None
    for index, batch in enumerate(job.images, start=1):
        yield batch
        if bar is not None:
            bar.update(index)


def _card(job: _Job) -> dict:
    """Return what `model_card.json` says, but for the files."""
    size = job.exported.inputs[0].shape[1:3]
    weights = describe_weights(job.model)
    details = {"weights": None if weights is None else dataclasses.asdict(weights), **job.details}
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model_name": job.model.name,
        "input": {
            "shape": [1, *size, 3],
            "type": job.pixels,
            "channels": "RGB",
            "range": [0, 255],
            "resize": job.resize,
        },
        "output": {"kind": outputs.output_kind(job.model), "units": job.exported.outputs[0].shape[1]},
        "classes": job.labels,
        "models": {
            name: {
                "path": FORMATS[name].path,
                "quantize": quantize,
                "batch": 1 if name in ("litert", "coreml") else "any",
            }
            for name, quantize in job.quantizations.items()
        },
        "gate": {
            "images": job.images.what,
            "count": job.images.count,
            "identity": job.images.identity,
            "limits": dataclasses.asdict(job.limits),
            "comparisons": [dataclasses.asdict(one) for one in job.comparisons],
        },
        **details,
        "versions": report.software_versions(*_PACKAGES),
    }
