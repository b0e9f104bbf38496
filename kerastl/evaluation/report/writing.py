"""Put a run into words and numbers, and write its folder."""

import csv
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import sys
from pathlib import Path

import keras
import numpy as np

from kerastl._version import __version__
from kerastl.evaluation import plots
from kerastl.evaluation.report.evaluation import Evaluation
from kerastl.evaluation.report.text import markdown_report
from kerastl.files import new_folder
from kerastl.models import outputs
from kerastl.models.weights import describe_weights

RUN_FILES = (
    "model.keras",
    "labels.txt",
    "history.csv",
    "curves.png",
    "confusion_matrix.png",
    "mistakes.png",
    "report.json",
    "report.md",
)
"""What a run folder holds. Only a folder with nothing else in it is ever replaced."""


def is_run_folder(folder: str | os.PathLike) -> bool:
    """Tell whether a folder holds a model of a run."""
    return Path(folder, "model.keras").is_file()


FORMAT = 1
"""The version of `report.json`'s keys."""


def describe_run(
    model: keras.Model,
    splits,
    result,
    evaluation: Evaluation,
    *,
    evaluated_on: str = "test",
    head_accuracy: float | None = None,
    averaged: Evaluation | None = None,
    backbone: str | None = None,
    learning_rates: dict | None = None,
    arguments: dict | None = None,
    command: str | None = None,
    seconds: dict | None = None,
) -> dict:
    """Return everything worth knowing of a run, as plain values that strict JSON can hold.

    Args:
        model: the trained classifier.
        splits: the `ImageSplits` it was trained on.
        result: the `TransferResult`.
        evaluation: what `evaluate` returned.
        evaluated_on: the part of the data that was evaluated on, `"test"` or `"validation"`.
        head_accuracy: accuracy on the same images with the best weights of the head phase alone.
        averaged: the evaluation with several views of each image averaged, reported apart.
        backbone: its name.
        learning_rates: of each phase.
        arguments: of the call or command that made the run.
        command: the command line that made it.
        seconds: more than the phases took, such as `{"evaluation": 7.1}`.
    """
    weights = describe_weights(model)
    return plain_values(
        {
            "format": FORMAT,
            "complete": True,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **_describe_evaluation(evaluation, evaluated_on, head_accuracy, _file_names(splits, evaluated_on)),
            "averaged": None if averaged is None else {"views": averaged.views, "accuracy": averaged.accuracy},
            **_describe_training(result),
            "seconds": {**result.seconds, **(seconds or {})},
            "learning_rates": learning_rates,
            **describe_input(model, splits, backbone),
            "weights": None if weights is None else dataclasses.asdict(weights),
            "split_sizes": splits.split_sizes,
            "seed": splits.seed,
            "versions": software_versions(),
            "arguments": arguments,
            "command": command,
        }
    )


def describe_input(model: keras.Model, splits, backbone: str | None = None) -> dict:
    """Return what a model has to be given, and what it answers with: all that prediction needs to know."""
    return {
        "model_name": model.name,
        "backbone": backbone,
        "class_names": list(splits.class_names),
        "image_size": list(splits.image_size),
        "resize": splits.resize,
        "output": outputs.output_kind(model),
        "data": {"name": splits.name, "licence": splits.licence, "class_counts": splits.class_counts},
    }


def write_run(
    folder: str | os.PathLike,
    *,
    model: keras.Model,
    report: dict,
    result,
    evaluation: Evaluation,
    overwrite: bool = False,
) -> Path:
    """Write the run folder, whole or not at all.

    It holds `model.keras`, `labels.txt`, `history.csv`, `curves.png`, `confusion_matrix.png`, `mistakes.png`,
    `report.json` and `report.md`.

    Args:
        folder: where; its parents are made.
        model: the trained classifier.
        report: what `describe_run` returned.
        result: the `TransferResult`.
        evaluation: what `evaluate` returned.
        overwrite: whether an earlier run there is replaced. It is lost only when the new one is complete.

    Returns:
        The folder's absolute path.

    Raises:
        OutputError: the folder exists, or holds something else than a run, or can't be written.
    """
    with new_folder(folder, overwrite=overwrite, files=RUN_FILES, what="run") as place:
        _write_model(place, model, evaluation.class_names)
        _write_history(place / "history.csv", result)
        plots.plot_history(result).savefig(place / "curves.png", dpi=150, bbox_inches="tight")
        matrix = plots.plot_confusion_matrix(evaluation.confusion_matrix, evaluation.class_names)
        matrix.savefig(place / "confusion_matrix.png", dpi=150)
        _plot_kept_mistakes(evaluation, report["mistakes"]).savefig(place / "mistakes.png", dpi=150)
        _write_json(place / "report.json", report)
        (place / "report.md").write_text(markdown_report(report), encoding="utf-8")
    return Path(folder).expanduser().resolve()


def write_partial_run(folder: str | os.PathLike, *, model: keras.Model, class_names, details: dict) -> Path:
    """Write what there is of a run that was cut short: `model.keras`, `labels.txt`, and a `report.json` that says so.

    Args:
        folder: where; it must not exist, or be empty.
        model: with the best weights so far.
        class_names: in the order of the labels.
        details: what `describe_input` returned.

    Returns:
        The folder's absolute path.

    Raises:
        OutputError: it can't be written.
    """
    with new_folder(folder, files=RUN_FILES, what="run") as place:
        _write_model(place, model, class_names)
        _write_json(place / "report.json", plain_values({"format": FORMAT, "complete": False, **details}))
    return Path(folder).expanduser().resolve()


def software_versions(*more: str) -> dict[str, str | None]:
    """Return the versions of what a run depends on, and of more packages by name; `None` for what isn't installed."""
    return {
        "python": platform.python_version(),
        "kerastl": __version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "tensorflow": _version("tensorflow"),
        "numpy": np.__version__,
        **{name: _version(name) for name in more},
    }


def plain_values(value):
    """Return the value as what strict JSON can hold: NaN and infinity become `None`, arrays lists, paths text."""
    if isinstance(value, dict):
        return {str(key): plain_values(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_values(one) for one in value]
    if isinstance(value, np.ndarray):
        return plain_values(value.tolist())
    if isinstance(value, np.generic):
        return plain_values(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


def _version(package: str) -> str | None:
    module = sys.modules.get(package)  # tensorflow-cpu and its like bring the module under another package's name
    if hasattr(module, "__version__"):
        return module.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe_evaluation(evaluation: Evaluation, evaluated_on: str, head_accuracy, file_names) -> dict:
    on_test = evaluated_on == "test"
    return {
        "test_accuracy": evaluation.accuracy if on_test else None,
        "head_test_accuracy": head_accuracy if on_test else None,
        "evaluated_on": evaluated_on,
        "accuracy": evaluation.accuracy,
        "standard_error": evaluation.standard_error,
        "count": evaluation.count,
        "head_accuracy": head_accuracy,
        "majority_baseline": evaluation.majority_baseline,
        "majority_class": evaluation.majority_class,
        "per_class": evaluation.to_rows(),
        "confusion_matrix": evaluation.confusion_matrix,
        "mistakes": _mistake_rows(evaluation, file_names),
    }


def _describe_training(result) -> dict:
    phases = {}
    for name, history in (("head", result.head), ("fine_tune", result.fine_tune)):
        if history is not None:
            seconds = result.seconds.get(name, 0.0)
            epochs = len(history.history.get("loss", ()))
            phases[name] = {"epochs": epochs, "seconds": seconds, "diverged": getattr(history, "diverged", None)}
    return {
        "phases": phases,
        "best_phase": result.best_phase,
        "best_epoch": result.best_epoch,
        "best_value": result.best_value,
        "monitor": result.monitor,
    }


def _file_names(splits, part: str) -> list[str] | None:
    names = getattr(splits, "files", {}).get(part)
    return list(names) if names else None


def _mistake_rows(evaluation: Evaluation, file_names) -> list[dict]:
    kept, names = evaluation.mistakes, evaluation.class_names
    rows = []
    for label, answer, position in zip(kept.labels, kept.probabilities, kept.positions, strict=True):
        rows.append(
            {
                "name": file_names[position] if file_names else f"image {position}",
                "true": names[label],
                "predicted": names[int(answer.argmax())],
                "probability": float(answer.max()),
            }
        )
    return rows


def _plot_kept_mistakes(evaluation: Evaluation, rows):
    kept = evaluation.mistakes
    if not kept.images:
        return plots.empty_figure(f"No mistakes among {evaluation.count} images.")
    captions = [row["name"] for row in rows]
    count = len(kept.images)
    return plots.plot_mistakes(
        kept.images, kept.labels, kept.probabilities, evaluation.class_names, names=captions, count=count
    )


def _write_model(place: Path, model: keras.Model, class_names) -> None:
    model.save(place / "model.keras")
    # Some names hold line breaks, which would shift all that follow
    lines = [" ".join(str(name).split()) for name in class_names]
    (place / "labels.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _write_history(path: Path, result) -> None:
    """Write a line per epoch: phase, epoch within it (from 1), seconds, and every logged value."""
    phases = [(name, one) for name, one in (("head", result.head), ("fine_tune", result.fine_tune)) if one is not None]
    columns = list(dict.fromkeys(key for _, one in phases for key in one.history))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["phase", "epoch", "seconds", *columns])
        for name, one in phases:
            seconds = list(getattr(one, "epoch_seconds", ()))
            for index in range(len(one.history.get("loss", ()))):
                values = [_at(one.history.get(column, ()), index) for column in columns]
                writer.writerow([name, index + 1, _at(seconds, index), *values])


def _at(values, index: int):
    return float(values[index]) if index < len(values) else ""
