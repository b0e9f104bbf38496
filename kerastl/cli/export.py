"""`export MODEL --out FOLDER`: write a bundle for phones and servers, if its outputs are those of the model."""

import hashlib
import sys
from pathlib import Path

from kerastl.checks import received
from kerastl.cli import chosen, models
from kerastl.cli.quiet import import_quietly
from kerastl.data.batches import find_source
from kerastl.errors import ArgumentError, DataError, GateError, warn
from kerastl.evaluation.probabilities import input_size
from kerastl.files import check_output_folder


def run(arguments) -> int:
    """Export, print what came of it, and return the exit status."""
    import_quietly("tensorflow", verbose=arguments.verbose)
    from kerastl.export.exporting import BUNDLE_FILES, export_model

    file = models.find_model(arguments.model)
    quantize = None if arguments.quantize == "none" else arguments.quantize
    if quantize == "int8" and arguments.data is None:
        raise ArgumentError(
            "--quantize int8 needs --data, whose training images show how large the activations get. "
            f"{received(data=None)}"
        )
    if arguments.data_labels is not None and not (arguments.data and Path(arguments.data).expanduser().is_dir()):
        raise ArgumentError(
            "--data-labels needs --data, the folder of the images that it names. "
            f"{received(data=arguments.data, data_labels=arguments.data_labels)}"
        )
    check_output_folder(arguments.out, overwrite=arguments.overwrite, files=BUNDLE_FILES, what="bundle")
    names, report = models.labels_for(file, arguments.labels), models.report_beside(file)
    model = models.load_model(file)
    preprocessing = models.preprocessing_for(model, arguments.preprocessing)
    size, resize = arguments.image_size or _size_from(report, model), models.resize_beside(file)
    splits = None if arguments.data is None else _load_splits(arguments, size, resize, model, report)
    if splits is not None:
        _check_data(splits, arguments.data, names, (report.get("data") or {}).get("name"))
    try:
        written = export_model(
            model,
            arguments.out,
            formats=list(dict.fromkeys(arguments.format)),
            quantize=quantize,
            representative=None if splits is None else splits.train,
            held_out=None if splits is None else _held_out(splits),
            labels=list(splits.class_names) if names is None and splits is not None else names,
            resize=resize,
            image_size=size,
            preprocessing=preprocessing,
            details=_details(report, splits),
            task=report.get("task") if splits is None else splits.task,
            thresholds=models.thresholds_in(report, names),
            **chosen(arguments, ("pixels", "opset", "accuracy_loss", "agreement", "views", "overwrite")),
        )
    except GateError as error:
        print(error.table, file=sys.stderr)
        raise GateError(error.reason) from None
    print(f"\n{written}\n\nBundle: {arguments.out} (try: python -m kerastl predict {arguments.out} IMAGE)")
    return 0


def _load_splits(arguments, size, resize: str, model, report: dict):
    """Load images, split as they were in training, so that none of the held-out ones was trained on."""
    from kerastl.data.folders import load_images

    trained = report.get("arguments") or {}
    if not trained:
        warn(
            "There is no report.json of a training run beside the model, so nobody knows what it was trained on: the "
            "held-out images may be among its training images, which flatters every accuracy."
        )
    return load_images(
        arguments.data,
        labels=arguments.data_labels or trained.get("labels"),
        image_size=size or input_size(model),
        validation=trained.get("validation"),
        test=trained.get("test"),
        seed=trained.get("seed") or 0,
        resize=resize,
        skip_unreadable=bool(trained.get("skip_unreadable")),
    )


def _check_data(splits, source: str, names: list[str] | None, trained_on: str | None) -> None:
    """Raise `DataError` for classes that are not the model's, by name and order; warn of other data than in training."""
    found = list(splits.class_names)
    if names is not None and found != names:
        only = [[name for name in one if name not in other] for one, other in ((names, found), (found, names))]
        differ = f"Only in the model: {', '.join(only[0]) or 'none'}. Only in the data: {', '.join(only[1]) or 'none'}."
        raise DataError(
            f"The classes of {source} are not the model's, by name and order, so its labels would be wrong. Rename "
            f"those of the data, or name the model's with --labels. {differ if any(only) else 'Their order differs.'} "
            f"Model: {', '.join(names)}. {received(classes=', '.join(found))}"
        )
    if trained_on is not None and trained_on != splits.name:
        warn(f"The model was trained on {trained_on}, and is compared on {splits.name}.")


def _held_out(splits):
    """Return the test images, or the validation images where there are none."""
    held_out = splits.validation if splits.test is None else splits.test
    if held_out is None:
        raise ArgumentError("The data has neither test nor validation images, so that nothing is held out.")
    return held_out


def _size_from(report: dict, model):
    """Return the size that a model of any size was trained at, where its report says so."""
    size = report.get("image_size")
    is_size = isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
    return tuple(size) if None in input_size(model) and is_size else None


def _details(report: dict, splits) -> dict:
    """Return what the card says of the weights' origin, the data and its split, and the accuracy that training reported."""
    details = {key: report.get(key) for key in ("backbone", "weights", "data")}
    kept = ("evaluated_on", "count", "scores", "baseline", "accuracy", "standard_error", "majority_baseline")
    details["metrics"] = {key: report[key] for key in (*kept, "per_class") if key in report} or None
    if splits is not None:
        details["data"] = {"name": splits.name, "licence": splits.licence, "class_counts": splits.class_counts}
        parts = {part: find_source(getattr(splits, part)).identity for part in splits.split_sizes}
        together = hashlib.sha256("\n".join(f"{part} {one}" for part, one in parts.items()).encode()).hexdigest()
        details["split"] = {"seed": splits.seed, "sizes": splits.split_sizes, "hash": together, "parts": parts}
    return details
