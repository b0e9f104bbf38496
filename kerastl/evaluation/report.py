"""Write down a run: its folder with model, curves, tables, pictures and figures, `report.json` and `report.md`."""

import csv
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import sys
from pathlib import Path

import keras
import numpy as np

from kerastl._version import __version__
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.evaluation import plots
from kerastl.evaluation.measures import Evaluation, OutputsEvaluation, score_table, shown_scores, wrongness
from kerastl.evaluation.plots.drawing import percent, shorten
from kerastl.evaluation.probabilities import decide
from kerastl.files import new_folder
from kerastl.models import outputs
from kerastl.models.weights import describe_weights
from kerastl.tables import Table, readable

_PICTURES = {CLASSIFICATION: "confusion_matrix.png", MULTI_LABEL: "labels.png", REGRESSION: "scatter.png"}
RUN_FILES = (
    *("model.keras", "labels.txt", "history.csv", "curves.png", *_PICTURES.values(), "mistakes.png"),
    *("report.json", "report.md"),
)
"""What run folders hold. Only a folder with nothing else in it is ever replaced."""

# Of each task: what `labels.txt` names, what the picture shows, and what the worst images are called
_WORDS = {
    CLASSIFICATION: ("Classes", "How often each class was taken for each other", "The most confident mistakes"),
    MULTI_LABEL: ("Labels", "The average precision of each label", "The most confident mistakes"),
    REGRESSION: ("Numbers", "Predicted numbers against true ones", "The largest errors"),
}

FORMAT = 1
"""The version of `report.json`'s keys."""


def run_files(task: str) -> list[str]:
    """Return what the run folder of a task holds."""
    return [name for name in RUN_FILES if name == _PICTURES[task] or name not in _PICTURES.values()]


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
    overwrite: bool = False,
) -> Path:
    """Write the run folder with all of `run_files`, as `new_folder` does it, and return its absolute path.

    `report` is what `describe_run` returned. With `overwrite` an earlier run there is lost when the new one is complete.
    """
    with new_folder(folder, overwrite=overwrite, files=RUN_FILES, what="run") as place:
        _write_model(place, model, evaluation.class_names)
        _write_history(place / "history.csv", result)
        plots.plot_history(result).savefig(place / "curves.png", dpi=150, bbox_inches="tight")
        _plot_scores(evaluation).savefig(place / _PICTURES[evaluation.task], dpi=150)
        _plot_mistakes(evaluation, report["mistakes"]).savefig(place / "mistakes.png", dpi=150)
        write_json(place / "report.json", report)
        (place / "report.md").write_text(markdown_report(report), encoding="utf-8")
    return Path(folder).expanduser().resolve()


def write_partial_run(folder: str | os.PathLike, *, model: keras.Model, details: dict) -> Path:
    """Write `model.keras`, `labels.txt`, and a `report.json` that says that the run was cut short; return the absolute path.

    `details` is what `describe_input` returned. The folder must not exist, or be empty.
    """
    with new_folder(folder, files=RUN_FILES, what="run") as place:
        _write_model(place, model, details["class_names"])
        write_json(place / "report.json", {"format": FORMAT, "complete": False, **details})
    return Path(folder).expanduser().resolve()


def terminal_report(report: dict, folder=None) -> str:
    """Return what `describe_run` returned as tables for a terminal, and where the run folder is."""
    facts = "\n".join(f"{name}: {value}" for name, value in _facts(report))
    scores = score_table(report["per_class"], task=report["task"])
    parts = [_headline_table(report), scores, _phase_table(report), facts]
    if folder is not None:
        parts.append(f"Run folder: {folder} (start with report.md; the model is model.keras)")
    return "\n\n".join(map(str, parts))


def markdown_report(report: dict) -> str:
    """Return what `describe_run` returned as a Markdown page that shows the pictures beside it."""
    height, width = report["image_size"]
    what, picture, worst = _WORDS[report["task"]]
    mistakes = [f"{place}. {_escape(_mistake_line(one))}" for place, one in enumerate(report["mistakes"], start=1)]
    command = report.get("command") or ""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    sections = [
        f"# {_escape(report['backbone'] or report['model_name'])} on {_escape(report['data']['name'])}",
        _markdown(_headline_table(report)),
        "\n".join(f"- {name}: {_escape(value)}" for name, value in _facts(report)),
        "## Training",
        "![The curves of both phases](curves.png)",
        _markdown(_phase_table(report)),
        f"## {what}, on the {report['evaluated_on']} images",
        _markdown(score_table(report["per_class"], task=report["task"])),
        f"![{picture}]({_PICTURES[report['task']]})",
        f"## {worst}",
        f"![{worst}, with the images](mistakes.png)",
        "\n".join(mistakes),
        "## Use it",
        "```\npython -m kerastl predict model.keras photo.jpg\n```",
        "Without this package, `keras.models.load_model` reads it too. It takes RGB 0–255, "
        f"`(batch, {height}, {width}, 3)`, and returns one {'number' if report['task'] == REGRESSION else 'probability'} "
        "per line of `labels.txt`.",
        "## Made with",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        f"{fence}\n{command}\n{fence}" if command else "",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


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


def _in_words(value) -> str:
    """Return a class, a list of labels or numbers by name as text; the only number without its name."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(value) or "none"
    numbers = {name: "NaN" if one is None else f"{one:.4g}" for name, one in value.items()}
    return ", ".join(map(" ".join, numbers.items()) if len(numbers) > 1 else numbers.values())


def _mistake_line(row: dict) -> str:
    of = f" for {row['label']}" if "label" in row else ""
    sure = f" ({row['probability']:.3f}{of})" if "probability" in row else ""
    return f"{row['name']}: predicted {_in_words(row['predicted'])}{sure}, labelled {_in_words(row['true'])}"


def _plot_scores(evaluation):
    if evaluation.task == CLASSIFICATION:
        return plots.plot_confusion_matrix(evaluation.confusion_matrix, evaluation.class_names)
    if evaluation.task == MULTI_LABEL:
        return plots.plot_label_scores(evaluation.to_rows(), evaluation.count)
    return plots.plot_numbers(evaluation.labels, evaluation.outputs, evaluation.class_names)


def _plot_mistakes(evaluation, rows):
    kept, names = evaluation.mistakes, [row["name"] for row in rows]
    if not rows:
        return plots.empty_figure(f"No mistakes among {evaluation.count} images.")
    if evaluation.task == CLASSIFICATION and evaluation.thresholds is None:
        shown = {"names": names, "count": len(rows)}
        return plots.plot_mistakes(kept.images, kept.labels, kept.probabilities, evaluation.class_names, **shown)
    return plots.plot_images(kept.images, [_mistake_title(row) for row in rows], names)


def _mistake_title(row: dict) -> str:
    said, true = (shorten(_in_words(row[key]), 24) for key in ("predicted", "true"))
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


def _headline_table(report: dict) -> Table:
    on, error = report["evaluated_on"], report.get("standard_error")
    rows = {f"{on}, {report['count']} images{'' if error is None else ' (± standard error)'}": report["scores"]}
    if report.get("head_scores"):
        rows[f"{on}, head phase alone"] = report["head_scores"]
    if averaged := report.get("averaged"):
        rows[f"{on}, {averaged['views']} flips averaged"] = {name: averaged[name] for name in report["scores"]}
    rows[report["baseline_name"]] = report["baseline"]
    cells = [[name, *shown_scores(scores).values()] for name, scores in rows.items()]
    if error is not None:  # without its error a figure stands below the figures, not below the errors
        cells = [[name, value + (" " * 8 if index else f" ± {error:.3f}")] for index, (name, value) in enumerate(cells)]
    return Table(["result", *shown_scores(report["scores"])], cells, right=range(1, len(cells[0])))


def _phase_table(report: dict) -> Table:
    words = {"head": "head", "fine_tune": "fine-tuning"}
    rows = [
        [words[name], str(phase["epochs"]), f"{phase['seconds']:.1f}", _outcome(report, name, phase)]
        for name, phase in report["phases"].items()
    ]
    others = {name: value for name, value in report["seconds"].items() if name not in (*report["phases"], "total")}
    rows += [[name, "", f"{value:.1f}", ""] for name, value in others.items()]
    return Table(["phase", "epochs", "seconds", ""], rows, right={1, 2})


def _outcome(report: dict, name: str, phase: dict) -> str:
    said = [f"stopped: the loss was no number any more in {phase['diverged']}"] if phase["diverged"] else []
    if report["best_phase"] == name:
        value = "" if report["best_value"] is None else f" ({report['monitor']} {report['best_value']:.4f})"
        said.append(f"weights of epoch {report['best_epoch']} kept{value}")
    elif report["best_phase"] == "start" and name == "head":
        said.append("no epoch was better than the start, whose weights are kept")
    return "; ".join(said)


def _facts(report: dict) -> list[tuple[str, str]]:
    weights, data = report["weights"], report["data"]
    height, width = report["image_size"]
    sizes = ", ".join(f"{count} {split}" for split, count in report["split_sizes"].items())
    origin, licences = "unknown", [f"data: {data['licence']}"] if data.get("licence") else []
    if weights:
        named = weights["source"].lower() in weights["title"].lower()
        origin = weights["title"] if named else f"{weights['source']}: {weights['title']}"
        licences += [f"weights: {weights['licence']}"] if weights["source"] != "random" else []
    facts = {
        "Data": f"{data['name']}; {sizes} images at {height}×{width} ({report['resize']}), seed {report['seed']}",
        "Weights": origin,
        "Licences": "; ".join(licences),
        "Calibration": _calibration(report.get("calibration")),
        "Thresholds": ", ".join(f"{name} {value:.3f}" for name, value in (report.get("thresholds") or {}).items()),
    }
    return [(name, value) for name, value in facts.items() if value]


def _calibration(found: dict | None) -> str | None:
    if not found:
        return None
    shown = {"": found["temperature"]} if isinstance(found["temperature"], float) else found["temperature"]
    temperatures = ", ".join(f"{name} {value:.3f}".strip() for name, value in shown.items())
    error = f"{found['error_before']:.3f} before, {found['error_after']:.3f} after"
    return f"temperature {temperatures}; calibration error {error}, on the validation images"


def _markdown(table: Table) -> str:
    rule = ["---:" if index in table.right else "---" for index in range(len(table.header))]
    header, *rows = [[_escape(cell.strip()) for cell in row] for row in [table.header, *table.rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


def _escape(text: str) -> str:
    return re.sub(r"[\\|`*_<>\[\]#&~$]", r"\\\g<0>", readable(str(text)))
