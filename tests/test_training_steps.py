"""How many steps one call runs: the same numbers as one by one, and each batch for a callback that asks for it."""

import types

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kerastl
from kerastl.features.plan import CacheOptions
from kerastl.training import session, steps
from kerastl.training.session import fit
from tests import models

not_on_torch = pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no such call on PyTorch")
SMALL = types.SimpleNamespace(model_macs=2000, trunk_macs=1000)


class Counting(keras.callbacks.Callback):
    every_batch = False

    def on_train_begin(self, logs=None):
        self.calls = 0

    def on_train_batch_end(self, batch, logs=None):
        self.calls += 1


@not_on_torch
@given(st.integers(1, 3000), st.integers(1, 64))
def test_many_steps_leave_few_over(batches, batch_size):
    count = steps.steps_in_one_call(SMALL, batches, batch_size)
    assert 1 <= count <= min(32, batches)
    if batches > 40:
        assert count >= 8
        assert (batches - 1) % count <= 8


def test_a_large_step_is_a_call_of_its_own():
    assert steps.steps_in_one_call(types.SimpleNamespace(model_macs=10**9, trunk_macs=0), 100, 32) == 1


@not_on_torch
@pytest.mark.parametrize(
    ("callback", "wanted"),
    [
        (keras.callbacks.EarlyStopping(), False),
        (keras.callbacks.CSVLogger("log.csv"), False),
        (keras.callbacks.ModelCheckpoint("a.keras"), False),
        (keras.callbacks.ModelCheckpoint("a.keras", save_freq=5), True),
        (keras.callbacks.BackupAndRestore("backup"), False),
        (keras.callbacks.TerminateOnNaN(), True),
        (keras.callbacks.TensorBoard("logs"), True),
        (keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None), False),
        (keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None), True),
    ],
)
def test_callbacks_that_ask_for_batches_get_each(callback, wanted):
    assert steps.wants_batches(callback) is wanted
    for same in (callback, [callback], (callback,), keras.callbacks.CallbackList([callback])):
        assert (steps.steps_in_one_call(SMALL, 100, 32, same) == 1) is wanted


@not_on_torch
@pytest.mark.parametrize("count", [39, 40, 41])
def test_many_steps_in_one_call_are_the_steps_one_by_one(count, data, monkeypatch):
    pair = (np.concatenate([data[0], data[0][:1]])[:count], np.concatenate([data[1], data[1][:1]])[:count])
    results = []
    for number in (1, 3):
        monkeypatch.setattr(session, "steps_in_one_call", lambda *_, number=number: number)
        model, counting = models.twins()[0], Counting()
        options = {"epochs": 3, "batch_size": 5, "verbose": 0, "callbacks": [counting], "validation_data": pair}
        history = fit(model, *pair, cache=CacheOptions(place="device", dtype="float32"), **options)
        results.append((history.history, [keras.ops.convert_to_numpy(weight) for weight in model.weights]))
        batches = -(-count // 5)
        assert counting.calls == 3 * -(-batches // number)
    for name, values in results[0][0].items():
        np.testing.assert_allclose(values, results[1][0][name], atol=1e-6)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_callback_sees_each_batch_that_it_asks_for(data):
    seen = []
    watching = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    fit(models.twins()[0], *data, cache="device", epochs=2, batch_size=5, verbose=0, callbacks=[watching])
    assert seen == [*range(8)] * 2


def by_fit(model, pair, **options):
    return fit(model, *pair, **options)


def by_train_head(model, pair, **options):
    return kerastl.train_head(model, pair, pair, **options)


@pytest.mark.parametrize("train", [by_fit, by_train_head])
def test_keras_own_list_of_callbacks_will_do(train, data):
    seen, model = [], models.twins()[0]
    noting = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    callbacks = keras.callbacks.CallbackList([noting], add_history=True, model=model)
    train(model, data, cache=True, epochs=2, verbose=0, callbacks=callbacks)
    assert seen == [0, 1]


def test_eager_steps_are_single_ones(data):
    model = models.twins()[0]
    models.compiled(model, run_eagerly=True)
    counting = Counting()
    fit(model, *data, cache="device", epochs=1, batch_size=5, verbose=0, callbacks=[counting])
    assert counting.calls == 8
