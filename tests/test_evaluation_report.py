import csv
import errno
import json
import math
import os
import stat

import keras
import numpy as np
import pytest
from hypothesis import given, strategies

from kerastl.errors import OutputError
from kerastl.evaluation import report
from kerastl.evaluation.measures import evaluate
from tests.runs import make_run, make_splits

NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def splits():
    return make_splits()


@pytest.fixture(scope="module")
def run(colours, labelled, splits):
    """Everything that `write_run` takes."""
    return make_run(
        colours,
        labelled,
        splits,
        head_scores={"accuracy": 0.6},
        averaged=evaluate(colours, labelled, NAMES, views=4),
        backbone="tiny",
        learning_rates={"head": 1e-3, "fine_tune": math.inf},
        arguments={"out": "runs/x", "size": (8, 8)},
        command="python -m kerastl train colours",
    )


@pytest.fixture(scope="module")
def place(run, tmp_path_factory):
    """A run folder."""
    return report.write_run(tmp_path_factory.mktemp("parent") / "runs" / "first", **run)


def strict(text):
    def refuse(constant):
        raise AssertionError(f"not strict JSON: {constant}")

    return json.loads(text, parse_constant=refuse)


def test_a_run_folder_holds_everything(run, place, labelled):
    assert sorted(path.name for path in place.iterdir()) == sorted(report.run_files("classification"))
    assert [path.name for path in place.parent.iterdir()] == ["first"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(place.stat().st_mode) == 0o777 & ~mask
    assert (place / "labels.txt").read_text() == "red\ngreen\nblue\n"
    loaded = keras.models.load_model(place / "model.keras")
    np.testing.assert_array_equal(loaded.predict(labelled[0], verbose=0), run["model"].predict(labelled[0], verbose=0))
    for name in ("curves.png", "confusion_matrix.png", "mistakes.png"):
        assert (place / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_says_what_was_done(place):
    found = strict((place / "report.json").read_text())
    assert found["test_accuracy"] == pytest.approx(0.7)
    assert found["head_test_accuracy"] == 0.6
    # one colour all over: flips change nothing
    assert found["averaged"] == {"views": 4, "accuracy": pytest.approx(0.7)}
    assert found["majority_baseline"] == 0.5
    assert found["confusion_matrix"] == [[3, 0, 0], [1, 4, 0], [0, 2, 0]]
    assert found["per_class"][2] == {"name": "blue", "precision": None, "recall": 0.0, "f1": 0.0, "support": 2}
    assert found["split_sizes"] == {"train": 80, "validation": 10, "test": 10}
    assert (found["seed"], found["resize"], found["image_size"], found["backbone"]) == (7, "crop", [8, 8], "tiny")
    assert found["data"]["name"] == "colours"
    assert found["data"]["licence"] == "CC0"
    assert found["seconds"] == {"head": 4.5, "fine_tune": 3.0}
    assert (found["best_phase"], found["best_epoch"], found["best_value"]) == ("fine_tune", 2, 0.25)
    assert found["learning_rates"] == {"head": 1e-3, "fine_tune": None}
    assert found["mistakes"][0]["name"] == "photos/9.png"
    assert found["versions"]["keras"] == keras.__version__
    assert set(found["versions"]) >= {"python", "keras", "backend", "tensorflow", "kerastl", "numpy"}
    assert "weights" in found


def test_history_csv_has_a_line_per_epoch(place):
    rows = list(csv.DictReader((place / "history.csv").read_text().splitlines()))
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        *(("head", str(epoch)) for epoch in (1, 2, 3)),
        *(("fine_tune", str(epoch)) for epoch in (1, 2)),
    ]
    assert float(rows[4]["val_loss"]) == pytest.approx(0.9)
    assert (rows[0]["learning_rate"], rows[3]["learning_rate"]) == ("", "0.0001")
    assert rows[0]["seconds"] == "1.5"


def test_odd_class_names_break_neither_page_nor_labels(run, tmp_path, colours, labelled):
    evaluation = evaluate(colours, labelled, ["a|b", "new\nline", "Ärger <b>"])
    summary = {**run["report"], "per_class": evaluation.to_rows()}
    place = report.write_run(tmp_path / "run", **{**run, "evaluation": evaluation, "report": summary})
    assert (place / "labels.txt").read_text(encoding="utf-8").splitlines() == ["a|b", "new line", "Ärger <b>"]
    page = (place / "report.md").read_text(encoding="utf-8")
    assert "| a\\|b | 0.750" in page
    assert "Ärger \\<b\\>" in page


def fill_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def hdf5_full(*_, **__):
    raise RuntimeError(
        "Unable to flush file (file write failed: errno = 28, error message = 'No space left on device')"
    )


@pytest.mark.parametrize("failure", [fill_disk, hdf5_full])
@pytest.mark.parametrize("at", ["_write_model", "write_json"])
def test_a_full_disk_leaves_nothing_and_loses_nothing(run, tmp_path, monkeypatch, at, failure):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.keras").write_text("old")
    monkeypatch.setattr(report, at, failure)
    with pytest.raises(OutputError, match="no space left"):
        report.write_run(tmp_path / "run", overwrite=True, **run)
    with pytest.raises(OutputError, match="no space left"):
        report.write_run(tmp_path / "other" / "run", **run)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["other", "run", "run/model.keras"]
    assert (tmp_path / "run" / "model.keras").read_text() == "old"


def test_a_bug_while_writing_is_no_disk_trouble(run, tmp_path, monkeypatch):
    def broken(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(report, "_write_history", broken)
    with pytest.raises(TypeError, match="a bug"):
        report.write_run(tmp_path / "run", **run)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_is_replaced_only_when_asked(run, tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    (place / "labels.txt").write_text("old")
    (place / ".DS_Store").write_text("litter")
    with pytest.raises(OutputError, match="--overwrite"):
        report.write_run(tmp_path / "run", **run)
    report.write_run(tmp_path / "run", overwrite=True, **run)
    assert (place / "labels.txt").read_text() == "red\ngreen\nblue\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_partial_run_can_be_predicted_with(colours, splits, tmp_path):
    details = report.describe_input(colours, splits, "tiny")
    place = report.write_partial_run(tmp_path / "run", model=colours, details=details)
    assert sorted(path.name for path in place.iterdir()) == ["labels.txt", "model.keras", "report.json"]
    found = strict((place / "report.json").read_text())
    assert (found["complete"], found["resize"], found["class_names"]) == (False, "crop", NAMES)


def test_plain_values():
    values = {"a": np.float32(0.5), 1: [math.nan, (np.int64(3), np.array([1.0, math.inf]))], "path": os.sep, "b": True}
    assert report.plain_values(values) == {"a": 0.5, "1": [None, [3, [1.0, None]]], "path": os.sep, "b": True}


numbers = strategies.floats() | strategies.integers() | strategies.floats(width=32).map(np.float32)
leaves = numbers | strategies.text() | strategies.booleans() | strategies.none() | strategies.binary()


@given(strategies.recursive(leaves, lambda inner: strategies.lists(inner) | strategies.dictionaries(leaves, inner)))
def test_plain_values_are_strict_json_whatever_they_were(value):
    plain = report.plain_values(value)
    assert strict(json.dumps(plain, allow_nan=False)) == plain
