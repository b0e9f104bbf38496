"""What `predict` may be given: images of more than 8 bits have one white, whatever they come as."""

import shutil

import numpy as np
import pytest
from PIL import Image

from kerastl.data.images import read_image
from kerastl.errors import ArgumentError, KerastlWarning
from kerastl.evaluation.inputs import list_images

TOLD = r"8 bits a channel \(%d\) use 0–4095: their largest value is 4000, in .*\(`data\.white`\), pass it: `white=`"


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state no test here needs."""


@pytest.fixture
def folder(tmp_path):
    for value in (90, 4000):
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / f"{value:04d}.png")
    Image.new("RGB", (4, 4), (90, 90, 90)).save(tmp_path / "usual.jpg", quality=100)
    return tmp_path


def shades(named):
    pixels = [image if isinstance(image, np.ndarray) else read_image(image) for _, image in named]
    return [int(array.flat[0]) for array in pixels]


WAYS = {
    "folder": lambda folder: folder,
    "paths": lambda folder: sorted(folder.iterdir()),
    "bytes": lambda folder: [path.read_bytes() for path in sorted(folder.iterdir())],
    "images of Pillow": lambda folder: [Image.open(path) for path in sorted(folder.iterdir())],
    "arrays": lambda folder: [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())],
    "a mix": lambda folder: [np.full((4, 4, 3), 90, np.uint16), folder / "4000.png", folder / "usual.jpg"],
}


@pytest.mark.parametrize("way", WAYS)
def test_one_white_for_all_images_is_decided_and_said_or_given(folder, way):
    with pytest.warns(KerastlWarning, match=TOLD % 2) as caught:
        found = list_images(WAYS[way](folder))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert shades(found) == [6, 249, 90]
    assert shades(list_images(WAYS[way](folder), white=65535)) == [0, 16, 90]


def test_a_batch_of_sixteen_bits_is_scaled_as_a_whole():
    batch = np.stack([np.full((4, 4, 3), value, np.uint16) for value in (90, 4000)])
    with pytest.warns(KerastlWarning, match=TOLD % 2):
        assert shades(list_images(batch)) == [6, 249]
    assert shades(list_images(batch // 16)) == [5, 250]  # 8 bits after all: nothing to scale, nothing to say
    assert shades(list_images(np.full((1, 4, 4, 3), 200, np.int64))) == [200]


def test_values_above_white_are_white(folder):
    assert shades(list_images(folder, white=1023)) == [22, 255, 90]


@pytest.mark.parametrize("wrong", [0, -1, "4095", float("nan")])
def test_a_white_that_is_none_is_refused(folder, wrong):
    with pytest.raises(
        ArgumentError, match=r"`white` must be the value that is white, such as 4095\. Received: white="
    ):
        list_images(folder, white=wrong)


def test_a_transparent_image_of_pillow_is_laid_on_white():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert shades(list_images(image)) == [255]


def test_photographs_that_cannot_be_read_are_named(folder):
    shutil.move(folder / "usual.jpg", folder / "usual.nef")
    with pytest.warns(
        KerastlWarning, match=r"Left out, as these formats can't be read: 1 \.nef\. Convert them to JPEG"
    ):
        found = list_images(folder, white=4095)
    assert [name for name, _ in found] == [str(folder / "0090.png"), str(folder / "4000.png")]


def test_files_without_a_known_ending_are_found(folder):
    shutil.move(folder / "usual.jpg", folder / "usual")
    assert [name for name, _ in list_images(folder, white=4095)][-1] == str(folder / "usual")
