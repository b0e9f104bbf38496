"""The code and the commands on the documentation's pages: they name what there is, and what can run here runs."""

import ast
import importlib
import inspect
import pathlib
import re
import shlex
import textwrap

import keras
import pytest

import kerastl
from kerastl.cli.parser import build_parser
from tests import models
from tests.test_docs_examples import first_lines

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT / "docs")): path.read_text(encoding="utf-8")
    for path in sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "how-to").glob("*.md")])
} | {"README.md": (ROOT / "README.md").read_text(encoding="utf-8")}

NOT_RUN = {
    "README.md": "its lines are those of the first page and of get-started",
    "compare.md": "it times networks",
    "export.md": "it needs a trained model: tests/test_export*.py",
    "how-to/choose-a-backbone.md": "it needs pretrained weights",
    "how-to/colab-gpu.md": "it needs Colab",
    "how-to/gradio.md": "it needs Gradio, whose event loop outlives a test",
    "how-to/hugging-face.md": "it needs an account",
    "how-to/kerashub.md": "it needs KerasHub: tests/test_hub.py",
    "how-to/mixed-precision.md": "it changes a setting of Keras for all that comes after",
    "how-to/several-gpus.md": "it needs several GPUs: tests/test_training_distribution.py",
    "how-to/several-machines.md": "it needs a cluster: tests/test_features_ray.py",
    "how-to/weights-and-biases.md": "it needs an account",
    "how-to/offline.md": "it needs a file of weights",
    "peers.md": "it needs fastai, and weights",
    "performance.md": "its code is tf.data's",
    "seeing.md": "it needs a trained model: tests/test_evaluation_explanation.py",
}
NEEDS = {"how-to/tensorboard.md": "tensorboard"}

# What a page takes for granted besides
FIRST = {
    "how-to/probabilities.md": """
data = kerastl.load_images("photos", labels="tags.csv", image_size=32)
model = kerastl.build_classifier("mobilenet_v2", len(data.class_names), task=data.task)
""",
    "pruning.md": 'import pathlib; pathlib.Path("model.tflite").write_bytes(bytes(1000))',
}

# What makes a page's code small: sizes, epochs, folders of Colab
SMALLER = (
    (r"\b(image_size|input_shape)=\d+", r"\1=32"),
    (r"\((160|224), (160|224), 3\)", "(32, 32, 3)"),
    (r"epochs=\d+", "epochs=1"),
    (r"(transfer_learn\((?:(?!epochs)[^()])*)\)", r"\1, fine_tune_epochs=1)"),
    (r"(find_learning_rate\([^)]*)\)", r"\1, steps=5, rates=[1e-4, 1e-3])"),
    (r"/content/drive/MyDrive/flowers", "drive"),
    (r"/content/flowers", "flowers"),
)


def python_blocks(text: str) -> list[str]:
    """Return the Python of a page, block by block."""
    return [
        textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    ]


def commands(text: str) -> list[str]:
    """Return the commands `python -m kerastl …` of a page that can be given as they stand, in blocks and within a text."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^ *(python -m kerastl [^\n]*)$|`(python -m kerastl [^`\n]*)`", joined, re.MULTILINE)
    return [one or other for one, other in found if "…" not in one + other]


WITH_CODE = sorted(name for name, text in PAGES.items() if python_blocks(text))


def calls_of(code: str) -> list[tuple[str, ast.Call]]:
    """Return the calls of what stands behind `kerastl.`, with its name."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and re.fullmatch(r"kerastl(\.\w+)+", ast.unparse(node.func)):
            found.append((ast.unparse(node.func), node))
    return found


def thing_called(name: str):
    """Return what a dotted name of the package is: public, or in a module of it."""
    _, *path = name.split(".")
    if path[0] in kerastl.__all__:
        return getattr(kerastl, path[0])
    for parts in range(len(path) - 1, 0, -1):
        try:
            return getattr(importlib.import_module(".".join(["kerastl", *path[:parts]])), path[parts])
        except ModuleNotFoundError:
            continue
    raise AttributeError(name)


def check_call(name: str, call: ast.Call) -> None:
    """Raise `TypeError` for arguments that what is called doesn't take."""
    signature = inspect.signature(thing_called(name))
    arguments = {one.arg: None for one in call.keywords if one.arg}
    starred = any(isinstance(one, ast.Starred) for one in call.args) or any(one.arg is None for one in call.keywords)
    given = [None] * sum(not isinstance(one, ast.Starred) for one in call.args)
    (signature.bind_partial if starred else signature.bind)(*given, **arguments)
    if name == "kerastl.fit":  # the rest is Keras's
        arguments = {one: None for one in arguments if one not in ("cache", "views")}
        inspect.signature(keras.Model.fit).bind_partial(None, *given[1:], **arguments)


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_calls_what_there_is(page):
    for block in python_blocks(PAGES[page]):
        for name, call in calls_of(block):
            check_call(name, call)


@pytest.mark.parametrize("page", [name for name in PAGES if commands(PAGES[name])])
def test_commands_have_the_options_they_are_given(page):
    for command in commands(PAGES[page]):
        _, _, _, *arguments = shlex.split(command, comments=True)
        if len(arguments) > 1:  # else the text only names it
            build_parser().parse_args(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_names_in_the_text_are_there(page):
    names = set(re.findall(r"`(kerastl\.\w+(?:\.\w+)*)", PAGES[page]))
    for name in names:
        if "." in name.removeprefix("kerastl.") or name.removeprefix("kerastl.") not in kerastl.__all__:
            assert inspect.ismodule(thing_or_module(name)) or thing_called(name) is not None


def thing_or_module(name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return thing_called(name)


def test_wrong_code_is_found():
    (name, call), *_ = calls_of("kerastl.fit(model, x, epoch=3)")
    with pytest.raises(TypeError, match="epoch"):
        check_call(name, call)
    with pytest.raises(AttributeError):
        thing_called("kerastl.no_such")


def small_backbone(name, *, input_shape=None, **options) -> keras.Model:
    """Stand in for `load_backbone`: a tiny network, frozen, with random weights."""
    assert name in kerastl.list_backbones()
    shape = input_shape or 32
    backbone = models.tiny_backbone(shape if isinstance(shape, int) else shape[0], blocks=5)
    if options.get("pooling"):
        backbone = keras.Model(backbone.input, keras.layers.GlobalAveragePooling2D()(backbone.output))
    backbone.trainable = False
    return backbone


@pytest.fixture
def world(tmp_path, monkeypatch, eagerly) -> dict:
    """What pages take for granted: a folder of flowers, tables of labels, a photograph, a run, a model, and data."""
    monkeypatch.chdir(tmp_path)
    assert kerastl.load_backbone is not small_backbone  # the package now holds its own: it is not looked up again
    monkeypatch.setattr("kerastl.models.backbones.load_backbone", small_backbone)
    names = {}
    exec(compile(first_lines(), "docs/api/index.rst", "exec"), names)
    folder = pathlib.Path("photos")
    folder.mkdir()
    files = [f"{letter}.jpg" for letter in "abcdefghijklmnopqrstuvwxyzABCD"]
    for file, image in zip(files, names["images"], strict=True):
        keras.utils.save_img(folder / file, image, scale=False)
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        keras.utils.save_img(name, names["images"][0], scale=False)
    classes, tags = ("daisy", "rose", "tulip"), ("beach", "beach|sunset", "")
    for name, values in (("labels.csv", classes), ("tags.csv", tags)):
        rows = [f"{file},{values[label]}" for file, label in zip(files, names["labels"], strict=True)]
        (folder / name).write_text("\n".join([f"filename,{name.removesuffix('.csv')}", *rows]), encoding="utf-8")
    model = kerastl.build_classifier("mobilenet_v2", 3, preprocessing=lambda pixels: pixels / 127.5 - 1)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    for path in ("runs/flowers/model.keras", "drive/best.keras"):
        pathlib.Path(path).parent.mkdir(parents=True)
        model.save(path)
    pathlib.Path("runs/flowers/labels.txt").write_text("\n".join(classes), encoding="utf-8")
    flat = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    )
    flat.save("runs/resnet50.keras")  # it shows no scaling of its pixels
    return names | {"model": model, "mean_recall": keras.metrics.SparseCategoricalAccuracy(name="mean_recall")}


RUN = [
    # another package's warnings are not ours
    pytest.param(name, marks=pytest.mark.filterwarnings("ignore")) if name in NEEDS else name
    for name in WITH_CODE
    if name not in NOT_RUN
]


@pytest.mark.parametrize("page", RUN)
@pytest.mark.filterwarnings("ignore::kerastl.KerastlWarning", "ignore::UserWarning:keras")
@pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")
def test_code_runs(page, world, monkeypatch):
    """Block by block, with smaller images and a tiny network; what a page begins with, `world` has."""
    from matplotlib import pyplot

    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    if "export_model" in PAGES[page] + FIRST.get(page, ""):  # it exports what was traced
        import tensorflow as tf

        tf.config.run_functions_eagerly(False)
    exec(FIRST.get(page, ""), world)
    for number, block in enumerate(python_blocks(PAGES[page])):
        for pattern, smaller in SMALLER:
            block = re.sub(pattern, smaller, block)
        exec(compile(block, f"{page}, block {number}", "exec"), world)
    pyplot.close("all")


def test_what_is_not_run_is_there():
    assert NOT_RUN.keys() <= set(WITH_CODE)
    assert NEEDS.keys() | FIRST.keys() <= set(WITH_CODE) - NOT_RUN.keys()
