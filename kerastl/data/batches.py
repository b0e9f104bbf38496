"""The one adapter: whatever `fit` takes, told apart here alone, as batches of `(images, labels, sample_weights)`."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.checks import check_fraction, received
from kerastl.data.images import in_threads
from kerastl.errors import ArgumentError, DataError

_SOURCE_ATTRIBUTE, _FILLED_ATTRIBUTE = "_kerastl_source", "_kerastl_filled"
_FIRST = 8  # images that are enough to judge the data by
_INFINITE = -1  # `tf.data.INFINITE_CARDINALITY`
_AHEAD = 3  # batches read ahead of the one in work: enough to overlap, few enough to stay small


class Rows:
    """Images with labels, in an order that is the same at every pass (except for datasets that shuffle themselves).

    Attributes:
        count: number of images, or `None` where only a pass can tell.
        batch_count: number of batches in one epoch, or `None` likewise.
        batch_size: images in a training batch.
        identity: a digest that tells this data from any other, or `None` where it has none.
        skips: whether reading can start anywhere, and `read(index)` returns a single image.
        shuffles: whether training should draw a new order in every epoch.
        labels: all of them; a dataset is read for it once; `None` for a generator.
        first: `(images, labels)` of a few samples; `None` for a generator, and where they are not one array each.
    """

    @property
    def batch_count(self) -> int | None:
        return None if self.count is None else math.ceil(self.count / self.batch_size)

    def until(self, stop: int) -> "Rows":
        """Return the first images alone, where `skips` is true."""

    def batches(self, start: int = 0, size: int | None = None):
        """Yield `(images, labels, sample_weights)`, what is missing as `None`, from image `start` on.

        `size` images at a time; by default `batch_size`, of datasets the batches as they come.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSource(Rows):
    """The images that `load_images` found for one of its datasets, in a fixed order.

    It hangs on the dataset object itself: a dataset derived with `.map` or `.filter` is another object, holds other data,
    and rightly has none. `labels` are all that the dataset yields; `read` returns the image of an index, uint8 RGB
    `(*image_size, 3)`, and may be called from several threads; `identity` covers images, order, labels, size and resizing.
    """

    labels: np.ndarray
    image_size: tuple[int, int]
    identity: str
    shuffles: bool
    read: Callable[[int], np.ndarray]
    batch_size: int = 32
    skips = True

    def __len__(self) -> int:
        return len(self.labels)

    count = property(__len__)

    def until(self, stop):
        return dataclasses.replace(self, labels=self.labels[:stop])

    @functools.cached_property
    def first(self):
        return next(self.batches(0, _FIRST))[:2]

    def batches(self, start=0, size=None):
        size = size or self.batch_size
        images = in_threads(self.read, range(start, self.count), threads=4, ahead=2 * size)
        for begin in range(start, self.count, size):
            yield np.stack(list(itertools.islice(images, size))), self.labels[begin : begin + size], None


def attach_source(dataset, source: ImageSource):
    """Hang `source` on `dataset` (any object that takes attributes) and return the dataset."""
    setattr(dataset, _SOURCE_ATTRIBUTE, source)
    return dataset


def find_source(dataset) -> ImageSource | None:
    """Return the `ImageSource` that was attached to exactly this dataset, or `None`."""
    return getattr(dataset, _SOURCE_ATTRIBUTE, None)


def is_tf_dataset(data) -> bool:
    """Tell whether the data is a `tf.data.Dataset`, without importing TensorFlow."""
    return hasattr(data, "as_numpy_iterator") and hasattr(data, "element_spec")


def is_endless(data) -> bool:
    """Tell whether the data is a `tf.data.Dataset` that is known to have no end, as one that repeats."""
    return is_tf_dataset(data) and int(data.cardinality()) == _INFINITE


def adapt(data, y=None, sample_weight=None, *, batch_size: int | None = None, shuffle: bool | None = None) -> Rows:
    """Return the `Rows` of whatever `fit` takes; nothing of a generator is used up.

    `batch_size` is for arrays, 32 by default; `shuffle` is what `fit` was told, `None` for what the data itself does.
    Raises `DataError` for anything else, and for arrays of different lengths.
    """
    source = find_source(data)
    if source is not None:
        return source if shuffle is None else dataclasses.replace(source, shuffles=bool(shuffle))
    if y is not None:
        data = (data, y, sample_weight)
    elif isinstance(data, dict) or (hasattr(data, "shape") and hasattr(data, "__getitem__")):
        data = (data, None)
    if isinstance(data, tuple) and len(data) in (2, 3):
        return _ArrayRows((*data, None)[:3], batch_size, shuffle)
    if isinstance(data, keras.utils.PyDataset) or (hasattr(data, "__iter__") and not isinstance(data, (str, bytes))):
        return _DatasetRows(data, shuffle)
    raise DataError(
        "Expected a `tf.data.Dataset` of batches, a `keras.utils.PyDataset` or a pair of arrays; of a folder, what "
        f"`kerastl.load_images` makes of it. {received(data=type(data).__name__)}"
    )


def only_array(part):
    """Return the array of a list or dictionary that holds only one, as a model with one input may be given it."""
    arrays = list(part.values()) if isinstance(part, dict) else part
    one = isinstance(arrays, (list, tuple)) and len(arrays) == 1 and hasattr(arrays[0], "shape")
    return arrays[0] if one else part


def rows_of(data, y=None, **options) -> Rows | None:
    """Return what `adapt` does, or `None` for what can't be read again, or isn't one array of images and one of labels."""
    rows = adapt(data, y, **options)
    return None if rows.first is None else rows


class _ArrayRows(Rows):
    """Arrays in memory, or memory-mapped; lists of arrays and dictionaries are for `fit` itself."""

    def __init__(self, arrays: tuple, batch_size: int | None, shuffle: bool | None):
        self._arrays = arrays
        self.batch_size, self.shuffles = batch_size or 32, shuffle is None or bool(shuffle)
        self.skips = all(one is None or hasattr(one, "shape") for one in arrays)
        lengths = [len(one) for one in arrays if hasattr(one, "__len__")]
        if self.skips and len(set(lengths)) > 1:
            raise DataError(f"Images, labels and sample weights must be of one length. {received(lengths=lengths)}")
        self.count = lengths[0] if lengths else None

    @functools.cached_property
    def first(self):
        images, labels, _ = self._arrays
        return (_numpy(images[:_FIRST]), _numpy(labels[:_FIRST])) if self.skips and labels is not None else None

    @functools.cached_property
    def identity(self) -> str:
        digest = hashlib.blake2b(digest_size=32)
        for array in self._arrays:
            digest.update(b"none" if array is None else f"{array.shape}{array.dtype}".encode())
            for start in range(0, 0 if array is None else len(array), 256):
                digest.update(np.ascontiguousarray(_numpy(array[start : start + 256])))
        return digest.hexdigest()

    @property
    def labels(self):
        return _numpy(self._arrays[1])

    def read(self, index):
        return _numpy(self._arrays[0][index])

    def until(self, stop):
        return _ArrayRows(_part(self._arrays, None, stop), self.batch_size, self.shuffles)

    def batches(self, start=0, size=None):
        size = size or self.batch_size
        for begin in range(start, self.count, size):
            yield tuple(map(_numpy, _part(self._arrays, begin, begin + size)))


class _DatasetRows(Rows):
    """A `tf.data.Dataset`, `PyDataset`, `DataLoader`, list of batches or generator: its batches as they come."""

    count, batch_count, identity, skips = None, None, None, False

    def __init__(self, dataset, shuffle: bool | None):
        self._dataset, self.shuffles = dataset, bool(shuffle)
        self._once = hasattr(dataset, "__next__")
        if hasattr(dataset, "cardinality"):
            count = int(dataset.cardinality())
            self._once, self.batch_count = count == _INFINITE, count if count > 0 else None
        elif hasattr(dataset, "__len__"):
            self.batch_count = len(dataset)

    @functools.cached_property
    def first(self):
        if self._once:
            return None
        batch = next(self._passes(), None)
        is_pair = isinstance(batch, (tuple, list)) and len(batch) >= 2
        if not is_pair or any(isinstance(part, (dict, list, tuple)) for part in batch[:2]):
            return None
        return _own(batch[0]), _own(batch[1])

    @property
    def batch_size(self) -> int:
        return 32 if self.first is None else len(self.first[0])

    @functools.cached_property
    def labels(self):
        if self._once:
            return None
        labels = [_own(check_batch(batch)[1]) for batch in self._passes()]
        return np.concatenate(labels) if labels else None

    def batches(self, start=0, size=None):
        rest = None
        for batch in map(_three_of, self._passes()):
            if size is None:
                yield batch
                continue
            rest = batch if rest is None or not len(rest[0]) else tuple(map(_joined, rest, batch))
            while len(rest[0]) >= size:
                yield _part(rest, None, size)
                rest = _part(rest, size, None)
        if rest is not None and len(rest[0]):
            yield rest

    def _passes(self):
        if not isinstance(self._dataset, keras.utils.PyDataset):
            if is_tf_dataset(self._dataset):
                _fill_caches(self._dataset)
            yield from self._dataset
            return
        for index in range(len(self._dataset)):
            yield self._dataset[index]
        self._dataset.on_epoch_end()  # as in `fit`: it may shuffle there


def _fill_caches(dataset) -> None:
    """Read what a `tf.data.Dataset` caches to its end, once, before a pass over it may be broken off.

    TensorFlow may take what a broken-off pass has read for all of the data, and drop the rest for good: a `prefetch` in front
    of the `cache`, as `image_dataset_from_directory` has one, says that it is at its end when it is told to stop.
    """
    for step in keras_internals.dataset_steps(dataset):
        fits = keras_internals.keeps_what_it_reads(step) and int(step.cardinality()) != _INFINITE
        if fits and not hasattr(step, _FILLED_ATTRIBUTE):
            collections.deque(step, maxlen=0)
            setattr(step, _FILLED_ATTRIBUTE, True)


def _three_of(batch) -> tuple:
    """Return images, labels and sample weights of a batch as arrays, what is missing as `None`."""
    return check_batch(tuple(map(_own, keras.utils.unpack_x_y_sample_weight(batch))))


def check_batch(batch: tuple) -> tuple:
    """Return a batch of arrays; raise `DataError` where they are of different lengths, or a single image and its label."""
    shapes = [tuple(array.shape) for array in batch if hasattr(array, "shape")]
    if len({shape[:1] for shape in shapes}) > 1 or () in shapes:
        raise DataError(
            "Each batch must hold as many labels as images, both with an axis for the batch. Single images become batches by "
            f"`data.batch(32)`. {received(shapes=shapes)}"
        )
    return batch


def _part(arrays: tuple, start: int | None, stop: int | None) -> tuple:
    return tuple(None if array is None else array[start:stop] for array in arrays)


def _joined(one, other):
    return None if one is None or other is None else np.concatenate([one, other])


def _numpy(array) -> np.ndarray | None:
    return array if array is None or isinstance(array, np.ndarray) else np.asarray(keras.ops.convert_to_numpy(array))


def _own(array) -> np.ndarray | None:
    """Return an array that stays as it is: a dataset may fill the memory of one batch again for the next one."""
    found = _numpy(array)
    return found.copy() if array is not None and (found is array or not found.flags.owndata) else found


def split_validation(arrays: tuple, fraction: float) -> tuple[tuple, tuple]:
    """Split arrays as `fit(validation_split=…)` does: the last part, before anything is shuffled."""
    fraction, count = check_fraction("validation_split", fraction, one=False), len(arrays[0])
    edge = math.floor(count * (1.0 - fraction))
    if not 0 < edge < count:
        raise ArgumentError(
            f"`validation_split` leaves nothing on one side. {received(validation_split=fraction, count=count)}"
        )
    return _part(arrays, None, edge), _part(arrays, edge, None)


def read_ahead(batches):
    """Yield the items of a generator that a thread of its own keeps ahead; errors come out where they belong."""
    end = object()
    with contextlib.closing(batches):  # only when the thread is done with it
        ahead = in_threads(lambda _: next(batches, end), itertools.count(), threads=1, ahead=_AHEAD)
        with contextlib.closing(ahead):
            yield from iter(ahead.__next__, end)
