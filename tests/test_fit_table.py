"""`kerastl.fit` is `model.fit`: every line of the table in docs/how-to/fit.md, trained both ways."""

import importlib.util
import pathlib
import re

import keras
import numpy as np
import pytest

from kerastl.errors import ArgumentError
from kerastl.features.plan import CacheOptions
from kerastl.models import freezing
from kerastl.training.session import fit
from tests import models

tf = pytest.importorskip("tensorflow")

pytestmark = pytest.mark.filterwarnings("ignore:No cost formula")
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "how-to" / "fit.md"
TABLE = dict(re.findall(r"^\| ([^|]+?) \| (features|images) \|", PAGE.read_text("utf-8"), re.MULTILINE))
EXACT = CacheOptions(dtype="float32", engine="keras", insist=False)
SHORT = {"epochs": 2, "shuffle": False, "verbose": 0, "batch_size": 16}


def dataset(data, size=16):
    return tf.data.Dataset.from_tensor_slices(data).batch(size)


def held(data):
    return data[0][:24], data[1][:24]


class Predicts(keras.callbacks.Callback):
    """Asks the model for predictions within an epoch; the log holds them, and so are compared."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def on_epoch_end(self, epoch, logs=None):
        logs["predicted"] = float(self.model.predict(self.images, verbose=0)[0, 0])


class Adds(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.mean(inputs))
        return inputs


class Own(keras.Model):
    def train_step(self, data):
        return {**super().train_step(data), "own": 1.0}


def rebuilt(kind):
    """Return a model of some kind, frozen up to its head."""
    keras.utils.set_random_seed(0)
    inner = models.nested()
    if kind is Own:
        return models.compiled(Own(inner.inputs, freezing.freeze(inner).outputs), 0.01)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", trainable=False)(inputs)
    x = Adds()(x) if kind is Adds else x
    x = keras.layers.GlobalAveragePooling2D()(x)
    second = keras.Input((3,))
    if kind == "inputs":
        both = keras.layers.Concatenate()([x, second])
        return models.compiled(keras.Model([inputs, second], keras.layers.Dense(3, activation="softmax")(both)), 0.01)
    outputs = [keras.layers.Dense(3, activation="softmax", name=name)(x) for name in ("one", "two")]
    if kind == "outputs":
        losses = ["sparse_categorical_crossentropy"] * 2
        return models.compiled(keras.Model(inputs, outputs), 0.01, loss=losses, metrics=None)
    return models.compiled(keras.Model(inputs, outputs[0]), 0.01)


def recompiled(learning_rate=0.01, **arguments):
    """Return how to make a model that was compiled with such arguments."""

    def build():
        settings = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **arguments}
        model = models.twins()[0]
        model.compile(keras.optimizers.Adam(learning_rate), **settings)
        return model

    return build


def with_callbacks(make):
    return lambda data, folder: {"validation_data": held(data), "epochs": 4, "callbacks": [make(folder)]}


callbacks = keras.callbacks
# name in the table: how to make the model, and the arguments beside the images, the labels and those of SHORT
CASES = {
    "`validation_data`, a tuple": (None, lambda data, folder: {"validation_data": held(data)}),
    "`validation_data`, a dataset": (None, lambda data, folder: {"validation_data": dataset(held(data))}),
    "`validation_split`": (None, lambda data, folder: {"validation_split": 0.3}),
    "`validation_freq`": (
        None,
        lambda data, folder: {"validation_data": held(data), "validation_freq": 2, "epochs": 4},
    ),
    "`validation_batch_size`": (
        None,
        lambda data, folder: {"validation_data": held(data), "validation_batch_size": 5},
    ),
    "`validation_steps`": (None, lambda data, folder: {"validation_data": held(data), "validation_steps": 1}),
    "`sample_weight`": (None, lambda data, folder: {"sample_weight": np.linspace(0, 2, 40)}),
    "`class_weight`": (None, lambda data, folder: {"class_weight": {0: 1.0, 1: 3.0, 2: 0.5}}),
    "`batch_size`": (None, lambda data, folder: {"batch_size": 7}),
    "`initial_epoch`": (None, lambda data, folder: {"initial_epoch": 3, "epochs": 5}),
    "`steps_per_epoch`": (None, lambda data, folder: {"steps_per_epoch": 1}),
    "`x` and `y` as a dataset": (None, lambda data, folder: {"x": dataset(data), "y": None, "batch_size": None}),
    "a learning rate schedule": (recompiled(keras.optimizers.schedules.CosineDecay(0.05, 6)), None),
    "`ReduceLROnPlateau`": (
        recompiled(0.5),
        with_callbacks(lambda folder: callbacks.ReduceLROnPlateau(patience=1, min_delta=0.5)),
    ),
    "`LearningRateScheduler`": (
        None,
        with_callbacks(lambda folder: callbacks.LearningRateScheduler(lambda epoch: 0.05 / (1 + epoch))),
    ),
    "`EarlyStopping`": (
        recompiled(0.5),
        with_callbacks(lambda folder: callbacks.EarlyStopping(patience=1, restore_best_weights=True)),
    ),
    "`ModelCheckpoint`": (
        None,
        with_callbacks(lambda folder: callbacks.ModelCheckpoint(folder / "kept.keras", save_best_only=True)),
    ),
    "`BackupAndRestore`": (None, with_callbacks(lambda folder: callbacks.BackupAndRestore(folder / "backup"))),
    "`CSVLogger`": (None, with_callbacks(lambda folder: callbacks.CSVLogger(folder / "log.csv"))),
    "`TensorBoard`": (None, with_callbacks(lambda folder: callbacks.TensorBoard(folder / "board"))),
    "`TerminateOnNaN`": (recompiled(float("1e30")), with_callbacks(lambda folder: callbacks.TerminateOnNaN())),
    "`self.model.predict` in a callback": (
        None,
        lambda data, folder: {"callbacks": [Predicts(data[0][:3])]},
    ),
    "`run_eagerly`": (recompiled(run_eagerly=True), None),
    "`jit_compile`": (recompiled(jit_compile=True), None),
    "`steps_per_execution`": (recompiled(steps_per_execution=2), None),
    "`loss_weights`": (recompiled(loss_weights=[0.3]), None),
    "`weighted_metrics`": (
        recompiled(weighted_metrics=["accuracy"]),
        lambda data, folder: {"sample_weight": np.linspace(0, 2, 40)},
    ),
    "a metric that is an object": (
        lambda: recompiled(metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="two")])(),
        None,
    ),
    "several inputs": (
        lambda: rebuilt("inputs"),
        lambda data, folder: {"x": [data[0], np.zeros((40, 3), "float32")]},
    ),
    "several outputs": (lambda: rebuilt("outputs"), lambda data, folder: {"y": [data[1], data[1]]}),
    "a `train_step` of the model's own": (lambda: rebuilt(Own), None),
    "a frozen layer of one's own that adds a loss": (lambda: rebuilt(Adds), None),
}
ELSEWHERE = {"`shuffle`", "`mixed_float16`", "a generator", "a random `map` in a dataset"}  # tests of their own


def test_every_line_of_the_table_has_a_test_and_every_test_its_line():
    assert {*CASES, *ELSEWHERE} == {*TABLE}


def both_ways(data, make, options, folder):
    """Return `(history, weights, files written)` of `kerastl.fit`, then of `model.fit`."""
    results = []
    for name, train in (("cached", lambda model, **rest: fit(model, cache=EXACT, **rest)), ("plain", keras.Model.fit)):
        (folder / name).mkdir()
        model = make()
        given = {"x": data[0], "y": data[1], **SHORT, **(options(data, folder / name) if options else {})}
        if given["y"] is None:
            given = {key: value for key, value in given.items() if value is not None}
        history = train(model, **given)
        written = sorted(path.name.split(".")[0] for path in (folder / name).iterdir())
        results.append((history, model.get_weights(), written))
    return results


NEEDS_TENSORBOARD = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs TensorBoard")
MARKED = [pytest.param(name, marks=NEEDS_TENSORBOARD if name == "`TensorBoard`" else ()) for name in CASES]


@pytest.mark.parametrize("name", MARKED)
def test_the_numbers_are_those_of_fit(name, data, tmp_path, capsys):
    make, options = CASES[name]
    first, second = both_ways(data, make or (lambda: models.twins()[0]), options, tmp_path)
    assert first[0].epoch == second[0].epoch
    assert first[0].history.keys() == second[0].history.keys()
    for key, values in second[0].history.items():
        np.testing.assert_allclose(first[0].history[key], values, rtol=2e-3, atol=1e-4, err_msg=key)
    for one, other in zip(first[1], second[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-3)
    assert first[2] == second[2]


@pytest.mark.parametrize("name", [name for name in CASES if name in TABLE])
def test_it_runs_on_what_the_table_says(name, data, tmp_path, monkeypatch):
    make, options = CASES[name]
    make, given = make or (lambda: models.twins()[0]), {"x": data[0], "y": data[1], **SHORT, "epochs": 1}
    given |= options(data, tmp_path) if options else {}
    given = {key: value for key, value in given.items() if value is not None}
    model, seen = make(), []
    monkeypatch.setattr(type(model), "fit", lambda self, x=None, *rest, **options: seen.append(x))
    if TABLE[name] == "images":
        fit(model, cache="auto", **given)
        assert seen[0] is given["x"]
        with pytest.raises(ArgumentError, match=r"can't be run once: .+`cache=False"):
            fit(model, cache=True, **given)
    else:
        fit(model, cache=True, **given)
        assert seen[0] is not given["x"]


def test_half_precision_trains_as_well(data):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        cached, plain = models.twins()
        options = {**SHORT, "epochs": 6}
        first = fit(cached, *data, cache=EXACT, **options)
        second = plain.fit(*data, **options)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(first.history["loss"], second.history["loss"], rtol=2e-2)


def test_images_are_shuffled_by_default_and_the_seed_decides(data):
    losses = []
    for seed in (0, 0, 1):
        model = models.twins()[0]
        keras.utils.set_random_seed(seed)
        losses.append(fit(model, *data, cache=EXACT, epochs=2, batch_size=8, verbose=0).history["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != pytest.approx(losses[2], rel=1e-4)


def test_a_generator_trains_by_fit(data, capsys):
    def batches():
        while True:
            yield data[0][:16], data[1][:16]

    history = fit(models.twins()[0], batches(), steps_per_epoch=2, epochs=1, shuffle=False, verbose=2)
    assert len(history.history["loss"]) == 1
    assert capsys.readouterr().out.count("The frozen part runs in every epoch") == 1
