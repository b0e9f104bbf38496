"""Stores on other machines: files at a URL, by fsspec, and workers that make shards, by Ray.

When something is sent or tried again, and which worker makes what, those two decide.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from kerastl import errors
from kerastl.features import shards
from kerastl.features.store import Store
from kerastl.files import write_whole

# Of a URL, files that are on this disk at a time: each is open, and a process may open 1,024 on Linux, 256 on macOS
_FILES_AT_ONCE = 400 if sys.platform == "linux" else 100


@contextlib.contextmanager
def _reached(place: str):
    """Give fsspec's file system of a folder or URL, and the path in it; say of what goes wrong which URL it is."""
    try:
        import fsspec

        yield fsspec.core.url_to_fs(place)
    except (ImportError, ValueError, OSError) as error:
        raise errors.StoreError(
            f'{place} can\'t be used for features: {error}. (`pip install "kerastl[ray]"` brings fsspec; for s3:// add s3fs, '
            "for gs:// gcsfs.)"
        ) from error


def read_file(place: str, name: str) -> bytes:
    """Return the content of a file in a folder or at a URL, nothing where there is none."""
    with _reached(place) as (files, path), contextlib.suppress(FileNotFoundError):
        return files.cat_file(f"{path}/{name}")
    return b""


def write_file(place: str, name: str, content: bytes) -> None:
    """Write a file into a folder or to a URL, whole or not at all: so do object stores by themselves."""
    with _reached(place) as (files, path):
        if "file" not in files.protocol:
            return files.pipe_file(f"{path}/{name}", content)
        Path(path).mkdir(parents=True, exist_ok=True)
        return write_whole(Path(path) / name, content, durable=True)


def open_store(place: str, key: str, budget_bytes: int) -> Store | None:
    """Return the store at a URL, or `None` where nothing complete is, as `store.open_store` does.

    A file is fetched whole, and checked, when its first row is read. Where the budget is smaller than the store, those that
    were fetched first go, and rows are shuffled among those of as many shards as fit.
    """
    content = read_file(place, shards.MANIFEST)
    manifest = shards.check_manifest(place, content, key) if content else {"complete": False}
    if not manifest["complete"]:
        return None
    specs, listed = shards.specs_of(manifest), manifest["shards"]
    expected = {
        file["name"]: (file, spec.header(shard["rows"]))
        for shard in listed
        for spec, file in zip(specs.values(), shard["files"], strict=True)
    }

    def fetch(name):
        content = read_file(place, name)
        shards.check_file(place, *expected[name], content)
        near = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (the reader closes it)
        near.write(content)
        return near

    most = min(_FILES_AT_ONCE, budget_bytes // max(file["bytes"] for file, _ in expected.values()))
    reader = shards.Reader(place, manifest, fetch, max(most, 2 * len(specs)))
    store = Store(specs, manifest["count"], manifest["details"], reader.read, reader.close)
    if len(expected) > most:
        store.shard_ends = np.cumsum([shard["rows"] for shard in listed])[:-1]
        store.shards_at_once = max(1, most // len(specs) - 1)
    return store


class _Worker:
    """Made by Ray once in each worker's process."""

    def __init__(self, make):
        self._make = make

    def __call__(self, batch):
        try:
            made = [self._make(int(number)) for number in batch["number"]]
        except errors.KerastlError as error:
            made = [{"error": type(error).__name__, "text": str(error)}]
        return {"made": list(map(json.dumps, made))}


def made_by_ray(make, numbers: list[int], workers: int | None):
    """Yield what `make(number)` gives, which JSON can hold, for each number, in any order, by a Ray job.

    `make` travels to the workers, one for each GPU of the cluster, or for each machine where there is none.
    """
    import ray
    import ray.data

    ray.init(ignore_reinit_error=True)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    # half a CPU each: Ray's own tasks need some, too, and how many cores a worker uses is up to Keras's backend
    needs = {"num_gpus": 1} if gpus else {"num_cpus": 0.5}
    made = ray.data.from_items([{"number": one} for one in numbers], override_num_blocks=len(numbers)).map_batches(
        _Worker,
        fn_constructor_args=(make,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers or gpus or len(ray.nodes())),
        runtime_env={"env_vars": {"KERAS_BACKEND": keras.backend.backend()}},
        **needs,
    )
    for row in made.iter_rows():
        result = json.loads(row["made"])
        if "error" in result:
            raise getattr(errors, result["error"])(result["text"])
        yield result
