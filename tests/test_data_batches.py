"""The one adapter: the same images, labels and weights out of everything that `fit` takes."""

import re

import keras
import numpy as np
import pytest

from kerastl.data.batches import adapt, rows_of
from kerastl.errors import DataError

IMAGES = np.arange(10 * 4 * 4 * 3).reshape(10, 4, 4, 3).astype("float32")
LABELS = np.arange(10) % 3
BATCHES = [(IMAGES[start : start + 4], LABELS[start : start + 4]) for start in (0, 4, 8)]


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return len(BATCHES)

    def __getitem__(self, index):
        return BATCHES[index]


class Refilled(Sequence):
    """Fills the memory of its first batch again for every other one."""

    images, labels = np.empty_like(IMAGES[:4]), np.empty_like(LABELS[:4])

    def __getitem__(self, index):
        images, labels = BATCHES[index]
        self.images[: len(images)], self.labels[: len(images)] = images, labels
        return self.images[: len(images)], self.labels[: len(images)]


class RefilledLoader:
    """A loader of the same habit, that is iterated over."""

    def __len__(self):
        return len(BATCHES)

    def __iter__(self):
        batches = Refilled()
        return (batches[index] for index in range(len(self)))


def tf_dataset():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4)


KINDS = {
    "pair": lambda: (IMAGES, LABELS),
    "tf": tf_dataset,
    "PyDataset": Sequence,
    "PyDataset that fills its memory again": Refilled,
    "loader": lambda: list(BATCHES),
    "loader that fills its memory again": RefilledLoader,
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("size", [None, 3, 20])
def test_every_kind_yields_the_same_rows(make, size):
    rows = rows_of(make(), **({"batch_size": 4} if make is KINDS["pair"] else {}))
    assert (rows.batch_count, rows.batch_size) == (3, 4)
    for _ in range(2):
        images, labels, weights = zip(*rows.batches(0, size), strict=True)
        assert len(images[0]) == min(size or 4, 10)
        np.testing.assert_array_equal(np.concatenate(images), IMAGES)
        np.testing.assert_array_equal(np.concatenate(labels), LABELS)
        assert set(weights) == {None}
    np.testing.assert_array_equal(rows.first[0], IMAGES[: len(rows.first[0])])
    np.testing.assert_array_equal(rows.labels, LABELS)


def counted_dataset():
    """Return a `tf.data.Dataset` that begins and ends by a `prefetch`, and lists of its passes that began, and that ended."""
    tf = pytest.importorskip("tensorflow")
    begun, ended = [], []

    def read():
        begun.append(1)
        yield from zip(IMAGES, LABELS, strict=True)
        ended.append(1)

    spec = (tf.TensorSpec(IMAGES.shape[1:], "float32"), tf.TensorSpec((), "int64"))
    return tf.data.Dataset.from_generator(read, output_signature=spec).batch(4).prefetch(2), begun, ended


@pytest.mark.parametrize("place", ["memory", "file"])
def test_no_pass_over_what_a_dataset_caches_is_broken_off(place, tmp_path):
    """TensorFlow may keep what was read by then as all of the data: one run in ten, after `prefetch` and under load."""
    dataset, begun, ended = counted_dataset()
    dataset = dataset.cache("" if place == "memory" else str(tmp_path / "cache")).prefetch(2)
    for _ in range(2):  # of each call that is given the dataset
        rows = adapt(dataset)
        assert len(rows.first[0]) == 4
        assert len(next(rows.batches(0, 1))[0]) == 1
        assert sum(len(images) for images, _, _ in rows.batches()) == 10
    assert (len(begun), len(ended)) == (1, 1)


def test_a_dataset_that_never_ends_is_not_waited_for():
    dataset, begun, ended = counted_dataset()
    for endless in (dataset.cache().repeat(), dataset.cache().repeat().filter(lambda *_: True)):
        assert len(next(adapt(endless).batches())[0]) == 4
    assert (len(begun), len(ended)) == (2, 2)  # what is cached was read to its end, each time
    endless = dataset.repeat().cache()
    assert len(next(adapt(endless).batches())[0]) == 4


def test_lists_of_images_are_read_in_batches_but_not_by_index():
    rows = adapt((list(IMAGES), list(LABELS)), batch_size=4)
    assert (rows.first, rows.skips, rows.batch_count) == (None, False, 3)
    images, labels, _ = zip(*rows.batches(), strict=True)
    np.testing.assert_array_equal(np.concatenate(images), IMAGES)
    np.testing.assert_array_equal(np.concatenate(labels), LABELS)


def test_nothing_of_a_generator_is_used_up():
    generator = iter(BATCHES)
    rows = adapt(generator)
    assert (rows.first, rows.labels, rows.batch_count, rows_of(generator)) == (None, None, None, None)
    np.testing.assert_array_equal(np.concatenate([images for images, _, _ in rows.batches()]), IMAGES)


def test_arrays_have_an_identity_that_labels_and_weights_are_part_of():
    weights = np.ones(10)
    identities = [
        adapt(IMAGES, LABELS).identity,
        adapt(IMAGES, LABELS + 1).identity,
        adapt(IMAGES, LABELS, weights).identity,
    ]
    assert len(set(identities)) == 3
    assert adapt((IMAGES, LABELS, weights)).identity == identities[2]
    assert adapt(Sequence()).identity is None


@pytest.mark.parametrize("data", [(IMAGES, LABELS[:5]), (IMAGES, LABELS, np.ones(3)), 5])
def test_what_is_no_data_is_refused(data):
    with pytest.raises(DataError):
        adapt(data)


def test_a_batch_with_too_few_labels_is_refused():
    with pytest.raises(DataError, match=r"shapes=\[\(4, 4, 4, 3\), \(2,\)\]"):
        list(adapt([(IMAGES[:4], LABELS[:2])]).batches())


@pytest.mark.parametrize("label", [1, [0.0, 1.0, 0.0]])
def test_a_dataset_without_batches_is_told_of_and_mended_by_the_line_in_the_message(label):
    images, labels = np.zeros((6, 8, 8, 3), "float32"), np.array([label] * 6)
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    for read in (lambda: next(adapt(data).batches()), lambda: adapt(data).labels):
        with pytest.raises(DataError, match="an axis for the batch") as error:
            read()
    mended = eval(re.search(r"by `(.*?)`", str(error.value))[1], {"data": data})
    np.testing.assert_array_equal(adapt(mended).labels, labels)


def test_a_path_is_no_data():
    with pytest.raises(DataError, match=r"kerastl\.load_images"):
        adapt("flowers")
