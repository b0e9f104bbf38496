"""Extraction into a folder that is kept: found again, never stale, gone on with, honest about the data."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl.errors import ArgumentError, DataError, StoreError
from kerastl.features import extraction
from kerastl.features.plan import CacheOptions
from kerastl.models import freezing
from kerastl.training import session as session_module
from tests import models
from tests.models import twins

EXACT = CacheOptions(dtype="float32", engine="keras")
QUIET = {"verbose": 0}


def test_a_folder_keeps_the_features_for_the_next_run(data, tmp_path, monkeypatch):
    model = twins()[0]
    folder = tmp_path / "features"
    session_module.fit(model, *data, cache=folder, **QUIET)
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    assert files
    monkeypatch.setattr("kerastl.features.extraction._run", lambda *arguments: pytest.fail("the trunk ran again"))
    session_module.fit(model, *data, cache=folder, **QUIET)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")} == files


@pytest.mark.parametrize("change", ["weights", "images", "labels", "size", "views"])
def test_stored_features_are_never_stale(change, data, tmp_path, monkeypatch):
    build = lambda **options: models.compiled(freezing.freeze(models.nested(augmentation=True, **options)))  # noqa: E731
    model = build()
    session_module.fit(model, *data, cache=tmp_path / "f", views=2, **QUIET)
    images, labels, views = data[0].copy(), data[1].copy(), 2
    if change == "weights":
        variable = model.get_layer("tiny").get_layer("conv2_block1_1_bn").moving_mean
        variable.assign(variable + 1e-3)
    elif change == "images":
        images[7, 3, 3, 1] += 1
    elif change == "labels":
        labels[7] = (labels[7] + 1) % 3
    elif change == "size":
        model, images = build(size=48), np.pad(images, ((0, 0), (0, 16), (0, 16), (0, 0)))
    else:
        views = 1
        with pytest.raises(ArgumentError):
            session_module.fit(model, images, labels, cache=tmp_path / "f", views=views, **QUIET)
        return
    runs = []
    original = extraction._run
    monkeypatch.setattr(extraction, "_run", lambda *arguments: runs.append(1) or original(*arguments))
    session_module.fit(model, images, labels, cache=tmp_path / "f", views=views, **QUIET)
    assert runs == [1]


def test_a_dataset_is_known_by_its_images_whatever_their_order(data, tmp_path, monkeypatch):
    tf = pytest.importorskip("tensorflow")
    runs, original = [], extraction._run
    monkeypatch.setattr(extraction, "_run", lambda *arguments: runs.append(1) or original(*arguments))

    def train(change=lambda image, label: (image, label)):
        dataset = tf.data.Dataset.from_tensor_slices(data).map(change).shuffle(40).batch(8)
        session_module.fit(model, dataset, cache=tmp_path / "f", **QUIET)
        return len(runs)

    model = twins()[0]
    assert [train(), train()] == [1, 1]
    assert train(lambda image, label: (image + 1, label)) == 2  # another `map`
    assert train(lambda image, label: (image, (label + 1) % 3)) == 3
    assert train() == 3
    assert len(list((tmp_path / "f").glob("train-*/manifest.json"))) == 3


def test_a_folder_that_holds_something_else_is_left_alone(data, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"not features")
    with pytest.raises(StoreError, match=r"holiday\.jpg"):
        session_module.fit(twins()[0], *data, cache=tmp_path, **QUIET)
    assert os.listdir(tmp_path) == ["holiday.jpg"]


def test_a_damaged_store_is_rebuilt_with_a_word(data, tmp_path):
    model = twins()[0]
    session_module.fit(model, *data, cache=tmp_path / "f", **QUIET)
    file = next((tmp_path / "f").rglob("features_0*.npy"))
    content = bytearray(file.read_bytes())
    content[300] ^= 1
    file.write_bytes(content)
    with pytest.warns(kerastl.KerastlWarning, match="rebuilt"):
        session_module.fit(model, *data, cache=tmp_path / "f", **QUIET)
    session_module.fit(model, *data, cache=tmp_path / "f", **QUIET)


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_features_that_overflow_float16_are_stored_in_float32(place, data, tmp_path):
    inputs_ = keras.Input((32, 32, 3))
    x = models.tiny_backbone()(layers.Rescaling(1e6)(inputs_))
    model = models.compiled(freezing.freeze(keras.Model(inputs_, models.head_layers(x))))
    cache = CacheOptions(folder=None if place == "memory" else tmp_path / "f", engine="keras")
    for _ in range(2):
        history = session_module.fit(model, *data, cache=cache, **QUIET)
        assert np.isfinite(history.history["loss"][0])
    if place == "folder":
        text = next((tmp_path / "f").rglob("manifest.json")).read_text()
        assert "float32" in text


def test_data_whose_length_changes_between_passes_is_noticed(data):
    class Shrinking(keras.utils.PyDataset):
        passes = 0

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return data[0][index * 8 : index * 8 + 8], data[1][index * 8 : index * 8 + 7]

    with pytest.raises(DataError):
        session_module.fit(twins()[0], Shrinking(), cache=True, **QUIET)


def test_an_error_in_the_data_comes_out_where_it_belongs():
    class Broken(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index == 2:
                raise OSError("the disk went away")
            return np.full((8, 32, 32, 3), 9.0, "float32"), np.zeros(8, "int64")

    with pytest.raises(OSError, match="the disk went away"):
        session_module.fit(twins()[0], Broken(), cache=True, **QUIET)


CHILD = """
import os, signal, sys
import numpy as np, keras
sys.path.insert(0, sys.argv[1])
from kerastl.models import freezing
from kerastl.training import session as session_module
from kerastl.features import store
from kerastl.features.plan import CacheOptions
from tests import models
keras.utils.set_random_seed(0)
model = models.compiled(freezing.unfreeze(models.nested(), last_blocks=1))
images = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype="uint8")
stop = int(sys.argv[3])
original, count = store.StoreWriter.append, [0]
def append(self, rows):
    original(self, rows)
    count[0] += 1
    if count[0] == stop:
        os.kill(os.getpid(), signal.SIGKILL)
store.StoreWriter.append = append
session_module.fit(model, images, np.arange(200) % 3, verbose=0, cache=CacheOptions(folder=sys.argv[2], engine="keras"))
print("appended", count[0])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_extraction_that_is_killed_goes_on_where_it_stopped(tmp_path):
    top = str(pathlib.Path(__file__).parents[1])

    def start(folder, stop):
        command = [sys.executable, "-c", CHILD, top, str(folder), str(stop)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=top)

    with start(tmp_path / "whole", 0) as whole, start(tmp_path / "killed", 4) as killed:
        killed.communicate()
        assert killed.returncode == -9
        with start(tmp_path / "killed", 0) as resumed:
            told, error = resumed.communicate()
            assert "appended 3" in told, error
        told, error = whole.communicate()
        assert "appended 7" in told, error
    for path in (tmp_path / "whole").rglob("*.npy"):
        other = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == other.read_bytes()


def test_the_home_folder_may_be_written_as_a_tilde(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "features").write_text("not a folder")
    with pytest.raises(StoreError, match="names a file"):
        session_module.fit(twins()[0], *data, cache="~/features", **QUIET)
    (tmp_path / "features").unlink()
    session_module.fit(twins()[0], *data, cache="~/features", **QUIET)
    assert [path.name[:6] for path in (tmp_path / "features").iterdir() if path.is_dir()] == ["train-"]
