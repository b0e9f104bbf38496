"""The words of a run: in the terminal, and in `report.md`."""

import math

import pytest

from kerastl.evaluation import report
from kerastl.evaluation.measures import evaluate
from kerastl.evaluation.report_text import markdown_report, terminal_report
from tests.runs import make_result, make_run, make_splits

NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def summary(colours, labelled):
    command = "python -m kerastl train colours"
    scores = {"accuracy": 0.6}
    return make_run(colours, labelled, make_splits(), backbone="tiny", command=command, head_scores=scores)["report"]


def test_the_reports_in_words(summary):
    page = markdown_report(summary)
    for name in ("curves.png", "confusion_matrix.png", "mistakes.png"):
        assert f"({name})" in page
    assert "| red | 0.750 | 1.000 | 0.857 | 3 |" in page
    assert "python -m kerastl train colours" in page
    text = terminal_report(summary, "runs/x")
    assert "0.700 ± 0.145" in text
    assert "weights of epoch 2 kept (val_loss 0.2500)" in text
    assert "CC0" in text
    assert text.endswith("model.keras)")


def test_a_run_that_was_not_better_than_its_start_says_so(colours, labelled):
    result = make_result()
    result.best_phase, result.best_epoch, result.best_value = "start", 0, math.nan
    result.head.diverged, result.fine_tune = "epoch 1, batch 3", None
    result.seconds = {"head": 4.5}
    evaluation = evaluate(colours, labelled, NAMES)
    summary = report.describe_run(colours, make_splits(), result, evaluation, evaluated_on="validation")
    assert summary["test_accuracy"] is None
    assert summary["accuracy"] == pytest.approx(0.7)
    text = terminal_report(summary)
    assert "no number any more in epoch 1, batch 3" in text
    assert "no epoch was better than the start" in text
    assert "validation, 10 images" in text


def test_backticks_and_line_breaks_of_names_stay_in_their_place(summary):
    odd = {**summary, "command": "python -m kerastl train 'a```b'", "backbone": None, "model_name": "`x`\n# y"}
    odd["data"] = {**odd["data"], "name": "*new*\nline"}
    odd["mistakes"] = [{**odd["mistakes"][0], "name": "a`b.png"}]
    page = markdown_report(odd)
    assert "````\npython -m kerastl train 'a```b'\n````\n" in page
    assert page.startswith("# \\`x\\`\\\\n\\# y on \\*new\\*\\\\nline\n")
    assert "- Data: \\*new\\*\\\\nline; " in page
    assert "1. a\\`b.png: predicted green" in page
