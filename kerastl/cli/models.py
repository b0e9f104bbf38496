"""Find a model, its labels and its settings where a user points to."""

import json
import re
import zipfile
from pathlib import Path

import keras

from kerastl.checks import nearest, received
from kerastl.data.images import RESIZES
from kerastl.errors import ArgumentError, DataError, ModelError
from kerastl.models import outputs
from kerastl.tables import readable_bytes

_LARGEST_RATIO = 20

# Of what is read from `report.json`
_KINDS = dict.fromkeys(("arguments", "data", "thresholds"), dict) | {"class_names": list, "task": str, "resize": str}

_PREPROCESSINGS = {
    "auto": "auto",
    "none": None,
    "/255": lambda pixels: pixels / 255,
    "/127.5-1": lambda pixels: pixels / 127.5 - 1,
}


def find_model(path: str) -> Path:
    """Return the path of the `.keras` file: the path itself, or `model.keras` in the run folder that it names."""
    file = Path(path).expanduser()
    file = file / "model.keras" if file.is_dir() else file
    if not file.is_file():
        beside = [one.name for one in file.parent.glob("*.keras") if one.is_file()] if file.parent.is_dir() else []
        expected = f"Expected a .keras file, or a run folder with model.keras in it.{nearest(file.name, beside)}"
        raise ModelError(f"There is no model there. {expected} {received(model=path)}")
    members = zipfile.ZipFile(file).infolist() if zipfile.is_zipfile(file) else []
    if file.suffix != ".keras" or "config.json" not in [one.filename for one in members]:
        expected = "Expected a .keras file, as `model.save('model.keras')` writes it, whole and with that ending."
        raise ModelError(f"{expected} {received(model=path)}")
    unpacked = sum(one.file_size for one in members)
    if unpacked > _LARGEST_RATIO * file.stat().st_size:  # Keras packs without compression
        raise ModelError(
            f"The file would unpack to {readable_bytes(unpacked)}, over {_LARGEST_RATIO} times its size, which no model that "
            f"Keras saved does. Save the model again. {received(model=path)}"
        )
    return file


def load_model(file: Path) -> keras.Model:
    """Load a `.keras` file in Keras's safe mode, which runs no code from it; raise `ModelError` where it can't be loaded."""
    try:
        return keras.models.load_model(file, compile=False, safe_mode=True)
    # Keras raises nearly everything on damaged files and unknown layers (TypeError, ValueError, KeyError, OSError, …).
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        reason = _newer_keras(file) or _foreign_layers(file) or said
        raise ModelError(f"Can't load the model {file}: {reason}") from error


def preprocessing_for(model: keras.Model, choice: str):
    """Return what `preprocessing=` takes for what --preprocessing says; where nothing was said the model has to show it."""
    if choice == "auto" and outputs.pixel_range(model) not in ("0-255", "any"):
        raise ArgumentError(
            f"The graph of {model.name!r} doesn't show that it takes pixels 0–255, as image files hold them. Pass what was "
            "done to them in training: --preprocessing /255 for 0–1, --preprocessing /127.5-1 for −1…1, or --preprocessing "
            f"none if it was trained on 0–255. {received(preprocessing=choice)}"
        )
    return _PREPROCESSINGS[choice]


def _newer_keras(file: Path) -> str | None:
    """Return what to do where a newer Keras wrote the file than is installed."""
    wrote = _part_of(file, "metadata.json").get("keras_version", "0")
    written, here = (list(map(int, re.findall(r"\d+", str(one))[:2])) for one in (wrote, keras.__version__))
    said = f"Keras {wrote} wrote it, and here is Keras {keras.__version__}, which may not read it."
    return f'{said} Install a newer one: pip install --upgrade "keras>={wrote}"' if written > here else None


def _foreign_layers(file: Path) -> str | None:
    """Return which layers of the file need code that is not in it, and what to do."""
    found, stack = {}, [_part_of(file, "config.json")]
    while stack:
        part = stack.pop()
        stack += [one for one in (part.values() if isinstance(part, dict) else part) if isinstance(one, (dict, list))]
        config = part.get("config") if isinstance(part, dict) and "module" in part else None
        own = isinstance(config, dict) and str(part["module"]).partition(".")[0] != "keras"
        if own or (isinstance(config, dict) and part.get("class_name") == "Lambda"):
            found[config.get("name", "?")] = part.get("class_name")
    if not found:
        return None
    names = ", ".join(f"{name!r} ({kind})" for name, kind in found.items())
    return (
        f"it holds what needs code of its own, which no file may bring along: {names}. Load it in Python, by "
        "`keras.models.load_model(path, custom_objects={…})` (a Lambda by `safe_mode=False`, if you trust the file), and call "
        "`kerastl.predict` or `kerastl.export_model` with it."
    )


def _part_of(file: Path, member: str) -> dict:
    return _json_object(lambda: zipfile.ZipFile(file).read(member))


def _json_object(read) -> dict:
    """Return the JSON object that `read` reads, or an empty dictionary where there is none."""
    try:
        content = json.loads(read())
    except (KeyError, ValueError, OSError, RecursionError, zipfile.BadZipFile):
        return {}
    return content if isinstance(content, dict) else {}


def labels_for(model: Path, file: str | None) -> list[str] | None:
    """Return the lines of a text file, by default of `labels.txt` beside a model; `None` where that isn't there either."""
    beside = model.with_name("labels.txt")
    if not file and not beside.is_file():
        return None
    file = file or beside
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        said = f"Can't read the class names from {file}: {reason}. Expected a text file, one name a line."
        raise DataError(said) from None
    return [line.strip() for line in lines if line.strip()]


def report_beside(file: Path) -> dict:
    """Return what `report.json` beside a model holds, without parts of another kind than runs have there; or an empty dict."""
    beside = file.with_name("report.json")
    found = _json_object(beside.read_bytes) if beside.is_file() else {}  # a pipe would be waited for
    names = found.get("class_names")
    if isinstance(names, list) and not all(isinstance(name, str) for name in names):
        del found["class_names"]
    return {name: value for name, value in found.items() if isinstance(value, _KINDS.get(name, object))}


def thresholds_in(report: dict, names: list[str] | None) -> dict | None:
    """Return the thresholds that training chose, by the names that are used now, as `predict` takes them."""
    chosen, trained = report.get("thresholds"), report.get("class_names")
    if not isinstance(chosen, dict) or not isinstance(trained, list) or len(names or ()) != len(trained):
        return chosen
    now = dict(zip(trained, names, strict=True))
    return {now.get(name, name): value for name, value in chosen.items()}


def resize_beside(file: Path) -> str:
    """Return how images were resized in training, if `report.json` beside a model says so; else the default."""
    resize = report_beside(file).get("resize")
    return resize if resize in RESIZES else RESIZES[0]
