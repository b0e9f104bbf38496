"""`train`, from the command line."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from kerastl.cli import main
from kerastl.cli import train as train_command
from kerastl.cli.parser import build_parser
from kerastl.errors import OutputError
from kerastl.evaluation import measures, report
from kerastl.training.rates import RECIPE_RATE
from tests import models
from tests.commands import fails, only_line, write_photos

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ["--backbone", "mobilenet", "--weights", "none", "--image-size", "32", "--head-epochs", "1"]
TINY = ["--image-size", "32", "--head-epochs", "2", "--fine-tune-epochs", "1", "--last-blocks", "1", "--dropout", "0"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos", ["amber", "blue", "crimson"])


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run folder that `train` made of a real network."""
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", str(photos), "--out", str(out), *TRAIN, "--fine-tune-epochs", "1", "--seed", "3"]) == 0
    return out


@pytest.fixture
def tiny_network(monkeypatch):
    """Let `train` build a network of a few layers instead of a real one."""

    def build(backbone, classes, **_):
        return models.nested(32, classes, blocks=1, width=4)

    monkeypatch.setattr(train_command, "build_classifier", build)


def test_train_writes_a_whole_run(trained):
    assert sorted(path.name for path in trained.iterdir()) == sorted(report.run_files("classification"))
    found = json.loads((trained / "report.json").read_text())
    assert found["complete"] is True
    assert found["backbone"] == "mobilenet"
    assert found["class_names"] == ["amber", "blue", "crimson"]
    assert found["split_sizes"]["train"] > found["split_sizes"]["test"] == found["count"] > 0
    assert sum(found["split_sizes"].values()) == 48
    assert found["seed"] == 3
    assert found["weights"]["source"] == "random"
    assert found["learning_rates"]["fine_tune"] == pytest.approx(RECIPE_RATE)
    assert found["arguments"]["head_epochs"] == 1
    assert found["command"].startswith("python -m kerastl train ")
    assert set(found["seconds"]) >= {"head", "fine_tune", "evaluation", "total"}
    assert found["best_phase"] in ("start", "head", "fine_tune")
    assert 0 <= found["head_test_accuracy"] <= 1
    assert found["mistakes"] == [] or found["mistakes"][0]["name"].endswith(".png")
    assert len((trained / "history.csv").read_text().splitlines()) == 3


def test_train_prints_what_it_does_and_replaces_an_earlier_run(photos, tmp_path, tiny_network, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "model.keras").write_text("old")
    options = [*TINY, "--class-weight", "balanced", "--overwrite"]
    assert main(["train", str(photos), "--out", str(out), *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for text in ("48 images, 3 classes", "Training the head, 2 epochs at most", "Fine-tuning, 1 epoch at most"):
        assert text in captured.out
    end = captured.out[captured.out.index("result ") :]
    assert re.search(r"test, \d+ images .* 0\.\d{3} ± 0\.\d{3}|test, \d+ images .* 1\.000 ± 0\.000", end)
    assert "always predicting" in end
    assert "weights of epoch" in end
    assert f"Run folder: {out}" in end
    assert keras.models.load_model(out / "model.keras").name == "nested"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_head_epochs_the_head_is_fitted(photos, tmp_path, tiny_network, capsys):
    options = ["--image-size", "32", "--fine-tune-epochs", "1", "--last-blocks", "1", "--out", str(tmp_path / "run")]
    assert main(["train", str(photos), *options]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"Fitting the head\n(.*\n)*The head was fitted .* right by cross-validation\n(.*\n)*Fine-tuning, 1", printed
    )
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 3
    assert found["arguments"]["head_epochs"] is None


def test_fine_tuning_decays_to_0_and_the_head_phase_is_judged_with_its_own_weights(
    photos, tmp_path, tiny_network, monkeypatch
):
    seen, asked = [], {}
    original, transfer_learn = measures.evaluate, train_command.transfer_learn

    def watched(model, *arguments, **options):
        seen.append([np.array(weight) for weight in model.weights])
        return original(model, *arguments, **options)

    def fine_tuning_wins(model, data, validation, **options):
        asked.update(options, batches=int(data.cardinality()))
        best = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_accuracy=2.0))
        return transfer_learn(model, data, validation, **{**options, "callbacks": [*options["callbacks"], best]})

    monkeypatch.setattr(train_command, "transfer_learn", fine_tuning_wins)
    monkeypatch.setattr(measures, "evaluate", watched)
    out = tmp_path / "run"
    assert main(["train", str(photos), "--out", str(out), *TINY, "--learning-rate", "0.05", "--test-views", "1"]) == 0
    final, head = seen
    assert any(not np.array_equal(one, other) for one, other in zip(final, head, strict=True))
    saved = keras.models.load_model(out / "model.keras").get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(sorted_flat(final), sorted_flat(saved), strict=True))
    rate = [float(asked["learning_rate"](step)) for step in range(asked["batches"] + 1)]
    peak = int(np.argmax(rate))
    assert rate[peak] == pytest.approx(0.05)
    assert rate == sorted(rate[:peak]) + sorted(rate[peak:], reverse=True)
    assert rate[-1] == pytest.approx(0, abs=1e-8)
    found = json.loads((out / "report.json").read_text())
    assert found["learning_rates"]["fine_tune"] == pytest.approx(0.05)
    assert "cosine decay" in found["learning_rates"]["fine_tune_schedule"]


def sorted_flat(weights):
    return sorted((weight.ravel() for weight in weights), key=lambda values: (len(values), *values[:3]))


def test_the_output_folder_is_checked_before_anything_slow(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert "--overwrite" in fails(capsys, "train", "no_such_folder", "--out", tmp_path)
    assert "notes.txt" in fails(capsys, "train", "no_such_folder", "--out", tmp_path, "--overwrite")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "option", "place"),
    [
        (["train"], "--out", "run"),
        (["train"], "--out", "amber/run"),
        (["train", "--out", "../elsewhere"], "--cache", "features"),
        (["extract"], "--to", "features"),
        (["audit"], "--out", "audit"),
        (["compare", "--backbones", "mobilenet"], "--out", "comparison"),
    ],
)
def test_nothing_is_written_among_class_folders(command, option, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_photos(tmp_path / "photos", ["amber", "blue"], count=1))
    for source in (".", tmp_path / "photos"):
        line = fails(capsys, command[0], source, *command[1:], option, place)
        assert "Choose a folder outside of the source" in line
        assert f"{option} {place!r}" in line
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["amber", "blue"]


@pytest.mark.parametrize(
    ("source", "labels", "out"),
    [
        ("photos", None, "runs/a"),
        ("photos", None, "photos-2"),
        ("photos", None, "photos/.runs/a"),
        ("photos", "a.csv", "photos/a"),
    ],
)
def test_what_no_run_takes_for_images_may_be_written(source, labels, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / source).mkdir()
    given = ["--labels", labels] if labels else []
    train_command.check_places(source, build_parser().parse_args(["train", source, "--out", out, *given]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backbone", "mobilnet_v2"], "Did you mean 'mobilenet_v2'"),
        (["--backbone", "xception", "--image-size", "64"], "71"),
        (["--image-size", "large"], "expected pixels such as 224"),
        (["--head-epochs", "0"], "--head-epochs"),
        (["--dropout", "1.5"], "--dropout"),
        (["--learning-rate", "-1"], "--learning-rate"),
        (["--seed", "-1"], "--seed"),
        (["--last-blocks", "1", "--fraction", "0.5"], "not allowed with"),
        (["--resize", "stretch"], "invalid choice"),
        (["--colour"], "unrecognized arguments"),
        (["--views", "4"], "--augmentation that is named, flips, photo"),
        (["--views", "2", "--augmentation", "none"], "Received: --views 2, --augmentation 'none'"),
        (["--hidden-units", "0"], "--hidden-units must be"),
    ],
)
def test_options_are_checked_before_the_images_are_read(tmp_path, capsys, options, said):
    assert said in fails(capsys, "train", "no_such_folder", "--out", tmp_path / "run", *options)


@pytest.mark.parametrize("content", ["[1]", "[" * 100000, "{"])
def test_a_run_whose_report_is_damaged_is_not_complete(content, tmp_path, capsys):
    (tmp_path / "report.json").write_text(content)
    assert "not empty" in fails(capsys, "train", "no_such_folder", "--out", tmp_path, "--resume")


def test_bad_images_end_in_one_line(tmp_path, capsys):
    out = ["--out", tmp_path / "run", *TINY]
    assert "no_such_folder" in fails(capsys, "train", tmp_path / "no_such_folder", *out)
    (tmp_path / "empty").mkdir()
    fails(capsys, "train", tmp_path / "empty", *out)
    write_photos(tmp_path / "one", ["only"], count=4)
    assert "or pass --labels with a file" in fails(capsys, "train", tmp_path / "one", *out)
    write_photos(tmp_path / "broken", ["a", "b"], count=12)
    (tmp_path / "broken" / "a" / "note.png").write_text("not an image")
    assert "note.png" in fails(capsys, "train", tmp_path / "broken", *out)
    assert not (tmp_path / "run").exists()


def test_warnings_of_this_package_are_one_line_and_others_none(tmp_path, tiny_network, capsys):
    write_photos(tmp_path / "few", ["many", "few"], count=16)
    for path in list((tmp_path / "few" / "few").iterdir())[8:]:
        path.unlink()
    assert main(["train", str(tmp_path / "few"), "--out", str(tmp_path / "run"), *TINY]) == 0
    line = only_line(capsys)
    assert line.startswith("warning: ")
    assert "few (8)" in line


def test_nan_in_the_loss_is_told_and_the_rest_is_written(photos, tmp_path, tiny_network, capsys):
    out = tmp_path / "run"
    assert main(["train", str(photos), "--out", str(out), *TINY, "--head-learning-rate", "1e38"]) == 0
    assert "warning: The loss became NaN" in capsys.readouterr().err
    found = json.loads((out / "report.json").read_text())
    assert any("batch" in (phase["diverged"] or "") for phase in found["phases"].values())
    assert all(np.isfinite(weight).all() for weight in keras.models.load_model(out / "model.keras").get_weights())


# Ctrl-C and a full disk


def interrupt_after(monkeypatch, epochs):
    original = train_command._Watch.on_epoch_end

    def interrupted(self, epoch, logs=None):
        original(self, epoch, logs)
        if self.epochs >= epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_command._Watch, "on_epoch_end", interrupted)


def test_what_was_best_is_saved_on_an_interruption(photos, tmp_path, tiny_network, monkeypatch, capsys):
    interrupt_after(monkeypatch, 2)
    out = tmp_path / "run"
    assert main(["train", str(photos), "--out", str(out), *TINY]) == 130
    assert only_line(capsys) == f"Interrupted: the best model so far is in {out}."
    assert sorted(path.name for path in out.iterdir()) == ["labels.txt", "model.keras", "report.json"]
    assert main(["predict", str(out), str(photos / "amber")]) == 0
    assert "amber" in capsys.readouterr().out


def test_an_interruption_that_gets_lost_is_noticed_all_the_same(photos, tmp_path, tiny_network, monkeypatch, capsys):
    def swallow(self, epoch, logs=None):
        if epoch == 1:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_command._Watch, "on_epoch_begin", swallow)
    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)
    assert main(["train", str(photos), "--out", str(out), *TINY]) == 130
    assert only_line(capsys) == f"Interrupted: the best model so far is in {out}."
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interruption_leaves_an_earlier_run_alone(photos, tmp_path, tiny_network, monkeypatch, capsys):
    interrupt_after(monkeypatch, 1)
    out = tmp_path / "run"
    out.mkdir()
    (out / "model.keras").write_text("old")
    assert main(["train", str(photos), "--out", str(out), *TINY, "--overwrite"]) == 130
    assert "run-interrupted" in only_line(capsys)
    assert (out / "model.keras").read_text() == "old"
    assert (tmp_path / "run-interrupted" / "labels.txt").read_text() == "amber\nblue\ncrimson\n"


def test_an_interruption_before_the_first_epoch_ends_writes_nothing(
    photos, tmp_path, tiny_network, monkeypatch, capsys
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command._Watch, "on_train_begin", interrupted)
    assert main(["train", str(photos), "--out", str(tmp_path / "run"), *TINY]) == 130
    assert "nothing was written" in only_line(capsys)
    monkeypatch.setattr(train_command, "_prepare", interrupted)
    assert main(["train", str(photos), "--out", str(tmp_path / "run"), *TINY]) == 130
    assert "nothing was written" in only_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_cut_off_goes_on_with_the_same_command(photos, tmp_path, tiny_network, monkeypatch, capsys):
    def stop(*_, **__):
        raise SystemExit

    command = ["train", str(photos), *TINY, "--resume", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert main([*command, str(tmp_path / "run")]) == 130
        assert only_line(capsys) == "Interrupted: the same command goes on from here."
    assert "head_epochs was 2, not 3" in fails(capsys, *command, tmp_path / "run", "--head-epochs", "3")
    with monkeypatch.context() as patch:  # killed when all but the run folder is there
        patch.setattr(report, "write_run", stop)
        patch.setattr(train_command, "_rescue", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            main([*command, str(tmp_path / "run")])
    capsys.readouterr()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-unfinished", "whole"]
    assert main([*command, str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "Going on after epoch 2 of 2, which was the last" in text
    assert "Epoch 1/" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]
    weights = [keras.models.load_model(tmp_path / name / "model.keras").get_weights() for name in ("run", "whole")]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert main([*command, str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run'} holds this run, and it is complete.\n"


def test_a_full_disk_at_the_end_doesn_t_lose_the_model(photos, tmp_path, tiny_network, monkeypatch, capsys):
    def full(*_, **__):
        raise OutputError("Can't write the run: no space left on the disk.")

    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.setattr(train_command.tempfile, "gettempdir", lambda: str(place))
    monkeypatch.setattr(report, "write_run", full)
    original = report.write_partial_run
    monkeypatch.setattr(
        report,
        "write_partial_run",
        lambda folder, **rest: full() if place not in folder.parents else original(folder, **rest),
    )
    assert main(["train", str(photos), "--out", str(tmp_path / "run"), *TINY]) == 2
    line = only_line(capsys)
    assert line.startswith(
        f"error: Can't write the run: no space left on the disk. The best model so far is in {place}"
    )
    assert line.endswith(
        "missing there: history.csv, curves.png, confusion_matrix.png, mistakes.png, report.md, report.html."
    )
    assert (place / "kerastl-run" / "model.keras").is_file()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "where", ["plots.plot_history", "plots.plot_confusion_matrix", "markdown_report", "describe_run"]
)
def test_nothing_that_fails_after_training_loses_the_model(where, photos, tmp_path, tiny_network, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr(f"kerastl.evaluation.report.{where}", fails)
    assert main(["train", str(photos), "--out", str(tmp_path / "run"), *TINY]) == 1
    *trace, line = capsys.readouterr().err.strip().splitlines()
    assert any("Traceback" in one for one in trace)
    assert line.startswith(
        f"error: RuntimeError: no font. The best model so far is in {tmp_path / 'run'}; missing there: "
    )
    assert {"curves.png", "report.md"} <= set(line.removesuffix(".").split("missing there: ")[1].split(", "))
    assert keras.models.load_model(tmp_path / "run" / "model.keras").outputs[0].shape == (None, 3)
    assert (tmp_path / "run" / "labels.txt").read_text() == "amber\nblue\ncrimson\n"


@pytest.mark.parametrize("where", ["run_page", "plots.plot_history"])
def test_a_page_that_can_t_be_made_is_told_and_the_rest_is_there(
    where, photos, tmp_path, tiny_network, monkeypatch, capsys
):
    def fails(*_, axes=None, **__):
        if where == "run_page" or axes is not None:  # that is how the page calls it
            raise RuntimeError("no font")
        return original(*_, **__)

    original = report.plots.plot_history
    monkeypatch.setattr(f"kerastl.evaluation.report.{where}", fails)
    out = tmp_path / "run"
    assert main(["train", str(photos), "--out", str(out), *TINY]) == 0
    assert only_line(capsys).startswith("warning: report.html couldn't be made (RuntimeError: no font).")
    assert {path.name for path in out.iterdir()} == set(report.run_files("classification")) - {"report.html"}


def test_ctrl_c_while_the_page_is_made_saves_the_model(photos, tmp_path, tiny_network, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "run_page", interrupted)
    out = tmp_path / "run"
    assert main(["train", str(photos), "--out", str(out), *TINY]) == 130
    assert only_line(capsys) == f"Interrupted: the best model so far is in {out}."
    assert sorted(path.name for path in out.iterdir()) == ["labels.txt", "model.keras", "report.json"]


def test_an_audit_before_training_is_told_in_every_report(photos, tmp_path, tiny_network, monkeypatch, capsys):
    asked = []

    def features(images, backbone, weights, verbose):
        asked.append((backbone, weights))
        return np.random.default_rng(0).normal(size=(len(images.names), 8))

    monkeypatch.setattr("kerastl.evaluation.audit._extract", features)
    out = tmp_path / "run"
    options = [*TINY, "--audit", "--backbone", "mobilenet", "--weights", "none"]
    assert main(["train", str(photos), "--out", str(out), *options]) == 0
    assert asked == [("mobilenet", None)]
    found = json.loads((out / "report.json").read_text())["audit"]
    assert found["findings"]["label"] > 6  # by features that say nothing
    printed, page = capsys.readouterr().out, (out / "report.html").read_text("utf-8")
    assert printed.index(found["summary"]) < printed.index("Training the head")
    assert found["summary"] in (out / "report.md").read_text("utf-8").replace("\\", "")
    assert f"{found['findings']['label'] - 6} more are shown by" in page
    assert "Nobody has looked yet" not in page


def test_too_little_space_is_told_before_training(photos, tmp_path, tiny_network, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    assert "Not enough space" in fails(capsys, "train", photos, "--out", tmp_path / "run", *TINY)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_training_saves_the_best(photos, tmp_path, number):
    out = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    options = ["--backbone", "mobilenet", "--weights", "none", "--image-size", "32", "--head-epochs", "500"]
    command = [sys.executable, "-m", "kerastl", "train", str(photos), "--out", str(out), *options, "--patience", "500"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        for line in process.stdout:
            if line.startswith("Epoch 3/"):
                process.send_signal(number)
                break
        _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert error.strip() == f"Interrupted: the best model so far is in {out}."
    assert keras.models.load_model(out / "model.keras").output_shape == (None, 3)
    assert (out / "labels.txt").read_text().splitlines() == ["amber", "blue", "crimson"]


def test_the_model_loads_and_predicts_the_same_without_this_package(trained, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("uint8")
    here = keras.models.load_model(trained / "model.keras").predict(images, verbose=0)
    np.savez(tmp_path / "here.npz", images=images, answers=here)
    code = """
import sys
sys.modules["kerastl"] = None  # importing it raises ImportError from now on
import keras, numpy
try:
    import kerastl
except ImportError:
    pass
else:
    raise SystemExit("kerastl could be imported")
saved = numpy.load("here.npz")
answers = keras.models.load_model(sys.argv[1]).predict(saved["images"], verbose=0)
numpy.testing.assert_allclose(answers, saved["answers"], rtol=1e-5, atol=1e-6)
print("the same")
"""
    of_keras = ["-W", "ignore:In the future:FutureWarning"]  # as it is imported on NumPy 2.0
    command = [sys.executable, "-W", "error", *of_keras, "-c", code, str(trained / "model.keras")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr


@pytest.mark.parametrize(
    ("said", "filled"),
    [
        (["elpv", "--augmentation", "flips"], ("flips", None, 4)),
        (["photos", "--augmentation", "none"], ("none", 1, 1)),
        (["photos"], ("auto", None, 2)),
        (["photos", "--augmentation", "flips", "--test-views", "1"], ("flips", None, 1)),
        (["photos", "--augmentation", "light", "--views", "3"], ("light", 3, 2)),
    ],
)
def test_what_is_not_said_of_views_follows_from_the_images_and_their_augmentation(said, filled):
    arguments = build_parser().parse_args(["train", *said, "--out", "runs/x"])
    train_command.fill_in(arguments)
    assert (arguments.augmentation, arguments.views, arguments.test_views) == filled
