"""What `predict` may be given: files, folders, patterns, addresses, bytes, arrays, images of Pillow, and lists of these."""

import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np

from kerastl.checks import received
from kerastl.data import images as image_files
from kerastl.errors import DataError


def list_images(images) -> list[tuple[str, Path | bytes | np.ndarray]]:
    """Return `(name, image)` for each image: names are paths and addresses, or `image 0`, `image 1`, … for all else.

    Raises:
        DataError: nothing there, or something that is no image.
    """
    if isinstance(images, np.ndarray) and images.dtype.kind in "OUS":
        images = images.ravel().tolist()  # of paths
    if _is_dataset(images):
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
    return [one if isinstance(one, tuple) else (f"image {index}", one) for index, one in enumerate(items)]


def _is_dataset(images) -> bool:
    return hasattr(images, "element_spec") or isinstance(images, keras.utils.PyDataset)


def _images_of(item, called: str) -> list:
    """Return what one item stands for: `(name, path)` for files, else the image itself."""
    if isinstance(item, (str, os.PathLike)):
        address = os.fspath(item)
        if isinstance(address, str) and "://" in address:
            return [(address, _download(address))]
        return [(str(path), path) for path in _paths(Path(os.fsdecode(address)).expanduser())]
    if isinstance(item, bytes):
        return [item]
    if hasattr(item, "getbands") and hasattr(
        item, "convert"
    ):  # an image of Pillow, which may still be rotated by its EXIF
        from PIL import ImageOps

        return [np.asarray(ImageOps.exif_transpose(item).convert("RGB"))]
    array = _as_array(item)
    if array is not None and array.ndim in (2, 3):
        return [array]
    what = {called: type(item).__name__ if array is None else array.shape}
    raise DataError(
        "Expected a path, a folder, a pattern such as 'photos/*.jpg', an address, bytes, an image (height, width, 3), or a "
        f"list of these. {received(**what)}"
    )


def _paths(path: Path) -> list[Path]:
    """Return the path of a file, those of all images in a folder and below, or those that a pattern stands for."""
    if path.is_dir():
        found = image_files.find_files(path)[0]
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
    if not hasattr(images, "shape") and not hasattr(images, "__array__"):
        return None
    if hasattr(images, "getbands"):
        return None
    array = keras.ops.convert_to_numpy(images) if keras.ops.is_tensor(images) else np.asarray(images)
    return array if array.dtype.kind in "buif" else None
