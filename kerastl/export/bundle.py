"""The bundle: an exported model in its formats, its labels, and a card that lists every file with its SHA-256.

A bundle comes from elsewhere, so nothing in it is trusted: no name may lead out of the folder, every file is compared with
its SHA-256 before anything is made of it, no code is run and no pickle read. The card is no signature: who rewrites a bundle
can write a card that fits.
"""

import dataclasses
import hashlib
import json
import os
import re
import stat
from pathlib import Path, PurePosixPath

import numpy as np

from kerastl.checks import received
from kerastl.data.images import RESIZES
from kerastl.data.labels import CLASSIFICATION, TASKS
from kerastl.errors import ArgumentError, BundleError, ModelError
from kerastl.evaluation.prediction import Predictions, predict_with
from kerastl.evaluation.probabilities import NAMED, average_views, check_thresholds
from kerastl.evaluation.report import write_json
from kerastl.features import litert
from kerastl.files import LITTER
from kerastl.models.outputs import to_probabilities
from kerastl.tables import Printed, Table, readable_bytes

CARD, LABELS, README = "model_card.json", "labels.txt", "README.md"
FORMAT = 1
"""The version of the card's keys."""

_LARGEST_CARD = 64_000_000
_PIXEL_TYPES = ("float32", "uint8")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_OUTPUT_KINDS = ("softmax", "sigmoid", "logits", None)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bundle(Printed):
    """A bundle that `load_bundle` has checked.

    Attributes:
        folder: where it lies.
        labels: class names, in the order of the outputs.
        card: the content of `model_card.json`: input, output, classes, models, gate, weights, data, versions, files.
    """

    folder: Path
    labels: list[str]
    card: dict
    _runner: litert.LiteRTModel | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """The `(height, width)` in pixels that the model takes."""
        return tuple(self.card["input"]["shape"][1:3])

    def predict(
        self,
        images,
        *,
        views: int = 1,
        resize: str | None = None,
        batch_size: int = 32,
        top: int | None = None,
        white: float | None = None,
        thresholds=None,
    ) -> Predictions:
        """Predict with the bundle's LiteRT model, as `kerastl.predict` does with a Keras model.

        Args:
            images: files or arrays, as `kerastl.predict` takes them; `views`, `top` and `white` are those of `predict`.
            resize, thresholds: `None` for what the card says.
            batch_size: images that are read at a time; the model runs on one after the other.

        Raises:
            BundleError: the bundle holds no LiteRT model. A SavedModel is a program that may read and write files, so
                `kerastl` doesn't run it for you; nor the others.
            BackendError: `ai-edge-litert` is not installed.
            DataError, ArgumentError: images or other arguments that can't be used.
        """
        if "litert" not in self.card["models"]:
            raise BundleError(
                f"Only LiteRT models of a bundle are run here, and {self.folder} holds {', '.join(self.card['models'])}. "
                'Export it with "litert" among the formats, or load the model with its own tools if you trust it.'
            )
        output = self.card["output"]
        task, own = output.get("task", CLASSIFICATION), output.get("thresholds")
        runner = self._runner or _make_runner(self.folder, self.card)

        def probabilities(pixels):
            pixels = np.clip(np.rint(pixels), 0, 255) if runner.input_type == "uint8" else pixels
            return to_probabilities(runner(pixels)[0].astype("float32"), output["kind"], task)

        return predict_with(
            lambda batch, filled: average_views(probabilities, batch, views),
            images,
            self.labels,
            size=self.image_size,
            views=views,
            resize=self.card["input"]["resize"] if resize is None else resize,
            batch_size=batch_size,
            top=top,
            white=white,
            task=task,
            thresholds=own if thresholds is None else thresholds,
        )

    def _tables(self):
        height, width = self.image_size
        kind, what = self.card["input"]["type"], NAMED[self.card["output"].get("task", CLASSIFICATION)]
        rows = [[name, readable_bytes(entry["bytes"])] for name, entry in sorted(self.card["files"].items())]
        title = f"Bundle {self.folder.name}: {kind} RGB 0-255, {height}×{width}; {len(self.labels)} {what}"
        return [Table(["file", "size"], rows, right={1}, title=title)]


def load_bundle(folder: str | os.PathLike) -> Bundle:
    """Read a bundle, and check every file of it before anything is made of it.

    Args:
        folder: what `kerastl.export_model` wrote, or a copy of it.

    Returns:
        A `Bundle`; `.predict(images)` uses it, and so does `kerastl.predict`.

    Raises:
        BundleError: no bundle, or not what was written: a file is missing, changed, or not in the card; a name leads out
            of the folder; the card contradicts itself or the model.

    Example:
        >>> bundle = kerastl.export_model(model, "bundle", labels=data.class_names, held_out=data.test, verbose=0)
        >>> kerastl.load_bundle("bundle").image_size
        (32, 32)
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise BundleError(f"There is no such folder. {received(folder=str(folder))}")
    card = _read_card(folder)
    _check_files(folder, card)
    labels = _read(folder, LABELS, card["files"][LABELS]).decode("utf-8", "replace").splitlines()
    if labels != card["classes"]:
        raise BundleError(f"{LABELS} and the classes of {CARD} differ in {folder}. Get the bundle again.")
    can_run = "litert" in card["models"] and litert.is_installed()
    return Bundle(folder, labels, card, _make_runner(folder, card) if can_run else None)


def is_bundle(folder: str | os.PathLike) -> bool:
    """Tell whether a folder holds a card, whatever it says."""
    return Path(folder, CARD).expanduser().is_file()


def write_card(folder: Path, card: dict) -> None:
    """Write labels and card of a bundle into its folder, which holds the models, a readme, and nothing else.

    `card` is all but `format` and `files`, the size and SHA-256 of every file that lies there.
    """
    (folder / LABELS).write_text("\n".join(card["classes"]) + "\n", encoding="utf-8")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): _describe(path.read_bytes()) for path in paths}
    write_json(folder / CARD, {"format": FORMAT, **card, "files": files})


def _describe(content: bytes) -> dict:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read_card(folder: Path) -> dict:
    content = _read(folder, CARD)
    try:
        card = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    # RecursionError: brackets without end; ValueError: no JSON, no UTF-8, NaN
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / CARD} is no card: {str(error)[:200]}. Get the bundle again.") from None
    problem = _problem_of(card) if isinstance(card, dict) else "it is no JSON object"
    if problem:
        raise BundleError(f"{folder / CARD} can't be used: {problem}. Get the bundle again.")
    return card


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no JSON")


def _problem_of(card: dict) -> str | None:
    """Say what is wrong with a card's structure, or `None`."""
    if card.get("format") != FORMAT:
        return f"its format is {card.get('format')!r}, and this version of kerastl reads {FORMAT}"
    for key, (kind, is_fine) in _PARTS.items():
        if not isinstance(card.get(key), kind) or not is_fine(card[key]):
            return f"`{key}` is missing or not what it should be"
    for name in card["files"]:
        if not _stays_inside(name):
            return f"the name {name!r} leads out of the folder, or is none"
    if LABELS not in card["files"]:
        return f"it doesn't list {LABELS}"
    for name, model in card["models"].items():
        path = model.get("path")
        # All but LiteRT may be a folder
        inside = name != "litert" and any(file.startswith(f"{path}/") for file in card["files"])
        if not isinstance(path, str) or (path not in card["files"] and not inside):
            return f"it doesn't list the file of {name!r}, {path!r}"
    try:
        check_thresholds(card["output"].get("thresholds"), card["classes"], card["output"].get("task", CLASSIFICATION))
    except ArgumentError as error:
        return str(error)
    return None


def _is_file(entry) -> bool:
    size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    return type(size) is int and isinstance(digest, str) and bool(re.fullmatch("[0-9a-f]{64}", digest))


def _is_input(value: dict) -> bool:
    shape = value.get("shape")
    is_shape = isinstance(shape, list) and len(shape) == 4 and all(type(side) is int and side > 0 for side in shape)
    fits = is_shape and shape[0] == 1 and shape[3] == 3
    return fits and value.get("type") in _PIXEL_TYPES and value.get("resize") in RESIZES


# Of each part of a card its type, and what else must hold
_PARTS = {
    "files": (dict, lambda files: all(map(_is_file, files.values()))),
    "classes": (list, lambda names: bool(names) and all(isinstance(one, str) for one in names)),
    "input": (dict, _is_input),
    # Earlier cards know no other task
    "output": (dict, lambda one: one.get("kind", "") in _OUTPUT_KINDS and one.get("task", CLASSIFICATION) in TASKS),
    "models": (dict, lambda models: bool(models) and all(isinstance(one, dict) for one in models.values())),
}


def _stays_inside(name: str) -> bool:
    """Tell a relative path of plain names on any system: no `..`, root, drive, device name or control character."""
    if not name or "\\" in name or ":" in name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return False
    parts = name.split("/")  # an absolute path begins with an empty part
    return all(part and part == part.rstrip(" .") and not _WINDOWS_DEVICE.fullmatch(part) for part in parts)


def _check_files(folder: Path, card: dict) -> None:
    """Compare every file with the card."""
    for name, entry in card["files"].items():
        _read(folder, name, entry)
    known = {CARD, *card["files"]}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (not path.is_dir() and name not in known and path.name not in LITTER):
            raise BundleError(
                f"{path} doesn't belong to the bundle: the card doesn't know it, or it is a link. Take it out."
            )


def _read(folder: Path, name: str, entry: dict | None = None) -> bytes:
    """Return the content of a plain file, once it is what `entry`, its line on the card, says; of the card without one.

    A link on the way to it, which may lead anywhere, is refused.
    """
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            raise BundleError(f"{path} is a link, and a bundle holds none. Get the bundle again.")
    try:
        found = path.stat()
    except OSError:
        raise BundleError(f"{path} is missing. Get the bundle again, or export it again.") from None
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{path} is no plain file. Get the bundle again.")
    if entry is None and found.st_size > _LARGEST_CARD:
        raise BundleError(f"{path} is too large to be true: {found.st_size} bytes.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"Can't read {path}: {error.strerror or error}.") from error
    if entry is not None and _describe(content) != {"bytes": entry["bytes"], "sha256": entry["sha256"]}:
        raise BundleError(
            f"{path} is damaged: its size ({len(content)} bytes) or its SHA-256 is not that of the card. Get the bundle "
            "again, or export it again."
        )
    return content


def _make_runner(folder: Path, card: dict) -> litert.LiteRTModel:
    """Return the LiteRT model, made of the very bytes that were checked, once it is what the card says."""
    name = card["models"]["litert"]["path"]
    try:
        runner = litert.LiteRTModel(_read(folder, name, card["files"][name]))
    except ModelError as error:
        raise BundleError(f"{folder / name} can't be used. {error}") from error
    expected = tuple(card["input"]["shape"])
    if runner.input_shape != expected or runner.input_type != card["input"]["type"]:
        raise BundleError(
            f"{folder / name} takes {runner.input_type} {runner.input_shape}, and the card says "
            f"{card['input']['type']} {expected}. Export the model again."
        )
    classes = len(card["classes"])
    if runner.output_shapes not in [[(classes,)], *([[(1,)]] if classes == 2 else [])]:
        raise BundleError(
            f"{folder / name} has outputs of {runner.output_shapes}, and the card names {classes} classes. "
            "Export the model again."
        )
    return runner
