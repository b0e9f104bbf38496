"""Reading one image by Pillow, upright and RGB, and resizing: the same for training and for prediction."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, features

from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError, DataError
from kerastl.tables import readable_bytes

RESIZES = ("squash", "crop", "pad")
"""The ways to bring an image to another shape; the first is the default."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"})
"""Files with these endings, in lower case, are taken for images; those with unknown ones by their content."""

# How files of each format begin, whatever their names say. Of no other do we ask Pillow: some start programs (EPS).
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "BMP": rb"BM.{4}\0{4}",
    "DIB": rb"[\x28\x34\x38\x6c\x7c]\0{3}.{8}\x01\0[\x01\x04\x08\x10\x18\x20]\0",
    "AVIF": rb"....ftyp.*avi[fs]",
    "HEIF": rb"....ftyp.*(hei|hev|mif1|msf1)",
}
_HEAD = 32  # bytes, enough for these
_INSTALL = {"AVIF": "pip install --upgrade pillow", "HEIF": "pip install pillow-heif"}
_OPTIONAL_SUFFIXES = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF"}
_RAW_SUFFIXES = (".jp2", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw")  # by content, some would be taken for TIFF
_LEFTOVERS = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", ".ds_store", ".ipynb_checkpoints")
_WHITES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits
_FEW_IMAGES = 10
_MOST_BYTES = 2**30  # of an image decoded
_LARGE_BYTES = 2**27  # decoded one at a time, as every thread would hold one
_ONE_AT_A_TIME = threading.Lock()
# A JPEG can be decoded at a half, a quarter or an eighth of its size at a fraction of the cost. Leaving at least three
# times the wanted size keeps photographs within three of 255 levels of a full decode (a test holds it).
_DECODED_OVER_WANTED = 3
_SECONDS_BEFORE_PROGRESS = 3.0
_LARGEST_SIDE = 8192  # a batch of 32 takes 6 GB then
_THREADS = min(32, (os.cpu_count() or 1) + 2)  # two more than cores, as some always wait for the disk


def check_image_size(image_size) -> tuple[int, int]:
    """Return a whole number or a `(height, width)` pair in pixels as a pair; raise `ArgumentError` for anything else."""
    sides = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2:
        raise ArgumentError(f"`image_size` must be one number or (height, width). {received(image_size=image_size)}")
    height, width = (check_count("image_size", side, largest=_LARGEST_SIDE, unit="pixels") for side in sides)
    return height, width


@dataclasses.dataclass(frozen=True)
class WideFile:
    """Returns the bytes of an image file of more than 8 bits a channel, and says which value is white in it."""

    read: Callable[[], bytes]
    white: float

    def __call__(self) -> bytes:
        return self.read()


def read_image(
    source, image_size: tuple[int, int] | None = None, resize: str = RESIZES[0], *, name: str | None = None
) -> np.ndarray:
    """Read a JPEG, PNG, BMP, GIF, WEBP, TIFF, AVIF or HEIC image as upright RGB, uint8 `(height, width, 3)`.

    EXIF rotation is applied; of animations and multi-page files the first frame is read; grey, palette and CMYK become
    RGB; transparent parts are laid on white, as a page shows them. Of more than 8 bits a channel, 0 to white becomes
    0–255: to the white that a `WideFile` says, else to what `decide_white` says of this image alone. With an `image_size`, a
    JPEG more than six times as large is decoded at a reduced scale: several times faster, and within three of 255 levels
    of a full decode on photographs, within eight where neighbouring pixels are noise.

    `source` is a path, bytes, or a function that returns them; `name`, what the `DataError` for others calls it.
    """
    with naming_the_image(name or source):
        image, low = _open_both(source)
        reduction = _reduction(image, image_size)
        with _turn(image, reduction):
            image, numbers = _decode(image, low, reduction)
            if numbers is not None:
                white = getattr(source, "white", None) or decide_white([(numbers.max().item(), "")])[0]
                image = _with_pixels(image, to_eight_bits(numbers, white))
            image = on_white(image)
            # Grey is resized before it becomes three equal channels: the same result at a third of the work.
            image = image if image_size is None else _resize(image, image_size, resize, reduction)
            return np.array(image.convert("RGB"))


def largest_value(source: bytes | Path, name: str | None = None) -> int | float | None:
    """Return the largest value of an image of more than 8 bits a channel; `None` for others, which are not decoded."""
    if isinstance(source, Path) and _format_in(source) not in ("PNG", "TIFF"):
        return None
    with naming_the_image(name or source):
        image, low = _open_both(source)
        if low is None and not is_wide(image):
            return None
        with _turn(image):
            return _decode(image, low)[1].max().item()


def size_in_file(source, name: str | None = None) -> tuple[int, int]:
    """Return height and width of an image as its file holds it, in pixels, without decoding it; raise as `read_image`."""
    with naming_the_image(name or source):
        return _open_both(source)[0].size[::-1]


def decide_white(largest: list[tuple[int | float, str]]) -> tuple[int, str | None]:
    """Return which value is white in images of more than 8 bits a channel, and what to say of it.

    A camera of 12 bits writes 0–4095 into files of 16. So white is the next of 255, 1023, 4095, 16383 and 65535 that no
    image of a data set goes beyond, or 1 for floats. By each image alone, brightness would depend on what it shows.
    `largest` holds the largest value and the name of each.
    """
    floats = {isinstance(value, float) for value, _ in largest}
    if len(floats) > 1:
        raise DataError("Images of floats and of 16-bit integers can't be scaled alike. Save all of them in one way.")
    top, name = max(largest)
    whites, slack = ((1, *_WHITES), 1.001) if True in floats else (_WHITES, 1)  # floats are rounded
    white = next(white for white in whites if top <= slack * white)
    few = " So few images may not show what is white." if len(largest) < _FEW_IMAGES else ""
    told = f"Images of more than 8 bits a channel ({len(largest)}) use 0–{white}: their largest value is {top:g}, in {name}."
    return white, None if white == 255 else f"{told} That range becomes 0–255.{few}"


def scale_alike(images: list, largest: list) -> tuple[list, list[str]]:
    """Return images of a catalogue, by the `largest_value` of each bound to one white, and what to say of it."""
    wide = [(value, image.file) for image, value in zip(images, largest, strict=True) if value is not None]
    white, told = decide_white(wide) if wide else (None, None)
    scaled = []
    for image, value in zip(images, largest, strict=True):
        if value is not None:
            digest = hashlib.sha256(image.digest + f"white {white}".encode()).digest()  # other pixels are other data
            image = dataclasses.replace(image, read=WideFile(image.read, white), digest=digest)
        scaled.append(image)
    return scaled, [told] if told else []


@contextlib.contextmanager
def naming_the_image(name: object):
    """Turn whatever goes wrong while an image is read into a `DataError` that names it."""
    try:
        yield
    except Exception as error:  # on damaged files Pillow's decoders raise a dozen kinds
        if isinstance(error, DataError):
            reason = str(error)
        elif isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            reason = f"it is too large for Pillow to decode. Make it smaller. {error}"
        elif isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror}."
        else:
            reason = f"it is damaged, cut short, or of a kind that can't be read ({type(error).__name__}: {error})."
        raise DataError(f"Can't read the image {'bytes' if isinstance(name, bytes) else name}: {reason}") from error


def resize_image(image, image_size: tuple[int, int], resize: str = RESIZES[0]) -> np.ndarray:
    """Return one image resized by antialiased bilinear interpolation, the ways as in `load_images`.

    From `(height, width, 3)`, or grey as `(height, width)` or `(height, width, 1)`, in 0–255, it becomes
    `(height, width, 3)`: uint8 where it holds integers, float32 for floats. Any other array is a `DataError`.
    """
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., np.newaxis]
    if array.ndim != 3 or array.shape[-1] not in (1, 3) or array.size == 0:
        raise DataError(
            "An image must be an array (height, width, 3), or grey as (height, width) or (height, width, 1)."
            f" {received(shape=np.shape(image))}"
        )
    kind = array.dtype.kind
    if kind not in "iuf":
        raise DataError(f"An image must hold integers or floats. {received(dtype=str(array.dtype))}")
    if kind != "f" and array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        raise DataError(
            "Integer pixels must lie in 0–255. Scale them so that 0 is black and 255 white."
            f" {received(smallest=int(array.min()), largest=int(array.max()))}"
        )
    array = array.astype("float32" if kind == "f" else "uint8", copy=False)
    array = np.broadcast_to(array, (*array.shape[:2], 3))
    if array.shape[:2] == image_size:
        return array.copy()
    if array.dtype == np.uint8:
        return np.array(_resize(Image.fromarray(array), image_size, resize))
    # Pillow resizes floats one channel at a time.
    channels = [_resize(Image.fromarray(channel), image_size, resize) for channel in np.moveaxis(array, -1, 0)]
    return np.stack(channels, axis=-1)


def find_files(folder: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """Return `(images, others)`: the files under `folder`, sorted, links followed. Hidden folders are others, as one."""
    images, others = [], []
    visited = {*map(str, Path(os.path.realpath(folder)).parents)}
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link back, to what was read already or to a folder above
            folders.clear()
            continue
        visited.add(real)
        others += [Path(parent, name) for name in folders if is_hidden(name)]
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for path in (Path(parent, name) for name in files):
            # no pipe and no device; a link to nothing is a file that can't be read
            if path.is_file() or not os.path.exists(path):
                (images if is_image_file(path) else others).append(path)
    return sorted(images), sorted(others)


def is_image_file(path: Path) -> bool:
    """Return whether a file is taken for an image: by its ending, where that says nothing by its content."""
    suffix = path.suffix.lower()
    if is_hidden(path.name) or suffix in _RAW_SUFFIXES:
        return False
    if suffix in _OPTIONAL_SUFFIXES:
        return _OPTIONAL_SUFFIXES[suffix] in _openers()
    return suffix in IMAGE_SUFFIXES or _format_in(path) is not None


def is_hidden(name: str) -> bool:
    """Return whether a file or folder name is one that operating systems and notebooks leave behind."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def count_left_out(paths: Iterable[Path]) -> tuple[dict[str, int], list[str]]:
    """Return how many files there are of each ending, or of what left them behind; and what to say of photographs."""
    counts = collections.Counter()
    for path in paths:
        left_behind = path.name if path.name.lower() in _LEFTOVERS else "dot files"
        counts[left_behind if is_hidden(path.name) else path.suffix.lower() or "without ending"] += 1
    photographs = sorted(kind for kind in counts if kind in (*_RAW_SUFFIXES, *_OPTIONAL_SUFFIXES))
    if not photographs:
        return dict(counts), []
    listing = ", ".join(f"{counts[kind]} {kind}" for kind in photographs)
    commands = sorted({_INSTALL[_OPTIONAL_SUFFIXES[kind]] for kind in photographs if kind in _OPTIONAL_SUFFIXES})
    advice = f"Install what reads them (`{'`, `'.join(commands)}`), or convert" if commands else "Convert"
    return dict(counts), [f"Left out, as these formats can't be read: {listing}. {advice} them to JPEG or PNG."]


def in_threads(function: Callable, items: Iterable, *, threads: int = _THREADS, ahead: int = 4 * _THREADS) -> Iterator:
    """Yield `function(item)` in the order of `items`, worked out in threads, up to `ahead` of them in advance."""
    items, executor = iter(items), concurrent.futures.ThreadPoolExecutor(threads)
    try:
        futures = collections.deque(executor.submit(function, item) for item in itertools.islice(items, ahead))
        while futures:
            result = futures.popleft().result()
            futures.extend(executor.submit(function, item) for item in itertools.islice(items, 1))
            yield result
    finally:
        executor.shutdown(cancel_futures=True)


def look_at_all(function: Callable, items: Sequence, *, verbose: int) -> list:
    """Return `function(item)` for each item, worked out in threads, with a bar when it takes seconds."""
    import keras

    started, shown, results = time.monotonic(), False, []
    bar = keras.utils.Progbar(len(items), unit_name="image")  # made now, so that its estimate counts from here
    for result in in_threads(function, items):
        results.append(result)
        if not shown and verbose and time.monotonic() - started > _SECONDS_BEFORE_PROGRESS:
            print("Reading the images", flush=True)
            shown = True
        if shown:
            bar.update(len(results))
    return results


def _format_of(head: bytes) -> str | None:
    return next((name for name, pattern in _SIGNATURES.items() if re.match(pattern, head, re.DOTALL)), None)


def _format_in(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        if path.is_file():  # a pipe would be waited for
            with path.open("rb") as file:
                return _format_of(file.read(_HEAD))
    return None


@functools.lru_cache(maxsize=1)
def _openers() -> dict[str, Callable]:
    """Return what opens each format that can be read here."""
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    missing = () if "avif" in features.get_supported() else ("AVIF",)
    return {name: Image.OPEN[name][0] for name in _SIGNATURES if name in Image.OPEN and name not in missing}


def _open(content: bytes):
    """Return a Pillow image, not decoded. `Image.open` would refuse JPEGs that can be decoded at a reduced size."""
    name = _format_of(content[:_HEAD])
    if name in _openers():
        return _openers()[name](io.BytesIO(content), "")
    if name:
        raise DataError(f"it is {name}, which is read after `{_INSTALL[name]}`. Or convert it to JPEG or PNG.")
    raise DataError("it is not a JPEG, PNG, BMP, GIF, WEBP, TIFF, AVIF or HEIC image.")


def _open_both(source) -> tuple:
    """Return a Pillow image, and one of the low bytes of 16-bit colors (else `None`), neither decoded.

    Of 16-bit colors Pillow keeps the high bytes. Told the other byte order, it takes the low ones for these.
    """
    content = source() if callable(source) else source
    if not isinstance(content, bytes):
        if os.path.exists(content) and not os.path.isfile(content):  # reading a pipe or a device may never end
            raise DataError("it is a folder, a pipe or a device, not a file.")
        content = Path(content).read_bytes()
    image, tiles = _open(content), []
    if image.format == "TIFF" and image.tag_v2.get(284) == 2 and image.tag_v2[258][0] == 16:
        raise DataError(
            "its channels of 16 bits lie apart (PlanarConfiguration 2). Save it with those of a pixel together."
        )
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    for tile in image.tile:
        *place, options = tile
        mode, *more = (options,) if isinstance(options, str) else options or ("",)
        if not re.fullmatch("RGB[AX]?;16[BLN]", str(mode)):
            return image, None
        mode = mode[:-1] + swapped[mode[-1]]
        tiles.append(tuple.__new__(type(tile), (*place, (mode, *more) if more else mode)))
    if not tiles:
        return image, None
    low = _open(content)
    low.tile = tiles
    return image, low


def _decode(image, low, reduction: int = 1) -> tuple:
    """Return an image decoded and upright, and of more than 8 bits a channel its values, without alpha (else `None`)."""
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    for one in filter(None, (image, low)):
        one.load()
        # Broken EXIF data is common and says nothing about the pixels, which are fine.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(one, in_place=True)
    if low is None and not is_wide(image):
        return image, None
    numbers = np.asarray(image)
    if low is not None:
        numbers = numbers[..., :3] * np.uint16(256) + np.asarray(low)[..., :3]
    if not 0 <= numbers.min() <= numbers.max() <= _WHITES[-1]:  # NaN neither
        raise DataError(
            f"its pixels lie outside 0–{_WHITES[-1]}. Scale them so that 0 is black, and save it again."
            f" {received(smallest=numbers.min().item(), largest=numbers.max().item())}"
        )
    return image, numbers


def is_wide(image) -> bool:
    """Return whether a Pillow image holds values of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_eight_bits(numbers: np.ndarray, white: float) -> np.ndarray:
    """Return values as uint8: 0 to `white` becomes 0–255, what lies above 255."""
    return np.minimum(np.rint(numbers * (255 / white)), 255).astype(np.uint8)


def _with_pixels(image, pixels: np.ndarray):
    """Return an image of 8 bits that stands for one of more."""
    # Zero as white (PhotometricInterpretation 0) is known to Pillow in 8 bits only.
    found = Image.fromarray(255 - pixels if image.format == "TIFF" and image.tag_v2.get(262) == 0 else pixels)
    if image.mode == "RGBA":
        found.putalpha(image.getchannel("A"))
    return found


def on_white(image):
    """Return an image of 8 bits a channel as mode `L` (grey) or `RGB`, transparent parts laid on white."""
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _decoded_bytes(image, reduction: int = 1) -> int:
    per_pixel = 1 if image.mode in ("1", "L", "P") else 4
    # A progressive JPEG is held as a whole, whatever size is asked for.
    return image.width * image.height * per_pixel // (1 if image.info.get("progressive") else reduction**2)


def _turn(image, reduction: int = 1):
    """Return the context to decode an image in; raise where it would fill the memory."""
    size = _decoded_bytes(image, reduction)
    if size > _MOST_BYTES:
        raise DataError(
            f"its {image.width}×{image.height} pixels would take {readable_bytes(size)} of memory, over"
            f" {readable_bytes(_MOST_BYTES)}. Make it smaller, or save it as JPEG (not progressive), which is read at a"
            " reduced size."
        )
    return _ONE_AT_A_TIME if size > _LARGE_BYTES else contextlib.nullcontext()


def _reduction(image, image_size: tuple[int, int] | None) -> int:
    """Return at which fraction of its size (1, a half, a quarter, an eighth) a JPEG should be decoded."""
    if image_size is None or image.format not in ("JPEG", "MPO"):
        return 1
    # Both sides need the larger bound: the image may yet be rotated, or cropped to its short side.
    largest = min(image.size) / (_DECODED_OVER_WANTED * max(image_size))
    # Sizes that don't divide would leave a last row or column that is only partly covered, and shift the rest; by too
    # little to see where the image is too large for anything else.
    huge = _decoded_bytes(image) > _MOST_BYTES
    exact = (by for by in (8, 4, 2) if huge or image.width % by == image.height % by == 0)
    return next((by for by in exact if by <= largest), 1)


def _resize(image, image_size: tuple[int, int], resize: str, reduction: int = 1):
    """Resize a Pillow image of mode `L`, `RGB` or `F` that may have been decoded at a fraction of its size."""
    size, bilinear = image_size[::-1], Image.Resampling.BILINEAR
    if resize == "squash" or image.size == size:
        return image.resize(size, bilinear)  # of its own size a copy
    if resize == "crop":
        # The part is chosen in whole pixels of the file, so that decoding at a fraction doesn't move it.
        box = _in_the_middle((image.width * reduction, image.height * reduction), size)
        return image.resize(size, bilinear, box=tuple(edge / reduction for edge in box))
    left, top, right, bottom = _in_the_middle(size, image.size)
    canvas = Image.new(image.mode, size)
    canvas.paste(image.resize((right - left, bottom - top), bilinear), (left, top))
    return canvas


def _in_the_middle(whole: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest box of the proportions of `shape` in the middle of `whole`: left, top, right, bottom."""
    scale = min(whole[0] / shape[0], whole[1] / shape[1])
    width, height = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return left, top, left + width, top + height
