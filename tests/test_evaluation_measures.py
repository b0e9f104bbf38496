import math

import keras
import numpy as np
import pytest

from kerastl.errors import ArgumentError, DataError, ModelError
from kerastl.evaluation.measures import evaluate

NAMES = ["red", "green", "blue"]


class Batches(keras.utils.PyDataset):
    def __init__(self, images, labels, size):
        super().__init__()
        self.images, self.labels, self.size = images, labels, size

    def __len__(self):
        return math.ceil(len(self.images) / self.size)

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return self.images[part], self.labels[part]


def test_scores_equal_those_counted_by_hand(colours, labelled):
    found = evaluate(colours, labelled, NAMES)
    assert found.confusion_matrix.tolist() == [[3, 0, 0], [1, 4, 0], [0, 2, 0]]
    assert found.accuracy == pytest.approx(0.7)
    assert found.standard_error == pytest.approx(math.sqrt(0.7 * 0.3 / 10))
    assert (found.majority_class, found.majority_baseline) == ("green", 0.5)
    red, green, blue = found.per_class
    assert (red.precision, red.recall, red.f1, red.support) == (0.75, 1.0, pytest.approx(6 / 7), 3)
    assert (green.precision, green.recall, green.f1) == (pytest.approx(4 / 6), 0.8, pytest.approx(8 / 11))
    assert (blue.precision, blue.recall, blue.f1, blue.support) == (None, 0.0, 0.0, 2)
    assert "accuracy 0.700 ± 0.145 on 10 images" in str(found)
    assert "<td" in found._repr_html_()


def test_a_class_that_never_occurs_has_no_scores(colours, labelled):
    images, labels = labelled
    blue = evaluate(colours, (images[:4], labels[:4]), NAMES).per_class[2]
    assert (blue.precision, blue.recall, blue.f1, blue.support) == (None, None, None, 0)


def test_every_form_of_data_gives_the_same(colours, labelled):
    tf = pytest.importorskip("tensorflow")
    images, labels = labelled
    one_hot = np.eye(3)[labels]
    forms = [
        (images.astype("float32"), labels[:, None]),
        (images, one_hot),
        Batches(images, labels, 3),
        tf.data.Dataset.from_tensor_slices((images, labels)).batch(4),
        iter([(images[:5], labels[:5]), (images[5:], labels[5:]), (images[:0], labels[:0])]),
    ]
    expected = evaluate(colours, labelled, NAMES)
    for data in forms:
        found = evaluate(colours, data, NAMES)
        assert found.confusion_matrix.tolist() == expected.confusion_matrix.tolist()
        assert found.mistakes.positions.tolist() == expected.mistakes.positions.tolist()


def test_the_most_confident_mistakes_are_kept_across_batches(colours, labelled):
    images, labels = labelled
    for size in (1, 3, 10):
        kept = evaluate(colours, Batches(images, labels, size), NAMES, mistakes=2).mistakes
        assert kept.positions.tolist() == [9, 3]
        assert kept.labels.tolist() == [2, 1]
        assert kept.probabilities.argmax(axis=1).tolist() == [1, 0]
        assert [int(image.max()) for image in kept.images] == [255, 230]
    assert evaluate(colours, labelled, NAMES, mistakes=0).mistakes.images == []


def test_what_can_t_be_evaluated(colours, labelled):
    images, labels = labelled
    with pytest.raises(DataError, match="no images to evaluate"):
        evaluate(colours, [], NAMES)
    with pytest.raises(DataError, match="from 0 to 2"):
        evaluate(colours, (images, labels + 1), NAMES)
    with pytest.raises(DataError, match="8 × 8"):
        evaluate(colours, (np.zeros((2, 9, 9, 3)), labels[:2]), NAMES)
    with pytest.raises(DataError, match="which is 2"):
        evaluate(colours, labelled, NAMES[:2])
    with pytest.raises(DataError, match="pair of arrays"):
        evaluate(colours, 3, NAMES)
    with pytest.raises(DataError, match=r"batches of \(images, labels\)"):
        evaluate(colours, [images], NAMES)
    with pytest.raises(ArgumentError, match="views"):
        evaluate(colours, labelled, NAMES, views=3)
    with pytest.raises(ModelError, match="build_classifier"):
        evaluate(keras.Model(colours.input, colours.layers[1].output), labelled)
    with pytest.warns(UserWarning, match="look scaled"):
        evaluate(colours, (images / 255, labels), NAMES)
