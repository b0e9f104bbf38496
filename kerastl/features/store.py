"""The store: features of images, written once in order, read many times in any order.

A store may be larger than memory. On disk it survives `kill -9` at any moment: what was appended is kept, what was only
half appended is not, and the next run goes on from there. It is used only when it is complete, made for the same thing
(the key), and, by its checksums, byte for byte what was written.

How two processes share a folder:

    with lock(folder, on_wait=tell_the_user):
        store = open_store(folder, key=key)
        if store is None:
            with begin(folder, key=key, specs=specs, count=count) as writer:
                for first in range(writer.rows_done, count, 64):
                    writer.append(rows_from(first))
                store = writer.finish()

The files are described in `records.py`, durability in `disk.py`.
"""

import contextlib
import dataclasses
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from kerastl.checks import check_count, nearest, received
from kerastl.errors import ArgumentError, DataError, StoreDamagedError, StoreError, StoreMismatchError
from kerastl.features.casting import cast_rows
from kerastl.features.disk import (
    DiskArrays,
    check_budget,
    check_free_space,
    find_intact,
    read_rows,
    remove_files,
)
from kerastl.features.locking import acquire, check_folder, is_held, lock
from kerastl.features.memory import MemoryArrays
from kerastl.features.records import (
    LOCK,
    MANIFEST,
    PROGRESS,
    ArraySpec,
    Record,
    bytes_per_row,
    check_complete,
    check_specs,
    plain_details,
    read_record,
    report_unreadable,
)
from kerastl.features.temporary import TEMPORARY_KEY, TemporaryFolder, remove_orphans

__all__ = [
    "ArraySpec",
    "Store",
    "StoreWriter",
    "begin",
    "discard",
    "lock",
    "memory_store",
    "open_store",
    "temporary_store",
]

Specs = Iterable[ArraySpec] | Mapping[str, ArraySpec]


class Store:
    """Complete features, read-only. Safe to read from several threads; a context manager that closes.

    Attributes:
        key: what it was made for.
        count: its rows.
        specs: its arrays by name.
        details: what was handed to `StoreWriter.finish`.
        folder: where it is, or `None` in memory.
    """

    def __init__(
        self,
        record: Record,
        read: Callable[[ArraySpec, slice | np.ndarray], np.ndarray],
        *,
        folder: Path | None = None,
        close: Callable[[], None] | None = None,
    ):
        """Put a face on rows that are somewhere: use `open_store` or a `StoreWriter` instead."""
        self.key = record.key
        self.count = record.rows
        self.specs = record.specs
        self.details = record.details
        self.folder = folder
        self._read = read
        self._close = close

    @property
    def total_bytes(self) -> int:
        """The bytes of all arrays together."""
        return self.count * bytes_per_row(self.specs)

    def read(self, name: str, indices) -> np.ndarray:
        """Return rows of one array as new memory, which is all the memory that this takes.

        Args:
            name: of the array.
            indices: a slice, or a sequence or array of row numbers, `(rows,)`; negative ones count from the end.

        Returns:
            `(rows, *row_shape)` in the array's type.

        Raises:
            ArgumentError: there is no such array or row.
            StoreDamagedError: the file was removed or cut short in the meantime.
            StoreError: the store was closed, or the disk fails.
        """
        if self._read is None:
            raise StoreError("The feature store is closed. Open it again, or read before closing it.")
        spec = self.specs.get(name)
        if spec is None:
            names = ", ".join(repr(one) for one in self.specs)
            raise ArgumentError(
                f"The feature store holds the arrays {names}.{nearest(name, self.specs)} {received(name=name)}"
            )
        return self._read(spec, _normalize(indices, self.count))

    def close(self) -> None:
        """Let the rows go; remove the folder where it is a temporary one. Closing twice does no harm."""
        self._read = None
        if self._close is not None:
            self._close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class StoreWriter:
    """Features that are being written, chunk by chunk, by one thread at a time; a context manager.

    Leaving it without `finish` keeps what was appended to a folder, for `begin` to go on with.

    Attributes:
        specs: the arrays by name.
        count: the rows there will be, or `None` where nobody knows yet.
        rows_done: the rows that are there already. Always the end of a chunk that was appended, maybe by an earlier
            process: the next row to append is this one.
    """

    def __init__(self, specs: dict[str, ArraySpec], count: int | None, arrays, *, budget_bytes=None, owner=None):
        """Write to `arrays`: use `begin`, `temporary_store` or `memory_store` instead."""
        self.specs = specs
        self.count = count
        self.rows_done = arrays.record.rows
        self._arrays = arrays
        self._close_arrays = weakref.finalize(self, arrays.close)
        self._budget = budget_bytes
        self._owner = owner

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append one chunk to every array. When this returns, `kill -9` doesn't hurt the chunk any more.

        Args:
            rows: the values by array name, each `(rows, *row_shape)` with the same number of rows. Floats are rounded
                to the array's type.

        Raises:
            FeatureOverflowError: values that the type can't hold; nothing of the chunk is written.
            DataError: more rows than the store was begun for.
            ArgumentError: arrays that are missing, unknown, or of another shape.
            StoreError: the disk or the budget is full; what was appended before is safe.
        """
        self._check_open()
        count = self._check_rows(rows)
        if count == 0:
            return
        chunk = {name: cast_rows(spec, rows[name]) for name, spec in self.specs.items()}
        if self.count is None:
            check_budget((self.rows_done + count) * bytes_per_row(self.specs), self._budget)
            self._arrays.check_room(count * bytes_per_row(self.specs))
        self._arrays.write(chunk, count)
        self.rows_done += count

    def finish(self, details: Mapping | None = None) -> Store:
        """Complete the store.

        Args:
            details: anything that JSON can hold, kept with the store.

        Raises:
            DataError: fewer rows were appended than the store was begun for, or none at all.
            ArgumentError: details that JSON can't hold.
            StoreError: the disk is full or fails.
        """
        self._check_open()
        details = plain_details(details)
        if self.rows_done == 0 or self.rows_done != (self.count or self.rows_done):
            raise DataError(
                f"The store was begun for {self.count or 'at least one'} rows, and {self.rows_done} came. Did the "
                f"length of the data change? {received(rows_done=self.rows_done, count=self.count)}"
            )
        arrays, owner = self._arrays, self._owner
        record = arrays.finish(details)
        self._arrays = self._owner = None
        self._close_arrays()
        return Store(record, arrays.read, folder=arrays.folder, close=owner and owner.remove)

    def close(self) -> None:
        """Stop writing. What was appended to a folder stays there; a temporary store is removed."""
        self._close_arrays()
        if self._owner is not None:
            self._owner.remove()
        self._arrays = self._owner = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _check_open(self) -> None:
        if self._arrays is None:
            raise StoreError("Nothing can be written to a feature store that is finished or closed. Begin another one.")

    def _check_rows(self, rows: Mapping[str, np.ndarray]) -> int:
        if set(rows) != set(self.specs):
            raise ArgumentError(f"A chunk must hold the arrays {list(self.specs)}. {received(names=list(rows))}")
        lengths = {name: len(values) for name, values in rows.items()}
        if len(set(lengths.values())) > 1:
            raise ArgumentError(f"All arrays of a chunk must have the same number of rows. {received(rows=lengths)}")
        count = next(iter(lengths.values()))
        if self.count is not None and self.rows_done + count > self.count:
            raise DataError(
                f"The store was begun for {self.count} rows, and more came. Did the length of the data change? "
                f"{received(rows_done=self.rows_done, rows=count)}"
            )
        return count


def memory_store(specs: Specs, count: int | None, *, budget_bytes: int | None = None) -> StoreWriter:
    """Begin a store in memory, with the same interface as one on disk.

    Args:
        specs: its arrays.
        count: its rows, or `None` where nobody knows: then the arrays grow.
        budget_bytes: how large it may become.

    Raises:
        StoreError: it would be larger than the budget, or than memory.
        ArgumentError: specs or count that can't be.
    """
    specs, count = _check_arguments(specs, count, budget_bytes)
    return StoreWriter(specs, count, MemoryArrays(specs, count), budget_bytes=budget_bytes)


def begin(
    folder: str | os.PathLike,
    *,
    key: str,
    specs: Specs,
    count: int | None,
    budget_bytes: int | None = None,
    resume: bool = True,
) -> StoreWriter:
    """Begin a store in a folder, or go on with one that was not finished.

    What an earlier process appended is read and compared with its checksums first; from the first chunk on that is not
    as it was written, it is written again. The folder stays locked until `finish` or `close`.

    Args:
        folder: new, empty, or of an unfinished store of the same key.
        key: says what the features are of; different features must have different keys.
        specs: the arrays.
        count: the rows, or `None` where nobody knows yet.
        budget_bytes: how large the store may become.
        resume: whether to go on with an unfinished store instead of starting over.

    Raises:
        StoreError: no room on the disk or in the budget (checked before anything is written); the folder holds
            something else, another version of the format, or a complete store of this key; it can't be written.
        StoreMismatchError: the folder holds a store that was made for something else.
        StoreDamagedError: it holds a complete store that is damaged.
        StoreBusyError: another process works on it, or another writer of this one.
        ArgumentError: specs, key or count that can't be.
    """
    specs, count = _check_arguments(specs, count, budget_bytes)
    folder = _check_key_and_folder(key, folder)
    handle = acquire(folder, wait=False, writing=True)
    try:
        record = _find_start(folder, Record(key, specs, count), resume)
        if record.chunks == 0:
            remove_files(folder)
        if count != record.rows:
            check_free_space(folder, ((count or record.rows) - record.rows) * bytes_per_row(specs))
        arrays = DiskArrays(folder, record, lock=handle)
    except BaseException:
        handle.release()
        raise
    return StoreWriter(specs, count, arrays, budget_bytes=budget_bytes)


def open_store(folder: str | os.PathLike, *, key: str, verify: bool = True) -> Store | None:
    """Open a complete store; nothing is written, and no lock is needed.

    Args:
        folder: of the store.
        key: what it must have been made for.
        verify: whether every byte is compared with its checksum, which takes about a second per gigabyte. The sizes of
            the files are compared anyway.

    Returns:
        The store, or `None` where there is nothing, or nothing complete, for this key.

    Raises:
        StoreMismatchError: the store was made for something else.
        StoreDamagedError: a file was changed, cut short or removed; the message names it.
        StoreError: the folder holds something else, or another version of the format.
    """
    folder = _check_key_and_folder(key, folder)
    check_folder(folder)
    record = read_record(folder / MANIFEST)
    if record is None:
        with contextlib.suppress(StoreDamagedError):  # an unfinished store, which `begin` starts over
            progress = read_record(folder / PROGRESS)
            if progress is not None:
                _check_key(folder, progress, key)
        return None
    _check_key(folder, record, key)
    with report_unreadable(folder):
        check_complete(folder, record, contents=verify)
    return Store(record, lambda spec, chosen: read_rows(folder / spec.file_name, spec, chosen), folder=folder)


def discard(folder: str | os.PathLike) -> None:
    """Remove a store, complete or not, damaged or not, and its folder. Files of somebody else stay, and so the folder.

    Raises:
        StoreError: the folder holds something else than a store; nothing is removed.
        StoreBusyError: another process works on it, or a writer of this one.
    """
    folder = Path(folder).expanduser()
    check_folder(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    held = is_held(folder)
    handle = acquire(folder, wait=False, writing=True)
    try:
        remove_files(folder)
        if not held:
            with contextlib.suppress(OSError):  # Windows keeps an open file; files of somebody else keep the folder
                (folder / LOCK).unlink()
                folder.rmdir()
    except OSError as error:
        raise StoreError(f"The feature store {folder} can't be removed: {error}.") from error
    finally:
        handle.release()


def temporary_store(
    specs: Specs,
    count: int | None,
    *,
    directory: str | os.PathLike | None = None,
    budget_bytes: int | None = None,
) -> StoreWriter:
    """Begin a store on disk that is removed when it is closed, forgotten, or the interpreter ends.

    What earlier processes left behind in the same directory because they were killed is removed first.

    Args:
        specs: its arrays.
        count: its rows, or `None` where nobody knows yet.
        directory: where its folder is made; the system's temporary folder when nothing is said, which on some systems
            lies in memory.
        budget_bytes: how large it may become.

    Raises:
        StoreError: no room on the disk or in the budget, or no folder can be made.
        ArgumentError: specs or count that can't be.
    """
    specs, count = _check_arguments(specs, count, budget_bytes)
    parent = Path(directory or tempfile.gettempdir()).expanduser()
    remove_orphans(parent)
    check_free_space(parent, (count or 0) * bytes_per_row(specs))
    owner = TemporaryFolder(parent)
    arrays = DiskArrays(owner.path, Record(TEMPORARY_KEY, specs, count), sync=False)
    return StoreWriter(specs, count, arrays, budget_bytes=budget_bytes, owner=owner)


def _check_arguments(specs: Specs, count, budget_bytes) -> tuple[dict[str, ArraySpec], int | None]:
    specs = check_specs(specs)
    if budget_bytes is not None:
        budget_bytes = check_count("budget_bytes", budget_bytes, smallest=0, unit="bytes")
    if count is not None:
        count = check_count("count", count, unit="rows")
        check_budget(count * bytes_per_row(specs), budget_bytes)
    return specs, count


def _check_key_and_folder(key: str, folder: str | os.PathLike) -> Path:
    if not isinstance(key, str) or not key:
        raise ArgumentError(f"`key` must be a text that says what the features are of. {received(key=key)}")
    return Path(folder).expanduser()


def _check_key(folder: Path, record: Record, key: str) -> None:
    if record.key == key:
        return
    raise StoreMismatchError(
        f"The feature store {folder} was made for something else: another model, other data, or other settings. Name "
        f"another folder, or discard this one. {received(key=key, stored_key=record.key)}"
    )


def _find_start(folder: Path, wanted: Record, resume: bool) -> Record:
    """Return how far an unfinished store is, compared with what is wanted, or a record of nothing."""
    manifest = read_record(folder / MANIFEST)
    if manifest is not None:
        _check_key(folder, manifest, wanted.key)
        raise StoreError(f"The feature store {folder} is complete. Open it, or discard it before beginning anew.")
    try:
        record = read_record(folder / PROGRESS)
    except StoreDamagedError:  # whatever it spoke of can't be trusted
        return wanted
    if record is None:
        return wanted
    _check_key(folder, record, wanted.key)
    other_count = None not in (record.count, wanted.count) and record.count != wanted.count
    if other_count or list(record.specs.values()) != list(wanted.specs.values()):
        raise StoreMismatchError(
            f"The unfinished feature store {folder} has other arrays or another number of rows, though its key is the "
            "same. Name another folder, or discard this one. "
            f"{received(count=wanted.count, stored_count=record.count, stored_arrays=list(record.specs.values()))}"
        )
    if not resume:
        return wanted
    with report_unreadable(folder):
        return dataclasses.replace(find_intact(folder, record), count=wanted.count)


def _normalize(indices, count: int) -> slice | np.ndarray:
    """Return a slice in steps of one, or row numbers from 0, and nothing outside of the rows."""
    if isinstance(indices, slice):
        start, stop, step = indices.indices(count)
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise ArgumentError(f"`indices` must be a slice or a list of whole numbers. {received(indices=indices)}")
    if chosen.size and (chosen.max() >= count or chosen.min() < -count):
        raise ArgumentError(
            f"`indices` must name rows from 0 to {count - 1}. "
            f"{received(smallest=chosen.min().item(), largest=chosen.max().item())}"
        )
    chosen = chosen.astype("int64")
    return np.where(chosen < 0, chosen + count, chosen)
