"""ELPV: the counts that are published, the splits that are promised, and no connection."""

import collections
import socket
import subprocess
import sys
import warnings

import numpy as np
import pytest

from kerastl.data import elpv
from kerastl.data.batches import find_source
from kerastl.data.folders import load_images
from kerastl.errors import BackendError, DataError

pytest.importorskip("elpv_dataset", reason="the demo extra is not installed")
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state no test here needs."""


@pytest.fixture(scope="module")
def catalogue():
    """Without a connection, without output, and with warnings as errors."""

    def refuse(*arguments, **options):
        raise AssertionError("a connection was opened")

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return elpv.catalogue_elpv(verbose=0)


def load(**options):
    return load_images("elpv", image_size=32, verbose=0, **options)


@pytest.fixture(scope="module")
def data():
    return load(batch_size=64)


def test_counts(catalogue):
    assert catalogue.class_names == ("functional", "defective")
    assert len(catalogue.images) == 2624
    assert collections.Counter(image.label for image in catalogue.images) == {0: 1803, 1: 821}
    assert collections.Counter(image.stratum[1] for image in catalogue.images) == {
        "functional, mono": 705,
        "functional, poly": 1098,
        "defective, mono": 369,
        "defective, poly": 452,
    }
    assert len({image.digest for image in catalogue.images}) == 2624
    assert {image.part for image in catalogue.images} == {"train"}


def test_images_are_those_of_the_package(catalogue):
    from importlib.resources import files

    assert catalogue.images[0].file == "images/cell0001.png"
    for image in (catalogue.images[0], catalogue.images[1234], catalogue.images[2623]):
        path = files("elpv_dataset").joinpath("data", *image.file.split("/"))
        assert image.read() == path.read_bytes()


def test_splits(data, catalogue):
    assert data.split_sizes == {"train": 1706, "validation": 262, "test": 656}
    assert data.class_counts == {"functional": 1803, "defective": 821}
    strata = {image.file: image.stratum[0] for image in catalogue.images}
    totals = np.bincount(list(strata.values()))
    everything = []
    for split, share in zip(SPLITS, (0.65, 0.10, 0.25), strict=True):
        counts = np.bincount([strata[file] for file in data.files[split]])
        assert np.abs(counts - share * totals).max() < 1
        everything += data.files[split]
    assert sorted(everything) == sorted(strata)


def test_seeds_decide(data):
    first, again, other = data, load(), load(seed=1)
    assert first.files == again.files
    for split in SPLITS:
        assert set(first.files[split]) != set(other.files[split])
        one, same, another = (find_source(getattr(data, split)) for data in (first, again, other))
        assert one.identity == same.identity != another.identity


def test_shares_can_be_set():
    assert load(validation=0, test=0.5).split_sizes == {"train": 1312, "test": 1312}


def test_batches(data):
    images, labels = next(iter(data.validation))
    assert images.shape == (64, 32, 32, 3)
    pixels = images.numpy()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert 20 < pixels.mean() < 235
    np.testing.assert_array_equal(labels.numpy(), find_source(data.validation).labels[:64])


def test_the_licence_is_passed_on(data):
    assert data.name == "elpv"
    assert data.licence == "CC BY-NC-SA 4.0 (non-commercial use only)"
    assert data.summary().splitlines()[-1] == f"Licence: {data.licence}"


def test_it_is_read_without_tensorflow_datasets():
    code = "import sys, kerastl; kerastl.load_images('elpv', image_size=32); assert 'tensorflow_datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(elpv, "_PACKAGE", "elpv_dataset_that_is_not_there")
    with pytest.raises(BackendError, match=r'pip install "kerastl\[demo\]"'):
        load()


def test_other_labels_are_refused(monkeypatch):
    monkeypatch.setattr(elpv, "_LABELS_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"other labels than release 1\.0\.0\.post1"):
        load()
