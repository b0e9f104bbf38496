"""`kerastl.fit` is `model.fit`: what callbacks, subclasses and arguments see when the frozen part runs once."""

import contextlib

import keras
import numpy as np
import pytest

from kerastl.errors import ArgumentError
from kerastl.features.plan import CacheOptions
from kerastl.models import freezing
from kerastl.training import session as session_module
from tests import models
from tests.models import twins

EXACT = CacheOptions(dtype="float32", engine="keras")


@pytest.mark.parametrize("name", ["train_step", "test_step", "compute_loss", "call"])
def test_a_method_that_the_models_class_overrides_is_run(name, data, capsys):
    calls = []

    def own(self, *arguments, **options):
        calls.append(name)
        return getattr(type(inner), name)(self, *arguments, **options)

    inner = freezing.freeze(models.flat())
    model = models.compiled(type("Own", (keras.Model,), {name: own})(inner.inputs, inner.outputs))
    session_module.fit(model, *data, validation_data=data, verbose=2)
    assert calls
    assert f"the model has a `{name}` of its own" in capsys.readouterr().out
    with pytest.raises(ArgumentError, match=f"`{name}` of its own.*cache=False"):
        session_module.fit(model, *data, cache=True, verbose=0)


def test_callbacks_work_as_in_fit(data, tmp_path):
    class Asks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.results = [self.model.metrics[0].result(), *self.model.get_metrics_result().values()]
            self.predicted = self.model.predict(data[0][:3], verbose=0)

    class StopsAtOnce(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.stop_training = True

    cached, plain = twins()
    arguments = {"epochs": 3, "shuffle": False, "verbose": 0}
    histories, asked = [], []
    for model, train, path in ((cached, session_module.fit, "a.keras"), (plain, keras.Model.fit, "b.keras")):
        options = {"cache": EXACT} if model is cached else {}
        rates = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch))
        kept = keras.callbacks.ModelCheckpoint(tmp_path / path)
        asked.append(Asks())
        histories.append(train(model, *data, callbacks=[rates, kept, asked[-1]], **arguments, **options).history)
    assert histories[0].keys() == histories[1].keys()
    assert "learning_rate" in histories[0]
    for name in histories[0]:
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-4)
    np.testing.assert_allclose(*[list(map(float, one.results)) for one in asked], rtol=1e-4)
    np.testing.assert_allclose(asked[0].predicted, asked[1].predicted, rtol=1e-3, atol=1e-5)
    saved = keras.models.load_model(tmp_path / "a.keras")
    np.testing.assert_allclose(
        saved.predict(data[0], verbose=0), plain.predict(data[0], verbose=0), rtol=1e-3, atol=1e-5
    )
    assert session_module.fit(cached, *data, cache=EXACT, callbacks=[StopsAtOnce()], **arguments).epoch == [0]


def test_an_interrupted_training_goes_on_from_its_backup(data, tmp_path):
    class Breaks(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            begun.append(epoch)
            if begun == [0, 1, 2]:
                raise RuntimeError("power cut")

    begun, model = [], twins()[0]
    for expected in (pytest.raises(RuntimeError, match="power cut"), contextlib.nullcontext()):
        callbacks = [keras.callbacks.BackupAndRestore(tmp_path / "backup"), Breaks()]
        with expected:
            session_module.fit(model, *data, cache=True, epochs=4, callbacks=callbacks, verbose=0)
    assert begun == [0, 1, 2, 2, 3]


def test_arguments_are_those_of_fit_by_place_too(data):
    cached, plain = twins()
    first = session_module.fit(cached, *data, 10, 2, 0, shuffle=False, cache=EXACT)
    second = plain.fit(*data, 10, 2, 0, shuffle=False)
    np.testing.assert_allclose(first.history["loss"], second.history["loss"], rtol=1e-4)
    with pytest.raises(TypeError, match="epoch"):
        session_module.fit(cached, *data, epoch=2)
