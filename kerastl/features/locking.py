"""One process at a time works on a store's folder.

The lock belongs to the operating system: it is gone when its process is gone, `kill -9` included. The lock file itself
stays, and marks the folder as a store; it is only removed together with the folder.
"""

import contextlib
import dataclasses
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kerastl.checks import received
from kerastl.errors import StoreBusyError, StoreError
from kerastl.features.records import LOCK, MANIFEST, PROGRESS, read_record

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

_SECONDS_BETWEEN_TRIES = 0.05
_NOTE = b"This folder holds features that kerastl keeps between runs. The file is the store's lock and its mark.\n"


@dataclasses.dataclass
class _Held:
    descriptor: int
    thread: int
    made_file: bool
    made_folder: bool
    depth: int = 1
    writing: bool = False


# Locks of this process by folder: the operating system would let a second descriptor of the same process wait for ever
_held: dict[str, _Held] = {}
# Reentrant, as a store that nobody needs any more may give its lock back at any moment
_guard = threading.RLock()


class LockHandle:
    """A lock that is held until `release`, which may be called again and again."""

    def __init__(self, folder: str, writing: bool):
        self._folder = folder
        self._writing = writing
        self._released = False

    def release(self) -> None:
        """Give the lock back; a folder that was made for it and got nothing else is removed."""
        if self._released:
            return
        self._released = True
        _release(self._folder, self._writing)


@contextlib.contextmanager
def lock(
    folder: str | os.PathLike,
    *,
    wait: bool = True,
    timeout: float | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold a store's folder for this process, waiting for another one that holds it.

    The folder is made where it is missing. The same thread may take the lock again inside.

    Args:
        folder: of the store.
        wait: whether to wait for another process (or another thread).
        timeout: how many seconds at most; `None` for as long as it takes.
        on_wait: called once, without arguments, before the waiting starts.

    Raises:
        StoreBusyError: another process holds it, and `wait` is false or the time is over.
        StoreError: the folder holds something else, can't be made, or is on a disk that has no locks.
    """
    handle = acquire(folder, wait=wait, timeout=timeout, on_wait=on_wait)
    try:
        yield
    finally:
        handle.release()


def acquire(folder: str | os.PathLike, *, wait: bool, timeout=None, on_wait=None, writing: bool = False) -> LockHandle:
    """Take the lock of `lock`, to be given back with `release`.

    With `writing`, to change the store: inside of a lock that any thread of this process holds, but one at a time.
    """
    path = os.path.realpath(Path(folder).expanduser())
    deadline = None if timeout is None else time.monotonic() + timeout
    while not _try(path, writing):
        if not wait or (deadline is not None and time.monotonic() >= deadline):
            raise StoreBusyError(
                f"Another process (or another part of this one) works on the feature store {folder}. Wait until it is "
                f"done, or use another folder. {received(wait=wait, timeout=timeout)}"
            )
        if on_wait is not None:
            on_wait()
            on_wait = None
        time.sleep(_SECONDS_BETWEEN_TRIES)
    return LockHandle(path, writing)


def is_held(folder: str | os.PathLike) -> bool:
    """Tell whether this process holds the folder's lock."""
    with _guard:
        return os.path.realpath(Path(folder).expanduser()) in _held


def check_folder(folder: Path) -> None:
    """Raise `StoreError` where a folder holds something else than a store; a missing or empty one is fine."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{folder} can't be used as the folder of a feature store: {error}.") from error
    if not names or LOCK in names:
        return
    if read_record(folder / MANIFEST) is None and read_record(folder / PROGRESS) is None:
        raise StoreError(
            f"{folder} holds something else than a feature store ({min(names)!r}, for one). Name a new or an empty "
            f"folder. {received(folder=str(folder))}"
        )


def _try(path: str, writing: bool) -> bool:
    with _guard:
        held = _held.get(path)
        if held is None:
            held = _open_and_lock(Path(path))
            if held is None:
                return False
            held.writing = writing
            _held[path] = held
            return True
        if held.writing if writing else held.thread != threading.get_ident():
            return False
        held.depth += 1
        held.writing |= writing
        return _held.get(path) is held  # unless a forgotten writer gave it back a moment ago


def _open_and_lock(folder: Path) -> _Held | None:
    """Make the folder and its lock file, and lock it; `None` where another process has it or has just removed it."""
    check_folder(folder)
    try:
        made_folder = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        made_file = not (folder / LOCK).exists()
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"A feature store can't be made in {folder}: {error}. Name another folder.") from error
    try:
        if _lock_descriptor(descriptor) and _is_current(descriptor, folder / LOCK):
            with contextlib.suppress(OSError):  # a full disk has a place for a name, but none for a note
                if os.fstat(descriptor).st_size == 0:
                    os.write(descriptor, _NOTE)
            return _Held(descriptor, threading.get_ident(), made_file, made_folder)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(
            f"{folder} can't be locked ({error}), so two processes could spoil each other's features. Use a folder on "
            f"another disk. {received(folder=str(folder))}"
        ) from error
    os.close(descriptor)
    return None


def _is_current(descriptor: int, path: Path) -> bool:
    """Tell whether the locked file is still the one at this path: who held it before may have removed the folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock_descriptor(descriptor: int) -> bool:
    """Lock an open file; `False` where another process holds the lock."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _unlock_descriptor(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return
    os.lseek(descriptor, 0, os.SEEK_SET)
    msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)


def _release(path: str, writing: bool) -> None:
    with _guard:
        held = _held.get(path)
        if held is None:  # a forked child's copy: the lock is the parent's
            return
        held.depth -= 1
        held.writing &= not writing
        if held.depth:
            return
        del _held[path]
        with contextlib.suppress(OSError):
            unused = os.listdir(path) == [LOCK] and _is_current(held.descriptor, Path(path, LOCK))
            if held.made_file and unused:
                os.unlink(os.path.join(path, LOCK))
                if held.made_folder:
                    os.rmdir(path)
        with contextlib.suppress(OSError):
            _unlock_descriptor(held.descriptor)
        os.close(held.descriptor)


def _forget_locks() -> None:
    """Close a forked child's copies of the locks, or they would outlive the parent."""
    global _guard
    _guard = threading.RLock()
    for held in _held.values():
        with contextlib.suppress(OSError):
            os.close(held.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
