"""The one adapter: whatever `fit` takes, as batches of `(images, labels, sample_weights)`.

Arrays, tuples of arrays, `tf.data.Dataset`, `keras.utils.PyDataset`, `DataLoader`, results of `load_images` and generators
are told apart here and nowhere else.

An `ImageSource` is the list of images behind a dataset of `load_images`: it can be read by index, in a fixed order, and
has an identity, so that stored features can be told apart. It hangs on the dataset object itself: a dataset derived with
`.map` or `.filter` is another object, holds other data, and rightly has none.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
import queue
import threading
from collections.abc import Callable

import keras
import numpy as np

from kerastl.checks import check_fraction, received
from kerastl.data.labels import class_indices
from kerastl.errors import ArgumentError, DataError

_SOURCE_ATTRIBUTE = "_kerastl_source"
_FIRST = 8  # images that are enough to judge the data by
_AHEAD = 3  # batches read ahead of the one in work: enough to overlap, few enough to stay small


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


def is_tf_dataset(data) -> bool:
    """Tell whether the data is a `tf.data.Dataset`, without importing TensorFlow."""
    return hasattr(data, "as_numpy_iterator") and hasattr(data, "element_spec")


def adapt(data, y=None, sample_weight=None, *, batch_size: int | None = None, shuffle: bool | None = None) -> "Rows":
    """Return the `Rows` of whatever `fit` takes; nothing of a generator is used up.

    Args:
        data: images `(count, height, width, 3)`, a `(x, y)` or `(x, y, sample_weight)` tuple, a dataset of batches, a
            `DataLoader`, a generator.
        y: labels, where `data` holds the images only.
        sample_weight: of each image, beside `y`.
        batch_size: for arrays; 32 by default.
        shuffle: what `fit` was told; `None` for what the data itself does.

    Raises:
        DataError: anything else, or arrays of different lengths.
    """
    source = find_source(data)
    if source is not None:
        return _SourceRows(source, shuffle)
    if y is None and isinstance(data, tuple) and len(data) in (2, 3):
        return _ArrayRows((*data, None)[:3], batch_size, shuffle)
    if y is not None or (hasattr(data, "shape") and hasattr(data, "__getitem__")):
        return _ArrayRows((data, y, sample_weight if y is not None else None), batch_size, shuffle)
    if isinstance(data, keras.utils.PyDataset) or hasattr(data, "__iter__"):
        return _DatasetRows(data, shuffle)
    raise DataError(
        "Expected a `tf.data.Dataset` of batches, a `keras.utils.PyDataset` or a pair of arrays. "
        f"{received(data=type(data).__name__)}"
    )


def rows_of(data, y=None, sample_weight=None, **options) -> "Rows | None":
    """Return what `adapt` does, or `None` for what can't be read again, or isn't one array of images and one of labels."""
    rows = adapt(data, y, sample_weight, **options)
    return None if rows.first is None else rows


class Rows:
    """Images with labels, in an order that is the same at every pass (except for datasets that shuffle themselves).

    Attributes:
        count: number of images, or `None` where only a pass can tell.
        batch_count: number of batches in one epoch, or `None` where only a pass can tell.
        batch_size: images in a training batch.
        identity: a digest that tells this data from any other, or `None` where it has none.
        skips: whether reading can start anywhere.
        shuffles: whether training should draw a new order in every epoch.
        first: the `(images, labels)` of a few samples as arrays, or `None` where looking would use data up (a generator)
            or images and labels are not one array each.
    """

    count: int | None = None
    batch_count: int | None = None
    batch_size = 32
    identity: str | None = None
    skips = False
    shuffles = False
    first: tuple | None = None

    def all_labels(self) -> np.ndarray | None:
        """Return every label, reading a dataset once where nothing else tells; `None` for a generator."""
        raise TypeError(f"{type(self).__name__} doesn't say what its labels are")

    def images_at(self, indices) -> list[np.ndarray]:
        """Return single images by index, where reading can start anywhere."""
        raise TypeError(f"{type(self).__name__} can't be read by index")

    def batches(self, start: int = 0, size: int | None = None):
        """Yield `(images, labels, sample_weights)`, what is missing as `None`, from image `start` on.

        `size` images at a time; by default `batch_size`, of datasets the batches as they come.
        """
        raise TypeError(f"{type(self).__name__} doesn't say how it is read")

    def labelled_batches(self, num_classes: int):
        """Yield `(images, class indices)`, empty batches left out.

        Raises:
            DataError: batches without labels, or labels that don't fit the number of classes.
        """
        for images, labels, _ in self.batches():
            if labels is None:
                raise DataError(
                    "Expected batches of (images, labels), a `tf.data.Dataset` or a pair of arrays. "
                    f"{received(batch=type(images).__name__)}"
                )
            if len(images):
                yield images, class_indices(labels, num_classes)


class _ArrayRows(Rows):
    """Arrays in memory, or memory-mapped; lists of arrays and dictionaries are for `fit` itself."""

    def __init__(self, arrays: tuple, batch_size: int | None, shuffle: bool | None):
        self._arrays = arrays
        self.batch_size, self.shuffles = batch_size or 32, shuffle is None or bool(shuffle)
        self.skips = all(one is None or hasattr(one, "shape") for one in arrays)
        lengths = [len(one) if hasattr(one, "__len__") else None for one in arrays]
        self.count = lengths[0]
        self.batch_count = None if self.count is None else math.ceil(self.count / self.batch_size)
        if self.skips and set(lengths) - {None, self.count}:
            raise DataError(
                f"Images, labels and sample weights must be of one length. Received: {lengths[0]} images, {lengths[1]} labels"
                f"{'' if lengths[2] is None else f', {lengths[2]} sample weights'}"
            )

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

    def all_labels(self):
        return _numpy(self._arrays[1])

    def images_at(self, indices):
        return [_numpy(self._arrays[0][index]) for index in indices]

    def batches(self, start=0, size=None):
        size = size or self.batch_size
        for begin in range(start, self.count, size):
            yield tuple(None if one is None else _numpy(one[begin : begin + size]) for one in self._arrays)


class _SourceRows(Rows):
    """Images that `load_images` found, read by several threads."""

    skips = True

    def __init__(self, source: ImageSource, shuffle: bool | None):
        self._source = source
        self.count, self.identity, self.batch_size = len(source), source.identity, source.batch_size
        self.batch_count = math.ceil(self.count / self.batch_size)
        self.shuffles = source.shuffle if shuffle is None else shuffle

    @functools.cached_property
    def first(self):
        indices = range(min(_FIRST, self.count))
        return np.stack(self.images_at(indices)), self._source.labels[: len(indices)]

    def all_labels(self):
        return self._source.labels

    def images_at(self, indices):
        return [self._source.read(index) for index in indices]

    def batches(self, start=0, size=None):
        source, size = self._source, size or self.batch_size
        begins = iter(range(start, self.count, size))
        with concurrent.futures.ThreadPoolExecutor(max_workers=4, thread_name_prefix="read") as pool:

            def submit(begin: int):
                indices = range(begin, min(begin + size, self.count))
                return source.labels[begin : begin + size], [pool.submit(source.read, index) for index in indices]

            waiting = [submit(begin) for begin in itertools.islice(begins, 2)]
            while waiting:
                labels, futures = waiting.pop(0)
                yield np.stack([future.result() for future in futures]), labels, None
                waiting += [submit(begin) for begin in itertools.islice(begins, 1)]


class _DatasetRows(Rows):
    """A `tf.data.Dataset`, `PyDataset`, `DataLoader`, list of batches or generator: its batches as they come."""

    def __init__(self, dataset, shuffle: bool | None):
        self._dataset, self.shuffles = dataset, bool(shuffle)
        self._once = hasattr(dataset, "__next__")
        if hasattr(dataset, "cardinality"):
            count = int(dataset.cardinality())  # negative for unknown and for infinite
            self.batch_count = count if count > 0 else None
        elif hasattr(dataset, "__len__"):
            self.batch_count = len(dataset)

    @functools.cached_property
    def first(self):
        if self._once:
            return None
        batch = next(iter(self._dataset.take(1) if is_tf_dataset(self._dataset) else self._passes()), None)
        is_pair = isinstance(batch, (tuple, list)) and len(batch) >= 2
        if not is_pair or any(isinstance(part, (dict, list, tuple)) for part in batch[:2]):
            return None
        return _numpy(batch[0]), _numpy(batch[1])

    @property
    def batch_size(self) -> int:
        return 32 if self.first is None else len(self.first[0])

    def all_labels(self):
        if self._once:
            return None
        labels = [_numpy(batch[1]) for batch in self._passes()]
        return np.concatenate(labels) if labels else None

    def batches(self, start=0, size=None):
        kept, rows = [], 0
        for batch in self._passes():
            arrays = _three_of(batch)
            if size is None:
                yield arrays
                continue
            kept.append(arrays)
            rows += len(arrays[0])
            while rows >= size:
                whole, kept, rows = _take(kept, size)
                yield whole
        if rows:
            yield _take(kept, rows)[0]

    def _passes(self):
        if isinstance(self._dataset, keras.utils.PyDataset):
            return (self._dataset[index] for index in range(len(self._dataset)))
        return iter(self._dataset)


def _three_of(batch) -> tuple:
    """Return images, labels and sample weights of a batch as arrays, what is missing as `None`."""
    parts = tuple(batch[:3]) if isinstance(batch, (tuple, list)) else (batch,)
    arrays = tuple(_numpy(part) for part in (*parts, None, None)[:3])
    if len(lengths := [len(array) for array in arrays if array is not None]) and len(set(lengths)) != 1:
        raise DataError(f"A batch must hold as many labels as images. Received: lengths {', '.join(map(str, lengths))}")
    return arrays


def _take(batches, size: int):
    """Return the first `size` rows of a list of batches, what is left of them, and how many rows that is."""
    joined = [
        None if any(batch[part] is None for batch in batches) else np.concatenate([batch[part] for batch in batches])
        for part in range(3)
    ]
    whole = tuple(None if one is None else one[:size] for one in joined)
    rest = tuple(None if one is None else one[size:] for one in joined)
    count = len(rest[0])
    return whole, [rest] if count else [], count


def _numpy(array) -> np.ndarray | None:
    return array if array is None or isinstance(array, np.ndarray) else np.asarray(keras.ops.convert_to_numpy(array))


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


def read_ahead(batches):
    """Yield the items of an iterator that a thread of its own keeps ahead; errors come out where they belong."""
    ready, stop = queue.Queue(maxsize=_AHEAD), threading.Event()

    def put(item) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def work():
        try:
            for item in batches:
                if not put((item, None)):
                    return
            put((None, None))
        except BaseException as error:  # handed over to the thread that waits for the data
            put((None, error))
        finally:
            if hasattr(batches, "close"):
                batches.close()

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()
