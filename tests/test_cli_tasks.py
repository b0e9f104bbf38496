"""Several labels an image, and numbers, from the command line: `train`, `predict` and `export` of them."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from kerastl.cli import main
from kerastl.cli import train as train_command
from kerastl.evaluation import report
from tests import models
from tests.commands import fails
from tests.pages import Page

TINY = ["--image-size", "32", "--head-epochs", "30", "--fine-tune-epochs", "1", "--last-blocks", "1", "--dropout", "0"]
FAST = ["--head-learning-rate", "0.05", "--patience", "30", "--batch-size", "8", "--seed", "1"]
COLORS = ["dark_red", "green", "b`l*u_e"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Each channel is bright or dark; `labels.csv` says which are, `light.csv` how bright all is, `red.csv` whether red is."""
    folder = tmp_path_factory.mktemp("data") / "odd `#1` *photos*"
    folder.mkdir()
    generator = np.random.default_rng(1)
    bright = generator.integers(0, 2, (60, 3))
    images = generator.normal(60 + 130 * bright[:, None, None], 8, (60, 32, 32, 3)).clip(0, 255).astype("uint8")
    labels, light, red = ["file,label"], ["file,light"], ["file;is it red"]
    for number, (image, row) in enumerate(zip(images, bright, strict=True)):
        Image.fromarray(image).save(folder / f"{number}`.png")
        names = [name for name, has in zip(COLORS, row, strict=True) if has]
        labels.append(f"{number}`,{'|'.join(names)}")
        light.append(f"{number}`,{image.mean() / 255:.4f}")
        red.append(f"{number}`;{'yes, red' if row[0] else 'no'}")
    (folder / "labels.csv").write_text("\n".join(labels))
    (folder / "light.csv").write_text("\n".join(light))
    (folder / "red.csv").write_text("\n".join(red))
    return folder


def train(photos, task, labels, out, *options):
    """Let `train` make a run folder with a network of a few layers."""

    def build(backbone, units, *, task, **_):
        assert task == expected
        inputs = keras.Input((32, 32, 3))
        x = models.tiny_backbone(blocks=1)((inputs - 127.5) / 127.5, training=False)
        x = layers.GlobalAveragePooling2D()(x)
        activation = {"classification": "softmax", "multi-label": "sigmoid", "regression": None}[task]
        return keras.Model(inputs, layers.Dense(units, activation=activation)(x))

    expected = task
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "build_classifier", build)
        command = ["train", str(photos), "--labels", labels, "--out", str(out), *TINY, *FAST, *options]
        assert main(command) == 0


@pytest.fixture(scope="module", params=["multi-label", "regression"])
def trained(request, photos, tmp_path_factory):
    """The task, the labels file, and the run folder."""
    labels = "labels.csv" if request.param == "multi-label" else "light.csv"
    out = tmp_path_factory.mktemp("runs") / "run"
    train(photos, request.param, labels, out)
    return request.param, labels, out


def test_a_run_is_written_whole_and_says_how_good_it_is(trained, photos):
    task, labels, out = trained
    assert sorted(path.name for path in out.iterdir()) == sorted(report.run_files(task))
    found = json.loads((out / "report.json").read_text())
    page = (out / "report.md").read_text()
    assert (found["task"], found["complete"], found["arguments"]["labels"]) == (task, True, labels)
    assert "on odd \\`\\#1\\` \\*photos\\*\n" in page
    assert "- Data: odd \\`\\#1\\` \\*photos\\*; " in page
    lines = (out / "labels.txt").read_text().splitlines()
    if task == "multi-label":
        assert lines == sorted(COLORS)
        assert found["scores"]["average_precision"] > 0.8 > found["baseline"]["average_precision"]
        assert found["test_accuracy"] == found["scores"]["accuracy"] > found["baseline"]["accuracy"]
        assert found["per_class"][0].keys() > {"precision", "recall", "f1", "average_precision", "support"}
        assert "| b\\`l\\*u\\_e | " in page
        assert "(labels.png)" in page
    else:
        assert lines == ["light"]
        assert found["scores"]["r2"] > 0.5 > found["baseline"]["r2"] == pytest.approx(0)
        assert found["test_accuracy"] is None
        assert found["mistakes"][0]["true"].keys() == found["mistakes"][0]["predicted"].keys() == {"light"}
        errors = [abs(one["true"]["light"] - one["predicted"]["light"]) for one in found["mistakes"]]
        assert errors == sorted(errors, reverse=True)
        assert "1. " in page
        assert "\\`.png: predicted 0." in page
        assert "(scatter.png)" in page
    whole = Page((out / "report.html").read_text("utf-8"))
    assert "Nobody has looked yet" in "".join(whole.text)
    assert sum(alt.startswith("Grad-CAM of ") for alt in whole.values("alt")) == len(found["mistakes"])
    assert any(text.endswith("on odd `#1` *photos*") for text in whole.text)
    assert (out / ("labels.png" if task == "multi-label" else "scatter.png")).read_bytes().startswith(b"\x89PNG")


def test_predict_says_labels_or_numbers(trained, photos, capsys):
    task, _, out = trained
    images = sorted(map(str, photos.glob("*.png")))[:3]
    assert main(["predict", str(out), *images, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    shown = [np.asarray(Image.open(image)) for image in images]
    expected = keras.models.load_model(out / "model.keras").predict(np.stack(shown), verbose=0)
    names = (out / "labels.txt").read_text().splitlines()
    for row, values in zip(rows, expected, strict=True):
        if task == "regression":
            assert row["numbers"] == {"light": pytest.approx(float(values[0]), rel=1e-4)}
            continue
        said = {name for name, value in zip(names, values, strict=True) if value >= 0.5} or {names[values.argmax()]}
        assert set(row["labels"]) == said
        assert row["probabilities"] == pytest.approx(dict(zip(names, map(float, values), strict=True)), rel=1e-4)
    assert main(["predict", str(out), *images, "--views", "4"]) == 0
    table = capsys.readouterr().out
    assert ("labels of 50% or more" if task == "multi-label" else "light") in table


def test_export_is_judged_by_labels_and_numbers_and_predicts_the_same(trained, photos, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    task, _, out = trained
    bundle = tmp_path / "bundle"
    command = [
        "export",
        str(out),
        "--data",
        str(photos),
        "--data-labels",
        str(photos / trained[1]),
        "--out",
        str(bundle),
    ]
    assert main([*command, "--quantize", "float16"]) == 0
    said = capsys.readouterr().out
    assert ("same labels" if task == "multi-label" else "R² against Keras") in said
    card = json.loads((bundle / "model_card.json").read_text())
    found = json.loads((out / "report.json").read_text())
    (compared,) = card["gate"]["comparisons"]
    assert card["output"]["task"] == compared["task"] == task
    assert compared["agreement"] > 0.99
    score = found["scores"]["accuracy" if task == "multi-label" else "r2"]
    assert compared["keras_accuracy"] == pytest.approx(score, abs=1e-4)  # on the same test images
    image = str(next(photos.glob("*.png")))
    values = []
    for model in (out, bundle):
        assert main(["predict", str(model), image, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        values.append(row["probabilities" if task == "multi-label" else "numbers"])
    assert values[0] == pytest.approx(values[1], abs=0.02)


def test_classes_of_a_labels_file_are_trained_predicted_and_exported(photos, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    out, bundle = tmp_path / "run", tmp_path / "bundle"
    train(photos, "classification", "red.csv", out)
    assert (out / "labels.txt").read_text().splitlines() == ["no", "yes, red"]
    found = json.loads((out / "report.json").read_text())
    assert found["test_accuracy"] > 0.9
    # Without --data-labels: the labels file of the training
    assert main(["export", str(out), "--data", str(photos), "--out", str(bundle)]) == 0
    card = json.loads((bundle / "model_card.json").read_text())
    assert card["gate"]["comparisons"][0]["keras_accuracy"] == pytest.approx(found["test_accuracy"], abs=1e-4)
    capsys.readouterr()
    images = sorted(photos.glob("*.png"), key=lambda path: int(path.stem[:-1]))
    true = [line.split(";")[1] for line in (photos / "red.csv").read_text().splitlines()[1:]]
    for model in (out, bundle):
        assert main(["predict", str(model), *map(str, images), "--json"]) == 0
        said = [row["label"] for row in json.loads(capsys.readouterr().out)]
        assert np.mean(np.array(said) == np.array(true)) > 0.9


def test_options_that_do_not_go_with_labels_name_options(photos, tmp_path, capsys):
    out = tmp_path / "run"
    said = fails(capsys, "train", "elpv", "--labels", "x.csv", "--out", out)
    assert said.startswith("error: --labels names a CSV or Parquet file that goes with a folder")
    said = fails(capsys, "train", photos, "--labels", "light.csv", "--class-weight", "balanced", "--out", out)
    assert said.startswith("error: --class-weight is for one class an image; leave it out for regression.")
    said = fails(capsys, "train", photos, "--labels", "lihgt.csv", "--out", out)
    assert "There is no labels file lihgt.csv" in said
    assert "Did you mean 'light.csv'" in said


@pytest.mark.parametrize(("task", "labels"), [("multi-label", "labels.csv"), ("classification", "red.csv")])
def test_a_calibrated_run_keeps_its_thresholds_for_prediction_and_export(task, labels, photos, tmp_path, capsys):
    out, bundle = tmp_path / "run", tmp_path / "bundle"
    train(photos, task, labels, out, "--head-epochs", "2", "--calibrate", "--choose-thresholds", "--overwrite")
    found = json.loads((out / "report.json").read_text())
    page = (out / "report.md").read_text()
    names = found["class_names"]
    assert list(found["thresholds"]) == (names if task == "multi-label" else names[1:])
    assert found["calibration"]["loss_after"] <= found["calibration"]["loss_before"] + 1e-6
    assert found["calibration"]["images"] == found["split_sizes"]["validation"]
    assert "- Calibration: temperature" in page
    assert "- Thresholds: " in page
    # Far from a half, so that they show; under other names, in the order of the model
    found["thresholds"] = {names[-1]: 0.001}
    (out / "report.json").write_text(json.dumps(found))
    (tmp_path / "own.txt").write_text("\n".join(f"own {index}" for index in range(len(names))))
    capsys.readouterr()
    assert main(["predict", str(out), str(photos), "--labels", str(tmp_path / "own.txt"), "--json"]) == 0
    own, said = f"own {len(names) - 1}", json.loads(capsys.readouterr().out)
    unlikely = [row for row in said if 0.001 < row["probabilities"][own] < 0.5]
    assert unlikely
    assert all(own in (row["labels"] if task == "multi-label" else [row["label"]]) for row in unlikely)
    assert main(["export", str(out), "--views", "2", "--out", str(bundle)]) == 0
    card = json.loads((bundle / "model_card.json").read_text())
    assert card["output"]["thresholds"] == found["thresholds"]
    assert card["output"]["views"] == 2


@pytest.mark.parametrize(
    ("labels", "option", "said"),
    [("light.csv", "--calibrate", "leave --calibrate out"), ("light.csv", "--choose-thresholds", "or for two classes")],
)
def test_what_numbers_do_not_have_is_refused_before_training(
    labels, option, said, photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(train_command, "build_classifier", lambda *_, **__: models.small_model())
    arguments = ["train", photos, "--labels", labels, "--out", tmp_path / "run", *TINY, option]
    assert said in fails(capsys, *arguments)
