"""The command line but for `train` and `export`, which have files of their own."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import keras
import pytest
from hypothesis import given, strategies

import kerastl.cli.quiet as quiet
from kerastl import cli
from kerastl.cli import main
from kerastl.cli.models import report_beside, resize_beside
from kerastl.cli.parser import _image_size, build_parser
from kerastl.errors import KerastlWarning
from kerastl.evaluation import report
from kerastl.evaluation.prediction import predict
from tests.commands import fails, write_photos

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos", ["amber", "blue", "crimson"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder as an interrupted run leaves it, with a network that is loaded and run in no time."""
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, trainable=False)(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    details = {"class_names": ["amber", "blue", "crimson"], "resize": "squash"}
    folder = tmp_path_factory.mktemp("runs") / "small"
    return report.write_partial_run(folder, model=model, details=details)


# predict


def test_predict_says_what_python_says(small, photos, capsys):
    paths = [photos / "amber" / "00.png", photos / "blue"]
    assert main(["predict", str(small), *map(str, paths), "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    model = keras.models.load_model(small / "model.keras")
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


@pytest.mark.parametrize(
    ("choice", "preprocessing"),
    [("none", None), ("/255", lambda pixels: pixels / 255), ("/127.5-1", lambda pixels: pixels / 127.5 - 1)],
)
def test_predict_asks_for_the_pixels_of_a_model_that_shows_none_and_takes_them(
    choice, preprocessing, photos, tmp_path, capsys
):
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")])
    model.save(tmp_path / "plain.keras")
    command = ["predict", tmp_path / "plain.keras", photos / "blue" / "00.png"]
    line = fails(capsys, *command)
    assert "--preprocessing /255 for 0–1, --preprocessing /127.5-1 for −1…1, or --preprocessing none" in line
    assert main([*map(str, command), "--preprocessing", choice, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    (expected,) = predict(model, photos / "blue" / "00.png", preprocessing=preprocessing)
    assert row["probabilities"] == pytest.approx(expected.probabilities, rel=1e-4)


@pytest.mark.parametrize("option", ["--top", "--batch-size"])
def test_errors_name_options_of_the_command_line(option, small, photos, capsys):
    line = fails(capsys, "predict", small, photos / "blue" / "00.png", option, 0)
    assert f"error: {option} must be" in line
    assert line.endswith(f"Received: {option} 0")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--image-size", "0"],
            "--image-size must be a whole number from 1 to 8192 (pixels). Received: --image-size 0",
        ),
        (["--validation", "1.5"], "--validation must be"),
        (["--hidden-units", "0"], "--hidden-units must be"),
        (["--last-blocks", "0"], "--last-blocks"),
    ],
)
def test_errors_of_train_name_options_too(options, said, photos, tmp_path, capsys):
    command = ["train", photos, "--out", tmp_path / "run", "--backbone", "mobilenet_v2", "--weights", "none"]
    assert said in fails(capsys, *command, *options)


def test_every_operand_is_known_to_be_no_option():
    (commands,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    operands = {one.dest for command in commands.choices.values() for one in command._actions if not one.option_strings}
    assert operands == cli._OPERANDS - {"module", "command_line"}


@pytest.mark.parametrize("version", ["", "later", "99", "99.1.0.dev3"])
def test_a_file_of_any_version_says_what_stands_in_the_way(version, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        file.writestr("config.json", '{"module": "keras_other.layers", "config": {"name": "mine"}}')
        file.writestr("metadata.json", json.dumps({"keras_version": version}))
    line = fails(capsys, "summary", tmp_path / "model.keras")
    assert (f"Keras {version} wrote it" if version.startswith("99") else "code of its own") in line


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100000,
        '{"arguments": [1], "data": "x", "task": ["a"], "resize": [1]}',
        '{"class_names": [["a"], 1, {}]}',
    ],
)
def test_a_damaged_report_beside_a_model_is_none(content, small, photos, tmp_path, capsys):
    run = shutil.copytree(small, tmp_path / "run")
    (run / "report.json").write_text(content)
    assert report_beside(run / "model.keras") == {}
    assert main(["predict", str(run), str(photos / "blue" / "00.png")]) == 0
    assert "blue/00.png" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX")
def test_a_pipe_beside_a_model_is_not_waited_for(small, tmp_path):
    shutil.copytree(small, tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    os.mkfifo(tmp_path / "run" / "report.json")
    assert report_beside(tmp_path / "run" / "model.keras") == {}


def test_predict_on_bad_images(small, photos, tmp_path, monkeypatch, capsys):
    assert "no_such.png" in fails(capsys, "predict", small, tmp_path / "no_such.png")
    (tmp_path / "text.png").write_text("not an image")
    assert "text.png" in fails(capsys, "predict", small, tmp_path / "text.png")
    (tmp_path / "empty").mkdir()
    assert "in that folder" in fails(capsys, "predict", small, tmp_path / "empty")
    monkeypatch.chdir(photos)
    assert "Expected a path" in fails(capsys, "predict", small, "")  # such as "$PHOTO" of a script that never set it


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
    assert "no model there. Expected a .keras file, or a run folder with" in fails(capsys, "summary", tmp_path)


def test_a_model_that_carries_code_is_refused(tmp_path, capsys):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x[:, 0, 0])(inputs))
    model.save(tmp_path / "code.keras")
    assert "Can't load the model" in fails(capsys, "summary", tmp_path / "code.keras")


# summary and backbones


def test_summary_shows_the_blocks(small, capsys):
    assert main(["summary", str(small)]) == 0
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


def test_unknown_options_are_told_with_the_help_of_their_command(capsys):
    line = fails(capsys, "train", "photos", "--out", "run", "--epochs", 3)
    assert "unrecognized arguments: --epochs 3. Did you mean '--head-epochs'" in line
    assert line.endswith("(see: python -m kerastl train --help)")
    assert "'--views'" in fails(capsys, "predict", "run", "photo.jpg", "--viewz=2")


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


def run_program(*arguments, **options):
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "kerastl", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False, **options)


def test_the_program_keeps_the_terminal_clean(small, photos):
    done = run_program("predict", small, photos / "amber" / "00.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert "00.png" in done.stdout
    wrong = run_program("train", photos)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: the following arguments are required: --out (see: python -m kerastl train --help)\n"


def rewritten(file, out, member, change):
    """Copy a `.keras` file with one of its JSON parts changed."""
    with zipfile.ZipFile(file) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, json.dumps(change(json.loads(content))) if name == member else content)
    return out


def test_a_model_of_a_newer_keras_names_both_versions(small, photos, tmp_path, capsys):
    newer = rewritten(
        small / "model.keras", tmp_path / "one.keras", "metadata.json", lambda it: {**it, "keras_version": "9.1.0"}
    )
    newer = rewritten(newer, tmp_path / "newer.keras", "config.json", lambda it: {**it, "class_name": "Unheard"})
    line = fails(capsys, "predict", newer, photos / "amber" / "00.png")
    assert f"Keras 9.1.0 wrote it, and here is Keras {keras.__version__}" in line
    assert 'pip install --upgrade "keras>=9.1.0"' in line


def test_layers_that_need_code_are_named_with_what_to_do(photos, tmp_path, capsys):
    class Doubling(keras.layers.Layer):
        def call(self, inputs):
            return inputs * 2

    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Lambda(lambda pixels: pixels / 255, name="scaled")(Doubling(name="twice")(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    model.save(tmp_path / "model.keras")
    line = fails(capsys, "predict", tmp_path / "model.keras", photos / "amber" / "00.png")
    for part in ("'twice' (Doubling)", "'scaled' (Lambda)", "custom_objects", "safe_mode=False"):
        assert part in line
    loaded = keras.models.load_model(  # what the message says is done
        tmp_path / "model.keras", custom_objects={"Doubling": Doubling}, safe_mode=False
    )
    assert len(predict(loaded, photos / "amber" / "00.png")) == 1
