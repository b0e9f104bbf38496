"""The files of a store: shards, plain `.npy` files that each hold some rows of one array, and the manifest that lists them.

`manifest.json` holds, for every shard, its rows and the name, bytes and checksum (CRC-32 of the rows, without the header) of
one file for each array; and a checksum of itself. So every byte is covered: the header follows from what the manifest says.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import threading
import weakref
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kerastl.checks import received
from kerastl.errors import ArgumentError, FeatureOverflowError, StoreDamagedError, StoreError, StoreMismatchError

FORMAT, VERSION = "kerastl feature store", 2
MANIFEST = "manifest.json"
# What may be removed; the second line is of version 1
OURS = re.compile(
    r"manifest\.json|\.manifest\.json\..+|\w+-\d{5,}\.npy(\.part)?"
    r"|progress\.json(\.tmp)?|checksums\.bin|\w+\.rows|kerastl-store\.lock"
)
HEADER_BYTES = 256
_WIDER = {"float16": "float32", "float32": "float64"}
_OPEN_FILES = 100  # macOS lets a process have 256


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a store: a name of letters, digits and underscores, the shape of one row, NumPy's name of a type."""

    name: str
    row_shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    def header(self, rows: int) -> bytes:
        """Return how an `.npy` file of so many rows begins (format 1.0), at the same length for any number of them."""
        descr, shape = np.dtype(self.dtype).str, (rows, *self.row_shape)
        text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(HEADER_BYTES - 11) + "\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()

    def cast(self, values) -> np.ndarray:
        """Return rows as they are stored: contiguous, floats rounded to the nearest, NaN and infinities as they are.

        Raises `FeatureOverflowError` where a finite value has no place in the type, or an integer would not stay exact.
        """
        values = np.asarray(values)
        if values.dtype.name == "bfloat16":  # a type of another package; every value is a float32
            values = values.astype("float32")
        if values.dtype.kind not in "fiub" or values.ndim == 0 or values.shape[1:] != self.row_shape:
            shape = ", ".join(map(str, ("rows", *self.row_shape)))
            given = received(dtype=str(values.dtype), shape=values.shape)
            raise ArgumentError(f"{self.name!r} must be real numbers of the shape ({shape}). {given}")
        target = np.dtype(self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            if (values.dtype, target) == (np.float32, np.float16):
                cast = _to_float16(values)
            else:
                cast = values.astype(target, order="C", copy=False)
            lost = np.isinf(cast) & np.isfinite(values) if target.kind == "f" else cast != values
        if lost.any():
            raise FeatureOverflowError(
                f"{self.name!r} holds values that {self.dtype} can't: {values[lost][0].item()!r}, for one. Store them as "
                f"{_WIDER.get(self.dtype, 'a type with a wider range')}. {received(count=int(lost.sum()))}"
            )
        return cast


def _to_float16(values: np.ndarray) -> np.ndarray:
    """Cast float32 as NumPy does, bit for bit; Keras's backends take a third of its time, and an 80th below 6e-5."""
    import keras  # not needed to read a store

    with keras.device("cpu"):
        return np.ascontiguousarray(keras.ops.convert_to_numpy(keras.ops.cast(values, "float16")))


def new_manifest(key: str, specs: Iterable[ArraySpec], count: int | None) -> dict:
    """Return the manifest of a store that holds no rows yet."""
    arrays = [{"name": spec.name, "row_shape": list(spec.row_shape), "dtype": spec.dtype} for spec in specs]
    known = {"format": FORMAT, "version": VERSION, "key": key, "arrays": arrays, "count": count}
    return {**known, "complete": False, "shards": [], "details": {}}


def sealed(manifest: dict) -> bytes:
    """Return the manifest as JSON with a checksum of itself. Whatever else changes, this stays as it is."""
    text = json.dumps(manifest, indent=1, sort_keys=True)
    return json.dumps({**manifest, "checksum": zlib.crc32(text.encode())}, indent=1, sort_keys=True).encode() + b"\n"


def specs_of(manifest: dict) -> dict[str, ArraySpec]:
    """Return the arrays that a manifest lists, by name."""
    return {one["name"]: ArraySpec(one["name"], tuple(one["row_shape"]), one["dtype"]) for one in manifest["arrays"]}


def read_manifest(folder: Path, key: str) -> dict | None:
    """Return what a folder's manifest says, or `None` where there is nothing; see `open_store` for what is raised."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith(f".{MANIFEST}."))
        name = MANIFEST if MANIFEST in names else "progress.json"  # of unfinished stores of version 1
        raw = (folder / name).read_bytes() if name in names else b""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{folder} can't be used as the folder of a feature store: {error}.") from error
    if not names:
        return None
    zeros = name in names and not raw.strip(b"\0")  # what a power failure may leave
    if FORMAT.encode() not in raw and not zeros:
        raise StoreError(
            f"{folder} holds something else than a feature store ({names[0]!r}, for one). Name a new or an empty folder. "
            f"{received(folder=str(folder))}"
        )
    return check_manifest(folder, raw, key, name)


def check_manifest(folder: Path | str, raw: bytes, key: str, name: str = MANIFEST) -> dict:
    """Return what the manifest of a folder, or at a URL, says; see `open_store` for what is raised."""
    try:
        manifest = json.loads(raw)
        del manifest["checksum"]
        whole = sealed(manifest) == raw
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise _damaged(folder, name, "its checksum is wrong")
    if manifest["version"] != VERSION:
        raise StoreDamagedError(
            f"The feature store {folder} was made by another release of kerastl, in another format."
        )
    if not all(OURS.fullmatch(file["name"]) for shard in manifest["shards"] for file in shard["files"]):
        raise _damaged(folder, name, "it names files outside of the folder")
    if manifest["key"] != key:
        raise StoreMismatchError(
            f"The feature store {folder} was made for something else: another model, other data, or other settings. Name "
            f"another folder, or remove this one. {received(key=key, stored_key=manifest['key'])}"
        )
    return manifest


def check_shard(folder: Path, shard: dict, specs: Iterable[ArraySpec], being_written: bool = False) -> None:
    """Raise `StoreDamagedError` unless files are what was written; those being written lack a header and may be longer."""
    for spec, file in zip(specs, shard["files"], strict=True):
        path = folder / file["name"]
        if being_written and not path.exists():
            path = path.with_name(path.name + ".part")
        with _reading(folder):
            content = path.read_bytes()
        check_file(folder, file, None if being_written else spec.header(shard["rows"]), content)


def check_file(folder: Path | str, file: dict, header: bytes | None, content: bytes) -> None:
    """Raise `StoreDamagedError` unless this is what was written; without a header it is still being written."""
    content, name = memoryview(content), file["name"]
    if len(content) < file["bytes"] or (len(content) > file["bytes"] and header):
        raise _damaged(folder, name, f"it has {len(content)} bytes instead of {file['bytes']}")
    if header and content[:HEADER_BYTES] != header:
        raise _damaged(folder, name, "its header is wrong")
    if zlib.crc32(content[HEADER_BYTES : file["bytes"]]) != file["checksum"]:
        raise _damaged(folder, name, "its checksum is wrong")


@contextlib.contextmanager
def _reading(folder: Path):
    """A missing file is damage; missing rights or a bad disk are not."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise _damaged(folder, os.path.basename(error.filename), "the file is missing") from error
    except OSError as error:
        raise StoreError(f"The feature store {folder} can't be read: {error}.") from error


def _damaged(folder: Path | str, name: str, what: str) -> StoreDamagedError:
    return StoreDamagedError(f"The feature store {folder} is damaged: {name}: {what}.")


class Reader:
    """Reads rows from shards. Nothing is mapped: a mapped file counts as memory in use, and kills where the disk fails.

    `open_file` opens a file by its name, by default one in the folder; so many are open at most.
    """

    def __init__(self, folder: Path | str, manifest: dict, open_file=None, most_open: int | None = None):
        self._folder, self._shards, self._most_open = folder, manifest["shards"], most_open or _OPEN_FILES
        self._open_file = open_file or (lambda name: open(folder / name, "rb", buffering=0))  # noqa: SIM115
        self._places = {array["name"]: index for index, array in enumerate(manifest["arrays"])}
        self._ends = np.cumsum([shard["rows"] for shard in self._shards])
        self._files, self._lock, self._let_go = {}, threading.Lock(), lambda: None
        if open_file is None:
            self._hold(folder / MANIFEST)

    def read(self, spec: ArraySpec, rows: np.ndarray) -> np.ndarray:
        """Read run by run: rows that follow each other in one shard come in one go, straight to where they belong."""
        values = np.empty((len(rows), *spec.row_shape), spec.dtype)
        target, size = values.reshape(-1).view("uint8").data, spec.row_bytes
        shards = np.searchsorted(self._ends, rows, side="right")
        starts = rows - np.concatenate([[0], self._ends])[shards]
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(shards) != 0)) + 1
        begins = np.concatenate([[0], breaks])[: len(rows)]  # none where there are no rows
        ends = np.concatenate([breaks, [len(rows)]])[: len(rows)]
        runs = np.stack([begins, ends, shards[begins], starts[begins]], axis=1).tolist()
        with self._lock, _reading(self._folder):
            for begin, end, shard, start in runs:
                name = self._shards[shard]["files"][self._places[spec.name]]["name"]
                stream = self._open(name)
                stream.seek(HEADER_BYTES + start * size)
                left = target[begin * size : end * size]
                while left:
                    done = stream.readinto(left)
                    if not done:
                        raise _damaged(self._folder, name, "it ends too early")
                    left = left[done:]
        return values

    def close(self) -> None:
        for stream in self._files.values():
            stream.close()
        self._files.clear()
        self._let_go()

    def _hold(self, manifest: Path) -> None:
        """Keep the manifest open and locked, as far as the disk can: `kerastl cache` removes nothing that is read."""
        mark = os.open(manifest, os.O_RDONLY)
        self._let_go = weakref.finalize(self, os.close, mark)
        with contextlib.suppress(ImportError, OSError):  # Windows; and disks without locks
            import fcntl

            fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _open(self, name: str):
        place = (os.getpid(), name)  # a forked child would move the position in its parent's file
        if place not in self._files:
            if len(self._files) >= self._most_open - 1:  # the manifest is open as well
                self._files.pop(next(iter(self._files))).close()
            self._files[place] = self._open_file(name)
        return self._files[place]
