"""`export` and `predict` on a bundle, from the command line."""

import json
import shutil

import keras
import numpy as np
import pytest

from kerastl.cli import main
from kerastl.cli import train as train_command
from kerastl.data.batches import find_source
from kerastl.data.folders import load_images
from kerastl.features import litert
from tests import models
from tests.commands import fails, write_photos

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the exporters are TensorFlow's"),
    pytest.mark.skipif(not litert.is_installed(), reason="needs ai-edge-litert"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos", ["amber", "blue", "crimson"], count=24)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run folder of a tiny network, trained with a seed and a split of its own."""
    out = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "build_classifier", lambda *_, **__: models.nested(32, 3, blocks=1, width=4))
        options = "--image-size 32 --head-epochs 6 --fine-tune-epochs 0 --head-learning-rate 0.05 --seed 5 --test 0.25"
        options = [*options.split(), "--backbone", "mobilenet", "--resize", "crop", "--dropout", "0"]
        assert main(["train", str(photos), "--out", str(out), *options]) == 0
    return out


@pytest.fixture(scope="module")
def sealed(run, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    options = ["--quantize", "int8", "--data", str(photos), "--accuracy-loss", "0.2"]
    assert main(["export", str(run), "--out", str(out), *options]) == 0
    return out


def card_of(folder):
    return json.loads((folder / "model_card.json").read_text())


def test_the_gate_looks_at_the_test_images_of_the_training_run(sealed, photos):
    splits = load_images(photos, image_size=32, test=0.25, seed=5, resize="crop", verbose=0)
    card = card_of(sealed)
    assert card["gate"]["identity"] == find_source(splits.test).identity
    assert card["gate"]["count"] == len(find_source(splits.test))
    assert card["split"]["parts"]["train"] == find_source(splits.train).identity
    assert card["split"]["seed"] == 5
    assert len(card["split"]["hash"]) == 64


def test_the_card_tells_what_the_run_told(sealed, run):
    report, card = json.loads((run / "report.json").read_text()), card_of(sealed)
    assert card["backbone"] == "mobilenet"
    assert card["weights"] == report["weights"]
    assert card["metrics"]["accuracy"] == report["accuracy"]
    assert card["input"]["resize"] == "crop"
    assert card["classes"] == ["amber", "blue", "crimson"]
    assert card["models"]["litert"]["quantize"] == "int8"


def test_predict_takes_a_bundle_as_it_takes_a_run_folder(sealed, run, photos, capsys):
    printed = []
    for model in (run, sealed):
        assert main(["predict", str(model), str(photos / "blue"), "--json"]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert [row["image"] for row in printed[0]] == [row["image"] for row in printed[1]]
    difference = [
        abs(one["probabilities"]["blue"] - other["probabilities"]["blue"]) for one, other in zip(*printed, strict=True)
    ]
    assert max(difference) < 0.2


def test_a_bundle_takes_no_other_labels(sealed, photos, capsys):
    assert main(["predict", str(sealed), str(photos / "blue"), "--labels", "x.txt"]) == 2
    assert "brings its own labels" in capsys.readouterr().err


def test_int8_without_images_is_an_error_before_anything_is_loaded(run, tmp_path, capsys):
    assert main(["export", str(run), "--quantize", "int8", "--out", str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --quantize int8 needs --data")
    assert error.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_an_earlier_bundle_stays_unless_overwritten(run, sealed, capsys):
    assert main(["export", str(run), "--out", str(sealed)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert card_of(sealed)["models"]["litert"]["quantize"] == "int8"


def test_a_run_folder_is_never_replaced(run, capsys):
    assert main(["export", str(run), "--out", str(run), "--overwrite"]) == 2
    assert "holds more than a bundle" in capsys.readouterr().err
    assert (run / "model.keras").exists()


def test_a_failed_gate_prints_the_table_and_one_line(run, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kerastl.export.gate._probabilities", lambda values, *_: np.roll(values, 1, axis=1))
    assert main(["export", str(run), "--data", str(photos), "--out", str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert "FAILED" in error
    assert error.splitlines()[-1].startswith("error: The export was stopped, and nothing was written.")
    assert not (tmp_path / "b").exists()


def test_a_model_without_a_report_is_exported_with_a_warning(run, photos, tmp_path, capsys):
    (tmp_path / "model.keras").write_bytes((run / "model.keras").read_bytes())
    options = ["--data", str(photos), "--out", str(tmp_path / "b")]
    assert main(["export", str(tmp_path / "model.keras"), *options]) == 0
    assert "warning: There is no report.json" in capsys.readouterr().err
    assert card_of(tmp_path / "b")["classes"] == ["amber", "blue", "crimson"]


@pytest.mark.parametrize(
    ("change", "classes", "difference"),
    [
        (("blue", "azure"), "amber, azure, crimson", "Only in the model: blue. Only in the data: azure."),
        (("blue", None), "amber, crimson", "Only in the model: blue. Only in the data: none."),
        ((None, "dun"), "amber, blue, crimson, dun", "Only in the model: none. Only in the data: dun."),
    ],
)
def test_other_classes_than_the_models_are_refused_with_both_lists(
    run, photos, tmp_path, capsys, change, classes, difference
):
    data, (before, after) = shutil.copytree(photos, tmp_path / "other"), change
    if after:
        write_photos(data, [after])
    if before:
        shutil.rmtree(data / before)
    line = fails(capsys, "export", run, "--out", tmp_path / "bundle", "--data", data)
    assert f"{difference} Model: amber, blue, crimson. Received: classes='{classes}'" in line
    assert not (tmp_path / "bundle").exists()


def test_classes_in_another_order_than_the_models_are_refused(run, photos, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("crimson\nblue\namber\n")
    options = ["--data", photos, "--labels", tmp_path / "labels.txt"]
    line = fails(capsys, "export", run, "--out", tmp_path / "bundle", *options)
    assert "Their order differs. Model: crimson, blue, amber. Received: classes='amber, blue, crimson'" in line


def test_a_model_that_shows_no_range_of_pixels_is_exported_with_what_is_said(tmp_path, capsys):
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")])
    model.save(tmp_path / "plain.keras")
    command = ["export", tmp_path / "plain.keras", "--out", tmp_path / "bundle"]
    assert "--preprocessing /255 for 0–1" in fails(capsys, *command)
    assert main([*map(str, command), "--preprocessing", "/255"]) == 0
    assert "part of the exported graph" in card_of(tmp_path / "bundle")["input"]["preprocessing"]
    line = fails(capsys, *command, "--overwrite", "--opset", 3, "--preprocessing", "/255")
    assert "--opset is for the format 'onnx' alone" in line
    line = fails(capsys, "predict", tmp_path / "bundle", "photo.jpg", "--preprocessing", "/255")
    assert "The preprocessing of a bundle is part of it: leave --preprocessing out" in line
