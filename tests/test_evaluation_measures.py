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


def test_labels_equal_those_counted_by_hand(colours):
    """Each image's three probabilities are its own, the true labels those of `true`."""
    said = np.array([[0.9, 0.2, 0.7], [0.8, 0.6, 0.1], [0.3, 0.6, 0.4], [0.6, 0.1, 0.2]])
    true = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    found = evaluate(echo(3, "multi-label"), (as_pixels(said), true), NAMES, mistakes=2)
    assert (found.task, found.count) == ("multi-label", 4)
    red, green, blue = found.to_rows()
    counted = {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "accuracy": 0.5, "support": 3}
    # The image that isn't red comes third of four
    assert red == {"name": "red", "average_precision": pytest.approx((1 + 1 + 3 / 4) / 3), **counted}
    assert green["average_precision"] == pytest.approx(0.5)  # with another image of the same probability
    assert (green["precision"], green["recall"], green["support"]) == (0.5, 1.0, 1)
    assert [blue[name] for name in ("precision", "recall", "average_precision")] == [0.0, None, None]
    assert found.scores["average_precision"] == pytest.approx((red["average_precision"] + 0.5) / 2)
    assert found.scores["accuracy"] == pytest.approx(8 / 12)
    # Always the share: 0.75, 0.25 and 0
    assert found.baseline["average_precision"] == pytest.approx(0.5)
    assert found.baseline["accuracy"] == pytest.approx((0.75 + 0.75 + 1) / 3)
    # "blue" at 0.7, and "red" missed at 0.3
    assert found.mistakes.positions.tolist() == [0, 2]
    assert "on 4 images (always the mean of these images: average precision 0.500" in str(found)
    for batch in (1, 3):
        again = evaluate(echo(3, "multi-label"), Batches(as_pixels(said), true, batch), NAMES, views=2)
        assert again.scores == pytest.approx(found.scores)


def test_numbers_equal_those_counted_by_hand():
    said, true = np.array([[1.0], [2.0], [4.0], [9.0]]), np.array([1.0, 3.0, 4.0, 4.0])
    model = echo(1, "regression")
    found = evaluate(model, (as_pixels(said), true), ["weight"], mistakes=9)
    mean, variance = 3, 1.5
    assert found.scores == pytest.approx({"mae": 1.5, "rmse": math.sqrt(6.5), "r2": 1 - 6.5 / variance})
    assert found.baseline == pytest.approx({"mae": np.abs(true - mean).mean(), "rmse": math.sqrt(variance), "r2": 0})
    assert found.to_rows() == [{"name": "weight", **found.scores, "support": 4}]
    assert found.mistakes.positions.tolist() == [3, 1]
    assert found.mistakes.labels.ravel().tolist() == [4.0, 3.0]
    assert "MAE 1.5, RMSE 2.55, R² -3.333 on 4 images" in str(found)
    constant = evaluate(model, (as_pixels(said[:2]), np.array([2.0, 2.0])), ["weight"])
    assert constant.scores["r2"] is None


def test_the_task_is_told_by_head_names_and_labels_or_given():
    one, three = echo(1, "regression"), echo(3, "regression")
    pixels = as_pixels(np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]]))
    assert evaluate(one, (pixels[..., :1].repeat(3, -1), np.array([0, 1])), ["no", "yes"]).task == "classification"
    assert evaluate(one, (pixels[..., :1].repeat(3, -1), np.array([0, 1])), ["grade"]).scores["mae"] == 1.0
    assert evaluate(three, (pixels, np.array([1, 0])), NAMES).accuracy == 1.0
    assert evaluate(three, (pixels, np.array([[0.5, 2, 1], [3, 0, 1]])), NAMES).task == "regression"
    rows = np.array([[0, 1, 0], [1, 0, 0]])
    assert evaluate(three, (pixels, rows), NAMES, task="regression").scores["mae"] == pytest.approx(5 / 6)
    with pytest.raises(ArgumentError, match="`task` must be one of"):
        evaluate(three, (pixels, rows), NAMES, task="ranking")


def as_pixels(values):
    """Return images, 2×2, of which the model `echo` says these values."""
    values = np.pad(values, ((0, 0), (0, 3 - values.shape[1])))
    return np.broadcast_to(values[:, None, None] * 20, (len(values), 2, 2, 3)).astype("float32")


def echo(units, task):
    """A model that says the brightness of its first channels, as probabilities or numbers."""
    inputs = keras.Input((2, 2, 3))
    x = keras.layers.Rescaling(1 / 20)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    if task == "multi-label":
        x = keras.ops.log(x) - keras.ops.log(1 - x)
    head = keras.layers.Dense(units, activation="sigmoid" if task == "multi-label" else None, use_bias=False)
    model = keras.Model(inputs, head(x))
    head.set_weights([np.eye(3)[:, :units]])
    return model


def test_a_model_that_takes_more_than_images_is_refused():
    inputs = [keras.Input((8, 8, 3)), keras.Input((2,))]
    flat = [keras.layers.Flatten()(one) for one in inputs]
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(keras.layers.Concatenate()(flat)))
    data = ((np.zeros((4, 8, 8, 3)), np.zeros((4, 2))), np.arange(4) % 2)
    with pytest.raises(ModelError, match=r"model\.evaluate.*model_inputs=2"):
        evaluate(model, data)


def test_class_names_must_be_a_list():
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
    )
    with pytest.raises(DataError, match=r"list of names.*class_names=3"):
        evaluate(model, (np.zeros((4, 8, 8, 3)), np.arange(4) % 2), 3)
