"""The arrays of a store on disk: room for them, writing them in order, reading rows of them.

Nothing is written through to the disk chunk by chunk: when the process dies, the operating system still has what it was
given. When the power fails, it may lose the last seconds; the next run finds out by the checksums and goes on from the
last whole chunk. (On a virtual machine's SSD, `fdatasync` after each chunk made one of 12.8 MB take 32 ms instead of
15, and one of 1 MB 13 ms instead of 1.) `finish` writes everything through before the manifest appears, so that a
manifest never speaks of bytes that are not there.
"""

import contextlib
import dataclasses
import errno
import os
import shutil
import zlib
from pathlib import Path

import numpy as np

from kerastl.checks import received
from kerastl.errors import StoreError
from kerastl.features.locking import LockHandle
from kerastl.features.records import (
    ARRAY_SUFFIX,
    CHECKSUMS,
    MANIFEST,
    PROGRESS,
    TEMPORARY,
    ArraySpec,
    Record,
    bytes_per_row,
    check_chunks,
    damaged,
    read_chunks,
    report_unreadable,
    write_atomically,
)
from kerastl.tables import readable_bytes

SPARE_BYTES = 100_000_000
"""What a store leaves free on the disk, for everybody else."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SMALL_SPAN = 1 << 16


class DiskArrays:
    """The files of a store that is being written; see `StoreWriter`, which is the way to use it."""

    def __init__(self, folder: Path, record: Record, *, lock: LockHandle | None = None, sync: bool = True):
        """Open the files and cut off what is beyond the record.

        Args:
            folder: of the store, locked.
            record: how far it is.
            lock: what `close` gives back.
            sync: whether `finish` makes sure that a power failure spares the store.
        """
        self.folder = folder
        self.record = record
        self._lock = lock
        self._sync = sync
        self._files = {}
        try:
            for name, (file_name, size) in self._sizes().items():
                self._files[name] = _open_for_writing(folder / file_name)
                self._files[name].truncate(size)
            write_atomically(folder / PROGRESS, record.to_bytes())
        except BaseException as error:
            self._close_files()
            if isinstance(error, OSError):
                raise self._explain(error, 0) from error
            raise

    def check_room(self, needed: int) -> None:
        """Raise `StoreError` where the disk has no room for that many bytes more."""
        check_free_space(self.folder, needed)

    def read(self, spec: ArraySpec, selection: slice | np.ndarray) -> np.ndarray:
        """Read some rows."""
        return read_rows(self.folder / spec.file_name, spec, selection)

    def write(self, chunk: dict[str, np.ndarray], rows: int) -> None:
        """Append one chunk, arrays as they will lie on disk: all of it or, when the disk is full, none of it."""
        record = self.record
        pieces = {name: array.reshape(-1).view("uint8").data for name, array in chunk.items()}
        entry = np.array([rows, *(zlib.crc32(piece) for piece in pieces.values())], "<u4").tobytes()
        try:
            for name, piece in pieces.items():
                _write_at(self._files[name], record.rows * record.specs[name].row_bytes, piece)
            _write_at(self._files[CHECKSUMS], record.chunks * len(entry), memoryview(entry))
            record = dataclasses.replace(
                record,
                rows=record.rows + rows,
                chunks=record.chunks + 1,
                checksum=zlib.crc32(entry, record.checksum),
            )
            write_atomically(self.folder / PROGRESS, record.to_bytes())
        except OSError as error:
            self._cut_back()
            raise self._explain(error, rows) from error
        self.record = record

    def finish(self, details: dict) -> Record:
        """Write the manifest, the last file of a store, and return what it says."""
        record = dataclasses.replace(self.record, count=self.record.rows, details=details)
        try:
            self._cut_back()
            if self._sync:
                for file in self._files.values():
                    os.fsync(file.fileno())
            # By way of the progress record, so that never both of them are there
            write_atomically(self.folder / PROGRESS, record.to_bytes(), sync=self._sync)
            os.replace(self.folder / PROGRESS, self.folder / MANIFEST)
            if self._sync:
                _sync_folder(self.folder)
        except OSError as error:
            raise self._explain(error, 0) from error
        return record

    def close(self) -> None:
        """Close the files and give the lock back."""
        self._close_files()
        if self._lock is not None:
            self._lock.release()

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()

    def _sizes(self) -> dict[str, tuple[str, int]]:
        record = self.record
        sizes = {name: (spec.file_name, record.rows * spec.row_bytes) for name, spec in record.specs.items()}
        return {**sizes, CHECKSUMS: (CHECKSUMS, record.chunks * (1 + len(record.specs)) * 4)}

    def _cut_back(self) -> None:
        """Remove what an append that failed left behind, where the disk lets us: the next one writes over it anyway."""
        for name, (_, size) in self._sizes().items():
            with contextlib.suppress(OSError):
                self._files[name].truncate(size)

    def _explain(self, error: OSError, rows: int) -> StoreError:
        if error.errno not in _NO_ROOM:
            return StoreError(f"The feature store {self.folder} can't be written: {error}.")
        record = self.record
        left = rows if record.count is None else record.count - record.rows
        needed = left * bytes_per_row(record.specs)
        total = "" if record.count is None else f" of {record.count}"
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.folder).free
            return StoreError(
                f"The disk is full: the feature store {self.folder} needs {readable_bytes(needed)} more, "
                f"{readable_bytes(free)} are free. Its first {record.rows}{total} rows are safe: make room and run again "
                f"to go on from there. {received(needed_bytes=needed, free_bytes=free)}"
            )
        return StoreError(f"The feature store {self.folder} can't be written: {error}.")


def find_intact(folder: Path, record: Record) -> Record:
    """Return the record of the chunks that are as they were written, up to the first that is not."""
    chunks = read_chunks(folder, record.specs, record.chunks)
    good, _ = check_chunks(folder, record.specs, chunks)
    chunks = chunks[:good]
    rows = int(chunks[:, 0].sum(dtype="int64"))
    return dataclasses.replace(record, rows=rows, chunks=good, checksum=zlib.crc32(chunks.tobytes()), details={})


def remove_files(folder: Path) -> None:
    """Remove the files of a store, but for the lock, the manifest first: half removed, a store is not a store."""
    for name in (MANIFEST, PROGRESS, TEMPORARY, CHECKSUMS):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("*" + ARRAY_SUFFIX):
        path.unlink()


def read_rows(path: Path, spec: ArraySpec, selection: slice | np.ndarray) -> np.ndarray:
    """Read rows of an array's file into new memory; nothing stays open, mapped or cached.

    Args:
        path: the file.
        spec: of the array.
        selection: a slice from start to stop in steps of one, or row numbers from 0.

    Raises:
        StoreDamagedError: the file is gone, or ends too early.
    """
    with report_unreadable(path), open(path, "rb", buffering=0) as file:
        if isinstance(selection, slice):
            rows = _read_run(file, spec, selection.start, selection.stop)
        else:
            rows = _read_scattered(file, spec, selection)
    return rows.astype(spec.dtype, copy=False)


def check_budget(needed: int, budget: int | None) -> None:
    """Raise `StoreError` where a store takes more bytes than it may."""
    if budget is None or needed <= budget:
        return
    raise StoreError(
        f"The features need {readable_bytes(needed)}, the budget is {readable_bytes(budget)}. Raise the budget, use fewer "
        f"views, or train without stored features. {received(needed_bytes=needed, budget_bytes=budget)}"
    )


def check_free_space(folder: Path, needed: int) -> None:
    """Raise `StoreError` unless the folder's disk has this many bytes free, and some to spare."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if needed + SPARE_BYTES <= free:
        return
    raise StoreError(
        f"There is no room for the feature store {folder}: it needs {readable_bytes(needed)}, and "
        f"{readable_bytes(SPARE_BYTES)} to spare; {readable_bytes(free)} are free. Make room, or use a folder on another "
        f"disk. {received(needed_bytes=needed, free_bytes=free)}"
    )


def _open_for_writing(path: Path):
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)


def _write_at(file, offset: int, data: memoryview) -> None:
    file.seek(offset)
    while data:
        data = data[file.write(data) :]


def _read_run(file, spec: ArraySpec, start: int, stop: int) -> np.ndarray:
    rows = np.empty((stop - start, *spec.row_shape), spec.stored_dtype)
    _read_at(file, start * spec.row_bytes, rows.reshape(-1).view("uint8").data)
    return rows


def _read_scattered(file, spec: ArraySpec, indices: np.ndarray) -> np.ndarray:
    """Read row by row, or in one go where the rows lie close together."""
    if len(indices) == 0:
        return np.empty((0, *spec.row_shape), spec.stored_dtype)
    first, last = int(indices.min()), int(indices.max())
    if (last + 1 - first) * spec.row_bytes <= max(_SMALL_SPAN, 2 * len(indices) * spec.row_bytes):
        return _read_run(file, spec, first, last + 1)[indices - first]
    rows = np.empty((len(indices), *spec.row_shape), spec.stored_dtype)
    parts = rows.reshape(len(indices), -1).view("uint8")
    for index, part in zip(indices.tolist(), parts, strict=True):
        _read_at(file, index * spec.row_bytes, part.data)
    return rows


def _read_at(file, offset: int, target: memoryview) -> None:
    file.seek(offset)
    while target:
        done = file.readinto(target)
        if not done:
            raise damaged(Path(file.name), "it ends too early")
        target = target[done:]


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power failure, where the system can (Windows does it by itself)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
