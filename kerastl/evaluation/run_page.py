"""The page of a run, `report.html`: curves, scores, mistakes under Grad-CAM, the audit, how to use the model, settings."""

import shlex

import keras
import numpy as np

from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.evaluation import plots
from kerastl.evaluation.audit_page import audit_findings
from kerastl.evaluation.explanation import grad_cam
from kerastl.evaluation.measures import score_table, shown_scores, wrongness
from kerastl.evaluation.pages import code, links, page, pairs, plot, table, text, thumbnail
from kerastl.evaluation.plots.drawing import panels_of
from kerastl.evaluation.plots.heat import under_heat
from kerastl.evaluation.report_text import WORDS, facts_of, headline_table, how_sure, in_words, phase_table
from kerastl.evaluation.snippets import keras_code
from kerastl.models.outputs import main_tensor

# These keep a page of a run below 3 MB, whatever its images show
_PHOTO = 200  # pixels, of the longer side
_ROWS = 400  # of the table of scores
_FINDINGS = 6  # of each kind


def run_page(report: dict, *, model: keras.Model, result, evaluation, audit=None) -> str:
    """Return the page of a run as HTML. Every name is escaped; nothing is loaded from elsewhere, and nothing runs.

    `report` is what `describe_run` returned, `result` holds the history of both phases, `evaluation` is an `Evaluation` or an
    `OutputsEvaluation`, and `audit` what `kerastl.audit` returned, if it ran.
    """
    what, _, worst = WORDS[report["task"]]
    title = f"{report['backbone'] or report['model_name']} on {report['data']['name']}"
    sections = {
        "training": ("Training", _curves(result) + table(phase_table(report))),
        "scores": (f"{what}, on the {report['evaluated_on']} images", _scores(report, evaluation)),
        "mistakes": (worst, _mistakes(report, model, evaluation)),
        "audit": ("What is wrong with the data", _audit(report, audit)),
        "use": ("Use the model", _use(report, model)),
        "settings": ("Settings", _settings(report)),
    }
    body = [
        f"<h1>{text(title)}</h1>",
        f'<p class="lead">{text(_lead(report))}</p>',
        links({place: heading for place, (heading, _) in sections.items()}),
        table(headline_table(report)),
        pairs(facts_of(report)),
        *(
            f'<section id="{place}"><h2>{text(name)}</h2>\n{content}</section>'
            for place, (name, content) in sections.items()
        ),
    ]
    return page(title, "\n".join(body))


def _lead(report: dict) -> str:
    (name, value), *_ = shown_scores(report["scores"]).items()
    error = report.get("standard_error")
    spread = "" if error is None else f" ± {error:.3f}"
    return f"{name[0].upper()}{name[1:]} {value}{spread} on {report['count']} {report['evaluated_on']} images"


def _curves(result) -> str:
    """Return loss and accuracy as two pictures, which stand below each other on a phone."""
    panels = [panels_of(None, 1, "for a curve", figsize=(4.6, 3.7))[0] for _ in range(2)]
    plots.plot_history(result, axes=panels)
    drawn = [panel for panel in panels if panel.has_data()]
    pictures = [plot(one.figure, f"Curves of both phases, epoch by epoch: {one.get_ylabel()}") for one in drawn]
    return f'<div class="plots">{"".join(pictures)}</div>'


def _scores(report: dict, evaluation) -> str:
    rows = report["per_class"]
    more = f'<p class="quiet">The other {len(rows) - _ROWS} are in report.json.</p>' if len(rows) > _ROWS else ""
    picture = plot(plot_scores(evaluation), _in_short(report, evaluation))
    return f'{table(score_table(rows[:_ROWS], task=report["task"]))}{more}<div class="scroll">{picture}</div>'


def plot_scores(evaluation):
    """Return the figure of a task: the confusion matrix, the average precision of labels, or numbers against true ones."""
    if evaluation.task == CLASSIFICATION:
        return plots.plot_confusion_matrix(evaluation.confusion_matrix, evaluation.class_names)
    if evaluation.task == MULTI_LABEL:
        return plots.plot_label_scores(evaluation.to_rows(), evaluation.count)
    return plots.plot_numbers(evaluation.labels, evaluation.outputs, evaluation.class_names)


def _in_short(report: dict, evaluation) -> str:
    """Return what the picture of a task shows, and of a confusion matrix what was mistaken most often."""
    shows = WORDS[evaluation.task][1]
    if evaluation.task != CLASSIFICATION:
        return f"{shows}."
    names = evaluation.class_names
    wrong = evaluation.confusion_matrix * (1 - np.eye(len(names), dtype=int))
    order = [divmod(int(place), len(names)) for place in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    said = [
        f"{names[true]} for {names[called]} ({wrong[true, called]})" for true, called in order if wrong[true, called]
    ]
    return f"{shows}. Most often: {', '.join(said) or 'none'}."


def _mistakes(report: dict, model: keras.Model, evaluation) -> str:
    kept, rows = evaluation.mistakes, report["mistakes"]
    if not rows:
        return f"<p>No mistakes among {report['count']} images.</p>"
    asked = wrongness(kept.labels, kept.probabilities, evaluation.task, evaluation.thresholds).argmax(axis=1)
    heat_maps, trouble = _heat_maps(model, evaluation, asked)
    does = (
        "makes the number below it larger"
        if evaluation.task == REGRESSION
        else "speaks for the class or label below it"
    )
    note = (
        f"No heat maps: {trouble}"
        if trouble
        else f"The second picture is brighter where the photograph {does} (Grad-CAM)."
    )
    cards = [
        _mistake(row, image, evaluation.class_names[index], heat)
        for row, image, index, heat in zip(rows, kept.images, asked, heat_maps, strict=True)
    ]
    return f'<p class="quiet">{text(note)}</p>\n<div class="cards">{"".join(cards)}</div>'


def _heat_maps(model: keras.Model, evaluation, asked: np.ndarray) -> tuple[list, str]:
    """Return a heat map for each mistake, or `None` for each and why: some networks and backends have none."""
    images = evaluation.mistakes.images
    # One unit counts as class 1 of two, also where it is a number
    is_one = main_tensor(model).shape[-1] == 1 and evaluation.task == REGRESSION
    try:
        return list(grad_cam(model, np.stack(images), class_index=np.ones_like(asked) if is_one else asked)), ""
    except Exception as error:
        return [None] * len(images), f"{type(error).__name__}: {error}"


def _mistake(row: dict, image: np.ndarray, name: str, heat: np.ndarray | None) -> str:
    short = row["name"].replace("\\", "/").rpartition("/")[2]
    true, predicted = in_words(row["true"]), in_words(row["predicted"])
    pictures = [(image, f"{short}, labelled {true}", short)]
    if heat is not None:
        bright = np.rint(under_heat(image, heat) * 255).astype("uint8")
        pictures.append((bright, f"Grad-CAM of {short} for {name}", f"{'' if heat.any() else 'nothing '}for {name}"))
    figures = "".join(
        f'<figure><img src="{thumbnail(pixels, _PHOTO)}" alt="{text(alt)}" loading="lazy">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for pixels, alt, caption in pictures
    )
    said = f"predicted <b>{text(predicted)}</b>{text(how_sure(row))}<br>labelled <b>{text(true)}</b>"
    return (
        f'<div class="card pair" title="{text(row["name"])}"><div class="pictures">{figures}</div><p>{said}</p></div>'
    )


def _audit(report: dict, audit) -> str:
    if audit is not None:
        return audit_findings(
            audit, most=_FINDINGS, heading="h3", rest="are shown by <code>python -m kerastl audit</code>"
        )
    arguments = report.get("arguments") or {}
    labels = ["--labels", str(arguments["labels"])] if arguments.get("labels") else []
    command = ["python", "-m", "kerastl", "audit", str(arguments.get("source", "flowers/")), *labels, "--out", "audit"]
    return (
        "<p>Nobody has looked yet. This finds copies in different splits, probable label errors, and images unlike all "
        f"others:</p>\n{code(shlex.join(command))}\n"
        "<p>With <code>--audit</code>, <code>train</code> looks first, and shows here what it found.</p>"
    )


def _use(report: dict, model: keras.Model) -> str:
    height, width = report["image_size"]
    prints = "number" if report["task"] == REGRESSION else "probability"
    white = f" Pixels of more than 8 bits are scaled so that {report['white']} is 255." if report.get("white") else ""
    return (
        f"<p>In the folder of this page:</p>\n{code('python -m kerastl predict model.keras photo.jpg')}\n"
        f"<p>The model is plain Keras, and takes RGB 0–255, <code>(batch, {height}, {width}, 3)</code>.{text(white)} Where "
        f"this package is not installed, these lines print the {prints} for each line of <code>labels.txt</code>:</p>\n"
        f"{code(keras_code(model, report))}"
    )


def _settings(report: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    made = {"Made": report["created"].replace("T", " ").replace("+00:00", " UTC"), "With": versions}
    if rates := report.get("learning_rates"):
        made["Learning rates"] = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in rates.items())
    options = {name.replace("_", " "): _option(value) for name, value in (report.get("arguments") or {}).items()}
    every = f"<details><summary>Every option</summary>{pairs(options.items())}</details>" if options else ""
    command = code(report["command"]) if report.get("command") else ""
    return f"{command}{pairs(made.items())}{every}"


def _option(value) -> str:
    if value is None:
        return "default"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
