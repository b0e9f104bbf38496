import warnings

import keras
import numpy as np
import pytest

import kerastl
from kerastl.errors import ArgumentError, CompileError, KerastlWarning
from kerastl.models import compiling, freezing
from tests import models


@keras.saving.register_keras_serializable("kerastl_tests")
class ShiftedLoss(keras.losses.Loss):
    """A custom loss with state that serialization would lose."""

    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y_true, y_pred)) + 1000.0


class UnregisteredMetric(keras.metrics.Mean):
    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(keras.ops.max(y_pred, axis=-1))


def rate(model) -> float:
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def test_loss_metrics_and_optimizer_settings_are_kept_custom_ones_too(pixels):
    model = models.nested()
    loss, metric = ShiftedLoss(), UnregisteredMetric(name="confidence")
    optimizer = keras.optimizers.SGD(1e-2, momentum=0.8, nesterov=True, clipnorm=1.5, weight_decay=1e-4)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    steps = 1 if keras.backend.backend() == "torch" else 2  # more are refused there
    options = {"weighted_metrics": ["accuracy"], "steps_per_execution": steps}
    model.compile(optimizer, loss, metrics=["accuracy", metric], **options)
    model.fit(*pixels, verbose=0)
    compiling.recompile(freezing.unfreeze(model, last_blocks=1), divide_by=100)
    assert model.loss is loss
    assert model.optimizer is not optimizer
    fresh = model.optimizer
    assert (fresh.momentum, fresh.nesterov, fresh.clipnorm, fresh.weight_decay) == (0.8, True, 1.5, 1e-4)
    assert model.steps_per_execution == steps
    assert rate(model) == pytest.approx(1e-4)
    logs = model.fit(*pixels, verbose=0).history
    assert logs["loss"][0] > 1000
    assert "confidence" in logs
    bias, kernel = model.get_layer("predictions").bias, model.get_layer("predictions").kernel
    assert not fresh._use_weight_decay(bias)
    assert fresh._use_weight_decay(kernel)


def test_the_optimizer_is_fresh_because_the_old_one_knows_the_old_variables(pixels):
    # a reused optimizer raises "Unknown variable"
    model = models.compiled(freezing.freeze(models.nested()))
    model.fit(*pixels, verbose=0)
    old = model.optimizer
    compiling.recompile(freezing.unfreeze(model, last_blocks=2), divide_by=10)
    assert model.optimizer is not old
    assert len(model.optimizer._trainable_variables or []) in (0, len(model.trainable_variables))
    model.fit(*pixels, verbose=0)
    compiling.check_ready(model)


@pytest.mark.parametrize(
    ("divisor", "warns"), [(10, False), (100, False), (50, False), (9.9, True), (101, True), (1, True)]
)
def test_a_rate_outside_ten_to_a_hundred_below_the_last_one_warns_once(divisor, warns):
    model = models.compiled(models.flat(), 1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiling.recompile(model, divide_by=divisor)
    ours = [one for one in caught if issubclass(one.category, KerastlWarning)]
    assert len(ours) == (1 if warns else 0)
    assert rate(model) == pytest.approx(1e-3 / divisor)


def test_a_schedule_is_taken_as_it_is_and_its_peak_counts_as_the_last_rate():
    model = models.compiled(models.flat(), 1e-2)
    schedule = keras.optimizers.schedules.CosineDecay(0.0, 10, warmup_target=1e-3, warmup_steps=3)
    compiling.recompile(model, schedule)
    assert compiling.last_learning_rate(model) == pytest.approx(1e-3)
    compiling.recompile(model, divide_by=10)
    assert rate(model) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"learning_rate": 0.0001, "divide_by": 10},
        {"learning_rate": 0},
        {"learning_rate": -1.0},
        {"divide_by": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": "fast"},
        {"divide_by": float("inf")},
    ],
)
def test_rates_that_can_not_be_used_raise(arguments):
    with pytest.raises(ArgumentError, match="Received"):
        compiling.recompile(models.compiled(models.flat()), **arguments)


def test_a_model_that_was_never_compiled_says_what_to_do():
    with pytest.raises(CompileError, match=r"model\.compile"):
        compiling.recompile(models.flat(), 1e-4)


def test_loss_scaling_is_kept_around_a_fresh_optimizer():
    model = models.flat()
    inner = keras.optimizers.Adam(1e-3, beta_1=0.8)
    model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**10), "sparse_categorical_crossentropy")
    compiling.recompile(model, divide_by=10)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.optimizer.inner_optimizer is not inner
    assert model.optimizer.inner_optimizer.beta_1 == 0.8
    assert model.optimizer.initial_scale == 2.0**10
    assert rate(model) == pytest.approx(1e-4)


def test_mixed_float16_is_wrapped_once_and_not_twice():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = models.compiled(models.flat())
        compiling.recompile(model, divide_by=10)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert isinstance(model.optimizer.inner_optimizer, keras.optimizers.Adam)
    finally:
        keras.config.set_dtype_policy("float32")


def test_unfreezing_behind_the_outer_models_back_is_caught(pixels):
    # Keras goes on training the variables that it found at its first step, and says nothing
    model = models.compiled(freezing.freeze(models.nested()))
    model.fit(*pixels, verbose=0)
    before = models.snapshot(model.get_layer("tiny"))
    model.get_layer("tiny").trainable = True
    if keras.backend.backend() == "tensorflow":  # the others raise by themselves, in words of their own
        model.fit(*pixels, verbose=0)
    moved = models.changed(before, model.get_layer("tiny"))
    assert not any(path.endswith("kernel") for path in moved), "the trap: Keras trains none of the unfrozen kernels"
    with pytest.raises(CompileError, match="`trainable` was changed after `compile`"):
        compiling.check_ready(model)


def test_freezing_behind_the_optimizers_back_is_caught():
    model = models.compiled(freezing.unfreeze(models.nested(), last_blocks=1))
    model.optimizer.build(model.trainable_variables)
    compiling.check_ready(model)
    model.get_layer("tiny").trainable = False
    with pytest.raises(CompileError, match=r"\(0 new, \d+ gone\)"):
        compiling.check_ready(model)


def test_nothing_trainable_is_an_error():
    model = models.flat()
    model.trainable = False
    with pytest.raises(ArgumentError, match="Nothing in"):
        compiling.check_ready(models.compiled(model))


@pytest.mark.parametrize(
    ("units", "activation", "labels", "expected"),
    [
        (1, None, "integer", keras.losses.MeanSquaredError()),
        (1, None, None, keras.losses.MeanSquaredError()),
        (3, None, "number", keras.losses.MeanSquaredError()),
        (3, "sigmoid", "multi-hot", keras.losses.BinaryCrossentropy()),
        (1, "sigmoid", "integer", keras.losses.BinaryCrossentropy()),
        (3, None, "integer", keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        (3, "softmax", "one-hot", keras.losses.CategoricalCrossentropy()),
        (3, None, "one-hot", keras.losses.CategoricalCrossentropy(from_logits=True)),
    ],
)
def test_the_usual_loss_is_that_of_the_last_activation(units, activation, labels, expected):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(units, activation=activation)(inputs))
    assert compiling.usual_loss(model, labels).get_config() == expected.get_config()


def test_the_usual_loss_of_logits_is_that_of_the_compile_before():
    inputs = keras.Input((4,))
    for units, kind in ((1, "integer"), (3, "multi-hot")):
        model = keras.Model(inputs, keras.layers.Dense(units)(inputs))
        model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
        assert compiling.usual_loss(model, kind).get_config()["from_logits"]


def test_a_metric_object_counts_from_nothing_after_a_recompile(data):
    model = models.twins()[0]
    metric = keras.metrics.SparseTopKCategoricalAccuracy(2, name="two")
    model.compile(keras.optimizers.Adam(1e-8), "sparse_categorical_crossentropy", metrics=[metric])
    model.fit(*data, epochs=1, verbose=0)
    compiling.recompile(model, divide_by=10)
    half = data[0][:20], data[1][:20]
    logs = model.fit(*half, epochs=1, verbose=0).history
    assert logs["two"][0] == pytest.approx(model.evaluate(*half, verbose=0)[1])


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="newer than this Keras")
def test_an_optimizer_of_several_rates_is_for_fit_alone():
    images, labels = np.random.default_rng(0).uniform(0, 255, (12, 32, 32, 3)).astype("float32"), np.arange(12) % 3
    model, adam = freezing.freeze(models.nested()), keras.optimizers.Adam(1e-3)
    model.compile(keras.optimizers.MultiOptimizer(lambda variable: adam), "sparse_categorical_crossentropy")
    flags = [one.trainable for one in model._flatten_layers()]
    phases = (kerastl.train_head, kerastl.transfer_learn, kerastl.find_learning_rate)
    for train in phases:
        with pytest.raises(CompileError, match=r"`kerastl\.fit`.*MultiOptimizer"):
            train(model, (images, labels), (images, labels), verbose=0)
    with pytest.raises(CompileError, match="MultiOptimizer"):
        kerastl.fine_tune(model, (images, labels), (images, labels), last_blocks=1, verbose=0)
    with pytest.raises(CompileError, match="MultiOptimizer"):
        kerastl.recompile(model, divide_by=10)
    assert [one.trainable for one in model._flatten_layers()] == flags
    assert model.compiled
    kerastl.check(model, (images, labels))
    kerastl.fit(model, images, labels, epochs=1, verbose=0)
