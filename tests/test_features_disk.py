"""Stores on disk that are killed, damaged, or run out of room."""

import contextlib
import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerastl.errors import (
    StoreDamagedError,
    StoreError,
)
from kerastl.features import disk
from kerastl.features.store import (
    ArraySpec,
    begin,
    discard,
    memory_store,
    open_store,
    temporary_store,
)
from tests.stores import (
    CHUNK,
    COUNT,
    SPECS,
    append_rest,
    begin_in,
    files_of,
    flip,
    make_store,
    posix_only,
    rows_from,
    run_child,
)

# Killed, interrupted


@posix_only
def test_killed_20_times_equals_uninterrupted(tmp_path):
    code = """
specs, count, size = [ArraySpec("features_0", (2000,), "float16"), ArraySpec("labels", (), "int32")], 480, 8

def write(place):
    with lock(place):
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
    rows = os.path.join(place, "features_0.rows")
    states.add(os.path.getsize(rows) if os.path.exists(rows) else 0)
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
    """Die at every single call that changes the disk, a write half done, and let the next run go on."""
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

    def half(file, offset, data):
        file.seek(offset)
        file.write(data[: len(data) // 2])

    for call in range(1000):
        folder, calls_left = tmp_path / str(call), call
        with monkeypatch.context() as patch:
            patch.setattr(disk, "_write_at", dying(disk._write_at, half))
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(os, "fsync", dying(os.fsync))
            with contextlib.suppress(Killed):
                make_store(folder, {"a": 1}, count=count)
                break
        assert open_store(folder, key="k") is None or files_of(folder) == whole
        if "manifest.json" not in files_of(folder):
            make_store(folder, {"a": 1}, count=count)
        assert files_of(folder) == whole
    assert 30 < call < 999


def test_chunks_damaged_meanwhile_are_written_again(tmp_path):
    make_store(tmp_path / "whole")
    for name, position, rows_left in (("labels.rows", 4 * 9, 8), ("checksums.bin", 0, 0), ("checksums.bin", 14, 8)):
        folder = tmp_path / f"{name}-{position}"
        with begin_in(folder) as writer:
            for first in (0, 8, 16):
                writer.append(rows_from(first))
        flip(folder / name, position)
        with begin_in(folder) as writer:
            assert writer.rows_done == rows_left
            append_rest(writer)
            writer.finish()
        assert files_of(folder) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("lost", ["labels.rows", "checksums.bin", "progress.json"])
def test_lost_files_of_an_unfinished_store_are_made_again(tmp_path, lost):
    make_store(tmp_path / "whole")
    with begin_in(tmp_path / "parts") as writer:
        writer.append(rows_from(0))
    (tmp_path / "parts" / lost).unlink()
    assert open_store(tmp_path / "parts", key="k") is None
    with begin_in(tmp_path / "parts") as writer:
        assert writer.rows_done == 0
        append_rest(writer)
        writer.finish()
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"{", b'{"format": "kerastl feature store"}'])
def test_unreadable_progress_means_starting_over(tmp_path, content):
    with begin_in(tmp_path) as writer:
        writer.append(rows_from(0))
    (tmp_path / "progress.json").write_bytes(content)
    assert open_store(tmp_path, key="k") is None
    with begin(tmp_path, key="other", specs=SPECS[:1], count=9) as writer:
        assert writer.rows_done == 0
        assert not (tmp_path / "labels.rows").exists()


# Damaged


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_store(folder, {"note": "Größe", "numbers": [1, 2.5, None, True]})
    return folder


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_changed_byte_is_found(finished, data):
    name = data.draw(st.sampled_from(sorted(files_of(finished))))
    path = finished / name
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    try:
        flip(path, position, data.draw(st.integers(1, 255)))
        with pytest.raises(StoreError, match=name):
            open_store(finished, key="k")
    finally:
        path.write_bytes(content)
    assert open_store(finished, key="k") is not None


@pytest.mark.parametrize("name", ["manifest.json", "checksums.bin", "features_0.rows", "labels.rows"])
@pytest.mark.parametrize("verify", [True, False])
def test_files_of_another_size_are_found(tmp_path, name, verify):
    make_store(tmp_path)
    content = (tmp_path / name).read_bytes()
    for other in (content[:-1], content + b"\n", b""):
        (tmp_path / name).write_bytes(other)
        with pytest.raises(StoreDamagedError, match=name):
            open_store(tmp_path, key="k", verify=verify)
        with pytest.raises(StoreError):
            begin_in(tmp_path)
    (tmp_path / name).unlink()
    if name == "manifest.json":
        assert open_store(tmp_path, key="k", verify=verify) is None
    else:
        with pytest.raises(StoreDamagedError, match=name):
            open_store(tmp_path, key="k", verify=verify)


def test_damage_while_reading_is_found(tmp_path):
    store = make_store(tmp_path)
    os.truncate(tmp_path / "labels.rows", 20)
    np.testing.assert_array_equal(store.read("labels", [0, 4]), [0, 4000])
    for indices in (slice(None), [1, 40]):
        with pytest.raises(StoreDamagedError, match=r"labels\.rows"):
            store.read("labels", indices)
    (tmp_path / "labels.rows").unlink()
    with pytest.raises(StoreDamagedError, match=r"labels\.rows"):
        store.read("labels", [0])


def test_a_damaged_store_can_be_discarded_and_made_again(tmp_path):
    folder = tmp_path / "store"
    make_store(folder)
    flip(folder / "manifest.json", 5, 0xFF)
    with pytest.raises(StoreDamagedError, match=r"manifest\.json"):
        open_store(folder, key="k")
    discard(folder)
    assert not folder.exists()
    make_store(folder)
    assert open_store(folder, key="k") is not None


# No room


def full_disk(monkeypatch, free):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)


def test_the_budget_is_checked_before_anything_is_made(tmp_path):
    for make in (
        lambda: begin_in(tmp_path / "store", budget_bytes=1000),
        lambda: memory_store(SPECS, COUNT, budget_bytes=1000),
        lambda: temporary_store(SPECS, COUNT, directory=tmp_path, budget_bytes=1000),
    ):
        with pytest.raises(StoreError, match="needed_bytes=1700, budget_bytes=1000"):
            make()
    assert not list(tmp_path.iterdir())


def test_the_budget_also_bounds_what_nobody_knew(tmp_path):
    for make in (
        lambda: begin_in(tmp_path / "store", count=None, budget_bytes=600),
        lambda: memory_store(SPECS, None, budget_bytes=600),
    ):
        with make() as writer:
            writer.append(rows_from(0))
            writer.append(rows_from(8))
            with pytest.raises(StoreError, match="budget"):
                writer.append(rows_from(16))
            assert writer.rows_done == 16


def test_free_disk_is_checked_before_the_first_byte(tmp_path, monkeypatch):
    full_disk(monkeypatch, disk.SPARE_BYTES + 1699)
    for make in (lambda: begin_in(tmp_path / "store"), lambda: temporary_store(SPECS, COUNT, directory=tmp_path)):
        with pytest.raises(StoreError, match=r"needs 1\.7 kB.*needed_bytes=1700, free_bytes=100001699"):
            make()
    assert not list(tmp_path.iterdir())
    full_disk(monkeypatch, disk.SPARE_BYTES + 1700)
    make_store(tmp_path / "store")


def test_only_what_is_left_needs_room(tmp_path, monkeypatch):
    with begin_in(tmp_path) as writer:
        writer.append(rows_from(0))
    full_disk(monkeypatch, disk.SPARE_BYTES + 42 * 34)
    begin_in(tmp_path).close()
    full_disk(monkeypatch, disk.SPARE_BYTES + 42 * 34 - 1)
    with pytest.raises(StoreError, match="no room"):
        begin_in(tmp_path)
    assert (tmp_path / "progress.json").exists()


def test_free_disk_is_watched_where_nobody_knows_how_much_comes(tmp_path, monkeypatch):
    with begin_in(tmp_path, count=None) as writer:
        writer.append(rows_from(0))
        full_disk(monkeypatch, disk.SPARE_BYTES)
        with pytest.raises(StoreError, match="no room"):
            writer.append(rows_from(8))
        assert writer.rows_done == CHUNK


@pytest.mark.parametrize("failing_write", [6, 7, 8])
def test_a_full_disk_keeps_what_was_complete(tmp_path, monkeypatch, failing_write):
    make_store(tmp_path / "whole")
    writes = 0
    write_at = disk._write_at

    def write(file, offset, data):
        nonlocal writes
        if writes >= failing_write:
            write_at(file, offset, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        writes += 1
        write_at(file, offset, data)

    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(disk, "_write_at", write)
        with begin_in(folder) as writer:
            with pytest.raises(StoreError, match=r"first 16 of 50 rows are safe.*needed_bytes=1156") as raised:
                append_rest(writer)
            assert raised.value.__cause__.errno == errno.ENOSPC
            assert writer.rows_done == 16
    assert (folder / "labels.rows").stat().st_size == 64
    make_store(folder)
    assert files_of(folder) == files_of(tmp_path / "whole")


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
    print(writer.rows_done, os.path.getsize(os.path.join(folder, "a.rows")), error)
"""
    output = run_child(code, tmp_path / "store")
    assert output.startswith("21 8400 The disk is full")
    with begin(tmp_path / "store", key="k", specs=[ArraySpec("a", (100,), "float32")], count=100) as writer:
        assert writer.rows_done == 21


def test_a_disk_that_fails_is_reported(tmp_path, monkeypatch):
    with begin_in(tmp_path) as writer:

        def fail(*_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(disk, "_write_at", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            writer.append(rows_from(0))


def test_more_than_memory_is_an_error_of_the_store():
    with pytest.raises(StoreError, match="don't fit into memory"):
        memory_store([ArraySpec("a", (2**40,), "float64")], 2**20)
