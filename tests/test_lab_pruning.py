"""Pruning: the smallest weights go, stay away through every kind of training, and the file zips smaller."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import kerastl
from kerastl.errors import ArgumentError, DataError, KerastlWarning, ModelError
from kerastl.features.plan import CacheOptions
from kerastl.models import freezing
from kerastl.training import recipe as training
from kerastl.training.session import fit
from tests import models

EXACT = CacheOptions(dtype="float32", engine="keras")


def values(layer) -> np.ndarray:
    return keras.ops.convert_to_numpy(layer.kernel)


def kernels_of(model) -> dict:
    """Return `{path: kernel}` of all convolutions and dense layers."""
    return {path: value for path, value in models.snapshot(model).items() if path.endswith("/kernel")}


def zeros_of(model) -> dict:
    """Return where each kernel is zero."""
    return {path: kernel == 0 for path, kernel in kernels_of(model).items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def mobile(classes: int = 3) -> keras.Model:
    """A little of everything: depthwise by both ways, separable, grouped, dense."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, name="stem")(inputs)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2D(8, 3, groups=8, padding="same", name="depthwise_by_groups")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Conv2D(8, 1, groups=2, name="grouped")(x)
    x = layers.SeparableConv2D(6, 3, name="separable")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="predictions")(x))


def small() -> keras.Model:
    """As little as can be trained, compiled: a convolution, BatchNorm, a dense layer. Eager: tracing takes seconds."""
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, strides=8, name="convolution"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax", name="predictions"),
        ]
    )
    return models.compiled(model, 0.01, run_eagerly=True)


@pytest.fixture(scope="module")
def untouched():
    return models.flat(blocks=1)


@pytest.mark.parametrize("build", [models.flat, models.nested, models.sequential])
def test_each_kernel_loses_its_smallest_weights(build):
    model = build()
    before, weights = kernels_of(model), models.snapshot(model)
    assert kerastl.prune(model, 0.6) is model
    for path, new in kernels_of(model).items():
        old = before[path]
        assert (new == 0).sum() == round(0.6 * new.size)
        kept = new != 0
        assert (new[kept] == old[kept]).all()
        assert np.abs(old[~kept]).max() <= np.abs(old[kept]).min()
    assert models.changed(weights, model) == before.keys()  # no bias, no BatchNorm


def test_globally_the_smallest_of_all_go():
    model = models.flat()
    arrays = kernels_of(model)
    kerastl.prune(model, 0.5, scope="global")
    report = kerastl.sparsity_report(model)
    total = sum(row.weights for row in report.rows)
    assert report.zeros == round(0.5 * total)
    threshold = np.sort(np.abs(np.concatenate([array.ravel() for array in arrays.values()])))[report.zeros - 1]
    for path, kernel in kernels_of(model).items():
        assert ((kernel == 0) == (np.abs(arrays[path]) <= threshold)).all()
    assert len({round(row.sparsity, 3) for row in report.rows}) > 1


def test_depthwise_kernels_stay_unless_they_are_named():
    model = mobile()
    assert [row.name for row in kerastl.sparsity_report(model).rows] == ["stem", "grouped", "separable", "predictions"]
    separable = model.get_layer("separable")
    kerastl.prune(model, 0.5)
    assert (keras.ops.convert_to_numpy(separable.depthwise_kernel) != 0).all()
    assert (keras.ops.convert_to_numpy(separable.pointwise_kernel) == 0).mean() == 0.5
    kerastl.prune(model, 0.5, layers=keras.layers.DepthwiseConv2D)
    kerastl.prune(model, 0.5, layers="depthwise_by_groups")
    assert (values(model.get_layer("depthwise")) == 0).mean() == 0.5
    assert (values(model.get_layer("depthwise_by_groups")) == 0).mean() == 0.5


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("conv2_block2_1_conv", {"conv2_block2_1_conv"}),
        ("conv2_block2", {"conv2_block2_1_conv", "conv2_block2_2_conv"}),
        (keras.layers.Dense, {"predictions"}),
        (["conv1_conv", keras.layers.Dense], {"conv1_conv", "predictions"}),
    ],
)
@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_layers_are_chosen_by_name_block_or_class(build, choice, expected):
    model = build(blocks=2)
    kerastl.prune(model, 0.5, layers=choice)
    assert {row.name for row in kerastl.sparsity_report(model).rows if row.zeros} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"in \[0, 1\).*Received: sparsity=1.0"),
        ({"sparsity": -0.1}, "Received: sparsity=-0.1"),
        ({"sparsity": 50}, "Received: sparsity=50"),
        ({"sparsity": 0.5, "scope": "model"}, "'layer', 'global'"),
        ({"sparsity": 0.5, "layers": "conv1_conb"}, "Did you mean 'conv1_conv'"),
        ({"sparsity": 0.5, "layers": "conv1_bn"}, "with a kernel"),
        ({"sparsity": 0.5, "layers": keras.layers.LayerNormalization}, "'LayerNormalization'"),
        ({"sparsity": 0.5, "layers": []}, "must be a name"),
        ({"sparsity": 0.5, "layers": [3]}, "names and layer classes"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_anything_changes(arguments, message, untouched):
    model = untouched
    before = models.snapshot(model)
    with pytest.raises(ArgumentError, match=message):
        kerastl.prune(model, **arguments)
    assert not models.changed(before, model)


def test_a_model_without_kernels_is_an_error():
    inputs = keras.Input((4, 4, 3))
    with pytest.raises(ModelError, match="no convolution"):
        kerastl.prune(keras.Model(inputs, layers.BatchNormalization()(inputs)), 0.5)


def test_a_kernel_that_loses_everything_is_named():
    model = models.flat()
    layer = model.get_layer("conv2_block1_1_conv")
    layer.kernel.assign(values(layer) * 1e-6)
    with pytest.warns(KerastlWarning, match="conv2_block1_1_conv"):
        kerastl.prune(model, 0.5, scope="global")


def test_pruning_again_goes_on_from_there():
    model = models.flat()
    kerastl.prune(model, 0.5)
    first = zeros_of(model)
    kerastl.prune(model, 0.5)
    kerastl.prune(model, 0.2)
    assert same(first, zeros_of(model))
    kerastl.prune(model, 0.8)
    for path, zero in zeros_of(model).items():
        assert zero[first[path]].all()
        assert zero.sum() == round(0.8 * zero.size)


@given(
    array=st.lists(st.floats(-1, 1, width=32), min_size=30, max_size=30).map(lambda items: np.array(items, "float32")),
    sparsity=st.floats(0, 0.99),
)
@settings(max_examples=100, deadline=None)
def test_pruning_drops_exactly_the_count_and_only_the_smallest(array, sparsity):
    model = keras.Sequential([keras.Input((30,)), layers.Dense(1, name="dense")])
    layer = model.get_layer("dense")
    layer.kernel.assign(array[:, None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KerastlWarning)  # everything was zero before
        kerastl.prune(model, sparsity)
    kept = values(layer)[:, 0] != 0
    assert (~kept).sum() == max(round(sparsity * array.size), (array == 0).sum())
    if kept.any() and (~kept).any():
        assert np.abs(array[~kept]).max() <= np.abs(array[kept]).min()


def test_without_the_callback_training_fills_the_zeros(pixels):
    model = kerastl.prune(small(), 0.7)
    model.fit(*pixels, epochs=1, verbose=0, batch_size=4)
    assert kerastl.sparsity_report(model).sparsity < 0.1


def with_a_trained_end(run_eagerly: bool = True) -> keras.Model:
    model = freezing.unfreeze(models.nested(blocks=2), last_blocks=1)
    return models.compiled(model, 0.01, run_eagerly=run_eagerly)


def train_by(way, model, pixels, callbacks, **arguments):
    validation = (pixels[0][:6, ::-1], pixels[1][:6])
    arguments = {"callbacks": callbacks, "verbose": 0, "epochs": 2, "batch_size": 4, **arguments}
    if way == "model.fit":
        model.fit(*pixels, validation_data=validation, **arguments)
    elif way == "fit cached":
        fit(model, *pixels, cache=EXACT, validation_data=validation, **arguments)
    elif way == "fine_tune":
        training.fine_tune(model, pixels, validation, learning_rate=0.01, cache=EXACT, **arguments)
    else:
        del arguments["epochs"]
        training.transfer_learn(
            model, pixels, validation, head_epochs=1, fine_tune_epochs=2, last_blocks=1, **arguments
        )


@pytest.mark.parametrize("way", ["model.fit", "fit cached", "fine_tune", "transfer_learn"])
def test_zeros_are_kept_in_every_kind_of_training(way, pixels):
    model = kerastl.prune(with_a_trained_end(run_eagerly=way != "model.fit"), 0.7)
    before, weights = zeros_of(model), models.snapshot(model)
    train_by(way, model, pixels, [kerastl.keep_pruned()])
    assert same(before, zeros_of(model))
    if way != "transfer_learn" and way != "fine_tune":  # those may find the start to be the best
        assert any("conv2_block2" in path for path in models.changed(weights, model))


def test_zeros_are_there_at_every_step(pixels):
    """A step that starts with filled zeros would train another model than the one that is kept."""
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if not hasattr(self.model, "jax_state_sync"):  # there the weights are away between the steps
                seen.append(kerastl.sparsity_report(self.model).sparsity)

    model = kerastl.prune(small(), 0.7)
    train_by("model.fit", model, pixels, [kerastl.keep_pruned(), Watch()])
    assert {round(value, 6) for value in seen} <= {round(kerastl.sparsity_report(model).sparsity, 6)}


def test_keeping_what_is_not_there_warns(pixels):
    model = small()
    with pytest.warns(KerastlWarning, match="Nothing is zero"):
        model.fit(*pixels, verbose=0, callbacks=[kerastl.keep_pruned()])


def test_keeping_zeros_of_frozen_layers_alone_is_an_error(pixels):
    model = kerastl.prune(with_a_trained_end(), 0.7)
    with pytest.raises(ArgumentError, match="frozen"):
        model.fit(*pixels, verbose=0, callbacks=[kerastl.keep_pruned(layers="conv1_conv")])


@pytest.mark.parametrize(("way", "scope"), [("model.fit", "layer"), ("fit cached", "global")])
def test_gradual_pruning_reaches_its_sparsity_in_what_trains(way, scope, pixels):
    model = with_a_trained_end()
    callback = kerastl.gradual_pruning(0.75, scope=scope)
    reached = []
    follow = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: reached.append(callback.reached))
    train_by(way, model, pixels, [callback, follow], epochs=4, batch_size=8)
    rows = {row.name: row.sparsity for row in kerastl.sparsity_report(model).rows}
    trained = {"conv2_block2_1_conv", "conv2_block2_2_conv", "predictions"}
    assert {name for name, sparsity in rows.items() if sparsity} == trained
    if scope == "layer":
        assert all(rows[name] == pytest.approx(0.75, abs=0.02) for name in trained)
    assert callback.reached == pytest.approx(0.75, abs=0.01)
    assert callback.settled
    assert reached == sorted(reached)
    assert reached[2] < reached[3] == reached[-1]  # half of 4 epochs of 2 steps
    assert reached[1] == pytest.approx(0.75 * (1 - 0.5**3), abs=0.01)  # the paper's schedule, halfway


def test_gradual_pruning_of_data_of_unknown_length_goes_by_epochs():
    callback, reached = kerastl.gradual_pruning(0.5, ramp=0.5), []
    callback.set_model(small())
    callback.set_params({"epochs": 6, "steps": None})
    callback.on_train_begin()
    for epoch in range(2, 6):  # as `initial_epoch=2` has it
        callback.on_epoch_begin(epoch)
        reached.append(callback.reached)
        callback.on_train_batch_end(0)
    assert reached == pytest.approx([0.5 * (1 - 0.5**3), 0.5, 0.5, 0.5], abs=0.01)
    assert callback.settled


def test_fine_tuning_looks_for_its_best_weights_among_the_pruned(pixels):
    """The best epoch by far would be the first, at no sparsity: restoring it would undo the pruning silently."""
    model = models.compiled(models.nested(blocks=1), 0.01, run_eagerly=True)
    losses = iter([0.001, 3.0, 2.0, 4.0])

    class Losses(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = next(losses)

    history = training.fine_tune(
        model,
        pixels,
        (pixels[0][:6], pixels[1][:6]),
        last_blocks=1,
        learning_rate=0.01,
        epochs=4,
        batch_size=8,
        keep="best",
        cache=False,
        verbose=0,
        callbacks=[kerastl.gradual_pruning(0.7, ramp=1.5 / 4), Losses()],
    )
    assert (history.best_epoch, history.best_value) == (3, 2.0)
    assert (values(model.get_layer("predictions")) == 0).mean() == pytest.approx(0.7, abs=0.05)


def test_a_training_that_ends_too_early_says_so(pixels):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    model = small()
    with pytest.warns(KerastlWarning, match=r"before the 80.0%"):
        model.fit(*pixels, epochs=8, verbose=0, callbacks=[kerastl.gradual_pruning(0.8), Stop()])


def test_weights_put_back_from_before_are_pruned_and_named(pixels):
    class FirstIsBest(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["value"] = float(epoch)

    stopping = keras.callbacks.EarlyStopping(monitor="value", mode="min", patience=3, restore_best_weights=True)
    model = small()
    callbacks = [FirstIsBest(), stopping, kerastl.gradual_pruning(0.6)]
    with pytest.warns(KerastlWarning, match="put back weights"):
        model.fit(*pixels, epochs=4, verbose=0, batch_size=4, callbacks=callbacks)
    assert kerastl.sparsity_report(model).sparsity == pytest.approx(0.6, abs=0.01)


def test_frozen_layers_cannot_be_named_for_gradual_pruning(pixels):
    model = with_a_trained_end()
    with pytest.raises(ArgumentError, match=r"'conv1_conv'.*kerastl\.prune"):
        model.fit(*pixels, verbose=0, callbacks=[kerastl.gradual_pruning(0.5, layers=["conv1_conv", "predictions"])])


@pytest.mark.parametrize(
    "arguments", [{"sparsity": 1.0}, {"sparsity": 0.5, "ramp": 0}, {"sparsity": 0.5, "scope": "all"}]
)
def test_gradual_pruning_checks_its_arguments_at_once(arguments):
    with pytest.raises(ArgumentError, match="Received"):
        kerastl.gradual_pruning(**arguments)


def test_zeros_survive_the_file_and_zip_well(tmp_path):
    model = models.nested()
    dense = kerastl.zipped_size(model)
    kerastl.prune(model, 0.8)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert same(zeros_of(model), {path: zeros_of(again)[path] for path in zeros_of(model)})
    assert kerastl.zipped_size(again) == kerastl.zipped_size(model) < 0.5 * dense
    assert kerastl.zipped_size(tmp_path / "model.keras") < (tmp_path / "model.keras").stat().st_size
    with pytest.raises(DataError, match="path of a file"):
        kerastl.zipped_size(tmp_path / "nothing.tflite")


def test_no_negative_zeros():
    """Their bytes are not zeros, and zip worse."""
    for kernel in kernels_of(kerastl.prune(models.flat(), 0.9)).values():
        assert not np.signbit(kernel[kernel == 0]).any()


def test_the_report_prints_and_renders():
    model = kerastl.prune(models.flat(), 0.5, layers="predictions")
    report = kerastl.sparsity_report(model)
    assert report.to_rows()[-1] == {
        "name": "predictions",
        "kind": "Dense",
        "weights": 24,
        "zeros": 12,
        "sparsity": 0.5,
    }
    assert report.model_sparsity == 12 / model.count_params()
    assert "predictions" in str(report)
    assert "50.0%" in str(report)
    assert report._repr_html_().startswith("<table>")


def test_keras_quantize_leaves_convolutions_as_they_are():
    """Fails when Keras learns to quantize convolutions: docs/pruning.md says that it doesn't."""
    model = mobile()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.quantize("int8")
    said = [str(warning.message) for warning in caught]
    convolutions = ("stem", "depthwise", "depthwise_by_groups", "grouped", "separable")
    for name in convolutions:
        layer = model.get_layer(name)
        assert all("float32" in str(weight.dtype) for weight in layer.weights)
        assert getattr(layer, "quantization_mode", None) is None
        assert any(name in text or type(layer).__name__ in text for text in said)
    dense = model.get_layer("predictions")
    assert dense.quantization_mode == "int8"
    assert [str(weight.dtype) for weight in dense.weights if len(weight.shape) > 1] == ["int8"]
    with pytest.raises(ArgumentError, match="No layer with a kernel"):
        kerastl.prune(model, 0.5, layers="predictions")  # integers are not pruned


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "file.bin").write_bytes(bytes(1000))
    assert kerastl.zipped_size("~/file.bin") == kerastl.zipped_size(tmp_path / "file.bin")
