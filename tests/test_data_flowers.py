"""The flower photographs: the split of the table, from a folder or the archive, and what happens where they can't be had."""

import csv
import hashlib
import importlib.resources
import io
import shutil
import sys
import tarfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from kerastl.data import flowers
from kerastl.data.folders import load_images
from kerastl.errors import DataError

SIZES = {"train": 1050, "validation": 225, "test": 225}
PHOTOGRAPHS = Path(__file__).parents[1] / "data" / "flowers"


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state no test here needs."""


def write_photographs(folder, keep=lambda row: True, plural=""):
    """Write a picture of 6×4 pixels for each row of the table, no two the same: the number is its pixels."""
    table = importlib.resources.files("kerastl.data").joinpath("flowers.csv").read_text("ascii")
    for row in filter(keep, csv.DictReader(table.splitlines())):
        place = folder / (row["label"] + (plural if row["label"] in ("rose", "sunflower", "tulip") else ""))
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.frombuffer(int(row["number"]).to_bytes(72, "little"), np.uint8).reshape(4, 6, 3)
        PIL.Image.fromarray(pixels).save(place / f"{row['number']}_0123abcd_n.jpg", "PNG", compress_level=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_photographs(folder / "flowers")
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """No photographs anywhere, and nobody answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flowers, "_ARCHIVE", (tmp_path / "missing.tgz").as_uri())
    return tmp_path / "data"


def load(source="flowers", **options):
    return load_images(source, image_size=(4, 6), **{"verbose": 0, **options})


def test_the_split_is_that_of_the_table_whatever_the_seed(place):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = load(data_dir=place), load(data_dir=place, seed=1)
    assert first.split_sizes == SIZES
    assert first.class_names == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert set(first.class_counts.values()) == {300}
    assert {split: sorted(files) for split, files in first.files.items()} == {
        split: sorted(files) for split, files in second.files.items()
    }
    table = (Path(flowers.__file__).parent / "flowers.csv").read_text().splitlines()
    images, labels = next(iter(first.test))
    for file, image, label in zip(first.files["test"], images.numpy(), labels.numpy(), strict=False):
        number = int.from_bytes(image.tobytes(), "little")
        assert Path(file).name == f"{number}_0123abcd_n.jpg"
        assert f"{number},{first.class_names[label]},test" in table


def test_what_a_folder_lacks_is_counted_and_what_it_has_besides_is_left_out(tmp_path):
    write_photographs(tmp_path / "flowers", lambda row: row["number"][-1] != "7", plural="s")
    extra = tmp_path / "flowers" / "roses" / "123_abcd.jpg"
    PIL.Image.new("RGB", (6, 4)).save(extra)
    with pytest.warns(UserWarning, match=r"\d+ of the 1500 flower photographs are not .* on the same photographs"):
        data = load(data_dir=tmp_path)
    files = sum(data.files.values(), ())
    assert len(files) == sum(data.split_sizes.values()) < 1500
    assert str(extra) not in files


def test_a_folder_of_other_photographs_is_refused(tmp_path):
    write_photographs(tmp_path / "flowers", lambda row: row["label"] != "tulip")
    with pytest.raises(DataError, match=r"has 1200 of the 1500.*Delete the folder"):
        load(data_dir=tmp_path)


def test_a_damaged_photograph_is_found_beforehand_and_can_be_left_out(tmp_path):
    write_photographs(tmp_path / "flowers")
    damaged = next((tmp_path / "flowers" / "rose").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(DataError, match=r"1 file can't be read:(.|\n)*pass skip_unreadable=True"):
        load(data_dir=tmp_path)
    with pytest.warns(UserWarning, match="Skipped, as skip_unreadable=True says"):
        data = load(data_dir=tmp_path, skip_unreadable=True)
    assert data.skipped == (str(damaged),)
    assert sum(data.split_sizes.values()) == 1499


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive as Keras's tutorials have it, at an address of this machine."""
    write_photographs(tmp_path / "flower_photos", plural="s")
    path = tmp_path / "flower_photos.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "flower_photos", "flower_photos")
        notice = tarfile.TarInfo("flower_photos/LICENSE.txt")
        notice.size = 7
        tar.addfile(notice, io.BytesIO(b"CC BY 2"))
    monkeypatch.setattr(flowers, "_ARCHIVE", path.as_uri())
    monkeypatch.setattr(flowers, "_ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_archive_is_downloaded_once_and_kept_whole(archive, tmp_path, capsys):
    data = load(data_dir=tmp_path / "kept", verbose=1)
    assert data.split_sizes == SIZES
    assert "Downloading the flower photographs (229 MB)" in capsys.readouterr().out
    inside = ["LICENSE.txt", "daisy", "dandelion", "roses", "sunflowers", "tulips"]
    assert sorted(path.name for path in (tmp_path / "kept" / "flowers").iterdir()) == inside
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["flowers"]
    archive.unlink()
    assert load(data_dir=tmp_path / "kept").split_sizes == SIZES


def test_a_folder_that_is_deleted_is_downloaded_again(archive, tmp_path):
    write_photographs(tmp_path / "kept" / "flowers", lambda row: row["label"] != "tulip")
    with pytest.raises(DataError, match="Delete the folder: they are downloaded again"):
        load(data_dir=tmp_path / "kept")
    shutil.rmtree(tmp_path / "kept" / "flowers")
    assert load(data_dir=tmp_path / "kept").split_sizes == SIZES


def test_an_archive_with_another_checksum_leaves_nothing_behind(archive, tmp_path):
    archive.write_bytes(archive.read_bytes() + b"more")
    with pytest.raises(DataError, match=r"can't be downloaded: .*corrupted"):
        load(data_dir=tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_where_they_cannot_be_had_the_message_names_what_works(elsewhere):
    with pytest.raises(DataError, match=r"can't be downloaded: .*Put the folder there.* or take 'elpv'"):
        load(data_dir=elsewhere)
    write_photographs(elsewhere / "flowers")
    assert load(data_dir=elsewhere).split_sizes == SIZES


def test_a_data_set_of_tensorflow_datasets_of_that_name_is_another(place, monkeypatch):
    asked = []
    stand_in = SimpleNamespace(catalogue_tfds=lambda name, *_, **__: asked.append(name) or 1 / 0)
    # The real one can't be imported on Colab's versions
    monkeypatch.setitem(sys.modules, "kerastl.data.tfds", stand_in)
    with pytest.raises(ZeroDivisionError):
        load("tfds:flowers", data_dir=place)
    assert asked == ["flowers"]


def test_demo_takes_the_flowers_where_they_are(place, capsys):
    assert load("demo", data_dir=place, verbose=1).name == "flowers"
    assert "Took the flower photographs.\n" in capsys.readouterr().out


def test_demo_takes_elpv_where_they_are_not(elsewhere, capsys):
    pytest.importorskip("elpv_dataset", reason="the demo extra is not installed")
    assert load("demo", data_dir=elsewhere, verbose=1).name == "elpv"
    assert (
        "Took ELPV, photographs of solar cells. The flower photographs are not available: " in capsys.readouterr().out
    )


def test_a_folder_of_that_name_goes_first(tmp_path, monkeypatch):
    write_photographs(tmp_path / "flowers", lambda row: row["label"] < "e" and row["split"] == "train")
    monkeypatch.chdir(tmp_path)
    data = load("flowers")
    assert sum(data.split_sizes.values()) == 420
    assert data.class_names == ("daisy", "dandelion")


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not in data/flowers")
def test_the_photographs_themselves():
    data = load_images("flowers", image_size=64, verbose=0)
    assert data.split_sizes == SIZES
    assert all(Path(file).parent.name in data.class_names for file in data.files["test"])
