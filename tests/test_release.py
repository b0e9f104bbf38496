"""The release: a small wheel that works in an environment of its own, and files that name the same version."""

import inspect
import pathlib
import re
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

import kerastl
from kerastl.cli.parser import build_parser
from kerastl.training.rates import HEAD_RATE, RECIPE_RATE

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


QUICKSTART = "python -m kerastl train demo --image-size 160 --out runs/quickstart"
RECIPE = 'build_classifier("efficientnet_lite0", len(data.class_names), input_shape=160)'


def test_there_is_one_quickstart():
    """The same line in all places that have one, with the defaults of the command line, and the same network in Python."""
    places = ("Makefile", "README.md", "docs/get-started.md", "notebooks/00_quickstart.ipynb", "kerastl/cli/parser.py")
    for place in (*places, ".github/workflows/other-systems.yml"):
        text = (ROOT / place).read_text("utf-8")
        assert re.findall(r"python -m kerastl train demo[^\\\n]*?runs/quickstart", text) == [QUICKSTART], place
    for place in ("README.md", "docs/get-started.md", "docs/index.md"):
        assert RECIPE in (ROOT / place).read_text("utf-8"), place
    arguments = build_parser().parse_args(QUICKSTART.split()[3:])
    assert (arguments.backbone, arguments.image_size) == ("efficientnet_lite0", 160)
    recipe = inspect.signature(kerastl.transfer_learn).parameters
    # These mean something else on the command line, or say it in another way
    other = {"validation", "backbone", "class_weight", "batch_size", "seed", "verbose"}
    shared = {*recipe} & {*vars(arguments)} - other
    assert {name: getattr(arguments, name) for name in shared} == {name: recipe[name].default for name in shared}
    assert len(shared) > 10
    text = (ROOT / "kerastl/cli/parser.py").read_text("utf-8")  # written out there, as the parser must not load Keras
    assert f"with cosine decay to 0 (default: {RECIPE_RATE})" in text
    assert arguments.head_learning_rate == HEAD_RATE
