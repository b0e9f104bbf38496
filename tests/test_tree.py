"""The tree: what may import what, how large a file may be, a light import, a face that is whole."""

import ast
import importlib.util
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "kerastl"

# A file imports only from the lines above it, or on its own line from the left. Inside a package there is no circle.
ROWS = [
    ["_version"],
    ["errors", "checks", "tables", "files"],
    ["backend", "keras_internals"],
    ["data"],
    ["models"],
    ["costs"],
    ["features"],
    ["training"],
    ["evaluation"],
    ["export"],
    ["lab"],
    ["cli"],
    ["__main__"],
]
CORE = {part for row in ROWS[:5] + ROWS[6:8] for part in row}
TENSORFLOW_AT_HOME = {
    "backend",
    "features/litert",
    "data/folders",
    "data/tfds",
    "export/conversion",
    "export/formats",
}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(PACKAGE)).removesuffix(".py").removesuffix("/__init__")


def imports_of(path: pathlib.Path) -> set[str]:
    """Return the files of the package that a file imports, as `features/store`, and packages as `features`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kerastl":
            module = "/".join(node.module.split(".")[1:])
            found |= {f"{module}/{alias.name}".strip("/") for alias in node.names} | {module}
        elif isinstance(node, ast.Import):
            found |= {"/".join(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("kerastl.")}
    return (found & {name_of(one) for one in FILES}) - {name_of(path)}


def top(name: str) -> str:
    return name.split("/")[0]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_above(path):
    order = {part: (number, place) for number, row in enumerate(ROWS) for place, part in enumerate(row)}
    own = top(name_of(path))
    assert own in order, f"{own} stands on no line: add it to the table"
    for other in imports_of(path):
        assert top(other) == own or order[top(other)] < order[own], f"{name_of(path)} imports {other}, not above it"


def test_no_files_import_each_other_in_a_circle():
    arrows = {name_of(path): imports_of(path) for path in FILES}
    while free := [name for name, others in arrows.items() if not others & arrows.keys()]:
        for name in free:
            del arrows[name]
    assert arrows == {}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= 500
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_there_are_few_parts_and_few_arrows_between_them():
    arrows = {(top(name_of(path)), top(other)) for path in FILES for other in imports_of(path)}
    arrows = {(one, other) for one, other in arrows if one != other}
    assert len({top(name_of(path)) for path in FILES}) <= 22  # and four folders beside the package: 26 in the project
    assert len(arrows) <= 100


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_one_file_reads_private_names_of_keras(path):
    if name_of(path) == "keras_internals":
        return
    private = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    own = {
        node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    assert private - own <= {"_repr_png_", "_getframe"}  # of notebooks, of Python


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_tensorflow_is_imported_only_where_it_is_at_home(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if any(name.split(".")[0] in ("tensorflow", "tensorflow_datasets") for name in names):
            assert name_of(path) in TENSORFLOW_AT_HOME, f"{name_of(path)} imports TensorFlow"


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


def test_the_picture_of_the_tree_is_of_todays_code():
    spec = importlib.util.spec_from_file_location("draw_tree", PACKAGE.parent / "docs" / "draw_tree.py")
    draw_tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_tree)
    assert [list(row) for row in draw_tree.ROWS] == [row for row in ROWS if row != ["__main__"]]
    assert draw_tree.PICTURE.read_text() == draw_tree.draw(), "run `make tree`"


def test_editors_find_every_public_name_where_it_is():
    import kerastl

    stub = ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8"))
    told = {node.names[0].asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom)}
    assert told == {**kerastl._HOME_OF, "__version__": "kerastl._version"}
    assert (PACKAGE / "py.typed").is_file()
