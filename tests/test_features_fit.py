"""Training on stored features: the same result as plain Keras, the same callbacks, and never anything stale."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl import backend
from kerastl.data.batches import rows_of, split_validation
from kerastl.errors import ArgumentError, KerastlWarning
from kerastl.features import extraction
from kerastl.features.plan import CacheOptions, make_plan, parse_bytes
from kerastl.models import freezing
from kerastl.training import recipe as training
from kerastl.training import session as session_module
from kerastl.training.session import Session
from tests import models
from tests.models import twins

EXACT = CacheOptions(dtype="float32", engine="keras")
QUIET = {"verbose": 0}


@pytest.fixture
def passes(monkeypatch):
    """Count the images that trunks see."""
    seen = []
    original = session_module.extract

    def counting(trunk, rows, **arguments):
        seen.append((arguments["part"], rows.count))
        return original(trunk, rows, **arguments)

    monkeypatch.setattr(session_module, "extract", counting)
    return seen


@pytest.mark.parametrize("build", [models.flat, models.nested, models.sequential])
@pytest.mark.parametrize("choice", [{}, {"last_blocks": 1}])
def test_a_cached_run_equals_an_uncached_one(build, choice, data):
    if build is models.sequential:
        build = models.nested  # a Sequential with augmentation is refused with one view: see below
    cached, plain = twins(build, **choice)
    arguments = {"epochs": 3, "batch_size": 16, "shuffle": False, "class_weight": {0: 1.0, 1: 2.0, 2: 0.5}, **QUIET}
    arguments["validation_data"] = (data[0][:10], data[1][:10], np.linspace(0, 1, 10))
    weights = np.linspace(0.5, 1.5, 40).astype("float32")
    first = session_module.fit(cached, *data, cache=EXACT, sample_weight=weights, **{**arguments, "class_weight": None})
    second = plain.fit(*data, sample_weight=weights, **{**arguments, "class_weight": None})
    assert first.history.keys() == second.history.keys()
    for name, values in second.history.items():
        np.testing.assert_allclose(first.history[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    for ours, theirs in zip(cached.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_class_weights_and_validation_split_mean_what_they_mean_in_fit(data):
    cached, plain = twins(last_blocks=1)
    arguments = {"epochs": 2, "validation_split": 0.25, "class_weight": {0: 3.0, 1: 1.0}, "shuffle": False, **QUIET}
    first = session_module.fit(cached, *data, cache=EXACT, **arguments)
    second = plain.fit(*data, **arguments)
    np.testing.assert_allclose(first.history["loss"], second.history["loss"], rtol=1e-4)
    np.testing.assert_allclose(first.history["val_loss"], second.history["val_loss"], rtol=1e-4)


def test_one_hot_labels_and_a_second_fit_go_on_with_the_same_optimizer(data):
    cached, plain = twins(last_blocks=1)
    for model in (cached, plain):
        model.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy")
    labels = np.eye(3)[data[1]]
    for _ in range(2):
        first = session_module.fit(cached, data[0], labels, cache=EXACT, shuffle=False, **QUIET)
        second = plain.fit(data[0], labels, shuffle=False, **QUIET)
    np.testing.assert_allclose(first.history["loss"], second.history["loss"], rtol=1e-3)
    assert int(cached.optimizer.iterations) == int(plain.optimizer.iterations) == 4


def test_cache_false_is_model_fit(data, monkeypatch):
    model = twins()[0]
    called = []
    monkeypatch.setattr(model, "fit", lambda **arguments: called.append(arguments) or "history")
    assert session_module.fit(model, *data, cache=False, epochs=3) == "history"
    assert called[0]["epochs"] == 3


def test_transfer_learn_reads_the_images_once_for_both_phases(data, passes):
    model = models.nested()
    result = training.transfer_learn(
        model, data, (data[0][:10, ::-1], data[1][:10]), last_blocks=1, head_epochs=2, **QUIET
    )
    assert passes == [("train", 40), ("validation", 10)]
    assert "extraction" in result.seconds


def test_both_phases_together_equal_plain_keras(data):
    tf = pytest.importorskip("tensorflow")
    results = []
    for cache in (EXACT, False):
        keras.utils.set_random_seed(0)
        model = models.nested()
        train = tf.data.Dataset.from_tensor_slices(data).batch(16)  # replayed in its own order
        result = training.transfer_learn(
            model,
            train,
            (data[0][:10, ::-1], data[1][:10]),
            last_blocks=1,
            head_epochs=2,
            fine_tune_epochs=2,
            views=1,  # plain Keras has no stored views
            cache=cache,
            **QUIET,
        )
        results.append((model.get_weights(), result))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert results[0][1].best_value == pytest.approx(results[1][1].best_value, rel=1e-3)


def test_callbacks_see_the_whole_model_and_can_stop_it(data, tmp_path):
    # `stop_training` is set on the whole model, while the loop runs on the tail
    model = twins(last_blocks=1)[0]
    seen = set()

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.add(self.model)

        def on_train_batch_end(self, batch, logs=None):
            seen.add(self.model)

    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), monitor="val_loss", save_best_only=True)
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=100.0)
    history = session_module.fit(
        model, *data, validation_split=0.2, epochs=9, cache=True, callbacks=[Look(), checkpoint, stopping], **QUIET
    )
    assert seen == {model}
    assert len(history.history["loss"]) == 2
    assert model.history is history
    loaded = keras.models.load_model(tmp_path / "best.keras")
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    assert loaded.predict(data[0][:2], verbose=0).shape == (2, 3)


def test_a_learning_rate_that_a_callback_sets_is_used(data):
    model = twins(last_blocks=1)[0]
    before = [weight.copy() for weight in model.get_weights()]
    zero = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.0)
    session_module.fit(model, *data, cache=True, callbacks=[zero], **QUIET)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_orders_of_training_follow_from_the_seed_of_keras(data):
    def weights_after(seed):
        model = twins()[0]
        keras.utils.set_random_seed(seed)
        kerastl.fit(model, *data, epochs=1, batch_size=8, cache=True, verbose=0)
        return np.concatenate([keras.ops.convert_to_numpy(one).ravel() for one in model.trainable_variables])

    np.testing.assert_array_equal(weights_after(1), weights_after(1))
    assert not np.array_equal(weights_after(1), weights_after(2))


def test_a_shuffling_dataset_keeps_labels_with_their_features(data):
    tf = pytest.importorskip("tensorflow")
    images = (
        np.repeat(np.arange(40)[:, None, None, None], 32 * 32 * 3, axis=1).reshape(40, 32, 32, 3).astype("float32") * 6
    )
    train = tf.data.Dataset.from_tensor_slices((images, np.arange(40) % 3)).shuffle(40).batch(7)
    rows = rows_of(train)
    for batch_images, labels, _ in rows.batches(0, 16):
        np.testing.assert_array_equal((batch_images[:, 0, 0, 0] / 6).round().astype(int) % 3, labels)


def test_augmentation_never_vanishes(data, capsys):
    model = models.compiled(freezing.freeze(models.nested(augmentation=True)))
    session_module.fit(model, *data, epochs=2, verbose=2)
    assert "drawn only once" in capsys.readouterr().out
    with pytest.raises(ArgumentError, match="drawn only once"):
        session_module.fit(model, *data, cache=True, **QUIET)


def test_views_keep_several_augmented_versions_and_draw_one_an_epoch(data):
    model = models.compiled(freezing.freeze(models.nested(augmentation=True)))
    train = rows_of(data)
    options = CacheOptions(place="memory", dtype="float32", engine="keras")
    plan = make_plan(model, train, None, epochs=[3], options=options, views=2)
    with Session(model, plan, train, None, options) as session:
        store = session.stores["train"]
        assert store.count == 80
        plain = keras.ops.convert_to_numpy(plan.cuts[0].trunk()(data[0]))
        mirrored = keras.ops.convert_to_numpy(plan.cuts[0].trunk()(data[0][:, :, ::-1]))
        np.testing.assert_allclose(store.read("features_0", slice(0, 80, 2)), plain, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(store.read("features_0", slice(1, 80, 2)), mirrored, rtol=1e-4, atol=1e-5)
        batches = session_module.FeatureBatches(
            store, ["features_0"], part="train", batch_size=40, shuffle=False, views=2, seed=0
        )
        drawn = []
        for _ in range(8):
            values, labels = batches[0]
            np.testing.assert_array_equal(labels, data[1])
            drawn.append(
                np.abs(values["features_0"] - plain).max(axis=1) > np.abs(values["features_0"] - mirrored).max(axis=1)
            )
            batches.on_epoch_end()
    share = np.mean(drawn)
    assert 0.3 < share < 0.7
    assert any((drawn[0] != other).any() for other in drawn[1:])


@pytest.mark.parametrize("augmentation", [layers.RandomContrast(0.5, value_range=(0, 255)), layers.RandomRotation(0.2)])
def test_drawn_views_are_repeatable_and_leave_the_random_state_alone(augmentation, data):
    inputs_ = keras.Input((32, 32, 3))
    x = models.tiny_backbone()(augmentation(inputs_))
    model = models.compiled(freezing.freeze(keras.Model(inputs_, models.head_layers(x))))
    state = keras.ops.convert_to_numpy(augmentation.generator.state).copy()
    stores = []
    for _ in range(2):
        train = rows_of(data)
        plan = make_plan(model, train, None, epochs=[9], options=EXACT, views=3)
        with Session(model, plan, train, None, EXACT) as session:
            stores.append(session.stores["train"].read("features_0", slice(0, 120)))
    np.testing.assert_array_equal(*stores)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(augmentation.generator.state), state)
    assert (stores[0][0::3] != stores[0][1::3]).any()
    assert (stores[0][1::3] != stores[0][2::3]).any()


def regularized():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, activity_regularizer="l2")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (lambda: models.nested(), {"views": 4, "cache": True}, "needs random layers"),
        (lambda: models.nested(augmentation=True), {"views": 4}, "only 2 different views"),
        (lambda: models.nested(augmentation=True), {"views": 2, "cache": False}, "needs caching"),
        (lambda: models.nested(), {"views": 0}, "views"),
        (lambda: models.nested(), {"cache": 3}, "cache"),
        (lambda: models.nested(), {"cache": True, "steps_per_epoch": 1}, "steps_per_epoch"),
        (regularized, {"cache": True}, "activity regularizer, whose loss depends on every image"),
    ],
)
def test_what_stands_in_the_way_is_said(build, arguments, message, data):
    model = models.compiled(freezing.freeze(build()))
    with pytest.raises(ArgumentError, match=message):
        session_module.fit(model, *data, **arguments, **QUIET)


def test_a_model_without_a_frozen_prefix_trains_plainly_and_says_why(data, capsys):
    model = models.compiled(models.nested())
    session_module.fit(model, *data, verbose=2)
    assert "nothing with weights is frozen" in capsys.readouterr().out
    with pytest.raises(ArgumentError, match="nothing with weights is frozen"):
        session_module.fit(model, *data, cache=True, **QUIET)


def test_a_generator_trains_plainly(data, capsys):
    model = twins()[0]
    session_module.fit(model, (batch for batch in [data, data]), steps_per_epoch=1, shuffle=False, verbose=2)
    assert "`steps_per_epoch` uses a part of the data" in capsys.readouterr().out
    with pytest.raises(ArgumentError, match=r"can be read only once \(a generator\)"):
        session_module.fit(model, (batch for batch in [data, data]), cache=True, **QUIET)


def test_the_plan_says_what_it_will_take_before_anything_runs(data, passes):
    model = twins(last_blocks=1)[0]
    plan = kerastl.plan_cache(model, *data, epochs=5)
    assert plan.chosen
    assert plan.cuts[0].layer_names == ("conv2_block2_out",)
    assert plan.bytes_per_image == 16 * 16 * 8 * 2
    assert plan.total_bytes == 40 * plan.bytes_per_image
    assert plan.place == "device"
    assert 0.5 < plan.trunk_share < 1
    assert plan.expected_speed_up > 1
    assert "times faster" in str(plan)
    assert str(plan).count("\n") == 0
    assert passes == []


def test_a_plan_that_costs_time_says_slower(data):
    plan = kerastl.plan_cache(twins(last_blocks=1)[0], *data, epochs=5)
    costly = str(dataclasses.replace(plan, expected_speed_up=0.4))
    assert "expected to be about 2.5 times slower" in costly
    assert "faster" not in costly


def test_a_budget_bounds_memory_and_disk(data):
    model = twins(last_blocks=1)[0]
    total = 40 * 16 * 16 * 8 * 2
    plan = kerastl.plan_cache(model, *data, epochs=5, cache=CacheOptions(budget=total, insist=False))
    assert plan.place == "device"
    plan = kerastl.plan_cache(model, *data, epochs=5, cache=CacheOptions(budget=total - 1, insist=False))
    assert not plan.chosen
    assert "would take" in plan.reason
    with pytest.raises(ArgumentError, match="would take"):
        session_module.fit(model, *data, cache=CacheOptions(budget="1kB"), **QUIET)


@pytest.mark.parametrize("text", ["2GB", "2 gb", "2000000000", "1.5GiB", 5])
def test_budgets_are_read(text):
    assert parse_bytes(text) in (2 * 10**9, int(1.5 * 2**30), 5)


@pytest.mark.parametrize("budget", ["much", -1, 0, "0GB", True, 1.5, ""])
def test_budgets_that_are_none_raise(budget):
    with pytest.raises(ArgumentError, match="budget"):
        CacheOptions(budget=budget)


def test_split_validation_is_keras_own():
    pair = (np.arange(11), np.arange(11), None)
    train, held = split_validation(pair, 0.3)
    assert (len(train[0]), len(held[0]), held[2]) == (7, 4, None)
    with pytest.raises(ArgumentError):
        split_validation(pair, 1.0)


def test_training_on_features_keeps_freed_memory_and_gives_it_back(data, monkeypatch):
    """Else glibc may map each feature map anew at every step, for half of the time."""
    calls = []
    for name in ("keep_freed_memory", "give_memory_back", "batches_for_fit"):
        original = getattr(backend, name)
        monkeypatch.setattr(
            backend,
            name,
            lambda *given, name=name, original=original: (calls.append(name), original(*given))[1],
        )
    session_module.fit(twins(last_blocks=1)[0], *data, cache=EXACT, validation_data=data, **QUIET)
    assert calls == ["keep_freed_memory", "keep_freed_memory", "batches_for_fit", "batches_for_fit", "give_memory_back"]


def test_features_are_the_same_where_a_gpu_is_kept_busy_by_two_threads(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (333, 32, 32, 3)).astype("uint8")
    labels = np.arange(333) % 3
    stores = []
    for overlaps in (False, True):
        keras.utils.set_random_seed(0)
        model = models.compiled(models.nested())
        freezing.freeze(model)
        models.compiled(model)
        rows = rows_of((images, labels))
        plan = make_plan(model, rows, None, epochs=[3], options=EXACT)
        trunk = extraction.Trunk(plan, EXACT)
        monkeypatch.setattr(trunk.engine(333), "overlaps", overlaps)
        with extraction.extract(trunk, rows, views=1, part="train", count_all=333) as store:
            stores.append({name: store.read(name, slice(0, 333)).copy() for name in store.specs})
    for name, values in stores[0].items():
        np.testing.assert_array_equal(stores[1][name], values)
    np.testing.assert_array_equal(stores[1]["labels"], labels)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="XLA's ReLU on CPU turns NaN into 0")
def test_images_whose_features_are_nan_are_told(data):
    images, labels = data
    images[[7, 35]] = np.nan
    model = twins()[0]
    with pytest.warns(KerastlWarning, match="for 2 of the train images, number 7 "):
        session_module.fit(model, images, labels, cache=EXACT, epochs=1, **QUIET)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"cache": True, "steps_per_epoch": 1}, {"cache": False}),
        ({"views": 2, "steps_per_epoch": 1}, {"cache": False, "views": 1}),
        ({"views": 2}, {"cache": False, "views": 1}),
        ({"cache": True, "views": 2}, {"cache": False, "views": 1}),
    ],
)
def test_what_a_refusal_advises_works(options, wanted, data):
    model = models.compiled(
        freezing.freeze(models.flat()), run_eagerly=True
    )  # no augmentation that views could come from
    with pytest.raises(ArgumentError) as caught:
        session_module.fit(model, *data, **options, **QUIET)
    (advice,) = re.findall(r"Pass `([^`]+)`", str(caught.value))
    assert eval(f"dict({advice})") == wanted
    session_module.fit(model, *data, **{**options, **wanted}, **QUIET)


def test_a_model_of_any_image_size_trains_on_features(data):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, models.head_layers(models.backbone_layers(inputs)))
    models.compiled(freezing.freeze(model))
    history = session_module.fit(model, *data, cache=True, **QUIET)
    assert np.isfinite(history.history["loss"]).all()
