"""Write down a run: its folder with model, curves, tables, pictures and figures, `report.json`, `report.md`, `report.html`."""

import csv
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import platform
import sys
from pathlib import Path

import keras
import numpy as np

from kerastl._version import __version__
from kerastl.data.labels import CLASSIFICATION, REGRESSION
from kerastl.errors import warn
from kerastl.evaluation import plots
from kerastl.evaluation.measures import Evaluation, OutputsEvaluation, wrongness
from kerastl.evaluation.plots.drawing import percent, shorten
from kerastl.evaluation.probabilities import decide
from kerastl.evaluation.report_text import PICTURES, in_words, markdown_report
from kerastl.evaluation.run_page import plot_scores, run_page
from kerastl.files import new_folder
from kerastl.models import outputs
from kerastl.models.weights import describe_weights

# `report.html`, not `index.html`: it is the third form of the same report, and says what it is where it is mailed alone
RUN_FILES = (
    *("model.keras", "labels.txt", "history.csv", "curves.png", *PICTURES.values(), "mistakes.png"),
    *("report.json", "report.md", "report.html"),
)
"""What run folders hold. Only a folder with nothing else in it is ever replaced."""

FORMAT = 1
"""The version of `report.json`'s keys."""


def run_files(task: str) -> list[str]:
    """Return what the run folder of a task holds."""
    return [name for name in RUN_FILES if name == PICTURES[task] or name not in PICTURES.values()]


def describe_run(
    model: keras.Model,
    splits,
    result,
    evaluation: Evaluation | OutputsEvaluation,
    *,
    evaluated_on: str = "test",
    head_scores: dict | None = None,
    averaged: Evaluation | OutputsEvaluation | None = None,
    backbone: str | None = None,
    seconds: dict | None = None,
    **noted,
) -> dict:
    """Return everything worth knowing of a run, as plain values that strict JSON can hold.

    `averaged` is the evaluation with several views of each image averaged, `head_scores` those of the head phase alone on
    the same images; `seconds` are more than the phases took, such as `{"evaluation": 7.1}`. What else is noted is kept as it
    is: `learning_rates`, `arguments` and `command` of the command line.
    """
    weights = describe_weights(model)
    measures = ("accuracy", "standard_error", "majority_baseline", "majority_class", "confusion_matrix")
    accuracies = [(scores or {}).get("accuracy") for scores in (evaluation.scores, head_scores)]
    return plain_values(
        {
            "format": FORMAT,
            "complete": True,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "test_accuracy": accuracies[0] if evaluated_on == "test" else None,
            "head_test_accuracy": accuracies[1] if evaluated_on == "test" else None,
            "evaluated_on": evaluated_on,
            **{name: getattr(evaluation, name) for name in ("count", "scores", "baseline", "baseline_name")},
            "head_accuracy": accuracies[1],
            "head_scores": head_scores,
            **{name: getattr(evaluation, name) for name in measures if evaluation.task == CLASSIFICATION},
            "per_class": evaluation.to_rows(),
            "mistakes": _mistake_rows(evaluation, getattr(splits, "files", {}).get(evaluated_on)),
            "averaged": None if averaged is None else {"views": averaged.views, **averaged.scores},
            "phases": {
                name: {
                    "epochs": len(history.history.get("loss", ())),
                    "seconds": result.seconds.get(name, 0.0),
                    "diverged": getattr(history, "diverged", None),
                }
                for name, history in _phases(result)
            },
            **{name: getattr(result, name) for name in ("best_phase", "best_epoch", "best_value", "monitor")},
            "seconds": {**result.seconds, **(seconds or {})},
            **describe_input(model, splits, backbone),
            "weights": None if weights is None else dataclasses.asdict(weights),
            "split_sizes": splits.split_sizes,
            "seed": splits.seed,
            "versions": software_versions(),
            **noted,
        }
    )


def describe_input(model: keras.Model, splits, backbone: str | None = None) -> dict:
    """Return what a model takes, and what it returns: all that prediction needs to know."""
    return {
        "model_name": model.name,
        "backbone": backbone,
        "task": splits.task,
        "class_names": list(splits.class_names),
        "image_size": list(splits.image_size),
        "resize": splits.resize,
        "white": splits.white,
        "output": outputs.output_kind(model),
        "data": {"name": splits.name, "licence": splits.licence, "class_counts": splits.class_counts},
    }


def write_run(
    folder: str | os.PathLike,
    *,
    model: keras.Model,
    report: dict,
    result,
    evaluation: Evaluation | OutputsEvaluation,
    audit=None,
    overwrite: bool = False,
) -> Path:
    """Write the run folder with all of `run_files`, as `new_folder` does it, and return its absolute path.

    `report` is what `describe_run` returned, `audit` what `kerastl.audit` did, if it ran. With `overwrite` an earlier run
    there is lost when the new one is complete. Where `report.html` can't be made, that is a warning: all else is written.
    """
    with new_folder(folder, overwrite=overwrite, files=RUN_FILES, what="run") as place:
        _write_model(place, model, evaluation.class_names)
        _write_history(place / "history.csv", result)
        plots.plot_history(result).savefig(place / "curves.png", dpi=150, bbox_inches="tight")
        plot_scores(evaluation).savefig(place / PICTURES[evaluation.task], dpi=150)
        _plot_mistakes(evaluation, report["mistakes"]).savefig(place / "mistakes.png", dpi=150)
        write_json(place / "report.json", report)
        (place / "report.md").write_text(markdown_report(report), encoding="utf-8")
        page, trouble = _page_or_trouble(report, model=model, result=result, evaluation=evaluation, audit=audit)
        if page:
            (place / "report.html").write_text(page, encoding="utf-8")
    if trouble:  # said when the run is in its place: some turn warnings into errors
        warn(f"report.html couldn't be made ({trouble}). The rest of the run is in {folder}.")
    return Path(folder).expanduser().resolve()


def _page_or_trouble(report: dict, **known) -> tuple[str | None, str | None]:
    """Return the page of a run, or else why it can't be made: no page is worth the loss of a run."""
    try:
        return run_page(report, **known), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def write_partial_run(folder: str | os.PathLike, *, model: keras.Model, details: dict) -> Path:
    """Write `model.keras`, `labels.txt`, and a `report.json` that says that the run was cut short; return the absolute path.

    `details` is what `describe_input` returned. The folder must not exist, or be empty.
    """
    with new_folder(folder, files=RUN_FILES, what="run") as place:
        _write_model(place, model, details["class_names"])
        write_json(place / "report.json", {"format": FORMAT, "complete": False, **details})
    return Path(folder).expanduser().resolve()


def software_versions(*more: str) -> dict[str, str | None]:
    """Return the versions of what a run depends on, and of more packages by name; `None` for what isn't installed."""
    versions = {name: _version(name) for name in ("keras", "tensorflow", "numpy", *more)}
    return {"python": platform.python_version(), "kerastl": __version__, **versions, "backend": keras.backend.backend()}


def plain_values(value):
    """Return the value as what strict JSON can hold: NaN and infinity become `None`, arrays lists, paths text."""
    if isinstance(value, dict):
        return {str(key): plain_values(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_values(one) for one in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain_values(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def write_json(path: Path, values) -> None:
    """Write the `plain_values` of something as strict JSON, indented, in UTF-8."""
    text = json.dumps(plain_values(values), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    module = sys.modules.get(package)  # tensorflow-cpu and its like bring the module under another package's name
    if hasattr(module, "__version__"):
        return module.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _phases(result) -> list[tuple]:
    return [(name, one) for name in ("head", "fine_tune") if (one := getattr(result, name)) is not None]


def _mistake_rows(evaluation, file_names) -> list[dict]:
    kept = evaluation.mistakes
    called = [file_names[position] if file_names else f"image {position}" for position in kept.positions]
    rows = zip(called, kept.labels, kept.probabilities, strict=True)
    return [{"name": name, **_describe_mistake(label, said, evaluation)} for name, label, said in rows]


def _describe_mistake(label, said, evaluation) -> dict:
    """Return what is true and what was said: a class, a list of labels (and which is the surest wrong one), or numbers."""
    names, task, thresholds = evaluation.class_names, evaluation.task, evaluation.thresholds
    decided = decide(said, task, thresholds)
    if task == CLASSIFICATION:
        return {"true": names[label], "predicted": names[decided], "probability": float(said[decided])}
    if task == REGRESSION:
        true, predicted = (dict(zip(names, map(float, one), strict=True)) for one in (label, said))
        return {"true": true, "predicted": predicted}
    worst = int(wrongness(label, said, task, thresholds).argmax())
    true, predicted = (list(itertools.compress(names, one)) for one in (label, decided))
    return {"true": true, "predicted": predicted, "label": names[worst], "probability": float(said[worst])}


def _plot_mistakes(evaluation, rows):
    kept, names = evaluation.mistakes, [row["name"] for row in rows]
    if not rows:
        return plots.empty_figure(f"No mistakes among {evaluation.count} images.")
    if evaluation.task == CLASSIFICATION and evaluation.thresholds is None:
        shown = {"names": names, "count": len(rows)}
        return plots.plot_mistakes(kept.images, kept.labels, kept.probabilities, evaluation.class_names, **shown)
    return plots.plot_images(kept.images, [_mistake_title(row) for row in rows], names)


def _mistake_title(row: dict) -> str:
    said, true = (shorten(in_words(row[key]), 24) for key in ("predicted", "true"))
    if "label" not in row:
        return f"predicted {said}\ntrue {true}"
    verb = "predicted" if row["label"] in row["predicted"] else "missed"
    return f"{verb} {shorten(row['label'], 17)}, {percent(row['probability'])}\nlabels {true}"


def _write_model(place: Path, model: keras.Model, class_names) -> None:
    model.save(place / "model.keras")
    # Some names hold line breaks, which would shift all that follow
    lines = [" ".join(str(name).split()) for name in class_names]
    (place / "labels.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_history(path: Path, result) -> None:
    """Write a line per epoch: phase, epoch within it (from 1), seconds, and every logged value."""
    columns = list(dict.fromkeys(key for _, one in _phases(result) for key in one.history))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["phase", "epoch", "seconds", *columns])
        for name, one in _phases(result):
            series = [getattr(one, "epoch_seconds", ()), *(one.history.get(column, ()) for column in columns)]
            for index in range(len(one.history.get("loss", ()))):
                values = [float(values[index]) if index < len(values) else "" for values in series]
                writer.writerow([name, index + 1, *values])
