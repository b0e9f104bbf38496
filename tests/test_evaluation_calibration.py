"""Temperatures that are known are found, folding them in changes nothing else, and what can't take one is refused."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl.errors import ArgumentError, DataError, KerastlWarning, ModelError
from kerastl.evaluation.calibration import reliability
from kerastl.evaluation.probabilities import decide
from kerastl.training.temperature import find_temperature, least_log_losses, log_losses, scale


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def loss_of(probabilities, labels):
    return log_losses(probabilities, labels).mean()


def drawn(count=4000, classes=4, seed=0):
    """Logits, and labels drawn from their softmax: probabilities that are true."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, classes))
    labels = (softmax(logits).cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    return logits, np.minimum(labels, classes - 1)


@pytest.mark.parametrize("known", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found_and_mends_the_error(known):
    logits, labels = drawn()
    probabilities = softmax(logits * known)
    found = find_temperature(probabilities, labels)
    assert found == pytest.approx(known, rel=0.05)
    scaled = scale(probabilities, found, labels)
    np.testing.assert_allclose(scaled, softmax(logits * known / found), atol=1e-12)
    before, after = (reliability(one, labels).error for one in (probabilities, scaled))
    assert after < 0.025
    assert before > 0.08 or known == 1.0
    assert loss_of(scaled, labels) <= loss_of(probabilities, labels)
    nearby = [loss_of(scale(probabilities, found * factor, labels), labels) for factor in (0.98, 1.02)]
    assert loss_of(scaled, labels) < min(nearby)


def test_each_of_several_labels_has_its_own_temperature():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (6000, 2))
    labels = random.random(logits.shape) < 1 / (1 + np.exp(-logits))
    probabilities = 1 / (1 + np.exp(-logits * [0.5, 4.0]))
    found = find_temperature(probabilities, labels)
    np.testing.assert_allclose(found, [0.5, 4.0], rtol=0.08)
    np.testing.assert_allclose(
        scale(probabilities, found, labels), 1 / (1 + np.exp(-logits * [0.5, 4.0] / found)), atol=0.02
    )
    assert reliability(probabilities, labels).error > 0.05
    assert reliability(scale(probabilities, found, labels), labels).error < 0.02


def test_the_least_loss_is_that_at_the_best_temperature_or_at_the_last_one_tried():
    logits, labels = drawn(200)
    known = softmax(logits * 3.0)
    least = least_log_losses(known, labels)
    assert least.shape == (200,)
    assert least.mean() == pytest.approx(loss_of(scale(known, find_temperature(known, labels), labels), labels))
    assert least_log_losses(softmax(logits), labels).mean() == pytest.approx(least.mean())
    right, wrong = (softmax(np.eye(4)[(labels + shift) % 4]) for shift in (0, 1))
    assert least_log_losses(right, labels).mean() < 1e-9
    assert least_log_losses(wrong, labels).mean() == pytest.approx(np.log(4), rel=0.01)
    several = least_log_losses(np.array([[0.9, 0.2], [0.4, 0.4], [0.2, 0.8]]), np.array([[1, 1], [0, 0], [0, 1]]))
    assert several.shape == (3,)


def test_the_calibration_error_is_that_counted_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.92, 0.08], [0.35, 0.65], [1.0, 0.0]])
    found = reliability(probabilities, [0, 1, 1, 0])
    assert found.count.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 3]
    assert found.accuracy[[6, 9]] == pytest.approx([1, 2 / 3])
    assert found.confidence[[6, 9]] == pytest.approx([0.65, 2.87 / 3])
    assert found.error == pytest.approx((0.35 + 0.87) / 4)
    assert np.isnan(found.accuracy[0])
    labels = reliability(np.array([0.1, 0.3, 0.9]), [0, 1, 1], bins=2)  # of one label: whether the image has it
    assert labels.error == pytest.approx((2 * abs(0.2 - 0.5) + 0.1) / 3)
    assert loss_of(probabilities, [0, 1, 1, 0]) == pytest.approx(-np.log([0.95, 0.08, 0.65, 1]).mean())


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [(np.ones((3, 2)), [0, 1]), (np.ones((0, 2)), []), (np.full((2, 2), 1.5), [0, 1]), (np.full((1, 2), np.nan), [0])],
)
def test_arrays_that_can_t_be_judged(probabilities, labels):
    with pytest.raises(DataError, match="Expected probabilities"):
        reliability(probabilities, np.array(labels))


def head(units, activation, count=600, strength=6.0):
    """A model whose logits are the brightness of its channels, too sure of them, and images with labels drawn honestly."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (count, 3))
    inputs = keras.Input((4, 4, 3))
    pooled = layers.GlobalAveragePooling2D()(inputs / 127.5 - 1)
    last = activation if isinstance(activation, str) else None
    dense = layers.Dense(units, activation=last, name="last")
    outputs = dense(pooled)
    model = keras.Model(inputs, outputs if activation is last else activation(outputs))
    dense.set_weights([3 * strength * np.eye(3)[:, :units], np.full(units, 0.1)])
    images = np.broadcast_to((logits / strength + 1) * 127.5, (4, 4, count, 3)).transpose(2, 0, 1, 3)
    shown = logits[:, :units]
    if units == 3 and activation != "sigmoid":
        labels = np.minimum((softmax(shown).cumsum(axis=1) < random.random((count, 1))).sum(axis=1), 2)
    else:
        labels = (random.random(shown.shape) < 1 / (1 + np.exp(-shown))).astype(int).squeeze()
    return model, np.clip(images, 0, 255).astype("float32"), labels


@pytest.mark.parametrize(
    ("units", "activation", "task"),
    [
        (3, "softmax", None),
        (3, "sigmoid", "multi-label"),
        (1, "sigmoid", None),
        (3, "linear", "classification"),
        (3, layers.Softmax(), None),
        (3, keras.ops.softmax, None),
    ],
    ids=["softmax", "labels", "one unit", "logits", "softmax layer", "softmax operation"],
)
def test_the_temperature_is_folded_into_the_last_layer(units, activation, task, tmp_path):
    model, images, labels = head(units, activation)
    before = kerastl.predict(model, images, task=task).probabilities
    found = kerastl.calibrate(model, (images, labels), task=task)
    after = kerastl.predict(model, images, task=task).probabilities
    temperatures = np.array(list(found.temperature.values()) if task == "multi-label" else found.temperature)
    assert np.all(abs(temperatures - 3) < 0.7)
    assert found.error_after < 0.06 < found.error_before
    assert found.loss_after < found.loss_before
    # What float32 rounded to 1 before is known less well
    np.testing.assert_allclose(
        after, scale(before, temperatures, labels), atol=2e-5 if activation != "sigmoid" else 0.01
    )
    assert reliability(after, labels).error == pytest.approx(found.error_after, abs=2e-3)
    np.testing.assert_array_equal(decide(before, task or "classification"), decide(after, task or "classification"))
    assert "calibration error (10 bins)" in str(found)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(kerastl.predict(loaded, images, task=task).probabilities, after, atol=1e-6)
    again = kerastl.calibrate(model, (images, labels), task=task).temperature
    np.testing.assert_allclose(list(again.values()) if task == "multi-label" else again, 1, atol=0.02)


def test_images_that_are_all_right_tell_no_temperature():
    model, images, _ = head(3, "softmax")
    weights = model.get_weights()
    with pytest.warns(KerastlWarning, match="No temperature can be told"):
        found = kerastl.calibrate(model, (images, model.predict(images, verbose=0).argmax(axis=1)))
    assert found.temperature == 1.0
    for one, other in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_label_without_examples_is_named_and_left_alone():
    model, images, labels = head(3, "sigmoid")
    labels[:, 1] = model.predict(images, verbose=0)[:, 1] > 0.5
    with pytest.warns(KerastlWarning, match="No temperature of wet can be told"):
        found = kerastl.calibrate(model, (images, labels), ["hot", "wet", "old"])
    assert found.temperature["wet"] == 1.0
    assert found.temperature["hot"] > 2


def test_models_without_a_last_dense_layer_are_refused_unchanged():
    inputs = keras.Input((4, 4, 3))
    convolved = layers.Conv2D(3, 1)(inputs)
    pooled = layers.GlobalAveragePooling2D()(convolved)
    dense = layers.Dense(3)(layers.GlobalAveragePooling2D()(inputs))
    data = np.zeros((3, 4, 4, 3), "float32") + 5, np.arange(3)
    for outputs in (layers.Softmax()(pooled), layers.Softmax()(layers.ReLU()(dense)), layers.ReLU()(dense)):
        model = keras.Model(inputs, outputs)
        weights = model.get_weights()
        with pytest.raises(ModelError, match="ends in a dense layer with softmax"):
            kerastl.calibrate(model, data)
        assert all(np.array_equal(one, other) for one, other in zip(weights, model.get_weights(), strict=True))
    with pytest.raises(ArgumentError, match="Numbers have no probabilities"):
        kerastl.calibrate(keras.Model(inputs, dense), data, task="regression")
    lora = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(inputs)))
    lora.layers[-1].enable_lora(1)
    with pytest.raises(ModelError, match="ends in a dense layer"):
        kerastl.calibrate(lora, data)


def refused_unchanged(model, data, error, words, **options):
    weights = model.get_weights()
    with pytest.raises(error, match=words):
        kerastl.calibrate(model, data, **options)
    assert all(np.array_equal(one, other) for one, other in zip(weights, model.get_weights(), strict=True))


def test_a_task_that_the_last_activation_is_not_made_for_is_refused():
    model, images, labels = head(3, "sigmoid")
    classes = images, labels.argmax(axis=1)
    words = r"3 sigmoid units, made for the task 'multi-label'.*Received: task='classification'"
    refused_unchanged(model, classes, ArgumentError, words, task="classification")
    for activation in ("softmax", layers.Softmax()):
        model, images, labels = head(3, activation)
        words = r"3 softmax.*'classification'.*Received: task='multi-label'"
        refused_unchanged(model, (images, np.eye(3)[labels]), ArgumentError, words, task="multi-label")
    model, images, labels = head(3, "linear")  # logits are for either
    assert len(kerastl.calibrate(model, (images, np.eye(3)[labels]), task="multi-label").temperature) == 3


def test_a_last_layer_that_is_used_twice_is_refused():
    inputs = keras.Input((4, 4, 3))
    pooled, dense = layers.GlobalAveragePooling2D()(inputs / 255), layers.Dense(3, name="twice")
    part = keras.Input((3,))
    nested = keras.Model(part, dense(part))
    data = np.zeros((3, 4, 4, 3), "float32") + 5, np.arange(3)
    words = r"used 2 times.*Received: last_layer='twice'"
    for outputs in (dense(dense(pooled)), layers.Softmax()(nested(nested(pooled)))):
        refused_unchanged(keras.Model(inputs, outputs), data, ModelError, words, task="classification")
    with pytest.warns(KerastlWarning, match="No temperature"):  # uses in other models don't count
        kerastl.calibrate(keras.Model(inputs, dense(pooled)), data, task="classification")


def test_the_plot_shows_before_and_after_and_takes_arrays():
    model, images, labels = head(3, "softmax")
    figure = kerastl.plot_reliability(kerastl.calibrate(model, (images, labels), bins=5))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title.split(":")[0] for title in titles] == ["before", "after"]
    assert all(len(axes.patches) <= 6 for axes in figure.axes)  # five bars at most, and the steps
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = kerastl.plot_reliability(model.predict(images, verbose=0), labels)
        single.canvas.draw()
    assert single.axes[0].get_title(loc="left") == (
        f"calibration error {reliability(model.predict(images, verbose=0), labels).error:.3f}"
    )
