"""One pass over the images: the trunk's outputs into a store, with labels and sample weights beside them."""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import sys
import zlib
from pathlib import Path

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.data.batches import Rows, read_ahead
from kerastl.data.images import in_threads
from kerastl.errors import ChangingDataError, DataError, FeatureOverflowError, StoreDamagedError, StoreError, warn
from kerastl.features import remote, shards
from kerastl.features import store as stores
from kerastl.features.device import DeviceWriter
from kerastl.features.litert import CPU_BATCH, KerasEngine, choose_engine, computing_in
from kerastl.features.plan import CacheOptions, CachePlan, disk_budget, memory_budget
from kerastl.features.views import Views
from kerastl.files import is_url

# Batches of a dataset that are read a second time: an augmentation that leaves so many images as they are, twice, is none
_LOOKED_AT_TWICE = 8


class Trunk:
    """The frozen part, ready to run: made once for training and validation images."""

    def __init__(self, plan: CachePlan, options: CacheOptions, verbose: int = 0):
        self.plan, self.options, self.verbose = plan, options, verbose
        self.model, self.front = plan.cuts[0].trunk(*plan.cuts[1:]), plan.cuts[0].front() or plan.augmentation
        self._engine, self._count, self._exact = None, None, options.dtype == "float32"

    def engine(self, count: int | None):
        """Return the engine, chosen at the first call by the number of images."""
        if self._engine is None:
            name = "auto" if self.options.engine == "ray" else self.options.engine
            self._count = count or self._count
            self._engine = choose_engine(self.model, self._count, name, self.verbose, exact=self._exact)
        return self._engine

    def make_exact(self) -> None:
        """Compute in the precision of the model's policy from now on."""
        self._exact = True
        if self._engine.half:
            self._engine = KerasEngine(self.model)

    def __getstate__(self):
        """What travels to a worker, which chooses the engine of its machine."""
        return {**vars(self), "plan": None, "verbose": 0, "_engine": None}

    def specs(self, dtype: str, labels: np.ndarray, weights) -> list[stores.ArraySpec]:
        """Return what the store holds: the features of every cut, labels, and sample weights."""
        arrays = {f"features_{index}": (tensor, dtype) for index, tensor in enumerate(self.model.outputs)}
        arrays["labels"] = (labels, str(labels.dtype))
        if weights is not None:
            arrays["sample_weights"] = (weights, "float32")
        return [stores.ArraySpec(name, tuple(like.shape[1:]), kind) for name, (like, kind) in arrays.items()]

    def key(self, identity: str, count: int | None, views: int) -> str:
        """Return what features are made of: the trunk's graph and weights, precision, engine, views, and the data."""
        digest = hashlib.blake2b(digest_size=32)
        for model in [self.model] if self.front is None else [self.model, self.front]:
            for weight in model.weights:
                digest.update(weight.path.encode())
                digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)))
            digest.update(_graph_text(model).encode())
        # what is best here says nothing of the machine that reads from a URL
        any_engine = is_url(self.options.folder) and self.options.engine in ("auto", "ray")
        facts = {
            "policy": [layer.dtype_policy.name for layer in self.model.layers],
            "engine": "any" if any_engine else self.engine(count).name,
            "outputs": [list(tensor.shape) for tensor in self.model.outputs],
            "dtype": self.options.dtype,
            "views": views,
            "seed": self.options.seed if views > 1 else 0,
            "data": identity,
        }
        digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()


def _graph_text(model) -> str:
    """Return a text that changes with the graph or any layer's settings, but not with automatic names."""
    parts = []
    for layer in model.layers:
        config = {name: value for name, value in layer.get_config().items() if name not in ("name", "trainable")}
        parts.append(f"{type(layer).__name__} {json.dumps(config, sort_keys=True, default=repr)}")
    for node in keras_internals.nodes_in_order(model):
        constants = list(keras.tree.flatten((node.arguments.args, node.arguments.kwargs)))
        plain = [repr(value) for value in constants if not keras.utils.is_keras_tensor(value)]
        parts.append(f"{type(node.operation).__name__} {len(node.input_tensors)} {plain}")
    return "\n".join(parts)


def extract(trunk: Trunk, rows: Rows, *, views: int, part: str, count_all: int | None) -> stores.Store:
    """Run the trunk over all images, or find that it was done already; return the `Store`.

    The `views` of one image lie beside each other, the plain one first. `part` is "train" or "validation"; by `count_all`,
    the runs over both, the engine is chosen. Where 16 bits don't hold a value, the pass starts over in 32 bits; the store's
    are 16 again where `dtype` says so.
    """
    half = trunk.engine(count_all).half
    try:
        return _extract_as(trunk, rows, views, part, trunk.plan.dtype)
    except FeatureOverflowError:
        if trunk.options.dtype == "float16" and not half:
            raise
        trunk.make_exact()
        return _extract_as(trunk, rows, views, part, "float16" if trunk.options.dtype == "float16" else "float32")


def _extract_as(trunk, rows, views, part, dtype) -> stores.Store:
    first = next(iter(rows.batches(0, 1)), None)
    if first is None:
        raise DataError(f"There are no images to train on in the {part} data.")
    specs = trunk.specs(dtype, np.asarray(first[1]), first[2])
    count = None if rows.count is None else rows.count * views
    if trunk.options.folder is not None:
        return _kept_store(trunk, rows, views, part, specs, count)
    place, row_bytes = trunk.plan.place, sum(spec.row_bytes for spec in specs)

    def host_writer():
        fits = place == "device" and (count or 0) * row_bytes <= memory_budget(trunk.options)
        if count is not None and (place == "memory" or fits):
            return stores.MemoryWriter(specs, count)
        return stores.temporary_store(specs, count, budget_bytes=disk_budget(trunk.options))

    on_device = place == "device"
    trunk.engine(None).keeps = on_device and trunk.engine(None).overlaps
    with DeviceWriter(specs, count, host_writer) if on_device else host_writer() as writer:
        return writer.finish(_run(trunk, rows, views, writer, part))


def _kept_store(trunk, rows, views, part, specs, count) -> stores.Store:
    """Return the store in the user's folder or at a URL: found, gone on with, or made; in a folder one process at a time."""
    url, by_shard = is_url(trunk.options.folder), is_url(trunk.options.folder) or trunk.options.engine == "ray"
    if by_shard and not rows.skips:
        raise StoreError(
            "Ray's workers, and stores at a URL, need data that can be read from anywhere: arrays, `load_images`. "
            "Keep the features of other datasets in a folder, by another engine."
        )
    parent = Path(trunk.options.folder).expanduser()
    if parent.exists() and not parent.is_dir():
        raise StoreError(f"`cache` names a file, not a folder. Received: cache={str(parent)!r}")
    if others := sorted(path.name for path in parent.glob("*") if not path.name.startswith(("train-", "validation-"))):
        raise StoreError(
            f"The folder for features holds something else: {', '.join(others[:3])}. Name an empty or a new folder. "
            f"Received: cache={str(parent)!r}"
        )
    # to read all images of a dataset without an identity costs little beside the trunk
    identity = rows.identity or _Fingerprint(read_ahead(rows.batches(0, CPU_BATCH))).hexdigest()
    key, budget = trunk.key(identity, rows.count, views), disk_budget(trunk.options)
    folder = parent / f"{part}-{key[:12]}"
    place = f"{trunk.options.folder.rstrip('/')}/{folder.name}" if url else str(folder.absolute())
    alone = stores.lock(folder, on_wait=lambda: print(f"Another process is working on {folder}; waiting for it."))
    find = functools.partial(stores.open_store, folder, key=key)
    if url:
        alone, find = contextlib.nullcontext(), functools.partial(remote.open_store, place, key, budget)
    with alone:
        try:
            if (store := find()) is not None:
                return store
        except StoreDamagedError as error:
            warn(f"{error} It is rebuilt.")
        if by_shard:
            details = {"engine": trunk.engine(None).name, "views": views}
            manifest = {**shards.new_manifest(key, specs, count), "details": details}
            _make_shards(trunk, rows, views, part, place, manifest)
            return find()
        with stores.begin(folder, key=key, specs=specs, count=count, budget_bytes=budget, resume=rows.skips) as writer:
            return writer.finish(_run(trunk, rows, views, writer, part))


def _make_shards(trunk, rows, views, part, place, manifest) -> None:
    """Make a store shard by shard, in any order, by this process or Ray's workers; the shards that are there stay.

    They are as large as a writer's. The manifest lists what is there, and says last of all that the store is complete.
    """
    specs, made, options = list(shards.specs_of(manifest).values()), {}, trunk.options
    chunk = CPU_BATCH * views * sum(spec.row_bytes for spec in specs)
    size = CPU_BATCH * max(1, math.ceil((stores.SHARD_BYTES - shards.HEADER_BYTES * len(specs)) / chunk))

    def number_of(shard):
        return int(shard["files"][0]["name"][:-4].rpartition("-")[2])

    with contextlib.suppress(StoreDamagedError):
        earlier = shards.check_manifest(place, remote.read_file(place, shards.MANIFEST), manifest["key"])
        if {**earlier, "shards": []} == manifest:
            made = {number_of(shard): shard for shard in earlier["shards"]}

    def make(number: int) -> dict:
        start, files = number * size, []
        part_rows = rows.until(min(start + size, rows.count))
        with stores.MemoryWriter(specs, (part_rows.count - start) * views) as writer:
            store = writer.finish(_run(trunk, part_rows, views, writer, part, start))
        for spec in specs:
            values, name = store.read(spec.name, slice(None)), f"{spec.name}-{number:05d}.npy"
            remote.write_file(place, name, spec.header(store.count) + values.tobytes())
            files.append({"name": name, "bytes": shards.HEADER_BYTES + values.nbytes, "checksum": zlib.crc32(values)})
        return {"rows": store.count, "files": files}

    def save(complete=False):
        listed = {**manifest, "shards": [made[number] for number in sorted(made)], "complete": complete}
        remote.write_file(place, shards.MANIFEST, shards.sealed(listed))

    missing = [number for number in range(math.ceil(rows.count / size)) if number not in made]
    bar = progress_bar(rows.count, len(made) * size, part, trunk.verbose)
    save()
    by_ray = options.engine == "ray" and missing
    for shard in remote.made_by_ray(make, missing, options.workers) if by_ray else map(make, missing):
        made[number_of(shard)] = shard
        if len(made) % (1 + len(made) // 100) == 0:  # of many, a hundredth may be lost: writing takes time
            save()
        bar.update(min(len(made) * size, rows.count), finalize=False)
    save(complete=True)


def _run(trunk, rows, views, writer, part, first: int | None = None) -> dict:
    """Append the features of all images that are not there yet; return what the manifest should say besides.

    The writer of one shard among many begins with image `first`, and shows no progress.
    """
    engine, maker = trunk.engine(None), Views(trunk.front, views, trunk.options.seed)
    done = (first or 0) + writer.rows_done // views
    fingerprint = _Fingerprint() if rows.identity is None else None
    bar, bad = progress_bar(rows.count, done, part, trunk.verbose if first is None else 0), []
    size = engine.batch

    def prepared():
        for index, (images, labels, weights) in enumerate(read_ahead(rows.batches(done, size)), start=done // size):
            if fingerprint is not None:
                fingerprint.add(images, labels, weights)
            yield (images, labels, weights), [padded(maker.make(images, index, view), size) for view in range(views)]

    def run(batch):
        return batch[0], [engine(images) for images in batch[1]]

    # a GPU would stand still while a batch travels; the first batch is alone, as it is the one that compiles
    batches = prepared()
    in_turn = map(run, itertools.islice(batches, 1 if engine.overlaps else None))
    ready = itertools.chain(in_turn, in_threads(run, batches, threads=2, ahead=2))
    with computing_in(trunk.model, engine.half):
        for (images, labels, weights), outputs in ready:
            chunk = {
                f"features_{index}": _beside([one[index][: len(images)] for one in outputs])
                for index in range(len(outputs[0]))
            }
            if not (engine.keeps and writer.specs["features_0"].dtype == "float16"):  # then the store looks, at the end
                found = _not_finite(chunk, len(images))
                if engine.half and len(found):
                    raise FeatureOverflowError(
                        f"The frozen part gives infinity or NaN when it computes in {engine.half}."
                    )
                bad += [(first or 0) + writer.rows_done // views + int(index) for index in found]
            chunk["labels"] = np.repeat(labels, views, axis=0)
            if weights is not None:
                chunk["sample_weights"] = np.repeat(weights, views, axis=0)
            writer.append(chunk)
            bar.update(writer.rows_done // views, finalize=False)
    bar.update(writer.rows_done // views, finalize=True)
    if bad:
        warn(
            f"The frozen part gives NaN or infinity for {len(bad)} of the {part} images, number {bad[0]} (counted from 0) "
            "the first of them. Look for NaN in these images and in the model's weights."
        )
    details = {"engine": engine.name, "views": views}
    return details if fingerprint is None else {**details, "reshuffles": _reshuffles(rows, fingerprint)}


def _reshuffles(rows, before) -> bool:
    """Read the first images of a dataset once more, and tell whether they come in another order.

    Raise `ChangingDataError` where they are others than in the pass before, or have other labels.
    """
    again = _Fingerprint(itertools.islice(rows.batches(0, CPU_BATCH), _LOOKED_AT_TWICE))
    if not set(again.digests) <= set(before.digests):
        raise ChangingDataError(
            "the dataset gives other images at every pass, as an augmentation in a `map` does (or `drop_remainder` behind "
            "`shuffle`), and only one version of each would be kept; put the random layers into the model, "
            "`build_classifier(augmentation=…)`, and pass views=4"
        )
    return again.digests != before.digests[: len(again.digests)]


class _Fingerprint:
    """A digest of images, labels and weights that doesn't depend on their order, for datasets without an identity."""

    def __init__(self, batches=()):
        self.digests = []
        for batch in batches:
            self.add(*batch)

    def add(self, images, labels, weights=None) -> None:
        for index in range(len(images)):
            digest = hashlib.blake2b(np.ascontiguousarray(images[index]), digest_size=16)
            for numbers in (labels, weights) if weights is not None else (labels,):
                digest.update(np.asarray(numbers[index], "float64").tobytes())
            self.digests.append(int.from_bytes(digest.digest(), "little"))

    def hexdigest(self) -> str:
        return f"{sum(self.digests) % 2**128:032x}-{len(self.digests)}"


def _not_finite(features: dict, images: int) -> np.ndarray:
    """Return which of a batch's images have NaN or infinite features, in any view: a loss of NaN would say no more."""
    bad = np.zeros(images, "bool")
    for values in map(np.asarray, map(keras.ops.convert_to_numpy, features.values())):
        with np.errstate(invalid="ignore", over="ignore"):
            total = values.sum()  # shows any NaN or infinity, many times faster than a look at each number
        if not np.isfinite(total):
            bad |= ~np.isfinite(values.reshape(images, -1)).all(axis=1)
    return bad.nonzero()[0]


def padded(images: np.ndarray, size: int) -> np.ndarray:
    """Fill up the last batch, so that every run has one shape: compilers and LiteRT prepare for a shape."""
    missing = size - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing > 0 else images


def _beside(views: list) -> np.ndarray:
    """Put the views of each image beside each other: `(images × views, …)`."""
    if len(views) == 1:
        return views[0]
    operations = keras.ops if keras.ops.is_tensor(views[0]) else np
    return operations.reshape(operations.stack(views, axis=1), (-1, *views[0].shape[1:]))


def progress_bar(count, done, part, verbose) -> keras.utils.Progbar:
    """Say what is run; return a bar, which shows where output is watched as it comes, in a terminal or a notebook."""
    if verbose:
        which = " ".join(str(one) for one in (count, part, "images") if one)
        print(f"Running the frozen part over {which}" + (f", from image {done} on" if done else ""))
    watched = "ipykernel" in sys.modules or getattr(sys.stdout, "isatty", lambda: False)()
    return keras.utils.Progbar(count, unit_name="image", verbose=1 if verbose and watched else 0)
