"""The examples in the docstrings of public names: they are there, and they print what they say."""

import doctest
import inspect
import pathlib
import textwrap

import pytest

import kerastl

ROOT = pathlib.Path(__file__).parents[1]

# What a function returns is shown by the example of the function
RETURNED_BY = {
    "AuditResult": "audit",
    "BackboneComparison": "compare_backbones",
    "Bundle": "load_bundle",
    "CachePlan": "plan_cache",
    "Calibration": "calibrate",
    "CheckResult": "check",
    "Evaluation": "evaluate",
    "ImageSplits": "load_images",
    "LearningRates": "find_learning_rate",
    "Predictions": "predict",
    "ProbeResult": "probe",
    "SparsityReport": "sparsity_report",
    "Thresholds": "choose_thresholds",
    "TrainableSummary": "trainable_summary",
    "TransferResult": "transfer_learn",
}
WITHOUT = {
    "__version__": "a text",
    "choose_backbone": "it needs pretrained weights, and half a minute: docs/how-to/choose-a-backbone.md",
    "BackboneChoice": "what choose_backbone returns",
    "GateError": "it needs an export that went wrong",
    "plot_comparison": "it is in the example of compare_backbones, which takes seconds",
}
WITH = sorted(set(kerastl.__all__) - RETURNED_BY.keys() - WITHOUT.keys())
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def example_of(name: str) -> doctest.DocTest:
    """Return the example in a public name's docstring, with nothing to run it on yet."""
    text = inspect.getdoc(getattr(kerastl, name)) or ""
    return doctest.DocTestParser().get_doctest(text, {}, f"kerastl.{name}", None, 0)


def first_lines() -> str:
    """Return the lines that docs/api/index.rst says the examples begin with."""
    _, _, block = (
        (ROOT / "docs" / "api" / "index.rst").read_text(encoding="utf-8").partition(".. code-block:: python\n")
    )
    indented = [line for line in block.split("\n.. ")[0].splitlines() if not line or line.startswith("   ")]
    return textwrap.dedent("\n".join(indented))


@pytest.mark.parametrize("name", WITH)
def test_the_example_prints_what_it_says(name, tmp_path, monkeypatch):
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    example = example_of(name)
    assert example.examples, f"kerastl.{name} has no example: add one, or say in WITHOUT why it can't have one"
    exec(compile(first_lines(), "docs/api/index.rst", "exec"), example.globs)
    said = []
    failed = doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=said.append).failed
    pyplot.close("all")
    assert failed == 0, "".join(said)


def test_what_is_without_an_example_is_said():
    assert {*RETURNED_BY, *WITHOUT} <= set(kerastl.__all__)
    assert set(RETURNED_BY.values()) <= set(WITH)
    shown = [name for name in [*RETURNED_BY, *WITHOUT] if name != "__version__" and example_of(name).examples]
    assert shown == [], "they have an example: take them out of the list"


def test_an_example_that_is_wrong_is_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(optionflags=OPTIONS).run(wrong, out=lambda _: None).failed == 1
