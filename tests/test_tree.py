"""The tree: what may import what, how large a file may be, a light import, a face that is whole."""

import ast
import importlib.util
import inspect
import json
import pathlib
import re
import subprocess
import sys

import pytest

from tests import sweeps

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


def lines_of_code(node: ast.FunctionDef) -> int:
    """Return how long a function is without its docstring."""
    text = node.body[0] if ast.get_docstring(node) else None
    return node.end_lineno - node.lineno + 1 - (text.end_lineno - text.lineno + 1 if text else 0)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= 500
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert {node.name: lines_of_code(node) for node in functions if lines_of_code(node) > 51} == {}


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
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_import_is_light_and_opens_nothing():
    code = f"""
import sys, time
import keras
before, opened = set(sys.modules), []
events = ("open", "socket.connect", "subprocess.Popen")
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event in events else None)
start = time.process_time()
import kerastl
seconds = time.process_time() - start
print(seconds, *set(sys.modules) - before, *[path for path in opened if not path.startswith({str(PACKAGE)!r})])
"""
    seconds, *extra = run(code).split()
    assert {name.split(".")[0] for name in extra} == {"kerastl"}
    assert float(seconds) < 0.1


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_script_on_another_backend_needs_no_tensorflow(backend):
    """Not to train, predict and evaluate; `load_images` gives tf.data pipelines, and an export converts TensorFlow's graph."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    code = f"""
import os, sys
os.environ["KERAS_BACKEND"] = {backend!r}
import keras, kerastl
import numpy as np
from tests import models
data = (np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3)).astype("uint8"), np.arange(12) % 3)
model = models.compiled(kerastl.freeze(models.nested()))
kerastl.fit(model, *data, validation_data=data, epochs=1, cache=True, verbose=0)
kerastl.transfer_learn(model, data, data, head_epochs=1, fine_tune_epochs=1, last_blocks=1, verbose=0)
kerastl.predict(model, list(data[0]))
kerastl.evaluate(model, data)
print(*[name for name in sys.modules if name.startswith("tensorflow")])
"""
    assert run(code) == "\n"


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
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    told = {node.names[0].asname: node.module for node in imports} | {"fit": "kerastl.training.session"}
    assert told == {**kerastl._HOME_OF, "__version__": "kerastl._version"}
    assert (PACKAGE / "py.typed").is_file()


def test_editors_complete_the_arguments_of_fit():
    import keras

    import kerastl

    (function,) = [
        node
        for node in ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]
    namespace = {"_keras": keras}
    exec(compile(ast.Module([function], []), "__init__.pyi", "exec"), namespace)
    told = {name: one.default for name, one in inspect.signature(namespace["fit"]).parameters.items()}
    own = {name: one.default for name, one in inspect.signature(kerastl.fit).parameters.items()}
    own |= {name: one.default for name, one in inspect.signature(keras.Model.fit).parameters.items()}
    assert told == {name: value for name, value in own.items() if name not in ("self", "positional", "fit_arguments")}


def test_pyright_knows_every_public_name_and_finds_wrong_arguments(tmp_path):
    """As the editors that are built on it do: VS Code completes and marks by the same types."""
    import kerastl

    program = pathlib.Path(sys.executable).with_name("basedpyright")
    if not program.exists():
        pytest.skip("basedpyright is not installed: the extra `types` brings it")
    public = "\n".join(f"reveal_type(kerastl.{name})" for name in kerastl.__all__)
    script = f"""
import kerastl
{public}
images = kerastl.load_images("photos", image_size=96)
model = kerastl.build_classifier("mobilenet_v2", num_classes=len(images.class_names))
reveal_type((images.class_names, kerastl.fit(model, images.train, epochs=1), kerastl.transfer_learn(model, 0, 0).head))
kerastl.load_images("photos", image_size=96, image_sise=96)
kerastl.fit(model, images.train, epoch=1)
kerastl.predikt(model)
"""
    (tmp_path / "script.py").write_text(script)
    settings = {"extraPaths": [str(PACKAGE.parent)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [program, "--outputjson", "--pythonpath", sys.executable, "--project", tmp_path]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)[
        "generalDiagnostics"
    ]
    errors = [one["message"] for one in found if one["severity"] == "error"]
    assert errors == [
        'No parameter named "image_sise"',
        'No parameter named "epoch"',
        '"predikt" is not a known attribute of module "kerastl"',
    ]
    told = [one["message"] for one in found if one["severity"] == "information"]
    assert len(told) == len(kerastl.__all__) + 1
    assert [one for one in told if re.search(r"(is|->) \"?Unknown", one)] == []
    assert told[-1].endswith('"tuple[tuple[str, ...], History, History]"')


@pytest.mark.parametrize("file", sweeps.KEPT)
def test_what_is_left_to_the_sweeps_is_there(file):
    text = pathlib.Path(__file__).with_name(file).read_text("utf-8")
    assert [name for name in sweeps.KEPT[file] if f"def {name}(" not in text] == []
