"""`extract`: what it keeps, `train` with the same settings finds."""

import keras
import pytest

from kerastl.cli import main
from kerastl.cli import train as train_command
from kerastl.features import extraction
from tests import models
from tests.commands import fails, write_photos

SETTINGS = ["--image-size", "32", "--augmentation", "flips", "--views", "2", "--last-blocks", "1", "--seed", "3"]
EPOCHS = ["--head-epochs", "1", "--fine-tune-epochs", "1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos", ["amber", "blue", "crimson"], count=12)


def build(backbone, classes, *, augmentation, **_):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.RandomFlip()(inputs) if augmentation == "flips" else inputs
    return keras.Model(inputs, models.head_layers(models.tiny_backbone(blocks=2)((x - 127.5) / 127.5), classes=classes))


def test_train_finds_what_extract_kept(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_command, "build_classifier", build)
    place = "memory://extracted"
    assert main(["extract", str(photos), "--to", place, *SETTINGS]) == 0
    assert f"train with --cache {place}" in capsys.readouterr().out
    monkeypatch.setattr(extraction, "_run", lambda *arguments: pytest.fail("the frozen part ran again"))
    command = ["train", str(photos), "--cache", place, "--out", str(tmp_path / "run"), *SETTINGS, *EPOCHS]
    assert main(command) == 0


def test_extract_says_in_one_line_what_is_wrong(photos, tmp_path, capsys):
    assert "--to" in fails(capsys, "extract", photos)
    assert "--workers" in fails(capsys, "extract", photos, "--to", tmp_path / "f", "--workers", 0)
    assert "--last-blocks" in fails(capsys, "extract", photos, "--to", tmp_path / "f", "--last-blocks", -1)


def test_an_interruption_keeps_what_is_done(photos, tmp_path, monkeypatch, capsys):
    original = extraction._run

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "_run", interrupted)
    command = ["extract", str(photos), "--to", str(tmp_path / "kept"), *SETTINGS]
    assert main(command) == 130
    assert f"what is done is in {tmp_path / 'kept'}; the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(extraction, "_run", original)
    assert main(command) == 0
