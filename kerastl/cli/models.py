"""Find a model, its labels and its settings where a user points to."""

import json
import zipfile
from pathlib import Path

import keras

from kerastl.checks import nearest, received
from kerastl.data.images import RESIZES
from kerastl.errors import DataError, ModelError
from kerastl.tables import readable_bytes

_LARGEST_RATIO = 20


def find_model(path: str) -> Path:
    """Return the path of the `.keras` file: the path itself, or `model.keras` in the run folder that it names.

    Raises:
        ModelError: there is none, or it is not a `.keras` file.
    """
    file = Path(path).expanduser()
    file = file / "model.keras" if file.is_dir() else file
    if not file.is_file():
        beside = [one.name for one in file.parent.glob("*.keras")] if file.parent.is_dir() else []
        raise ModelError(f"There is no model there.{nearest(file.name, beside)} {received(model=path)}")
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
    """Load a `.keras` file in Keras's safe mode, which runs no code from it.

    Raises:
        ModelError: it is damaged, or needs code that isn't here.
    """
    try:
        return keras.models.load_model(file, compile=False, safe_mode=True)
    # Keras raises nearly everything on damaged files and unknown layers (TypeError, ValueError, KeyError, OSError, …).
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"Can't load the model {file}: {type(error).__name__}: {reason}") from error


def read_labels(file: str | Path) -> list[str]:
    """Return the lines of a text file, without empty ones.

    Raises:
        DataError: it can't be read.
    """
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        said = f"Can't read the class names from {file}: {reason}. Expected a text file, one name a line."
        raise DataError(said) from None
    return [line.strip() for line in lines if line.strip()]


def labels_beside(file: Path) -> list[str] | None:
    """Return what `labels.txt` beside a model holds, or `None` without one."""
    labels = file.with_name("labels.txt")
    return read_labels(labels) if labels.is_file() else None


def report_beside(file: Path) -> dict:
    """Return what `report.json` beside a model holds, or an empty dictionary."""
    try:
        report = json.loads(file.with_name("report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def resize_beside(file: Path) -> str:
    """Return how images were resized in training, if `report.json` beside a model says so; else the default."""
    resize = report_beside(file).get("resize")
    return resize if resize in RESIZES else RESIZES[0]
