"""What `check` looks at: a model with its data, read once, and the lines of Python that change either."""

import dataclasses
import functools
import hashlib
import re

import keras
import numpy as np

from kerastl.data.batches import Rows, is_tf_dataset
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.models import compiling, graph, outputs

_GRID = 32  # rows and columns of pixels by which the same image is known again
_LARGEST = 2e9  # bytes of an array that is looked at as a whole
ACTIVATIONS = {CLASSIFICATION: "softmax", MULTI_LABEL: "sigmoid", REGRESSION: "linear"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        name: what, in a few words that never change: `"labels out of range"`.
        evidence: what it rests on, as a sentence.
        number: the figure in it.
        mend: the line of Python that mends it, where `model`, `train` and `validation` are what was checked; a comment where
            it takes more.
    """

    name: str
    evidence: str
    number: float
    mend: str


@dataclasses.dataclass
class Seen:
    """What stays of the images of a part that were looked at.

    Attributes:
        keys: what tells each image from any other, in their order; `None` for a blank one. Empty where only a few were read.
        labels: the labels.
        lows, highs: the smallest and largest pixel of each image, NaN and infinity aside.
        broken: number of pixels that are NaN or infinite.
        is_float: whether pixels may be fractions.
    """

    keys: list[bytes | None]
    labels: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    broken: int
    is_float: bool

    @property
    def ends(self) -> tuple[float, float]:
        return float(self.lows.min()), float(self.highs.max())


def _ends_of(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the smallest and largest pixel of each image, and how many are NaN or infinite, which don't count."""
    rows = images.reshape(len(images), -1)
    lows, highs, broken = rows.min(axis=1), rows.max(axis=1), 0
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        fine = np.isfinite(rows)
        broken = int((~fine).sum())
        lows, highs = np.where(fine, rows, np.inf).min(axis=1), np.where(fine, rows, -np.inf).max(axis=1)
        lows, highs = (np.where(np.isfinite(one), one, 0) for one in (lows, highs))  # nothing of an image is fine
    return lows.astype("float64"), highs.astype("float64"), broken


@dataclasses.dataclass
class Case:
    """What is checked: a model, and by part ("train", "validation") the data as given and their `Rows`.

    Of datasets the first `limit` images of a part are read; with `None` no more than the first batch.
    """

    model: keras.Model
    given: dict[str, object]
    rows: dict[str, Rows]
    limit: int | None = None
    backbone: graph.Backbone | None = None

    def __post_init__(self):
        self.unread = {part: rows for part, rows in self.rows.items() if rows is not None and rows.first is None}
        self.rows = {part: rows for part, rows in self.rows.items() if rows is not None and rows.first is not None}
        firsts = {part: rows.first[0] for part, rows in self.rows.items()}
        self.images = {part: first for part, first in firsts.items() if first.ndim == 4 and len(first)}
        self.task = compiling.task_of(self.model, self.labels.get("train"))
        self.units = outputs.main_tensor(self.model).shape[-1]

    @functools.cached_property
    def seen(self) -> dict[str, Seen]:
        """By part, what stays of the images: of all in memory, else of those that are read."""
        return {part: self._look_through(part) for part in self.images}

    def _look_through(self, part):
        rows, given, keys, labels, ends = self.rows[part], self.given[part], [], [], []
        in_memory = isinstance(given, tuple) and (type(given[0]) is np.ndarray or keras.ops.is_tensor(given[0]))
        everything = in_memory and rows.count * rows.first[0][0].nbytes <= _LARGEST
        for images, some, _ in rows.batches() if everything or self.limit else ():
            steps = [max(side // _GRID, 1) for side in images.shape[1:3]]
            # in one dtype: an image is the same as whole numbers and as floats
            grids = np.ascontiguousarray(images[:, :: steps[0], :: steps[1]], "float32")
            blank = grids.reshape(len(grids), -1).max(axis=1) == grids.reshape(len(grids), -1).min(axis=1)
            digests = (hashlib.blake2b(grid, digest_size=16).digest() for grid in grids)
            keys += [None if empty else digest for empty, digest in zip(blank, digests, strict=True)]  # no one's copy
            labels.append(some)
            ends.append(_ends_of(images))
            if not everything and len(keys) >= self.limit:
                break
        lows, highs, broken = zip(*(ends or [_ends_of(rows.first[0])]), strict=True)
        labels = np.concatenate(labels) if labels else rows.first[1]
        is_float = rows.first[0].dtype.kind not in "iub"
        return Seen(keys, labels, np.concatenate(lows), np.concatenate(highs), sum(broken), is_float)

    @functools.cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """By part, all labels where that takes no reading, else those of what was read."""
        parts = {part: rows.labels if rows.skips else rows.first[1] for part, rows in self.rows.items()}
        read = {part for part, rows in self.rows.items() if not rows.skips and self.limit and part in self.images}
        return {**parts, **{part: self.seen[part].labels for part in read}}

    def changed(self, parts, images: str = "images", labels: str = "labels") -> str:
        """Return the line that makes something else of the `images` or `labels` of some parts."""
        lines = []
        for part in parts:
            if isinstance(self.given[part], tuple):
                places = {"images": f"{part}[0]", "labels": f"{part}[1]"}
                both = [re.sub("images|labels", lambda one, to=places: to[one[0]], text) for text in (images, labels)]
                lines.append(f"{part} = ({both[0]}, {both[1]}, *{part}[2:])")
            elif is_tf_dataset(self.given[part]):
                lines.append(f"{part} = {part}.map(lambda images, labels, *rest: ({images}, {labels}, *rest))")
            else:
                lines.append(f"# in the batches of {part}: images, labels = {images}, {labels}")
        return "; ".join(lines)

    def new_head(self, units: int, task: str) -> str:
        """Return the line that puts another last layer on the model, which is then to be compiled."""
        dense = f'keras.layers.Dense({units}, activation="{ACTIVATIONS[task]}")'
        if isinstance(self.model.layers[-1], keras.layers.Dense):
            return f"model = keras.Model(model.inputs, {dense}(model.layers[-1].input))"
        return f"# end the model with {dense}"

    def new_activation(self, name: str) -> str:
        """Return the line that gives the last layer another activation."""
        if hasattr(self.model.layers[-1], "activation"):
            return f"model.layers[-1].activation = keras.activations.{name}"
        return f'# end the model with keras.layers.Activation("{name}")'
