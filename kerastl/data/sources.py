"""Data sets of TensorFlow Datasets, and ELPV, as catalogues: prepared when needed, and read by index.

ELPV, electroluminescence photographs of solar cells, is a TensorFlow Datasets builder of our own: it prepares itself from the
installed package `elpv-dataset` (the `demo` extra) and opens no connection. Importing this file registers it, so that
`tfds.load("elpv")` works too. `load_images` imports it only when asked for one of these data sets.
"""

import contextlib
import csv
import dataclasses
import errno
import functools
import hashlib
import importlib.resources
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from kerastl.checks import nearest, received
from kerastl.data.images import in_threads, with_progress
from kerastl.data.splitting import SPLIT_FOLDERS, TRAIN, Catalogue
from kerastl.errors import BackendError, DataError, KerastlError, OutputError

_FILE_KEYS = ("file", "image/filename", "filename", "file_name")  # what data sets call an image's own name
_NOT_WRITABLE = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)
_NO_SPACE = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
_RECORD_LENGTH_BYTES, _RECORD_HEADER_BYTES, _RECORD_FOOTER_BYTES = 8, 12, 4

_PACKAGE = "elpv_dataset"
# Of the labels in elpv-dataset 1.0.0.post1: other labels would be another version of the data set.
_LABELS_SHA256 = "0abe6fe7700aea571717d7d7dfec005a47c6207b4cde26a4556b6807a115483d"
_LICENCE = "CC BY-NC-SA 4.0 (non-commercial use only)"
_CLASS_NAMES = ("functional", "defective")
_DESCRIPTION = """\
2,624 photographs of solar cells under electroluminescence, 300×300 pixels, 8-bit grey. Experts gave each cell a probability
of being defective (0, 1/3, 2/3 or 1) and the type of its module (mono- or polycrystalline). The binary label is "defective"
where the probability exceeds 0.5: 1,803 functional, 821 defective cells. For non-commercial use only (CC BY-NC-SA 4.0).
"""
_CITATION = """\
@Article{Deitsch2019,
  author    = {Deitsch, Sergiu and Christlein, Vincent and Berger, Stephan and Buerhop-Lutz, Claudia and Maier, Andreas
               and Gallwitz, Florian and Riess, Christian},
  title     = {Automatic classification of defective photovoltaic module cells in electroluminescence images},
  journal   = {Solar Energy},
  year      = {2019},
  volume    = {185},
  pages     = {455--468},
  doi       = {10.1016/j.solener.2019.02.067},
}
"""


class Elpv(tfds.core.GeneratorBasedBuilder):
    """ELPV with one split, `train`, in the order of the package's table of labels."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The photographs and labels of elpv-dataset 1.0.0.post1."}  # noqa: RUF012  TFDS's own way

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(300, 300, 1), dtype=np.uint8, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=_CLASS_NAMES),
            "defect_probability": tfds.features.Scalar(np.float32),
            "cell_type": tfds.features.ClassLabel(names=("mono", "poly")),
            "file": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zae-bayern/elpv-dataset",
            citation=_CITATION,
            license=_LICENCE,
            disable_shuffling=True,  # `load_images` shuffles and splits, by its seed
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        folder = _package_data()
        for file, probability, cell_type in _read_labels(folder.joinpath("labels.csv").read_bytes()):
            yield (
                file,
                {
                    # The PNG's own bytes are stored: the pixels are not encoded again.
                    "image": folder.joinpath(*file.split("/")).read_bytes(),
                    "label": _CLASS_NAMES[float(probability) > 0.5],
                    "defect_probability": float(probability),
                    "cell_type": cell_type,
                    "file": file,
                },
            )


def catalogue_elpv(data_dir: str | os.PathLike | None = None, *, verbose: int = 1) -> Catalogue:
    """Return the catalogue of ELPV, prepared under `data_dir` on first use (a few seconds, 90 MB).

    Splits are balanced by label × cell type: polycrystalline cells look different, and are defective less often. The test
    share is that of Deitsch et al. 2019, so that accuracies can be set beside the published ones.

    Raises:
        BackendError: ELPV isn't prepared, and the package `elpv-dataset` isn't installed.
        DataError: that package holds other labels than the release that this builder was written for.
        OutputError: the disk is full, or the folder can't be written.
    """

    def make_builder():
        return Elpv(data_dir=find_data_dir(data_dir))

    builder = make_builder()
    if not _is_prepared(builder):
        _package_data()  # said before TFDS starts
        if verbose:
            print(f"Preparing ELPV under {builder.data_dir} (once; 2,624 photographs, 90 MB)", flush=True)
    builder = write_builder(make_builder, verbose=0)
    catalogue = catalogue_builder(builder, name="elpv", stratum_feature="cell_type", verbose=verbose)
    return dataclasses.replace(catalogue, validation_share=0.10, test_share=0.25)


def _package_data():
    """Return the data folder of the installed package, whose own dependencies are not needed."""
    try:
        return importlib.resources.files(_PACKAGE).joinpath("data")
    except ModuleNotFoundError as error:
        raise BackendError(
            "ELPV comes with the package `elpv-dataset`, which is not installed. Install it with"
            ' `pip install "kerastl[demo]"`, or `pip install elpv-dataset==1.0.0.post1`.'
        ) from error


def _read_labels(table: bytes) -> Iterator[list[str]]:
    """Yield file, probability and cell type of each photograph, in the table's order."""
    checksum = hashlib.sha256(table).hexdigest()
    if checksum != _LABELS_SHA256:
        raise DataError(
            "The installed `elpv-dataset` holds other labels than release 1.0.0.post1, for which version 1.0.0 of this"
            f" data set is written. Install elpv-dataset==1.0.0.post1. {received(sha256=checksum)}"
        )
    yield from csv.reader(table.decode("ascii").splitlines(), delimiter=" ", skipinitialspace=True)


def find_data_dir(data_dir: str | os.PathLike | None) -> str | None:
    """Return where prepared data sets are kept: as given, `data/` of a checkout, or `None` for TFDS's own default.

    TFDS's default is `TFDS_DATA_DIR` in the environment, else `~/tensorflow_datasets`.
    """
    if data_dir is not None:
        return str(Path(data_dir).expanduser())
    checkout = Path(__file__).resolve().parents[2]
    in_checkout = (checkout / "setup.cfg").is_file() and (checkout / "data").is_dir()
    return str(checkout / "data") if in_checkout and not os.environ.get("TFDS_DATA_DIR") else None


def catalogue_tfds(name: str, data_dir: str | os.PathLike | None = None, *, verbose: int = 1) -> Catalogue:
    """Return the catalogue of the data set `name` (`"beans"`, `"name/config:1.0.0"`), downloaded and prepared if need be.

    Raises:
        DataError: no data set of that name, one that can't be downloaded or prepared here, or no image classification.
        OutputError: it can't be written to `data_dir`.
    """

    def make_builder():
        return tfds.builder(name, data_dir=find_data_dir(data_dir), try_gcs=False)

    try:
        make_builder()
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise DataError(
            f"TensorFlow Datasets knows no data set {name!r}.{nearest(name.split('/')[0].split(':')[0], known)}"
            f" {received(source=f'tfds:{name}')}"
        ) from None
    # A wrong configuration or version shows as ValueError, AssertionError, KeyError, … according to the data set.
    except Exception as error:
        raise DataError(f"The data set tfds:{name} can't be set up. {_first_lines(error)}") from error
    builder = write_builder(make_builder, verbose=verbose)
    return catalogue_builder(builder, name=f"tfds:{builder.info.full_name}", verbose=verbose)


def _is_prepared(builder) -> bool:
    """Return whether the data set lies in its folder. TFDS's own question logs a warning where it doesn't."""
    return Path(builder.data_dir, "dataset_info.json").is_file()


def write_builder(make_builder: Callable, *, verbose: int = 1):
    """Return the builder that `make_builder` makes, downloaded and prepared; whole or not at all, as TFDS does it.

    Raises:
        DataError: a download or the preparation failed; the message says what failed.
        OutputError: the disk is full, or the folder can't be written.
    """
    builder = make_builder()
    if _is_prepared(builder):
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
        if _is_prepared(again := make_builder()):  # another process was faster
            return again
        if isinstance(error, KerastlError):
            raise
        if isinstance(error, _NOT_WRITABLE) or getattr(error, "errno", None) in _NO_SPACE:
            raise OutputError(f"Can't write the data set to {builder.data_dir}: {_first_lines(error)}") from error
        raise DataError(
            f"The data set {builder.info.full_name} is not in {builder.data_dir}, and downloading or preparing it"
            f" failed. {type(error).__name__}: {_first_lines(error)}"
        ) from error
    return builder


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) or repr(error)


def catalogue_builder(builder, *, name: str, stratum_feature: str | None = None, verbose: int = 1) -> Catalogue:
    """Return the catalogue of a prepared TFDS builder with an image and a class label.

    Every image's bytes are read once, for the digests; images are not decoded. Splits are balanced by the label, with a
    `stratum_feature` (a `ClassLabel`) by label × this feature.

    Raises:
        DataError: no image feature, no class label, or no split to train on.
    """
    image_key, label_key = _image_and_label(builder)
    features = dict(builder.info.features)
    class_names = tuple(features[label_key].names)
    file_key = next((key for key in _FILE_KEYS if isinstance(features.get(key), tfds.features.Text)), None)
    keys = [key for key in (label_key, stratum_feature, file_key) if key]
    readers, parts, files, digests, values, notices = [], [], [], [], [], []
    for part, split in _splits(builder).items():
        count, fetch = _open_split(builder, split, image_key, keys)

        def look_at(index: int, fetch=fetch) -> tuple[bytes, dict]:
            data, found = fetch(index)
            return hashlib.sha256(data).digest(), found

        records = list(with_progress(in_threads(look_at, range(count)), count, verbose=verbose))
        if any(not 0 <= found[label_key] < len(class_names) for _, found in records):
            if part == TRAIN:
                raise DataError(f"The training images of {name} have labels outside its classes.")
            notices.append(f"The split {split!r} of {name} has no labels and is left out.")
            continue
        readers += [functools.partial(fetch, index) for index in range(count)]
        parts += [part] * count
        digests += [digest for digest, _ in records]
        values += [found for _, found in records]
        files += [found[file_key].decode() if file_key else f"{split}[{i}]" for i, (_, found) in enumerate(records)]
    strata = {}
    if stratum_feature:
        kinds = features[stratum_feature].names
        strata["strata"] = [found[label_key] * len(kinds) + found[stratum_feature] for found in values]
        strata["stratum_names"] = tuple(f"{label}, {kind}" for label in class_names for kind in kinds)
    return Catalogue(
        name=name,
        class_names=class_names,
        labels=[found[label_key] for found in values],
        files=files,
        digests=digests,
        parts=parts,
        read_bytes=lambda index: readers[index]()[0],
        licence=builder.info.redistribution_info.license or None,
        notices=tuple(notices),
        **strata,
    )


def _image_and_label(builder) -> tuple[str, str]:
    """Return the keys of the image and of its class: the supervised pair, or the only features of their kind."""
    features, pair = builder.info.features, builder.info.supervised_keys
    if not (pair and len(pair) == 2 and all(isinstance(key, str) for key in pair)):
        images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        classes = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        pair = (images[0], classes[0]) if len(images) == len(classes) == 1 else (None, None)
    image_key, label_key = pair
    is_image = image_key in features and isinstance(features[image_key], tfds.features.Image)
    if is_image and isinstance(features[label_key], tfds.features.ClassLabel):
        return image_key, label_key
    raise DataError(
        f"{builder.info.full_name} is no image classification data set: it needs one image and one class label per"
        f" example. {received(features=list(features))}"
    )


def _splits(builder) -> dict[str, str]:
    """Return what each split of the data set is used as: train, validation or test → its name."""
    names = [name for name in builder.info.splits if builder.info.splits[name].num_examples]
    found: dict[str, str] = {}
    for name in names:
        if name in SPLIT_FOLDERS:
            found.setdefault(SPLIT_FOLDERS[name], name)
    if TRAIN in found:
        return found
    if len(names) == 1:
        return {TRAIN: names[0]}
    raise DataError(f"{builder.info.full_name} has no 'train' split. {received(splits=names)}")


def _open_split(builder, split: str, image_key: str, keys: list[str]) -> tuple[int, Callable]:
    """Return how many examples the split has, and a function from an index to the encoded image and the values of `keys`."""
    formats = tfds.core.FileFormat
    file_format = builder.info.file_format
    if file_format is formats.TFRECORD:
        paths = [Path(path) for path in builder.info.splits[split].filepaths]
        record_at, count = _tf_record_reader(paths)
        if count != builder.info.splits[split].num_examples:  # whole records are missing
            raise DataError(f"The files in {builder.data_dir} are damaged. Delete the folder: it is prepared again.")
    elif file_format is formats.ARRAY_RECORD:
        records = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        record_at, count = records.__getitem__, len(records)
    else:
        raise DataError(
            f"{builder.data_dir} is prepared in a format that can't be read by index. Choose another `data_dir`."
            f" {received(file_format=file_format.value)}"
        )
    return count, lambda index: _parse(record_at(index), image_key, keys)


def _tf_record_reader(paths: list[Path]) -> tuple[Callable[[int], bytes], int]:
    """Return a reader by index over TFRecord files, and the number of records.

    TensorFlow reads these files in sequence only. Each record is its length (8 bytes, little-endian), a checksum of the
    length (4 bytes), the data, and a checksum of the data (4 bytes): one walk over the lengths gives every position.
    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
    """
    places: list[tuple[Path, int, int]] = []
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file:
            while (start := file.tell()) < size:
                length = int.from_bytes(file.read(_RECORD_LENGTH_BYTES), "little")
                places.append((path, start + _RECORD_HEADER_BYTES, length))
                file.seek(start + _RECORD_HEADER_BYTES + length + _RECORD_FOOTER_BYTES)
            if file.tell() != size:
                raise DataError(f"{path} is cut short. Delete its folder: it is prepared again.")

    def record_at(index: int) -> bytes:
        path, start, length = places[index]
        # Opened anew for each record, as threads would move one another's position in a shared file.
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    return record_at, len(places)


def _parse(record: bytes, image_key: str, keys: list[str]) -> tuple[bytes, dict]:
    values = {}
    try:
        features = tf.train.Example.FromString(record).features.feature
        for key in keys:
            feature = features[key]
            values[key] = feature.bytes_list.value[0] if feature.bytes_list.value else feature.int64_list.value[0]
        return features[image_key].bytes_list.value[0], values
    except (DecodeError, IndexError) as error:
        raise DataError("A record of the data set is damaged. Delete its folder: it is prepared again.") from error
