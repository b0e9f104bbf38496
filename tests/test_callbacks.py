import types

import keras
import numpy as np
import pytest

from kerastl.errors import ArgumentError
from kerastl.training import callbacks
from tests import models


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_loss", "min"),
        ("val_accuracy", "max"),
        ("auc", "max"),
        ("val_mean_io_u", "min"),
        ("val_f1_score", "max"),
        ("accuracy_loss", "min"),
        ("val_main_sparse_categorical_accuracy", "max"),
        ("mean_absolute_error", "min"),
    ],
)
def test_direction_of_a_monitored_name(name, expected):
    assert callbacks.direction(name) == expected


def test_early_stopping_is_a_fresh_keras_callback_that_restores_the_best_weights():
    first, second = callbacks.early_stopping(), callbacks.early_stopping(5, monitor="val_accuracy", min_delta=0.01)
    assert first is not second
    assert (first.patience, first.monitor, first.restore_best_weights) == (3, "val_loss", True)
    assert (second.patience, second.mode, second.min_delta) == (5, "max", 0.01)


@pytest.mark.parametrize("arguments", [{"patience": -1}, {"patience": 1.5}, {"min_delta": -1}, {"min_delta": "x"}])
def test_early_stopping_refuses_what_makes_no_sense(arguments):
    with pytest.raises(ArgumentError, match="Received"):
        callbacks.early_stopping(**arguments)


def drive(callback, model, values, monitor="val_loss"):
    """Feed logs by hand and give every epoch its own weights."""
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        model.get_layer("predictions").bias.assign(np.full(3, epoch + 1.0))
        callback.on_epoch_end(epoch, {monitor: value, "loss": value})


def bias(model) -> float:
    return float(keras.ops.convert_to_numpy(model.get_layer("predictions").bias)[0])


@pytest.mark.parametrize(
    ("start", "values", "best"),
    [
        (None, [3.0, 1.0, 2.0], 2),
        (0.5, [3.0, 1.0, 2.0], 0),
        (2.0, [3.0, 1.0, 0.5], 3),
        (1.0, [float("nan"), 1.0], 0),
        (float("nan"), [float("nan"), 1.0], 2),  # a start that can't be measured is beaten by any number
    ],
)
def test_best_weights_come_back_the_starting_state_included(start, values, best):
    model = models.flat()
    callback = callbacks.BestWeights("val_loss", start)
    drive(callback, model, values)
    callback.restore()
    assert (callback.best_epoch, bias(model)) == (best, float(best))


@pytest.mark.parametrize(
    ("start", "last", "kept"),
    [
        ({"val_accuracy": 0.9, "val_loss": 0.3}, {"val_accuracy": 0.91, "val_loss": 0.9}, "last"),
        ({"val_accuracy": 0.9, "val_loss": 0.3}, {"val_accuracy": 0.89, "val_loss": 0.1}, "start"),
        ({"val_accuracy": 0.9, "val_loss": 0.3}, {"val_accuracy": 0.9, "val_loss": 0.5}, "last"),
        ({"val_accuracy": 0.9, "val_loss": 0.3}, {"val_accuracy": 0.9, "val_loss": 0.7}, "start"),
        ({"val_loss": 0.3}, {"val_loss": 0.29}, "last"),
        ({"val_loss": 0.3}, {"val_loss": 0.31}, "start"),
        ({}, {}, "last"),
    ],
)
def test_the_start_comes_back_where_validation_was_better(start, last, kept):
    model = models.flat()
    callback = callbacks.BestWeights("val_loss", keep="last")
    callback.set_model(model)
    callback.begin(start)
    callback.on_train_begin()
    model.get_layer("predictions").bias.assign(np.full(3, 7.0))
    callback.on_epoch_end(0, {"loss": 1.0, **last})
    callback.settle()
    callback.restore()
    assert bias(model) == {"start": 0.0, "last": 7.0}[kept]
    assert callback.best_epoch == {"start": 0, "last": 1}[kept]


@pytest.mark.parametrize(
    ("accuracies", "epoch"),
    [([0.95, 0.9, 0.8, 0.85], 2), ([0.95, 0.9, 0.8, 0.9], 4), ([0.7, 0.8, 0.6, 0.85], 0), ([0.91, 0.7, 0.8, 0.85], 1)],
)
def test_the_latest_epoch_that_was_not_worse_than_the_start_stays(accuracies, epoch):
    model = models.flat()
    callback = callbacks.BestWeights("val_loss", keep="last")
    callback.set_model(model)
    callback.begin({"val_accuracy": 0.9, "val_loss": 0.3})
    callback.on_train_begin()
    for place, accuracy in enumerate(accuracies):
        model.get_layer("predictions").bias.assign(np.full(3, place + 1.0))
        callback.on_epoch_end(place, {"loss": 1.0, "val_accuracy": accuracy, "val_loss": 0.3 + place / 100})
    callback.settle()
    callback.restore()
    assert (callback.best_epoch, bias(model)) == (epoch, float(epoch))
    assert callback.best_value == pytest.approx(0.3 + max(epoch - 1, 0) / 100)


def test_accuracy_is_better_when_larger():
    model = models.flat()
    callback = callbacks.BestWeights("val_accuracy", 0.4)
    drive(callback, model, [0.3, 0.6, 0.6], "val_accuracy")
    callback.restore()
    assert (callback.best_epoch, callback.best_value, bias(model)) == (2, 0.6, 2.0)


def test_without_a_judge_the_last_finite_epoch_is_kept():
    model = models.flat()
    callback = callbacks.BestWeights("val_loss", judged=False)
    drive(callback, model, [1.0, 2.0, float("nan")], "loss")
    callback.restore()
    assert bias(model) == 2.0


def test_nothing_is_the_best_before_every_callback_has_settled():
    model, other = models.flat(), types.SimpleNamespace(settled=False)
    callback = callbacks.BestWeights("val_loss", 0.5, others=[other, callbacks.early_stopping()])
    drive(callback, model, [0.1, 0.2])
    assert (callback.best_epoch, callback.best_value) == (2, None)
    other.settled = True
    for epoch, value in ((2, 3.0), (3, 2.0), (4, 4.0)):
        model.get_layer("predictions").bias.assign(np.full(3, epoch + 1.0))
        callback.on_epoch_end(epoch, {"val_loss": value})
    callback.restore()
    assert (callback.best_epoch, callback.best_value, bias(model)) == (4, 2.0, 4.0)


@pytest.mark.parametrize("keep", ["last", "average"])
def test_nothing_from_before_comes_back_where_a_callback_changes_the_model_later(keep):
    model, other = models.flat(), types.SimpleNamespace(settled=True)
    callback = callbacks.BestWeights("val_loss", others=[other], keep=keep)
    callback.set_model(model)
    callback.begin({"val_accuracy": 0.9, "val_loss": 0.3})
    callback.on_train_begin()
    for epoch, (settled, accuracy) in enumerate([(True, 0.95), (False, 0.5), (True, 0.8)]):
        other.settled = settled
        model.get_layer("predictions").bias.assign(np.full(3, epoch + 1.0))
        callback.on_epoch_end(epoch, {"loss": 1.0, "val_accuracy": accuracy, "val_loss": 0.5})
    callback.settle()
    callback.restore()
    assert (callback.best_epoch, bias(model)) == (3, 3.0)


def test_changeable_weights_leave_out_what_is_frozen_at_any_level():
    model = models.nested()
    model.get_layer("tiny").trainable = False
    assert {weight.path for weight in callbacks.changeable_weights(model)} == {
        weight.path for weight in model.get_layer("predictions").weights
    }
    model.get_layer("tiny").trainable = True
    assert len(callbacks.changeable_weights(model)) == len(model.weights)


def test_a_reused_early_stopping_forgets_the_phase_before():
    # Keras 3.11 to 3.14 keep the best value of the phase before
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=1)
    stopping.set_model(models.compiled(models.flat()))
    stopping.on_train_begin()
    stopping.on_epoch_end(0, {"val_loss": 0.1})
    (again,) = callbacks.fresh_callbacks([stopping])
    again.on_train_begin()
    again.on_epoch_end(0, {"val_loss": 0.5})
    assert again.wait == 0
    assert again.best == 0.5


def test_stop_on_nan_says_when_and_stops():
    callback = callbacks.Watch()
    model = models.flat()
    callback.set_model(model)
    callback.on_epoch_begin(2)
    callback.on_train_batch_end(3, {"loss": 1.0})
    assert callback.diverged is None
    callback.on_train_batch_end(16, {"loss": float("inf")})
    callback.on_train_batch_end(17, {"loss": float("nan")})
    assert callback.diverged == "epoch 3, batch 17"
    assert model.stop_training
