"""Extraction as a Ray job: what one process keeps, also where a worker is killed in the middle."""

import json
import os
import signal

import keras
import numpy as np
import pytest

import kerastl
from kerastl.data.batches import ImageSource, attach_source
from kerastl.errors import DataError
from kerastl.models import freezing
from kerastl.training import session as session_module
from tests import models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
ray = pytest.importorskip("ray", reason="`make test-ray` installs it")
COUNT, WORKERS = 5000, 2


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two workers' worth of Ray on this machine; the workers import this package, and these tests, from here."""
    ray.init(num_cpus=3, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}})
    yield
    ray.shutdown()


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 256 images."""
    monkeypatch.setattr("kerastl.features.store.SHARD_BYTES", 5000)


class Images:
    """A dataset of generated images, which notes every one that is read; one of them kills its reader, once."""

    def __init__(self, log, killer=None, broken=None):
        def read(index):
            if index == broken:
                raise DataError("Can't read the image 7.png: it is damaged.")
            with open(log / str(os.getpid()), "a") as file:
                file.write(f"{index}\n")
            if index == killer and not (log.parent / "killed").exists():
                (log.parent / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype="uint8")

        labels = np.arange(COUNT, dtype="int32") % 3
        attach_source(self, ImageSource(labels, (32, 32), "generated", False, read))


@pytest.fixture(scope="module")
def model():
    """Large enough that its weights travel by Ray's object store."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = models.tiny_backbone(width=40)((inputs - 127.5) / 127.5)
    return models.compiled(freezing.unfreeze(keras.Model(inputs, models.head_layers(x)), last_blocks=1))


@pytest.fixture
def log(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def rows_of(folder):
    """Return the features and labels of the one store in a folder, from its files alone."""
    (place,) = [path for path in folder.iterdir() if path.is_dir()]
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["complete"]
    return [
        np.concatenate([np.load(place / shard["files"][array]["name"]) for shard in manifest["shards"]])
        for array in (0, 1)
    ]


def read_by(log):
    """Return which images each worker read; this process looks at the first ones."""
    logs = [path for path in log.iterdir() if path.name != str(os.getpid())]
    return {path.name: [int(line) for line in path.read_text().split()] for path in logs}


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("killer", [None, 2600], ids=["quiet", "killed"])
def test_two_workers_keep_what_one_process_does(killer, model, log, tmp_path, monkeypatch):
    alone = Images(log)
    kerastl.extract_features(alone, model, to=tmp_path / "alone", engine="keras")
    for path in log.iterdir():
        path.unlink()
    kerastl.extract_features(Images(log, killer), model, to=tmp_path / "ray", engine="ray", workers=WORKERS)
    for ours, theirs in zip(rows_of(tmp_path / "alone"), rows_of(tmp_path / "ray"), strict=True):
        np.testing.assert_allclose(ours.astype("float32"), theirs.astype("float32"), atol=1e-3)
    readers = read_by(log)
    assert len(readers) == WORKERS + (killer is not None)  # Ray starts another one
    times = np.bincount(np.concatenate(list(readers.values())), minlength=COUNT)
    again = np.flatnonzero(times > 1)
    assert times.min() == 1
    if killer is None:
        assert len(again) == 0
    else:  # the one shard that the killed worker had begun
        assert 0 < len(again) <= 256
        assert again.min() // 256 == again.max() // 256 == killer // 256
    monkeypatch.setattr("kerastl.features.extraction._run", lambda *arguments: pytest.fail("the trunk ran again"))
    session_module.fit(model, Images(log), cache=tmp_path / "ray", verbose=0)


@pytest.mark.usefixtures("small_shards")
def test_a_store_that_one_process_began_is_made_anew(model, log, tmp_path, monkeypatch):
    """Its last shard was still being written."""
    with monkeypatch.context() as patch:
        patch.setattr("kerastl.features.store.FolderWriter._complete", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            kerastl.extract_features(Images(log), model, to=tmp_path / "both")
    kerastl.extract_features(Images(log), model, to=tmp_path / "both", engine="ray", workers=1)
    assert [len(array) for array in rows_of(tmp_path / "both")] == [COUNT, COUNT]


def test_an_error_of_a_worker_is_that_of_one_process(model, log, tmp_path):
    with pytest.raises(DataError, match=r"7\.png"):
        kerastl.extract_features(Images(log, broken=3000), model, to=tmp_path / "ray", engine="ray", workers=1)
