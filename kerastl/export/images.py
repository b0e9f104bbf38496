"""The images that an export needs: representative ones, to set the ranges of int8, and held-out ones, for the gate."""

import hashlib
import itertools
from collections.abc import Iterator

import keras
import numpy as np

from kerastl.checks import received
from kerastl.data.batches import adapt, find_source
from kerastl.data.labels import CLASSIFICATION
from kerastl.errors import ArgumentError, DataError
from kerastl.models import outputs
from kerastl.training.scoring import prepare_labels

REPRESENTATIVE = 200
"""How many images set the ranges: TensorFlow's guide advises 100 to 500."""

_NOISE = 32


class GateImages:
    """Batches for the gate: `(images, labels)`, labels as `prepare_labels` returns them or `None`; to be read once.

    `what` is `"held-out"`, `"representative"` or `"noise"`, `total` the number of batches where that is known, and `count`
    that of the images that went through so far.
    """

    def __init__(self, what: str, batches: Iterator, total: int | None = None, identity: str | None = None):
        self.what, self.total, self.count = what, total, 0
        self._batches, self._identity, self._digest = batches, identity, hashlib.sha256()

    def __iter__(self):
        for images, labels in self._batches:
            self.count += len(images)
            if self._identity is None:
                self._digest.update(f"{images.dtype}{images.shape}".encode())
                self._digest.update(np.ascontiguousarray(images).tobytes())
                self._digest.update(b"" if labels is None else labels.tobytes())
            yield images, labels

    @property
    def identity(self) -> str:
        """A hex digest of the images that went through, their order and labels: the same digest, the same images."""
        return self._identity or self._digest.hexdigest()

    def in_words(self) -> str:
        """Return what the images are, for a sentence."""
        return {
            "held-out": f"{self.count} held-out images",
            "representative": f"the {self.count} representative images (no held-out ones were given)",
            "noise": f"{self.count} images of noise (no others were given)",
        }[self.what]


def export_images(
    representative, held_out, model: keras.Model, quantize: str | None, num_classes: int, task: str = CLASSIFICATION
) -> tuple[np.ndarray | None, GateImages]:
    """Return the representative images, and those of the gate: held-out images, else the representative ones, else noise.

    Both are given as `fit` takes them, with labels or without; `num_classes` and `task` are what labels are checked against.
    `ArgumentError`: int8 without representative images; `DataError`: there are no images, or they don't fit the model.
    """
    calibration = None if representative is None else _representative(representative, model)
    if quantize == "int8" and calibration is None:
        raise ArgumentError(
            "int8 needs `representative=`, images that show how large the activations get: training images, such as "
            f"`load_images(...).train`. Held-out ones are for the gate. {received(representative=None)}"
        )
    if held_out is not None:
        batches = _batches(held_out, num_classes, task)
        first = next(batches, None)
        if first is None:
            raise DataError(f"There are no held-out images. {received(held_out=held_out)}")
        _check(model, first[0])
        source, total = find_source(held_out), adapt(held_out).batch_count
        identity = None if source is None else source.identity
        return calibration, GateImages("held-out", itertools.chain([first], batches), total, identity)
    if calibration is not None:
        return calibration, GateImages("representative", _batches(calibration))
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE, *model.inputs[0].shape[1:]), "uint8")
    return None, GateImages("noise", _batches(noise))


def _representative(data, model) -> np.ndarray:
    """Return up to 200 images, `(count, height, width, 3)`, spread over data that can be read by index, else the first."""
    rows = adapt(data)
    if rows.skips:
        places = np.linspace(0, rows.count - 1, min(REPRESENTATIVE, rows.count)).round().astype(int)
        images = [rows.read(index) for index in np.unique(places)]
    else:
        images = list(itertools.islice((image for batch, _ in _batches(data) for image in batch), REPRESENTATIVE))
    if not images:
        raise DataError(f"There are no representative images. {received(representative=data)}")
    images = np.stack(images)
    _check(model, images)
    return images


def _batches(data, num_classes: int | None = None, task: str = CLASSIFICATION):
    """Yield `(images, labels)`, labels `None` where there are none or no number of classes to check them against."""
    for images, labels, _ in adapt(data).batches():
        if len(images):
            yield images, None if labels is None or num_classes is None else prepare_labels(labels, num_classes, task)


def _check(model, images) -> None:
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DataError("Expected pixels 0-255. Received images that hold NaN or infinity")
    outputs.check_size(model, images)
    outputs.warn_if_scaled(images)
