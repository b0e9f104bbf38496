"""The store: features of images, written once in order, read many times in any order.

On disk it is a folder of shards, plain `.npy` files that each hold some rows of one array, and `manifest.json`, which
lists them with their rows, bytes and checksums. The shards being written are called `.npy.part`; once they are large
enough they are flushed to the disk and renamed, and never change again. The manifest is replaced whole after every append,
so `kill -9` at any moment loses at most the chunk that was on its way; last of all it says that the store is complete. A
store is used only when it is complete, made for the same thing (the key), and, by its checksums, byte for byte what was
written. Two processes share a folder by its `lock`: whoever comes first makes the store, the other one opens it.
"""

import contextlib
import errno
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import filelock
import numpy as np

from kerastl.checks import received
from kerastl.errors import ArgumentError, DataError, OutputError, StoreDamagedError, StoreError, warn
from kerastl.features import shards
from kerastl.features.shards import ArraySpec
from kerastl.files import check_free_space, write_whole
from kerastl.tables import readable_bytes

SHARD_BYTES = 64 * 2**20  # shards are closed by the first chunk that makes them, all arrays together, this large
SPARE_BYTES = 100_000_000  # left free on the disk, for everybody else

_TEMPORARY = "kerastl-temporary-store-"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Store(contextlib.AbstractContextManager):
    """Complete features, for any thread to read: `count` rows of the arrays `specs`, and the `details` given to `finish`."""

    def __init__(self, specs: dict[str, ArraySpec], count: int, details: dict, read: Callable, close: Callable):
        self.specs, self.count, self.details = specs, count, details
        self._read, self._close, self._numbers = read, close, np.arange(count)
        self.tensors = {}  # the arrays that are on the device
        # of rows that lie far away, of which so many shards are near at a time
        self.shard_ends, self.shards_at_once = [], 1

    def read(self, name: str, indices) -> np.ndarray:
        """Return rows of one array, `(rows, *row_shape)`, as new memory, which is all the memory that this takes.

        `indices` are as NumPy takes them: a slice, or whole numbers `(rows,)`. Raises `StoreDamagedError` where a file was
        removed or cut short in the meantime.
        """
        if self._read is None:
            raise StoreError("The feature store is closed. Open it again, or read before closing it.")
        return self._read(self.specs[name], self._numbers[indices])

    def shuffled(self, random: np.random.Generator, views: int = 1) -> np.ndarray:
        """Return the numbers of the images, of so many rows each, in a new order; of far rows some shards after others."""
        parts = np.split(np.arange(self.count // views), np.array(self.shard_ends, "int64") // views)
        parts = [parts[index] for index in random.permutation(len(parts))]
        groups = (parts[start : start + self.shards_at_once] for start in range(0, len(parts), self.shards_at_once))
        return np.concatenate([random.permutation(np.concatenate(group)) for group in groups])

    def close(self) -> None:
        """Let the rows go; remove the folder where it is a temporary one. Closing twice does no harm."""
        self._read, self.tensors = None, {}
        self._close()

    def __exit__(self, *_):
        self.close()


class StoreWriter(contextlib.AbstractContextManager):
    """Features that are being written, chunk by chunk, by one thread at a time; a context manager.

    Leaving it without `finish` keeps what was appended to a folder, for `begin` to go on with. `count` is the rows there
    will be, or `None` where nobody knows yet; `rows_done` are there already, maybe from an earlier process.
    """

    def __init__(self, specs: Iterable[ArraySpec], count: int | None, budget_bytes: int | None = None):
        self.specs = {spec.name: spec for spec in specs}
        self.count, self.rows_done = count, 0
        self._row_bytes = sum(spec.row_bytes for spec in self.specs.values())
        self._budget, self._open = budget_bytes, True
        self._check_room(count or 0)

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append one chunk to every array, `(rows, *row_shape)` each, floats rounded to the array's type.

        When this returns, `kill -9` doesn't hurt the chunk any more. Raises `FeatureOverflowError` for values that the type
        can't hold, before anything of the chunk is written, `DataError` for more rows than the store was begun for, and
        `StoreError` where the disk or the budget is full; what was appended before is safe.
        """
        lengths = {name: len(values) for name, values in rows.items()}
        count = next(iter(lengths.values()), 0)
        if set(rows) != set(self.specs) or set(lengths.values()) != {count}:
            names = ", ".join(self.specs)
            raise ArgumentError(f"A chunk must hold {names}, all with as many rows. {received(rows=lengths)}")
        if self.count is not None and self.rows_done + count > self.count:
            raise self._other_length(f"{self.rows_done + count} or more")
        chunk = {name: self._cast(spec, rows[name]) for name, spec in self.specs.items()}
        if count:
            if self.count is None:
                self._check_room(self.rows_done + count)
            with self._explained(count):
                self._write(chunk, count)
            self.rows_done += count

    def finish(self, details: dict | None = None) -> Store:
        """Complete the store, with details that JSON can hold; raise `DataError` for fewer rows than promised, or none."""
        if self.rows_done == 0 or self.rows_done != (self.count or self.rows_done):
            raise self._other_length(self.rows_done)
        with self._explained():
            store = self._complete(details or {})
        self._open = False
        return store

    def close(self) -> None:
        """Stop writing. What was appended to a folder stays there; an unfinished temporary store is removed."""
        self._open = False

    def __exit__(self, *_):
        self.close()

    def _cast(self, spec: ArraySpec, values):
        return spec.cast(values)

    def _other_length(self, rows) -> DataError:
        return DataError(
            f"The store was begun for {self.count or 'at least one'} rows, and {rows} came. Did the length of the data "
            f"change? {received(rows=rows, count=self.count)}"
        )

    def _check_room(self, rows: int) -> None:
        """Raise `StoreError` where a store of so many rows takes more bytes than it may, or than there are."""
        needed = rows * self._row_bytes
        if self._budget is not None and needed > self._budget:
            raise StoreError(
                f"The features need {readable_bytes(needed)}, the budget is {readable_bytes(self._budget)}. Raise the "
                "budget, use fewer views, or train without stored features. "
                f"{received(needed_bytes=needed, budget_bytes=self._budget)}"
            )

    @contextlib.contextmanager
    def _explained(self, rows: int = 0):
        """Turn what the system says into a `StoreError`; so many rows are on their way."""
        if not self._open:
            raise StoreError("Nothing can be written to a feature store that is finished or closed. Begin another one.")
        needed = readable_bytes((rows if self.count is None else self.count - self.rows_done) * self._row_bytes)
        try:
            yield
        except MemoryError as error:
            raise StoreError(f"The features ({needed} more) don't fit into memory. Keep them on disk.") from error
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise StoreError(f"The feature store can't be written: {error}.") from error
            raise StoreError(
                f"The disk is full: the feature store needs {needed} more. Its first {self.rows_done} rows are safe: make "
                f"room and run again to go on from there. {received(rows_done=self.rows_done, count=self.count)}"
            ) from error


class MemoryWriter(StoreWriter):
    """A store in memory, for a known number of rows: plain arrays."""

    def __init__(self, specs: Iterable[ArraySpec], count: int, budget_bytes: int | None = None):
        super().__init__(specs, count, budget_bytes)
        with self._explained():
            self._arrays = {one.name: np.empty((count, *one.row_shape), one.dtype) for one in self.specs.values()}

    def _write(self, chunk, count):
        for name, array in self._arrays.items():
            array[self.rows_done : self.rows_done + count] = chunk[name]

    def _complete(self, details):
        arrays, self._arrays = self._arrays, {}

        def read(spec, rows):
            return arrays[spec.name].take(rows, axis=0)

        return Store(self.specs, self.rows_done, details, read, arrays.clear)


class FolderWriter(StoreWriter):
    """A store in a folder; `manifest` lists the shards that are there already, the last of which is still being written."""

    def __init__(self, folder: Path, manifest: dict, specs, count, budget_bytes=None, temporary: bool = False):
        self._folder, self._manifest, self._durable = folder, manifest, not temporary
        super().__init__(specs, count, budget_bytes)
        self._release = lambda: None
        self.rows_done = sum(shard["rows"] for shard in manifest["shards"])
        kept = {shards.MANIFEST, *(file["name"] for shard in manifest["shards"] for file in shard["files"])}
        with self._explained():
            if temporary:
                held = filelock.FileLock(f"{folder}.lock", thread_local=False)  # nobody's orphan while it is held
                held.acquire()
                self._release = weakref.finalize(self, _remove_temporary, folder, held, os.getpid())
            folder.mkdir(parents=True, exist_ok=True)
            self._save(manifest)
            for path in folder.iterdir():
                if shards.OURS.fullmatch(path.name) and path.name.removesuffix(".part") not in kept:
                    path.unlink()
            for file in manifest["shards"][-1]["files"] if manifest["shards"] else ():
                if (folder / file["name"]).exists():
                    os.replace(folder / file["name"], self._part(file))

    def close(self):
        if self._open:
            self._release()
        super().close()

    def _check_room(self, rows):
        super()._check_room(rows)
        missing = rows - sum(shard["rows"] for shard in self._manifest["shards"])
        try:
            check_free_space(self._folder, missing * self._row_bytes + SPARE_BYTES if missing > 0 else 0)
        except OutputError as error:
            raise StoreError(str(error)) from error

    def _write(self, chunk, count):
        written = self._manifest["shards"]
        closing = bool(written) and sum(file["bytes"] for file in written[-1]["files"]) >= SHARD_BYTES
        if closing:
            self._close_shard()
        if closing or not written:
            names = [f"{name}-{len(written):05d}.npy" for name in self.specs]
            files = [{"name": name, "bytes": shards.HEADER_BYTES, "checksum": 0} for name in names]
            written = [*written, {"rows": 0, "files": files}]
        rows, files = written[-1]["rows"], []
        for file, array in zip(written[-1]["files"], chunk.values(), strict=True):
            with open(self._part(file), "r+b" if rows else "wb") as stream:  # anew: a writer holds nothing to give back
                stream.seek(file["bytes"])
                stream.write(array)
            size, checksum = file["bytes"] + array.nbytes, zlib.crc32(array, file["checksum"])
            files.append({"name": file["name"], "bytes": size, "checksum": checksum})
        self._save({**self._manifest, "shards": [*written[:-1], {"rows": rows + count, "files": files}]}, closing)

    def _complete(self, details):
        self._close_shard()
        self._save({**self._manifest, "count": self.rows_done, "complete": True, "details": details}, durable=True)
        reader = shards.Reader(self._folder, self._manifest)

        def close():
            reader.close()
            self._release()  # a temporary store is there as long as this writer, which the `Store` holds by this

        return Store(self.specs, self.rows_done, details, reader.read, close)

    def _close_shard(self) -> None:
        """Give the shard being written its header and its name; does no harm where that was done before a failure."""
        shard = self._manifest["shards"][-1]
        for spec, file in zip(self.specs.values(), shard["files"], strict=True):
            if self._part(file).exists():
                with open(self._part(file), "r+b") as stream:
                    stream.write(spec.header(shard["rows"]))
                    stream.truncate(file["bytes"])
                    if self._durable:
                        os.fsync(stream.fileno())
                os.replace(self._part(file), self._folder / file["name"])
        if self._durable and os.name == "posix":  # so that the names outlive a power failure, too
            descriptor = os.open(self._folder, os.O_RDONLY)
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
            os.close(descriptor)

    def _save(self, manifest: dict, durable: bool = False) -> None:
        write_whole(self._folder / shards.MANIFEST, shards.sealed(manifest), durable=durable and self._durable)
        self._manifest = manifest

    def _part(self, file: dict) -> Path:
        return self._folder / (file["name"] + ".part")


def temporary_store(specs: Iterable[ArraySpec], count: int | None, *, budget_bytes: int | None = None) -> StoreWriter:
    """Begin a temporary store, removed when it is closed or forgotten; those that killed processes left go first."""
    specs, parent = list(specs), Path(tempfile.gettempdir())
    for path in parent.glob(_TEMPORARY + "[0-9a-f]" * 16 + ".lock"):
        held = filelock.FileLock(path)
        with contextlib.suppress(OSError):  # not free, or somebody else's
            held.acquire(timeout=0)
            _remove_temporary(path.with_suffix(""), held, os.getpid())
    folder = parent / (_TEMPORARY + os.urandom(8).hex())
    manifest = shards.new_manifest(_TEMPORARY, specs, count)
    return FolderWriter(folder, manifest, specs, count, budget_bytes, temporary=True)


def begin(
    folder, *, key: str, specs: Iterable[ArraySpec], count: int | None, budget_bytes=None, resume=True
) -> StoreWriter:
    """Begin a store in a folder, or go on with one that was not finished; hold its `lock` meanwhile.

    What an earlier process appended is compared with its checksums first; from the first shard on that is not as it was
    written, it is written again. A store that is complete or damaged, or has other arrays or rows, is rebuilt; one of another
    `key`, which says what the features are of, raises `StoreMismatchError`, a folder that holds something else `StoreError`,
    as does a lack of room, before anything is written.
    """
    folder, specs = Path(folder).expanduser(), list(specs)
    manifest = shards.new_manifest(key, specs, count)
    with contextlib.suppress(StoreDamagedError):
        earlier = shards.read_manifest(folder, key)
        if resume and earlier is not None and {**earlier, "shards": []} == manifest:
            for shard in earlier["shards"]:
                shards.check_shard(folder, shard, specs, being_written=shard is earlier["shards"][-1])
                manifest["shards"].append(shard)
    return FolderWriter(folder, manifest, specs, count, budget_bytes)


def open_store(folder: str | os.PathLike, *, key: str) -> Store | None:
    """Return the store in a folder, or `None` where nothing complete is; no lock is needed. Every byte is checked.

    Raises `StoreMismatchError` where it was made for something else, `StoreDamagedError` where a file was changed, cut short
    or removed, or has another release's format, `StoreError` where the folder holds something else, or can't be read.
    """
    folder = Path(folder).expanduser()
    manifest = shards.read_manifest(folder, key)
    if manifest is None or not manifest["complete"]:
        return None
    specs = shards.specs_of(manifest)
    for shard in manifest["shards"]:
        shards.check_shard(folder, shard, specs.values())
    reader = shards.Reader(folder, manifest)
    return Store(specs, manifest["count"], manifest["details"], reader.read, reader.close)


@contextlib.contextmanager
def lock(folder: str | os.PathLike, *, on_wait: Callable[[], None]):
    """Hold a store's folder by a file beside it, which even `kill -9` frees; `on_wait` is called once, before waiting.

    On a disk without locks, as some network mounts are, nothing is held, and a warning says so.
    """
    folder = Path(folder).expanduser()
    held = filelock.FileLock(f"{folder}.lock", fallback_to_soft=False)  # a soft one would outlive a kill
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            on_wait()
            held.acquire()
    except OSError as error:
        if error.errno in NO_LOCKS:
            warn(f"The disk of {folder.parent} knows no locks: see to it that one process at a time works there.")
        else:
            raise StoreError(
                f"{folder} can't be locked ({error}), so two processes could spoil each other's features. Use a folder on "
                f"another disk. {received(folder=str(folder))}"
            ) from error
    try:
        yield
    finally:
        held.release()


def _remove_temporary(folder: Path, held: filelock.FileLock, process: int) -> None:
    if os.getpid() != process:  # a forked child that ends: the folder is its parent's
        return
    shutil.rmtree(folder, ignore_errors=True)
    held.release()
    with contextlib.suppress(OSError):
        os.unlink(held.lock_file)
