"""The head that is fitted on the stored features instead of trained, and when it is trained after all."""

import keras
import numpy as np
import pytest
from keras import layers

from kerastl.errors import ArgumentError
from kerastl.models.heads import build_classifier
from kerastl.training import session
from kerastl.training.linear import fit_sigmoid, fit_softmax
from kerastl.training.recipe import transfer_learn
from tests import models

pytestmark = models.EAGERLY
QUIET = {"verbose": 0, "fine_tune_epochs": 0, "seed": 1}


@pytest.fixture
def data():
    """Images whose class is their brightness, more of the first class than of the others."""
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [30, 10, 8])
    brightness = (labels * 20.0 + 90 + generator.normal(0, 12, 48))[:, None, None, None]
    images = generator.normal(brightness, 25, (48, 16, 16, 3)).clip(0, 255).astype("uint8")
    order = generator.permutation(48)
    images, labels = images[order], labels[order]
    return (images[:36], labels[:36]), (images[36:], labels[36:])


def model_with(head: list, **options) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(models.tiny_backbone(16, blocks=1, **options)(inputs / 255))
    for layer in head:
        x = layer(x)
    return keras.Model(inputs, x)


def features_of(model, images) -> np.ndarray:
    pooled = keras.Model(model.inputs[0], model.get_layer("pool").output)
    return keras.ops.convert_to_numpy(pooled(images.astype("float32"), training=False))


def test_a_dense_softmax_layer_gets_the_weights_of_logistic_regression(data):
    model = model_with([layers.Dropout(0.5), layers.Dense(3, activation="softmax", name="predictions")])
    result = transfer_learn(model, *data, cache=True, **QUIET)
    fitted = fit_softmax(features_of(model, data[0][0]), data[0][1])
    outputs = keras.ops.convert_to_numpy(model(data[1][0].astype("float32"), training=False))
    np.testing.assert_allclose(outputs, fitted.outputs(features_of(model, data[1][0])), atol=0.02)  # 16-bit features
    assert set(result.head.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert (result.best_phase, result.best_epoch, len(result.head.epoch)) == ("head", 1, 1)
    assert result.head_accuracy == pytest.approx((outputs.argmax(axis=1) == data[1][1]).mean())


def test_class_weights_reach_the_fit(data):
    (images, labels), _ = data
    model = model_with([layers.Dense(3, activation="softmax", name="predictions")])
    held = (images[:, :, ::-1], labels)  # judged by the same classes: an unweighted loss could prefer the start
    transfer_learn(model, data[0], held, class_weight={0: 1.0, 1: 1.0, 2: 5.0}, cache=True, **QUIET)
    outputs = keras.ops.convert_to_numpy(model(images.astype("float32"), training=False))
    plain, weighted = (
        fit_softmax(features_of(model, images), labels, sample_weights=weights).outputs(features_of(model, images))
        for weights in (None, np.where(labels == 2, 5.0, 1.0))
    )
    assert np.abs(outputs - weighted).max() < 0.05 < np.abs(outputs - plain).max()


def test_a_fitted_head_stays_though_a_random_one_has_the_lower_loss(data):
    model = model_with([layers.Dense(3, activation="softmax", name="predictions")])
    model.layers[-1].set_weights([np.zeros_like(one) for one in model.layers[-1].get_weights()])
    images, labels = data[0]
    few = (images[:9, :, ::-1], np.concatenate([labels[:6], (labels[6:9] + 1) % 3]))  # a third of them labelled wrongly
    result = transfer_learn(model, data[0], few, class_weight={0: 1.0, 1: 1.0, 2: 1e4}, cache=True, **QUIET)
    assert result.head.history["val_loss"][0] > np.log(3)
    assert (result.best_phase, result.head.best_epoch) == ("head", 1)


@pytest.mark.parametrize("kind", ["one unit", "several labels", "one-hot", "logits"])
def test_other_heads_and_labels_are_fitted_too(data, kind):
    (images, labels), (held, held_labels) = data
    activation = {"one-hot": "softmax", "logits": None}.get(kind, "sigmoid")
    dense = layers.Dense({"one unit": 1, "several labels": 2}.get(kind, 3), activation=activation)
    change = {
        "one unit": lambda one: (one > 0).astype("int32"),
        "several labels": lambda one: np.stack([one > 0, one > 1], axis=1).astype("float32"),
        "one-hot": lambda one: np.eye(3, dtype="float32")[one],
        "logits": lambda one: one,
    }[kind]
    model = model_with([dense])
    result = transfer_learn(model, (images, change(labels)), (held, change(held_labels)), cache=True, **QUIET)
    assert len(result.head.epoch) == 1
    features = features_of(model, images)
    if dense.units > 2:
        fitted = fit_softmax(features, labels)
        kernel, found = fitted.kernel, keras.ops.convert_to_numpy(dense.kernel)
        kernel, found = kernel - kernel.mean(axis=1, keepdims=True), found - found.mean(axis=1, keepdims=True)
    else:
        kernel, found = fit_sigmoid(features, change(labels)).kernel, keras.ops.convert_to_numpy(dense.kernel)
    assert np.abs(found - kernel).max() < 0.05 * np.abs(kernel).max()


@pytest.mark.parametrize(
    ("head", "options", "epochs"),
    [
        ([layers.Dense(4, activation="relu"), layers.Dense(3, activation="softmax")], {}, (1, 40)),
        ([layers.Dense(3, activation="softmax")], {"head_epochs": 2}, (2, 2)),
        ([layers.Dense(3, activation="softmax")], {"cache": False}, (1, 10)),
        ([layers.Dense(1)], {}, (1, 40)),
    ],
    ids=["hidden units", "epochs given", "no store", "numbers"],
)
def test_all_others_are_trained_until_validation_stops_improving(data, head, options, epochs):
    model = model_with([type(one).from_config(one.get_config()) for one in head])
    result = transfer_learn(model, *data, **{"cache": True, "head_learning_rate": 0.02, **QUIET, **options})
    losses = result.head.history["val_loss"]
    assert epochs[0] <= len(losses) <= epochs[1]
    if "head_epochs" not in options and len(losses) < epochs[1]:
        assert len(losses) == 1 + int(np.argmin(losses)) + 3 or min(losses[-3:]) > min(losses)


def test_a_loss_of_your_own_is_trained_with(data):
    model = model_with([layers.Dense(3, activation="softmax")])
    loss = keras.losses.CategoricalFocalCrossentropy()
    model.compile("adam", loss, metrics=["accuracy"])
    hot = [(images, np.eye(3, dtype="float32")[labels]) for images, labels in data]
    result = transfer_learn(model, *hot, cache=True, **QUIET)
    assert len(result.head.epoch) > 1
    assert model.loss is loss


def test_callbacks_see_the_fit_as_one_epoch_and_checkpoints_reload(data, tmp_path):
    model, seen = model_with([layers.Dense(3, activation="softmax")]), []
    note = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(("begin", epoch)),
        on_epoch_end=lambda epoch, logs: seen.append(("end", epoch, sorted(logs))),
    )
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_loss", save_best_only=True)
    transfer_learn(model, *data, callbacks=[note, checkpoint], cache=True, **QUIET)
    assert seen == [("begin", 0), ("end", 0, ["accuracy", "loss", "val_accuracy", "val_loss"])]
    again = keras.models.load_model(tmp_path / "best.keras")
    np.testing.assert_allclose(again.predict(data[1][0], verbose=0), model.predict(data[1][0], verbose=0), atol=1e-6)


def test_a_run_that_was_over_its_head_does_not_fit_it_again(data, tmp_path):
    run = {**QUIET, "fine_tune_epochs": 1, "last_blocks": 1, "run_folder": tmp_path / "run"}

    class Stop(keras.callbacks.Callback):
        begun = 0

        def on_train_begin(self, logs=None):
            self.begun += 1
            if self.begun == 2:
                raise KeyboardInterrupt

    fresh = [layers.Dense(3, activation="softmax", name="predictions")]
    with pytest.raises(KeyboardInterrupt):
        transfer_learn(model_with(fresh), *data, callbacks=[Stop()], cache=True, **run)
    assert [one.name for one in (tmp_path / "run").glob("head-*.npz")] == ["head-0001.npz"]
    model = model_with([layers.Dense(3, activation="softmax", name="predictions")])
    result = transfer_learn(model, *data, callbacks=[keras.callbacks.Callback()], cache=True, **run)
    whole = model_with([layers.Dense(3, activation="softmax", name="predictions")])
    once = transfer_learn(whole, *data, cache=True, **{**run, "run_folder": tmp_path / "whole"})
    assert result.head.history == once.head.history


@pytest.mark.parametrize(
    ("augmentation", "options", "views"),
    [
        (None, {}, 4),
        (None, {"views": 1}, 1),
        (None, {"views": 3}, "views=3 needs random layers"),
        ("strong", {}, 4),
        (layers.RandomFlip("horizontal"), {}, 2),
    ],
)
def test_views_are_made_where_nobody_says_how_many(data, monkeypatch, augmentation, options, views):
    """The recipe's own leave no layer in the model, and differ; of mirror images alone there are two."""
    seen, original = [], session.extract

    def watched(trunk, rows, *, views, **rest):
        store = original(trunk, rows, views=views, **rest)
        seen.append((views, store.read("features_0", slice(0, views))))
        return store

    monkeypatch.setattr(session, "extract", watched)
    keras.utils.set_random_seed(0)
    head = {"augmentation": augmentation, "preprocessing": lambda pixels: pixels / 255, "dropout": 0.0}
    model = build_classifier(models.tiny_backbone(16, blocks=1), 3, **head)
    before = [layer.name for layer in model.layers]
    if isinstance(views, str):
        with pytest.raises(ArgumentError, match=views):
            transfer_learn(model, *data, cache=True, **{**QUIET, **options})
        return
    transfer_learn(model, *data, cache=True, **{**QUIET, **options})
    assert [count for count, _ in seen] == [views, 1]
    assert len({row.tobytes() for row in seen[0][1]}) == views
    assert [layer.name for layer in model.layers] == before


def test_data_that_changes_is_trained_on_as_it_comes(data):
    """No view can be kept of it, and the recipe's own are left out without a word of theirs."""
    tf = pytest.importorskip("tensorflow")
    (images, labels), validation = data
    dataset = tf.data.Dataset.from_tensor_slices((images.astype("float32"), labels)).batch(12)
    dataset = dataset.map(lambda one, label: (one + tf.random.uniform(tf.shape(one), 0, 9), label))
    result = transfer_learn(model_with([layers.Dense(3, activation="softmax")]), dataset, validation, **QUIET)
    assert 1 <= len(result.head.epoch) <= 10
