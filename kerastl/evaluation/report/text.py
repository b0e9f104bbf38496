"""The report of a run in words: for the terminal, and as a Markdown page."""

from kerastl.evaluation.report.evaluation import score_cells
from kerastl.tables import text_table

_PHASES = {"head": "head", "fine_tune": "fine-tuning"}
_SCORE_HEADER = ["class", "precision", "recall", "F1", "images"]


def terminal_report(report: dict, folder=None) -> str:
    """Return the end of a run as tables for a terminal.

    Args:
        report: what `describe_run` returns.
        folder: where the run folder is, to be named at the end.
    """
    header, rows = _phase_cells(report)
    parts = [
        text_table(["result", "accuracy"], _headline_cells(report), right={1}),
        text_table(_SCORE_HEADER, score_cells(report["per_class"]), right={1, 2, 3, 4}),
        text_table(header, rows, right={1, 2}),
        "\n".join(f"{name}: {value}" for name, value in _facts(report)),
    ]
    if folder is not None:
        parts.append(f"Run folder: {folder} (start with report.md; the model is model.keras)")
    return "\n\n".join(parts)


def markdown_report(report: dict) -> str:
    """Return the report as a Markdown page that shows the pictures beside it.

    Args:
        report: what `describe_run` returns.
    """
    scores = _markdown_table(_SCORE_HEADER, score_cells(report["per_class"]), right={1, 2, 3, 4})
    sections = [
        f"# {report['backbone'] or report['model_name']} on {report['data']['name']}",
        _markdown_table(["result", "accuracy"], _headline_cells(report), right={1}),
        "\n".join(f"- {name}: {value}" for name, value in _facts(report)),
        "## Training",
        "![Loss and accuracy over both phases](curves.png)",
        _markdown_table(*_phase_cells(report), right={1, 2}),
        f"## Classes, on the {report['evaluated_on']} images",
        scores,
        "![How often each class was taken for each other](confusion_matrix.png)",
        "## The most confident mistakes",
        "![The images that were mistaken with the greatest confidence](mistakes.png)",
        *_mistake_lines(report),
        "## Use it",
        _usage(report),
        "## Made with",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
    ]
    if report.get("command"):
        sections += ["```\n" + report["command"] + "\n```"]
    return "\n\n".join(sections) + "\n"


def _headline_cells(report: dict) -> list[list[str]]:
    on = report["evaluated_on"]
    score = f"{report['accuracy']:.3f} ± {report['standard_error']:.3f}"
    rows = [[f"{on}, {report['count']} images (± standard error)", score]]
    if report.get("head_accuracy") is not None:
        rows.append([f"{on}, head phase alone", f"{report['head_accuracy']:.3f}        "])
    if report.get("averaged"):
        averaged = report["averaged"]
        rows.append([f"{on}, {averaged['views']} flips averaged", f"{averaged['accuracy']:.3f}        "])
    rows.append([f"always answering {report['majority_class']!r}", f"{report['majority_baseline']:.3f}        "])
    return rows


def _phase_cells(report: dict) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, phase in report["phases"].items():
        rows.append([_PHASES[name], str(phase["epochs"]), f"{phase['seconds']:.1f}", _outcome(report, name, phase)])
    others = {name: value for name, value in report["seconds"].items() if name not in report["phases"]}
    rows += [[name, "", f"{value:.1f}", ""] for name, value in others.items() if name != "total"]
    return ["phase", "epochs", "seconds", ""], rows


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
    facts = [
        ("Data", f"{data['name']}; {sizes} images at {height}×{width} ({report['resize']}), seed {report['seed']}"),
        ("Weights", _weights_in_words(weights)),
    ]
    if report.get("auxiliary_accuracies"):
        heads = ", ".join(f"{name} {value:.3f}" for name, value in report["auxiliary_accuracies"].items())
        facts.append(("Auxiliary heads, accuracy on the validation images", heads))
    licences = [f"data: {data['licence']}"] if data.get("licence") else []
    licences += [f"weights: {weights['licence']}"] if weights and weights["source"] != "random" else []
    return [*facts, ("Licences", "; ".join(licences))] if licences else facts


def _weights_in_words(weights: dict | None) -> str:
    if not weights:
        return "unknown"
    source, title = weights["source"], weights["title"]
    return title if source.lower() in title.lower() else f"{source}: {title}"


def _mistake_lines(report: dict) -> list[str]:
    lines = [
        f"{place}. `{one['name']}`: predicted {_escape(one['predicted'])} ({one['probability']:.3f}),"
        f" labelled {_escape(one['true'])}"
        for place, one in enumerate(report["mistakes"], start=1)
    ]
    return ["\n".join(lines)] if lines else []


def _usage(report: dict) -> str:
    height, width = report["image_size"]
    return (
        "```\npython -m kerastl predict model.keras photo.jpg\n```\n\n"
        "Without this package, `keras.models.load_model` reads it too. It takes RGB 0–255, "
        f"`(batch, {height}, {width}, 3)`, and answers with one probability per line of `labels.txt`."
    )


def _markdown_table(header, rows, *, right=()) -> str:
    rule = ["---:" if index in right else "---" for index in range(len(header))]
    lines = [[_escape(cell.strip()) for cell in row] for row in [header, *rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def _escape(text: str) -> str:
    for character in "\\|`*_<>[]":
        text = text.replace(character, f"\\{character}")
    return text
