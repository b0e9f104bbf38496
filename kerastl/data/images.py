"""Reading one image, upright and RGB, and resizing: the same for training and for prediction.

Everything goes through Pillow. What comes out is `(height, width, 3)`, RGB, 0–255.
"""

import collections
import concurrent.futures
import contextlib
import io
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError, DataError

RESIZES = ("squash", "crop", "pad")
"""The ways to bring an image to another shape; the first is the default."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"})
"""Files are taken for images by these endings, in lower case."""

# Naming the formats keeps Pillow from trying others, some of which start programs (EPS starts Ghostscript).
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_HIDDEN_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})
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


def read_image(
    source, image_size: tuple[int, int] | None = None, resize: str = RESIZES[0], *, name: str | None = None
) -> np.ndarray:
    """Read a JPEG, PNG, BMP, GIF, WEBP or TIFF image as upright RGB, uint8 `(height, width, 3)`.

    EXIF rotation is applied; of animations and multi-page files the first frame is read; grey, palette and CMYK become
    RGB; 16-bit grey is divided by 257 (65535 becomes 255); transparent parts are laid on white, as a page shows them.
    With an `image_size`, a JPEG more than six times as large is decoded at a reduced scale: several times faster, and
    within three of 255 levels of a full decode on photographs, within eight where neighbouring pixels are noise.

    `source` is a path, the bytes of an image file, or a function that returns them; `name`, what errors call it. Raises
    `DataError` for what can't be read, and for pixels without a fixed white (floating point).
    """
    with naming_the_image(name or str(source)):
        if not isinstance(source, bytes):
            source = source() if callable(source) else _content_of(Path(source))
        image, reduction = _decode(source, image_size)
        # Grey is resized before it becomes three equal channels: the same result at a third of the work.
        image = image if image_size is None else _resize(image, image_size, resize, reduction)
        return np.array(image.convert("RGB"))


def _content_of(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise DataError("it is a folder, a pipe or a device, not a file.")
    return path.read_bytes()


@contextlib.contextmanager
def naming_the_image(name: str):
    """Turn whatever goes wrong while an image is read into a `DataError` that names it.

    Pillow's decoders raise a dozen kinds of exceptions on damaged files (OSError, SyntaxError, struct.error, …).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except Exception as error:
        reason = f"it is damaged or cut short ({type(error).__name__}: {error})."
        if isinstance(error, DataError):
            reason = str(error)
        elif isinstance(error, UnidentifiedImageError):
            reason = "it is not a JPEG, PNG, BMP, GIF, WEBP or TIFF image."
        elif isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            reason = f"it says that it is too large to be true. {error}"
        elif isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror}."
        raise DataError(f"Can't read the image {name}: {reason}") from error


def resize_image(image, image_size: tuple[int, int], resize: str = RESIZES[0]) -> np.ndarray:
    """Return one image resized by antialiased bilinear interpolation, the ways as in `load_images`.

    From `(height, width, 3)`, or grey as `(height, width)` or `(height, width, 1)`, in 0–255, it becomes
    `(height, width, 3)`: uint8 where it holds integers, float32 for floats. Any other array is a `DataError`.
    """
    from PIL import Image

    array = _rgb_array(image)
    if array.shape[:2] == image_size:
        return array.copy()
    if array.dtype == np.uint8:
        return np.array(_resize(Image.fromarray(array), image_size, resize))
    # Pillow resizes floats one channel at a time.
    channels = [Image.fromarray(np.ascontiguousarray(array[..., channel])) for channel in range(3)]
    return np.stack([np.asarray(_resize(channel, image_size, resize)) for channel in channels], axis=-1)


def find_files(folder: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """Return `(images, others)`: the files under `folder`, sorted, hidden ones left out, links to folders followed.

    Images are told by their ending (`IMAGE_SUFFIXES`), not opened.
    """
    found, visited, top = ([], []), set(), os.path.join(os.path.realpath(folder), "")
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited or (parent != os.fspath(folder) and top.startswith(os.path.join(real, ""))):
            folders.clear()  # a link back, to what was read already or to a folder above
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for path in (Path(parent, name) for name in files if not is_hidden(name)):
            if not path.is_file():  # a pipe or a device
                continue
            found[path.suffix.lower() not in IMAGE_SUFFIXES].append(path)
    return sorted(found[0]), sorted(found[1])


def is_hidden(name: str) -> bool:
    """Return whether a file or folder name is one that operating systems and notebooks leave behind."""
    return name.startswith(".") or name.lower() in _HIDDEN_NAMES


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


def _decode(data: bytes, image_size: tuple[int, int] | None):
    """Return an upright Pillow image of mode `L` or `RGB`, and how many times smaller than the file's it is."""
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    reduction = _reduction(image, image_size)
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    image.load()
    # Broken EXIF data is common and says nothing about the pixels, which are fine.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return _eight_bit(image), reduction


def _reduction(image, image_size: tuple[int, int] | None) -> int:
    """Return at which fraction of its size (1, a half, a quarter, an eighth) a JPEG should be decoded."""
    if image_size is None or image.format not in ("JPEG", "MPO"):
        return 1
    # Both sides need the larger bound: the image may yet be rotated, or cropped to its short side.
    largest = min(image.size) / (_DECODED_OVER_WANTED * max(image_size))
    # Sizes that don't divide would leave a last row or column that is only partly covered, and shift the rest.
    exact = (by for by in (8, 4, 2) if image.width % by == image.height % by == 0)
    return next((by for by in exact if by <= largest), 1)


def _eight_bit(image):
    """Return `image` as mode `L` (grey) or `RGB`."""
    from PIL import Image

    if image.mode == "F":
        raise DataError(
            "its pixels are floating-point numbers, which have no fixed white. Save it with 8 or 16 bits per channel."
        )
    if image.mode in _SIXTEEN_BIT_MODES:
        # `Image.convert` would clip at 255 and turn nearly everything white.
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise DataError("its pixels lie outside 0–65535. Save it with 8 or 16 bits per channel.")
        return Image.fromarray(np.round(array / 257).astype(np.uint8))
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def _resize(image, image_size: tuple[int, int], resize: str, reduction: int = 1):
    """Resize a Pillow image of mode `L`, `RGB` or `F` that may have been decoded at a fraction of its size."""
    from PIL import Image

    height, width = image_size
    bilinear = Image.Resampling.BILINEAR
    if resize == "squash" or image.size == (width, height):
        return image.resize((width, height), bilinear)  # of its own size a copy
    if resize == "crop":
        # The part is chosen in whole pixels of the file, so that decoding at a fraction doesn't move it.
        full_width, full_height = image.width * reduction, image.height * reduction
        scale = min(full_width / width, full_height / height)
        part_width, part_height = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (full_width - part_width) // 2, (full_height - part_height) // 2
        box = (left, top, left + part_width, top + part_height)
        return image.resize((width, height), bilinear, box=tuple(edge / reduction for edge in box))
    scale = min(width / image.width, height / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(image.resize(inner, bilinear), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _rgb_array(image) -> np.ndarray:
    """Return `(height, width, 3)`, uint8 or float32."""
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
            "Integer pixels must lie in 0–255; divide 16-bit values by 257."
            f" {received(smallest=int(array.min()), largest=int(array.max()))}"
        )
    array = array.astype("float32" if kind == "f" else "uint8", copy=False)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
