"""`load_images`: labelled images from a folder, from TensorFlow Datasets or from ELPV, as `tf.data` pipelines."""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import numpy as np

from kerastl.backend import quiet_output, without_autotuning
from kerastl.checks import check_choice, check_count, nearest, received
from kerastl.data import images as image_files
from kerastl.data.batches import ImageSource, attach_source, find_source
from kerastl.data.elpv import catalogue_elpv
from kerastl.data.flowers import catalogue_flowers
from kerastl.data.label_files import labelled_images
from kerastl.data.labels import CLASSIFICATION, check_names, count_labels, label_array
from kerastl.data.splitting import TEST, TRAIN, VALIDATION, Catalogue, Image, check_shares, divide, splits_of
from kerastl.errors import ArgumentError, BackendError, DataError, OutputError, warn
from kerastl.tables import Printed, Table

_FEW_IMAGES = 10
_ROWS_SHOWN = 30
_NAMED = "'flowers', 'elpv', 'demo' or 'tfds:NAME'"
_DEMO = {"flowers": "the flower photographs", "elpv": "ELPV, photographs of solar cells"}
_READERS = 4  # threads that decode: few files come faster from more


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ImageSplits(Printed):
    """Labelled images, split and ready to train on; printed, it is a table.

    Attributes:
        train: a `tf.data.Dataset` of batches: images uint8 RGB `(batch, height, width, 3)`, and labels: int32 `(batch,)`,
            several labels an image float32 `(batch, labels)` of 0 and 1, numbers float32 `(batch,)`. Shuffled anew in
            every epoch.
        validation, test: the same in a fixed order; `None` when there is none.
        class_names: of the classes or labels, in their order; of numbers the name of their column.
        class_counts: class name → number of images, all splits together.
        split_sizes: split name → number of images, for the splits that exist.
        image_size, resize, seed: as `load_images` was told, the size as `(height, width)` in pixels.
        name: of the folder or data set.
        licence: what the images may be used for, where the source says so.
        files: split name → path (or name in the data set) of each image, in the order of its `ImageSource`.
        skipped: unreadable files that were left out.
        ignored: ending, or name of what systems leave behind → how many files (or hidden folders) were left out.
        task: "classification", "multi-label" (several labels an image, or none) or "regression" (a number).
        white: which value became 255 in images of more than 8 bits a channel; `None` where there are none.
    """

    train: Any
    validation: Any
    test: Any
    class_names: tuple[str, ...]
    class_counts: dict[str, int]
    split_sizes: dict[str, int]
    image_size: tuple[int, int]
    resize: str
    seed: int
    name: str
    licence: str | None = None
    files: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    ignored: dict[str, int] = dataclasses.field(default_factory=dict)
    task: str = CLASSIFICATION
    white: float | None = None

    def summary(self) -> str:
        """Return a table of how many images of each class are in each split, with what else is worth knowing.

        Where an image may have several labels, it counts for each; of numbers there are mean, smallest and largest.
        """
        return str(self)

    def _tables(self) -> list[Table]:
        height, width = self.image_size
        images = sum(self.split_sizes.values())
        labels = [find_source(getattr(self, split)).labels for split in self.split_sizes]
        what, of_what, rows = count_labels(labels, self.class_names, self.task)
        if len(rows) > _ROWS_SHOWN:
            rows = [*rows[: _ROWS_SHOWN - 1], [f"… {len(rows) - _ROWS_SHOWN + 1} more", *[""] * (len(labels) + 1)]]
        rows = [list(map(str, row)) for row in [*rows, ["total", *self.split_sizes.values(), images]]]
        size = f"{height}×{width} pixels (height×width, {self.resize!r})"
        title = f"{self.name}: {images} images, {of_what}; {size}, seed {self.seed}"
        notes = {
            f"Unreadable and skipped: {len(self.skipped)}": self.skipped,
            f"Other files, ignored: {_counts(self.ignored)}": self.ignored,
            f"Of more than 8 bits a channel, 0–{self.white} became 0–255": self.white,
            f"Licence: {self.licence}": self.licence,
        }
        notes, header = [note for note, value in notes.items() if value], [what, *self.split_sizes, "total"]
        return [Table(header, rows, range(1, len(header)), title=title, total=True, notes=notes)]


def load_images(
    source: str | os.PathLike,
    *,
    image_size: int | tuple[int, int],
    labels: str | os.PathLike | None = None,
    batch_size: int = 32,
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
    resize: str = "squash",
    shuffle: bool = True,
    skip_unreadable: bool = False,
    data_dir: str | os.PathLike | None = None,
    verbose: int = 1,
) -> ImageSplits:
    """Load labelled images and split them into training, validation and test.

    Sources that come unsplit are divided class by class; images with identical contents never land in different
    splits, and the same `seed` gives the same splits. Sources that come split are used as they are: folders or TFDS splits
    named `train`, `validation` or `val`, `test`, or `Training_set`, `holdout`, `flowers-test`, and so on. A missing
    validation part is taken from the training images, a missing test part only when `test` asks for it. Hidden files, and
    what is no image by ending or content, are left out. Every file is read once, so that damaged ones are found before
    training. For more than 8 bits a channel one value is white in all images: `white`.

    With `labels`, a table says what the images of a folder show: file names in a column called `filename`, `image` or the
    like, else in the first; splits in a column `split`; and in one column classes, labels separated by `|`, or numbers
    (whole ones are classes if it is called `label` or `class`), or in several, called after the labels, 0 and 1.

    Args:
        source: a folder of class folders, or of `train`, `validation` and `test` folders of class folders; `"flowers"`,
            1,500 photographs of five kinds of flower, split, from `data/flowers` or downloaded (229 MB); `"elpv"`, solar
            cells (for non-commercial use), balanced by label × cell type; `"demo"`, flowers if available, else ELPV;
            `"tfds:NAME"`, an image classification data set of TensorFlow Datasets, downloaded if need be. A folder called
            `flowers` or `demo` in the working folder goes first.
        image_size: pixels, one number or `(height, width)`.
        labels: path, or name in the folder, of a CSV (commas, semicolons or tabs; UTF-8) or Parquet file.
        batch_size: images per batch.
        validation, test: shares of the images, 0 for none; by default 0.15 each, for ELPV 0.10 and 0.25.
        seed: of the splits and of the shuffling.
        resize: `"squash"` stretches; `"crop"` first takes the largest central part; `"pad"` keeps all, centred on black.
        shuffle: whether the training images come in a new order in every epoch; otherwise in one mixed order. The orders
            depend on `seed` and on TensorFlow's global seed, if that is set.
        skip_unreadable: leave unreadable files out, with a warning that lists them, instead of raising.
        data_dir: where data sets are kept; by default `data/` of a checkout, else the default of Keras or of TFDS.
        verbose: 0 shows no progress.

    Raises:
        ArgumentError: a wrong argument, or a share for a part that the source brings along.
        DataError: no such folder or data set, unreadable files, too few classes or images, a labels file that doesn't fit.
        BackendError: for ELPV, when the package `elpv-dataset` is missing.
        OutputError: a data set can't be written to `data_dir`.

    Example:
        >>> print(kerastl.load_images("flowers", image_size=32, verbose=0).summary())
        flowers: 30 images, 3 classes; 32×32 pixels (height×width, 'squash'), seed 0
        -------------------------------------
        class  train  validation  test  total
        -------------------------------------
        daisy      7           2     1     10
        rose       7           1     2     10
        tulip      7           2     1     10
        -------------------------------------
        total     21           5     4     30
    """
    image_size = image_files.check_image_size(image_size)
    batch_size = check_count("batch_size", batch_size)
    seed = check_count("seed", seed, smallest=0)
    check_choice("resize", resize, image_files.RESIZES)
    shares = check_shares(validation=validation, test=test)
    catalogue = _open_source(source, labels, skip_unreadable=skip_unreadable, data_dir=data_dir, verbose=verbose)
    settings = {"image_size": image_size, "resize": resize, "seed": seed}
    return _image_splits(catalogue, divide(catalogue, shares, seed), batch_size, shuffle, **settings)


def _image_splits(catalogue: Catalogue, splits: dict, batch_size: int, shuffle: bool, **settings) -> ImageSplits:
    counts = collections.Counter(index for image in catalogue.images for index in image.indices)
    class_counts = {name: counts[label] for label, name in enumerate(catalogue.class_names)}
    for notice in (*catalogue.notices, *_notices(catalogue, class_counts)):
        warn(notice)
    datasets = dict.fromkeys((TRAIN, VALIDATION, TEST))
    for split, images in splits.items():
        datasets[split] = _dataset(catalogue, images, batch_size, shuffle and split == TRAIN, **settings)
    return ImageSplits(
        **datasets,
        **settings,
        **{name: getattr(catalogue, name) for name in ("class_names", "name", "licence", "skipped", "ignored", "task")},
        class_counts=class_counts,
        split_sizes={split: len(images) for split, images in splits.items()},
        files={split: tuple(image.file for image in images) for split, images in splits.items()},
        white=next((image.read.white for image in catalogue.images if hasattr(image.read, "white")), None),
    )


def _open_source(source, labels, *, skip_unreadable: bool, data_dir, verbose: int) -> Catalogue:
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise ArgumentError(f"`source` must be a folder, {_NAMED}. {received(source=source)}")
    name = source.removeprefix("tfds:") if isinstance(source, str) else ""
    known = name in ("demo", "elpv", "flowers") and name == source and (name == "elpv" or not Path(name).is_dir())
    if name in ("", source) and not known:
        return catalogue_folder(source, labels, skip_unreadable=skip_unreadable, verbose=verbose)
    if labels is not None:
        raise ArgumentError(f"`labels` goes with a folder; {source} brings its own. {received(labels=labels)}")
    if known and name == "flowers":
        return _read_once(catalogue_flowers(data_dir, verbose=verbose), skip_unreadable, verbose)
    if known:
        return (
            catalogue_elpv(verbose=verbose) if name == "elpv" else _catalogue_demo(data_dir, skip_unreadable, verbose)
        )
    try:
        with quiet_output():  # of a failed import TensorFlow Datasets logs the traceback
            from kerastl.data.tfds import catalogue_tfds  # takes seconds, as it imports TensorFlow Datasets
    except Exception as error:  # protobuf raises a VersionError of its own
        versions = []
        for package in ("tensorflow-datasets", "tensorflow-metadata", "protobuf"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions.append(f"{package} {importlib.metadata.version(package)}")
        raise BackendError(
            f"TensorFlow Datasets can't be imported here: {type(error).__name__}: {error}. Its packages must fit each other: "
            f"{', '.join(versions)}. Where protobuf is older than 6, as on Colab, "
            '`pip install "tensorflow-metadata<1.18"` mends it; else `pip install --upgrade tensorflow-datasets`.'
        ) from error
    return catalogue_tfds(name, data_dir, verbose=verbose)


def _catalogue_demo(data_dir, skip_unreadable: bool, verbose: int) -> Catalogue:
    """Return the flower photographs where they are available, else ELPV, and say which."""
    try:
        catalogue, why = _read_once(catalogue_flowers(data_dir, verbose=verbose), skip_unreadable, verbose), ""
    except (DataError, OutputError) as error:
        why = f" The flower photographs are not available: {error.__cause__ or error}"
        catalogue = catalogue_elpv(verbose=verbose)
    if verbose:
        print(f"Took {_DEMO[catalogue.name]}.{why}", flush=True)
    return catalogue


def _notices(catalogue: Catalogue, class_counts: dict[str, int]) -> list[str]:
    """Return what to say of identical images under two labels or in two parts, and of classes with few images."""
    notices, groups = [], collections.defaultdict(list)
    for image in catalogue.images:
        groups[image.digest].append(image)
    classes, differ = ("classes", "in") if catalogue.task == CLASSIFICATION else ("labels", "with")
    for what, field, advice in (
        (f"{differ} different {classes}", "label", "At most one of the labels is right: remove the wrong ones."),
        ("in different splits", "part", "Validation and test then measure memory: keep one of each."),
    ):
        mixed = [group for group in groups.values() if len({getattr(image, field) for image in group}) > 1]
        if mixed:
            listing = _listing([" = ".join(image.file for image in group) for group in mixed])
            notices.append(f"Identical images {what} ({len(mixed)}): {listing}. {advice}")
    few = [f"{name} ({count})" for name, count in class_counts.items() if count < _FEW_IMAGES]
    if few:
        advice = "Accuracies on so few say little; add images."
        notices.append(f"{classes.capitalize()} with fewer than {_FEW_IMAGES} images: {_listing(few)}. {advice}")
    return notices


def _listing(items: list[str], shown: int = 10, separator: str = ", ") -> str:
    more = [f"and {len(items) - shown} more"] if len(items) > shown else []
    return separator.join([*items[:shown], *more])


def _counts(by_suffix: dict[str, int]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(by_suffix.items()))


def _dataset(catalogue, images: list[Image], batch_size: int, shuffles: bool, *, image_size, resize: str, seed: int):
    """Return a `tf.data.Dataset` with its `ImageSource`: decoded in parallel, static shapes, cardinality known."""
    import tensorflow as tf

    # Of everything that decides what `read` returns, index by index, and of the labels. Contents count, not names: a
    # folder that was moved is the same data, a replaced file makes other data.
    labels = label_array([image.label for image in images], len(catalogue.class_names), catalogue.task)
    digest = hashlib.sha256(f"kerastl images 2|{image_size}|{resize}|{len(images)}|{labels.dtype}|".encode())
    for image, label in zip(images, labels, strict=True):
        digest.update(image.digest + label.tobytes())

    def read(index: int) -> np.ndarray:
        return image_files.read_image(images[index].read, image_size, resize, name=images[index].file)

    def load(index):
        image, label = tf.numpy_function(lambda i: (read(i), labels[i]), [index], (tf.uint8, labels.dtype))
        return tf.ensure_shape(image, (*image_size, 3)), tf.ensure_shape(label, labels.shape[1:])

    indices = tf.data.Dataset.range(len(images))
    if shuffles:
        # Numbers are shuffled, not images, so that the buffer can hold them all.
        indices = indices.shuffle(len(images), seed=seed, reshuffle_each_iteration=True)
    dataset = indices.map(load, num_parallel_calls=_READERS, deterministic=True).batch(batch_size).prefetch(2)
    source = ImageSource(labels, image_size, digest.hexdigest(), shuffles, read, batch_size)
    return attach_source(without_autotuning(dataset), source)


def catalogue_folder(folder: str | os.PathLike, labels=None, *, skip_unreadable: bool, verbose: int) -> Catalogue:
    """Return the catalogue of a folder of class folders, of one with `train`, `validation` and `test` folders, or of one
    with a labels file. Raise `DataError` for a folder that doesn't hold what it should, and for unreadable files.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        beside = _subfolders(folder.parent) if folder.parent.is_dir() else ()
        raise DataError(
            f"There is no folder {folder}.{nearest(folder.name, [*beside, 'flowers', 'elpv'])} A source is a folder of class"
            f" folders (unpack archives first), {_NAMED}. {received(source=str(folder))}"
        )
    if labels is None:
        task, (roots, notices) = CLASSIFICATION, _split_roots(folder, verbose)
        class_names = _class_names(roots)
        folders = {(TRAIN, label): roots[TRAIN] / name for label, name in enumerate(class_names)} | roots
        found, others, more = _find_images(folder, roots, class_names)
        notices += more
    else:
        folders = {}
        task, class_names, found, others, notices = labelled_images(folder, labels, verbose)
    ignored, photographs = image_files.count_left_out(others)
    _refuse_empty(folders, found, ignored)
    notices += photographs
    catalogue = Catalogue(folder.resolve().name, class_names, found, ignored=ignored, notices=tuple(notices), task=task)
    catalogue = _read_once(catalogue, skip_unreadable, verbose)
    _refuse_empty(folders, catalogue.images, ignored)
    return catalogue


def _read_once(catalogue: Catalogue, skip_unreadable: bool, verbose: int) -> Catalogue:
    """Return the catalogue with the digests of its images, those of many bits scaled alike, and without unreadable ones.

    Raises `DataError` for these, unless `skip_unreadable`: then they are warned of.
    """
    looks = image_files.look_at_all(_look_at, catalogue.images, verbose=verbose)
    pairs = zip(catalogue.images, looks, strict=True)
    bad = {image.file: str(look) for image, look in pairs if isinstance(look, DataError)}
    readable = [look for look in looks if not isinstance(look, DataError)]
    images, told = image_files.scale_alike([image for image, _ in readable], [largest for _, largest in readable])
    if bad:
        listing = _listing(list(bad.values()), 20, "\n  ")
        unreadable = f"{len(bad)} file{'s' * (len(bad) > 1)} can't be read:\n  {listing}"
        if not skip_unreadable:
            raise DataError(f"{unreadable}\nRepair or remove them, or pass skip_unreadable=True to leave them out.")
        told = [*told, f"{unreadable}\nSkipped, as skip_unreadable=True says."]
    return dataclasses.replace(catalogue, images=images, skipped=tuple(bad), notices=(*catalogue.notices, *told))


def _split_roots(folder: Path, verbose: int) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split, `{"train": folder}` when it holds classes and no splits, and what to warn of.

    A class may be called "train": only beside `validation` or `test`, or alone, is it taken for a split.
    """
    folders = _subfolders(folder)
    splits, roots = splits_of(folders), {}
    for name, split in splits.items():
        if split and split in roots:
            raise DataError(f"Two folders are both the {split} split: {roots[split]} and {folders[name]}. Keep one.")
        roots[split] = folders[name]
    unlabelled = roots.pop("", None)
    others = [name for name in folders if name not in splits]
    if TRAIN not in roots and len(roots) > 1 and not others and any(map(_subfolders, roots.values())):
        raise DataError(
            f"{folder} holds {' and '.join(splits)}, but no images to train on. If these are splits, put the training images"
            " beside them, in a folder `train`; if they are classes, rename them."
        )
    if TRAIN not in roots or not _subfolders(roots[TRAIN]) or (others and len(roots) == 1):
        for path in folders.values():
            _refuse_splits(path)
        return {TRAIN: folder}, []
    if others:
        raise DataError(
            f"{folder} looks like a data set that comes split ({', '.join(roots)}), but also holds"
            f" {', '.join(map(repr, others))}. If these are no part of it, move them elsewhere; if all folders are classes,"
            f" rename {', '.join(path.name for path in roots.values())}."
        )
    roots = {split: roots[split] for split in (TRAIN, VALIDATION, TEST) if split in roots}
    if verbose and any(path.name != split for split, path in roots.items()):
        print("Took " + ", ".join(f"{path.name}/ as {split}" for split, path in roots.items()), flush=True)
    return roots, [f"{unlabelled} holds images without labels, and is left out."] if unlabelled else []


def _refuse_splits(path: Path) -> None:
    """Raise where the folder of a class holds splits."""
    inside = splits_of(_subfolders(path))
    if len({*inside.values()} - {""}) > 1:
        name = min(inside, key=lambda one: inside[one] != TRAIN)
        raise DataError(
            f"{path} holds splits itself ({', '.join(inside)}). If {path.name!r} is a class, put the split above it:"
            f" {path.parent / name / path.name}. If it is a data set of its own, load {str(path)!r}."
        )


def _subfolders(folder: Path) -> dict[str, Path]:
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    return {path.name: path for path in inside if not image_files.is_hidden(path.name)}


def _class_names(roots: dict[str, Path]) -> tuple[str, ...]:
    names = tuple(_subfolders(roots[TRAIN]))
    check_names(names, "Rename the folder.")
    if len(names) < 2:
        raise DataError(
            f"A classifier needs two classes or more. {roots[TRAIN]} holds {repr(names[0]) if names else 'no class folders'}."
            " Put the images of each class into a folder named after the class, or pass `labels=` with a file of labels."
        )
    for root in roots.values():
        unknown = ", ".join(repr(name) for name in _subfolders(root) if name not in names)
        if unknown:
            advice = "Class folders must have the same names in every split."
            raise DataError(f"{root} holds classes that the training images lack: {unknown}. {advice}")
    return names


def _find_images(folder: Path, roots: dict[str, Path], class_names) -> tuple[list[Image], list[Path], list[str]]:
    """Return the images, not read yet; what else is there; and what to warn of."""
    places = dict.fromkeys([folder, *roots.values()])
    left_out = [path for place in places for path in place.iterdir() if image_files.is_hidden(path.name)]
    found, notices = [], []
    for split, root in roots.items():
        for label, class_name in enumerate(class_names):
            images, others = image_files.find_files(root / class_name)
            found += [Image(label, split, str(path), b"", path.read_bytes) for path in images]
            left_out += others
        loose = [str(path) for path in root.iterdir() if path.is_file() and image_files.is_image_file(path)]
        if loose:
            listing = _listing(loose, 20)
            notices.append(f"Images directly in {root}, in no class folder, are left out ({len(loose)}): {listing}")
    return found, left_out, notices


def _refuse_empty(folders: dict, images: list[Image], ignored: dict[str, int]) -> None:
    """Raise where no image lies in one of the folders: of a split, or of a `(split, class)`."""
    used = {key for image in images for key in (image.part, (image.part, image.label))}
    empty = [str(path) for key, path in folders.items() if key not in used]
    if empty:
        left_out = f" Other files that are there: {_counts(ignored)}." if ignored else ""
        raise DataError(
            f"Class folders without readable images: {', '.join(empty)}. Put images there, or remove the folder.{left_out}"
        )


def _look_at(image: Image) -> tuple[Image, int | float | None] | DataError:
    """Return the image with the digest of its content, and its `largest_value`."""
    try:
        with image_files.naming_the_image(image.file):
            data = image.read()
        largest = image_files.largest_value(data, image.file)
        if largest is None:
            # A small size lets JPEGs be decoded at an eighth of their size: all of the file is read, little is computed.
            image_files.read_image(data, (8, 8), name=image.file)
    except DataError as error:
        return error
    return dataclasses.replace(image, digest=hashlib.sha256(data).digest()), largest
