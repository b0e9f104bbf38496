"""Images and labels read once, in a fixed order, ahead of what computes on them.

`Rows` hides whether they come from arrays, from files (an `ImageSource`), from a `tf.data.Dataset` or a `PyDataset`.
"""

import concurrent.futures
import contextlib
import hashlib
import queue
import threading

import keras
import numpy as np

from kerastl.data import batches as inputs
from kerastl.errors import DataError

_AHEAD = 3  # batches read ahead of the one in work: enough to overlap, few enough to stay small


class Rows:
    """Images with labels, in an order that is the same at every pass (except for datasets that shuffle themselves).

    Attributes:
        count: number of images, or `None` where only a pass can tell.
        identity: a digest that tells this data from any other, or `None` where it has none.
        skips: whether reading can start anywhere.
        shuffles: whether training should draw a new order in every epoch.
        batch_size: images in a training batch.
    """

    count: int | None = None
    identity: str | None = None
    skips = False
    shuffles = False
    batch_size = 32

    def batches(self, start: int, size: int):
        """Yield `(images, labels, sample_weights or None)` from image `start` on, `size` images at a time."""
        raise TypeError(f"{type(self).__name__} doesn't say how it is read")


class ArrayRows(Rows):
    """Arrays in memory, or memory-mapped."""

    skips = True

    def __init__(self, images, labels, weights=None, batch_size: int | None = None, shuffle: bool = True):
        self._arrays = (images, labels, weights)
        self.count, self.shuffles, self.batch_size = len(images), bool(shuffle), batch_size or 32
        if len(labels) != self.count or (weights is not None and len(weights) != self.count):
            raise DataError(
                f"Images, labels and sample weights must be of one length. Received: {self.count} images, {len(labels)} labels"
                f"{'' if weights is None else f', {len(weights)} sample weights'}"
            )
        self._identity = None

    @property
    def identity(self) -> str:
        """A digest of all arrays, computed when it is first asked for."""
        if self._identity is None:
            digest = hashlib.blake2b(digest_size=32)
            for array in self._arrays:
                digest.update(b"none" if array is None else f"{array.shape}{array.dtype}".encode())
                for start in range(0, 0 if array is None else len(array), 256):
                    digest.update(np.ascontiguousarray(_numpy(array[start : start + 256])))
            self._identity = digest.hexdigest()
        return self._identity

    def batches(self, start: int, size: int):
        for begin in range(start, self.count, size):
            yield tuple(None if one is None else _numpy(one[begin : begin + size]) for one in self._arrays)


class SourceRows(Rows):
    """Images that `load_images` found, read by several threads."""

    skips = True

    def __init__(self, source: inputs.ImageSource):
        self._source = source
        self.count, self.identity = len(source), source.identity
        self.shuffles, self.batch_size = source.shuffle, source.batch_size

    def batches(self, start: int, size: int):
        source = self._source
        with concurrent.futures.ThreadPoolExecutor(max_workers=4, thread_name_prefix="read") as pool:
            waiting = []
            begins = iter(range(start, self.count, size))
            while True:
                while len(waiting) < 2 and (begin := next(begins, None)) is not None:
                    indices = range(begin, min(begin + size, self.count))
                    waiting.append((indices, [pool.submit(source.read, index) for index in indices]))
                if not waiting:
                    return
                indices, futures = waiting.pop(0)
                yield (
                    np.stack([future.result() for future in futures]),
                    source.labels[indices.start : indices.stop],
                    None,
                )


class DatasetRows(Rows):
    """A `tf.data.Dataset`, `PyDataset` or `DataLoader`: one pass over it, its batches as they come."""

    def __init__(self, dataset, shuffle: bool = False):
        self._dataset, self.shuffles = dataset, shuffle
        first = inputs.first_batch(dataset)
        if first is None:
            raise DataError("Each batch must be a pair of one image array and one label array, `(images, labels)`.")
        self.batch_size = len(first[0])

    def batches(self, start: int, size: int):
        kept, rows = [], 0
        for batch in self._passes():
            arrays = [_numpy(array) for array in batch]
            if len({len(array) for array in arrays}) != 1:
                lengths = ", ".join(str(len(array)) for array in arrays)
                raise DataError(f"A batch must hold as many labels as images. Received: lengths {lengths}")
            kept.append((arrays[0], arrays[1], arrays[2] if len(arrays) > 2 else None))
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


def rows_of(data, *, batch_size: int | None = None, shuffle: bool | None = None) -> Rows | None:
    """Return the `Rows` of training or validation data, or `None` for what can be read only once (a generator).

    Args:
        data: a `(x, y)` or `(x, y, sample_weight)` tuple, or a dataset.
        batch_size: for arrays.
        shuffle: what `fit` was told; `None` for what the data itself does.
    """
    source = inputs.find_source(data)
    if source is not None:
        rows = SourceRows(source)
        rows.shuffles = source.shuffle if shuffle is None else shuffle
        return rows
    pair = inputs.split_pair(data)
    if pair is not None:
        if not all(one is None or hasattr(one, "shape") for one in pair):
            return None
        weights = pair[2] if len(pair) > 2 else None
        return ArrayRows(pair[0], pair[1], weights, batch_size, True if shuffle is None else shuffle)
    if hasattr(data, "__next__") or inputs.first_batch(data) is None:
        return None
    return DatasetRows(data, bool(shuffle))


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


class Fingerprint:
    """A digest of images and labels that doesn't depend on their order, for datasets without an identity."""

    def __init__(self):
        self._total, self._count = 0, 0

    def add(self, images, labels, weights=None) -> None:
        for index in range(len(images)):
            digest = hashlib.blake2b(np.ascontiguousarray(images[index]), digest_size=16)
            digest.update(np.ascontiguousarray(labels[index]).astype("float64").tobytes())
            if weights is not None:
                digest.update(np.float64(weights[index]).tobytes())
            self._total = (self._total + int.from_bytes(digest.digest(), "little")) % 2**128
        self._count += len(images)

    def hexdigest(self) -> str:
        return f"{self._total:032x}-{self._count}"


def _numpy(array) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else np.asarray(keras.ops.convert_to_numpy(array))


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
