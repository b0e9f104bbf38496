"""What `fit` accepts, seen from outside: arrays, `tf.data.Dataset`, `keras.utils.PyDataset`, and images with an identity.

An `ImageSource` is the list of images behind a dataset of `load_images`: it can be read by index, in a fixed order, and
has an identity, so that stored features can be told apart. It hangs on the dataset object itself: a dataset derived with
`.map` or `.filter` is another object, holds other data, and rightly has none.
"""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from kerastl.checks import check_fraction, received
from kerastl.errors import ArgumentError, DataError, warn

_SOURCE_ATTRIBUTE = "_kerastl_source"


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """The images behind a dataset, in a fixed order.

    Attributes:
        labels: integer labels, `(count,)`.
        image_size: `(height, width)` in pixels of what `read` returns.
        identity: a hex digest of the images, their order, labels, size and resizing: equal digests mean equal data.
        shuffle: whether the dataset shuffles its images anew in every epoch (training data does).
        read: from an index to that image, uint8 RGB `(height, width, 3)`. Safe to call from several threads.
        batch_size: images in a batch of the dataset.
    """

    labels: np.ndarray
    image_size: tuple[int, int]
    identity: str
    shuffle: bool
    read: Callable[[int], np.ndarray]
    batch_size: int = 32

    def __len__(self) -> int:
        return len(self.labels)


def attach_source(dataset, source: ImageSource):
    """Hang `source` on `dataset` (any object that takes attributes) and return the dataset."""
    setattr(dataset, _SOURCE_ATTRIBUTE, source)
    return dataset


def find_source(dataset) -> ImageSource | None:
    """Return the `ImageSource` that was attached to exactly this dataset, or `None`."""
    return getattr(dataset, _SOURCE_ATTRIBUTE, None)


def split_pair(data) -> tuple | None:
    """Return `(x, y)` or `(x, y, sample_weight)` where the data is such a tuple of arrays, else `None`."""
    if isinstance(data, tuple) and len(data) in (2, 3):
        return tuple(data)
    return None


def is_tf_dataset(data) -> bool:
    """Tell whether the data is a `tf.data.Dataset`, without importing TensorFlow."""
    return hasattr(data, "as_numpy_iterator") and hasattr(data, "element_spec")


def first_batch(data, y=None) -> tuple | None:
    """Return `(images, labels)` of a first few samples as NumPy arrays, without using anything up.

    Args:
        data: a `(x, y)` pair, arrays, a dataset, a `PyDataset`, or a `DataLoader`.
        y: labels, where `data` holds the images only.

    Returns:
        The two arrays, or `None` where looking would consume data (a generator) or the batch has another form.
    """
    source = find_source(data)
    if source is not None and len(source):
        count = min(8, len(source))
        return np.stack([source.read(index) for index in range(count)]), source.labels[:count]
    pair = split_pair(data) if y is None else (data, y)
    if pair is not None:
        is_one_label = hasattr(pair[0], "__getitem__") and hasattr(pair[1], "shape")  # rather than one for each output
        return _as_arrays(pair[0][:8], pair[1][:8]) if is_one_label else None
    if isinstance(data, keras.utils.PyDataset):
        return _as_arrays(*data[0][:2]) if len(data) else None
    if is_tf_dataset(data):
        batch = next(iter(data.take(1).as_numpy_iterator()), None)
    elif hasattr(data, "__iter__") and not hasattr(data, "__next__"):
        batch = next(iter(data), None)
    else:
        return None
    return _as_arrays(*batch[:2]) if isinstance(batch, (tuple, list)) and len(batch) >= 2 else None


def _as_arrays(x, y) -> tuple | None:
    if isinstance(x, (dict, list, tuple)) or isinstance(y, (dict, list, tuple)):
        return None
    return keras.ops.convert_to_numpy(x), keras.ops.convert_to_numpy(y)


def all_labels(data) -> np.ndarray | None:
    """Return every label of the data, reading a dataset once where nothing else tells; `None` for a generator."""
    source = find_source(data)
    if source is not None:
        return source.labels
    pair = split_pair(data)
    if pair is not None:
        return keras.ops.convert_to_numpy(pair[1])
    if isinstance(data, keras.utils.PyDataset):
        batches = [data[index][1] for index in range(len(data))]
    elif is_tf_dataset(data):
        batches = list(data.map(lambda *batch: batch[1]).as_numpy_iterator())
    elif hasattr(data, "__iter__") and not hasattr(data, "__next__"):
        batches = [batch[1] for batch in data]
    else:
        return None
    return np.concatenate([keras.ops.convert_to_numpy(batch) for batch in batches]) if batches else None


def batches_of(data):
    """Return an iterable over the batches of what `fit` takes, with labels; of a pair of arrays 32 images at a time.

    Raises:
        DataError: anything else.
    """
    pair = split_pair(data)
    if pair is not None:
        images, labels = pair[:2]
        return ((images[start : start + 32], labels[start : start + 32]) for start in range(0, len(images), 32))
    if isinstance(data, keras.utils.PyDataset):
        return (data[index] for index in range(len(data)))
    if hasattr(data, "__iter__"):
        return data
    raise DataError(
        "Expected a `tf.data.Dataset` of batches, a `keras.utils.PyDataset` or a pair of arrays. "
        f"{received(data=type(data).__name__)}"
    )


def labelled_batches(data, num_classes: int):
    """Yield `(images, labels)`: arrays `(batch, height, width, 3)` and integers `(batch,)`.

    Args:
        data: a `tf.data.Dataset` of batches, a `keras.utils.PyDataset`, a pair of arrays. Labels are integers or one-hot.
        num_classes: number of classes that the model tells apart.

    Raises:
        DataError: batches without labels, or labels that don't fit the model.
    """
    for batch in batches_of(data):
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError(
                "Expected batches of (images, labels), a `tf.data.Dataset` or a pair of arrays. "
                f"{received(batch=type(batch).__name__)}"
            )
        images, labels = (keras.ops.convert_to_numpy(part) for part in batch[:2])
        if not len(images):
            continue
        if label_kind(labels, num_classes) == "one-hot":
            labels = labels.argmax(axis=1)
        yield images, labels.reshape(-1).astype(np.int64)


def count_batches(data, batch_size: int | None = None) -> int | None:
    """Return the number of batches in one epoch, or `None` where it can't be told beforehand."""
    pair = split_pair(data)
    if pair is not None:
        return math.ceil(len(pair[0]) / (batch_size or 32))
    if hasattr(data, "cardinality"):
        count = int(data.cardinality())
        return count if count > 0 else None
    return len(data) if hasattr(data, "__len__") else None


def label_kind(labels: np.ndarray, num_classes: int) -> str:
    """Tell integer labels from one-hot ones and check them against the number of classes.

    Args:
        labels: `(count,)` or `(count, 1)` integers in 0…num_classes − 1, or `(count, num_classes)` one-hot (or smoothed:
            rows of non-negative numbers that add up to 1).
        num_classes: number of classes that the model tells apart.

    Returns:
        "integer" or "one-hot".

    Raises:
        DataError: labels of another form, out of range, or no finite numbers.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iufb":
        raise DataError(f"Labels must be numbers: class indices or one-hot rows. {received(dtype=str(labels.dtype))}")
    if not np.isfinite(labels).all():
        raise DataError("Labels must be finite numbers; some are NaN or infinite. Look where they come from.")
    if labels.ndim == 2 and labels.shape[1] == num_classes and num_classes > 1:
        if (labels < 0).any() or not np.allclose(labels.sum(axis=1), 1, atol=1e-3):
            raise DataError(
                "One-hot labels must be rows that add up to 1 (multi-label classification is out of scope). "
                f"{received(first_row=labels[0].tolist())}"
            )
        return "one-hot"
    if labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != 1):
        raise DataError(
            f"Labels must be integers `(count,)`, or one-hot `(count, {num_classes})`, as the model has {num_classes} "
            f"classes. {received(shape=labels.shape)}"
        )
    if (labels != np.floor(labels)).any() or labels.min(initial=0) < 0 or labels.max(initial=0) >= num_classes:
        raise DataError(
            f"Labels must be whole numbers from 0 to {num_classes - 1}, as the model has {num_classes} classes. "
            f"{received(smallest=labels.min().item(), largest=labels.max().item())}"
        )
    return "integer"


def balanced_class_weight(labels: np.ndarray, num_classes: int) -> dict[int, float]:
    """Return weights that give every class the same say: `count / (classes present × count of the class)`.

    The formula is scikit-learn's `class_weight="balanced"` (King and Zeng, 2001).
    """
    labels = np.asarray(labels)
    if label_kind(labels, num_classes) == "one-hot":
        labels = labels.argmax(axis=1)
    counts = np.bincount(labels.reshape(-1).astype("int64"), minlength=num_classes)
    present = int((counts > 0).sum())
    return {index: float(counts.sum() / (present * count)) for index, count in enumerate(counts) if count}


def check_images(model, images: np.ndarray) -> None:
    """Check a first batch of images against a model: its size, and whether the pixels look scaled already.

    Raises:
        DataError: images of another size or number of channels than the model takes.
    """
    wanted = tuple(model.inputs[0].shape[1:]) if getattr(model, "inputs", None) else None
    given = images.shape[1:]
    if wanted is not None and len(wanted) == 3 and _clash(wanted, given):
        raise DataError(
            f"The model {model.name!r} takes images of {_size(wanted)}, the data holds images of {_size(given)}. Load them "
            f"with `image_size={wanted[0]}`, or build the model with `input_shape={tuple(given)}`."
        )
    if wanted is not None and len(wanted) == 3:
        warn_if_scaled(images)


def warn_if_scaled(images: np.ndarray) -> None:
    """Warn of pixels that look scaled already: floats within ±1.5, or negative ones."""
    if images.size == 0 or images.dtype.kind != "f":
        return
    low, high = float(images.min()), float(images.max())
    if low >= 0 and (high > 1.5 or high == 0):  # a black first batch says nothing
        return
    if not np.isfinite([low, high]).all():  # another fault; features or the loss will tell
        return
    warn(
        f"The pixels look scaled already (from {low:.3g} to {high:.3g} in the first batch). A classifier of this package "
        "takes RGB 0–255, and scales them itself: remove `preprocess_input`, `Rescaling` or `/ 255` from the data."
    )


def _clash(wanted, given) -> bool:
    return len(wanted) != len(given) or any(w not in (None, g) for w, g in zip(wanted, given, strict=True))


def _size(shape) -> str:
    return " × ".join("any" if side is None else str(side) for side in shape)


def split_validation(pair: tuple, fraction: float) -> tuple[tuple, tuple]:
    """Split arrays as `fit(validation_split=…)` does: the last part, before anything is shuffled.

    Raises:
        ArgumentError: no fraction between 0 and 1, or nothing left on one side.
    """
    fraction = check_fraction("validation_split", fraction, one=False)
    edge = math.floor(len(pair[0]) * (1.0 - fraction))
    if not 0 < edge < len(pair[0]):
        raise ArgumentError(
            f"`validation_split` leaves nothing on one side. {received(validation_split=fraction, count=len(pair[0]))}"
        )
    parts = [(None, None) if one is None else (one[:edge], one[edge:]) for one in pair]
    return tuple(part[0] for part in parts), tuple(part[1] for part in parts)
