"""The release: a small wheel that works in an environment of its own, and files that name the same version."""

import pathlib
import re
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

import kerastl

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state no test here needs."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # A copy: what is built lies in the source folder, and would come into the next wheel
    shutil.copytree(ROOT / "kerastl", source / "kerastl", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(place), str(source)]
    subprocess.run(pip, check=True, capture_output=True)
    (path,) = place.glob("*.whl")
    return path


def test_a_wheel_is_small_and_holds_the_package_alone(wheel):
    assert wheel.name == f"kerastl-{kerastl.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 1_000_000
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"kerastl", f"kerastl-{kerastl.__version__}.dist-info"}
    assert not [name for name in names if "test" in name or name.endswith(".ipynb")]
    assert {"kerastl/py.typed", "kerastl/__init__.pyi", "kerastl/data/flowers.csv"} <= {*names}


def test_a_wheel_works_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    programs = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(next(programs.glob("python*"))),
        "install",
        "--quiet",
        "--no-deps",
    ]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    command = next(programs.glob("kerastl*"))
    help_text = subprocess.run([command, "--help"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "python -m kerastl train flowers/" in help_text
    version = subprocess.run([command, "--version"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert kerastl.__version__ in version


def test_the_version_is_the_same_everywhere():
    citation = dict(re.findall(r"^([a-z-]+): (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE))
    newest = re.search(r"^## (\S+), (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert citation["version"] == newest[1] == kerastl.__version__
    assert citation["date-released"] == newest[2]


def test_extras_are_those_that_the_documentation_names():
    text = "".join(path.read_text("utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])
    named = set(re.findall(r"(?:kerastl|\.)\[([a-z]+)\]", text))
    sections = (ROOT / "setup.cfg").read_text("utf-8").split("[options.extras_require]")[1].split("\n[")[0]
    extras = set(re.findall(r"^([a-z]+) =$", sections, re.MULTILINE))
    assert named <= extras
    # The Makefile installs these for those who work on it
    assert extras - named <= {"docs", "test", "types"}, "an extra that no page tells of"
