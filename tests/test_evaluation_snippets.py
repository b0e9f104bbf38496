"""The lines that use a model without this package, run as they stand, print what `predict` says."""

import keras
import numpy as np
import pytest
from PIL import Image

import kerastl
from kerastl.evaluation import snippets
from tests.runs import small_network

NAMES = ["amber", "blue", "crimson"]


def write_photo(path):
    """Write a photograph that was taken with the camera on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (11, 7, 3), "uint8")
    Image.fromarray(pixels).resize((60, 90), Image.Resampling.BICUBIC).save(path, exif=exif)


def printed(code, folder, capsys, monkeypatch):
    """Run the lines in a folder, and return `{label: what they print}`."""
    monkeypatch.chdir(folder)
    exec(compile(code, "lines", "exec"), {})
    return {name: float(value) for name, value in (line.split(": ") for line in capsys.readouterr().out.splitlines())}


def prepared(model, names, folder):
    model.save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(names) + "\n")
    write_photo(folder / "photo.jpg")


@pytest.mark.parametrize(
    ("task", "units", "resize"),
    [
        ("classification", 3, "squash"),
        ("classification", 3, "crop"),
        ("classification", 3, "pad"),
        ("classification", 1, "squash"),
        ("multi-label", 3, "squash"),
        ("regression", 1, "squash"),
        ("regression", 2, "squash"),
    ],
)
def test_the_lines_print_what_predict_says(task, units, resize, tmp_path, capsys, monkeypatch):
    names = NAMES[: 2 if (task, units) == ("classification", 1) else units]
    model = small_network(task, units)
    prepared(model, names, tmp_path)
    kind = "softmax" if task == "classification" and units > 1 else "logits" if task == "regression" else "sigmoid"
    report = {"image_size": [32, 32], "resize": resize, "output": kind, "task": task}
    said = printed(snippets.keras_code(model, report), tmp_path, capsys, monkeypatch)
    expected = kerastl.predict(model, tmp_path / "photo.jpg", class_names=names, resize=resize, task=task)
    assert said == pytest.approx(dict(zip(names, map(float, expected.probabilities[0]), strict=True)), abs=1e-4)


def test_of_several_outputs_the_main_one_is_printed(tmp_path, capsys, monkeypatch):
    base = small_network("classification", 3)
    other = keras.layers.Dense(2, name="other")(keras.layers.Flatten()(base.inputs[0]))
    model = keras.Model(base.inputs, [base.outputs[0], other])
    prepared(model, NAMES, tmp_path)
    report = {"image_size": [32, 32], "resize": "squash", "output": "softmax", "task": "classification"}
    said = printed(snippets.keras_code(model, report), tmp_path, capsys, monkeypatch)
    assert list(said) == NAMES
    assert sum(said.values()) == pytest.approx(1, abs=1e-3)
