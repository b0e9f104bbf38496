"""Files and folders that are there whole or not at all: put together beside their place, then renamed into it."""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from kerastl.checks import received
from kerastl.errors import ArgumentError, OutputError
from kerastl.tables import readable_bytes

# What file managers leave behind belongs to nobody
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


def check_output_folder(folder: str | os.PathLike, *, overwrite: bool = False, files, what: str) -> Path:
    """Check, before anything slow, that a run folder can be made, and return its absolute path.

    Args:
        folder: where the run folder is to be.
        overwrite: whether an earlier run folder there may be replaced. Anything else is never touched.
        files: what such a folder may hold, by names.
        what: such a folder is called.

    Raises:
        OutputError: it exists and is not empty, it holds something other than a run, or nothing can be written there.
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
    foreign = [name for name in entries if name not in files and name not in _LITTER]
    if foreign:
        listing = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise OutputError(
            f"The folder {folder} holds more than a {what} of this package ({listing}), so it is not replaced. "
            "Choose another one, or move these out of it first."
        )
    _check_writable(path)
    return path


def check_free_space(folder: str | os.PathLike, needed: int) -> None:
    """Raise unless the disk of a folder (which needn't exist yet) has `needed` bytes free.

    Raises:
        OutputError: it hasn't.
    """
    place = _nearest_existing(_resolved(folder))
    free = shutil.disk_usage(place).free
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
    number = 1
    while True:
        beside = path.with_name(f"{path.name}-{word}" + (f"-{number}" if number > 1 else ""))
        if not beside.exists():
            return beside
        number += 1


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike, *, overwrite: bool = False, files, what: str):
    """Give a temporary folder to write into; at the end of the `with` it becomes `folder`.

    When anything goes wrong inside, the temporary folder is removed, and what stood at `folder` stays as it was.

    Args:
        folder: where the finished folder is to be.
        overwrite: whether an earlier run folder there may be replaced.
        files, what: see `check_output_folder`.

    Yields:
        The temporary folder, a `Path` beside the final one.

    Raises:
        OutputError: what `check_output_folder` raises; or a file can't be written, as the disk is full, say.
    """
    path = check_output_folder(folder, overwrite=overwrite, files=files, what=what)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _put_in_place(temporary, path)
    except Exception as error:
        if not _is_disk_trouble(error):
            raise
        raise OutputError(f"Can't write {folder}: {_reason(error)}. Nothing of it was left behind.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: str | os.PathLike, content: bytes, *, durable: bool = False) -> None:
    """Write a file under a temporary name beside its place, then rename it, so that nobody ever reads half of it.

    Args:
        path: of the file; its folder must exist.
        content: all of it.
        durable: whether it has to outlive a power cut; costs a flush to the disk.

    Raises:
        OSError: the file can't be written; what stood at `path` is as it was.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _resolved(folder) -> Path:
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise ArgumentError(f"Expected the path of a folder. {received(folder=folder)}")
    return Path(folder).expanduser().resolve()


def _nearest_existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _check_writable(path: Path) -> None:
    """Make and remove a folder where the run folder will stand: permissions alone don't tell of read-only disks."""
    place = _nearest_existing(path.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".kerastl.", dir=place):
            pass
    except OSError as error:
        raise OutputError(
            f"Nothing can be written in {place}: {error.strerror or error}. Choose another folder."
        ) from error


def _put_in_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.replace(temporary, path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    os.replace(path, aside / "old")
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(aside / "old", path)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_disk_trouble(error: Exception) -> bool:
    """Tell errors of writing from bugs; HDF5 hides a full disk in errors of its own."""
    if isinstance(error, OutputError):
        return False
    return isinstance(error, OSError) or "No space left" in str(error) or "errno = 28" in str(error)


def _reason(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return "no space left on the disk"
    return getattr(error, "strerror", None) or str(error)
