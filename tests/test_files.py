import errno
import functools
import os
from pathlib import Path

import pytest

from kerastl import files
from kerastl.errors import ArgumentError, OutputError

RUN = {"files": ("model.keras", "labels.txt"), "what": "run"}
check_output_folder = functools.partial(files.check_output_folder, **RUN)


def test_when_the_last_rename_fails_the_old_run_is_back(tmp_path, monkeypatch):
    target = tmp_path / "run"
    target.mkdir()
    (target / "model.keras").write_text("old")
    original, calls = os.replace, []

    def fails_once(source, destination):
        calls.append(destination)
        if len(calls) == 2:
            raise OSError(errno.EIO, "I/O error")
        original(source, destination)

    monkeypatch.setattr(files.os, "replace", fails_once)
    with pytest.raises(OutputError, match="I/O error"), files.new_folder(target, overwrite=True, **RUN) as place:
        (place / "model.keras").write_text("new")
    assert (target / "model.keras").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_only_runs_are_ever_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    (tmp_path / "home" / "model.keras").write_text("")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        check_output_folder(tmp_path / "home", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_output_folder(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="Nothing can be written"):
        check_output_folder("/dev/null/run")
    with pytest.raises(ArgumentError, match="path of a folder"):
        check_output_folder("")
    (tmp_path / "empty").mkdir()
    assert check_output_folder(tmp_path / "empty") == tmp_path / "empty"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "home"]


def test_an_empty_folder_and_a_link_are_filled(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with files.new_folder(tmp_path / "link", **RUN) as place:
        (place / "model.keras").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.keras").read_text() == "new"


def test_free_space_is_checked(tmp_path):
    files.check_free_space(tmp_path / "not" / "there", 1)
    with pytest.raises(OutputError, match="Not enough space"):
        files.check_free_space(tmp_path / "not" / "there", 10**18)


def test_a_free_name_is_found_beside_a_taken_one(tmp_path):
    assert files.free_folder_beside(tmp_path / "run", "interrupted") == tmp_path / "run"
    for expected in ("run", "run-interrupted", "run-interrupted-2"):
        found = files.free_folder_beside(tmp_path / "run", "interrupted")
        assert found.name == expected
        found.mkdir()
        (found / "something").write_text("")


def test_data_dir(monkeypatch, tmp_path):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    checkout = Path(files.__file__).parents[1]
    assert files.find_data_dir(None) == str(checkout / "data")
    assert files.find_data_dir(tmp_path) == str(tmp_path)
    assert files.find_data_dir("~/here") == os.path.expanduser("~/here")
    monkeypatch.setattr(files, "__file__", str(tmp_path / "kerastl" / "files.py"))
    assert files.find_data_dir(None) is None
    monkeypatch.undo()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert files.find_data_dir(None) is None
