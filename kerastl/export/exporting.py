"""From the trained model to the phone: what of it is exported, the formats, the gate, and the bundle."""

import dataclasses
import datetime
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from kerastl.checks import check_choice, check_count, check_fraction, received
from kerastl.data.images import RESIZES
from kerastl.errors import ArgumentError, BackendError, DataError
from kerastl.evaluation import report
from kerastl.evaluation.inputs import check_range
from kerastl.evaluation.probabilities import check_thresholds, class_names_for, find_task
from kerastl.export import bundle, gate, usage
from kerastl.export import formats as writing
from kerastl.export.conversion import QUANTIZATIONS, check_tensorflow
from kerastl.export.formats import FORMATS
from kerastl.export.images import export_images
from kerastl.export.inference import inference_model
from kerastl.files import check_output_folder, new_folder
from kerastl.models import outputs
from kerastl.models.weights import describe_weights

BUNDLE_FILES = (bundle.CARD, bundle.LABELS, bundle.README, *(one.path for one in FORMATS.values()))
"""What a bundle may hold, by names. Only a folder with nothing else in it is ever replaced."""

# What converts and runs the exports, whose versions belong on the card
_PACKAGES = ("ai-edge-litert", "tf2onnx", "onnxruntime", "coremltools")

_OLDEST_OPSET = 7  # for older ones onnxruntime promises nothing

# What the card says of itself; `details` may add all else
_CARD_KEYS = {
    *("format", "created", "model_name", "input", "output", "classes", "models", "gate", "versions", "files", "seal"),
}


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
    preprocessing: Callable[..., Any] | str | None = "auto",
    opset: int | None = None,
    accuracy_loss: float = 0.01,
    agreement: float = 0.995,
    details: dict | None = None,
    task: str | None = None,
    views: int = 1,
    thresholds=None,
    overwrite: bool = False,
    verbose: int = 1,
) -> bundle.Bundle:
    """Export a float32 model into a bundle, if its outputs there are those in Keras, and return the bundle, read back.

    Every format is written, read again, and run beside the Keras model on the same images, 0–255. Where that is worse than
    the limits allow, nothing is written. LiteRT takes `(1, height, width, 3)`, the others any batch; see docs/export.md.

    Args:
        model: Functional or Sequential, flat or nested; augmentation and dropout are left out. Its state doesn't change.
        folder: where the bundle is to be. With `overwrite`, an earlier one is replaced once the new one has passed.
        formats: of `"litert"`, `"saved_model"`, `"onnx"`, `"coreml"`; the last is compared on macOS only, with a warning.
        quantize: of LiteRT: `"float16"` (of Core ML, too) or `"dynamic"` weights, or `"int8"`, activations as well.
        representative: images as `fit` takes them, for `"int8"`: training images, of which 200 are used.
        held_out: images for the gate, best with labels; default: the representative ones, else noise.
        pixels, image_size, opset, views: `"float32"` or `"uint8"`; any-size models; of ONNX; flips that the graph averages.
        labels, resize: class names, in the order of the outputs (default: `0`, `1`, …); how training resized images.
        preprocessing: what is done to pixels 0–255 before the model, see `predict`; a callable becomes part of the export.
        accuracy_loss: what a quantized export may lose, 0.01 for a point; without labels, the part of classes that change.
        agreement, task, thresholds: part of the images with Keras's class in float32; see `predict`, and the card keeps them.
        details, verbose: more for the card, such as `{"weights": …, "data": …, "metrics": …}`; 0 prints nothing.

    Raises:
        GateError: the outputs are worse than the limits allow; its `table` says how much.
        ArgumentError, DataError, ModelError, BackendError, OutputError: what can't be used, or is missing.

    Example:
        >>> bundle = kerastl.export_model(model, "bundle", labels=data.class_names, held_out=data.test, verbose=0)
        >>> bundle.predict("flowers/rose/1.png").probabilities.shape
        (1, 3)
    """
    options = {"quantizations": _check_arguments(formats, quantize, opset, resize, details), "thresholds": thresholds}
    options["limits"] = _limits(accuracy_loss=accuracy_loss, agreement=agreement)
    names = _label_names(model, labels, task := find_task(model, labels, task=task), thresholds)
    graph = {"pixels": pixels, "preprocessing": preprocessing, "views": views, "task": task}
    exported = inference_model(model, image_size=image_size, **graph)
    check_range(outputs.pixel_range(model), preprocessing, files=True)
    check_output_folder(folder, overwrite=overwrite, files=BUNDLE_FILES, what="bundle")
    calibration, images = export_images(representative, held_out, exported, quantize, len(names), task)
    with new_folder(folder, overwrite=overwrite, files=BUNDLE_FILES, what="bundle") as place:
        _write_models(exported, options["quantizations"], calibration, opset, place, verbose)
        gated = _pass_gate(model, exported, images, {**options, **graph, "class_names": names}, place, verbose)
        card = _card(model, exported, {**options, **graph}, resize)
        _write_card(place, {**card, "classes": names, "gate": gated, **(details or {})})
    return bundle.load_bundle(Path(folder).expanduser().resolve())


def _check_arguments(formats, quantize, opset, resize, details) -> dict[str, str | None]:
    """Return format → quantization, once all that is needed for them is there."""
    if taken := [key for key in details or () if key in _CARD_KEYS]:
        raise ArgumentError(f"The card says these itself: leave them out of `details`. {received(details=taken)}")
    formats = [formats] if isinstance(formats, str) else list(formats)
    if not formats or len(set(formats)) != len(formats):
        raise ArgumentError(f"`formats` must name one format or several, each once. {received(formats=formats)}")
    for name in formats:
        check_choice("formats", name, FORMATS)
    check_choice("quantize", quantize, QUANTIZATIONS)
    check_choice("resize", resize, RESIZES)
    fitting = [name for name, one in FORMATS.items() if quantize in one.quantizes]
    if quantize is not None and not set(fitting) & set(formats):
        raise ArgumentError(
            f"`quantize={quantize!r}` is for {' and '.join(map(repr, fitting))} alone. {received(formats=formats)}"
        )
    check_tensorflow()
    for name in formats:
        missing = [one for one in FORMATS[name].packages if importlib.util.find_spec(one) is None]
        if missing:
            raise BackendError(
                f"The format {name!r} needs {', '.join(missing)}, which is not installed. Install all that exporting needs "
                'with `pip install "kerastl[export]"`.'
            )
    if opset is not None and "onnx" not in formats:
        raise ArgumentError(f"`opset` is for the format 'onnx' alone. {received(opset=opset, formats=formats)}")
    if opset is not None:
        check_count("opset", opset, smallest=_OLDEST_OPSET, largest=writing.newest_opset())
    return {name: quantize if name in fitting else None for name in formats}


def _limits(**limits) -> gate.Limits:
    return gate.Limits(**{name: check_fraction(name, value, zero=True) for name, value in limits.items()})


def _label_names(model, labels, task: str, thresholds) -> list[str]:
    # One name a line: some hold line breaks, which would shift all that follow
    names = [" ".join(name.split()) for name in class_names_for(model, labels, task)]
    if not all(names):
        raise DataError(f"A class name must not be empty. {received(labels=labels)}")
    check_thresholds(thresholds, names, task)
    return names


def _write_models(exported, quantizations, calibration, opset, place: Path, verbose) -> None:
    pixels = None if calibration is None else calibration.astype(exported.inputs[0].dtype)
    for name, quantize in quantizations.items():
        if verbose:
            print(f"Writing {name} {quantize or 'float32'} …", flush=True)
        writing.write(name, exported, place / FORMATS[name].path, quantize, pixels, opset)


def _pass_gate(model, exported, images, options: dict, place: Path, verbose) -> dict:
    """Compare what was written with the Keras model; raise where it does worse, and return what the card says of it.

    `options` are those of `gate.compare`.
    """
    running = [name for name in options["quantizations"] if FORMATS[name].runs_here()]
    loaded = {name: writing.load(name, place / FORMATS[name].path) for name in running}
    compared = gate.compare(model, loaded, _with_bar(images, verbose), **options, kind=outputs.output_kind(exported))
    gate.check(compared, images.in_words())
    if verbose:
        print(f"Compared with Keras on {images.in_words()}:\n\n{compared}", flush=True)
    return {
        "images": images.what,
        "count": images.count,
        "identity": images.identity,
        "limits": dataclasses.asdict(options["limits"]),
        "comparisons": [dataclasses.asdict(one) for one in compared],
    }


def _with_bar(images, verbose):
    bar = keras.utils.Progbar(images.total, unit_name="batch") if verbose and images.total else None
    for index, batch in enumerate(images, start=1):
        yield batch
        if bar is not None:
            bar.update(index)


def _card(model, exported, options: dict, resize: str) -> dict:
    """Return what `model_card.json` says of the model and what made it."""
    preprocessing, thresholds = options["preprocessing"], options["thresholds"]
    pixels, weights = exported.inputs[0], describe_weights(model)
    shape, kind = [1, *pixels.shape[1:]], outputs.output_kind(exported)
    name = getattr(preprocessing, "__qualname__", type(preprocessing).__qualname__)
    scaling = f"`{name}`, part of the exported graph" if callable(preprocessing) else preprocessing or "none"
    models = {
        name: {
            "path": FORMATS[name].path,
            "quantize": quantize,
            "batch": 1 if name in ("litert", "coreml") else "any",
            "input_name": "pixels",
            "output_name": FORMATS[name].output_name or writing.onnx_output_name(kind),
        }
        for name, quantize in options["quantizations"].items()
    }
    output = {"task": options["task"], "kind": kind, "units": exported.outputs[0].shape[1], "views": options["views"]}
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model_name": model.name,
        "input": {
            "shape": shape,
            "type": pixels.dtype,
            "channels": "RGB",
            "range": [0, 255],
            "resize": resize,
            "preprocessing": "the model's own" if scaling == "auto" else scaling,
        },
        "output": {**output, "thresholds": None if thresholds is None else dict(thresholds)},
        "models": models,
        "weights": None if weights is None else dataclasses.asdict(weights),
        "versions": report.software_versions(*_PACKAGES),
    }


def _write_card(place: Path, card: dict) -> None:
    (place / bundle.README).write_text(usage.readme(card), encoding="utf-8")
    bundle.write_card(place, report.plain_values(card))
