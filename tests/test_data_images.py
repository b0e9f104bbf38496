"""Reading images of every kind as upright RGB, refusing what can't be read, and resizing."""

import io
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from kerastl.data import images, splitting
from kerastl.data.images import (
    RESIZES,
    WideFile,
    check_image_size,
    count_left_out,
    find_files,
    largest_value,
    naming_the_image,
    read_image,
    resize_image,
    scale_alike,
)
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


def test_black_and_white():
    bits = Image.fromarray(np.eye(8, dtype=np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(read_image(encode(bits, "PNG"))[..., 1], np.eye(8) * 255)


def test_palette():
    palette = quadrants().convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_allclose(corners(read_image(encode(palette, "PNG"))), [RED, GREEN, BLUE, WHITE], atol=3)


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
    left = [".DS_Store", ".ipynb_checkpoints", "._a.png", "LICENSE", "Thumbs.db", "__MACOSX", "notes.txt"]
    assert find_files(tmp_path)[1] == sorted(tmp_path / name for name in left)


def test_a_link_back_to_the_folder_ends(tmp_path):
    (tmp_path / "one.png").touch()
    try:
        (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets ordinary users make no links")
    assert find_files(tmp_path)[0] == [tmp_path / "one.png"]


def png_of(values: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow can't write in color; `kind`: 2 for RGB, 6 with alpha."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of(
    values: np.ndarray, order: str = "<", *, photometric=2, planar=False, deflate=False, orientation=1
) -> bytes:
    """A TIFF of 16 bits a channel, which Pillow can't write in color."""
    height, width, channels = values.shape
    planes = np.moveaxis(values, -1, 0) if planar else [values]
    strips = [plane.astype(f"{order}u2").tobytes() for plane in planes]
    strips = [zlib.compress(strip) if deflate else strip for strip in strips]
    numbers = {256: [width], 257: [height], 258: [16] * channels, 259: [8 if deflate else 1], 262: [photometric]}
    numbers |= {273: [], 274: [orientation], 277: [channels], 278: [height], 279: [len(strip) for strip in strips]}
    numbers |= {284: [2 if planar else 1]}
    start = 8
    for strip in strips:
        numbers[273].append(start)
        start += len(strip)
    entries, more = b"", b""
    for tag, found in numbers.items():
        data = struct.pack(f"{order}{len(found)}I", *found)
        if len(found) > 1:
            data, more = struct.pack(f"{order}I", start + 2 + 12 * len(numbers) + 4 + len(more)), more + data
        entries += struct.pack(f"{order}HHI", tag, 4, len(found)) + data
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + b"".join(strips) + struct.pack(f"{order}H", len(numbers)) + entries + bytes(4) + more


TWELVE_BITS = np.random.default_rng(0).integers(0, 4096, (6, 9, 3))
TWELVE_BITS[0, 0] = 4095
SCALED = np.rint(TWELVE_BITS * (255 / 4095)).astype(np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        png_of(TWELVE_BITS, 2),
        tiff_of(TWELVE_BITS),
        tiff_of(TWELVE_BITS, ">"),
        tiff_of(TWELVE_BITS, deflate=True),
        tiff_of(TWELVE_BITS, ">", deflate=True),
    ],
    ids=["PNG", "TIFF", "big-endian", "deflate", "big-endian deflate"],
)
def test_sixteen_bit_colors_keep_all_their_bits(data):
    assert largest_value(data) == 4095
    np.testing.assert_array_equal(read_image(data), SCALED)
    np.testing.assert_array_equal(
        read_image(WideFile(lambda: data, 65535)), np.rint(TWELVE_BITS * (255 / 65535)).astype(np.uint8)
    )


@pytest.mark.parametrize("deflate", [False, True])
def test_sixteen_bit_channels_that_lie_apart_are_refused(deflate):  # Pillow takes them for others, or drops bits
    with pytest.raises(
        DataError, match=r"lie apart \(PlanarConfiguration 2\)\. Save it with those of a pixel together"
    ):
        read_image(tiff_of(TWELVE_BITS, planar=True, deflate=deflate))


def test_sixteen_bit_colors_come_out_upright():
    stored = np.rot90(TWELVE_BITS, 1)  # to be turned to the right by a quarter
    np.testing.assert_array_equal(read_image(tiff_of(stored, orientation=6)), SCALED)


def test_sixteen_bit_colors_on_white():
    alpha = np.full((6, 9, 1), 65535)
    alpha[:, :4] = 0
    data = png_of(np.concatenate([TWELVE_BITS, alpha], axis=-1), 6)
    assert largest_value(data) == 4095  # of the colors alone
    array = read_image(data)
    assert (array[:, :4] == 255).all()
    np.testing.assert_array_equal(array[:, 4:], SCALED[:, 4:])


def test_zero_as_white():
    grey = TWELVE_BITS[..., :1]
    array = read_image(tiff_of(grey, photometric=0))
    np.testing.assert_array_equal(array, np.repeat(255 - SCALED[..., :1], 3, axis=-1))


@pytest.mark.parametrize(
    ("dtype", "top", "white"),
    [
        ("uint16", 200, 255),
        ("uint16", 255, 255),
        ("uint16", 256, 1023),
        ("uint16", 4000, 4095),
        ("uint16", 4096, 16383),
        ("uint16", 16384, 65535),
        ("int32", 1000, 1023),
        ("int32", 65535, 65535),
        ("float32", 0.8, 1),
        ("float32", 1.0000002, 1),
        ("float32", 1.5, 255),
        ("float32", 255.0, 255),
        ("float32", 4000.5, 4095),
    ],
)
def test_white_is_the_next_that_the_largest_value_lies_below(dtype, top, white):
    values = np.linspace(0, top, 64).astype(dtype).reshape(8, 8)
    data = encode(Image.fromarray(values), "TIFF")
    assert largest_value(data) == values.max()
    expected = np.minimum(np.rint(values.astype(float) * 255 / white), 255)
    np.testing.assert_array_equal(read_image(data)[..., 0], expected)


@pytest.mark.parametrize(
    ("values", "received"),
    [
        (np.full((4, 4), 100_000, np.int32), "largest=100000"),
        (np.full((4, 4), -1, np.int32), "smallest=-1"),
        (np.full((4, 4), -0.5, np.float32), r"smallest=-0\.5"),
        (np.full((4, 4), np.nan, np.float32), "smallest=nan"),
        (np.full((4, 4), np.inf, np.float32), "largest=inf"),
    ],
)
def test_values_that_cannot_be_pixels_are_refused(values, received):
    data = encode(Image.fromarray(values), "TIFF")
    for look in (read_image, largest_value):
        with pytest.raises(DataError, match=rf"outside 0–65535\. Scale them so that 0 is black.*{received}"):
            look(data)


def test_images_of_eight_bits_have_no_largest_value(tmp_path):
    path = tmp_path / "a.png"
    quadrants().save(path)
    assert largest_value(path) is None
    assert largest_value(encode(quadrants(), "JPEG")) is None


def test_one_white_for_a_data_set():
    images = [
        splitting.Image(0, "train", name, name.encode(), lambda data=data: data)
        for name, data in {
            "dark": encode(Image.fromarray(np.full((2, 2), 90, np.uint16)), "PNG"),
            "light": encode(Image.fromarray(np.full((2, 2), 3000, np.uint16)), "PNG"),
            "usual": encode(Image.new("L", (2, 2), 90), "PNG"),
        }.items()
    ]
    scaled, told = scale_alike(images, [90, 3000, None])
    assert [int(read_image(image.read)[0, 0, 0]) for image in scaled] == [6, 187, 90]
    assert told == [
        "Images of more than 8 bits a channel (2) use 0–4095: their largest value is 3000, in light. That range becomes"
        " 0–255. So few images may not show what is white."
    ]
    brighter, _ = scale_alike(images, [90, 30000, None])  # the same files in another data set are other pixels
    assert [one.digest == other.digest for one, other in zip(scaled, brighter, strict=True)] == [False, False, True]
    assert scale_alike(images, [None] * 3) == (images, [])
    assert scale_alike(images, [90, 200, None])[1] == []  # 8 bits in files of 16
    with pytest.raises(DataError, match="Images of floats and of 16-bit integers can't be scaled alike"):
        scale_alike(images, [90, 0.5, None])


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk(image_format):  # inverted in JPEG, as Adobe has it
    data = encode(quadrants().convert("CMYK"), image_format, quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    np.testing.assert_allclose(corners(read_image(data)), [RED, GREEN, BLUE, WHITE], atol=12)


@pytest.mark.parametrize(
    ("image_format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})]
)
def test_of_many_frames_the_first(image_format, options):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(read_image(data), np.full((8, 8, 3), RED))


@pytest.mark.parametrize("suffix", [".avif", ".JPG"])
def test_avif(tmp_path, suffix):
    if "avif" not in features.get_supported():
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(quadrants(), "AVIF", quality=95))
    np.testing.assert_allclose(corners(read_image(path)), [RED, GREEN, BLUE, WHITE], atol=12)
    assert find_files(tmp_path) == ([path], [])


@pytest.mark.parametrize("suffix", [".HEIC", ".jpg", ""])
def test_heic(tmp_path, suffix):
    pytest.importorskip("pillow_heif").register_heif_opener()
    images._openers.cache_clear()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(quadrants(), "HEIF", quality=95))
    np.testing.assert_allclose(corners(read_image(path)), [RED, GREEN, BLUE, WHITE], atol=12)
    assert find_files(tmp_path) == ([path], [])


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(80)


@pytest.fixture
def _no_heif(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._openers.cache_clear()
    known = {name: opener for name, opener in images._openers().items() if name != "HEIF"}  # once registered, it stays
    images._openers.cache_clear()
    monkeypatch.setattr(images, "_openers", lambda: known)


@pytest.mark.usefixtures("_no_heif")
def test_without_pillow_heif_heic_is_counted_and_named(tmp_path):
    for name in ("IMG_1.HEIC", "IMG_2.heic", "x.nef", "really heic.jpg", "no ending"):
        (tmp_path / name).write_bytes(HEIC)
    found, others = find_files(tmp_path)
    assert [path.name for path in found] == ["no ending", "really heic.jpg"]  # these become errors, so are not lost
    for path in (*found, tmp_path / "IMG_1.HEIC"):
        with pytest.raises(
            DataError, match=r"it is HEIF, which is read after `pip install pillow-heif`\. Or convert it"
        ):
            read_image(path)
    assert count_left_out(others) == (
        {".heic": 2, ".nef": 1},
        [
            "Left out, as these formats can't be read: 2 .heic, 1 .nef. Install what reads them"
            " (`pip install pillow-heif`), or convert them to JPEG or PNG."
        ],
    )


def test_files_without_a_known_ending_are_looked_at(tmp_path):
    formats = {
        "a": "PNG",
        "photo.JPG_large": "JPEG",
        "b.image": "WEBP",
        "c.jpg~": "GIF",
        "d.123": "TIFF",
        "e.bin": "BMP",
    }
    for name, image_format in formats.items():
        (tmp_path / name).write_bytes(encode(quadrants(), image_format))
    texts = {
        "BMW.txt": b"BMW is a maker of cars, and this is a text",
        "LICENSE": b"MIT",
        "empty": b"",
        "x.mp4": HEIC[:8] + b"isom",
    }
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    found, others = find_files(tmp_path)
    assert [path.name for path in found] == sorted(formats)
    assert [path.name for path in others] == sorted(texts)
    assert all(read_image(path).shape == (40, 60, 3) for path in found)
    assert count_left_out(others) == ({".txt": 1, "without ending": 2, ".mp4": 1}, [])


def test_a_wrong_ending_does_not_matter(tmp_path):
    path = tmp_path / "really a png.jpg"
    path.write_bytes(encode(quadrants(), "PNG"))
    assert corners(read_image(path)) == [RED, GREEN, BLUE, WHITE]


def test_what_systems_leave_behind_is_counted_by_name(tmp_path):
    for name in ("a/.ipynb_checkpoints/1.png", "a/@eaDir/2.png", "Thumbs.db", "a/thumbs.db", "._1.png", ".cache/3.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found, others = find_files(tmp_path)
    assert found == []
    counts = {".ipynb_checkpoints": 1, "@eaDir": 1, "Thumbs.db": 1, "thumbs.db": 1, "dot files": 2}
    assert count_left_out(others) == (counts, [])


def test_an_image_too_large_for_memory_is_not_called_damaged(monkeypatch):
    monkeypatch.setattr(images, "_MOST_BYTES", 400 * 400)
    assert read_image(encode(Image.new("L", (400, 400), 7), "PNG"), (8, 8)).max() == 7
    for image_format, options in (("PNG", {}), ("JPEG", {"progressive": True})):
        data = encode(Image.new("RGB", (400, 300)), image_format, **options)
        with pytest.raises(DataError) as caught:
            read_image(data, (8, 8), name="big.png")
        assert str(caught.value) == (
            "Can't read the image big.png: its 400×300 pixels would take 480 kB of memory, over 160 kB. Make it smaller,"
            " or save it as JPEG (not progressive), which is read at a reduced size."
        )


@pytest.mark.parametrize("size", [(1600, 1200), (1601, 1207)])
def test_a_jpeg_too_large_for_memory_is_decoded_at_a_reduced_size(size, monkeypatch):
    slope = np.linspace(0, 255, size[0]) * np.linspace(0, 1, size[1])[:, np.newaxis]
    data = encode(Image.fromarray(slope.astype(np.uint8)), "JPEG", quality=95)
    full = resize_image(read_image(data), (32, 32))
    monkeypatch.setattr(images, "_MOST_BYTES", 200_000)
    assert np.abs(read_image(data, (32, 32)).astype(int) - full).max() <= 3
    with pytest.raises(DataError, match=f"its {size[0]}×{size[1]} pixels would take"):
        read_image(data)


def test_pillows_own_limit_counts_only_where_it_insists(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for image_format in ("PNG", "JPEG", "BMP"):
        assert read_image(encode(quadrants(), image_format)).shape == (40, 60, 3)
    with (
        pytest.raises(DataError, match=r"a\.tif: it is too large for Pillow to decode\. Make it smaller\. 9 pixels"),
        naming_the_image("a.tif"),
    ):
        raise Image.DecompressionBombError("9 pixels")


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(images, "_LARGE_BYTES", 100)
    data, inside, most = encode(quadrants(), "PNG"), [0], [0]
    whole = images._resize

    def watched(*arguments):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.005)
        inside[0] -= 1
        return whole(*arguments)

    monkeypatch.setattr(images, "_resize", watched)
    list(images.in_threads(lambda _: read_image(data, (8, 8)), range(8)))
    assert most == [1]


def test_a_kind_that_pillow_does_not_read_is_not_called_damaged_alone():
    values = np.zeros((2, 2, 3))
    data = bytearray(tiff_of(values))
    with_bits = bytes(data).replace(struct.pack("<3I", 16, 16, 16), struct.pack("<3I", 24, 24, 24))
    with pytest.raises(DataError, match=r"damaged, cut short, or of a kind that can't be read \(SyntaxError: unknown"):
        read_image(with_bits)
