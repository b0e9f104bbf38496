"""Run the notebooks in fresh kernels, judge what came out, and keep it.

    python notebooks/tools.py run                  all of them, at full size; nothing is written
    python notebooks/tools.py run --keep 01 02     these two, and write the outputs back
    python notebooks/tools.py run --fast           at the FAST size; so does KERASTL_FAST=1
    python notebooks/tools.py fill                 badge, install and set-up cells again, from the `url` in setup.cfg

A run fails on an error, on anything written to standard error by a cell without the tag `warns` (and on a silent cell with
it), and on a cell or a notebook over its time. See notebooks/README.md.
"""

import argparse
import base64
import configparser
import dataclasses
import io
import os
import pathlib
import re
import sys
import tempfile
import time

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
BRANCH = "main"

FULL, FAST = re.compile(r"^FAST = False\b", re.MULTILINE), "FAST = True"
MINUTES = re.compile(r"^\*\*Time\.\*\* About (\d+) minutes? on a 2-core CPU", re.MULTILINE)

# Seconds that one cell may take, at full size and at FAST; a tag `within-200-seconds` gives a cell more at full size
CELL_SECONDS, FAST_CELL_SECONDS = 120, 45
FAST_SECONDS = 60
_OWN_TIME = re.compile(r"within-(\d+)-seconds")

INSTALL = """\
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "kerastl[demo] @ git+{url}"
"""
SETUP = """\
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # fewer start-up lines of TensorFlow

import keras
import tensorflow as tf

import kerastl

keras.utils.set_random_seed(0)
print("Python", sys.version.split()[0], "TensorFlow", tf.__version__, "Keras", keras.__version__)
print("kerastl", kerastl.__version__)
gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
print("device:", ", ".join(gpu["device_name"] for gpu in gpus) or f"{os.cpu_count()} CPU cores")
print("size:", "FAST" if FAST else "full")
"""

# What TensorFlow writes before it reads its own log level: no warning about anything that a notebook does
_START_UP = re.compile(
    r"^(WARNING: All log messages before absl|[IWE]\d{4} [\d:. ]+ \S+:\d+\] |To enable the following instructions)"
)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CELL_FILE = re.compile(r"\S*/ipykernel_\d+/\d+\.py:\d+: ")
# From how many bytes on a picture gets a palette, and of how many colours
_PALETTES = ((60_000, 48), (20_000, 128))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Attributes:
        notebook: as executed, outputs included.
        seconds: of each code cell, in order.
        problems: why the run counts as failed, one text each; none of a good run.
    """

    notebook: nbformat.NotebookNode
    seconds: tuple[float, ...]
    problems: tuple[str, ...]


def repository_url() -> str:
    """Return the repository's address, which stands in setup.cfg alone."""
    config = configparser.ConfigParser()
    config.read(FOLDER.parent / "setup.cfg")
    return config["metadata"]["url"].rstrip("/")


def badge(name: str) -> str:
    """Return the line with the badge that opens the notebook `name` in Colab."""
    path = repository_url().removeprefix("https://github.com/")
    address = f"https://colab.research.google.com/github/{path}/blob/{BRANCH}/notebooks/{name}"
    return f"[![Open in Colab]({BADGE})]({address})"


def standard_cells() -> tuple[str, str]:
    """Return the sources of the cells that every notebook has behind its FAST cell: installing, and versions."""
    return INSTALL.format(url=repository_url()).strip(), SETUP.strip()


def notebook_paths(names=()) -> list[pathlib.Path]:
    """Return the numbered notebooks, or those whose file names begin with one of `names`."""
    paths = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
    unknown = [name for name in names if not any(path.name.startswith(name) for path in paths)]
    if unknown:
        raise SystemExit(f"No such notebook. Received: {unknown}; there are {[path.name for path in paths]}")
    return [path for path in paths if not names or path.name.startswith(tuple(names))]


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(path: pathlib.Path, *, fast: bool = False, time_factor: float = 1.0) -> Outcome:
    """Execute a notebook in a fresh kernel, in an empty folder of its own; the file stays as it is.

    Args:
        path: of the notebook.
        fast: set `FAST = True` in its first code cell.
        time_factor: how many times its time it may take, on a machine that is slow or busy.
    """
    notebook = nbformat.read(path, as_version=4)
    first = code_cells(notebook)[0]
    if len(FULL.findall(first.source)) != 1:
        return Outcome(notebook, (), ("The first code cell must hold one line `FAST = False`.",))
    if fast:
        first.source = FULL.sub(FAST, first.source)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    started, seconds, problems = {}, [], []

    def begin(cell, cell_index):
        started[cell_index] = time.perf_counter()

    def end(cell, cell_index, **_):
        if cell.cell_type == "code":
            seconds.append(time.perf_counter() - started[cell_index])

    with tempfile.TemporaryDirectory(prefix="nb") as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout_func=lambda cell: _cell_seconds(cell, fast) * time_factor,
            startup_timeout=180,
            record_timing=False,
            resources={"metadata": {"path": folder}},
            on_cell_start=begin,
            on_cell_executed=end,
        )
        problems = _run(client, folder)
    _tidy_streams(notebook)
    allowed = FAST_SECONDS if fast else 60 * _promised_minutes(notebook)
    problems += _stderr_problems(notebook)
    if sum(seconds) > allowed * time_factor:
        problems.append(f"Took {sum(seconds):.0f} s, and may take {allowed * time_factor:.0f} s.")
    return Outcome(notebook, tuple(seconds), tuple(problems))


def _run(client, folder) -> list[str]:
    """Execute the cells; return what stopped them, if anything did."""
    home = {"IPYTHONDIR": folder, "JUPYTER_RUNTIME_DIR": folder}  # no history, no settings of whoever runs this
    os.environ.update(home)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    # The second would keep ipykernel from passing on what native code writes
    for name in ("MPLBACKEND", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    terminal = pathlib.Path(folder, "terminal.txt")
    try:
        with terminal.open("wb") as file:
            client.execute(env=environment, stdout=file, stderr=file)
    except nbclient.exceptions.CellTimeoutError as error:
        return [f"A cell took longer than it may: {_ANSI.sub('', str(error))}"]
    except nbclient.exceptions.CellExecutionError as error:
        return [_ANSI.sub("", str(error))]
    except nbclient.exceptions.DeadKernelError as error:
        return [f"The kernel died: {error}\n{terminal.read_text(errors='replace')[-2000:]}"]
    return []


def _cell_seconds(cell, fast) -> int:
    own = [int(match[1]) for tag in cell.metadata.get("tags", ()) if (match := _OWN_TIME.fullmatch(tag))]
    return FAST_CELL_SECONDS if fast else (own or [CELL_SECONDS])[0]


def _promised_minutes(notebook) -> int:
    match = MINUTES.search(notebook.cells[0].source)
    return int(match[1]) if match else 5


def _stderr_problems(notebook) -> list[str]:
    problems = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        text = "".join(output.text for output in cell.outputs if output.get("name") == "stderr")
        expected = "warns" in cell.metadata.get("tags", ())
        if text and not expected:
            problems.append(f"Code cell {number} wrote to standard error:\n{text}")
        if expected and not text and cell.execution_count:
            problems.append(f"Code cell {number} has the tag `warns` and did not warn.")
    return problems


def _tidy_streams(notebook) -> None:
    """Join the pieces of each cell's streams, as a terminal would show them, without TensorFlow's start-up lines."""
    for cell in code_cells(notebook):
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
            else:
                kept.append(output)
        for output in kept:
            if output.output_type == "stream":
                output.text = _as_shown(output.text)
                if output.name == "stderr":
                    lines = output.text.splitlines(keepends=True)
                    output.text = "".join(_CELL_FILE.sub("", line) for line in lines if not _START_UP.match(line))
        cell.outputs = [output for output in kept if output.output_type != "stream" or output.text]


def _as_shown(text: str) -> str:
    """Return what a terminal ends up showing: progress bars write over themselves."""
    lines = []
    for line in _ANSI.sub("", text).split("\n"):
        while "\b" in line:
            line = re.sub(r"[^\x08]?\x08", "", line, count=1)
        parts = [part for part in line.split("\r") if part.strip()]
        lines.append(parts[-1].rstrip() if parts else "")
    return "\n".join(lines)


def clean(notebook, name: str) -> None:
    """Leave nothing in a notebook, in place, that says when, where and by which kernel it was run."""
    fill(notebook, name)
    notebook.metadata = nbformat.from_dict(
        {
            "accelerator": "GPU",  # Colab starts a machine with one
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.id = f"cell-{number:02}"
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller_png(output.data["image/png"])


def fill(notebook, name: str) -> None:
    """Write the badge and the cells for installing and versions again, in place."""
    header = notebook.cells[0]
    lines = [line for line in header.source.splitlines() if not line.startswith("[![Open in Colab]")]
    header.source = re.sub(r"\n{3,}", "\n\n", "\n".join([lines[0], "", badge(name), "", *lines[1:]]))
    for cell, source in zip(code_cells(notebook)[1:3], standard_cells(), strict=True):
        cell.source = source


def _smaller_png(encoded: str) -> str:
    """Return a PNG without metadata; a large one with a palette, which shows in photographs alone."""
    from PIL import Image

    data = base64.b64decode(encoded)
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    colors = next((colors for limit, colors in _PALETTES if len(data) > limit), None)
    buffer = io.BytesIO()
    (picture.quantize(colors) if colors else picture).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def write(notebook, path: pathlib.Path) -> None:
    """Write a notebook whole or not at all."""
    nbformat.validate(notebook)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _run_command(arguments) -> int:
    failed = []
    for path in notebook_paths(arguments.names):
        outcome = execute(path, fast=arguments.fast, time_factor=arguments.time_factor)
        slowest = max(outcome.seconds, default=0)
        verdict = "FAILED" if outcome.problems else "ok"
        print(f"{path.name}: {verdict}, {sum(outcome.seconds):.0f} s, slowest cell {slowest:.0f} s", flush=True)
        for problem in outcome.problems:
            print("    " + problem.strip().replace("\n", "\n    "), flush=True)
        if outcome.problems:
            failed.append(path.name)
        elif arguments.keep:
            clean(outcome.notebook, path.name)
            write(outcome.notebook, path)
    if failed:
        print("Failed:", *failed)
    return len(failed) > 0


def _fill_command(arguments) -> int:
    for path in notebook_paths(arguments.names):
        notebook = nbformat.read(path, as_version=4)
        fill(notebook, path.name)
        write(notebook, path)
    return 0


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description="Run the notebooks in fresh kernels, and keep their outputs.")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="execute; exit status 1 if any fails")
    run.add_argument("names", nargs="*", help="how the file names begin, such as 01; default: all")
    run.add_argument("--fast", action="store_true", default=os.environ.get("KERASTL_FAST") == "1")
    run.add_argument("--keep", action="store_true", help="write the outputs into the notebooks that ran well")
    run.add_argument("--time-factor", type=float, default=1.0, help="how many times its time each may take")
    run.set_defaults(command=_run_command)
    filling = commands.add_parser("fill", help="write badge, install and set-up cells again")
    filling.add_argument("names", nargs="*")
    filling.set_defaults(command=_fill_command)
    arguments = parser.parse_args(argv)
    if getattr(arguments, "keep", False) and arguments.fast:
        parser.error("outputs are kept of the full size alone: leave --fast (and KERASTL_FAST) out")
    return arguments.command(arguments)


if __name__ == "__main__":
    sys.exit(main())
