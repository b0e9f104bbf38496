"""Store folders that nobody will look for again."""

import contextlib
import os
import tempfile
import weakref
from pathlib import Path

from kerastl.checks import received
from kerastl.errors import StoreError
from kerastl.features.disk import remove_files
from kerastl.features.locking import LockHandle, acquire, is_held
from kerastl.features.records import LOCK, MANIFEST, PROGRESS, read_record

TEMPORARY_KEY = "temporary"
_PREFIX = "kerastl-temporary-store-"


class TemporaryFolder:
    """A locked folder that is removed by `remove`, when it is forgotten, or when the interpreter ends.

    While it lives, the lock tells other processes so.
    """

    def __init__(self, parent: Path):
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            raise StoreError(f"No temporary folder can be made: {error}. {received(directory=str(parent))}") from error
        handle = acquire(self.path, wait=False)
        self._finalizer = weakref.finalize(self, _remove, self.path, handle, os.getpid())

    def remove(self) -> None:
        """Remove the folder; again and again does no harm."""
        self._finalizer()


def remove_orphans(parent: Path) -> None:
    """Remove the temporary stores of processes that were killed: their locks are free."""
    for path in parent.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):  # somebody else's, or in use
            if path.is_symlink() or not (path / LOCK).exists() or is_held(path):
                continue
            handle = acquire(path, wait=False)
            try:
                record = read_record(path / PROGRESS) or read_record(path / MANIFEST)
                if record is not None and record.key == TEMPORARY_KEY:
                    _remove_folder(path)
            finally:
                handle.release()


def _remove(path: Path, handle: LockHandle, process: int) -> None:
    if os.getpid() != process:  # a forked child that ends: the folder is its parent's
        return
    with contextlib.suppress(OSError):
        _remove_folder(path)
    handle.release()


def _remove_folder(path: Path) -> None:
    remove_files(path)
    (path / LOCK).unlink()
    path.rmdir()
