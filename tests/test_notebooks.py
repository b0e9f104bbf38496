"""The notebooks: each runs at its FAST size, is kept executed, and has what its readers are promised."""

import base64
import configparser
import importlib.util
import os
import pathlib
import re
import statistics
import subprocess
import sys

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = [
    "00_quickstart",
    "01_why_relu_after_convolution",
    "02_what_a_convolution_costs",
    "03_resnet_bottlenecks_and_shortcuts",
    "04_mobilenetv2_inverted_residuals",
    "05_how_deep_can_a_network_go",
    "06_resnet50_feature_extraction",
    "07_resnet50_fine_tuning",
    "08_mobilenetv2_transfer_and_fine_tuning",
    "09_the_batchnorm_trap",
    "10_predictions_from_intermediate_layers",
    "11_choosing_a_backbone_for_mobile",
    "12_compress_and_export",
    "13_one_gpu_many_images",
    "14_what_is_wrong_with_my_data",
]
# Every section of the notes that the cookbook came from: the notebook and the headings under which it is answered
SOURCE = [
    ("Why ReLU after a convolution, though pixels are ≥ 0", "01", ["Why ReLU, when pixels are never negative?"]),
    ("What happens without ReLU; edge detection analogy", "01", ["What happens without ReLU?", "Edge detection"]),
    ("Comparing convolutions (normal, pointwise, depthwise)", "02", ["Comparing convolutions"]),
    (
        "Is depthwise convolution designed to save computation? formulas",
        "02",
        ["Is depthwise convolution designed to save computation?"],
    ),
    ("Bottleneck layers: what, why, how, the Keras block", "03", ["Bottleneck layers: what, why, how"]),
    (
        "ResNet: skip connections, ignoring layers; how the shortcut acts in backpropagation",
        "03",
        ["Does a skip connection ignore layers?", "How a forward shortcut acts in backpropagation"],
    ),
    (
        "MobileNetV2: depthwise separable, inverted residual, linear bottleneck, width multiplier",
        "04",
        ["Depthwise separable convolutions", "Inverted residuals", "Linear bottlenecks", "The width multiplier"],
    ),
    ("How many layers can a network reach? history, factors", "05", ["How many layers can a network reach?"]),
    (
        "An over-complicated model on simple data looks like vanishing gradients",
        "05",
        ["An over-complicated model on simple data"],
    ),
    (
        "Freezing a pretrained model and training custom layers (ResNet50)",
        "06",
        ["Freezing a pretrained model and training custom layers"],
    ),
    (
        "The concept of fine-tuning; best practices table",
        "07",
        ["The concept of fine-tuning", "The best practices, one by one"],
    ),
    ("Fine-tuning code (last 10 layers, 1e-4, recompile)", "07", ["The fine-tuning code"]),
    ("MobileNetV2 as a recipe", "08", ["MobileNetV2 as a recipe"]),
    (
        "How predictions from intermediate layers reduce overfitting; are their outputs the same?",
        "10",
        ["How predictions from intermediate layers reduce overfitting", "Are their outputs the same?"],
    ),
    (
        "Is ResNet for mobile? MobileNet V1–V3, EfficientNet, ShuffleNet, SqueezeNet, ResNet-18/34",
        "11",
        ["Is ResNet made for mobile?", "The alternatives"],
    ),
    (
        "Quantization, pruning, TensorFlow Lite, Core ML",
        "12",
        ["Quantization", "Pruning", "TensorFlow Lite", "Core ML"],
    ),
]
LAST = ["What can go wrong", "Exercises", "Solutions"]
LONGEST_CELL, LARGEST_BYTES, LARGEST_PNG, LONGEST_OUTPUT = 15, 600_000, 250_000, 70
MOST_MINUTES = 9  # on two cores

_spec = importlib.util.spec_from_file_location("notebook_tools", FOLDER / "tools.py")
tools = importlib.util.module_from_spec(_spec)
sys.modules["notebook_tools"] = tools
_spec.loader.exec_module(tools)

# The cookbook is being written: what there is of it is held to all of this, and what is missing is skipped by name.
WRITTEN = [name for name in NAMES if (FOLDER / f"{name}.ipynb").exists()]
every_notebook = pytest.mark.parametrize("name", WRITTEN)


def path_of(name: str) -> pathlib.Path:
    return FOLDER / f"{name}.ipynb"


def read(name: str):
    return nbformat.read(path_of(name), as_version=4)


def headings(notebook) -> list[str]:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(r"^## +(.+?)\s*$", text, re.MULTILINE)


def markdown(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def outputs(notebook) -> list:
    return [output for cell in tools.code_cells(notebook) for output in cell.outputs]


def run_in_a_process_of_its_own(name: str, *options: str) -> None:
    """Jupyter's own warnings and event loops stay out of this process."""
    environment = {key: value for key, value in os.environ.items() if key not in ("KERASTL_FAST", "MPLBACKEND")}
    command = [sys.executable, str(FOLDER / "tools.py"), "run", *options, name]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.notebook
@every_notebook
def test_it_runs_at_the_fast_size(name):
    run_in_a_process_of_its_own(name, "--fast", "--time-factor", "4")


@pytest.mark.notebook
@pytest.mark.slow
@every_notebook
def test_it_runs_at_full_size(name):
    run_in_a_process_of_its_own(name, "--time-factor", "4")


def test_there_are_these_and_no_others():
    assert [path.stem for path in sorted(FOLDER.glob("*.ipynb"))] == WRITTEN


@pytest.mark.parametrize(("section", "number", "expected"), SOURCE, ids=[row[0][:40] for row in SOURCE])
def test_every_section_of_the_notes_has_its_notebook_and_heading(section, number, expected):
    (name,) = [name for name in NAMES if name.startswith(number)]
    if name not in WRITTEN:
        pytest.skip(f"{name} is not written yet")
    found = headings(read(name))
    assert [one for one in expected if one not in found] == [], f"{section}: {name} has {found}"


@every_notebook
def test_the_header(name):
    notebook = read(name)
    header = notebook.cells[0].source
    assert header.startswith(f"# {name[:2]} · ")
    for part in ("**Question.**", "**Afterwards you can**", "**Time.**"):
        assert part in header, part
    minutes = tools.MINUTES.search(header)
    assert minutes, "no `About N minutes on a 2-core CPU`"
    assert 1 <= int(minutes[1]) <= MOST_MINUTES
    assert "?" in header.split("**Question.**")[1].splitlines()[0]


@every_notebook
def test_badge_and_install_line_have_the_address_of_setup_cfg(name):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    url = config["metadata"]["url"]
    notebook = read(name)
    badge = f"https://colab.research.google.com/github/{url.removeprefix('https://github.com/')}/blob/main/notebooks/"
    assert re.findall(r"\]\((https://colab\.research\.google\.com/github/\S+)\)", notebook.cells[0].source) == [
        f"{badge}{name}.ipynb"
    ]
    fast, install, setup = [cell.source for cell in tools.code_cells(notebook)[:3]]
    assert len(tools.FULL.findall(fast)) == 1
    assert f"git+{url}" in install
    assert 'if "google.colab" in sys.modules:' in install
    assert (install, setup) == tools.standard_cells()


@every_notebook
def test_the_readme_lists_it_with_its_title_and_badge(name):
    title = read(name).cells[0].source.splitlines()[0].split(" · ", 1)[1]
    address = re.findall(r"\((https://colab[^\s)]+)\)", tools.badge(f"{name}.ipynb"))[-1]
    (row,) = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if f"({address})" in line]
    assert f"[{title}](notebooks/{name}.ipynb)" in row


@every_notebook
def test_it_is_kept_executed_in_order_and_at_full_size(name):
    notebook = read(name)
    counts = [cell.execution_count for cell in tools.code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    setup = tools.code_cells(notebook)[2]
    assert "size: full" in setup.outputs[0].text
    assert "device:" in setup.outputs[0].text
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert len([output for output in outputs(notebook) if "image/png" in output.get("data", {})]) >= 2


@every_notebook
def test_outputs_are_small_and_tell_nothing_of_the_machine(name):
    assert path_of(name).stat().st_size < LARGEST_BYTES
    for output in outputs(read(name)):
        data = output.get("data", {})
        if "image/png" in data:
            assert len(base64.b64decode(data["image/png"])) < LARGEST_PNG
        text = output.get("text", "") + data.get("text/plain", "") + data.get("text/html", "")
        assert text.count("\n") < LONGEST_OUTPUT, text[:500]
        assert not re.search(r" at 0x[0-9a-f]{6,}|/tmp/|/home/|/root/|/usr/|site-packages|ipykernel_", text), text[:500]


@every_notebook
def test_metadata_is_stripped(name):
    notebook = read(name)
    assert set(notebook.metadata) == {"accelerator", "kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
    for output in outputs(notebook):
        assert not output.get("metadata")


@every_notebook
def test_code_cells_are_short(name):
    lengths = [len(cell.source.splitlines()) for cell in tools.code_cells(read(name))]
    assert max(lengths) <= LONGEST_CELL
    assert statistics.median(lengths) <= 8


@every_notebook
def test_it_asks_before_it_answers_and_ends_as_promised(name):
    notebook = read(name)
    text = "\n\n".join(markdown(notebook))
    guesses = re.findall(r"^> \*\*Guess first\.\*\*(.*(?:\n>.*)*)", text, re.MULTILINE)
    assert len(guesses) >= 2
    assert all("?" in guess for guess in guesses)
    assert "> **Often said.**" in text or name == "00_quickstart"
    assert headings(notebook)[-3:] == LAST
    exercises = text[text.index("## Exercises") : text.index("## Solutions")]
    assert 2 <= len(re.findall(r"^\d\. ", exercises, re.MULTILINE)) <= 3
    places = [place for place, cell in enumerate(notebook.cells) if cell.source.startswith("## Solutions")]
    assert any(cell.cell_type == "code" for cell in notebook.cells[places[0] :])


@every_notebook
def test_links_lead_somewhere(name):
    notebook = read(name)
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(markdown(notebook))):
        if target.startswith("#"):
            anchors = [heading.replace(" ", "-") for heading in headings(notebook)]
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (FOLDER / target.split("#")[0]).exists(), target


# ------------------------------------------------------------------------------------- the tool that runs and keeps them


def notebook_of(*sources: str, tags=()):
    cells = [nbformat.v4.new_markdown_cell("# 00 · Test\n\n**Question.** Is it?")]
    cells += [nbformat.v4.new_code_cell(source) for source in ("FAST = False  # smaller", "x = 1", "y = 2", *sources)]
    cells[-1].metadata["tags"] = list(tags)
    return nbformat.v4.new_notebook(cells=cells)


def execute(tmp_path, notebook, **options) -> tuple[str, list[str]]:
    """Run a notebook in a process of its own; return its kept source and outputs, and the problems."""
    path = tmp_path / "00_test.ipynb"
    nbformat.write(notebook, path)
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(FOLDER)!r})
import tools
outcome = tools.execute(pathlib.Path({str(path)!r}), **{options!r})
tools.clean(outcome.notebook, "00_test.ipynb")
tools.write(outcome.notebook, pathlib.Path({str(path)!r}))
print("PROBLEMS", list(outcome.problems))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "PROBLEMS" in result.stdout, result.stderr
    return nbformat.read(path, as_version=4), result.stdout.split("PROBLEMS")[1]


def test_a_good_run_is_kept_clean(tmp_path):
    bar = 'print("old" + chr(13) + "\\x1b[1mnew\\x1b[0m", end=""); print("!")'
    kept, problems = execute(tmp_path, notebook_of("print('FAST is', FAST)", bar), fast=True)
    assert problems.strip() == "[]"
    said = [cell.outputs[0].text for cell in tools.code_cells(kept)[3:]]
    assert said == ["FAST is True\n", "new!\n"]
    assert [cell.execution_count for cell in tools.code_cells(kept)] == [1, 2, 3, 4, 5]
    assert set(kept.metadata) == {"accelerator", "kernelspec", "language_info"}
    assert tools.code_cells(kept)[1].source.startswith("import sys")


@pytest.mark.parametrize(
    ("source", "tags", "problem"),
    [
        ("1 / 0", (), "ZeroDivisionError"),
        ("import warnings; warnings.warn('careful')", (), "standard error.*careful"),
        ("import warnings; warnings.warn('careful')", ("warns",), None),
        ("import os, time; os.write(2, b'native\\n'); time.sleep(1)", (), "standard error.*native"),
        ("x", ("warns",), "did not warn"),
        ("import time; time.sleep(60)", ("within-1-seconds",), "longer than it may"),
    ],
)
def test_what_makes_a_run_fail(tmp_path, source, tags, problem):
    _, problems = execute(tmp_path, notebook_of(source, tags=tags))
    assert (problems.strip() == "[]") is (problem is None)
    assert problem is None or re.search(problem, problems)


def test_a_notebook_without_its_setting_is_refused(tmp_path):
    notebook = notebook_of("1")
    notebook.cells[1].source = "FAST = True"
    assert "must hold one line" in execute(tmp_path, notebook)[1]


def test_outputs_of_the_fast_size_are_never_kept(capsys):
    with pytest.raises(SystemExit):
        tools.main(["run", "--keep", "--fast"])
    assert "full size alone" in capsys.readouterr().err


def test_start_up_lines_are_left_out_and_warnings_are_not():
    lines = (
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        "I0000 00:00:1795479746.331315   25314 port.cc:153] oneDNN custom operations are on.\n"
        "/tmp/ipykernel_25314/897614937.py:1: UserWarning: hello\n"
    )
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", name="stderr", text=lines)])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    tools._tidy_streams(notebook)
    assert notebook.cells[0].outputs[0].text == "UserWarning: hello\n"
