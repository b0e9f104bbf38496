"""Where TensorFlow Datasets can't be imported: what is said, and that ELPV is read without it."""

import importlib.metadata
import re
import sys

import pytest

from kerastl.data.folders import load_images
from kerastl.errors import BackendError, DataError


def test_packages_that_do_not_fit_are_named_with_the_line_that_mends_it(monkeypatch, tmp_path):
    """As on Colab: protobuf 5 refuses code that was generated for 6."""
    for name in [*sys.modules]:
        if name.split(".")[0] == "tensorflow_datasets" or name == "kerastl.data.tfds":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("kerastl.data.tfds", raising=False)
    (tmp_path / "tensorflow_datasets.py").write_text("raise RuntimeError('gencode 6.31.1 runtime 5.29.6')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("importlib.metadata.version", {"protobuf": "5.29.6", "tensorflow-metadata": "1.21.0"}.get)
    with pytest.raises(
        BackendError, match=r"gencode 6.*tensorflow-metadata 1\.21\.0.*protobuf 5\.29\.6.*metadata<1\.18"
    ):
        load_images("tfds:beans", image_size=8)


def test_the_packages_that_are_installed_work_or_are_named(tmp_path, monkeypatch, capfd):
    """TensorFlow Datasets logs its own failed import and goes on; ours fails at the first try and at the next."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for _ in range(2):
        with pytest.raises((BackendError, DataError)) as caught:
            load_images("tfds:no_such_data_set", image_size=8)
        versions = {name: importlib.metadata.version(name) for name in ("tensorflow-metadata", "protobuf")}
        named = ".*".join(f"{name} {re.escape(version)}" for name, version in versions.items())
        assert re.search(named if caught.type is BackendError else "no_such_data_set", str(caught.value))
    assert "Traceback" not in capfd.readouterr().err
