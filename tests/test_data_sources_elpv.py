"""ELPV: the counts that are published, the splits that are promised, and no connection."""

import collections
import socket
import warnings

import numpy as np
import pytest
import tensorflow_datasets as tfds

from kerastl.data import sources
from kerastl.data.batches import find_source
from kerastl.data.folders import load_images
from kerastl.errors import BackendError, DataError

pytest.importorskip("elpv_dataset", reason="the demo extra is not installed")
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state no test here needs."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepare ELPV once for this module: without a connection, without output, and with warnings as errors."""
    folder = tmp_path_factory.mktemp("elpv")

    def refuse(*arguments, **options):
        raise AssertionError("a connection was opened")

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        sources.catalogue_elpv(folder, verbose=0)
    return folder


@pytest.fixture(scope="module")
def catalogue(data_dir):
    return sources.catalogue_elpv(data_dir, verbose=0)


def load(data_dir, **options):
    return load_images("elpv", image_size=32, verbose=0, data_dir=data_dir, **options)


@pytest.fixture(scope="module")
def data(data_dir):
    return load(data_dir, batch_size=64)


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


def test_seeds_decide(data, data_dir):
    first, again, other = data, load(data_dir), load(data_dir, seed=1)
    assert first.files == again.files
    for split in SPLITS:
        assert set(first.files[split]) != set(other.files[split])
        one, same, another = (find_source(getattr(data, split)) for data in (first, again, other))
        assert one.identity == same.identity != another.identity


def test_shares_can_be_set(data_dir):
    assert load(data_dir, validation=0, test=0.5).split_sizes == {"train": 1312, "test": 1312}


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


def test_it_is_a_tfds_builder(data_dir):
    builder = tfds.builder("elpv", data_dir=data_dir)
    assert str(builder.version) == "1.0.0"
    assert list(builder.info.splits) == ["train"]
    assert builder.info.splits["train"].num_examples == 2624
    assert "10.1016/j.solener.2019.02.067" in builder.info.citation
    assert "CC BY-NC-SA 4.0" in builder.info.redistribution_info.license
    example = next(iter(builder.as_dataset(split="train").take(1).as_numpy_iterator()))
    assert example["image"].shape == (300, 300, 1)
    assert (example["label"], example["cell_type"], example["defect_probability"]) == (1, 0, 1.0)


def test_prepared_data_needs_no_package(data_dir, monkeypatch):
    monkeypatch.setattr(sources, "_PACKAGE", "elpv_dataset_that_is_not_there")
    assert load(data_dir).split_sizes["train"] == 1706


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_PACKAGE", "elpv_dataset_that_is_not_there")
    with pytest.raises(BackendError, match=r'pip install "kerastl\[demo\]"'):
        load(tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_labels_are_refused_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_LABELS_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"other labels than release 1\.0\.0\.post1"):
        load(tmp_path)
    assert not list(tmp_path.rglob("*record*"))
    assert not list(tmp_path.rglob("*incomplete*"))


def test_preparing_is_announced_in_one_line(tmp_path, monkeypatch, capsys):
    lines = sources._read_labels
    monkeypatch.setattr(sources, "_read_labels", lambda table: list(lines(table))[:40])
    sources.catalogue_elpv(tmp_path, verbose=1)
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert str(tmp_path) in captured.out
    assert captured.err == ""
