"""The house holds: floors, a light import, a wheel that is whole."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "kerastl"

# A module imports only from what stands before it: from lower floors, and on its own floor from the left.
FLOORS = [
    ["_version", "errors", "tables", "checks", "backend"],
    [
        *("graph", "blocks", "images", "torch_files", "weights", "outputs", "inputs", "several_outputs", "compiling"),
        *("callbacks", "litert"),
    ],
    ["networks", "freezing", "costs", "gradients"],
    ["backbones", "features"],
    ["heads", "auxiliary_heads"],
    ["training"],
    [
        *("splitting", "catalogues", "tfds_catalogue", "elpv", "data", "prediction", "plots", "report", "bundle"),
        *("export", "compare", "pruning", "seeing"),
    ],
    ["cli", "__main__"],
]
# On floor 6 modules don't import each other, but for these.
NEIGHBOURS = {
    "tfds_catalogue": {"catalogues"},
    "elpv": {"tfds_catalogue", "catalogues"},
    "data": {"splitting", "catalogues", "tfds_catalogue", "elpv"},
    "report": {"plots"},
    "bundle": {"prediction"},
    "export": {"report", "bundle"},
}
TENSORFLOW_AT_HOME = {"backend", "litert", "data", "elpv", "tfds_catalogue", "catalogues", "export/formats"}


def modules():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: pathlib.Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kerastl":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {name.name.split(".")[1] for name in node.names if name.name.startswith("kerastl.")}
    return rooms - {room_of(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_floors(path):
    order = {room: (floor, place) for floor, rooms in enumerate(FLOORS) for place, room in enumerate(rooms)}
    room = room_of(path)
    assert room in order, f"{room} has no floor: add it to the table"
    for other in imported_rooms(path):
        assert order[other] < order[room], f"{room} imports {other}, which is not below it"
        if order[other][0] == order[room][0] == 6:
            assert other in NEIGHBOURS.get(room, set()), f"{room} imports its neighbour {other}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tensorflow_is_imported_only_where_it_is_at_home(path):
    place = str(path.relative_to(PACKAGE)).removesuffix(".py").removesuffix("/__init__")
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if any(name.split(".")[0] in ("tensorflow", "tensorflow_datasets") for name in names):
            assert place in TENSORFLOW_AT_HOME, f"{place} imports TensorFlow"


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_import_is_light():
    code = """
import sys, time
import keras
before = set(sys.modules)
start = time.process_time()
import kerastl
seconds = time.process_time() - start
new = set(sys.modules) - before
print(seconds, *[name for name in ("matplotlib", "tensorflow_datasets", "PIL", "elpv_dataset", "pandas") if name in new])
"""
    seconds, *extra = run(code).split()
    assert extra == []
    assert float(seconds) < 0.2


def test_every_public_name_has_a_docstring_and_is_there():
    import kerastl

    missing = [name for name in kerastl.__all__ if name != "__version__" and not getattr(kerastl, name).__doc__]
    assert missing == []
