"""What `load_images` knows of a source before it splits anything: one `Catalogue`, here made from a folder.

The pixels stay where they are; a catalogue holds labels, content digests, and a way to get at the bytes of one image.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kerastl.checks import nearest, received
from kerastl.data.images import IMAGE_SUFFIXES, find_files, is_hidden, read_image
from kerastl.errors import DataError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLIT_FOLDERS = {"train": TRAIN, "validation": VALIDATION, "val": VALIDATION, "valid": VALIDATION, "test": TEST}
"""The names under which a source may come with splits of its own."""

# Photographs all the same, but in formats that can't be read here: leaving them out has to be said aloud.
_UNSUPPORTED_PHOTOGRAPHS = frozenset(
    {".heic", ".heif", ".avif", ".jp2", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw"}
)
_LISTED = 20
_SECONDS_BEFORE_PROGRESS = 3.0
_WORKERS = min(32, (os.cpu_count() or 1) + 2)  # two more than cores, as some always wait for the disk


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The images of a source, unsplit or with the splits that they came with.

    Attributes:
        name: what to call the source in tables and reports.
        class_names: in the order of labels.
        labels: of each image, an index into `class_names`.
        files: of each image, its path or its name in the data set.
        digests: of each image, a digest of its encoded bytes.
        parts: of each image, the split that it came in; all `"train"` for a source that came unsplit.
        read_bytes: from an index to the encoded image. Safe to call from several threads.
        licence: what the images may be used for, where the source says so.
        strata: of each image, what splits are balanced by, an index into `stratum_names`; by default its label.
        stratum_names: what to call the strata.
        validation_share: of the images for validation, where nobody says.
        test_share: of the images for the test, where nobody says.
        skipped: unreadable files that were left out.
        ignored: how many other files were left out, by their ending.
        notices: what the user has to be warned of.
    """

    name: str
    class_names: tuple[str, ...]
    labels: list[int]
    files: list[str]
    digests: list[bytes]
    parts: list[str]
    read_bytes: Callable[[int], bytes] = dataclasses.field(repr=False)
    licence: str | None = None
    strata: list[int] | None = None
    stratum_names: tuple[str, ...] | None = None
    validation_share: float = 0.15
    test_share: float = 0.15
    skipped: tuple[str, ...] = ()
    ignored: dict[str, int] = dataclasses.field(default_factory=dict)
    notices: tuple[str, ...] = ()


def digest(data: bytes) -> bytes:
    """Return a digest of `data` by which equal contents are told."""
    return hashlib.sha256(data).digest()


def in_threads(function: Callable, items: Iterable, total: int, *, verbose: int) -> Iterator:
    """Yield `function(item)` in the order of `items`, worked out in threads, with a bar when it takes seconds."""
    import keras

    executor = concurrent.futures.ThreadPoolExecutor(_WORKERS)
    started, shown = time.monotonic(), False
    bar = keras.utils.Progbar(total, unit_name="image")  # made now, so that its estimate counts from here
    try:
        for done, result in enumerate(executor.map(function, items), start=1):
            yield result
            if not shown and verbose and time.monotonic() - started > _SECONDS_BEFORE_PROGRESS:
                print("Reading the images", flush=True)
                shown = True
            if shown:
                bar.update(done)
    finally:
        # Without this, Ctrl-C would wait until everything that is queued has been done.
        executor.shutdown(cancel_futures=True)


def catalogue_folder(folder: str | os.PathLike, *, skip_unreadable: bool = False, verbose: int = 1) -> Catalogue:
    """Return the catalogue of a folder of class folders, or of one with `train`, `validation` and `test` folders.

    Every file is read and decoded once, at a reduced scale where that is possible, so that damaged files are found
    before training starts.

    Args:
        folder: holds one folder per class, or `train` and `validation` (or `val`) or `test` with class folders in them.
        skip_unreadable: leave unreadable files out, with a warning, instead of raising.
        verbose: 0 shows no progress.

    Raises:
        DataError: no such folder, no class folders, fewer than two classes, a class without images, unreadable files.
    """
    folder = Path(folder).expanduser()
    _check_folder(folder)
    roots = _split_roots(folder)
    class_names = _class_names(roots)
    files, labels, parts, ignored = _walk(roots, class_names)
    _check_every_class(roots, class_names, labels, parts, ignored)
    results = list(in_threads(_digest_or_error, files, len(files), verbose=verbose))
    unreadable = [str(result) for result in results if isinstance(result, DataError)]
    if unreadable and not skip_unreadable:
        raise DataError(
            f"{_unreadable(unreadable)}\nRepair or remove them, or pass skip_unreadable=True to leave them out."
        )
    kept = [index for index, result in enumerate(results) if isinstance(result, bytes)]
    labels, parts = [labels[index] for index in kept], [parts[index] for index in kept]
    _check_every_class(roots, class_names, labels, parts, ignored)
    paths = [files[index] for index in kept]
    notices = [*_notices_of_loose(roots), *_notices_of_photographs(ignored)]
    if unreadable:
        notices.append(f"{_unreadable(unreadable)}\nSkipped, as skip_unreadable=True says.")
    return Catalogue(
        name=folder.resolve().name,
        class_names=class_names,
        labels=labels,
        files=[str(path) for path in paths],
        digests=[results[index] for index in kept],
        parts=parts,
        read_bytes=lambda index: paths[index].read_bytes(),
        skipped=tuple(str(path) for path, result in zip(files, results, strict=True) if isinstance(result, DataError)),
        ignored=dict(ignored),
        notices=tuple(notices),
    )


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise DataError(f"A source must be a folder, not a file; unpack archives first. {received(source=str(folder))}")
    parent = folder.parent
    beside = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    raise DataError(
        f"There is no folder {folder}.{nearest(folder.name, [*beside, 'elpv'])} A source is a folder of class folders,"
        f" 'elpv', or 'tfds:NAME'. {received(source=str(folder))}"
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _split_roots(folder: Path) -> dict[str, Path]:
    """Return the folder of each split; `{"train": folder}` when the folder holds classes and no splits.

    A class may be called "train": only beside `validation` or `test`, or alone, is it taken for a split.
    """
    names = {path.name: path for path in _subfolders(folder)}
    roots: dict[str, Path] = {}
    for name, path in names.items():
        split = SPLIT_FOLDERS.get(name.lower())
        if split in roots:
            raise DataError(f"Two folders are both the {split} split: {roots[split]} and {path}. Keep one.")
        if split:
            roots[split] = path
    others = [name for name in names if name.lower() not in SPLIT_FOLDERS]
    if TRAIN not in roots or not _subfolders(roots[TRAIN]) or (others and len(roots) == 1):
        return {TRAIN: folder}
    if others:
        raise DataError(
            f"{folder} looks like a data set that comes split ({', '.join(roots)}), but also holds"
            f" {', '.join(repr(name) for name in others)}. Move one or the other elsewhere."
        )
    return {split: roots[split] for split in (TRAIN, VALIDATION, TEST) if split in roots}


def _class_names(roots: dict[str, Path]) -> tuple[str, ...]:
    names = tuple(path.name for path in _subfolders(roots[TRAIN]))
    if not names:
        raise DataError(
            f"{roots[TRAIN]} holds no class folders. Put the images of each class into a folder named after the class."
        )
    if len(names) == 1:
        raise DataError(f"A classifier needs two classes or more; {roots[TRAIN]} holds one, {names[0]!r}.")
    for split, root in roots.items():
        loose, subfolders = _loose_images(root), _subfolders(root)
        unknown = [path.name for path in subfolders if path.name not in names]
        if unknown:
            raise DataError(
                f"{root} holds classes that the training images lack: {', '.join(repr(name) for name in unknown)}."
                " Class folders must have the same names in every split."
            )
        if loose and not subfolders:
            raise DataError(f"The images in {root} lie in no class folders, so the {split} split has no labels.")
    return names


def _loose_images(root: Path) -> list[Path]:
    return [
        path
        for path in root.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path.name) and path.is_file()
    ]


def _walk(roots: dict[str, Path], class_names: tuple[str, ...]):
    """Return the image files with their labels and splits, and how many other files there are, by their ending."""
    files, labels, parts = [], [], []
    ignored: collections.Counter[str] = collections.Counter()
    for split, root in roots.items():
        for label, class_name in enumerate(class_names):
            images, others = find_files(root / class_name)
            files += images
            labels += [label] * len(images)
            parts += [split] * len(images)
            ignored.update(path.suffix.lower() or "without ending" for path in others)
    return files, labels, parts, ignored


def _check_every_class(roots: dict[str, Path], class_names, labels, parts, ignored) -> None:
    """Raise unless every class has images to train on, and every split that has a folder has some."""
    left_out = f" Other files that are there: {_counts(ignored)}." if ignored else ""
    for split, root in roots.items():
        if split not in parts:
            raise DataError(
                f"There are no readable images in {root}. Put one folder of images per class there.{left_out}"
            )
    present = {label for label, part in zip(labels, parts, strict=True) if part == TRAIN}
    missing = [name for label, name in enumerate(class_names) if label not in present]
    if missing:
        raise DataError(
            "These class folders hold no readable images to train on:"
            f" {', '.join(repr(name) for name in missing)}. Fill or remove them.{left_out}"
        )


def _digest_or_error(path: Path) -> bytes | DataError:
    try:
        data = path.read_bytes()
        # A small size lets JPEGs be decoded at an eighth of their size: all of the file is read, little is computed.
        read_image(data, 8, name=str(path))
    except OSError as error:
        return DataError(f"Can't read the image {path}: {error.strerror or error}.")
    except DataError as error:
        return error
    return digest(data)


def _unreadable(messages: list[str]) -> str:
    head = "1 file" if len(messages) == 1 else f"{len(messages)} files"
    listing = _listing(messages, separator="\n  ")
    return f"{head} can't be read:\n  {listing}"


def _notices_of_loose(roots: dict[str, Path]) -> list[str]:
    notices = []
    for root in roots.values():
        loose = _loose_images(root)
        if loose:
            listing = _listing(map(str, loose))
            notices.append(f"Images directly in {root}, in no class folder, are left out ({len(loose)}): {listing}")
    return notices


def _notices_of_photographs(ignored: dict[str, int]) -> list[str]:
    photographs = {suffix: count for suffix, count in ignored.items() if suffix in _UNSUPPORTED_PHOTOGRAPHS}
    if not photographs:
        return []
    return [f"Left out, as these formats can't be read: {_counts(photographs)}. Convert them to JPEG or PNG."]


def _counts(by_suffix: dict[str, int]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(by_suffix.items()))


def _listing(items: Iterable[str], separator: str = ", ") -> str:
    items = list(items)
    more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return separator.join([*items[:_LISTED], *more])
