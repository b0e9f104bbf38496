"""Data sets of TensorFlow Datasets, which `load_images` imports for these alone: prepared when needed, read by index."""

import contextlib
import errno
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets.public_api as tfds  # the package itself logs what fails in it, and goes on without its names
from google.protobuf.message import DecodeError

from kerastl.checks import nearest, received
from kerastl.data.images import largest_value, look_at_all, scale_alike
from kerastl.data.splitting import TRAIN, Catalogue, Image, splits_of
from kerastl.errors import DataError, OutputError
from kerastl.files import find_data_dir

_FILE_KEYS = ("file", "image/filename", "filename", "file_name")  # what data sets call an image's own name
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENOSPC}
_NOT_WRITABLE.add(getattr(errno, "EDQUOT", errno.ENOSPC))


def catalogue_tfds(name: str, data_dir: str | os.PathLike | None = None, *, verbose: int = 1) -> Catalogue:
    """Return the catalogue of the data set `name` (`"beans"`, `"name/config:1.0.0"`), downloaded and prepared if need be."""
    try:
        builder = tfds.builder(name, data_dir=find_data_dir(data_dir), try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise DataError(
            f"TensorFlow Datasets knows no data set {name!r}.{nearest(name.split('/')[0].split(':')[0], known)}"
            f" {received(source=f'tfds:{name}')}"
        ) from None
    # A wrong configuration or version shows as ValueError, AssertionError, KeyError, … according to the data set.
    except Exception as error:
        raise DataError(f"The data set tfds:{name} can't be set up. {_first_lines(error)}") from error
    return catalogue_builder(prepare(builder, verbose=verbose), verbose=verbose)


def prepare(builder, *, verbose: int = 1):
    """Return the builder, its data downloaded and prepared; whole or not at all, as TFDS does it.

    What fails is an `OutputError` where the folder can't be written, else a `DataError`.
    """
    prepared = Path(builder.data_dir, "dataset_info.json")  # TFDS's own question logs a warning where it isn't there
    if prepared.is_file():
        return builder
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.ExitStack() as quiet:
            if not verbose:
                quiet.enter_context(contextlib.redirect_stdout(None))
                # TFDS can switch its bars but not tell how they are switched; without this field they come on again.
                if getattr(tfds.core.utils.tqdm_utils, "_active", True):
                    quiet.callback(tfds.enable_progress_bar)
                tfds.disable_progress_bar()
            builder.download_and_prepare(download_config=config, file_format="tfrecord")
    # Requests, checksums, missing extra packages, manual downloads, …: every data set fails in its own way.
    except Exception as error:
        if prepared.is_file():  # another process was faster
            return tfds.builder_from_directory(builder.data_dir)
        if getattr(error, "errno", None) in _NOT_WRITABLE:
            raise OutputError(f"Can't write the data set to {builder.data_dir}: {_first_lines(error)}") from error
        raise DataError(
            f"The data set {builder.info.full_name} is not in {builder.data_dir}, and downloading or preparing it"
            f" failed. {type(error).__name__}: {_first_lines(error)}"
        ) from error
    return builder


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) or repr(error)


def catalogue_builder(builder, *, verbose: int = 1) -> Catalogue:
    """Return the catalogue of a prepared TFDS builder.

    Every image's bytes are read once, for the digests; only images of more than 8 bits a channel are decoded.
    """
    image_key, label_key = _image_and_label(builder)
    name, features = f"tfds:{builder.info.full_name}", dict(builder.info.features)
    if np.dtype(features[image_key].np_dtype).kind == "f":
        raise DataError(
            f"{name} holds images of floats, which only TFDS reads. Write them to a folder as 16-bit PNG or TIFF."
        )
    class_names = tuple(features[label_key].names)
    file_key = next((key for key in _FILE_KEYS if isinstance(features.get(key), tfds.features.Text)), None)
    keys = [key for key in (label_key, file_key) if key]

    def read(record: Callable) -> bytes:
        return _parse(record, image_key)[0]

    def look_at(record: Callable) -> tuple[bytes, int | float | None, dict]:
        data, values = _parse(record, image_key, keys)
        return hashlib.sha256(data).digest(), largest_value(data, f"in {name}"), values

    images, largest, notices = [], [], []
    for part, split in _splits(builder).items():
        records = _records(builder, split)
        looks = look_at_all(look_at, records, verbose=verbose)
        if any(not 0 <= values[label_key] < len(class_names) for *_, values in looks):
            if part == TRAIN:
                raise DataError(f"The training images of {name} have labels outside its classes.")
            notices.append(f"The split {split!r} of {name} has no labels and is left out.")
            continue
        for index, (record, (digest, top, values)) in enumerate(zip(records, looks, strict=True)):
            file = values[file_key].decode() if file_key else f"{split}[{index}]"
            images.append(Image(values[label_key], part, file, digest, functools.partial(read, record)))
            largest.append(top)
    images, told = scale_alike(images, largest)
    licence = builder.info.redistribution_info.license or None
    return Catalogue(name, class_names, images, licence=licence, notices=(*notices, *told))


def _image_and_label(builder) -> tuple[str, str]:
    """Return the keys of the image and of its class: the supervised pair, or the only features of their kind."""
    features, pair = builder.info.features, builder.info.supervised_keys or ()
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if len(pair) == 2 and pair[0] in images and pair[1] in labels:
        return pair
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise DataError(
        f"{builder.info.full_name} is no image classification data set: it needs one image and one class label per"
        f" example. {received(features=list(features))}"
    )


def _splits(builder) -> dict[str, str]:
    """Return what each split of the data set is used as: train, validation or test → its name."""
    names = [name for name in builder.info.splits if builder.info.splits[name].num_examples]
    found = {split: name for name, split in reversed(splits_of(names).items()) if split}
    if TRAIN not in found and len(names) != 1:
        raise DataError(f"{builder.info.full_name} has no 'train' split. {received(splits=names)}")
    return found if TRAIN in found else {TRAIN: names[0]}


def _records(builder, split: str) -> list[Callable]:
    """Return a function for each record of the split that reads its bytes."""
    file_format, info = builder.info.file_format, builder.info.splits[split]
    if file_format is tfds.core.FileFormat.ARRAY_RECORD:
        records = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        return [functools.partial(records.__getitem__, index) for index in range(len(records))]
    if file_format is not tfds.core.FileFormat.TFRECORD:
        raise DataError(
            f"{builder.data_dir} is prepared in a format that can't be read by index. Choose another `data_dir`."
            f" {received(file_format=file_format.value)}"
        )
    records = [record for path in info.filepaths for record in _records_in(Path(path))]
    if len(records) != info.num_examples:
        raise DataError(f"The files in {builder.data_dir} are damaged. Delete the folder: it is prepared again.")
    return records


def _records_in(path: Path) -> Iterator[Callable]:
    """Yield a function for each record of a TFRecord file, which TensorFlow reads in sequence only.

    A record is its length (8 bytes, little-endian), a checksum (4), the data, a checksum (4): lengths lead to all others.
    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        while (start := file.tell()) < size:
            length = int.from_bytes(file.read(8), "little")
            # Opened anew for each record, as threads would move one another's position in a shared file.
            yield functools.partial(np.fromfile, path, np.uint8, length, offset=start + 12)
            file.seek(start + 12 + length + 4)
        if file.tell() != size:
            raise DataError(f"{path} is cut short. Delete its folder: it is prepared again.")


def _parse(record: Callable, image_key: str, keys=()) -> tuple[bytes, dict]:
    """Return the image of a record, encoded, and the values of other features."""
    try:
        features = tf.train.Example.FromString(bytes(record())).features.feature
        values = {key: (features[key].bytes_list.value or features[key].int64_list.value)[0] for key in keys}
        return features[image_key].bytes_list.value[0], values
    except (DecodeError, IndexError) as error:
        raise DataError("A record of the data set is damaged. Delete its folder: it is prepared again.") from error
