"""The rate that is suggested is a good one, and the model doesn't notice that it was looked for."""

import math
import random

import keras
import numpy as np
import pytest

import kerastl
from kerastl.errors import ArgumentError, DataError, ModelError
from kerastl.training import rate_search
from kerastl.training.rate_search import RateRun, find_learning_rate
from kerastl.training.temperature import least_log_losses
from tests import models

pytestmark = models.EAGERLY
OPTIONS = {"last_blocks": 1, "steps": 5, "batch_size": 6, "verbose": 0}


@pytest.fixture
def data():
    """24 images of 16×16 in 0–255 whose class is their brightness, nearly, and their labels."""
    generator = np.random.default_rng(1)
    labels = np.arange(24) % 3
    return generator.normal(labels[:, None, None, None] * 20.0 + 80, 40, (24, 16, 16, 3)).clip(0, 255), labels


def held(data):
    return data[0][:9] * 0.8, data[1][:9]


def with_dropout(size):
    plain = models.nested(size)
    dropped = keras.layers.Dropout(0.3)(plain.get_layer("pool").output)
    return keras.Model(plain.input, keras.layers.Dense(3, activation="softmax")(dropped))


def state_of(model):
    """Return everything that a search could leave behind."""
    layers = list(model._flatten_layers())
    seeds = [generator.state for layer in layers for generator in getattr(layer, "_seed_generators", [])]
    optimizer = model.optimizer.variables if getattr(model, "optimizer", None) else []
    values = [keras.ops.convert_to_numpy(one).copy() for one in (*model.weights, *seeds, *optimizer)]
    flags = [(one.trainable, getattr(one, "compiled", None)) for one in layers] + [
        one.trainable for one in model.weights
    ]
    return values, flags, getattr(model, "optimizer", None), model.train_function


@pytest.mark.parametrize("build", [models.flat, with_dropout, models.sequential])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_the_model_is_left_exactly_as_it_was(data, build, is_compiled):
    model = build(16)
    kerastl.unfreeze(model, last_layers=3, batch_norm=True)
    if is_compiled:
        models.compiled(model).fit(*data, epochs=1, verbose=0)
    before = state_of(model)
    find_learning_rate(model, data, held(data), rates=[1e-3, 1e-1], **OPTIONS)
    after = state_of(model)
    for one, other in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert before[1:] == after[1:]
    assert model.compiled == is_compiled
    if is_compiled:
        model.fit(*data, epochs=1, verbose=0)


def test_runs_start_from_the_same_state_and_see_the_same_images(data):
    model = models.nested(16)
    result = find_learning_rate(model, data, held(data), rates=[1e-7, 1e-3, 1.0001e-3], **OPTIONS)
    lowest, middle, twin = result.runs
    assert middle.loss == pytest.approx(twin.loss, rel=1e-2)
    assert lowest.loss == pytest.approx(result.start, rel=1e-2)
    assert abs(middle.loss - result.start) > 10 * abs(middle.loss - twin.loss)


@pytest.mark.parametrize("cache", ["auto", False])
def test_a_rate_that_diverges_is_not_suggested(data, cache):
    model = models.nested(16)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    result = find_learning_rate(model, data, held(data), rates=[1e-3, 1e-2, 1e30], cache=cache, **OPTIONS)
    assert result.runs[-1].loss == math.inf
    assert result.suggestion <= 1e-2
    assert result.runs[-1].accuracy is None
    text = str(result)
    assert "diverged" in text
    assert f"suggestion: {result.suggestion:.1e}" in text
    assert f"{result.start:.4f}" in text
    assert "<table>" in result._repr_html_()
    figure = kerastl.plot_learning_rates(result)
    [panel] = figure.axes
    assert [line.get_label() for line in panel.get_lines()][-1] == "diverged"
    assert panel.get_xscale() == "log"


def test_one_s_own_optimizer_is_tried_around_a_tenth_of_its_rate(data, monkeypatch):
    model = models.nested(16)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    tried = []
    compile_again = rate_search.compiling.compile_again
    monkeypatch.setattr(
        rate_search.compiling,
        "compile_again",
        lambda model, rate: tried.append(compile_again(model, rate).optimizer.get_config()) or model,
    )
    result = find_learning_rate(model, data, None, **OPTIONS)
    assert [one["momentum"] for one in tried] == [0.9, 0.9]
    assert any(one.learning_rate == pytest.approx(0.01) for one in result.runs)
    assert 5 <= len(result.runs) <= 7
    assert all(0 <= one.accuracy <= 1 for one in result.runs)
    assert result.to_rows()[0]["learning_rate"] == result.runs[0].learning_rate


def test_the_schedule_is_that_of_fine_tuning(data):
    result = find_learning_rate(models.nested(16), data, held(data), rates=[1e-4, 1e-3], cache=False, **OPTIONS)
    schedule = result.schedule(4)
    rates = [float(schedule(step)) for step in range(17)]
    assert max(rates) == pytest.approx(result.suggestion, rel=1e-5)
    assert rates[16] == pytest.approx(0, abs=1e-9)
    assert int(np.argmax(rates)) == 3  # a fifth of four epochs of four batches


def test_random_layers_in_front_are_kept_in_views(data, capsys):
    model = models.nested(16, augmentation=True)
    result = find_learning_rate(model, data, held(data), rates=[1e-4, 1e-3], last_blocks=1, steps=5)
    assert len(result.runs) == 2
    printed = capsys.readouterr().out
    assert printed.count("peak rate") == 2
    assert "diverged" not in printed


def test_a_run_rises_falls_and_stops_after_its_steps(data):
    model, rates = models.compiled(models.nested(16)), []
    noted = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rates.append(float(noted.model.optimizer.learning_rate))
    )
    model.fit(*data, batch_size=6, epochs=9, callbacks=[rate_search._Steps(1e-2, 10), noted], verbose=0)
    assert len(rates) == 10
    assert rates[0] < rates[2] == pytest.approx(1e-2, rel=0.05)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 1e-3


def losses(**found):
    """Return a function that runs at a rate, with these losses by the exponent of ten."""
    by_exponent = {float(name.replace("_", "-").replace("h", ".5")): loss for name, loss in found.items()}
    tried = []

    def run(rate):
        exponent = round(math.log10(rate) * 2) / 2
        tried.append(exponent)
        return RateRun(rate, by_exponent.get(exponent, 9.0), None, 0.0)

    return run, tried


def test_the_walk_stops_when_the_two_on_each_side_are_worse():
    run, tried = losses(_3=1.0, _3h=0.8, _4=0.7, _4h=0.9)
    runs = rate_search._walk(run, 1e-3)
    assert tried == [-3.0, -2.5, -3.5, -4.0, -4.5, -5.0]
    assert [round(math.log10(one.learning_rate), 1) for one in runs] == [-5.0, -4.5, -4.0, -3.5, -3.0, -2.5]
    run, tried = losses(_3=0.5, _3h=0.8, _4=0.4, _4h=0.9, _5=0.9)  # two valleys
    assert min(rate_search._walk(run, 1e-3), key=lambda one: one.loss).learning_rate == pytest.approx(1e-4)
    assert len(rate_search._walk(lambda rate: RateRun(rate, math.inf, None, 0.0), 1.0)) == 7
    assert len(rate_search._walk(lambda rate: RateRun(rate, -rate, None, 0.0), 1.0)) == 7


def runs_of(*pairs):
    return [RateRun(rate, loss, None, 0.0) for rate, loss in pairs]


def test_the_suggestion_is_the_lowest_point_of_a_parabola():
    parabola = [(10**x, (x + 3.1) ** 2) for x in (-4, -3.5, -3, -2.5)]
    assert rate_search._suggested(runs_of(*parabola), 1e-3) == pytest.approx(10**-3.1, rel=0.01)
    assert rate_search._suggested(runs_of((1e-4, 1.0), (1e-3, 2.0), (1e-2, 3.0)), 1e-3) == 1e-4
    assert rate_search._suggested(runs_of((1e-4, 1.0), (1e-3, 0.5), (1e-2, math.inf)), 1e-3) == 1e-3
    steep = rate_search._suggested(runs_of((1e-4, 0.5001), (1e-3, 0.5), (1e-2, 1000.0)), 1e-4)
    assert steep == pytest.approx(10**-3.5, rel=0.05)
    with pytest.raises(ArgumentError, match="diverged at all rates"):
        rate_search._suggested(runs_of((1e-4, math.inf), (1e-3, math.inf)), 1e-3)


def test_of_rates_as_good_as_the_best_the_one_nearest_to_the_usual_rate_is_suggested():
    losses = [(1e-5, 0.50), (1e-4, 0.52), (1e-3, 0.53), (1e-2, 0.9)]
    runs = [RateRun(rate, loss, None, 0.0, error=0.0 if loss == 0.5 else 0.025) for rate, loss in losses]
    assert rate_search._suggested(runs, 3e-4) == 1e-4
    assert rate_search._suggested(runs, 1.0) == 1e-4
    assert rate_search._suggested(runs, 1e-7) == 1e-5
    assert rate_search._suggested(runs, 10**-4.5) == 1e-5  # as near as 1e-4, and lower


def with_own_step():
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    plain = models.nested(16)
    return Own(plain.inputs, plain.outputs)


def test_what_can_t_be_used_is_refused(data):
    model = models.nested(16)
    for rates in ([1e-3], [1e-3, 1e-3], [0, 1e-3], ["a", 1e-3], 1e-3, "auto"):
        with pytest.raises(ArgumentError, match="rates"):
            find_learning_rate(model, data, rates=rates, **OPTIONS)
    with pytest.raises(ArgumentError, match="steps"):
        find_learning_rate(model, data, steps=0)
    with pytest.raises(DataError, match="Without `validation`"):
        find_learning_rate(model, [data])
    with pytest.raises(DataError, match="more than once"):
        find_learning_rate(model, iter([data]), held(data), **OPTIONS)
    with pytest.raises(DataError, match="at least 5"):
        find_learning_rate(model, (data[0][:4], data[1][:4]), **OPTIONS)
    with pytest.raises(ModelError, match=r"own steps.*train_step"):
        find_learning_rate(with_own_step(), data, held(data), **OPTIONS)
    with pytest.raises(ArgumentError, match="find_learning_rate"):
        kerastl.plot_learning_rates([1e-3])


def test_the_numbers_of_python_s_own_random_are_left_as_they_were(data):
    model = models.nested(16)  # whose layers draw their seeds
    before = random.getstate()
    find_learning_rate(model, data, held(data), rates=[1e-4, 1e-3], **OPTIONS)
    assert random.getstate() == before


LOSSES = {  # the head, and the labels of it by the classes of `data`
    "softmax": ((3, "softmax"), lambda labels: labels),
    "one-hot": ((3, "softmax"), lambda labels: np.eye(3)[labels]),
    "logits": ((3, None), lambda labels: labels),
    "one sigmoid": ((1, "sigmoid"), lambda labels: labels % 2),
    "several labels": ((3, "sigmoid"), lambda labels: np.eye(3)[labels] + [[1, 0, 0]] * (labels == 2)[:, None]),
    "numbers": ((1, None), lambda labels: labels / 2 + 0.3),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_each_validation_image_is_judged_alike_by_features_and_by_the_whole_model(data, name, weighted):
    (units, activation), labels_of = LOSSES[name]
    loss = {"numbers": "mse", "logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}.get(name)
    plain = models.nested(16)
    pooled = plain.get_layer("pool").output
    model = keras.Model(plain.input, keras.layers.Dense(units, activation=activation)(pooled))
    if loss:
        model.compile("adam", loss)
    kerastl.freeze(model)
    images, labels = held(data)
    labels = labels_of(labels)
    weights = np.linspace(0.5, 1.5, len(labels)) if weighted else None
    judged = (images, labels, weights) if weighted else (images, labels)
    settings = rate_search.Settings(model, (data[0], labels_of(data[1])), judged, 4, None, "val_loss", 0, True, 1)
    if not loss:
        rate_search.Phase(settings, 1, ()).compile(1e-3)
    with settings.session([1]) as session:
        assert session is not None
        by_features = rate_search._losses(settings, session)
    whole = rate_search._losses(settings, None)
    assert whole.shape == (9,)
    np.testing.assert_allclose(by_features, whole, rtol=1e-2)  # features are kept in 16 bits
    predicted = model.predict(images, verbose=0).astype("float64")
    if name == "numbers":
        wanted = np.square(predicted[:, 0] - labels)
    elif name == "several labels":
        wanted = least_log_losses(predicted, labels)
    else:
        predicted = np.exp(predicted) if name == "logits" else predicted
        predicted = np.hstack([1 - predicted, predicted]) if units == 1 else predicted
        wanted = least_log_losses(predicted / predicted.sum(axis=1, keepdims=True), labels_of_classes(labels))
    np.testing.assert_allclose(whole, wanted if weights is None else wanted * weights / weights.mean(), rtol=1e-3)


def labels_of_classes(labels):
    return labels.argmax(axis=1) if labels.ndim == 2 else labels
