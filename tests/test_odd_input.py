"""What people have on their disks: odd names, pipes, links, bombs, leftovers; each is read right or refused by name."""

import io
import os
import time
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from kerastl import files
from kerastl.cli.models import find_model
from kerastl.data.folders import load_images
from kerastl.data.images import find_files, read_image
from kerastl.errors import ArgumentError, DataError, ModelError, OutputError
from kerastl.evaluation import plots
from kerastl.evaluation.plots.drawing import as_png
from kerastl.evaluation.prediction import predict

pytestmark = pytest.mark.filterwarnings("ignore:Classes with fewer than 10 images")
POSIX = pytest.mark.skipif(os.name != "posix", reason="pipes, devices and names of any bytes are POSIX")


def write_classes(folder, names, count=4):
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9), (40 * label, 20 * number, 10)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    "name",
    ["$a$", r"$\frac$", "a_b^c", "50%", "'quoted'", "猫", "강아지", "बिल्ली", "قطة", "café", "x" * 120, "a|b", "<b>"],
)
def test_a_class_may_have_any_readable_name(tmp_path, name):
    data = load_images(write_classes(tmp_path, [name, "other"]), image_size=8, verbose=0, validation=0, test=0)
    assert name in data.class_names
    assert f"{name}  " in data.summary() + "  "
    figure = plots.plot_confusion_matrix(np.eye(2, dtype=int), [name, "other"])
    drawn = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert any(text.replace(r"\$", "$")[:8] == name[:8] for text in drawn)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No installed font has the characters")
        assert Image.open(io.BytesIO(as_png(figure))).width > 100


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "tab\there"])
@POSIX
def test_a_class_name_that_cannot_be_printed_is_refused_before_anything_is_read(tmp_path, name):
    with pytest.raises(DataError, match=r"readable text in one line\. Rename the folder"):
        load_images(write_classes(tmp_path, [name, "other"]), image_size=8, verbose=0)


@POSIX
def test_a_class_name_that_is_no_utf8_is_refused_before_anything_is_read(tmp_path):
    try:
        write_classes(tmp_path, [os.fsdecode(b"caf\xe9"), "other"])
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(DataError, match=r"Rename the folder.*caf\\udce9"):
        load_images(tmp_path, image_size=8, verbose=0)


@POSIX
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    write_classes(tmp_path, ["a", "b"])
    odd = tmp_path / "a" / "odd.jpg"
    os.mkfifo(odd) if kind == "pipe" else odd.symlink_to("/dev/zero")
    data = load_images(tmp_path, image_size=8, verbose=0, validation=0, test=0)
    assert data.class_counts == {"a": 4, "b": 4}
    with pytest.raises(DataError, match=r"odd\.jpg: it is a folder, a pipe or a device"):
        read_image(odd)


@POSIX
def test_a_link_upwards_brings_no_other_classes_images_in(tmp_path):
    write_classes(tmp_path, ["a", "b"])
    (tmp_path / "a" / "loop").symlink_to("..")
    (tmp_path / "a" / "self").symlink_to(".")
    elsewhere = write_classes(tmp_path / "elsewhere", ["more"], 2)
    (tmp_path / "b" / "more").symlink_to(elsewhere / "more")
    assert len(find_files(tmp_path / "a")[0]) == 4
    assert len(find_files(tmp_path / "b")[0]) == 6


@pytest.mark.parametrize("size", [0, -1, 1_000_000, (8, 10**9)])
def test_an_image_size_that_cannot_be_meant_is_refused(tmp_path, size):
    with pytest.raises(ArgumentError, match=r"from 1 to 8192 \(pixels\)"):
        load_images(tmp_path, image_size=size)


def test_class_names_given_twice_are_refused(colours):
    with pytest.raises(DataError, match=r"must differ.*\['red'\]"):
        predict(colours, np.zeros((8, 8, 3), "uint8"), class_names=["red", "red", "blue"])


def test_a_file_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", "{}")
        file.writestr("model.weights.h5", bytes(50_000_000))
    with pytest.raises(ModelError, match=r"would unpack to 50 MB, over 20 times its size"):
        find_model(str(tmp_path / "bomb.keras"))


OPTIONS = {"files": {"model.keras"}, "what": "run"}


def test_a_folder_that_another_process_filled_meanwhile_is_not_replaced(tmp_path):
    def write_slowly():
        with files.new_folder(tmp_path / "run", **OPTIONS):
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "model.keras").write_text("the other one's")

    with pytest.raises(OutputError, match="exists and is not empty"):
        write_slowly()
    assert (tmp_path / "run" / "model.keras").read_text() == "the other one's"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_process_left_behind_is_cleared_after_a_day(tmp_path):
    old, new, other = (
        tmp_path / f".{name}.{number * 32}" for name, number in (("run", "a"), ("run", "b"), ("runs", "a"))
    )
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "half").write_text("")
    for folder in (old, other):
        os.utime(folder, (time.time() - 2 * 86400,) * 2)
    with files.new_folder(tmp_path / "run", **OPTIONS) as place:
        (place / "model.keras").write_text("")
    assert {path.name for path in tmp_path.iterdir()} == {"run", new.name, other.name}
