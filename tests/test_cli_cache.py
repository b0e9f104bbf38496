"""`cache`, from the command line: the stored features are listed, and removed but for those in use."""

import errno
import fcntl
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from kerastl.cli import main
from kerastl.features import store as stores
from kerastl.features.shards import ArraySpec
from tests.commands import fails


def write(folder, *, hours=0, rows=1000, complete=True):
    """Write a store of so many kB that is so many hours old."""
    with stores.begin(folder, key="k", specs=[ArraySpec("features_0", (250,), "float32")], count=rows) as writer:
        writer.append({"features_0": np.zeros((rows if complete else rows // 2, 250), "float32")})
        if complete:
            writer.finish().close()
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    return folder


def cells(text):
    """Return `{name of the folder: (age, state)}` of the table."""
    lines = [line.split() for line in text.splitlines() if os.sep in line and "removed" not in line]
    return {line[0].rpartition(os.sep)[2]: (" ".join(line[-3:-1]), line[-1]) for line in lines}


def test_stores_are_listed_with_size_age_and_state(tmp_path, capsys):
    write(tmp_path / "flowers" / "features" / "train-1", hours=5)
    write(tmp_path / "features" / "train-2", complete=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"format": "of somebody else"}')
    (tmp_path / "manifest.json").write_text("[")
    assert main(["cache", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert cells(text) == {"train-1": ("5.0 hours", "complete"), "train-2": ("0.0 hours", "unfinished")}
    assert text.index("train-2") < text.index("train-1")
    assert "1 MB" in text
    assert "in all: 1.5 MB" in text
    assert "removed" not in text


def test_without_folders_runs_and_temporary_stores_are_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert main(["cache"]) == 0
    assert "in all: 0 bytes" in capsys.readouterr().out
    write(tmp_path / "runs" / "a" / "features" / "train-1")
    writer = stores.temporary_store([ArraySpec("features_0", (250,), "float32")], 10)
    assert main(["cache", "--clear"]) == 0
    text = capsys.readouterr().out
    assert sorted(state for _, state in cells(text).values()) == ["complete", "use"]
    assert not (tmp_path / "runs" / "a" / "features" / "train-1").exists()
    assert list((tmp_path / "runs" / "a" / "features").iterdir()) == []
    writer.close()


def test_the_oldest_are_removed_until_the_rest_is_small_enough(tmp_path, capsys):
    for hours in (1, 2, 3, 4):
        write(tmp_path / f"train-{hours}", hours=hours)
    (tmp_path / "train-4" / "mine.txt").touch()
    os.utime(tmp_path / "train-4" / "mine.txt", (0, 0))
    assert main(["cache", str(tmp_path), "--max-size", "2.5MB"]) == 0
    assert capsys.readouterr().out.count("removed: ") == 2
    assert sorted(path.name for path in tmp_path.glob("train-*") if path.is_dir()) == ["train-1", "train-2", "train-4"]
    assert [path.name for path in (tmp_path / "train-4").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("doing", ["reading", "writing"])
def test_what_another_process_uses_stays(doing, tmp_path, capsys):
    code = f"""
import sys
from tests import test_cli_cache
from kerastl.features import store as stores
if {doing!r} == "reading":
    test_cli_cache.write(test_cli_cache.stores.Path("train-1"))
    used = stores.open_store("train-1", key="k")
else:
    used = stores.lock("train-1", on_wait=print)
    used.__enter__()
    test_cli_cache.write(test_cli_cache.stores.Path("train-1"), complete=False)
print("ready", flush=True)
sys.stdin.readline()
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, **pipes) as child:
        assert child.stdout.readline() == "ready\n"
        assert main(["cache", str(tmp_path), "--clear"]) == 0
        assert cells(capsys.readouterr().out)["train-1"][1] == "use"
        assert (tmp_path / "train-1" / "manifest.json").exists()
        child.communicate("\n")
    assert main(["cache", str(tmp_path), "--clear"]) == 0
    assert not (tmp_path / "train-1").exists()


def test_a_store_that_this_process_reads_stays_until_it_is_closed(tmp_path):
    write(tmp_path / "train-1")
    with stores.open_store(tmp_path / "train-1", key="k") as first, stores.open_store(tmp_path / "train-1", key="k"):
        assert main(["cache", str(tmp_path), "--clear"]) == 0
        assert first.read("features_0", [3]).shape == (1, 250)
    assert main(["cache", str(tmp_path), "--clear"]) == 0
    assert not (tmp_path / "train-1").exists()


def test_on_a_disk_without_locks_stores_can_be_removed(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    write(tmp_path / "train-1")
    monkeypatch.setattr(fcntl, "flock", refuses)
    assert main(["cache", str(tmp_path), "--clear"]) == 0
    assert not (tmp_path / "train-1").exists()


def test_wrong_arguments_are_told_in_a_line(tmp_path, capsys):
    assert "missing" in fails(capsys, "cache", tmp_path / "missing")
    assert "--max-size" in fails(capsys, "cache", tmp_path, "--max-size", "lots")
    assert "not allowed with" in fails(capsys, "cache", tmp_path, "--max-size", "1GB", "--clear")
