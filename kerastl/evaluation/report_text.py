"""A run in words: its tables, facts and mistakes, for a terminal and as the Markdown of `report.md`."""

import re

from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.evaluation.measures import score_table, shown_scores
from kerastl.tables import Table, readable

PICTURES = {CLASSIFICATION: "confusion_matrix.png", MULTI_LABEL: "labels.png", REGRESSION: "scatter.png"}
"""The file with the picture of a task."""

# Of each task: what `labels.txt` names, what the picture shows, and what the worst images are called
WORDS = {
    CLASSIFICATION: ("Classes", "How often each class was taken for each other", "The most confident mistakes"),
    MULTI_LABEL: ("Labels", "The average precision of each label", "The most confident mistakes"),
    REGRESSION: ("Numbers", "Predicted numbers against true ones", "The largest errors"),
}


def terminal_report(report: dict, folder=None) -> str:
    """Return what `describe_run` returned as tables for a terminal, and where the run folder is."""
    facts = "\n".join(f"{name}: {value}" for name, value in facts_of(report))
    scores = score_table(report["per_class"], task=report["task"])
    parts = [headline_table(report), scores, phase_table(report), facts]
    if folder is not None:
        parts.append(f"Run folder: {folder} (open report.html in a browser; the model is model.keras)")
    return "\n\n".join(map(str, parts))


def markdown_report(report: dict) -> str:
    """Return what `describe_run` returned as a Markdown page that shows the pictures beside it."""
    height, width = report["image_size"]
    what, picture, worst = WORDS[report["task"]]
    mistakes = [f"{place}. {_escape(_mistake_line(one))}" for place, one in enumerate(report["mistakes"], start=1)]
    command = report.get("command") or ""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    sections = [
        f"# {_escape(report['backbone'] or report['model_name'])} on {_escape(report['data']['name'])}",
        _markdown(headline_table(report)),
        "\n".join(f"- {name}: {_escape(value)}" for name, value in facts_of(report)),
        "## Training",
        "![The curves of both phases](curves.png)",
        _markdown(phase_table(report)),
        f"## {what}, on the {report['evaluated_on']} images",
        _markdown(score_table(report["per_class"], task=report["task"])),
        f"![{picture}]({PICTURES[report['task']]})",
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


def headline_table(report: dict) -> Table:
    """Return the scores beside those of the head alone, of averaged flips, and of the baseline."""
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


def phase_table(report: dict) -> Table:
    """Return epochs and seconds of each phase, and what came of it."""
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


def facts_of(report: dict) -> list[tuple[str, str]]:
    """Return `(name, value)` of what else is known: data, weights, licences, the audit, calibration, thresholds."""
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
        "Audit": (report.get("audit") or {}).get("summary"),
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


def in_words(value) -> str:
    """Return a class, a list of labels or numbers by name as text; a single number without its name."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(value) or "none"
    numbers = {name: "NaN" if one is None else f"{one:.4g}" for name, one in value.items()}
    return ", ".join(map(" ".join, numbers.items()) if len(numbers) > 1 else numbers.values())


def how_sure(row: dict) -> str:
    """Return the probability of a mistake in brackets, of several labels with the label that it is of; of a number nothing."""
    of = f" for {row['label']}" if "label" in row else ""
    return f" ({row['probability']:.3f}{of})" if "probability" in row else ""


def _mistake_line(row: dict) -> str:
    return f"{row['name']}: predicted {in_words(row['predicted'])}{how_sure(row)}, labelled {in_words(row['true'])}"
