"""The feature store among accidents: killed, damaged, out of room, several processes at once, temporary folders."""

import contextlib
import errno
import gc
import os
import signal
import tempfile
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerastl import files
from kerastl.errors import KerastlWarning, StoreDamagedError, StoreError
from kerastl.features import store as stores
from kerastl.features.store import ArraySpec, MemoryWriter, begin, lock, open_store, temporary_store
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
    start_child,
)

pytestmark = pytest.mark.usefixtures("small_shards")


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


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EIO])
def test_a_disk_without_locks_is_named_and_used_and_a_broken_one_refused(number, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(number, "No locks available")

    monkeypatch.setattr(stores.filelock.FileLock, "acquire", refuse)
    if number == errno.EIO:
        with pytest.raises(StoreError, match="can't be locked"), lock(tmp_path / "store", on_wait=print):
            pass
        return
    folder = tmp_path / "store"

    def write():
        with lock(folder, on_wait=print), begin(folder, key="k", specs=SPECS, count=COUNT) as writer:
            append_rest(writer)
            writer.finish()

    with pytest.warns(KerastlWarning, match="knows no locks: see to it that one process") as caught:
        write()
    assert str(tmp_path) in str(caught[0].message)
    with open_store(folder, key="k") as store:
        assert store.count == COUNT


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
