"""What stands beside the arrays of a feature store: its manifest, its progress, and the checksums of its chunks.

A store is a folder of plain files:

- `<array>.rows`: the rows of one array, one after another, little-endian, without a header;
- `checksums.bin`: for every chunk that was appended, as little-endian 32-bit numbers, its rows and a CRC-32 per array;
- `progress.json` while it is being written, `manifest.json` (written last) once it is complete;
- `kerastl-store.lock`: the lock, which also marks the folder as a store.

Every byte is covered: the arrays by the checksums, those by the record, the record by its own checksum.
"""

import dataclasses
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError, KerastlError, StoreDamagedError, StoreError

FORMAT = "kerastl feature store"
VERSION = 1
"""Goes up when older code could misread a store. Whatever changes, `to_bytes` and its checksum stay as they are."""

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
TEMPORARY = "progress.json.tmp"
CHECKSUMS = "checksums.bin"
LOCK = "kerastl-store.lock"
ARRAY_SUFFIX = ".rows"

_PIECE = 1 << 20


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a store, but for its number of rows.

    Attributes:
        name: letters, digits and underscores, as in "features_0", "labels", "sample_weights"; also the file's name.
        row_shape: the shape of one row; `()` for one number.
        dtype: the NumPy name of a real number type, as in "float16".
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: str

    def __post_init__(self):
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,100}", self.name):
            raise ArgumentError(f"An array's name must be letters, digits and underscores. {received(name=self.name)}")
        shape = tuple(check_count("row_shape", side) for side in self.row_shape)
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise ArgumentError(f"`dtype` must be the name of a NumPy type. {received(dtype=self.dtype)}") from error
        if dtype.kind not in "fiub":
            raise ArgumentError(f"`dtype` must be of real numbers, such as 'float16'. {received(dtype=self.dtype)}")
        object.__setattr__(self, "row_shape", shape)
        object.__setattr__(self, "dtype", dtype.name)

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @property
    def stored_dtype(self) -> np.dtype:
        """The type as it lies on disk: little-endian on every machine."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def file_name(self) -> str:
        """The name of the array's file."""
        return self.name + ARRAY_SUFFIX


def check_specs(specs: Iterable[ArraySpec] | Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """Return the specs by name; raise `ArgumentError` for none, for something else, or for two of one name."""
    listed = list(specs.values() if isinstance(specs, Mapping) else specs)
    if not listed or not all(isinstance(spec, ArraySpec) for spec in listed):
        raise ArgumentError(f"`specs` must hold at least one `ArraySpec`, and nothing else. {received(specs=listed)}")
    if len({spec.name.casefold() for spec in listed}) < len(listed):  # some disks don't tell A from a
        names = [spec.name for spec in listed]
        raise ArgumentError(f"Every array needs a name of its own. {received(names=names)}")
    return {spec.name: spec for spec in listed}


def bytes_per_row(specs: Mapping[str, ArraySpec]) -> int:
    """Return the bytes that one row takes in all arrays together."""
    return sum(spec.row_bytes for spec in specs.values())


@dataclasses.dataclass(frozen=True)
class Record:
    """What `progress.json` and `manifest.json` hold.

    Attributes:
        key: what the store was made for.
        specs: its arrays by name.
        count: the rows it will have; `None` while nobody knows. In a manifest, the rows it has.
        rows: the rows that are there.
        chunks: the chunks that they came in.
        checksum: CRC-32 of the first `chunks` entries of `checksums.bin`.
        details: whatever the maker of the store wanted to keep with it.
    """

    key: str
    specs: dict[str, ArraySpec]
    count: int | None
    rows: int = 0
    chunks: int = 0
    checksum: int = 0
    details: dict = dataclasses.field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the record as JSON with a checksum of itself; the same record gives the same bytes."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "key": self.key,
            "arrays": [
                {"name": spec.name, "row_shape": list(spec.row_shape), "dtype": spec.dtype}
                for spec in self.specs.values()
            ],
            "count": self.count,
            "rows": self.rows,
            "chunks": self.chunks,
            "checksums": self.checksum,
            "details": self.details,
        }
        return _seal(content)


def plain_details(details: Mapping | None) -> dict:
    """Return the details as they will be read back from JSON; raise `ArgumentError` where JSON can't hold them."""
    try:
        if details is not None and not isinstance(details, Mapping):
            raise TypeError("a dictionary is needed")
        return json.loads(json.dumps(dict(details or {}), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"`details` must be a dictionary of what JSON can hold: {error}. {received(details=details)}"
        ) from error


def read_record(path: Path) -> Record | None:
    """Read a manifest or a progress record; `None` where there is no such file.

    Raises:
        StoreDamagedError: the file is not what was written.
        StoreError: it is of another version of the format, or something else altogether.
    """
    if not os.path.lexists(path):
        return None
    with report_unreadable(path):
        raw = path.read_bytes()
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        if (path.parent / LOCK).exists():
            raise damaged(path, "it is no JSON") from error
        raise StoreError(f"{path} is not of a feature store. {received(folder=str(path.parent))}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(f"{path} is not of a feature store. {received(folder=str(path.parent))}")
    if _seal({name: value for name, value in content.items() if name != "checksum"}) != raw:
        raise damaged(path, "its checksum is wrong")
    if content.get("version") != VERSION:
        raise StoreError(
            f"{path} is of version {content.get('version')} of the format; this release of kerastl reads version "
            f"{VERSION}. Use another folder, or the release that made it. {received(folder=str(path.parent))}"
        )
    try:
        return _parse(content)
    except (ArgumentError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"an entry is missing or unusable ({error})") from error


def write_atomically(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file whole or not at all, next to itself; with `sync` also through to the disk."""
    temporary = path.with_name(TEMPORARY)
    with open(temporary, "wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def report_unreadable(path: Path):
    """Turn what the system says into a `StoreError`: a missing file is damage, missing rights or a bad disk are not."""
    try:
        yield
    except KerastlError:
        raise
    except FileNotFoundError as error:
        raise damaged(Path(error.filename or path), "the file is missing") from error
    except OSError as error:
        raise StoreError(f"The feature store's {path} can't be read: {error}.") from error


def damaged(path: Path, what: str) -> StoreDamagedError:
    """Return the error that names a damaged file."""
    return StoreDamagedError(
        f"The feature store {path.parent} is damaged: {path.name}: {what}. Delete the folder and extract again."
    )


def read_chunks(folder: Path, specs: Mapping[str, ArraySpec], chunks: int) -> np.ndarray:
    """Return the first `chunks` entries of `checksums.bin`, fewer where fewer are there: `(chunks, 1 + arrays)`."""
    width = 1 + len(specs)
    try:
        with open(folder / CHECKSUMS, "rb") as file:
            raw = file.read(chunks * width * 4)
    except FileNotFoundError:
        raw = b""
    whole = len(raw) // (width * 4)
    return np.frombuffer(raw, "<u4", count=whole * width).reshape(whole, width)


def check_chunks(folder: Path, specs: Mapping[str, ArraySpec], chunks: np.ndarray) -> tuple[int, str | None]:
    """Read the arrays and compare them with their checksums, in memory of one megabyte.

    Args:
        folder: of the store.
        specs: its arrays.
        chunks: `(chunks, 1 + arrays)` rows and checksums, as `read_chunks` returns them.

    Returns:
        How many chunks from the first on are as they were written, and the name of the file that ends this run, or
        `None` where all are.
    """
    buffer = memoryview(bytearray(_PIECE))
    with ExitStack() as stack:
        files = []
        for spec in specs.values():
            try:
                files.append(stack.enter_context(open(folder / spec.file_name, "rb", buffering=0)))
            except FileNotFoundError:
                return 0, spec.file_name
        for index, (rows, *checksums) in enumerate(chunks.tolist()):
            if rows == 0:
                return index, CHECKSUMS
            for spec, file, checksum in zip(specs.values(), files, checksums, strict=True):
                if _checksum(file, rows * spec.row_bytes, buffer) != checksum:
                    return index, spec.file_name
    return len(chunks), None


def check_complete(folder: Path, record: Record, *, contents: bool) -> None:
    """Check the files of a complete store: their sizes, and with `contents` every byte.

    Raises:
        StoreDamagedError: naming the first file that is missing, too short, too long or changed.
    """
    chunks = read_chunks(folder, record.specs, record.chunks)
    _check_size(folder / CHECKSUMS, record.chunks * (1 + len(record.specs)) * 4)
    if zlib.crc32(chunks.tobytes()) != record.checksum or int(chunks[:, 0].sum(dtype="int64")) != record.rows:
        raise damaged(folder / CHECKSUMS, "its checksum is wrong")
    for spec in record.specs.values():
        _check_size(folder / spec.file_name, record.rows * spec.row_bytes)
    if not contents:
        return
    good, name = check_chunks(folder, record.specs, chunks)
    if name is not None:
        first = int(chunks[:good, 0].sum(dtype="int64"))
        raise damaged(folder / name, f"the checksum of the chunk from row {first} on is wrong")


def _seal(content: dict) -> bytes:
    text = json.dumps(content, indent=1, sort_keys=True)
    return json.dumps({**content, "checksum": zlib.crc32(text.encode())}, indent=1, sort_keys=True).encode() + b"\n"


def _parse(content: dict) -> Record:
    specs = check_specs([ArraySpec(one["name"], tuple(one["row_shape"]), one["dtype"]) for one in content["arrays"]])
    count = content["count"]
    if not isinstance(content["key"], str) or not isinstance(content["details"], dict):
        raise ValueError("key or details")
    return Record(
        key=content["key"],
        specs=specs,
        count=None if count is None else check_count("count", count),
        rows=check_count("rows", content["rows"], smallest=0),
        chunks=check_count("chunks", content["chunks"], smallest=0),
        checksum=check_count("checksums", content["checksums"], smallest=0),
        details=content["details"],
    )


def _check_size(path: Path, expected: int) -> None:
    with report_unreadable(path):
        size = path.stat().st_size
    if size != expected:
        raise damaged(path, f"it has {size} bytes instead of {expected}")


def _checksum(file, size: int, buffer: memoryview) -> int | None:
    """Return the CRC-32 of the next `size` bytes of the file, `None` where it ends before."""
    checksum = 0
    while size:
        done = file.readinto(buffer[: min(size, len(buffer))])
        if not done:
            return None
        checksum = zlib.crc32(buffer[:done], checksum)
        size -= done
    return checksum
