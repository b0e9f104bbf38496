"""`cache [FOLDER…]`: list the stored features of earlier runs, and remove them."""

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

import filelock

from kerastl.checks import received
from kerastl.errors import ArgumentError
from kerastl.features import shards
from kerastl.features.plan import parse_bytes
from kerastl.features.store import NO_LOCKS
from kerastl.tables import Table, readable_bytes


def run(arguments) -> int:
    """List the stores, the newest first; remove the oldest of them, as asked; return the exit status."""
    limit = 0 if arguments.clear else parse_bytes(arguments.max_size, "max_size")
    for folder in arguments.folders:
        if not Path(folder).expanduser().is_dir():
            raise ArgumentError(f"Expected folders to look for stored features in. {received(folder=folder)}")
    stores = sorted(_find(arguments.folders), reverse=True)
    total = sum(size for _, size, _, _ in stores)
    rows = [
        (str(folder), readable_bytes(size), f"{(time.time() - written) / 3600:.1f} hours", state)
        for written, size, folder, state in stores
    ]
    print(Table(("folder", "size", "age", "state"), rows, right=(1, 2), notes=[f"in all: {readable_bytes(total)}"]))
    for _, size, folder, _ in reversed(stores):
        if limit is not None and total > limit and _remove(folder):
            total -= size
            print(f"removed: {folder}")
    return 0


def _find(folders):
    """Yield `(seconds since 1970 when it was written, bytes, folder, state)` of each store below folders.

    By default those below `runs`, and the temporary ones, which processes that were killed leave behind.
    """
    paths = [path for one in folders or ["runs"] for path in Path(one).expanduser().rglob(shards.MANIFEST)]
    if not folders:
        paths += Path(tempfile.gettempdir()).glob(f"kerastl-*/{shards.MANIFEST}")
    for folder in {path.parent.resolve() for path in paths}:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # somebody else's manifest; or just removed
            manifest = json.loads((folder / shards.MANIFEST).read_bytes())
            files = [one.stat() for one in folder.iterdir()]
            if manifest["format"] == shards.FORMAT:
                with _held(folder) as free:
                    state = ("complete" if manifest["complete"] else "unfinished") if free else "in use"
                yield max(one.st_mtime for one in files), sum(one.st_size for one in files), folder, state


@contextlib.contextmanager
def _held(folder: Path):
    """Hold a store for the length of a `with`; yield whether nobody writes or reads it, as far as its disk can tell."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(filelock.FileLock(f"{folder}.lock", fallback_to_soft=False).acquire(timeout=0))
            manifest = stack.enter_context(open(folder / shards.MANIFEST, "r+b"))
            with contextlib.suppress(ImportError):  # Windows removes no file that is open
                import fcntl

                fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)  # those who read it share a lock
            free = True
        except OSError as error:
            free = error.errno in NO_LOCKS
        yield free


def _remove(folder: Path) -> bool:
    """Remove a store's files, and the folder where nothing else is in it; return whether that was done."""
    with _held(folder) as free:
        if free:
            for path in [one for one in folder.iterdir() if shards.OURS.fullmatch(one.name)]:
                path.unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()
            with contextlib.suppress(OSError):
                os.unlink(f"{folder}.lock")
    return free
