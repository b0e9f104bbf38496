"""Reading images of every kind as upright RGB, refusing what can't be read, and resizing."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kerastl.data.images import RESIZES, check_image_size, find_files, read_image, resize_image
from kerastl.errors import ArgumentError, DataError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state no test here needs."""


def corners(array) -> list[tuple[int, ...]]:
    """Return the colours near the four corners: top left, top right, bottom left, bottom right."""
    height, width = array.shape[:2]
    points = [(1, 1), (1, width - 2), (height - 2, 1), (height - 2, width - 2)]
    return [tuple(int(value) for value in array[point]) for point in points]


def quadrants(size=(60, 40)) -> Image.Image:
    """A picture that tells every rotation and reflection apart: red, green / blue, white."""
    width, height = size
    image = Image.new("RGB", size)
    boxes = [(0, 0), (width // 2, 0), (0, height // 2), (width // 2, height // 2)]
    for colour, box in zip((RED, GREEN, BLUE, WHITE), boxes, strict=True):
        image.paste(colour, (*box, box[0] + width // 2, box[1] + height // 2))
    return image


def encode(image, image_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def photograph(size=(1600, 1200)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
def test_formats(image_format, tmp_path):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(image_format, {})
    path = tmp_path / f"Bäume im Wald.{image_format.lower()}"
    path.write_bytes(encode(quadrants(), image_format, **options))
    array = read_image(path)
    assert array.shape == (40, 60, 3)
    assert array.dtype == np.uint8
    np.testing.assert_allclose(corners(array), [RED, GREEN, BLUE, WHITE], atol=6)
    np.testing.assert_array_equal(read_image(path.read_bytes()), array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_comes_out_upright(orientation, image_format):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quadrants() if orientation == 1 else quadrants().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = read_image(encode(stored, image_format, exif=exif, quality=95))
    assert array.shape == (40, 60, 3)
    np.testing.assert_allclose(corners(array), [RED, GREEN, BLUE, WHITE], atol=25)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_cost_the_image():
    data = encode(quadrants(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert read_image(data).shape == (40, 60, 3)


def test_grey_becomes_three_equal_channels():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    array = read_image(encode(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(array, np.repeat(grey[..., np.newaxis], 3, axis=-1))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_range(image_format):
    wide = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    array = read_image(encode(Image.fromarray(wide), image_format))
    np.testing.assert_array_equal(array[..., 0], np.arange(256).reshape(16, 16))


def test_thirty_two_bit_grey_beyond_sixteen_is_refused():
    beyond = Image.fromarray(np.full((4, 4), 100_000, dtype=np.int32))
    with pytest.raises(DataError, match="outside 0–65535"):
        read_image(encode(beyond, "TIFF"))


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="floating-point"):
        read_image(encode(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"))


def test_black_and_white():
    bits = Image.fromarray(np.eye(8, dtype=np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(read_image(encode(bits, "PNG"))[..., 1], np.eye(8) * 255)


def test_palette():
    palette = quadrants().convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_allclose(corners(read_image(encode(palette, "PNG"))), [RED, GREEN, BLUE, WHITE], atol=3)


def test_cmyk():
    array = read_image(encode(quadrants().convert("CMYK"), "JPEG", quality=95))
    assert array.shape == (40, 60, 3)
    np.testing.assert_allclose(corners(array), [RED, GREEN, BLUE, WHITE], atol=12)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_parts_are_laid_on_white(mode):
    left_clear = Image.new("RGBA", (20, 10), (0, 0, 0, 255))
    left_clear.paste((0, 0, 0, 0), (0, 0, 10, 10))
    if mode == "P":
        image = Image.new("P", (20, 10), 1)
        image.putpalette([9, 9, 9, 0, 0, 0])
        image.paste(0, (0, 0, 10, 10))
        data = encode(image, "PNG", transparency=0)
    elif mode == "RGB":
        image = Image.new("RGB", (20, 10))
        image.paste((1, 2, 3), (0, 0, 10, 10))
        data = encode(image, "PNG", transparency=(1, 2, 3))
    else:
        data = encode(left_clear.convert(mode), "PNG")
    array = read_image(data)
    assert (array[:, :10] == 255).all()
    assert (array[:, 10:] == 0).all()


def test_half_transparent_is_mixed_with_white():
    array = read_image(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    np.testing.assert_allclose(array, 127, atol=1)


def test_of_an_animation_the_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(data)[0, 0], RED)


def bad_files(tmp_path):
    whole = encode(photograph((200, 150)), "JPEG")
    png = encode(photograph((200, 150)), "PNG")
    damaged = bytearray(png)
    damaged[60:400] = bytes(340)
    contents = {
        "text.png": b"this is a text, not an image",
        "empty.jpg": b"",
        "truncated.jpg": whole[: len(whole) // 2],
        "truncated.png": png[: len(png) // 2],
        "damaged.png": bytes(damaged),
        "header.gif": b"GIF89a",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return [tmp_path / name for name in contents]


def test_what_is_no_image_is_an_error_that_names_the_file(tmp_path):
    for path in bad_files(tmp_path):
        for size in (None, (32, 32)):
            with pytest.raises(DataError) as caught:
                read_image(path, size)
            assert str(path) in str(caught.value)
            assert "object at 0x" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.png: No such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=tmp_path.name):
        read_image(tmp_path)


def test_bytes_go_by_the_name_that_is_given():
    with pytest.raises(DataError, match=r"the image cats/7\.png"):
        read_image(b"no", name="cats/7.png")


def test_a_decompression_bomb_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(encode(Image.new("1", (400, 400)), "PNG"))
    for limit in (100_000, 50_000):  # between the limit and twice it Pillow warns, beyond that it raises
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"bomb\.png: it says that it is too large"):
            read_image(path)


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, "224", (3,), (3, 4, 5), (0, 4)])
def test_wrong_sizes_are_refused(wrong):
    with pytest.raises(ArgumentError, match="image_size"):
        check_image_size(wrong)


def test_image_size_is_height_then_width():
    assert check_image_size(7) == (7, 7)
    assert check_image_size([3, np.int64(4)]) == (3, 4)
    assert read_image(encode(quadrants(), "PNG"), (24, 48)).shape == (24, 48, 3)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_jpeg_decoding_stays_near_the_full_one(resize, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph(), "JPEG", quality=90, exif=exif)
    reduced = read_image(data, (64, 48), resize)
    full = resize_image(read_image(data), (64, 48), resize)
    assert np.abs(reduced.astype(int) - full).max() <= 3


@pytest.mark.parametrize("resize", RESIZES)
def test_reduced_jpeg_decoding_is_used_and_bounded_on_noise(resize):
    noise = np.random.default_rng(0).integers(0, 256, (808, 600, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", quality=90)
    difference = np.abs(
        read_image(data, (48, 48), resize).astype(int) - resize_image(read_image(data), (48, 48), resize)
    )
    assert 0 < difference.max() <= 8


def test_jpegs_whose_size_does_not_divide_are_decoded_in_full():
    data = encode(photograph((799, 601)), "JPEG", quality=90)
    np.testing.assert_array_equal(read_image(data, (32, 32), "crop"), resize_image(read_image(data), (32, 32), "crop"))


def test_reading_and_resizing_are_the_same_as_both_at_once():
    data = encode(quadrants((90, 50)), "PNG")
    for resize in RESIZES:
        np.testing.assert_array_equal(
            read_image(data, (32, 32), resize), resize_image(read_image(data), (32, 32), resize)
        )


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(shape=shapes, target=shapes, resize=st.sampled_from(RESIZES), seed=st.integers(0, 99))
def test_resized_arrays_have_the_size_and_stay_in_range(shape, target, resize, seed):
    image = np.random.default_rng(seed).integers(30, 220, (*shape, 3), dtype=np.uint8)
    whole = resize_image(image, target, resize)
    floats = resize_image(image.astype(np.float64), target, resize)
    assert whole.shape == floats.shape == (*target, 3)
    assert (whole.dtype, floats.dtype) == (np.uint8, np.float32)
    np.testing.assert_allclose(whole, floats, atol=1.01)
    inside = whole[whole > 0] if resize == "pad" else whole
    assert inside.min() >= image.min()
    assert inside.max() <= image.max()


@settings(max_examples=30, deadline=None)
@given(shape=shapes, target=shapes, resize=st.sampled_from(["squash", "crop"]), value=st.integers(0, 255))
def test_one_colour_stays_one_colour(shape, target, resize, value):
    assert (resize_image(np.full((*shape, 3), value, np.uint8), target, resize) == value).all()


@pytest.mark.parametrize("resize", RESIZES)
def test_the_same_size_changes_nothing_and_copies(resize):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    same = resize_image(image, (9, 7), resize)
    np.testing.assert_array_equal(same, image)
    same[:] = 0
    assert image.any()


def test_reducing_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    np.testing.assert_allclose(resize_image(stripes, (8, 8))[:, 1:-1], 127.5, atol=8)


def test_squash_crop_and_pad_differ_as_they_should():
    wide = np.array(quadrants((80, 40)))
    assert corners(resize_image(wide, (20, 20), "squash")) == [RED, GREEN, BLUE, WHITE]
    left_to_right = np.zeros((10, 30, 3), np.uint8)
    left_to_right[:, 10:20] = 200
    assert (resize_image(left_to_right, (10, 10), "crop") == 200).all()
    padded = resize_image(np.full((10, 30, 3), 200, np.uint8), (30, 30), "pad")
    assert (padded[10:20] == 200).all()
    assert (padded[:10] == 0).all()
    assert (padded[20:] == 0).all()


def test_grey_and_integer_arrays():
    grey = np.arange(12).reshape(3, 4)
    expected = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    for image in (grey, grey[..., np.newaxis], grey.tolist()):
        result = resize_image(image, (3, 4))
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 4, 4, 3)), r"shape=\(2, 4, 4, 3\)"),
        (np.zeros((4, 4, 4)), r"shape=\(4, 4, 4\)"),
        (np.zeros((0, 4, 3)), r"shape=\(0, 4, 3\)"),
        (np.full((4, 4, 3), 256), "largest=256"),
        (np.full((4, 4, 3), -1), "smallest=-1"),
        (np.zeros((4, 4, 3), bool), "dtype='bool'"),
    ],
)
def test_arrays_that_are_no_images_are_refused(image, message):
    with pytest.raises(DataError, match=message):
        resize_image(image, (8, 8))


def test_finding_files_walks_sorts_and_leaves_out_what_is_hidden(tmp_path):
    visible = ["b.JPG", "a.png", "sub folder/ü.webp", "sub folder/deeper/c.tiff"]
    hidden = [".DS_Store", "Thumbs.db", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png"]
    for name in [*visible, *hidden, "notes.txt", "LICENSE"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_files(tmp_path)[0] == sorted(tmp_path / name for name in visible)
    assert find_files(tmp_path)[1] == sorted([tmp_path / "LICENSE", tmp_path / "notes.txt"])


def test_a_link_back_to_the_folder_ends(tmp_path):
    (tmp_path / "one.png").touch()
    try:
        (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets ordinary users make no links")
    assert find_files(tmp_path)[0] == [tmp_path / "one.png"]
