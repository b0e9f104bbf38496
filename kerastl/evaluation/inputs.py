"""What `predict` may be given: paths, addresses, bytes, arrays, images of Pillow, and lists of these; and which pixels fit."""

import glob
import hashlib
import numbers
import os
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
from PIL import ImageOps

from kerastl.checks import received
from kerastl.data import images as image_files
from kerastl.errors import ArgumentError, DataError, warn
from kerastl.models.outputs import LARGEST_SCALED, scaled_range, warn_if_scaled


def list_images(images, white: float | None = None) -> list[tuple]:
    """Return `(name, image)` for each image: names are paths and addresses, or `image 0`, `image 1`, … for all else.

    Those of more than 8 bits a channel have one `white`: as given, or decided by all of them, which is said. `DataError`:
    there is nothing, or something that is no image.
    """
    if white is not None and not (isinstance(white, numbers.Real) and white > 0):
        raise ArgumentError(f"`white` must be the value that is white, such as 4095. {received(white=white)}")
    if isinstance(images, np.ndarray) and images.dtype.kind in "OUS":
        images = images.ravel().tolist()  # of paths
    if hasattr(images, "element_spec") or isinstance(images, keras.utils.PyDataset):
        raise DataError(
            "Expected images without labels. For a dataset with labels use `kerastl.evaluate`. "
            f"{received(images=type(images).__name__)}"
        )
    array = _as_array(images)
    if array is not None:
        if array.ndim != 4 and not (array.ndim == 3 and array.shape[-1] in (1, 3)):
            raise DataError(
                "Expected pixels 0-255, (height, width, 3) or (batch, height, width, 3). "
                f"{received(images=type(images).__name__, shape=array.shape)}"
            )
        items = list(array) if array.ndim == 4 else [array]
    elif isinstance(images, Iterable) and not isinstance(images, (str, bytes, dict, os.PathLike)):
        items = [one for index, item in enumerate(images) for one in _images_of(item, f"images[{index}]")]
    else:
        items = _images_of(images, "images")
    if not items:
        raise DataError(f"There are no images to predict. {received(images=images)}")
    named = [one if isinstance(one, tuple) else (f"image {index}", one) for index, one in enumerate(items)]
    return _scaled_alike(named, white)


def _scaled_alike(named: list, white: float | None) -> list:
    tops = list(image_files.in_threads(lambda one: _largest_value(one[1]), named))
    wide = [(top, name) for (name, _), top in zip(named, tops, strict=True) if top is not None]
    if wide and white is None:
        white, told = image_files.decide_white(wide)
        if told:
            warn(f"{told} If another value was white in training (`data.white`), pass it: `white=`.")
    return [(name, one if top is None else _scaled(one, white)) for (name, one), top in zip(named, tops, strict=True)]


def _largest_value(image) -> int | float | None:
    """Return the largest value of an image of more than 8 bits; `None` for any other, and for what will be refused."""
    if isinstance(image, np.ndarray):
        integers = image.dtype.kind in "iu" and image.dtype.itemsize > 1 and image.size
        return image.max().item() if integers and image.min() >= 0 and image.max() < 2**16 else None
    try:
        return image_files.largest_value(image)
    except DataError:
        return None


def _scaled(image, white: float):
    if isinstance(image, np.ndarray):
        return image_files.to_eight_bits(image, white)
    return image_files.WideFile((lambda: image) if isinstance(image, bytes) else image.read_bytes, white)


def _images_of(item, called: str) -> list:
    """Return what one item stands for: `(name, path)` for files, else the image itself."""
    if isinstance(item, (str, os.PathLike)) and item != "":  # which would be the working folder
        address = os.fspath(item)
        if isinstance(address, str) and "://" in address:
            return [(address, _download(address))]
        return [(str(path), path) for path in _paths(Path(os.fsdecode(address)).expanduser())]
    if isinstance(item, bytes):
        return [item]
    if hasattr(item, "getbands") and hasattr(item, "convert"):  # Pillow's, which its EXIF may still rotate
        image = ImageOps.exif_transpose(item)
        return [np.asarray(image if image_files.is_wide(image) else image_files.on_white(image).convert("RGB"))]
    array = _as_array(item)
    if array is not None and array.ndim in (2, 3):
        return [array]
    what = {called: item if item == "" else type(item).__name__ if array is None else array.shape}
    raise DataError(
        "Expected a path, a folder, a pattern such as 'photos/*.jpg', an address, bytes, an image (height, width, 3), or a "
        f"list of these. {received(**what)}"
    )


def _paths(path: Path) -> list[Path]:
    """Return the path of a file, those of all images in a folder and below, or those that a pattern stands for."""
    if path.is_dir():
        found, others = image_files.find_files(path)
        for notice in image_files.count_left_out(others)[1]:
            warn(notice)
        what = "in that folder"
    elif glob.has_magic(str(path)) and not path.exists():
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        what = "that fit the pattern"
    else:
        return [path]
    if not found:
        endings = ", ".join(sorted(image_files.IMAGE_SUFFIXES))
        raise DataError(f"There are no images ({endings}) {what}. {received(images=str(path))}")
    return found


def _download(address: str) -> Path:
    """Fetch a file, once for each address, into Keras's own cache."""
    if not address.startswith(("http://", "https://")):
        raise DataError(
            f"Only http and https addresses can be read. Copy the files here and pass their paths. {received(images=address)}"
        )
    name = hashlib.sha256(address.encode()).hexdigest()[:16] + Path(address.split("?")[0]).suffix[:8]
    try:
        return Path(keras.utils.get_file(name, address, cache_subdir="kerastl-images"))
    except Exception as error:  # urllib's errors, as plain exceptions
        raise DataError(f"{address} can't be downloaded: {error}. Download it, and pass the file's path.") from error


def _as_array(images) -> np.ndarray | None:
    """Return a NumPy array of anything that is an array or tensor of numbers, else `None`."""
    is_array = hasattr(images, "shape") or hasattr(images, "__array__")
    if not is_array or hasattr(images, "getbands"):  # images of Pillow are read by Pillow
        return None
    array = keras.ops.convert_to_numpy(images) if keras.ops.is_tensor(images) else np.asarray(images)
    return array if array.dtype.kind in "buif" else None


def check_range(takes: str | None, preprocessing, arrays=(), *, files: bool = False) -> None:
    """Raise `ArgumentError` where a model would be given pixels of another range than its own, as far as anyone can tell.

    `takes` is what `outputs.pixel_range` says of the model; one that shows no range takes `arrays` as they are. `files` says
    whether there are files as well, of pixels 0–255. `preprocessing` is "auto" where the model scales them itself, a callable
    over 0–255, or `None`: as they are. Warn of arrays that look scaled already.
    """
    is_auto = isinstance(preprocessing, str) and preprocessing == "auto"
    if not (preprocessing is None or is_auto or callable(preprocessing)):
        raise ArgumentError(
            f"`preprocessing` must be 'auto', None or a callable. {received(preprocessing=preprocessing)}"
        )
    black_and_white = np.broadcast_to(np.array([0, 255], "float32").reshape(2, 1, 1, 1), (2, 8, 8, 3))
    if takes == "0-255" and callable(preprocessing) and scaled_range(preprocess(black_and_white, preprocessing)):
        raise ArgumentError(
            "This model takes RGB 0–255, and scales them itself: they would be scaled twice. Leave `preprocessing` out. "
            f"{received(preprocessing=preprocessing)}"
        )
    if takes == "0-255" or callable(preprocessing):
        any(map(warn_if_scaled, arrays))  # the first that does says it
    if not is_auto or takes in ("0-255", "any"):
        return
    full = [one for one in arrays if one.size and (one.dtype.kind in "ui" or one.max() > LARGEST_SCALED)]
    if files or (takes == "scaled" and full):
        shows = "doesn't scale pixels itself" if takes is None else "is made for smaller numbers, such as 0–1"
        raise ArgumentError(
            f"The pixels are 0–255, and the model {shows}. Pass what was done to them in training: "
            "`preprocessing=lambda pixels: pixels / 255` for 0–1, `preprocessing=lambda pixels: pixels / 127.5 - 1` for −1…1, "
            "`preprocessing=keras.applications.resnet50.preprocess_input` for a ResNet50 of Keras, and so on; or "
            "`preprocessing=None` if it was trained on 0–255 as they are. "
            f"{received(preprocessing=preprocessing)}"
        )


def preprocess(images: np.ndarray, preprocessing) -> np.ndarray:
    """Return what a callable makes of pixels 0–255, or the images as they are for anything else."""
    if not callable(preprocessing):
        return images
    # Of a copy, as Keras's `preprocess_input` works in place
    given = np.asarray(keras.ops.convert_to_numpy(preprocessing(np.array(images, "float32"))))
    if given.shape != images.shape:
        raise ArgumentError(
            "`preprocessing` must return images of the same shape. "
            f"{received(preprocessing=preprocessing, shape_before=images.shape, shape_after=given.shape)}"
        )
    return given
