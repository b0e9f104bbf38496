"""Files and folders that are there whole or not at all: put together beside their place, then renamed into it."""

import contextlib
import errno
import glob
import itertools
import os
import re
import shutil
import tempfile
import time
import uuid
from pathlib import Path

from kerastl.checks import received
from kerastl.errors import ArgumentError, OutputError
from kerastl.tables import readable_bytes

# What file managers leave behind belongs to nobody
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
_A_DAY = 24 * 3600  # seconds


def check_output_folder(folder: str | os.PathLike, *, overwrite: bool = False, files, what: str) -> Path:
    """Return a folder's absolute path; raise `OutputError`, before anything slow, where it can't be made or replaced.

    With `overwrite` an earlier one is replaced, if it holds nothing but `files` (names); anything else is never touched.
    `what` is the word for such a folder.
    """
    path = _resolved(folder)
    if path.exists() and not path.is_dir():
        raise OutputError(f"The output folder is a file already; choose another name. {received(out=str(folder))}")
    entries = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if entries and not overwrite:
        raise OutputError(
            f"The output folder {folder} exists and is not empty. Choose another one, or replace it with --overwrite "
            "(`overwrite=True` in Python)."
        )
    foreign = [name for name in entries if name not in files and name not in LITTER]
    if foreign:
        listing = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        article = "an" if what[0] in "aeiou" else "a"
        raise OutputError(
            f"The folder {folder} holds more than {article} {what} of this package ({listing}), so it is not replaced. "
            "Choose another one, or move these out of it first."
        )
    place = _nearest_existing(path.parent)
    try:  # permissions alone don't tell of read-only disks
        with tempfile.TemporaryDirectory(prefix=".kerastl.", dir=place):
            return path
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"Nothing can be written in {place}: {reason}. Choose another folder.") from error


def find_data_dir(data_dir: str | os.PathLike | None) -> str | None:
    """Return where data sets are kept: as given, or `data/` of a checkout; `None` for the default of whoever keeps them."""
    checkout = Path(__file__).resolve().parents[1]
    if data_dir is None and (checkout / "setup.cfg").is_file() and not os.environ.get("TFDS_DATA_DIR"):
        data_dir = checkout / "data" if (checkout / "data").is_dir() else None
    return None if data_dir is None else str(Path(data_dir).expanduser())


def keras_home() -> Path:
    """Return Keras's cache folder: `KERAS_HOME`, else `.keras` in the home folder, or a temporary one if that is read-only."""
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"]).expanduser()
    home = Path.home()
    return (home if os.access(home, os.W_OK) else Path(tempfile.gettempdir())) / ".keras"


def is_url(place) -> bool:
    """Tell whether a place is a URL, such as `s3://bucket/features`, instead of a path."""
    return isinstance(place, str) and "://" in place


def free_space(folder: str | os.PathLike) -> int:
    """Return how many bytes are free on the disk of a folder, which needn't exist yet."""
    return shutil.disk_usage(_nearest_existing(_resolved(folder))).free


def check_free_space(folder: str | os.PathLike, needed: int) -> None:
    """Raise `OutputError` unless the disk of a folder has `needed` bytes free."""
    free = free_space(folder)
    if free < needed:
        raise OutputError(
            f"Not enough space for {folder}: about {readable_bytes(needed)} are needed, {readable_bytes(free)} are free on "
            "the disk. Make room, or choose a folder on another disk."
        )


def free_folder_beside(folder: str | os.PathLike, word: str) -> Path:
    """Return the folder itself where it is free or empty, else the first free of `folder-word`, `folder-word-2`, …"""
    path = _resolved(folder)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return path
    names = (f"{path.name}-{word}" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    return next(beside for beside in map(path.with_name, names) if not beside.exists())


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike, *, overwrite: bool = False, files, what: str):
    """Give a temporary folder beside `folder` to write into; at the end of the `with` it becomes `folder`.

    When anything goes wrong inside, the temporary folder is removed, and what stood at `folder` stays as it was. Files that
    can't be written, as the disk is full, say, raise `OutputError`; and see `check_output_folder`.
    """
    path = check_output_folder(folder, overwrite=overwrite, files=files, what=what)
    _remove_left_behind(path)
    temporary = _beside(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if not overwrite:  # another process may have been faster
            check_output_folder(folder, files=files, what=what)
        _put_in_place(temporary, path)
    except OutputError:
        raise
    except Exception as error:
        # HDF5 hides a full disk in errors of its own
        full = getattr(error, "errno", None) == errno.ENOSPC or re.search("No space left|errno = 28", str(error))
        if not full and not isinstance(error, OSError):
            raise
        reason = "no space left on the disk" if full else error.strerror or error
        raise OutputError(f"Can't write {folder}: {reason}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_left_behind(path: Path) -> None:
    """Remove what processes that were killed while writing left beside a path, a day ago or longer."""
    for old in path.parent.glob(f".{glob.escape(path.name)}." + "[0-9a-f]" * 32):
        with contextlib.suppress(OSError):
            if old.is_dir() and time.time() - old.stat().st_mtime > _A_DAY:
                shutil.rmtree(old, ignore_errors=True)


def write_whole(path: str | os.PathLike, content: bytes, *, durable: bool = False) -> None:
    """Write a file so that nobody ever reads half of it; a `durable` one outlives a power cut, for a flush to the disk."""
    temporary = _beside(Path(path))
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _beside(path: Path) -> Path:
    """Return a name that nothing has, beside a path, so that it can be renamed to it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _resolved(folder) -> Path:
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise ArgumentError(f"Expected the path of a folder. {received(folder=folder)}")
    return Path(folder).expanduser().resolve()


def _nearest_existing(path: Path) -> Path:
    return next((place for place in (path, *path.parents) if place.exists()), path)  # a Windows drive may not exist


def _put_in_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.replace(temporary, path)
        return
    aside = _beside(path)
    os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)
