"""Predict the classes, labels or numbers of image files or arrays with a trained model."""

import collections.abc
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerastl.checks import check_choice, check_count, received
from kerastl.data import images as image_files
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.errors import ArgumentError, DataError, warn
from kerastl.evaluation.inputs import check_range, list_images, preprocess
from kerastl.evaluation.probabilities import (
    THRESHOLD,
    VIEWS,
    check_thresholds,
    class_names_for,
    class_probabilities,
    decide,
    find_task,
    size_to_use,
)
from kerastl.models import outputs
from kerastl.tables import Printed, Table

_SHOWN_ROWS = 20
_SHOWN_CLASSES = 3


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    name: str  # the path, or `image 0`, `image 1`, … for arrays
    label: str  # the most probable class, or that which a threshold made of it
    probability: float  # of that class
    probabilities: dict[str, float]  # class name to probability, the most probable first, as many as `top` asked for


@dataclasses.dataclass(frozen=True)
class LabelsPrediction:
    """What a model of several labels says of one image; `name` and `probabilities` are as in `Prediction`."""

    name: str
    # Of 0.5 (or their thresholds) or more, or else of the most probable one; the most probable first
    labels: dict[str, float]
    probabilities: dict[str, float]


@dataclasses.dataclass(frozen=True)
class NumbersPrediction:
    """What a model of numbers says of one image: `numbers`, by their names; `name` as in `Prediction`."""

    name: str
    numbers: dict[str, float]


@dataclasses.dataclass(frozen=True, repr=False)
class Predictions(Printed, collections.abc.Sequence):
    """What the model says of images: a sequence and table of `Prediction`, `LabelsPrediction` or `NumbersPrediction`.

    Attributes:
        names: the paths, or `image 0`, `image 1`, …
        class_names: of the classes, labels or numbers, in the order of the columns of `probabilities`.
        probabilities: float32, `(images, classes)`; or the numbers.
        top: how many classes each `Prediction` lists; `None` for all.
        skipped: the files that can't be read, and why; they have no row.
        task: "classification", "multi-label" or "regression".
        thresholds: from which probability on each class or label counts, `(classes,)`; `None` where nobody chose any.
    """

    names: list[str]
    class_names: list[str]
    probabilities: np.ndarray
    top: int | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    task: str = CLASSIFICATION
    thresholds: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return dataclasses.replace(self, names=self.names[index], probabilities=self.probabilities[index])
        name, row = self.names[index], self.probabilities[index]
        if self.task == REGRESSION:
            return NumbersPrediction(name, dict(zip(self.class_names, map(float, row), strict=True)))
        order = np.argsort(-row, kind="stable")
        ranked = {self.class_names[place]: float(row[place]) for place in order}
        listed = dict(list(ranked.items())[: self.top])
        said = decide(row, self.task, self.thresholds)
        if self.task == MULTI_LABEL:
            places = [place for place in order if said[place]] or order[:1]
            return LabelsPrediction(name, {self.class_names[one]: float(row[one]) for one in places}, listed)
        label = self.class_names[said]
        return Prediction(name, label, ranked[label], listed)

    @property
    def labels(self) -> list:
        """The most probable class of each image; or a list of its labels.

        Raises:
            ArgumentError: these are numbers.
        """
        if self.task == REGRESSION:
            raise ArgumentError("These are numbers, without labels: take `.probabilities` or `.to_rows()`.")
        return [one.label if self.task == CLASSIFICATION else list(one.labels) for one in self]

    def to_rows(self) -> list[dict]:
        """Return a dictionary per image, for pandas or JSON: `image`, and the fields of what indexing returns."""
        return [{"image": row.pop("name"), **row} for row in map(dataclasses.asdict, self)]

    def _tables(self, shown_rows: int = _SHOWN_ROWS) -> list[Table]:
        shown = min(self.top or _SHOWN_CLASSES, len(self.class_names))
        least = f"{THRESHOLD:.0%} or more" if self.thresholds is None else "their thresholds or more"
        header, right = {
            CLASSIFICATION: (["label", "probability", *(["then"] if shown > 1 else [])], {2}),
            MULTI_LABEL: ([f"labels of {least}, else the likeliest"], ()),
            REGRESSION: (self.class_names, range(1, 1 + len(self.class_names))),
        }[self.task]
        rows = [[one.name, *_cells(one, shown)] for one in self[:shown_rows]]
        left_out = len(self) - shown_rows
        return [Table(["image", *header], rows, right, notes=[f"… and {left_out} more"] if left_out > 0 else [])]

    def __str__(self) -> str:  # all of them; a notebook and a prompt show the first ones
        return str(self._tables(len(self))[0])

    def __repr__(self) -> str:
        return str(self._tables()[0])


def _cells(one: Prediction | LabelsPrediction | NumbersPrediction, shown: int) -> list[str]:
    if isinstance(one, NumbersPrediction):
        return [f"{value:.4g}" for value in one.numbers.values()]
    several = isinstance(one, LabelsPrediction)
    values = one.labels if several else {one.label: one.probability, **one.probabilities}
    percents = [(name, f"{100 * value:.1f} %") for name, value in values.items()]
    if several:
        return [", ".join(map(" ".join, percents))]
    then = ", ".join(map(" ".join, percents[1:shown]))
    return [*percents[0], *([then] if shown > 1 else [])]


def predict(
    model: keras.Model,
    images,
    *,
    class_names=None,
    views: int = 1,
    resize: str | None = None,
    batch_size: int = 32,
    top: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    preprocessing: Callable[..., Any] | str | None = "auto",
    white: float | None = None,
    task: str | None = None,
    thresholds=None,
) -> Predictions:
    """Predict the classes, labels or numbers of images, given as files or as arrays, resized as `load_images` does it.

    One sigmoid unit `p` becomes the two classes `1 - p` and `p`, logits go through softmax, several sigmoid units are
    labels, and numbers stay. Of a model with several outputs the first is used.

    Args:
        model: of RGB images, compiled or not; or a bundle of `load_bundle`, which brings class names and image size.
        images: a path, a folder (all images in it and below), a pattern (`"photos/*.jpg"`), an http(s) address, the bytes of
            an image file, an image of Pillow, an array `(height, width, 3)` in 0–255; a list, generator or array of any of
            these; or an array `(batch, height, width, 3)`. A file that can't be read costs its row and a warning.
        class_names: one name per class, label or number, in the order of the outputs; default: `0`, `1`, …
        views: 2 averages with the mirror image; 4 over both flips and the two together, for augmentation `"flips"`, say.
        resize: `"squash"`, `"crop"` or `"pad"`, as it was in training; default: `"squash"`, or what the bundle says.
        batch_size, top: images per step; how many classes to list for each image, `None` for all.
        image_size: pixels, one number or `(height, width)`, for a model that takes any size; else the model's.
        preprocessing: "auto" for a model that scales pixels 0–255 itself, as those of `build_classifier` do; else what was
            done to them in training, such as `keras.applications.resnet50.preprocess_input`; `None` for pixels as they are.
            With "auto" a model whose graph shows no scaling takes arrays as they are, and no files.
        white: of images of more than 8 bits a channel, as in `data.white`; default: decided by all of this call, and said.
        task: "classification", "multi-label" or "regression"; default: told by the last activation and the loss. One
            linear unit without a loss is a number, unless there are two `class_names`.
        thresholds: what `choose_thresholds` returned, or a dictionary; default: 0.5 for labels, or what the bundle says.

    Returns:
        A `Predictions`: `print` it, index it, or take `.probabilities`, `.labels` or `.to_rows()`.

    Raises:
        DataError: nothing there, no file that can be read, arrays that are no images, not one name per class.
        ArgumentError: any other argument that can't be used.
        ModelError: the model is no classifier of RGB images.

    Example:
        >>> found = kerastl.predict(model, "flowers/rose/*.png", class_names=data.class_names)
        >>> found[0].name, found.probabilities.shape
        ('flowers/rose/1.png', (10, 3))
    """
    options = {"views": views, "batch_size": batch_size, "top": top, "white": white, "thresholds": thresholds}
    if not isinstance(model, keras.Model) and hasattr(model, "card"):
        _refuse_for_bundle(class_names=class_names, image_size=image_size, preprocessing=preprocessing, task=task)
        return model.predict(images, resize=resize, **options)
    size = size_to_use(model, image_size)
    names = class_names_for(model, class_names, task := find_task(model, class_names, task=task))

    def run(batch, filled):
        batch = preprocess(batch, preprocessing)
        return class_probabilities(model, batch, views=views, batch_size=filled, task=task)

    options |= {"size": None if None in size else size, "resize": image_files.RESIZES[0] if resize is None else resize}
    options |= {"takes": outputs.pixel_range(model), "preprocessing": preprocessing, "task": task}
    return predict_with(run, images, names, **options)


def _refuse_for_bundle(**own) -> None:
    for name, value in own.items():
        if not (value is None or (isinstance(value, str) and value == "auto")):
            raise ArgumentError(f"A bundle brings its own: leave `{name}` out. {received(**{name: value})}")


def predict_with(
    run: Callable[[np.ndarray, int], np.ndarray],
    images,
    class_names,
    *,
    size,
    views,
    resize,
    batch_size,
    top,
    takes="0-255",
    preprocessing="auto",
    white=None,
    task=CLASSIFICATION,
    thresholds=None,
) -> Predictions:
    """Do what `predict` does with anything that gives probabilities, `run`.

    It goes from a batch, `(batch, height, width, 3)`, and the number of images in the first one, to `(batch, classes)`, views
    averaged. `size` is `(height, width)` to resize to, `None` for no resizing; `takes` and `preprocessing` say which pixels
    fit, as in `check_range`.
    """
    check_choice("views", views, VIEWS)
    check_choice("resize", resize, image_files.RESIZES)
    thresholds = check_thresholds(thresholds, class_names, task)
    batch_size = check_count("batch_size", batch_size)
    if top is not None:
        check_count("top", top)
    check_range(takes, preprocessing)
    names, items = zip(*list_images(images, white), strict=True)
    arrays = [one for one in items if isinstance(one, np.ndarray)]
    check_range(takes, preprocessing, arrays, files=len(arrays) < len(items))
    filled, skipped = min(batch_size, len(items)), {}
    batches = _batches(items, names, size, resize, batch_size, skipped)
    results = [(called, run(batch, filled)) for called, batch in batches]
    reasons = list(skipped.values())
    if not results:
        raise DataError("\n".join(reasons[:20]))
    if skipped:
        warn(f"{len(skipped)} of {len(items)} images can't be read and are left out:\n  " + "\n  ".join(reasons[:20]))
    probabilities = np.concatenate([one for _, one in results])
    names = [name for called, _ in results for name in called]
    return Predictions(names, class_names, probabilities, top, skipped, task, thresholds)


def _batches(items, names, size, resize, batch_size, skipped: dict):
    """Yield `(names, (batch, height, width, 3))`, read and resized by several threads; note unreadable files in `skipped`."""
    images = image_files.in_threads(lambda item: _load_or_error(item, size, resize), items, ahead=batch_size)
    loaded = zip(names, images, strict=True)
    while batch := list(itertools.islice(loaded, batch_size)):
        skipped |= {name: str(one) for name, one in batch if isinstance(one, DataError)}
        read = [(name, one) for name, one in batch if not isinstance(one, DataError)]
        shapes = {image.shape for _, image in read}
        if len(shapes) > 1:
            raise ArgumentError(
                "The model takes images of any size, but all those of a batch must have the same. Pass "
                f"`image_size=` to resize them. {received(shapes=sorted(shapes))}"
            )
        if read:
            yield [name for name, _ in read], np.stack([image for _, image in read])


def _load_or_error(item, size, resize) -> np.ndarray | DataError:
    if isinstance(item, np.ndarray):
        if item.dtype.kind == "f" and not np.isfinite(item).all():
            raise DataError("Expected pixels 0-255. Received an image that holds NaN or infinity")
        return image_files.resize_image(item, size or item.shape[:2], resize)
    try:
        return image_files.read_image(item, size, resize, name="bytes" if isinstance(item, bytes) else None)
    except DataError as error:
        return error
