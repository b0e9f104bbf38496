import csv
import errno
import json
import math
import os
import stat
import types

import keras
import numpy as np
import pytest
from hypothesis import given, strategies

from kerastl.errors import ArgumentError, DataError, ModelError, OutputError
from kerastl.evaluation import report
from kerastl.evaluation.report import folder as folder_module
from kerastl.evaluation.report import writing

NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def colours():
    """A classifier that names the strongest channel."""
    inputs = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(pooled), name="colours")
    model.set_weights([np.eye(3) * 5, np.zeros(3)])
    return model


def image_of(channel, strength=255):
    image = np.zeros((8, 8, 3), "uint8")
    image[..., channel] = strength
    return image


@pytest.fixture(scope="module")
def labelled():
    """Ten images of colour 0, 0, 0, 0, 1, 1, 1, 1, 1, 1 that are labelled 0, 0, 0, 1, 1, 1, 1, 1, 2, 2."""
    strengths = [200, 210, 220, 230, 250, 240, 180, 170, 100, 255]
    images = np.stack([image_of(int(place > 3), strength) for place, strength in enumerate(strengths)])
    return images, np.array([0, 0, 0, 1, 1, 1, 1, 1, 2, 2])


class Batches(keras.utils.PyDataset):
    def __init__(self, images, labels, size):
        super().__init__()
        self.images, self.labels, self.size = images, labels, size

    def __len__(self):
        return math.ceil(len(self.images) / self.size)

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return self.images[part], self.labels[part]


def test_scores_equal_those_counted_by_hand(colours, labelled):
    found = report.evaluate(colours, labelled, NAMES)
    assert found.confusion_matrix.tolist() == [[3, 0, 0], [1, 4, 0], [0, 2, 0]]
    assert found.accuracy == pytest.approx(0.7)
    assert found.standard_error == pytest.approx(math.sqrt(0.7 * 0.3 / 10))
    assert (found.majority_class, found.majority_baseline) == ("green", 0.5)
    red, green, blue = found.per_class
    assert (red.precision, red.recall, red.f1, red.support) == (0.75, 1.0, pytest.approx(6 / 7), 3)
    assert (green.precision, green.recall, green.f1) == (pytest.approx(4 / 6), 0.8, pytest.approx(8 / 11))
    assert (blue.precision, blue.recall, blue.f1, blue.support) == (None, 0.0, 0.0, 2)
    assert "accuracy 0.700 ± 0.145 on 10 images" in str(found)
    assert "<td" in found._repr_html_()


def test_a_class_that_never_occurs_has_no_scores(colours, labelled):
    images, labels = labelled
    blue = report.evaluate(colours, (images[:4], labels[:4]), NAMES).per_class[2]
    assert (blue.precision, blue.recall, blue.f1, blue.support) == (None, None, None, 0)


def test_every_form_of_data_gives_the_same(colours, labelled):
    tf = pytest.importorskip("tensorflow")
    images, labels = labelled
    one_hot = np.eye(3)[labels]
    forms = [
        (images.astype("float32"), labels[:, None]),
        (images, one_hot),
        Batches(images, labels, 3),
        tf.data.Dataset.from_tensor_slices((images, labels)).batch(4),
        iter([(images[:5], labels[:5]), (images[5:], labels[5:]), (images[:0], labels[:0])]),
    ]
    expected = report.evaluate(colours, labelled, NAMES)
    for data in forms:
        found = report.evaluate(colours, data, NAMES)
        assert found.confusion_matrix.tolist() == expected.confusion_matrix.tolist()
        assert found.mistakes.positions.tolist() == expected.mistakes.positions.tolist()


def test_the_most_confident_mistakes_are_kept_across_batches(colours, labelled):
    images, labels = labelled
    for size in (1, 3, 10):
        kept = report.evaluate(colours, Batches(images, labels, size), NAMES, mistakes=2).mistakes
        assert kept.positions.tolist() == [9, 3]
        assert kept.labels.tolist() == [2, 1]
        assert kept.probabilities.argmax(axis=1).tolist() == [1, 0]
        assert [int(image.max()) for image in kept.images] == [255, 230]
    assert report.evaluate(colours, labelled, NAMES, mistakes=0).mistakes.images == []


def test_what_can_t_be_evaluated(colours, labelled):
    images, labels = labelled
    with pytest.raises(DataError, match="no images to evaluate"):
        report.evaluate(colours, [], NAMES)
    with pytest.raises(DataError, match="from 0 to 2"):
        report.evaluate(colours, (images, labels + 1), NAMES)
    with pytest.raises(DataError, match="8 × 8"):
        report.evaluate(colours, (np.zeros((2, 9, 9, 3)), labels[:2]), NAMES)
    with pytest.raises(DataError, match="which is 2"):
        report.evaluate(colours, labelled, NAMES[:2])
    with pytest.raises(DataError, match="pair of arrays"):
        report.evaluate(colours, 3, NAMES)
    with pytest.raises(DataError, match=r"batches of \(images, labels\)"):
        report.evaluate(colours, [images], NAMES)
    with pytest.raises(ArgumentError, match="views"):
        report.evaluate(colours, labelled, NAMES, views=3)
    with pytest.raises(ModelError, match="build_classifier"):
        report.evaluate(keras.Model(colours.input, colours.layers[1].output), labelled)
    with pytest.warns(UserWarning, match="look scaled"):
        report.evaluate(colours, (images / 255, labels), NAMES)


def history(epochs, **extra):
    falling = [0.9**epoch for epoch in range(epochs)]
    values = {"loss": falling, "accuracy": falling[::-1], "val_loss": falling, "val_accuracy": falling}
    return types.SimpleNamespace(history={**values, **extra}, epoch_seconds=[1.5] * epochs, diverged=None)


@pytest.fixture
def result():
    return make_result()


def make_result():
    return types.SimpleNamespace(
        head=history(3),
        fine_tune=history(2, learning_rate=[1e-4, math.nan]),
        best_phase="fine_tune",
        best_epoch=2,
        best_value=0.25,
        monitor="val_loss",
        seconds={"head": 4.5, "fine_tune": 3.0},
    )


@pytest.fixture(scope="module")
def splits():
    return types.SimpleNamespace(
        class_names=("red", "green", "blue"),
        class_counts={"red": 30, "green": 50, "blue": 20},
        split_sizes={"train": 80, "validation": 10, "test": 10},
        image_size=(8, 8),
        resize="crop",
        seed=7,
        name="colours",
        licence="CC0",
        files={"test": tuple(f"photos/{index}.png" for index in range(10))},
    )


@pytest.fixture(scope="module")
def run(colours, labelled, splits):
    """Everything that `write_run` takes."""
    result = make_result()
    evaluation = report.evaluate(colours, labelled, NAMES)
    summary = report.describe_run(
        colours,
        splits,
        result,
        evaluation,
        head_accuracy=0.6,
        averaged=report.evaluate(colours, labelled, NAMES, views=4),
        backbone="tiny",
        learning_rates={"head": 1e-3, "fine_tune": math.inf},
        arguments={"out": "runs/x", "size": (8, 8)},
        command="python -m kerastl train colours",
    )
    return {"model": colours, "report": summary, "result": result, "evaluation": evaluation}


@pytest.fixture(scope="module")
def place(run, tmp_path_factory):
    """A run folder."""
    return report.write_run(tmp_path_factory.mktemp("parent") / "runs" / "first", **run)


def strict(text):
    def refuse(constant):
        raise AssertionError(f"not strict JSON: {constant}")

    return json.loads(text, parse_constant=refuse)


def test_a_run_folder_holds_everything(run, place, labelled):
    assert sorted(path.name for path in place.iterdir()) == sorted(report.RUN_FILES)
    assert [path.name for path in place.parent.iterdir()] == ["first"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o777 & ~folder_module._umask()
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


def test_the_reports_in_words(run, place):
    page = (place / "report.md").read_text()
    for name in ("curves.png", "confusion_matrix.png", "mistakes.png"):
        assert f"({name})" in page
    assert "| red | 0.750 | 1.000 | 0.857 | 3 |" in page
    assert "python -m kerastl train colours" in page
    text = report.terminal_report(run["report"], "runs/x")
    assert "0.700 ± 0.145" in text
    assert "weights of epoch 2 kept (val_loss 0.2500)" in text
    assert "CC0" in text
    assert text.endswith("model.keras)")


def test_a_run_that_was_not_better_than_its_start_says_so(colours, labelled, result, splits):
    result.best_phase, result.best_epoch, result.best_value = "start", 0, math.nan
    result.head.diverged, result.fine_tune = "epoch 1, batch 3", None
    result.seconds = {"head": 4.5}
    evaluation = report.evaluate(colours, labelled, NAMES)
    summary = report.describe_run(colours, splits, result, evaluation, evaluated_on="validation")
    assert summary["test_accuracy"] is None
    assert summary["accuracy"] == pytest.approx(0.7)
    text = report.terminal_report(summary)
    assert "no number any more in epoch 1, batch 3" in text
    assert "no epoch was better than the start" in text
    assert "validation, 10 images" in text


def test_odd_class_names_break_neither_page_nor_labels(run, tmp_path, colours, labelled):
    evaluation = report.evaluate(colours, labelled, ["a|b", "new\nline", "Ärger <b>"])
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
@pytest.mark.parametrize("at", ["_write_model", "_write_json"])
def test_a_full_disk_leaves_nothing_and_loses_nothing(run, tmp_path, monkeypatch, at, failure):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.keras").write_text("old")
    monkeypatch.setattr(writing, at, failure)
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

    monkeypatch.setattr(writing, "_write_history", broken)
    with pytest.raises(TypeError, match="a bug"):
        report.write_run(tmp_path / "run", **run)
    assert list(tmp_path.iterdir()) == []


def test_when_the_last_rename_fails_the_old_run_is_back(tmp_path, monkeypatch):
    target = tmp_path / "run"
    target.mkdir()
    (target / "model.keras").write_text("old")
    original, calls = os.replace, []

    def fails_once(source, destination):
        calls.append(destination)
        if len(calls) == 2:
            raise OSError(errno.EIO, "I/O error")
        original(source, destination)

    monkeypatch.setattr(folder_module.os, "replace", fails_once)
    with pytest.raises(OutputError, match="I/O error"), report.new_folder(target, overwrite=True) as place:
        (place / "model.keras").write_text("new")
    assert (target / "model.keras").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


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


def test_only_runs_are_ever_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    (tmp_path / "home" / "model.keras").write_text("")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        report.check_output_folder(tmp_path / "home", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        report.check_output_folder(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="Nothing can be written"):
        report.check_output_folder("/dev/null/run")
    with pytest.raises(ArgumentError, match="path of a folder"):
        report.check_output_folder("")
    (tmp_path / "empty").mkdir()
    assert report.check_output_folder(tmp_path / "empty") == tmp_path / "empty"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "home"]


def test_an_empty_folder_and_a_link_are_filled(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with report.new_folder(tmp_path / "link") as place:
        (place / "model.keras").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert report.is_run_folder(tmp_path / "real")


def test_free_space_is_checked(tmp_path):
    report.check_free_space(tmp_path / "not" / "there", 1)
    with pytest.raises(OutputError, match="Not enough space"):
        report.check_free_space(tmp_path / "not" / "there", 10**18)


def test_a_free_name_is_found_beside_a_taken_one(tmp_path):
    assert report.free_folder_beside(tmp_path / "run", "interrupted") == tmp_path / "run"
    for expected in ("run", "run-interrupted", "run-interrupted-2"):
        found = report.free_folder_beside(tmp_path / "run", "interrupted")
        assert found.name == expected
        found.mkdir()
        (found / "something").write_text("")


def test_a_partial_run_can_be_predicted_with(colours, splits, tmp_path):
    details = report.describe_input(colours, splits, "tiny")
    place = report.write_partial_run(tmp_path / "run", model=colours, class_names=splits.class_names, details=details)
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
