"""Lower rates for earlier blocks, measured by what a step changes; and which weights stay."""

import keras
import numpy as np
import pytest

from kerastl.errors import ArgumentError
from kerastl.models import freezing
from kerastl.training import recipe
from kerastl.training.rates import block_factors
from tests import models

pytestmark = models.EAGERLY


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    return generator.uniform(0, 255, (16, 16, 16, 3)).astype("float32"), np.arange(16) % 3


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_each_block_moves_by_so_much_of_the_next(data, optimizer, cache):
    steps = {}
    for decay in (1.0, 0.5):
        keras.utils.set_random_seed(0)
        model = models.nested(16)
        model.compile(getattr(keras.optimizers, optimizer)(1e-3), "sparse_categorical_crossentropy")
        before = models.snapshot(model)
        options = {"epochs": 1, "learning_rate": 1e-3, "last_blocks": 2, "batch_size": 16, "keep": "last", "verbose": 0}
        recipe.fine_tune(model, data, None, layer_decay=decay, cache=cache, **options)
        after = models.snapshot(model)
        steps[decay] = {path: np.abs(after[path] - before[path]).mean() for path in models.changed(before, model)}
    ratios = {path: steps[0.5][path] / steps[1.0][path] for path in steps[1.0]}
    for path, ratio in ratios.items():
        wanted = 0.5 if "block3" in path else 0.25 if "block2" in path else 1.0
        assert ratio == pytest.approx(wanted, rel=0.02), path
    assert len({path.split("/")[-2] for path in ratios}) > 4
    usual = getattr(keras.optimizers, optimizer)()  # on PyTorch of a subclass of Keras's own
    assert type(model.optimizer) is type(usual)


def test_the_saved_file_holds_keras_s_own_optimizer(data, tmp_path):
    model = models.nested(16)
    recipe.fine_tune(model, data, None, epochs=1, last_blocks=1, layer_decay=0.8, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is type(keras.optimizers.Adam())
    assert again.fit(*data, epochs=1, verbose=0).history["loss"][0] > 0


def test_the_head_and_the_first_layers_have_their_factors():
    model = models.nested(16)
    factors = block_factors(model, 0.5)
    names = {
        layer.name: {factors.get(id(one), 1.0) for one in layer.variables} for layer in model.get_layer("tiny").layers
    }
    assert names["conv2_block3_1_conv"] == {0.5}
    assert names["conv1_conv"] == {0.5**4}
    assert all(id(one) not in factors for one in model.get_layer("predictions").variables)


@pytest.mark.parametrize("decay", [0, 1.2, "0.8"])
def test_a_decay_out_of_range_is_refused(data, decay):
    with pytest.raises(ArgumentError, match="`layer_decay` must be a number"):
        recipe.fine_tune(models.nested(16), data, None, last_blocks=1, layer_decay=decay)


def epochs_of(model, data, **options):
    """Fine-tune three epochs; return the weights after each, and the history."""
    seen = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(model.get_weights()))
    common = {"epochs": 3, "last_blocks": 1, "callbacks": [note], "verbose": 0, "learning_rate": 0.01}
    return seen, recipe.fine_tune(model, data, data, **{**common, **options})


def test_the_last_weights_stay_though_the_loss_was_lower_before(data, monkeypatch):
    model = models.compiled(models.nested(16), 0.01)
    worse = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_loss=1.0 + epoch))
    seen = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(model.get_weights()))
    better = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_accuracy=0.99))
    _, history = epochs_of(model, data, callbacks=[worse, better, note])
    assert history.best_epoch == 3
    assert all(map(np.array_equal, model.get_weights(), seen[-1]))


def test_the_average_is_that_of_the_last_third(data):
    model = models.compiled(models.nested(16), 0.01)
    seen, history = epochs_of(model, data, epochs=6, keep="average", learning_rate=1e-3)
    if history.best_epoch:
        for kept, *parts in zip(model.get_weights(), *seen[4:], strict=True):
            np.testing.assert_allclose(kept, np.mean(parts, axis=0), atol=1e-6)
        loss = model.evaluate(*data, verbose=0, return_dict=True)["loss"]
        assert history.best_value == pytest.approx(loss, rel=1e-3)
    assert history.best_epoch == 6


@pytest.mark.parametrize("keep", ["last", "average"])
def test_the_start_comes_back_where_accuracy_got_worse(data, keep):
    model = models.compiled(models.nested(16), 0.01)
    freezing.freeze(model)
    start = model.get_weights()
    worse = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_accuracy=0.0))
    _, history = epochs_of(model, data, keep=keep, epochs=1, callbacks=[worse])
    assert history.best_epoch == 0
    assert all(map(np.array_equal, model.get_weights(), start))


@pytest.mark.parametrize("keep", ["last", "average"])
def test_the_start_comes_back_too_where_training_is_cut_off(data, keep):
    model = models.compiled(models.nested(16), 0.01)
    start = model.get_weights()

    class Worse(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

        def on_epoch_end(self, epoch, logs=None):
            logs["val_accuracy"] = 0.0

    with pytest.raises(KeyboardInterrupt):
        epochs_of(model, data, keep=keep, callbacks=[Worse()])
    assert all(map(np.array_equal, model.get_weights(), start))


def test_what_to_keep_is_checked(data):
    with pytest.raises(ArgumentError, match="`keep` must be one of 'best', 'last', 'average'"):
        recipe.fine_tune(models.nested(16), data, None, last_blocks=1, keep="lst")
