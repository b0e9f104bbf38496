"""A small feature store, and processes that work on it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kerastl.features.store import ArraySpec, begin

ROOT = Path(__file__).resolve().parents[1]
SPECS = (ArraySpec("features_0", (3, 5), "float16"), ArraySpec("labels", (), "int32"))
COUNT = 50
CHUNK = 8

# The module without the packages around it, so that a child starts in a fraction of a second and without Keras
CHILD = f"""
import os, random, signal, sys, tempfile, time, types
for name, place in (("kerastl", {str(ROOT / "kerastl")!r}), ("kerastl.features", {str(ROOT / "kerastl/features")!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [place]
import numpy as np
from kerastl.features import store
from kerastl.features.store import ArraySpec, begin, lock, open_store, temporary_store
store.SHARD_BYTES = 100_000
folder = tempfile.tempdir = sys.argv[1]
"""

posix_only = pytest.mark.skipif(os.name != "posix", reason="uses signals and fork")


def rows_from(first, stop=COUNT):
    """The rows of one chunk; row i tells its number."""
    numbers = np.arange(first, min(first + CHUNK, stop))
    return {"features_0": numbers[:, None, None] + np.arange(15).reshape(3, 5) / 16, "labels": numbers * 1000}


def append_rest(writer):
    for first in range(writer.rows_done, COUNT, CHUNK):
        writer.append(rows_from(first))


def begin_in(folder, **arguments):
    return begin(folder, **{"key": "k", "specs": SPECS, "count": COUNT, **arguments})


def make_store(folder, details=None, **arguments):
    with begin_in(folder, **arguments) as writer:
        append_rest(writer)
        return writer.finish(details)


def everything():
    chunks = [rows_from(first) for first in range(0, COUNT, CHUNK)]
    features = np.concatenate([chunk["features_0"] for chunk in chunks]).astype("float16")
    return features, np.concatenate([chunk["labels"] for chunk in chunks]).astype("int32")


def files_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def start_child(code, *arguments):
    command = [sys.executable, "-c", CHILD + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run_child(code, *arguments):
    with start_child(code, *arguments) as child:
        output = child.communicate(timeout=60)[0]
    assert child.returncode == 0
    return output


def flip(path, position, bits=1):
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(content)
