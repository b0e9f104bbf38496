"""The feature store: written in order, read in any order, used only for what it was made for."""

import json
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kerastl.errors import (
    ArgumentError,
    DataError,
    StoreDamagedError,
    StoreError,
    StoreMismatchError,
)
from kerastl.features import records
from kerastl.features.store import (
    ArraySpec,
    begin,
    discard,
    lock,
    memory_store,
    open_store,
    temporary_store,
)
from tests.stores import (
    COUNT,
    LOCK_FILE,
    SPECS,
    append_rest,
    begin_in,
    everything,
    files_of,
    make_store,
    rows_from,
    run_child,
)


@pytest.fixture(params=["folder", "temporary", "memory", "growing"])
def store(request, tmp_path):
    """A complete store of each kind."""
    if request.param == "folder":
        writer = begin_in(tmp_path / "store")
    elif request.param == "temporary":
        writer = temporary_store(SPECS, None, directory=tmp_path)
    else:
        writer = memory_store(SPECS, COUNT if request.param == "memory" else None)
    with writer:
        append_rest(writer)
        finished = writer.finish({"layer": "conv5_block2_out", "sizes": (1, 2)})
    with finished:
        yield finished


# Light


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
        [-1, -50],
        np.arange(COUNT)[::-1],
        np.array([7, 3], "uint8"),
    ],
    ids=str,
)
def test_reads_what_numpy_would(store, indices):
    for name, expected in zip(("features_0", "labels"), everything(), strict=True):
        rows = store.read(name, indices)
        wanted = expected[indices if isinstance(indices, slice) else np.asarray(indices, int)]
        assert rows.dtype == wanted.dtype
        np.testing.assert_array_equal(rows, wanted)


def test_tells_what_it_holds(store):
    assert store.count == COUNT
    assert store.total_bytes == COUNT * (15 * 2 + 4)
    assert store.specs == {spec.name: spec for spec in SPECS}
    assert store.details == {"layer": "conv5_block2_out", "sizes": [1, 2]}


def test_reading_gives_copies(store):
    for indices in (slice(0, 4), [0, 1]):
        store.read("labels", indices)[:] = 7
    np.testing.assert_array_equal(store.read("labels", slice(0, 4)), [0, 1000, 2000, 3000])


@pytest.mark.parametrize(
    "indices", [[COUNT], [-COUNT - 1], [0.5], [[0]], 3, [True, False], ["a"], [2**64 - 1]], ids=str
)
def test_refuses_rows_that_there_are_not(store, indices):
    with pytest.raises(ArgumentError, match="Received"):
        store.read("labels", indices)


def test_names_the_arrays_that_there_are(store):
    with pytest.raises(ArgumentError, match="Did you mean 'labels'"):
        store.read("label", [0])


def test_reads_nothing_after_closing(store):
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.read("labels", [0])


def test_reads_scattered_wide_rows(tmp_path):
    rows = np.arange(200 * 9000, dtype="float32").reshape(200, 9000)
    with begin(tmp_path, key="k", specs=[ArraySpec("wide", (9000,), "float32")], count=200) as writer:
        writer.append({"wide": rows[:150]})
        writer.append({"wide": rows[150:]})
        store = writer.finish()
    chosen = np.random.default_rng(0).integers(0, 200, 32)
    np.testing.assert_array_equal(store.read("wide", chosen), rows[chosen])
    np.testing.assert_array_equal(store.read("wide", [199, 0]), rows[[199, 0]])


def test_reading_takes_the_memory_of_its_rows_and_keeps_none(tmp_path):
    with begin(tmp_path, key="k", specs=[ArraySpec("wide", (10_000,), "float16")], count=1000) as writer:
        for _ in range(10):
            writer.append({"wide": np.ones((100, 10_000), "float16")})
        store = writer.finish()
    generator = np.random.default_rng(0)
    tracemalloc.start()
    for _ in range(20):
        store.read("wide", generator.integers(0, 1000, 32))
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * 32 * 20_000
    assert current < 100_000
    if Path("/proc/self/maps").exists():
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
        assert not [fd for fd in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(fd)]


def test_threads_read_at_the_same_time(store):
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
    assert not wrong


# Writing


def test_opens_what_was_finished(tmp_path):
    make_store(tmp_path / "a" / "b", {"epoch": 1})
    store = open_store(tmp_path / "a" / "b", key="k")
    assert (store.count, store.details, store.key) == (COUNT, {"epoch": 1}, "k")
    np.testing.assert_array_equal(store.read("features_0", slice(None)), everything()[0])


def test_folder_holds_nothing_but_the_store(tmp_path):
    make_store(tmp_path)
    assert set(files_of(tmp_path)) == {"manifest.json", "checksums.bin", "features_0.rows", "labels.rows"}
    assert np.fromfile(tmp_path / "labels.rows", "<i4").tolist() == list(range(0, COUNT * 1000, 1000))


def test_number_of_rows_may_be_unknown(tmp_path):
    make_store(tmp_path / "unknown", count=None)
    make_store(tmp_path / "known")
    assert files_of(tmp_path / "unknown") == files_of(tmp_path / "known")


def test_leaving_early_keeps_what_was_appended(tmp_path):
    make_store(tmp_path / "whole")
    with begin_in(tmp_path / "parts") as writer:
        writer.append(rows_from(0))
        writer.append(rows_from(8))
    assert open_store(tmp_path / "parts", key="k") is None
    with begin_in(tmp_path / "parts") as writer:
        assert writer.rows_done == 16
        append_rest(writer)
        writer.finish()
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_starts_over_when_asked(tmp_path):
    with begin_in(tmp_path) as writer:
        writer.append(rows_from(8))
    with begin_in(tmp_path, resume=False) as writer:
        assert writer.rows_done == 0
        append_rest(writer)
        store = writer.finish()
    np.testing.assert_array_equal(store.read("labels", slice(None)), everything()[1])


def test_empty_chunks_change_nothing(tmp_path):
    make_store(tmp_path / "a")
    with begin_in(tmp_path / "b") as writer:
        writer.append({"features_0": np.empty((0, 3, 5)), "labels": np.empty(0, int)})
        append_rest(writer)
        writer.finish()
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("make", [memory_store, temporary_store])
def test_length_of_the_data_must_not_change(make):
    with make(SPECS, 20) as writer:
        writer.append(rows_from(0))
        with pytest.raises(DataError, match="20 rows, and 8 came"):
            writer.finish()
        writer.append(rows_from(8))
        with pytest.raises(DataError, match="more came"):
            writer.append(rows_from(16))
        assert writer.rows_done == 16


def test_a_store_of_nothing_is_refused():
    with memory_store(SPECS, None) as writer, pytest.raises(DataError, match="at least one"):
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
def test_chunks_of_another_form_are_refused(tmp_path, change):
    chunk = {name: value for name, value in {**rows_from(0), **change}.items() if value is not None}
    with begin_in(tmp_path) as writer:
        with pytest.raises(ArgumentError, match="Received"):
            writer.append(chunk)
        assert writer.rows_done == 0


def test_nothing_is_written_after_the_end(tmp_path):
    writer = begin_in(tmp_path)
    append_rest(writer)
    writer.finish()
    for write in (lambda: writer.append(rows_from(0)), writer.finish):
        with pytest.raises(StoreError, match="finished or closed"):
            write()


@pytest.mark.parametrize("details", [{"a": {1}}, {"a": float("nan")}, [1], {1: 2, "b": 3}], ids=str)
def test_details_must_fit_into_json(details):
    with memory_store(SPECS, 8) as writer:
        writer.append(rows_from(0))
        with pytest.raises(ArgumentError, match="JSON"):
            writer.finish(details)
        assert writer.finish({"fits": [1.5, None]}).details == {"fits": [1.5, None]}


@pytest.mark.parametrize(
    "make",
    [
        lambda: ArraySpec("../../etc", (), "float32"),
        lambda: ArraySpec("a", (0,), "float32"),
        lambda: ArraySpec("a", (), "object"),
        lambda: ArraySpec("a", (), "complex64"),
        lambda: ArraySpec("a", (), "float17"),
        lambda: memory_store([], 3),
        lambda: memory_store([SPECS[0], SPECS[0]], 3),
        lambda: memory_store(["features_0"], 3),
        lambda: memory_store(SPECS, 0),
        lambda: memory_store(SPECS, 3, budget_bytes=-1),
        lambda: begin("nowhere", key="", specs=SPECS, count=3),
        lambda: open_store("nowhere", key=None),
    ],
)
def test_arguments_are_checked_first(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="Received"):
        make()
    assert not list(tmp_path.iterdir())


# Made for something else


def test_a_store_of_another_key_is_not_used(tmp_path):
    make_store(tmp_path)
    before = files_of(tmp_path)
    for use in (lambda: open_store(tmp_path, key="other"), lambda: begin_in(tmp_path, key="other", resume=False)):
        with pytest.raises(StoreMismatchError, match="other"):
            use()
    with pytest.raises(StoreError, match="complete"):
        begin_in(tmp_path)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [{"key": "other"}, {"count": 40}, {"count": 4}, {"specs": SPECS[:1]}, {"specs": SPECS[::-1]}],
    ids=str,
)
def test_an_unfinished_store_of_something_else_is_not_continued(tmp_path, change):
    with begin_in(tmp_path) as writer:
        writer.append(rows_from(0))
    before = files_of(tmp_path)
    with pytest.raises(StoreMismatchError, match="Received"):
        begin_in(tmp_path, **change)
    if "key" in change:
        with pytest.raises(StoreMismatchError):
            open_store(tmp_path, key="other")
    assert files_of(tmp_path) == before


def test_a_newer_format_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(records, "VERSION", 2)
        make_store(tmp_path)
    for use in (lambda: open_store(tmp_path, key="k"), lambda: begin_in(tmp_path)):
        with pytest.raises(StoreError, match="version 2") as raised:
            use()
        assert not isinstance(raised.value, StoreDamagedError)


@pytest.mark.parametrize(
    "files",
    [
        {"holiday.jpg": b"jpg"},
        {"manifest.json": b"{}"},
        {"manifest.json": b"not json"},
        {"manifest.json": b'{"format": "something"}', "features_0.rows": b"mine"},
        {"progress.json": b"[1, 2]", "labels.rows": b"mine"},
        {"checksums.bin": b"mine"},
        {".hidden": b""},
    ],
    ids=lambda files: "+".join(files),
)
def test_somebody_elses_folder_is_left_alone(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    uses = [
        lambda: open_store(tmp_path, key="k"),
        lambda: begin_in(tmp_path),
        lambda: begin_in(tmp_path, resume=False),
        lambda: discard(tmp_path),
        lambda: lock(tmp_path).__enter__(),
    ]
    for use in uses:
        with pytest.raises(StoreError):
            use()
        assert files_of(tmp_path) == files
        assert not (tmp_path / LOCK_FILE).exists()


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for use in (lambda: open_store(path, key="k"), lambda: begin_in(path), lambda: discard(path)):
        with pytest.raises(StoreError, match="file"):
            use()
    assert path.read_text() == "mine"


def test_discarding_leaves_files_of_somebody_else(tmp_path):
    folder = tmp_path / "store"
    make_store(folder)
    (folder / "notes.txt").write_text("mine")
    assert open_store(folder, key="k") is not None
    discard(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    discard(tmp_path / "nowhere")


def test_discarding_inside_a_lock_keeps_the_lock(tmp_path):
    folder = tmp_path / "store"
    make_store(folder)
    with lock(folder):
        discard(folder)
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
        make_store(folder)
    assert open_store(folder, key="k") is not None


def test_a_store_without_its_lock_file_is_still_a_store(tmp_path):
    make_store(tmp_path)
    (tmp_path / LOCK_FILE).unlink()
    assert open_store(tmp_path, key="k").count == COUNT
    discard(tmp_path)
    assert not tmp_path.exists()


def test_names_in_a_manifest_cannot_leave_the_folder(tmp_path):
    folder = tmp_path / "store"
    make_store(folder)
    content = json.loads((folder / "manifest.json").read_bytes())
    content["arrays"][0]["name"] = "../outside"
    del content["checksum"]
    (folder / "manifest.json").write_bytes(records._seal(content))
    with pytest.raises(StoreDamagedError, match=r"manifest\.json"):
        open_store(folder, key="k")
