"""Several processes and one store; stores that remove themselves."""

import errno
import gc
import os
import signal
import threading
import time

import pytest

from kerastl.errors import (
    StoreBusyError,
    StoreError,
)
from kerastl.features import locking
from kerastl.features.store import (
    discard,
    lock,
    open_store,
    temporary_store,
)
from tests.stores import (
    CHUNK,
    COUNT,
    SPECS,
    append_rest,
    begin_in,
    make_store,
    posix_only,
    rows_from,
    run_child,
    start_child,
)

# Two processes


HOLD = """
with lock(folder):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path / "store"."""
    with start_child(HOLD, tmp_path / "store") as child:
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def test_a_busy_store_is_not_touched(tmp_path, holder):
    folder = tmp_path / "store"
    for use in (
        lambda: lock(folder, wait=False).__enter__(),
        lambda: lock(folder, timeout=0.1).__enter__(),
        lambda: begin_in(folder),
        lambda: discard(folder),
    ):
        with pytest.raises(StoreBusyError, match="Another process"):
            use()
    assert open_store(folder, key="k") is None


def test_the_lock_dies_with_its_process(tmp_path, holder):
    waits = []
    threading.Timer(0.2, holder.kill).start()
    with lock(tmp_path / "store", timeout=30, on_wait=lambda: waits.append(1)):
        assert waits == [1]


@posix_only
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    code = """
with lock(folder):
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
        try:
            with lock(tmp_path / "store", timeout=10):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_of_several_processes_one_extracts(tmp_path):
    code = """
specs = [ArraySpec("features_0", (100,), "float16")]
with lock(folder):
    made = open_store(folder, key="k") is None
    if made:
        with begin(folder, key="k", specs=specs, count=40) as writer:
            for first in range(0, 40, 8):
                writer.append({"features_0": np.full((8, 100), first)})
                time.sleep(0.02)
            writer.finish()
    print(made, open_store(folder, key="k").read("features_0", [0, 39])[:, 0].tolist())
"""
    children = [start_child(code, tmp_path / "store") for _ in range(3)]
    answers = sorted(child.communicate(timeout=60)[0].strip() for child in children)
    assert answers == ["False [0.0, 32.0]", "False [0.0, 32.0]", "True [0.0, 32.0]"]


def test_processes_that_lock_and_remove_never_meet(tmp_path):
    """Folders that vanish while somebody waits for them: the lock must be of the folder that there is."""
    code = """
from kerastl.features.store import discard
witness = folder + ".inside"
for turn in range(40):
    with lock(folder):
        os.close(os.open(witness, os.O_CREAT | os.O_EXCL))
        open(os.path.join(folder, "labels.rows"), "w").close()
        os.unlink(witness)
    if turn % 2:
        try:
            discard(folder)
        except store.StoreError:
            pass
print("done")
"""
    children = [start_child(code, tmp_path / "store") for _ in range(3)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["done\n"] * 3


def test_the_same_thread_may_lock_twice_another_waits(tmp_path):
    order = []

    def other():
        with lock(tmp_path / "store", on_wait=lambda: order.append("waits")):
            order.append("other")

    thread = threading.Thread(target=other)
    with lock(tmp_path / "store"), lock(tmp_path / "store", wait=False):
        thread.start()
        while "waits" not in order:
            time.sleep(0.01)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["waits", "first", "other"]


def test_one_writer_at_a_time_in_one_process(tmp_path):
    with lock(tmp_path), begin_in(tmp_path) as writer:
        writer.append(rows_from(0))
        for use in (lambda: begin_in(tmp_path), lambda: discard(tmp_path)):
            with pytest.raises(StoreBusyError, match="another part of this one"):
                use()
        writer.close()
        with begin_in(tmp_path) as second:
            assert second.rows_done == CHUNK
            append_rest(second)
            second.finish()
    assert open_store(tmp_path, key="k").count == COUNT


def test_a_lock_alone_leaves_no_folder(tmp_path):
    with lock(tmp_path / "made" / "here"):
        assert (tmp_path / "made" / "here").is_dir()
    assert not (tmp_path / "made" / "here").exists()
    (tmp_path / "given").mkdir()
    with lock(tmp_path / "given"):
        pass
    assert not list((tmp_path / "given").iterdir())


def test_a_forgotten_writer_gives_its_lock_back(tmp_path):
    begin_in(tmp_path).append(rows_from(0))
    gc.collect()
    assert not locking.is_held(tmp_path)
    with begin_in(tmp_path) as writer:
        assert writer.rows_done == CHUNK


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking, "_lock_descriptor", refuse)
    with pytest.raises(StoreError, match="can't be locked"):
        begin_in(tmp_path / "store")


def test_windows_locks_one_byte(tmp_path, monkeypatch):
    held = set()

    class Windows:
        LK_NBLCK, LK_UNLCK = 2, 0

        @staticmethod
        def locking(descriptor, mode, count):
            assert (os.lseek(descriptor, 0, os.SEEK_CUR), count) == (0, 1)
            name = os.fstat(descriptor).st_ino
            if mode == Windows.LK_UNLCK:
                held.remove(name)
            elif name in held:
                raise OSError(errno.EACCES, "Permission denied")
            else:
                held.add(name)

    monkeypatch.setattr(locking, "fcntl", None)
    monkeypatch.setattr(locking, "msvcrt", Windows, raising=False)
    with lock(tmp_path):
        assert len(held) == 1
        monkeypatch.setattr(locking, "_held", {})
        with pytest.raises(StoreBusyError):
            lock(tmp_path, wait=False).__enter__()


# Temporary


def test_a_temporary_store_goes_when_it_is_closed_or_forgotten(tmp_path):
    for forget in (lambda store: store.close(), lambda store: None):
        with temporary_store(SPECS, COUNT, directory=tmp_path) as writer:
            append_rest(writer)
            store = writer.finish()
        assert store.folder.parent == tmp_path
        assert store.read("labels", [1]) == 1000
        forget(store)
        del store, writer
        gc.collect()
        assert not list(tmp_path.iterdir())


def test_an_unfinished_temporary_store_goes_as_well(tmp_path):
    with temporary_store(SPECS, COUNT, directory=tmp_path) as writer:
        writer.append(rows_from(0))
    assert not list(tmp_path.iterdir())
    temporary_store(SPECS, COUNT, directory=tmp_path)
    gc.collect()
    assert not list(tmp_path.iterdir())


TEMPORARY = """
writer = temporary_store([ArraySpec("a", (), "float32")], 4, directory=folder)
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
def test_the_next_temporary_store_clears_up_after_a_killed_one(tmp_path):
    with start_child(TEMPORARY + "os.kill(os.getpid(), signal.SIGKILL)", tmp_path) as child:
        child.wait(timeout=60)
    (orphan,) = tmp_path.iterdir()
    mine = tmp_path / "kerastl-temporary-store-mine"
    make_store(mine)
    alive = temporary_store(SPECS, COUNT, directory=tmp_path)
    another = temporary_store(SPECS, COUNT, directory=tmp_path)
    assert not orphan.exists()
    assert open_store(mine, key="k") is not None
    assert len(list(tmp_path.iterdir())) == 3
    alive.close()
    another.close()


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(StoreError, match="nowhere"):
        temporary_store(SPECS, COUNT, directory=tmp_path / "nowhere")
