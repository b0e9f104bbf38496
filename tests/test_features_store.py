"""The feature store: written in order, read in any order, used only whole and for what it was made for."""

import json
import os
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kerastl.errors import ArgumentError, DataError, StoreDamagedError, StoreError, StoreMismatchError
from kerastl.features import shards
from kerastl.features.store import ArraySpec, MemoryWriter, begin, open_store, temporary_store
from tests.stores import (
    COUNT,
    SPECS,
    append_rest,
    begin_in,
    everything,
    files_of,
    flip,
    make_store,
    rows_from,
    run_child,
)

pytestmark = pytest.mark.usefixtures("small_shards")


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
