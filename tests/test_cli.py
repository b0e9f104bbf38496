import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, strategies
from PIL import Image

import kerastl.cli.quiet as quiet
from kerastl.cli import main
from kerastl.cli import train as train_command
from kerastl.cli.models import resize_beside
from kerastl.cli.parser import _image_size, build_parser
from kerastl.errors import KerastlWarning, OutputError
from kerastl.evaluation import measures, report
from kerastl.evaluation.prediction import predict
from tests import models

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ["--backbone", "mobilenet", "--weights", "none", "--image-size", "32", "--head-epochs", "1"]
TINY = ["--image-size", "32", "--head-epochs", "2", "--fine-tune-epochs", "1", "--last-blocks", "1", "--dropout", "0"]


def write_photos(folder, classes, count=16, size=(32, 32)):
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (len(classes), 3))
    for name, colour in zip(classes, colours, strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(colour + generator.normal(0, 40, (*size, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos", ["amber", "blue", "crimson"])


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run folder that `train` made of a real network."""
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", str(photos), "--out", str(out), *TRAIN, "--fine-tune-epochs", "1", "--seed", "3"]) == 0
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder as an interrupted run leaves it, with a network that is loaded and run in no time."""
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    names = ["amber", "blue", "crimson"]
    folder = tmp_path_factory.mktemp("runs") / "small"
    return report.write_partial_run(folder, model=model, class_names=names, details={"resize": "squash"})


@pytest.fixture
def tiny_network(monkeypatch):
    """Let `train` build a network of a few layers instead of a real one."""

    def build(backbone, classes, **_):
        return models.nested(32, classes, blocks=1, width=4)

    monkeypatch.setattr(train_command, "build_classifier", build)


def only_line(capsys):
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def fails(capsys, *arguments):
    """Run a command that must end with status 2, and return the one line it said."""
    assert main([str(argument) for argument in arguments]) == 2
    line = only_line(capsys)
    assert line.startswith("error: ")
    return line


def run_program(*arguments, **options):
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "kerastl", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False, **options)


# train


def test_train_writes_a_whole_run(trained):
    assert sorted(path.name for path in trained.iterdir()) == sorted(report.RUN_FILES)
    found = json.loads((trained / "report.json").read_text())
    assert found["complete"] is True
    assert found["backbone"] == "mobilenet"
    assert found["class_names"] == ["amber", "blue", "crimson"]
    assert found["split_sizes"]["train"] > found["split_sizes"]["test"] == found["count"] > 0
    assert sum(found["split_sizes"].values()) == 48
    assert found["seed"] == 3
    assert found["weights"]["source"] == "random"
    assert found["learning_rates"]["fine_tune"] == pytest.approx(1e-4)
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


def test_the_head_phase_is_judged_with_its_own_weights(photos, tmp_path, tiny_network, monkeypatch):
    seen = []
    original = measures.evaluate

    def watched(model, *arguments, **options):
        seen.append([np.array(weight) for weight in model.weights])
        return original(model, *arguments, **options)

    def fine_tuning_wins(model, *arguments, **options):
        result = train_command_transfer_learn(model, *arguments, **options)
        result.best_phase, result.best_epoch = "fine_tune", 1
        return result

    train_command_transfer_learn = train_command.transfer_learn
    monkeypatch.setattr(train_command, "transfer_learn", fine_tuning_wins)
    monkeypatch.setattr(measures, "evaluate", watched)
    out = tmp_path / "run"
    assert main(["train", str(photos), "--out", str(out), *TINY, "--learning-rate", "0.05", "--patience", "9"]) == 0
    final, head = seen
    assert any(not np.array_equal(one, other) for one, other in zip(final, head, strict=True))
    saved = keras.models.load_model(out / "model.keras").get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(sorted_flat(final), sorted_flat(saved), strict=True))


def test_the_rate_of_fine_tuning_decays_to_0_over_the_phase(photos, tmp_path, monkeypatch):
    asked = {}

    def watched(model, data, validation, **options):
        asked.update(options, batches=int(data.cardinality()))
        return transfer_learn(model, data, validation, **options)

    transfer_learn = train_command.transfer_learn
    monkeypatch.setattr(train_command, "transfer_learn", watched)
    assert main(["train", str(photos), "--out", str(tmp_path / "run"), *TINY, "--learning-rate", "0.05"]) == 0
    rate = [float(asked["learning_rate"](step)) for step in range(asked["batches"] + 1)]
    assert rate[0] == pytest.approx(0.05)
    assert rate == sorted(rate, reverse=True)
    assert rate[-1] == pytest.approx(0, abs=1e-8)
    found = json.loads((tmp_path / "run" / "report.json").read_text())
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
    ],
)
def test_options_are_checked_before_the_images_are_read(tmp_path, capsys, options, said):
    assert said in fails(capsys, "train", "no_such_folder", "--out", tmp_path / "run", *options)


def test_bad_images_end_in_one_line(tmp_path, capsys):
    out = ["--out", tmp_path / "run", *TINY]
    assert "no_such_folder" in fails(capsys, "train", tmp_path / "no_such_folder", *out)
    (tmp_path / "empty").mkdir()
    fails(capsys, "train", tmp_path / "empty", *out)
    write_photos(tmp_path / "one", ["only"], count=4)
    fails(capsys, "train", tmp_path / "one", *out)
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
    assert main(["train", str(photos), "--out", str(out), *TINY, "--head-learning-rate", "1e30"]) == 0
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
    saved, error = capsys.readouterr().err.strip().splitlines()
    assert saved == f"The best model so far was saved in {place / 'kerastl-run'}."
    assert error.startswith("error: Can't write the run")
    assert (place / "kerastl-run" / "model.keras").is_file()
    assert not (tmp_path / "run").exists()


def test_too_little_space_is_told_before_training(photos, tmp_path, tiny_network, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    assert "Not enough space" in fails(capsys, "train", photos, "--out", tmp_path / "run", *TINY)


def test_a_bug_keeps_its_traceback_and_the_model_its_weights(photos, tmp_path, tiny_network, monkeypatch, capsys):
    def broken(*_, **__):
        raise TypeError("a bug")

    monkeypatch.setattr(report, "describe_run", broken)
    with pytest.raises(TypeError, match="a bug"):
        main(["train", str(photos), "--out", str(tmp_path / "run"), *TINY])
    assert "saved in" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.keras").is_file()


def test_a_signal_in_the_middle_of_training_saves_the_best(photos, tmp_path):
    out = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    options = ["--backbone", "mobilenet", "--weights", "none", "--image-size", "32", "--head-epochs", "500"]
    command = [sys.executable, "-m", "kerastl", "train", str(photos), "--out", str(out), *options, "--patience", "500"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        for line in process.stdout:
            if line.startswith("Epoch 3/"):
                process.send_signal(signal.SIGINT)
                break
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.strip() == f"Interrupted: the best model so far is in {out}."
    assert keras.models.load_model(out / "model.keras").output_shape == (None, 3)
    assert (out / "labels.txt").read_text().splitlines() == ["amber", "blue", "crimson"]


# predict


def test_predict_says_what_python_says(trained, photos, capsys):
    paths = [photos / "amber" / "00.png", photos / "blue"]
    assert main(["predict", str(trained), *map(str, paths), "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    model = keras.models.load_model(trained / "model.keras")
    files = [paths[0], *sorted(paths[1].iterdir())]
    expected = predict(model, files, class_names=["amber", "blue", "crimson"]).to_rows()
    assert [row["image"] for row in rows] == [str(path) for path in files]
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    assert rows[0]["probabilities"] == pytest.approx(expected[0]["probabilities"], rel=1e-4)
    assert captured.err == ""


def test_predict_prints_a_table(small, photos, capsys):
    assert main(["predict", str(small / "model.keras"), str(photos / "blue" / "01.png"), "--top", "2"]) == 0
    header, _, row = capsys.readouterr().out.strip().splitlines()
    assert header.split() == ["image", "label", "probability", "then"]
    assert row.count("%") == 2


def test_predict_resizes_as_training_did(small, tmp_path, capsys):
    run = shutil.copytree(small, tmp_path / "run")
    settings = json.loads((run / "report.json").read_text())
    wide = write_photos(tmp_path / "photos", ["wide"], count=1, size=(20, 60)) / "wide" / "00.png"
    model = keras.models.load_model(run / "model.keras")

    def answers(*options):
        assert main(["predict", str(run), str(wide), "--json", *options]) == 0
        return list(json.loads(capsys.readouterr().out)[0]["probabilities"].values())

    def expected(resize):
        return sorted(predict(model, wide, resize=resize).probabilities[0].tolist(), reverse=True)

    assert settings["resize"] == resize_beside(run / "model.keras") == "squash"
    (run / "report.json").write_text(json.dumps({**settings, "resize": "crop"}))
    assert answers() == pytest.approx(expected("crop"), rel=1e-4)
    assert answers("--resize", "pad") == pytest.approx(expected("pad"), rel=1e-4)
    for other in ("not json", "[1]", '{"resize": "stretch"}'):
        (run / "report.json").write_text(other)
        assert resize_beside(run / "model.keras") == "squash"


def test_predict_takes_labels_from_where_it_is_told(small, photos, tmp_path, capsys):
    image = photos / "amber" / "00.png"
    labels = tmp_path / "labels.txt"
    labels.write_text("\ufeffeins\r\n\r\nzwei\r\nüber\r\n", encoding="utf-8")
    assert main(["predict", str(small), str(image), "--labels", str(labels), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)[0]["probabilities"]) == {"eins", "zwei", "über"}
    labels.write_text("eins\nzwei\n")
    assert "3 classes" in fails(capsys, "predict", small, image, "--labels", labels)
    assert "no_such.txt" in fails(capsys, "predict", small, image, "--labels", tmp_path / "no_such.txt")
    labels.write_bytes(b"\xff\xfe\x00")
    assert "labels.txt" in fails(capsys, "predict", small, image, "--labels", labels)
    alone = shutil.copy(small / "model.keras", tmp_path / "alone.keras")
    labels.unlink()
    assert main(["predict", str(alone), str(image), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)[0]["probabilities"]) == {"0", "1", "2"}


def test_predict_on_bad_images(small, tmp_path, capsys):
    assert "no_such.png" in fails(capsys, "predict", small, tmp_path / "no_such.png")
    (tmp_path / "text.png").write_text("not an image")
    assert "text.png" in fails(capsys, "predict", small, tmp_path / "text.png")
    (tmp_path / "empty").mkdir()
    assert "in that folder" in fails(capsys, "predict", small, tmp_path / "empty")


def test_files_that_are_no_models(small, photos, tmp_path, capsys):
    image = photos / "amber" / "00.png"
    (tmp_path / "text.keras").write_text("not a model")
    assert "Expected a .keras file" in fails(capsys, "predict", tmp_path / "text.keras", image)
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("photo.txt", "hello")
    assert "Expected a .keras file" in fails(capsys, "predict", tmp_path / "zip.keras", image)
    whole = (small / "model.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    assert "Expected a .keras file" in fails(capsys, "predict", tmp_path / "cut.keras", image)
    with zipfile.ZipFile(tmp_path / "odd.keras", "w") as archive:
        archive.writestr("config.json", '{"class_name": "Nothing", "module": "nowhere", "config": {}}')
    assert "Can't load the model" in fails(capsys, "predict", tmp_path / "odd.keras", image)
    assert "Did you mean 'text.keras'" in fails(capsys, "summary", tmp_path / "txt.keras")
    assert "no model there" in fails(capsys, "summary", tmp_path)


def test_a_model_that_carries_code_is_refused(tmp_path, capsys):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x[:, 0, 0])(inputs))
    model.save(tmp_path / "code.keras")
    assert "Can't load the model" in fails(capsys, "summary", tmp_path / "code.keras")


# summary and backbones


def test_summary_shows_the_blocks(trained, capsys):
    assert main(["summary", str(trained)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("head") for line in lines)
    assert any("frozen" in line for line in lines)


def test_backbones_are_listed(capsys):
    assert main(["backbones"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 42
    assert any(re.match(r"resnet50 +224×224 +32×32 +BGR", line) for line in lines)
    assert main(["backbones", "VGG"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["vgg16", "vgg19"]
    assert "Did you mean 'resnet50'" in fails(capsys, "backbones", "resnet5o")


# help and quiet


@pytest.mark.parametrize("command", [[], ["train"], ["predict"], ["backbones"], ["summary"]])
def test_help_is_there(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m kerastl")
    assert all(len(line) <= 120 for line in text.splitlines())


def test_examples_in_the_help_can_be_parsed():
    parser = build_parser()
    texts = [parser.epilog, *(one.epilog or "" for one in parser._subparsers._group_actions[0].choices.values())]
    examples = [line.split()[3:] for text in texts for line in text.splitlines() if "python -m kerastl " in line]
    runnable = [example for example in examples if "--help" not in example]
    assert len(runnable) >= 10
    for example in runnable:
        assert parser.parse_args(example).module.startswith("kerastl.cli.")


def test_version_and_missing_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("kerastl ")
    assert "--help" in fails(capsys)
    assert "--out" in fails(capsys, "train", "photos")


def test_imports_are_quiet_unless_they_fail(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "noisy_module.py").write_text("import os\nos.write(2, b'I0000 noise from C++')\n")
    (tmp_path / "failing_module.py").write_text("import os\nos.write(2, b'the reason')\nraise RuntimeError('broken')\n")
    quiet.import_quietly("noisy_module")
    assert capfd.readouterr().err == ""
    with pytest.raises(RuntimeError, match="broken"):
        quiet.import_quietly("failing_module")
    assert capfd.readouterr().err == "the reason"
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_a_session_shows_own_warnings_once_and_hides_others(capsys):
    with quiet.quiet_session():
        for _ in range(2):
            warnings.warn("first line\nsecond line", KerastlWarning, stacklevel=1)
        warnings.warn("from elsewhere", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: first line second line\n"
    with pytest.warns(UserWarning, match="from elsewhere"):
        warnings.warn("from elsewhere", UserWarning, stacklevel=1)


def test_a_broken_pipe_is_no_error(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody_reads:
        monkeypatch.setattr(sys, "stdout", nobody_reads)
        assert main(["backbones"]) == 141
    assert capsys.readouterr().err == ""


@given(strategies.integers(1, 9999), strategies.integers(1, 9999), strategies.sampled_from("xX×"))
def test_image_sizes_are_read_back(height, width, sign):
    assert _image_size(f"{height}{sign}{width}") == (height, width)
    assert _image_size(f" {height} ") == height


@given(strategies.text().filter(lambda text: not re.fullmatch(r"\s*\d+([xX×]\d+)?\s*", text)))
def test_other_image_sizes_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected pixels"):
        _image_size(text)


# in processes of their own


def test_the_program_keeps_the_terminal_clean(trained, photos):
    done = run_program("predict", trained, photos / "amber" / "00.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert "00.png" in done.stdout
    wrong = run_program("train", photos)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: the following arguments are required: --out (see: python -m kerastl train --help)\n"


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
    command = [sys.executable, "-W", "error", "-c", code, str(trained / "model.keras")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr


@pytest.mark.parametrize(
    ("said", "filled"),
    [
        (["elpv", "--augmentation", "flips"], ("flips", 4, 4)),
        (["photos", "--augmentation", "flips", "--cache", "none"], ("flips", 1, 4)),
        (["photos"], ("none", 1, 1)),
        (["photos", "--augmentation", "flips", "--test-views", "1"], ("flips", 4, 1)),
        (["photos", "--augmentation", "light", "--views", "3"], ("light", 3, 1)),
    ],
)
def test_what_is_not_said_of_views_follows_from_the_images_and_their_augmentation(said, filled):
    arguments = build_parser().parse_args(["train", *said, "--out", "runs/x"])
    train_command._fill_in(arguments)
    assert (arguments.augmentation, arguments.views, arguments.test_views) == filled
