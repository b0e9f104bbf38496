"""The images that an export needs: representative ones, to set the ranges of int8, and held-out ones, for the gate."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator

import keras
import numpy as np

from kerastl.checks import received
from kerastl.data.batches import adapt, find_source
from kerastl.data.labels import class_indices
from kerastl.errors import DataError
from kerastl.models import outputs

REPRESENTATIVE = 200
"""How many images set the ranges: TensorFlow's guide advises 100 to 500."""

_NOISE = 32


@dataclasses.dataclass
class GateImages:
    """Batches for the gate.

    Attributes:
        what: `"held-out"`, `"representative"` or `"noise"`.
        batches: `(images, labels)`; labels are integers `(batch,)` or `None`. They can be gone through once.
        total: number of batches, where that is known.
        count: images that went through so far.
    """

    what: str
    batches: Iterator
    total: int | None = None
    count: int = 0
    known_identity: str | None = None
    _digest: object = dataclasses.field(default_factory=hashlib.sha256)

    def __iter__(self):
        for images, labels in self.batches:
            self.count += len(images)
            if self.known_identity is None:
                self._digest.update(f"{images.dtype}{images.shape}".encode())
                self._digest.update(np.ascontiguousarray(images).tobytes())
                self._digest.update(b"" if labels is None else labels.astype("int64").tobytes())
            yield images, labels

    @property
    def identity(self) -> str:
        """A hex digest of the images that went through, their order and labels: the same digest, the same images."""
        return self.known_identity or self._digest.hexdigest()

    def in_words(self) -> str:
        """Return what the images are, for a sentence."""
        return {
            "held-out": f"{self.count} held-out images",
            "representative": f"the {self.count} representative images (no held-out ones were given)",
            "noise": f"{self.count} images of noise (no others were given)",
        }[self.what]


def representative_images(data, model: keras.Model, count: int = REPRESENTATIVE) -> np.ndarray:
    """Return up to `count` images, `(count, height, width, 3)`, spread evenly over the data where that can be.

    Args:
        data: images, with labels or without: an array, a pair of arrays, a `tf.data.Dataset` of batches, a
            `keras.utils.PyDataset`. Of anything that comes in batches without an identity the first ones are taken.
        model: what is exported, to compare sizes.

    Raises:
        DataError: no images, or images that the model can't take.
    """
    rows = adapt(data)
    if rows.skips:
        images = rows.images_at(_spread(rows.count, count))
    else:
        images = list(itertools.islice((image for batch, _ in _batches(data, None) for image in batch), count))
    if not images:
        raise DataError(f"There are no representative images. {received(representative=data)}")
    images = np.stack(images)
    _check(model, images)
    return images


def gate_images(held_out, representative: np.ndarray | None, model: keras.Model, num_classes: int) -> GateImages:
    """Return what the gate compares on: held-out images, else the representative ones, else noise.

    Args:
        held_out: images that nothing was trained or set on, as `representative_images` takes them; with labels the gate
            can compare accuracies.
        representative: what `representative_images` returned.
        model: what is exported.
        num_classes: of the model.

    Raises:
        DataError: no held-out images, or images or labels that don't fit the model.
    """
    if held_out is None and representative is not None:
        return GateImages("representative", _array_batches(representative))
    size = tuple(model.inputs[0].shape[1:])
    if held_out is None:
        return GateImages("noise", _array_batches(np.random.default_rng(0).integers(0, 256, (_NOISE, *size), "uint8")))
    batches = _batches(held_out, num_classes)
    first = next(batches, None)
    if first is None:
        raise DataError(f"There are no held-out images. {received(held_out=held_out)}")
    _check(model, first[0])
    source = find_source(held_out)
    identity = None if source is None else source.identity
    return GateImages(
        "held-out", itertools.chain([first], batches), adapt(held_out).batch_count, known_identity=identity
    )


def _batches(data, num_classes: int | None):
    """Yield `(images, labels)`, labels `None` where there are none or no number of classes to check them against."""
    for images, labels, _ in adapt(data).batches():
        if len(images):
            yield images, None if labels is None or num_classes is None else class_indices(labels, num_classes)


def _array_batches(images):
    return iter([(images[start : start + 32], None) for start in range(0, len(images), 32)])


def _spread(available: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, available - 1, min(count, available)).round().astype(int)) if available else []


def _check(model, images) -> None:
    if images.ndim != 4:
        raise DataError(f"Expected images (batch, height, width, 3) in 0-255. {received(shape=images.shape)}")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DataError("Expected pixels 0-255. Received images that hold NaN or infinity")
    outputs.check_images(model, images)
