"""`load_images`: labelled images from a folder, from TensorFlow Datasets or from ELPV, as `tf.data` pipelines.

Each split carries an `ImageSource` (see `inputs.py`): its images by index, and an identity made of their contents.
"""

import collections
import dataclasses
import hashlib
import html
import os
from typing import Any

import numpy as np

from kerastl.backend import without_autotuning
from kerastl.checks import check_choice, check_count, check_fraction, received
from kerastl.data.batches import ImageSource, attach_source, find_source
from kerastl.data.catalogues import TEST, TRAIN, VALIDATION, Catalogue, catalogue_folder
from kerastl.data.images import RESIZES, check_image_size, read_image
from kerastl.data.splitting import split_indices
from kerastl.errors import ArgumentError, DataError, warn
from kerastl.tables import html_table, text_table

FEW_IMAGES = 10
_SPLITS = (TRAIN, VALIDATION, TEST)
_ROWS_SHOWN = 30
_READERS = 4  # threads that decode: few files come faster from more
_NAMES_SHOWN = 10


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ImageSplits:
    """Labelled images, split and ready to train on; printed, it is a table.

    Attributes:
        train: a `tf.data.Dataset` of batches: images uint8 RGB `(batch, height, width, 3)`, labels int32 `(batch,)`.
            Shuffled anew in every epoch.
        validation: the same in a fixed order; `None` when there is none.
        test: the same in a fixed order; `None` when there is none.
        class_names: in the order of labels.
        class_counts: class name → number of images, all splits together.
        split_sizes: split name → number of images, for the splits that exist.
        image_size: `(height, width)` in pixels.
        resize: how images were brought to that size.
        seed: of the splits and of the shuffling.
        name: of the folder or data set.
        licence: what the images may be used for, where the source says so.
        files: split name → path (or name in the data set) of each image, in the order of its `ImageSource`.
        skipped: unreadable files that were left out.
        ignored: ending → how many files were left out because they are no images by their name.
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

    def summary(self) -> str:
        """Return a table of how many images of each class are in each split, with what else is worth knowing."""
        header, rows = self._table()
        right = range(1, len(header))
        return "\n".join([text_table(header, rows, right=right, total=True, title=self._title()), *self._remarks()])

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        header, rows = self._table()
        remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in self._remarks())
        return html_table(header, rows, right=range(1, len(header)), title=self._title()) + remarks

    def _title(self) -> str:
        height, width = self.image_size
        images = sum(self.split_sizes.values())
        return (
            f"{self.name}: {images} images, {len(self.class_names)} classes;"
            f" {height}×{width} pixels (height×width, {self.resize!r}), seed {self.seed}"
        )

    def _remarks(self) -> list[str]:
        remarks = []
        if self.skipped:
            remarks.append(f"Unreadable and skipped: {len(self.skipped)}")
        if self.ignored:
            listing = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.ignored.items()))
            remarks.append(f"Other files, ignored: {listing}")
        if self.licence:
            remarks.append(f"Licence: {self.licence}")
        return remarks

    def _table(self) -> tuple[list[str], list[list[str]]]:
        classes = len(self.class_names)
        counts = [
            np.bincount(find_source(getattr(self, split)).labels, minlength=classes) for split in self.split_sizes
        ]
        rows = [
            [name, *map(str, column), str(sum(column))] for name, *column in zip(self.class_names, *counts, strict=True)
        ]
        if classes > _ROWS_SHOWN:
            rows = [*rows[: _ROWS_SHOWN - 1], [f"… {classes - _ROWS_SHOWN + 1} more", *[""] * (len(counts) + 1)]]
        sizes = [*self.split_sizes.values(), sum(self.split_sizes.values())]
        return ["class", *self.split_sizes, "total"], [*rows, ["total", *map(str, sizes)]]


def load_images(
    source: str | os.PathLike,
    *,
    image_size: int | tuple[int, int],
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
    splits, and the same `seed` gives the same splits. Sources that come split (folders or TFDS splits named `train`,
    `validation` or `val`, `test`) are used as they are: a missing validation part is taken from the training images, a
    missing test part only when `test` asks for it. Hidden files, and files that are no images by their ending, are left
    out. Every file of a folder is read once, so that damaged ones are found before training starts.

    Args:
        source: a folder of class folders; a folder with `train`, `validation` and `test` folders of class folders;
            `"tfds:NAME"`, an image classification data set of TensorFlow Datasets, downloaded if need be; `"elpv"`,
            photographs of solar cells (for non-commercial use), balanced by label × cell type.
        image_size: pixels, one number or `(height, width)`.
        batch_size: images per batch.
        validation: share of the images for validation, 0 for none; by default 0.15, for ELPV 0.10.
        test: share of the images for the test, 0 for none; by default 0.15, for ELPV 0.25.
        seed: of the splits and of the shuffling.
        resize: `"squash"` stretches to the new shape; `"crop"` first takes the largest central part of that shape;
            `"pad"` keeps everything, centred on black.
        shuffle: whether the training images come in a new order in every epoch; otherwise in one mixed order. Either is
            repeatable: the orders depend on `seed` and on TensorFlow's global seed, if that is set.
        skip_unreadable: leave unreadable files out, with a warning that lists them, instead of raising.
        data_dir: where TFDS and ELPV keep prepared data; by default `data/` of a checkout, else TFDS's own default.
        verbose: 0 shows no progress.

    Returns:
        An `ImageSplits`.

    Raises:
        ArgumentError: a wrong argument, or a share for a part that the source brings along.
        DataError: no such folder or data set, unreadable files, fewer than two classes, a class with too few images.
        BackendError: for ELPV, when the package `elpv-dataset` is missing.
        OutputError: a data set can't be written to `data_dir`.
    """
    image_size = check_image_size(image_size)
    batch_size = check_count("batch_size", batch_size)
    seed = check_count("seed", seed, smallest=0)
    check_choice("resize", resize, RESIZES)
    fractions = _check_fractions(validation, test)
    catalogue = _open_source(source, skip_unreadable=skip_unreadable, data_dir=data_dir, verbose=verbose)
    indices = _divide(catalogue, fractions, seed)
    _warn(catalogue)
    return _image_splits(catalogue, indices, image_size, batch_size, resize, seed, shuffle)


def _image_splits(catalogue, indices, image_size, batch_size, resize, seed, shuffle) -> ImageSplits:
    datasets = {}
    for split, chosen in indices.items():
        source = _image_source(catalogue, chosen, image_size, resize, batch_size, shuffle and split == TRAIN)
        datasets[split] = _dataset(source, seed)
    counts = np.bincount(catalogue.labels, minlength=len(catalogue.class_names))
    return ImageSplits(
        train=datasets[TRAIN],
        validation=datasets.get(VALIDATION),
        test=datasets.get(TEST),
        class_names=catalogue.class_names,
        class_counts={name: int(count) for name, count in zip(catalogue.class_names, counts, strict=True)},
        split_sizes={split: len(chosen) for split, chosen in indices.items()},
        image_size=image_size,
        resize=resize,
        seed=seed,
        name=catalogue.name,
        licence=catalogue.licence,
        files={split: tuple(catalogue.files[index] for index in chosen) for split, chosen in indices.items()},
        skipped=catalogue.skipped,
        ignored=catalogue.ignored,
    )


def _check_fractions(validation, test) -> dict[str, float | None]:
    fractions = {
        VALIDATION: None if validation is None else check_fraction("validation", validation, zero=True, one=False),
        TEST: None if test is None else check_fraction("test", test, zero=True, one=False),
    }
    if sum(share or 0 for share in fractions.values()) >= 1:
        raise ArgumentError(
            "`validation` and `test` together must leave something to train on, so add up to less than 1."
            f" {received(validation=validation, test=test)}"
        )
    return fractions


def _open_source(source, *, skip_unreadable: bool, data_dir, verbose: int) -> Catalogue:
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise ArgumentError(f"`source` must be a folder, 'elpv' or 'tfds:NAME'. {received(source=source)}")
    name = source.removeprefix("tfds:") if isinstance(source, str) else ""
    if name == "elpv":
        # The builder's module imports TensorFlow Datasets, which nobody else should have to wait for.
        from kerastl.data.elpv import catalogue_elpv

        return catalogue_elpv(data_dir, verbose=verbose)
    if name == source or not name:
        return catalogue_folder(source, skip_unreadable=skip_unreadable, verbose=verbose)
    from kerastl.data.tfds_catalogue import catalogue_builder, prepare_builder

    builder = prepare_builder(name, data_dir, verbose=verbose)
    return catalogue_builder(builder, name=f"tfds:{builder.info.full_name}", verbose=verbose)


def _divide(catalogue: Catalogue, fractions: dict, seed: int) -> dict[str, np.ndarray]:
    """Return the indices of each split that gets any; the training indices in a mixed order."""
    parts = np.array(catalogue.parts)
    brought = {split: np.flatnonzero(parts == split) for split in (VALIDATION, TEST) if (parts == split).any()}
    for split in brought:
        if fractions[split] is not None:
            raise ArgumentError(
                f"{catalogue.name} comes with its own {split} images: leave the argument `{split}` out."
                f" {received(**{split: fractions[split]})}"
            )
    # Who keeps a part of the data apart has decided what to test on, if at all; unsplit sources get all three parts.
    usual = {VALIDATION: catalogue.validation_share, TEST: 0.0 if brought else catalogue.test_share}
    shares = {
        split: usual[split] if fractions[split] is None else fractions[split] for split in usual if split not in brought
    }
    if sum(shares.values()) >= 1:
        raise ArgumentError(
            "`validation` and `test` together must leave something to train on, so add up to less than 1."
            f" {received(**shares)}"
        )
    pool = np.flatnonzero(parts == TRAIN)
    strata = catalogue.labels if catalogue.strata is None else catalogue.strata
    divided = split_indices(
        [strata[index] for index in pool],
        [catalogue.digests[index] for index in pool],
        {TRAIN: 1 - sum(shares.values()), **shares},
        seed=seed,
        stratum_names=catalogue.stratum_names or catalogue.class_names,
    )
    indices = {**{split: pool[chosen] for split, chosen in divided.items()}, **brought}
    # In the order of files, batches of a loop that doesn't shuffle would hold one class only.
    indices[TRAIN] = np.random.default_rng(seed).permutation(indices[TRAIN])
    return {split: indices[split] for split in _SPLITS if len(indices.get(split, ()))}


def _warn(catalogue: Catalogue) -> None:
    notices = [*catalogue.notices, *_notices_of_copies(catalogue)]
    counts = np.bincount(catalogue.labels, minlength=len(catalogue.class_names))
    few = [f"{name} ({count})" for name, count in zip(catalogue.class_names, counts, strict=True) if count < FEW_IMAGES]
    if few:
        notices.append(
            f"Classes with fewer than {FEW_IMAGES} images: {_listing(few)}."
            " Accuracies on so few say little; add images."
        )
    for notice in notices:
        warn(notice)


def _notices_of_copies(catalogue: Catalogue) -> list[str]:
    """Return what to say of identical images under two labels, or in two parts of a source that came split."""
    groups = collections.defaultdict(list)
    for index, digest in enumerate(catalogue.digests):
        groups[digest].append(index)
    copies = [group for group in groups.values() if len(group) > 1]
    notices = []
    for what, of_each, advice in (
        ("classes", catalogue.labels, "At most one of the labels is right: remove the wrong ones."),
        ("splits", catalogue.parts, "Validation and test then measure memory: keep one of each."),
    ):
        mixed = [group for group in copies if len({of_each[index] for index in group}) > 1]
        if mixed:
            listing = _listing([" = ".join(catalogue.files[index] for index in group) for group in mixed])
            notices.append(f"Identical images in different {what} ({len(mixed)}): {listing}. {advice}")
    return notices


def _listing(items: list[str]) -> str:
    more = [f"and {len(items) - _NAMES_SHOWN} more"] if len(items) > _NAMES_SHOWN else []
    return ", ".join([*items[:_NAMES_SHOWN], *more])


def _image_source(
    catalogue: Catalogue, indices: np.ndarray, image_size, resize: str, batch_size, shuffle
) -> ImageSource:
    labels = np.array([catalogue.labels[index] for index in indices], dtype=np.int32)

    def read(index: int) -> np.ndarray:
        position = indices[index]
        try:
            data = catalogue.read_bytes(position)
        except OSError as error:
            raise DataError(
                f"Can't read the image {catalogue.files[position]} any more: {error.strerror or error}."
            ) from error
        return read_image(data, image_size, resize, name=catalogue.files[position])

    return ImageSource(
        labels=labels,
        image_size=image_size,
        identity=_identity(catalogue, indices, labels, image_size, resize),
        shuffle=shuffle,
        read=read,
        batch_size=batch_size,
    )


def _identity(catalogue: Catalogue, indices, labels, image_size, resize: str) -> str:
    """Return a hex digest of everything that decides what `read` returns, index by index, and of the labels.

    Contents count, not names: a folder that was moved is the same data, a replaced file makes other data.
    """
    combined = hashlib.sha256(f"kerastl images 1|{image_size}|{resize}|{len(labels)}|".encode())
    for index, label in zip(indices, labels, strict=True):
        combined.update(catalogue.digests[index] + int(label).to_bytes(4, "big"))
    return combined.hexdigest()


def _dataset(source: ImageSource, seed: int):
    """Return the `tf.data.Dataset` of a source: decoded in parallel, static shapes, cardinality known."""
    import tensorflow as tf

    labels = source.labels

    def read(index):
        return source.read(int(index)), labels[index]

    def load(index):
        image, label = tf.numpy_function(read, [index], (tf.uint8, tf.int32))
        return tf.ensure_shape(image, (*source.image_size, 3)), tf.ensure_shape(label, ())

    indices = tf.data.Dataset.range(len(source))
    if source.shuffle:
        # Numbers are shuffled, not images, so that the buffer can hold them all.
        indices = indices.shuffle(len(source), seed=seed, reshuffle_each_iteration=True)
    images = indices.map(load, num_parallel_calls=_READERS, deterministic=True)
    return attach_source(without_autotuning(images.batch(source.batch_size).prefetch(2)), source)
