"""Auxiliary heads on flat and nested models: they share the layers, train with one label, and leave no trace."""

import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl.errors import ArgumentError, CompileError, ModelError
from kerastl.features import CacheOptions
from kerastl.features.cut import find_cuts
from kerastl.lab.auxiliary_heads import add_auxiliary_heads, remove_auxiliary_heads
from kerastl.models import freezing
from kerastl.training import recipe as training
from tests import models

EXACT = CacheOptions(dtype="float32", engine="keras")
QUIET = {"verbose": 0}
AT = ["conv2_block1", "conv2_block2"]
BLOCKS = ["stem", "conv2_block1", "conv2_block2", "conv2_block3"]
NAMES = ["predictions", "auxiliary_conv2_block1", "auxiliary_conv2_block2"]


def deeply_nested() -> keras.Model:
    """A backbone in a model with its preprocessing, in a classifier."""
    inputs = keras.Input((32, 32, 3))
    body = keras.Model(inputs, models.tiny_backbone()((inputs - 127.5) / 127.5), name="body")
    outer = keras.Input((32, 32, 3))
    return keras.Model(outer, models.head_layers(body(outer)), name="deep")


BUILDERS = [models.flat, models.nested, models.sequential, deeply_nested]


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(1)
    labels = np.arange(40) % 3
    images = generator.normal(labels[:, None, None, None] * 90.0 + 30, 20, (40, 32, 32, 3))
    return images.clip(0, 255).astype("float32"), labels


def answers(model, images):
    outputs = model(images, training=False)
    return [keras.ops.convert_to_numpy(one) for one in (outputs if isinstance(outputs, list) else [outputs])]


def layer_named(model, name):
    return next(layer for layer in model._flatten_layers() if layer.name == name)


@pytest.mark.parametrize("build", BUILDERS)
def test_the_main_output_stays_the_same_bit_for_bit_and_so_do_the_parts_around_it(build, pixels, tmp_path):
    model = build()
    main = answers(model, pixels[0])[0]
    extended = add_auxiliary_heads(model, AT)
    assert extended.output_names[1:] == NAMES[1:]
    assert [tuple(tensor.shape) for tensor in extended.outputs] == [(None, 3)] * 3
    with_heads = answers(extended, pixels[0])
    np.testing.assert_array_equal(with_heads[0], main)
    for probabilities in with_heads:
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    extended.save(tmp_path / "extended.keras")
    loaded = keras.models.load_model(tmp_path / "extended.keras")
    for one in (remove_auxiliary_heads(extended), remove_auxiliary_heads(loaded)):
        np.testing.assert_array_equal(answers(one, pixels[0])[0], main)
        assert (len(one.outputs), one.name) == (1, model.name)
        assert one.count_params() == model.count_params()
        assert [block.name for block in freezing.list_blocks(one)] == BLOCKS
        one.save(tmp_path / "one.keras")
        np.testing.assert_array_equal(answers(keras.models.load_model(tmp_path / "one.keras"), pixels[0])[0], main)


@pytest.mark.parametrize("at", [AT, ["conv2_block1_1_conv", "conv2_block2_2_bn", "conv2_block2_add", "conv1_conv"]])
def test_compiled_predictions_stay_the_same_bit_for_bit_as_well(at, pixels):
    # the compiler might fuse a convolution with what follows, unless a head needs what is between
    model = models.nested()
    extended = add_auxiliary_heads(model, at)
    main = extended.predict(pixels[0], verbose=0)[0]
    np.testing.assert_array_equal(model.predict(pixels[0], verbose=0), main)
    np.testing.assert_array_equal(remove_auxiliary_heads(extended).predict(pixels[0], verbose=0), main)


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_training_it_trains_the_original_and_removing_keeps_the_trained_weights(build, data, tmp_path):
    model = models.compiled(build(), 0.01, run_eagerly=True)
    before = models.snapshot(model)
    extended = add_auxiliary_heads(model, AT)
    kerastl.fit(extended, *data, **QUIET)
    assert len(models.changed(before, model)) > 20
    extended.save(tmp_path / "extended.keras")
    main = answers(extended, data[0])[0]
    for one in (
        remove_auxiliary_heads(extended),
        remove_auxiliary_heads(keras.models.load_model(tmp_path / "extended.keras")),
    ):
        np.testing.assert_array_equal(answers(one, data[0])[0], main)
    assert kerastl.fit(one, *data, **QUIET).history.keys() == {"loss", "accuracy"}


def test_a_head_sees_the_block_that_it_is_named_after(pixels):
    model = models.nested()
    extended = add_auxiliary_heads(model, ["conv2_block2", "conv2_block1_2_bn"])
    backbone = model.get_layer("tiny")
    for name, at in (("conv2_block2", "conv2_block2_out"), ("conv2_block1_2_bn", "conv2_block1_2_bn")):
        features_at = keras.Model(backbone.input, backbone.get_layer(at).output)((pixels[0] - 127.5) / 127.5)
        head = extended.get_layer(f"auxiliary_{name}")
        by_hand = head(keras.ops.mean(features_at, axis=(1, 2)))
        index = extended.output_names.index(head.name)
        np.testing.assert_allclose(by_hand, answers(extended, pixels[0])[index], atol=1e-6)


@pytest.mark.parametrize(("units", "activation"), [(1, "sigmoid"), (4, None), (2, "softmax")])
def test_heads_answer_as_the_main_output_does(units, activation):
    backbone = models.tiny_backbone()
    pooled = layers.GlobalAveragePooling2D()(backbone.output)
    model = keras.Model(backbone.input, layers.Dense(units, activation=activation, name="main")(pooled))
    head = add_auxiliary_heads(model, "conv2_block1").get_layer("auxiliary_conv2_block1")
    assert (head.units, head.activation.__name__) == (units, activation or "linear")


def test_heads_stay_float32_under_a_mixed_policy(pixels):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        extended = add_auxiliary_heads(models.nested(), AT)
        values = extended(pixels[0])
        assert [keras.backend.standardize_dtype(one.dtype) for one in values[1:]] == ["float32"] * 2
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_compile_is_kept_for_every_output_and_given_back():
    model = models.nested()
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2")]
    model.compile(
        keras.optimizers.SGD(0.02, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(), metrics=metrics
    )
    extended = add_auxiliary_heads(model, AT, weight=[0.3, 0.1])
    settings = extended._compile_config.config
    assert settings["loss_weights"] == dict(zip(NAMES, [1.0, 0.3, 0.1], strict=True))
    assert (type(extended.optimizer), extended.optimizer.momentum) == (keras.optimizers.SGD, 0.9)
    assert float(extended.optimizer.learning_rate) == pytest.approx(0.02)
    assert extended.optimizer is not model.optimizer
    tops = [settings["metrics"][name][1] for name in NAMES]
    assert [(one.name, one.get_config()["k"]) for one in tops] == [("top_2", 2)] * 3
    assert len({id(one) for one in [*tops, metrics[1]]}) == 4
    one = remove_auxiliary_heads(extended)
    assert isinstance(one.loss, keras.losses.SparseCategoricalCrossentropy)
    assert one._compile_config.config["loss_weights"] == 1.0
    assert float(one.optimizer.learning_rate) == pytest.approx(0.02)


def test_a_schedule_is_kept_and_a_forgotten_recompile_still_raises(data):
    model = models.nested()
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 10)), "sparse_categorical_crossentropy"
    )
    freezing.freeze(model)
    extended = add_auxiliary_heads(model, AT)
    assert isinstance(extended.optimizer._learning_rate, keras.optimizers.schedules.CosineDecay)
    with pytest.raises(CompileError, match="must be compiled"):
        kerastl.fit(extended, *data, **QUIET)
    kerastl.recompile(extended, 1e-3)
    assert set(kerastl.fit(extended, *data, **QUIET).history) == {"loss", *(f"{name}_loss" for name in NAMES)}


def test_a_model_that_was_not_compiled_gets_its_weights_from_train_head(data):
    extended = add_auxiliary_heads(models.nested(), AT, weight=[0.5, 0])
    training.train_head(extended, data, None, epochs=1, **QUIET)
    assert extended._compile_config.config["loss_weights"] == dict(zip(NAMES, [1.0, 0.5, 0.0], strict=True))
    assert "auxiliary_conv2_block1_accuracy" in extended.history.history


def test_more_heads_can_be_added_later(data):
    model = models.compiled(models.nested())
    once = add_auxiliary_heads(model, "conv2_block1", weight=0.2)
    twice = add_auxiliary_heads(once, "conv2_block2")
    assert twice.output_names == NAMES
    assert twice._compile_config.config["loss_weights"] == dict(zip(NAMES, [1.0, 0.2, 0.3], strict=True))
    np.testing.assert_array_equal(answers(twice, data[0])[1], answers(once, data[0])[1])
    assert remove_auxiliary_heads(twice).output_names == ["predictions"]
    with pytest.raises(ArgumentError, match="already"):
        add_auxiliary_heads(twice, "conv2_block2")


@pytest.mark.parametrize(
    ("at", "options", "message"),
    [
        ("conv2_blok1", {}, "Did you mean 'conv2_block1'"),
        ("predictions", {}, "layers or blocks of the backbone"),
        ("pool", {}, "layers or blocks of the backbone"),
        ([], {}, "`at` must be"),
        (["conv2_block1", "conv2_block1"], {}, "different names"),
        (3, {}, "`at` must be"),
        (AT, {"weight": [0.3]}, "each of the 2 heads"),
        (AT, {"weight": -1}, "at least 0"),
        (AT, {"weight": float("nan")}, "at least 0"),
        (AT, {"weight": "high"}, "at least 0"),
        (AT, {"dropout": 1.0}, "dropout"),
    ],
)
@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_what_cannot_be_done_is_said(build, at, options, message):
    with pytest.raises(ArgumentError, match=message):
        add_auxiliary_heads(build(), at, **options)


def test_models_that_heads_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="no auxiliary heads"):
        remove_auxiliary_heads(models.flat())
    with pytest.raises(ModelError, match="classifier"):
        add_auxiliary_heads(models.tiny_backbone(), "conv2_block1")
    base = models.tiny_backbone()
    pooled = layers.GlobalAveragePooling2D()(base.output)
    outputs = [layers.Dense(3, "softmax", name="kind")(pooled), layers.Dense(1, name="age")(pooled)]
    with pytest.raises(ModelError, match="age"):
        add_auxiliary_heads(keras.Model(base.input, outputs), "conv2_block1")
    with pytest.raises(ModelError, match="neither softmax"):
        add_auxiliary_heads(keras.Model(base.input, layers.Dense(3, "tanh")(pooled)), "conv2_block1")

    class Own(keras.Model):
        def train_step(self, *arguments):
            return {}

    with pytest.raises(ModelError, match="train_step"):
        add_auxiliary_heads(Own(base.input, layers.Dense(3, "softmax")(pooled)), "conv2_block1")
    shared, pair = models.tiny_backbone(), [keras.Input((32, 32, 3)), keras.Input((32, 32, 3))]
    x = layers.Add()([shared(one) for one in pair])
    with pytest.raises(ModelError, match="2 times"):
        add_auxiliary_heads(keras.Model(pair, models.head_layers(x)), "conv2_block1", backbone="tiny")
    inputs = keras.Input((32, 32, 3))
    x = layers.Reshape((16, 16, 8))(layers.Flatten(name="flat")(models.backbone_layers(inputs)))
    inner = keras.Model(inputs, x, name="inner")
    model = keras.Sequential([inner, layers.GlobalMaxPooling2D(), layers.Dense(2, "softmax")])
    with pytest.raises(ArgumentError, match="feature map"):
        add_auxiliary_heads(model, "flat")


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_freezing_finds_the_backbone_and_leaves_the_heads_trainable(build):
    model = build()
    extended = add_auxiliary_heads(model, AT)
    assert [block.layer_names for block in freezing.list_blocks(extended)] == [
        block.layer_names for block in freezing.list_blocks(model)
    ]
    freezing.freeze(extended)
    heads = {f"{name}/{weight}" for name in NAMES for weight in ("kernel", "bias")}
    assert {weight.path for weight in extended.trainable_variables} == heads
    freezing.unfreeze(extended, last_blocks=1)
    assert {weight.path.split("/")[-2] for weight in extended.trainable_variables} == {
        *("conv2_block3_1_conv", "conv2_block3_2_conv"),
        *NAMES,
    }
    summary = freezing.trainable_summary(extended)
    assert (summary.rows[-1].name, summary.rows[-1].parameters) == ("head", 3 * 27)
    assert {row.name: row.state for row in summary.rows}["conv2_block2"] == "frozen"


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_a_frozen_backbone_stays_frozen_in_the_new_model_and_in_the_one_given_back(build):
    model = freezing.freeze(build())
    extended = add_auxiliary_heads(model, AT)
    one = remove_auxiliary_heads(extended)
    assert len(extended.trainable_variables) == 6
    assert len(one.trainable_variables) == len(model.trainable_variables) == 2


@pytest.mark.parametrize("build", [models.flat, models.nested])
@pytest.mark.parametrize("choice", [{}, {"last_blocks": 1}, {"last_blocks": 2}])
def test_a_head_in_the_frozen_part_is_stored_pooled(build, choice, pixels):
    extended = add_auxiliary_heads(build(), AT)
    freezing.unfreeze(extended, **choice) if choice else freezing.freeze(extended)
    cut = find_cuts(extended)[-1]
    ends = {0: "pool", 1: "conv2_block2_out", 2: "conv2_block1_out"}
    hanging = {0: AT, 1: AT, 2: AT[:1]}[choice.get("last_blocks", 0)]
    assert cut.layer_names[0] == ends[choice.get("last_blocks", 0)]
    assert set(cut.layer_names[1:]) == {f"auxiliary_{name}_pool" for name in hanging}
    assert cut.values_per_image == (16 * 16 * 8 if choice else 8) + 8 * len(hanging)
    trunk, tail = cut.trunk(), cut.tail()
    assert not trunk.trainable_variables
    for ours, theirs in zip(tail(trunk(pixels[0])), extended(pixels[0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("build", "choice", "eagerly"),
    [(models.flat, {}, True), (models.nested, {"last_blocks": 1}, False)],
)
def test_a_cached_run_equals_plain_keras(build, choice, eagerly, data):
    cached, plain = (add_auxiliary_heads(build(), AT, dropout=0) for _ in range(2))
    plain.set_weights(cached.get_weights())
    for model in (cached, plain):
        freezing.unfreeze(model, **choice) if choice else freezing.freeze(model)
        model.compile(
            keras.optimizers.Adam(0.01),
            loss=dict.fromkeys(NAMES, "sparse_categorical_crossentropy"),
            loss_weights=dict(zip(NAMES, [1.0, 0.3, 0.2], strict=True)),
            metrics={"predictions": ["accuracy"]},
            weighted_metrics={"auxiliary_conv2_block2": ["accuracy"]},
            run_eagerly=eagerly,
        )
    weights = np.linspace(0.5, 1.5, 40).astype("float32")
    of_class = np.array([1.0, 3.0, 0.5], "float32")[data[1]]
    common = {"epochs": 2, "batch_size": 16, "shuffle": False, **QUIET}
    held = (data[0][:10], data[1][:10])
    first = kerastl.fit(
        cached,
        *data,
        cache=EXACT,
        sample_weight=weights,
        class_weight={0: 1.0, 1: 3.0, 2: 0.5},
        validation_data=held,
        **common,
    )
    second = plain.fit(
        data[0],
        [data[1]] * 3,
        sample_weight=[weights * of_class] * 3,
        validation_data=(held[0], [held[1]] * 3),
        **common,
    )
    assert first.history.keys() == second.history.keys()
    for name, values in second.history.items():
        np.testing.assert_allclose(first.history[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    for ours, theirs in zip(cached.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_transfer_learn_goes_by_the_main_output_and_caches_both_phases(data):
    results = []
    labels = np.eye(3, dtype="float32")[data[1]]
    for cache in (EXACT, False):
        keras.utils.set_random_seed(0)
        extended = add_auxiliary_heads(models.nested(), AT, dropout=0)
        extended.compile("adam", "categorical_crossentropy", run_eagerly=True)
        result = training.transfer_learn(
            extended,
            (data[0], labels),
            (data[0][:10], labels[:10]),
            last_blocks=1,
            head_epochs=1,
            fine_tune_epochs=2,
            cache=cache,
            class_weight="balanced",
            batch_size=40,  # all images in one batch: the order is no matter
            verbose=0,
        )
        assert result.monitor == "val_predictions_loss"
        values = [*result.head.history[result.monitor], *result.fine_tune.history[result.monitor]]
        assert result.best_phase == "start" or result.best_value == pytest.approx(min(values))
        results.append((extended.get_weights(), result))
    assert "extraction" in results[0][1].seconds
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_views_keep_augmented_versions_of_what_the_heads_take(data):
    extended = add_auxiliary_heads(models.compiled(models.nested(augmentation=True), run_eagerly=True), AT)
    history = training.train_head(extended, data, data, epochs=2, cache=True, views=2, **QUIET)
    assert len(history.history["loss"]) == 2


def test_plain_fit_works_the_keras_way(data):
    extended = add_auxiliary_heads(models.compiled(models.nested(), run_eagerly=True), AT)
    extended.fit(data[0], [data[1]] * 3, validation_split=0.25, **QUIET)
    history = extended.fit(data[0], dict.fromkeys(NAMES, data[1]), **QUIET)
    assert {f"{name}_accuracy" for name in NAMES} <= history.history.keys()


def test_a_compile_of_the_users_own_is_respected(data):
    extended = add_auxiliary_heads(models.nested(), AT, weight=0.3)
    losses = dict(
        zip(NAMES, [keras.losses.SparseCategoricalCrossentropy(), "sparse_categorical_crossentropy"], strict=False)
    )
    losses[NAMES[2]] = keras.losses.SparseCategoricalCrossentropy(ignore_class=0)
    extended.compile("sgd", losses, loss_weights={NAMES[0]: 2.0, NAMES[1]: 0.7, NAMES[2]: 0.0}, run_eagerly=True)
    training.train_head(extended, data, data, epochs=1, **QUIET)
    settings = extended._compile_config.config
    assert settings["loss"] == losses
    assert settings["loss_weights"] == {NAMES[0]: 2.0, NAMES[1]: 0.7, NAMES[2]: 0.0}
    one = remove_auxiliary_heads(extended)
    assert one.loss is losses["predictions"]
    assert one._compile_config.config["loss_weights"] == 2.0


def test_predict_and_evaluate_read_the_main_output(data):
    model = models.nested()
    extended = add_auxiliary_heads(model, AT)
    np.testing.assert_array_equal(
        kerastl.predict(extended, data[0]).probabilities, kerastl.predict(model, data[0]).probabilities
    )
    assert kerastl.evaluate(extended, data).accuracy == kerastl.evaluate(model, data).accuracy


def test_costs_count_the_heads():
    model = models.nested()
    extended = add_auxiliary_heads(model, AT)
    assert kerastl.model_cost(extended).macs - kerastl.model_cost(model).macs == 2 * 8 * 3
    assert kerastl.model_cost(remove_auxiliary_heads(extended)).macs == kerastl.model_cost(model).macs


def test_real_backbones_take_heads_at_their_blocks(pixels):
    model = kerastl.build_classifier("mobilenet_v2", 3, input_shape=32, weights=None, alpha=0.35, augmentation="flips")
    extended = kerastl.add_auxiliary_heads(model, ["block_6", "block_12"])
    assert extended.output_names == ["predictions", "auxiliary_block_6", "auxiliary_block_12"]
    assert len(extended.trainable_variables) == 6
    one = kerastl.remove_auxiliary_heads(extended)
    np.testing.assert_array_equal(answers(one, pixels[0])[0], answers(extended, pixels[0])[0])
