"""Predict the classes of image files or arrays with a trained classifier."""

import collections.abc
import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from kerastl.checks import check_choice, check_count, received
from kerastl.data import images as image_files
from kerastl.errors import ArgumentError, DataError, warn
from kerastl.evaluation.inputs import list_images
from kerastl.evaluation.probabilities import VIEWS, class_names_for, class_probabilities, input_size
from kerastl.models import outputs
from kerastl.tables import Printed, Table

_SHOWN_ROWS = 20
_SHOWN_CLASSES = 3


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        name: the path, or `image 0`, `image 1`, … for arrays.
        label: the most probable class.
        probability: its probability.
        probabilities: class name to probability, the most probable first, as many as `top` asked for.
    """

    name: str
    label: str
    probability: float
    probabilities: dict[str, float]


@dataclasses.dataclass(frozen=True, repr=False)
class Predictions(Printed, collections.abc.Sequence):
    """What the model says of some images: a sequence of `Prediction`, which prints as a table.

    Attributes:
        names: the paths, or `image 0`, `image 1`, …
        class_names: in the order of the columns of `probabilities`.
        probabilities: float32, `(images, classes)`.
        top: how many classes each `Prediction` lists; `None` for all.
        skipped: the files that can't be read, and why; they have no row.
    """

    names: list[str]
    class_names: list[str]
    probabilities: np.ndarray
    top: int | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return dataclasses.replace(self, names=self.names[index], probabilities=self.probabilities[index])
        row = self.probabilities[index]
        order = np.argsort(-row, kind="stable")[: self.top]
        listed = {self.class_names[place]: float(row[place]) for place in order}
        return Prediction(self.names[index], self.class_names[order[0]], float(row[order[0]]), listed)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image."""
        return [self.class_names[place] for place in self.probabilities.argmax(axis=1)]

    def to_rows(self) -> list[dict]:
        """Return a dictionary per image (`image`, `label`, `probability`, `probabilities`), for pandas or JSON."""
        return [{"image": row.pop("name"), **row} for row in map(dataclasses.asdict, self)]

    def _tables(self, shown_rows: int = _SHOWN_ROWS) -> list[Table]:
        shown = min(self.top or _SHOWN_CLASSES, len(self.class_names))
        rows = []
        for one in self[:shown_rows]:
            percents = [(name, f"{100 * value:.1f} %") for name, value in list(one.probabilities.items())[:shown]]
            then = ", ".join(map(" ".join, percents[1:]))
            rows.append([one.name, *percents[0], *([then] if shown > 1 else [])])
        header = ["image", "label", "probability", *(["then"] if shown > 1 else [])]
        left_out = len(self) - shown_rows
        return [Table(header, rows, right={2}, notes=[f"… and {left_out} more"] if left_out > 0 else [])]

    def __str__(self) -> str:  # all of them; a notebook and a prompt show the first ones
        return str(self._tables(len(self))[0])

    def __repr__(self) -> str:
        return str(self._tables()[0])


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
    preprocessing: Callable | str | None = "auto",
    white: float | None = None,
) -> Predictions:
    """Predict the classes of images, given as files or as arrays, resized as `load_images` does it.

    Softmax outputs are taken as they are, one sigmoid unit `p` becomes the classes `1 - p` and `p`, and logits (a last layer
    without activation) go through softmax. Of a model with several outputs the first is used.

    Args:
        model: a classifier of RGB images, compiled or not; or a bundle that `load_bundle` read, which brings its
            class names and image size along.
        images: a path, a folder (all images in it and below), a pattern (`"photos/*.jpg"`), an http(s) address, the bytes of
            an image file, an image of Pillow, an array `(height, width, 3)` in 0–255; a list, generator or array of any of
            these; or an array `(batch, height, width, 3)`. A file that can't be read costs its row and a warning.
        class_names: one name per class, in the order of the labels; without them classes are called `0`, `1`, …
        views: 1; 2 averages with the mirror image; 4 averages the plain image and its horizontal, vertical and double
            flip. Takes as many times longer; helps where flips mean nothing, as on the augmentation `"flips"`.
        resize: `"squash"`, `"crop"` or `"pad"`, as it was in training; default: `"squash"`, or what the bundle says.
        batch_size: images per step.
        top: how many classes to list for each image; `None` for all.
        image_size: pixels, one number or `(height, width)`, for a model that takes any size; else the model's.
        preprocessing: "auto" for a model that scales pixels 0–255 itself, as those of `build_classifier` do; else what was
            done to them in training, such as `keras.applications.resnet50.preprocess_input`; `None` for pixels as they are.
            With "auto" a model whose graph shows no scaling takes arrays as they are, and no files.
        white: of images of more than 8 bits a channel, as in `data.white`; default: decided by all of this call, and said.

    Returns:
        A `Predictions`: `print` it, index it, or take `.probabilities`, `.labels` or `.to_rows()`.

    Raises:
        DataError: nothing there, no file that can be read, arrays that are no images, not one name per class.
        ArgumentError: any other argument that can't be used.
        ModelError: the model is no classifier of RGB images.
    """
    if not isinstance(model, keras.Model) and hasattr(model, "card"):
        own = {"class_names": class_names, "image_size": image_size, "preprocessing": preprocessing}
        for name, value in own.items():
            if value is not None and value != "auto":
                raise ArgumentError(f"A bundle brings its own: leave `{name}` out. {received(**{name: value})}")
        return model.predict(images, views=views, resize=resize, batch_size=batch_size, top=top, white=white)
    size = _size_to_use(model, image_size)
    names = class_names_for(model, class_names)

    def run(batch, filled):
        return class_probabilities(model, outputs.preprocess(batch, preprocessing), views=views, batch_size=filled)

    resize = image_files.RESIZES[0] if resize is None else resize
    options = {"size": size, "views": views, "resize": resize, "batch_size": batch_size, "top": top, "white": white}
    takes = outputs.pixel_range(model)
    return predict_with(run, images, names, takes=takes, preprocessing=preprocessing, **options)


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
    white=None,
    takes="0-255",
    preprocessing="auto",
) -> Predictions:
    """Do what `predict` does with anything that gives probabilities.

    Args:
        run: from a batch, `(batch, height, width, 3)`, and the number of images in the first one, to probabilities,
            `(batch, classes)`, views averaged.
        images, class_names, views, resize, batch_size, top, white: as in `predict`.
        size: `(height, width)` to resize to; `None` for no resizing.
        takes, preprocessing: the pixels that fit, as `outputs.check_range` has it.
    """
    check_choice("views", views, VIEWS)
    check_choice("resize", resize, image_files.RESIZES)
    batch_size = check_count("batch_size", batch_size)
    if top is not None:
        check_count("top", top)
    outputs.check_range(takes, preprocessing)
    names, items = zip(*list_images(images, white), strict=True)
    arrays = [one for one in items if isinstance(one, np.ndarray)]
    outputs.check_range(takes, preprocessing, arrays, files=len(arrays) < len(items))
    filled, skipped = min(batch_size, len(items)), {}
    batches = _batches(items, names, size, resize, batch_size, skipped)
    results = [(called, run(batch, filled)) for called, batch in batches]
    reasons = list(skipped.values())
    if not results:
        raise DataError("\n".join(reasons[:20]))
    if skipped:
        warn(f"{len(skipped)} of {len(items)} images can't be read and are left out:\n  " + "\n  ".join(reasons[:20]))
    probabilities = np.concatenate([one for _, one in results])
    return Predictions([name for called, _ in results for name in called], class_names, probabilities, top, skipped)


def _size_to_use(model, image_size) -> tuple[int, int] | None:
    """Return the size to resize to; `None` for a model that takes any and a user who didn't ask for one."""
    wanted = None if image_size is None else image_files.check_image_size(image_size)
    own = input_size(model)
    if wanted is None:
        return None if None in own else own
    if any(side not in (None, asked) for side, asked in zip(own, wanted, strict=True)):
        raise ArgumentError(f"The model takes images of {own} pixels, no others. {received(image_size=image_size)}")
    return wanted


def _batches(items, names, size, resize, batch_size, skipped: dict):
    """Yield `(names, (batch, height, width, 3))`, read and resized by several threads; note unreadable files in `skipped`."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(items), batch_size):
            chosen, called = items[start : start + batch_size], names[start : start + batch_size]
            loaded = list(pool.map(lambda item: _load_or_error(item, size, resize), chosen))
            skipped |= {name: str(one) for name, one in zip(called, loaded, strict=True) if isinstance(one, DataError)}
            read = [(name, one) for name, one in zip(called, loaded, strict=True) if not isinstance(one, DataError)]
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
        return _load(item, size, resize)
    try:
        return image_files.read_image(item, size, resize, name="bytes" if isinstance(item, bytes) else None)
    except DataError as error:
        return error


def _load(item: np.ndarray, size, resize) -> np.ndarray:
    if item.dtype.kind == "f" and not np.isfinite(item).all():
        raise DataError("Expected pixels 0-255. Received an image that holds NaN or infinity")
    return image_files.resize_image(item, size or item.shape[:2], resize)
