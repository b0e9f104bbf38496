"""Several labels an image, and numbers: the head, the loss it gets, and the recipe, plain and cached, up to the result."""

import re

import keras
import numpy as np
import pytest
from PIL import Image

import kerastl
from kerastl.data.batches import find_source
from kerastl.data.labels import label_kind
from kerastl.errors import ArgumentError, DataError
from kerastl.features.plan import CacheOptions
from kerastl.models import freezing
from kerastl.models.compiling import task_of
from tests import models

QUIET = {"verbose": 0}
EXACT = CacheOptions(dtype="float32", engine="keras")


def build(units, task, **options):
    options = {"preprocessing": lambda pixels: (pixels - 127.5) / 127.5, "dropout": 0, **options}
    return kerastl.build_classifier(models.tiny_backbone(blocks=1), units, task=task, **options)


@pytest.fixture
def channels():
    """Images whose three channels are dark or bright, the labels, in two parts; the number is their mean brightness."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, (64, 3)).astype("float32")
    images = generator.normal(60 + 130 * labels[:, None, None], 8, (64, 32, 32, 3)).clip(0, 255).astype("float32")
    return (images[:48], labels[:48]), (images[48:], labels[48:])


def as_numbers(data):
    return tuple((images, images.mean(axis=(1, 2, 3)) / 255) for images, _ in data)


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_from_a_labels_file_to_a_model_that_learned(task, channels, tmp_path):
    """Through both phases, with the frozen part run once."""
    images, labels = map(np.concatenate, zip(*channels, strict=True))
    header = "file,red,green,blue" if task == "multi-label" else "file,light"
    rows = labels.astype(int).tolist() if task == "multi-label" else labels.mean(axis=1, keepdims=True).tolist()
    for number, image in enumerate(images):
        Image.fromarray(image.astype("uint8")).save(tmp_path / f"{number}.png")
    lines = [header, *(f"{number},{','.join(map(str, row))}" for number, row in enumerate(rows))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = kerastl.load_images(tmp_path, labels="labels.csv", image_size=32, batch_size=8, test=0, verbose=0)
    model = build(len(data.class_names), task)
    epochs = {"head_epochs": 25, "fine_tune_epochs": 3, "head_learning_rate": 0.05, "patience": None}
    result = kerastl.transfer_learn(model, data.train, data.validation, last_blocks=1, cache=EXACT, **epochs, **QUIET)
    held = find_source(data.validation).labels
    trivial = np.log(2) if task == "multi-label" else held.var()
    assert result.best_value < 0.5 * trivial
    assert set(result.seconds) == {"extraction", "head", "fine_tune"}
    logs = model.evaluate(data.validation, return_dict=True, **QUIET)
    assert logs["loss"] == pytest.approx(result.best_value, rel=1e-3)
    predicted = model.predict(data.validation, **QUIET)
    assert task_of(model) == data.task == task
    if task == "multi-label":
        assert type(model.loss) is keras.losses.BinaryCrossentropy
        assert logs["accuracy"] == pytest.approx(((predicted > 0.5) == held).mean())
        assert result.head_accuracy == result.head.history["val_accuracy"][result.head.best_epoch - 1]
    else:
        assert type(model.loss) is keras.losses.MeanSquaredError
        assert logs["mae"] == pytest.approx(abs(predicted[:, 0] - held).mean(), rel=1e-4)
        assert result.head_accuracy is None


def test_a_worse_fine_tuning_is_undone_where_lower_is_better(channels):
    train, validation = as_numbers(channels)
    model = build(1, "regression")
    kerastl.train_head(model, train, validation, epochs=4, learning_rate=0.03, monitor="val_mae", **QUIET)
    before, start = models.snapshot(model), model.evaluate(*validation, return_dict=True, **QUIET)["mae"]
    options = {"epochs": 3, "learning_rate": 5.0, "last_blocks": 1, "monitor": "val_mae", **QUIET}
    history = kerastl.fine_tune(model, train, validation, **options)
    assert min(history.history["val_mae"]) > start
    assert history.best_epoch == 0
    assert not models.changed(before, model)


@pytest.mark.parametrize("task", ["multi-label", "regression"])
@pytest.mark.parametrize("choice", [{}, {"last_blocks": 1}])
def test_a_cached_run_equals_a_plain_one(task, choice, channels):
    train, validation = channels if task == "multi-label" else as_numbers(channels)
    pair = [build(3 if task == "multi-label" else 1, task) for _ in range(2)]
    pair[1].set_weights(pair[0].get_weights())
    histories = []
    for model, cache in zip(pair, (EXACT, False), strict=True):
        freezing.unfreeze(model, **choice) if choice else freezing.freeze(model)
        loss, metric = ("binary_crossentropy", "binary_accuracy") if task == "multi-label" else ("mse", "mae")
        model.compile(keras.optimizers.SGD(0.05), loss, metrics=[metric])
        arguments = {"epochs": 3, "batch_size": 12, "shuffle": False, "validation_data": validation}
        histories.append(kerastl.fit(model, *train, cache=cache, **arguments, **QUIET).history)
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-4, atol=1e-5)
    for one, other in zip(*(model.get_weights() for model in pair), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def compiled(model, loss):
    model.compile("sgd", loss)
    return model


def head(units, activation):
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(units, activation=activation)(inputs))


@pytest.mark.parametrize(
    ("units", "activation", "loss", "task"),
    [
        (3, "softmax", None, "classification"),
        (3, "softmax", "mse", "classification"),
        (1, "sigmoid", None, "classification"),
        (3, "sigmoid", None, "multi-label"),
        (3, None, None, "classification"),
        (3, None, keras.losses.SparseCategoricalCrossentropy(from_logits=True), "classification"),
        (3, None, keras.losses.BinaryFocalCrossentropy(from_logits=True), "multi-label"),
        (3, None, {"dense": "mae"}, "regression"),
        (3, "relu", keras.losses.Huber(), "regression"),
        (1, None, None, "regression"),
        (1, None, "mse", "regression"),
        (1, None, lambda labels, outputs: 0.0, "regression"),
        (1, None, keras.losses.BinaryCrossentropy(from_logits=True), "classification"),
        (1, "tanh", "hinge", "classification"),
    ],
)
def test_the_task_of_a_model_is_that_of_its_head_and_loss(units, activation, loss, task):
    model = head(units, activation)
    if isinstance(loss, dict):
        loss = {model.output_names[0]: loss["dense"]}
    assert task_of(compiled(model, loss) if loss else model) == task


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (np.array([[0.5, 2.0, -1.0]]), "regression"),
        (np.array([[0.5, 0.2, 0.9]]), "regression"),
        (np.array([[640, 480, 3]]), "regression"),
        (np.array([[1, 0, 1]]), "classification"),
        (np.array([[0.9, 0.05, 0.05]]), "classification"),
        (np.array([2]), "classification"),
    ],
)
def test_labels_tell_what_several_linear_units_are_for(labels, task):
    assert task_of(head(3, None), labels) == task


@pytest.mark.parametrize(
    ("units", "task", "labels", "message"),
    [
        (3, "classification", np.tile([1, 0, 1], (16, 1)), "add up to 1"),
        (3, "classification", np.zeros((16, 3)), "add up to 1"),
        (3, "classification", np.full((16, 3), 4.5), "add up to 1"),
        (3, "classification", np.linspace(0, 1, 16), "whole numbers from 0 to 2"),
        (3, "classification", np.arange(16) % 4, "whole numbers from 0 to 2"),
        (3, "classification", np.eye(4)[np.arange(16) % 4], "the model has 3 classes"),
        (3, "multi-label", np.arange(16) % 3, r"takes labels `\(count, 3\)`"),
        (3, "multi-label", np.linspace(0, 1, 16)[:, None], r"takes labels `\(count, 3\)`"),
        (3, "multi-label", np.tile([1, 1], (16, 1)), r"takes labels `\(count, 3\)`"),
        (3, "multi-label", np.full((16, 3), 4.5), "1 where the image has the label"),
        (1, "regression", np.full((16, 2), 4.5), r"takes labels `\(count, 1\)`"),
    ],
)
def test_labels_that_do_not_fit_the_head_say_which_head_to_build(units, task, labels, message, pixels):
    with pytest.raises(DataError, match=message) as caught:
        kerastl.train_head(build(units, task), (pixels[0], labels), None, **QUIET)
    (call,) = re.findall(r"`(build_classifier\(.*?\))`", str(caught.value))
    names = {"build_classifier": kerastl.build_classifier, "backbone": models.tiny_backbone(blocks=1)}
    model = eval(call.removesuffix(")") + ", preprocessing=None)", names)
    label_kind(labels, model.output.shape[-1], task_of(model, labels))  # raises where they don't fit
    assert model.output.shape[-1] == max(np.shape(labels)[1:] or [1]) or task_of(model) == "classification"


def test_numbers_for_several_units_and_their_limits(pixels):
    model, labels = build(2, "regression"), np.linspace(-3, 3, 32).reshape(16, 2)
    kerastl.train_head(model, (pixels[0], labels), None, epochs=1, **QUIET)
    assert type(model.loss) is keras.losses.MeanSquaredError
    assert label_kind(labels, 2, "regression") == "number"
    with pytest.raises(DataError, match=r"takes labels `\(count, 2\)`.*build_classifier\(backbone, 1, task="):
        kerastl.train_head(model, (pixels[0], labels[:, 0]), None, epochs=1, **QUIET)
    with pytest.raises(DataError, match="finite numbers"):
        kerastl.train_head(build(1, "regression"), (pixels[0], np.full(16, np.nan)), None, **QUIET)


def test_class_weights_are_refused_with_what_to_pass_instead(channels):
    for task, class_weight in (("regression", "balanced"), ("multi-label", {0: 2.0})):
        train, validation = channels if task == "multi-label" else as_numbers(channels)
        model = build(3 if task == "multi-label" else 1, task)
        with pytest.raises(ArgumentError, match=rf"is for {task}\. .*`train=\(images, labels, sample_weight\)`"):
            kerastl.train_head(model, train, validation, class_weight=class_weight, **QUIET)
    weights = np.linspace(0, 1, len(train[0]), dtype="float32")
    history = kerastl.train_head(model, (*train, weights), validation, epochs=1, **QUIET)
    assert np.isfinite(history.best_value)
