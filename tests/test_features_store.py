"""The feature store: written in order, read in any order, used only whole and for what it was made for."""

import contextlib
import errno
import gc
import json
import os
import signal
import tempfile
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kerastl import files
from kerastl.errors import ArgumentError, DataError, StoreDamagedError, StoreError, StoreMismatchError
from kerastl.features import shards
from kerastl.features import store as stores
from kerastl.features.store import ArraySpec, MemoryWriter, begin, lock, open_store, temporary_store
from tests.stores import (
    CHUNK,
    COUNT,
    SPECS,
    append_rest,
    begin_in,
    everything,
    files_of,
    flip,
    make_store,
    posix_only,
    rows_from,
    run_child,
    start_child,
)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, tmp_path_factory):
    """Shards of three chunks; temporary stores in a folder of this test's."""
    monkeypatch.setattr(stores, "SHARD_BYTES", 1100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


@pytest.fixture(params=["folder", "reopened", "temporary", "memory"])
def store(request, tmp_path):
    """A complete store of each kind."""
    make = {
        "folder": lambda: begin_in(tmp_path / "store"),
        "reopened": lambda: begin_in(tmp_path / "store"),
        "temporary": lambda: temporary_store(SPECS, None),
        "memory": lambda: MemoryWriter(SPECS, COUNT),
    }
    with make[request.param]() as writer:
        append_rest(writer)
        finished = writer.finish({"layer": "conv5_block2_out"})
    with finished if request.param != "reopened" else open_store(tmp_path / "store", key="k") as finished:
        yield finished


def test_imports_neither_keras_nor_tensorflow(tmp_path):
    assert run_child('print({"keras", "tensorflow", "torch", "jax"} & set(sys.modules))', tmp_path) == "set()\n"


# Reading


@pytest.mark.parametrize(
    "indices",
    [
        slice(None),
        slice(3, 20),
        slice(20, 3),
        slice(None, None, -7),
        slice(-5, 1000),
        [],
        [4],
        [49, 0, 0, 25],
        [14, 15, 16, 17, 3],
        [-1, -50],
        np.arange(COUNT)[::-1],
        np.array([7, 3], "uint8"),
    ],
    ids=str,
)
def test_reads_what_numpy_would(store, indices):
    for name, expected in zip(("features_0", "labels"), everything(), strict=True):
        rows = store.read(name, indices)
        wanted = expected[indices]
        assert rows.dtype == wanted.dtype
        np.testing.assert_array_equal(rows, wanted)


def test_tells_what_it_holds_and_gives_copies(store):
    assert store.count == COUNT
    assert store.specs == {spec.name: spec for spec in SPECS}
    assert store.details == {"layer": "conv5_block2_out"}
    for indices in (slice(0, 4), [0, 1]):
        store.read("labels", indices)[:] = 7
    np.testing.assert_array_equal(store.read("labels", slice(0, 4)), [0, 1000, 2000, 3000])


@pytest.mark.parametrize("indices", [[COUNT], [-COUNT - 1], [0.5], ["a"]], ids=str)
def test_refuses_rows_that_there_are_not(store, indices):
    with pytest.raises(IndexError):
        store.read("labels", indices)
    with pytest.raises(KeyError):
        store.read("label", [0])


def test_reads_nothing_after_closing(store):
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.read("labels", [0])


def test_threads_and_forked_children_read_at_the_same_time(store):
    features, wrong = everything()[0], []

    def read(seed):
        generator = np.random.default_rng(seed)
        for _ in range(100):
            chosen = generator.integers(0, COUNT, 5)
            if not np.array_equal(store.read("features_0", chosen), features[chosen]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if hasattr(os, "fork"):
        child = os.fork()
        read(child)
        if child == 0:
            os._exit(len(wrong))
        assert os.waitpid(child, 0)[1] == 0
    assert not wrong


def test_reading_takes_the_memory_of_its_rows_and_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_FILES", 3)
    with begin(tmp_path / "s", key="k", specs=[ArraySpec("wide", (10_000,), "float16")], count=1000) as writer:
        for _ in range(10):
            writer.append({"wide": np.ones((100, 10_000), "float16")})
        finished = writer.finish()
    generator = np.random.default_rng(0)
    with finished:
        tracemalloc.start()
        for _ in range(20):
            finished.read("wide", generator.integers(0, 1000, 32))
        current, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1.5 * 32 * 20_000
        assert current < 100_000
        if os.path.exists("/proc/self/fd"):
            assert (
                sum(str(tmp_path) in os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")) <= 3
            )
            with open("/proc/self/maps", encoding="utf-8") as file:
                assert str(tmp_path) not in file.read()


# Writing


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_written_in_any_chunks_is_read(data, tmp_path_factory):
    dtype = data.draw(st.sampled_from(["float16", "float32", "int64", "uint8", "bool"]))
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, max_side=4))
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any))
    values = data.draw(arrays.arrays(dtype, (sum(sizes), *shape)))
    chunks = np.split(values, np.cumsum(sizes)[:-1])
    stop = data.draw(st.integers(0, len(sizes)))
    folder = tmp_path_factory.mktemp("any")
    given = {
        "key": "k",
        "specs": [ArraySpec("a", shape, dtype)],
        "count": data.draw(st.sampled_from([None, len(values)])),
    }
    with begin(folder, **given) as writer:
        for chunk in chunks[:stop]:
            writer.append({"a": chunk})
    with begin(folder, **given) as writer:
        assert writer.rows_done == sum(sizes[:stop])
        for chunk in chunks[stop:]:
            writer.append({"a": chunk})
        writer.finish().close()
    rows = data.draw(st.lists(st.integers(-len(values), len(values) - 1), max_size=10))
    with open_store(folder, key="k") as store:
        assert store.read("a", slice(None)).tobytes() == values.tobytes()
        assert store.read("a", rows).tobytes() == values[rows].tobytes()
    plain = [np.load(path) for path in sorted(folder.glob("a-*.npy"))]
    assert np.concatenate(plain).tobytes() == values.tobytes()


def test_the_manifest_lists_every_shard(tmp_path):
    make_store(tmp_path / "a" / "b", {"epoch": 1})
    content = files_of(tmp_path / "a" / "b")
    manifest = json.loads(content["manifest.json"])
    assert [shard["rows"] for shard in manifest["shards"]] == [24, 24, 2]
    listed = {file["name"]: file["bytes"] for shard in manifest["shards"] for file in shard["files"]}
    assert listed == {name: len(bytes_) for name, bytes_ in content.items() if name != "manifest.json"}
    assert np.load(tmp_path / "a" / "b" / "labels-00001.npy").tolist() == list(range(24_000, 48_000, 1000))


def test_number_of_rows_may_be_unknown_and_empty_chunks_change_nothing(tmp_path):
    make_store(tmp_path / "known")
    with begin_in(tmp_path / "unknown", count=None) as writer:
        writer.append({"features_0": np.empty((0, 3, 5)), "labels": np.empty(0, int)})
        append_rest(writer)
        writer.finish()
    assert files_of(tmp_path / "unknown") == files_of(tmp_path / "known")


def test_starts_over_when_asked_or_when_something_else_was_begun(tmp_path):
    for number, change in enumerate(({"resume": False}, {"count": 49}, {"count": None}, {"specs": SPECS[::-1]})):
        folder = tmp_path / str(number)
        with begin_in(folder) as writer:
            append_rest(writer)
        with begin_in(folder, **change) as writer:
            assert writer.rows_done == 0
        assert set(files_of(folder)) == {"manifest.json"}


@pytest.mark.parametrize("make", [MemoryWriter, temporary_store])
def test_length_of_the_data_must_not_change(make):
    with make(SPECS, 20) as writer:
        with pytest.raises(DataError, match="20 rows, and 0 came"):
            writer.finish()
        writer.append(rows_from(0))
        writer.append(rows_from(8))
        with pytest.raises(DataError, match="more came"):
            writer.append(rows_from(16))
        assert writer.rows_done == 16
    with temporary_store(SPECS, None) as writer, pytest.raises(DataError, match="at least one"):
        writer.finish()


@pytest.mark.parametrize(
    "change",
    [
        {"labels": None},
        {"more": np.zeros(8)},
        {"labels": np.zeros(7, int)},
        {"labels": np.zeros((8, 1), int)},
        {"features_0": np.zeros((8, 5, 3))},
        {"features_0": np.zeros((8, 3, 5), complex)},
        {"labels": np.array(["a"] * 8)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_chunks_of_another_form_are_refused(change):
    chunk = {name: value for name, value in {**rows_from(0), **change}.items() if value is not None}
    with MemoryWriter(SPECS, COUNT) as writer:
        with pytest.raises(ArgumentError, match="Received"):
            writer.append(chunk)
        assert writer.rows_done == 0


def test_nothing_is_written_after_the_end(tmp_path):
    with begin_in(tmp_path) as writer:
        append_rest(writer)
        writer.finish()
        for write in (lambda: writer.append(rows_from(0)), writer.finish):
            with pytest.raises((StoreError, DataError), match=r"finished or closed|more came"):
                write()


# Made for something else


@pytest.mark.parametrize("complete", [True, False])
def test_a_store_of_another_key_is_not_used(tmp_path, complete):
    with begin_in(tmp_path) as writer:
        append_rest(writer)
        if complete:
            writer.finish()
    before = files_of(tmp_path)
    for use in (lambda: open_store(tmp_path, key="other"), lambda: begin_in(tmp_path, key="other", resume=False)):
        with pytest.raises(StoreMismatchError, match="other"):
            use()
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", ["manifest.json", "progress.json"])
def test_a_store_of_an_earlier_format_is_named_and_rebuilt(tmp_path, name):
    old = shards.sealed({"format": shards.FORMAT, "version": 1, "key": "k", "rows": 3})
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / name).write_bytes(old)
    for other in ("features_0.rows", "checksums.bin", "kerastl-store.lock"):
        (folder / other).write_bytes(b"old")
    with pytest.raises(StoreDamagedError, match="another format"):
        open_store(folder, key="k")
    make_store(folder)
    make_store(tmp_path / "new")
    assert files_of(folder) == files_of(tmp_path / "new")


@pytest.mark.parametrize(
    "content",
    [
        {"holiday.jpg": b"jpg"},
        {"manifest.json": b"{}"},
        {"manifest.json": b"not json"},
        {"manifest.json": b'{"format": "something"}', "features_0-00000.npy": b"mine"},
        {"progress.json": b"[1, 2]", "labels.rows": b"mine"},
        {"labels-00000.npy": b"mine"},
        {".hidden": b""},
    ],
    ids=lambda files: "+".join(files),
)
def test_somebody_elses_folder_is_left_alone(tmp_path, content):
    for name, bytes_ in content.items():
        (tmp_path / name).write_bytes(bytes_)
    for use in (lambda: open_store(tmp_path, key="k"), lambda: begin_in(tmp_path, resume=False)):
        with pytest.raises(StoreError, match="something else"):
            use()
        assert files_of(tmp_path) == content


def test_somebody_elses_files_beside_a_store_stay(tmp_path):
    make_store(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    flip(tmp_path / "manifest.json", -20)
    make_store(tmp_path)
    assert open_store(tmp_path, key="k") is not None
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for use in (lambda: open_store(path, key="k"), lambda: begin_in(path)):
        with pytest.raises(StoreError, match="file"):
            use()
    assert path.read_text() == "mine"


def test_names_in_a_manifest_cannot_leave_the_folder(tmp_path):
    for complete in (True, False):
        folder = tmp_path / f"store-{complete}"
        with begin_in(folder) as writer:
            append_rest(writer)
            if complete:
                writer.finish()
        content = json.loads((folder / "manifest.json").read_bytes())
        content["shards"][-1]["files"][0]["name"] = "../outside-00000.npy"
        del content["checksum"]
        (folder / "manifest.json").write_bytes(shards.sealed(content))
        with pytest.raises(StoreDamagedError, match="outside"):
            open_store(folder, key="k")
        with begin_in(folder) as writer:
            assert writer.rows_done == 0


# Killed, interrupted


@posix_only
def test_killed_20_times_equals_uninterrupted(tmp_path):
    code = """
specs, count, size = [ArraySpec("features_0", (2000,), "float16"), ArraySpec("labels", (), "int32")], 480, 8

def write(place):
    with lock(place, on_wait=lambda: None):
        if open_store(place, key="k") is not None:
            return
        with begin(place, key="k", specs=specs, count=count) as writer:
            for first in range(writer.rows_done, count, size):
                numbers = np.arange(first, first + size)
                writer.append({"features_0": numbers[:, None] + np.arange(2000) / 16, "labels": numbers})
            writer.finish({"made": "of numbers"})

def files(place):
    return {name: open(os.path.join(place, name), "rb").read() for name in os.listdir(place)}

start = time.perf_counter()
write(folder)
seconds = time.perf_counter() - start
random.seed(0)
kills, number, states = 0, 0, set()
while kills < 20:
    place = f"{folder}-{number}"
    child = os.fork()
    if child == 0:
        write(place)
        os._exit(0)
    time.sleep(random.uniform(0, seconds / 2))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        assert status == 0
        number += 1
        continue
    kills += 1
    states.add(sum(len(one) for one in files(place).values()) if os.path.exists(place) else 0)
for number in range(number + 1):
    write(f"{folder}-{number}")
    assert files(f"{folder}-{number}") == files(folder), number
    assert open_store(f"{folder}-{number}", key="k") is not None
print(kills, len(states))
"""
    kills, states = map(int, run_child(code, tmp_path / "store").split())
    assert kills == 20
    assert states >= 5, "the kills must hit at different moments"


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("count", [COUNT, None])
def test_dying_at_any_call_equals_uninterrupted(tmp_path, monkeypatch, count):
    """Die before or within every single call that changes the disk, and let the next run go on."""
    make_store(tmp_path / "whole", {"a": 1})
    whole = files_of(tmp_path / "whole")
    calls_left = 0

    def dying(function, before=lambda *_: None):
        def call(*arguments, **keywords):
            nonlocal calls_left
            if calls_left == 0:
                before(*arguments)
                raise Killed
            calls_left -= 1
            return function(*arguments, **keywords)

        return call

    class Half:
        """A file of which only half is written when the process dies."""

        def __init__(self, path, mode):
            self._file = open(path, mode, buffering=0)  # noqa: SIM115
            half = lambda data: self._file.write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])  # noqa: E731
            self.write = dying(self._file.write, half)
            self.truncate = dying(self._file.truncate)
            self.seek, self.fileno = self._file.seek, self._file.fileno

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

    for call in range(1000):
        folder, calls_left = tmp_path / str(call), call
        with monkeypatch.context() as patch:
            patch.setattr(stores, "open", lambda path, mode, **_: Half(path, mode), raising=False)
            for name in ("replace", "fsync", "truncate"):
                patch.setattr(os, name, dying(getattr(os, name)))
            with contextlib.suppress(Killed):
                make_store(folder, {"a": 1}, count=count)
                break
        assert open_store(folder, key="k") is None or files_of(folder) == whole
        make_store(folder, {"a": 1}, count=count)
        assert files_of(folder) == whole
    assert 40 < call < 999


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="asks Linux for names")
def test_everything_is_flushed_to_the_disk_before_the_manifest_speaks_of_it(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor):
        calls.append(("flush", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).split(".json")[0]))
        fsync(descriptor)

    def rename(old, new):
        calls.append(("rename", os.path.basename(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    make_store(tmp_path / "store")
    for name in ("features_0-00002.npy", "labels-00002.npy"):
        assert calls.index(("flush", name + ".part")) + 1 == calls.index(("rename", name))
    assert calls[-3:] == [("flush", "store"), ("flush", ".manifest"), ("rename", "manifest.json")]


def unfinished(folder):
    with begin_in(folder) as writer:
        for first in range(0, 40, CHUNK):
            writer.append(rows_from(first))
    return folder


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize(
    ("name", "rows_left"),
    [("labels-00000.npy", 0), ("labels-00001.npy.part", 24), ("features_0-00001.npy.part", 24), ("manifest.json", 0)],
)
def test_what_was_damaged_meanwhile_is_written_again(tmp_path, name, rows_left, damage):
    make_store(tmp_path / "whole")
    path = unfinished(tmp_path / "store") / name
    if damage == "flip":
        flip(path, 30 if name == "labels-00000.npy" else -5)  # in the header, which a finished shard has
    elif damage == "cut":
        path.write_bytes(b"" if name == "manifest.json" else path.read_bytes()[:-1])
    elif name == "manifest.json":  # without it, a folder is somebody else's
        return
    else:
        path.unlink()
    with begin_in(path.parent) as writer:
        assert writer.rows_done == rows_left
        append_rest(writer)
        writer.finish()
    assert files_of(path.parent) == files_of(tmp_path / "whole")


# Damaged


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "SHARD_BYTES", 1100)
        make_store(folder, {"note": "Größe", "numbers": [1, 2.5, None, True]})
    return folder


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_changed_byte_is_found(finished, data):
    name = data.draw(st.sampled_from(sorted(files_of(finished))))
    path = finished / name
    content = path.read_bytes()
    try:
        flip(path, data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255)))
        with pytest.raises(StoreError, match=f"{name}|something else"):
            open_store(finished, key="k")
    finally:
        path.write_bytes(content)
    assert open_store(finished, key="k") is not None


@pytest.mark.parametrize("name", ["manifest.json", "features_0-00001.npy", "labels-00002.npy"])
def test_files_of_another_size_are_found(tmp_path, name):
    make_store(tmp_path)
    content = (tmp_path / name).read_bytes()
    for other in (content[:-1], content + b"\n", b""):
        (tmp_path / name).write_bytes(other)
        with pytest.raises(StoreDamagedError, match=name):
            open_store(tmp_path, key="k")
    (tmp_path / name).unlink()
    with pytest.raises(
        StoreError, match="something else" if name == "manifest.json" else f"{name}: the file is missing"
    ):
        open_store(tmp_path, key="k")


def test_damage_while_reading_is_found(tmp_path):
    make_store(tmp_path)
    with open_store(tmp_path, key="k") as store:
        os.truncate(tmp_path / "labels-00000.npy", 256 + 20)
        np.testing.assert_array_equal(store.read("labels", [0, 4]), [0, 4000])
        for indices in (slice(None), [1, 20]):
            with pytest.raises(StoreDamagedError, match=r"labels-00000\.npy: it ends too early"):
                store.read("labels", indices)
        (tmp_path / "labels-00001.npy").unlink()
        with pytest.raises(StoreDamagedError, match=r"labels-00001\.npy: the file is missing"):
            store.read("labels", [30])


def test_a_damaged_store_is_rebuilt(tmp_path):
    make_store(tmp_path)
    whole = files_of(tmp_path)
    flip(tmp_path / "features_0-00000.npy", 400)
    make_store(tmp_path)
    assert files_of(tmp_path) == whole


# No room


def full_disk(monkeypatch, free):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)


MAKERS = [
    lambda folder, **given: begin_in(folder / "store", **given),
    lambda folder, count=COUNT, **given: MemoryWriter(SPECS, count, **given),
    lambda folder, count=COUNT, **given: temporary_store(SPECS, count, **given),
]


@pytest.mark.parametrize("make", MAKERS, ids=["folder", "memory", "temporary"])
def test_the_budget_is_checked_before_anything_is_made(tmp_path, make):
    with pytest.raises(StoreError, match="needed_bytes=1700, budget_bytes=1000"):
        make(tmp_path, budget_bytes=1000)
    assert not list(tmp_path.iterdir())
    assert not os.listdir(tempfile.gettempdir())


@pytest.mark.parametrize("make", [MAKERS[0], MAKERS[2]], ids=["folder", "temporary"])
def test_the_budget_is_checked_while_rows_come(tmp_path, make):
    with make(tmp_path, count=None, budget_bytes=600) as writer:
        writer.append(rows_from(0))
        writer.append(rows_from(8))
        with pytest.raises(StoreError, match="budget"):
            writer.append(rows_from(16))
        assert writer.rows_done == 16


def test_free_disk_is_checked_before_the_first_byte_and_while_rows_come(tmp_path, monkeypatch):
    full_disk(monkeypatch, stores.SPARE_BYTES + 1699)
    for make in (MAKERS[0], MAKERS[2]):
        with pytest.raises(StoreError, match="Not enough space"):
            make(tmp_path)
    assert not list(tmp_path.iterdir())
    with begin_in(tmp_path / "unknown", count=None) as writer:
        writer.append(rows_from(0))
        full_disk(monkeypatch, stores.SPARE_BYTES)
        with pytest.raises(StoreError, match="Not enough space"):
            writer.append(rows_from(8))
        assert writer.rows_done == CHUNK


def test_only_what_is_left_needs_room(tmp_path, monkeypatch):
    unfinished(tmp_path)
    full_disk(monkeypatch, stores.SPARE_BYTES + 10 * 34)
    begin_in(tmp_path).close()
    full_disk(monkeypatch, stores.SPARE_BYTES + 10 * 34 - 1)
    with pytest.raises(StoreError, match="Not enough space"):
        begin_in(tmp_path)
    full_disk(monkeypatch, 10**12)
    assert begin_in(tmp_path).rows_done == 40


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "first 24 rows are safe"), (errno.EIO, "can't be written")]
)
@pytest.mark.parametrize("where", ["write_whole", "zlib.crc32"])
def test_a_disk_that_is_full_or_fails_keeps_what_was_complete(tmp_path, monkeypatch, number, message, where):
    make_store(tmp_path / "whole")

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with begin_in(tmp_path / "store") as writer:
        for first in (0, 8, 16):
            writer.append(rows_from(first))
        with monkeypatch.context() as patch:  # the rows are on the disk by then, of a new shard
            patch.setattr(f"kerastl.features.store.{where}", fail)
            with pytest.raises(StoreError, match=message):
                writer.append(rows_from(24))
        assert writer.rows_done == 24
        append_rest(writer)  # somebody made room
        writer.finish()
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


@posix_only
def test_a_real_limit_of_the_system_is_reported(tmp_path):
    """A file may not grow beyond 10,000 bytes: the write that crosses it comes back short, the next one fails."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
writer = begin(folder, key="k", specs=[ArraySpec("a", (100,), "float32")], count=100)
try:
    for first in range(0, 100, 7):
        writer.append({"a": np.ones((7, 100))})
except store.StoreError as error:
    print(writer.rows_done, error)
"""
    assert run_child(code, tmp_path / "store").startswith("21 The disk is full")
    assert begin(tmp_path / "store", key="k", specs=[ArraySpec("a", (100,), "float32")], count=100).rows_done == 21


def test_more_than_memory_is_an_error_of_the_store():
    with pytest.raises(StoreError, match="don't fit into memory"):
        MemoryWriter([ArraySpec("a", (2**40,), "float64")], 2**10)


# Several processes


def test_the_lock_dies_with_its_process_and_waiting_is_told(tmp_path):
    code = "with lock(folder, on_wait=print):\n    print('held', flush=True)\n    time.sleep(60)"
    with start_child(code, tmp_path / "a" / "store") as holder:
        assert holder.stdout.readline() == "held\n"
        threading.Timer(0.2, holder.kill).start()
        waits = []
        with lock(tmp_path / "a" / "store", on_wait=lambda: waits.append(1)):
            assert waits == [1]
    with lock(tmp_path / "a" / "store", on_wait=lambda: waits.append(2)):
        assert waits == [1]


def test_of_several_processes_and_threads_one_extracts(tmp_path):
    code = """
def work():
    with lock(folder, on_wait=lambda: None):
        made = open_store(folder, key="k") is None
        if made:
            with begin(folder, key="k", specs=[ArraySpec("features_0", (100,), "float16")], count=40) as writer:
                for first in range(0, 40, 8):
                    writer.append({"features_0": np.full((8, 100), first)})
                    time.sleep(0.02)
                writer.finish()
        with open_store(folder, key="k") as one:
            print(made, one.read("features_0", [0, 39])[:, 0].tolist(), flush=True)
import threading
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    children = [start_child(code, tmp_path / "store") for _ in range(2)]
    outputs = sorted("".join(child.communicate(timeout=60)[0] for child in children).splitlines())
    assert outputs == ["False [0.0, 32.0]"] * 3 + ["True [0.0, 32.0]"]


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(stores.filelock.FileLock, "acquire", refuse)
    with pytest.raises(StoreError, match="can't be locked"), lock(tmp_path / "store", on_wait=print):
        pass


# Temporary


@pytest.mark.parametrize("finish", [True, False])
def test_a_temporary_store_goes_when_it_is_closed_or_forgotten(finish):
    for forget in (lambda one: one.close(), lambda one: None):
        with temporary_store(SPECS, COUNT) as writer:
            append_rest(writer)
            kept = writer.finish() if finish else writer
            assert len(os.listdir(tempfile.gettempdir())) == 2  # the folder and its lock
        if finish:
            assert kept.read("labels", [1]) == 1000
            kept._close.__closure__[0].cell_contents.close()  # its open files, which would be warned of
        forget(kept)
        del kept, writer
        gc.collect()
        assert not os.listdir(tempfile.gettempdir())


TEMPORARY = """
writer = temporary_store([ArraySpec("a", (), "float32")], 4)
writer.append({"a": np.arange(4)})
kept = writer.finish()
"""


@posix_only
def test_a_temporary_store_goes_with_the_interpreter_not_with_its_children(tmp_path):
    code = """
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
print(kept.read("a", [3]))
"""
    assert run_child(TEMPORARY + code, tmp_path) == "[3.]\n"
    assert not list(tmp_path.iterdir())


@posix_only
def test_the_next_temporary_store_clears_up_after_a_killed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with start_child(TEMPORARY + "os.kill(os.getpid(), signal.SIGKILL)", tmp_path) as child:
        child.wait(timeout=60)
    orphan = next(path for path in tmp_path.iterdir() if path.is_dir())
    with lock(tmp_path / "kerastl-temporary-store-mine", on_wait=print):
        make_store(tmp_path / "kerastl-temporary-store-mine")
    with temporary_store(SPECS, COUNT), temporary_store(SPECS, COUNT):
        assert not orphan.exists()
        assert len(list(tmp_path.iterdir())) == 6
    assert {path.name for path in tmp_path.iterdir()} == {
        "kerastl-temporary-store-mine",
        "kerastl-temporary-store-mine.lock",
    }


@posix_only
def test_a_child_that_lives_on_keeps_no_lock(tmp_path):
    code = """
with lock(folder, on_wait=print):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with start_child(code, tmp_path / "store") as parent:
        child = int(parent.stdout.readline())
        parent.wait(timeout=10)
        start = time.monotonic()
        try:
            with lock(tmp_path / "store", on_wait=lambda: None):
                assert time.monotonic() - start < 10
        finally:
            os.kill(child, signal.SIGKILL)
