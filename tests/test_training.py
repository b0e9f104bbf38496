import re
import time
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl.data.labels import balanced_class_weight
from kerastl.errors import ArgumentError, CompileError, DataError, KerastlWarning, ModelError, OutputError
from kerastl.features.plan import CacheOptions
from kerastl.models import freezing
from kerastl.training import recipe as training
from kerastl.training import session as session_module
from kerastl.training.callbacks import early_stopping
from kerastl.training.rates import RECIPE_RATE, cosine_decay
from kerastl.training.session import fit
from tests import models

pytestmark = models.EAGERLY
QUIET = {"verbose": 0}


@pytest.fixture
def data():
    """Images whose class is their brightness: learnable in a few steps."""
    generator = np.random.default_rng(1)
    labels = np.arange(48) % 3
    images = (
        generator.normal(labels[:, None, None, None] * 90.0 + 30, 8, (48, 32, 32, 3)).clip(0, 255).astype("float32")
    )
    return (images[:36], labels[:36]), (images[36:], labels[36:])


class Poison(keras.callbacks.Callback):
    """Make the loss NaN from one batch of one epoch on, as a diverging run does."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.when, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.when:
            head = self.model.get_layer("predictions")
            head.bias.assign(np.full(head.bias.shape, np.nan))


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def loss_of(model, data) -> float:
    return model.evaluate(*data, verbose=0, return_dict=True)["loss"]


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_train_head_trains_the_head_alone_and_keeps_the_best_weights(build, data):
    model, (train, validation) = build(), data
    backbone = {path: value for path, value in models.snapshot(model).items() if "predictions" not in path}
    history = training.train_head(model, train, validation, epochs=4, learning_rate=0.05, **QUIET)
    assert all((models.snapshot(model)[path] == value).all() for path, value in backbone.items())
    assert history.best_value == pytest.approx(min(history.history["val_loss"]), rel=1e-5)
    assert loss_of(model, validation) == pytest.approx(history.best_value, rel=1e-4)
    assert len(history.epoch_seconds) == 4
    assert history.monitor == "val_loss"
    assert history.diverged is None


def test_the_starting_state_wins_when_training_only_makes_it_worse(data):
    model, (train, validation) = models.nested(), data
    training.train_head(model, train, validation, epochs=4, learning_rate=0.5, **QUIET)
    before, value = models.snapshot(model), loss_of(model, validation)
    worse = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_loss=1e3))
    with pytest.warns(KerastlWarning, match="Training diverged: val_loss rose"):
        history = training.train_head(model, train, validation, epochs=2, callbacks=[worse], **QUIET)
    assert history.best_epoch == 0
    assert not models.changed(before, model)
    assert loss_of(model, validation) == pytest.approx(value, rel=1e-5)


def test_transfer_learn_returns_both_phases_and_leaves_the_winners_weights(data):
    model, (train, validation) = models.nested(), data
    result = training.transfer_learn(
        model, train, validation, head_epochs=3, fine_tune_epochs=3, head_learning_rate=0.02, last_blocks=1, **QUIET
    )
    values = result.head.history["val_loss"] + result.fine_tune.history["val_loss"]
    assert result.best_value == pytest.approx(min(values), rel=1e-5)
    assert loss_of(model, validation) == pytest.approx(result.best_value, rel=1e-4)
    assert result.best_phase in ("head", "fine_tune")
    assert set(result.seconds) == {"extraction", "head", "fine_tune"}
    assert "val_loss" in str(result)


def test_fine_tuning_that_makes_it_worse_gives_the_head_phase_back(data):
    class Worse(keras.callbacks.Callback):
        begun = 0

        def on_train_begin(self, logs=None):
            self.begun += 1

        def on_epoch_end(self, epoch, logs=None):
            if self.begun == 2:
                logs.update(val_accuracy=0.0, val_loss=1e3)

    model, (train, validation) = models.flat(), data
    rates = {"head_learning_rate": 0.05, "learning_rate": 30.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KerastlWarning)
        result = training.transfer_learn(
            model, train, validation, head_epochs=3, last_blocks=2, callbacks=[Worse()], **rates, **QUIET
        )
    assert result.best_phase == "head"
    assert result.best_epoch == result.head.best_epoch
    assert loss_of(model, validation) == pytest.approx(min(result.head.history["val_loss"]), rel=1e-4)


def test_fine_tuning_unfreezes_the_end_and_moves_no_statistic(data):
    model, (train, validation) = models.nested(), data
    training.train_head(model, train, validation, epochs=1, **QUIET)
    before = models.snapshot(model)
    history = training.fine_tune(model, train, validation, epochs=1, learning_rate=1e-3, last_blocks=1, **QUIET)
    moved = models.changed(before, model)
    assert history.best_epoch == 0 or any("conv2_block3" in path for path in moved)
    assert not any("moving" in path or "block2_" in path for path in moved)


@pytest.mark.parametrize(("compile_first", "peak"), [(False, RECIPE_RATE), (True, 0.002)])
def test_the_default_rate_is_the_recipes_or_a_tenth_of_your_own_falling_to_zero(data, compile_first, peak):
    model, (train, validation) = models.nested(), data
    if compile_first:
        models.compiled(model, 0.5)
    training.train_head(model, train, validation, epochs=1, learning_rate=0.02, **QUIET)
    training.fine_tune(model, train, validation, epochs=2, last_blocks=1, **QUIET)
    schedule = model.optimizer._learning_rate
    assert max(float(schedule(step)) for step in range(5)) == pytest.approx(peak)
    assert float(schedule(4)) == pytest.approx(0.0, abs=1e-9)  # 2 epochs of 2 batches


def test_an_existing_compile_is_kept_but_for_the_rate(data):
    model, (train, validation) = models.nested(), data
    loss = keras.losses.SparseCategoricalCrossentropy()
    metric = keras.metrics.SparseTopKCategoricalAccuracy(k=2)
    model.compile(keras.optimizers.SGD(0.5, momentum=0.7), loss, metrics=[metric])
    history = training.train_head(model, train, validation, epochs=1, learning_rate=0.01, **QUIET)
    assert model.loss is loss
    assert (type(model.optimizer).__name__, model.optimizer.momentum) == ("SGD", 0.7)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert "sparse_top_k_categorical_accuracy" in history.history


@pytest.mark.parametrize("form", ["integer", "column", "one-hot", "float"])
def test_labels_of_every_form_choose_their_loss(form, data):
    def convert(labels):
        forms = {
            "integer": labels,
            "column": labels[:, None],
            "one-hot": np.eye(3)[labels],
            "float": labels.astype("f4"),
        }
        return forms[form]

    (train, validation), model = data, models.flat()
    pairs = [(images, convert(labels)) for images, labels in (train, validation)]
    history = training.train_head(model, *pairs, epochs=5, learning_rate=0.5, **QUIET)
    assert history.history["accuracy"][-1] > 0.6


def test_two_classes_with_one_sigmoid_unit_work_too(data):
    inputs_ = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(models.tiny_backbone()(inputs_))
    model = keras.Model(inputs_, layers.Dense(1, activation="sigmoid")(x))
    pairs = [(images, (labels > 0).astype("int64")) for images, labels in data]
    history = training.train_head(model, *pairs, epochs=1, **QUIET)
    assert type(model.loss).__name__ == "BinaryCrossentropy"
    assert np.isfinite(history.best_value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(16) % 4, "from 0 to 2"),
        (np.arange(16) % 3 - 1, "from 0 to 2"),
        (np.full(16, 0.5), "whole numbers"),
        (np.full(16, np.nan), "finite"),
        (np.eye(4)[np.arange(16) % 4], "3 classes"),
        (np.ones((16, 3)), "add up to 1"),
        (np.array(["cat"] * 16), "numbers"),
    ],
)
def test_labels_that_do_not_fit_raise_before_training(labels, message, pixels):
    with pytest.raises(DataError, match=message):
        training.train_head(models.flat(), (pixels[0], labels), None, **QUIET)


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset"])
def test_datasets_of_every_kind_train(kind, data):
    (images, labels), validation = data

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return images[index * 12 : index * 12 + 12], labels[index * 12 : index * 12 + 12]

    if kind == "tf.data":
        tf = pytest.importorskip("tensorflow")
        train = tf.data.Dataset.from_tensor_slices((images, labels)).batch(12)
    else:
        train = Batches()
    model = models.flat()
    history = training.train_head(model, train, validation, epochs=2, class_weight="balanced", **QUIET)
    training.fine_tune(model, train, validation, epochs=1, last_blocks=1, **QUIET)
    assert len(history.history["loss"]) == 2


def test_balanced_class_weights_are_count_over_classes_times_count():
    weights = balanced_class_weight(np.array([0] * 6 + [1] * 3 + [2]), 3)
    assert weights == pytest.approx({0: 10 / 18, 1: 10 / 9, 2: 10 / 3})


def test_fine_tune_without_a_choice_trains_what_is_unfrozen_and_refuses_a_frozen_backbone(data):
    train, validation = data
    model = freezing.freeze(models.nested())
    with pytest.raises(ArgumentError, match="nothing to fine-tune"):
        training.fine_tune(model, train, validation, **QUIET)
    freezing.unfreeze(model, last_layers=7)
    training.fine_tune(model, train, validation, epochs=1, learning_rate=1e-3, **QUIET)
    assert {path.split("/")[-2] for path in (w.path for w in model.trainable_weights)} == {
        "conv2_block3_1_conv",
        "conv2_block3_2_conv",
        "predictions",
    }


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX holds the weights outside the model between batches")
def test_a_nan_loss_stops_says_when_and_keeps_the_best_weights(data):
    model, (train, validation) = models.nested(), data
    with pytest.warns(KerastlWarning, match="epoch 3, batch 2"):
        history = training.train_head(
            model, train, validation, epochs=6, learning_rate=0.05, batch_size=12, callbacks=[Poison(2, 1)], **QUIET
        )
    assert history.diverged == "epoch 3, batch 2"
    assert len(history.epoch_seconds) == 3
    assert history.best_epoch in (1, 2)
    assert loss_of(model, validation) == pytest.approx(history.best_value, rel=1e-4)


@pytest.mark.parametrize("cache", [False, "auto"])
def test_a_loss_that_is_nan_from_the_data_stops_at_once_and_the_starting_weights_are_kept(cache, data):
    model, (train, validation) = models.nested(), data
    weights = np.ones(36, "float32")
    weights[20] = np.nan  # not a pixel: XLA's ReLU on CPU turns NaN into 0
    train = (*train, weights)
    before = models.snapshot(model)
    with pytest.warns(KerastlWarning, match="NaN or infinite in epoch 1"):
        history = training.train_head(model, train, validation, batch_size=12, cache=cache, **QUIET)
    assert history.diverged.startswith("epoch 1, batch")
    assert history.best_epoch == 0
    assert not models.changed(before, model)


@pytest.mark.parametrize("cache", [False, "auto"])
def test_a_validation_loss_that_is_always_nan_is_told(cache, data):
    model, (train, validation) = models.nested(), data
    weights = np.ones(len(validation[1]), "float32")
    weights[2] = np.nan
    before = models.snapshot(model)
    with pytest.warns(KerastlWarning, match="'val_loss' was NaN or infinite in every epoch"):
        history = training.train_head(model, train, (*validation, weights), epochs=2, cache=cache, **QUIET)
    assert len(history.epoch_seconds) == 2
    assert history.best_epoch == 0
    assert not models.changed(before, model)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX holds the weights outside the model between batches")
def test_a_head_phase_that_diverges_is_not_followed_by_fine_tuning(data):
    model, (train, validation) = models.nested(), data
    with pytest.warns(KerastlWarning, match="NaN"):
        result = training.transfer_learn(
            model, train, validation, head_epochs=2, callbacks=[Poison(0, 0)], last_blocks=1, **QUIET
        )
    assert result.fine_tune is None
    assert result.best_phase == "start"
    assert np.isfinite(loss_of(model, validation))


def test_ctrl_c_leaves_the_best_weights_so_far(data):
    model, (train, validation) = models.nested(), data
    seen = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["val_loss"]))
    with pytest.raises(KeyboardInterrupt):
        training.train_head(
            model, train, validation, epochs=9, learning_rate=0.05, callbacks=[note, Interrupt()], **QUIET
        )
    assert len(seen) == 2
    assert loss_of(model, validation) == pytest.approx(min(seen), rel=1e-4)


def test_early_stopping_stops_a_phase(data):
    model, (train, validation) = models.flat(), data
    stopping = early_stopping(1, monitor="val_loss", min_delta=10.0)
    history = training.train_head(model, train, validation, epochs=8, callbacks=[stopping], **QUIET)
    assert len(history.history["loss"]) == 2


def test_without_validation_data_the_last_weights_are_kept(data):
    model, (train, _) = models.flat(), data
    result = training.transfer_learn(model, train, None, head_epochs=2, fine_tune_epochs=1, last_blocks=1, **QUIET)
    assert result.best_value is None
    assert (result.best_phase, result.best_epoch) == ("fine_tune", 1)


def test_the_same_seed_gives_the_same_weights(data):
    results = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        model = models.flat(augmentation=True)
        training.transfer_learn(model, *data, head_epochs=2, fine_tune_epochs=1, last_blocks=1, seed=3, **QUIET)
        results.append(np.concatenate([value.ravel() for value in models.snapshot(model).values()]))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["/255", "preprocess_input", "negative"])
def test_pixels_that_are_scaled_already_warn(scale, pixels):
    images = {"/255": pixels[0] / 255, "preprocess_input": pixels[0] / 127.5 - 1, "negative": pixels[0] - 120}[scale]
    model = models.compiled(freezing.freeze(models.flat()))
    with pytest.warns(KerastlWarning, match="look scaled already"):
        fit(model, images, pixels[1], **QUIET)


def test_pixels_as_they_should_be_do_not_warn(pixels, recwarn):
    fit(models.compiled(freezing.freeze(models.flat())), *pixels, **QUIET)
    fit(models.compiled(freezing.freeze(models.flat())), pixels[0].astype("uint8"), pixels[1], **QUIET)
    assert [str(one.message) for one in recwarn if issubclass(one.category, KerastlWarning)] == []


def test_images_of_another_size_are_an_error_that_says_both_sizes(pixels):
    with pytest.raises(DataError, match=r"48 × 48 × 3.*32 × 32 × 3"):
        fit(models.compiled(models.flat(48)), *pixels, **QUIET)


def test_fit_is_model_fit_with_its_arguments(pixels):
    keras.utils.set_random_seed(0)
    ours = models.compiled(freezing.freeze(models.nested()))
    theirs = keras.models.clone_model(ours)
    theirs.set_weights(ours.get_weights())
    models.compiled(theirs)
    arguments = {
        "epochs": 2,
        "batch_size": 5,
        "shuffle": False,
        "validation_split": 0.25,
        "class_weight": {0: 2.0},
        **QUIET,
    }
    exact = CacheOptions(dtype="float32", engine="keras")
    first, second = fit(ours, *pixels, **arguments, cache=exact), theirs.fit(*pixels, **arguments)
    assert first.history.keys() == second.history.keys()
    np.testing.assert_allclose(first.history["val_loss"], second.history["val_loss"], rtol=1e-4)


def test_fit_refuses_what_keras_lets_pass(pixels):
    model = models.compiled(freezing.freeze(models.nested()))
    fit(model, *pixels, **QUIET)
    model.get_layer("tiny").trainable = True
    with pytest.raises(CompileError, match="recompile"):
        fit(model, *pixels, **QUIET)


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"learning_rate": -1},
        {"class_weight": "balance"},
        {"batch_size": 0},
        {"monitor": "val_lost"},
    ],
)
def test_arguments_that_can_not_be_used_raise(arguments, data):
    with pytest.raises(ArgumentError, match="Received"):
        training.train_head(models.flat(), *data, **{"epochs": 1, **arguments}, **QUIET)


@pytest.mark.parametrize(
    "options",
    [
        {"views": 0},
        {"views": True},
        {"views": "x"},
        {"monitor": None},
        {"monitor": "foo"},
        {"callbacks": 3},
        {"callbacks": "x"},
        {"seed": 2**40},
        {"class_weight": {7: 1.0}},
        {"class_weight": {0: -1.0}},
        {"class_weight": {0: "much"}},
        {"keep": "mean", "fine_tune_epochs": 0},
        {"run_folder": __file__},
    ],
)
@pytest.mark.parametrize("is_compiled", [True, False])
def test_what_can_not_be_used_raises_before_the_model_is_changed(options, is_compiled, data):
    model = models.compiled(models.nested()) if is_compiled else models.nested()
    state = [(one.name, one.trainable) for one in model._flatten_layers()], model.compiled
    with pytest.raises((ArgumentError, OutputError), match="Received"):
        training.transfer_learn(model, *data, **options, **QUIET)
    assert ([(one.name, one.trainable) for one in model._flatten_layers()], model.compiled) == state


@pytest.mark.parametrize("train", [training.transfer_learn, training.train_head])
def test_a_head_that_is_frozen_itself_is_told_of_and_mended_by_the_line_in_the_message(train, data):
    model = models.compiled(models.nested())
    model.trainable = False
    with pytest.raises(ModelError, match="must be trainable") as error:
        train(model, *data, **QUIET)
    assert not model.trainable
    assert model.compiled
    exec(re.search("`(.*)`", str(error.value))[1], {"model": model, "kerastl": kerastl})
    train(model, *data, **({"epochs": 1} if train is training.train_head else {"fine_tune_epochs": 0}), **QUIET)


def test_a_model_with_two_inputs_trains_without_views(pixels):
    images, numbers = keras.Input((32, 32, 3)), keras.Input((4,))
    x = layers.GlobalAveragePooling2D()(models.tiny_backbone()(images))
    model = keras.Model([images, numbers], layers.Dense(3, activation="softmax")(layers.Concatenate()([x, numbers])))
    both = ((pixels[0], np.zeros((len(pixels[0]), 4), "float32")), pixels[1])
    result = training.transfer_learn(model, both, both, head_epochs=1, fine_tune_epochs=1, **QUIET)
    assert len(result.fine_tune.history["val_loss"]) == 1


def test_a_head_whose_loss_can_not_be_told_asks_for_a_compile(data):
    inputs_ = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(models.tiny_backbone()(inputs_))
    model = keras.Model(inputs_, layers.Dense(3, activation="tanh")(x))
    with pytest.raises(ModelError, match="Compile the model"):
        training.train_head(model, *data, **QUIET)


def test_the_seconds_of_a_phase_hold_the_run_of_the_frozen_part(pixels, monkeypatch):
    original = session_module.extract

    def slow(*arguments, **options):
        time.sleep(0.5)
        return original(*arguments, **options)

    monkeypatch.setattr(session_module, "extract", slow)
    exact = CacheOptions(dtype="float32", engine="keras")
    history = training.train_head(models.flat(), pixels, pixels, epochs=1, cache=exact, **QUIET)
    assert history.seconds >= sum(history.epoch_seconds) + 2 * 0.5  # of training and of validation images


def test_the_result_gives_the_head_alone_and_takes_it_back(data):
    model = models.compiled(models.nested(), run_eagerly=True)
    options = {"head_epochs": 2, "fine_tune_epochs": 1, "last_blocks": 1, "learning_rate": 1e-3, "cache": False}
    result = training.transfer_learn(model, *data, **options, **QUIET)
    if result.head.best_epoch:
        assert result.head_accuracy == result.head.history["val_accuracy"][result.head.best_epoch - 1]
    else:
        assert result.head_accuracy is None
    final = model.get_weights()
    with result.head_alone():
        alone = model.evaluate(*data[1], return_dict=True, **QUIET)
    for now, before in zip(model.get_weights(), final, strict=True):
        np.testing.assert_array_equal(now, before)
    if result.head.best_epoch:
        assert alone["loss"] == pytest.approx(result.head.best_value, rel=1e-4)
    if result.best_phase == "fine_tune":
        assert any((variable.numpy() != value).any() for variable, value in result.head_weights)


@pytest.mark.parametrize("batches", [10, None])
def test_the_cosine_decay_rises_for_an_epoch_and_falls_to_nothing(batches):
    rate, callbacks = cosine_decay(0.1, batches, 4 if batches is None else 5)
    if batches:
        steps = (0, 5, 10, 30, 50)
        assert [float(rate(step)) for step in steps] == pytest.approx([0.01, 0.055, 0.1, 0.05, 0.0], abs=1e-7)
        assert callbacks == []
    else:
        (callback,) = callbacks
        assert [callback.schedule(epoch, None) for epoch in (0, 2)] == pytest.approx([0.1, 0.05])


@pytest.mark.parametrize(("ramp", "measured"), [(0.2, float("nan")), (0.9, 100.0)])
def test_pruning_is_not_undone_for_the_start(data, ramp, measured):
    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = measured

    model = models.compiled(models.nested(blocks=1), 0.01, run_eagerly=True)
    pruning = kerastl.gradual_pruning(0.7, layers=["predictions"], ramp=ramp)
    options = {"epochs": 2, "learning_rate": 0.01, "last_blocks": 1, "batch_size": 4, "cache": False}
    history = training.fine_tune(model, *data, callbacks=[pruning, Worse()], **options, **QUIET)
    assert history.best_epoch == (1 if ramp == 0.2 else 2)
    assert (model.get_layer("predictions").kernel.numpy() == 0).mean() == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize(
    ("options", "who"),
    [
        ({"monitor": "val_lost"}, "monitor"),
        ({"monitor": "val_f1"}, "monitor"),
        ({"callbacks": [keras.callbacks.ReduceLROnPlateau("val_acuracy")]}, "ReduceLROnPlateau"),
        ({"callbacks": keras.callbacks.EarlyStopping("validation_loss")}, "EarlyStopping"),
    ],
)
def test_a_monitored_name_that_nothing_logs_is_told_before_any_work(pixels, options, who, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("it trained"))
    monkeypatch.setattr("kerastl.training.session.extract", lambda *_, **__: pytest.fail("it ran the frozen part"))
    with pytest.raises(ArgumentError, match=rf"`{who}` watches .* Logged are accuracy, loss, val_accuracy, val_loss"):
        training.train_head(models.nested(), pixels, pixels, **options, **QUIET)


def test_metrics_of_every_form_may_be_monitored(pixels):
    def near(labels, predicted):
        return keras.ops.mean(predicted)

    for metric, name in (
        ("accuracy", "val_accuracy"),
        (keras.metrics.SparseTopKCategoricalAccuracy(2, name="two"), "val_two"),
        (near, "val_near"),
    ):
        model = models.compiled(models.nested(), metrics=[metric])
        history = training.train_head(model, pixels, pixels, epochs=1, monitor=name, **QUIET)
        assert name in history.history


def test_a_loss_that_only_rises_is_told_with_a_rate_to_try(data):
    with pytest.warns(
        KerastlWarning, match=r"Training diverged: val_loss rose from .*the weights of the start are kept"
    ) as caught:
        training.train_head(models.nested(), *data, epochs=1, learning_rate=1e6, **QUIET)
    advice = "Take a lower learning rate, 1e+04, say, instead of 1e+06"
    assert [advice in str(one.message) for one in caught if one.category is KerastlWarning] == [True]
