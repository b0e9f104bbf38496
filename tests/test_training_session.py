"""`kerastl.fit` is `model.fit`: what callbacks, subclasses and arguments see when the frozen part runs once."""

import contextlib

import keras
import numpy as np
import pytest

from kerastl.data.batches import adapt
from kerastl.errors import ArgumentError
from kerastl.features.plan import CacheOptions
from kerastl.models import freezing
from kerastl.training import session as session_module
from tests import models
from tests.models import twins

tf = pytest.importorskip("tensorflow")

pytestmark = models.EAGERLY
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


def dataset_of(data, shuffle=None, augment=False):
    dataset = tf.data.Dataset.from_tensor_slices(data)
    if shuffle is not None:
        dataset = dataset.shuffle(40, reshuffle_each_iteration=shuffle)
    dataset = dataset.batch(8)
    if augment:
        flip = keras.layers.RandomFlip("horizontal", seed=1)
        dataset = dataset.map(lambda images, labels: (flip(images, training=True), labels))
    return dataset.prefetch(1)


class Reordered(keras.utils.PyDataset):
    def __init__(self, data):
        super().__init__()
        self.images, self.labels = data
        self.order = np.arange(len(self.labels))

    def __len__(self):
        return 5

    def __getitem__(self, index):
        chosen = self.order[index * 8 : index * 8 + 8]
        return self.images[chosen], self.labels[chosen]

    def on_epoch_end(self):
        self.order = self.order[::-1]


def loader_of(data, shuffle=False):
    torch_data = pytest.importorskip("torch.utils.data")
    pairs = [(torch_data.default_convert(image), int(label)) for image, label in zip(*data, strict=True)]
    return torch_data.DataLoader(pairs, batch_size=8, shuffle=shuffle)


def grain_of(data, shuffle=False):
    import grain

    dataset = grain.MapDataset.source(list(zip(*data, strict=True)))
    return (dataset.seed(0).shuffle() if shuffle else dataset).batch(8)


def test_a_dataset_is_cached_by_default_and_trains_as_in_fit(data, capsys):
    cached, plain = twins()
    train, held = dataset_of(data), dataset_of((data[0][:16], data[1][:16]))
    first = session_module.fit(cached, train, validation_data=held, epochs=2, verbose=2)
    assert "The frozen part runs once" in capsys.readouterr().out
    second = plain.fit(train, validation_data=held, epochs=2, shuffle=False, verbose=0)
    for name, values in second.history.items():
        np.testing.assert_allclose(first.history[name], values, rtol=2e-2, atol=1e-2)  # the store's float16


@pytest.mark.parametrize(
    ("make", "reshuffles"),
    [
        (dataset_of, False),
        (lambda data: dataset_of(data, shuffle=True), True),
        (lambda data: dataset_of(data, shuffle=False), False),
        (lambda data: dataset_of(data, shuffle=True).cache(), False),
        (lambda data: dataset_of(data).map(lambda images, labels: (images / 2, labels)).unbatch().batch(4), False),
        (lambda data: dataset_of(data, shuffle=True).unbatch().batch(16).prefetch(2), True),
        (Reordered, True),
        (loader_of, False),
        (lambda data: loader_of(data, shuffle=True), True),
        (grain_of, False),
        (lambda data: grain_of(data, shuffle=True).to_iter_dataset(), False),  # one order, drawn once
    ],
)
def test_a_dataset_that_comes_in_another_order_is_shuffled_in_every_epoch(data, make, reshuffles, monkeypatch):
    made = []

    class Spied(session_module.FeatureBatches):
        def __init__(self, *arguments, **options):
            made.append(options["shuffle"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(session_module, "FeatureBatches", Spied)
    session_module.fit(twins()[0], make(data), cache=True, verbose=0)
    assert made == [reshuffles]


@pytest.mark.parametrize("shuffle", [None, True])
def test_an_augmentation_in_a_dataset_is_found_and_never_frozen(data, capsys, shuffle):
    augmented = dataset_of(data, shuffle, augment=True)
    session_module.fit(twins()[0], augmented, epochs=3, verbose=2)
    said = capsys.readouterr().out
    assert "The frozen part runs in every epoch: the dataset gives other images at every pass" in said
    assert "Epoch 3/3" in said
    with pytest.raises(ArgumentError, match=r"pass views=4\. Or pass `cache=False`"):
        session_module.fit(twins()[0], augmented, cache=True, verbose=0)
    session_module.fit(twins()[0], augmented, cache=False, verbose=0)
    model = models.compiled(freezing.freeze(models.nested(augmentation=True)))
    session_module.fit(model, dataset_of(data), views=2, verbose=0)  # a horizontal flip makes two


def test_photographs_of_a_directory_are_cached_with_their_labels(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for index in range(24):
        folder = tmp_path / ("dark", "light")[index % 2]
        folder.mkdir(exist_ok=True)
        image = generator.integers(0, 100, (32, 32, 3)) + 150 * (index % 2)
        keras.utils.save_img(folder / f"{index}.png", image, scale=False)
    photographs = keras.utils.image_dataset_from_directory(tmp_path, image_size=(32, 32), batch_size=8, verbose=0)
    model = models.compiled(freezing.freeze(models.nested(classes=2)), 0.05)
    history = session_module.fit(model, photographs, validation_data=photographs, epochs=30, verbose=2)
    assert "The frozen part runs once" in capsys.readouterr().out
    assert history.history["val_accuracy"][-1] == 1
    assert model.evaluate(photographs, verbose=0, return_dict=True)["accuracy"] == 1


@pytest.mark.parametrize("form", [lambda x: {"image": x}, lambda x: [x], lambda x: (x,)])
@pytest.mark.parametrize("cache", [EXACT, False])
def test_one_array_in_a_list_or_dictionary_is_that_array(data, form, cache):
    cached, plain = twins()
    held = (form(data[0][:16]), data[1][:16])
    first = session_module.fit(
        cached, form(data[0]), data[1], validation_data=held, shuffle=False, cache=cache, epochs=2, verbose=0
    )
    second = plain.fit(*data, validation_data=(data[0][:16], data[1][:16]), shuffle=False, epochs=2, verbose=0)
    for name, values in second.history.items():
        np.testing.assert_allclose(first.history[name], values, rtol=1e-4)


def test_a_sequential_that_is_not_built_yet_is_built_by_its_data(data, capsys):
    backbone = models.tiny_backbone()
    backbone.trainable = False
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.layers.Rescaling(1 / 255), backbone, *head])
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = session_module.fit(model, *data, epochs=20, verbose=2)
    assert "The frozen part runs once" in capsys.readouterr().out
    assert history.history["accuracy"][-1] > 0.5  # by chance a third


@pytest.mark.parametrize("refused", [{"validation_split": 0.2}, {"sample_weight": np.ones(40)}, {"y": np.zeros(40)}])
@pytest.mark.parametrize("make", [dataset_of, Reordered])
@pytest.mark.parametrize("cache", ["auto", True])
def test_what_fit_takes_with_arrays_alone_is_refused_as_by_fit(data, make, refused, cache):
    with pytest.raises(ValueError, match=r"should not be passed|only supported for"):
        session_module.fit(twins()[0], make(data), cache=cache, verbose=0, **refused)


class AddsALoss(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.mean(inputs))
        return inputs


class Counts(keras.layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, inputs, training=None):
        if training:
            self.count.assign_add(1)
        return inputs


class Brightens(keras.layers.Layer):
    def call(self, inputs, training=None):
        return inputs + 1 if training else inputs


class Doubles(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2


@pytest.mark.filterwarnings("ignore:No cost formula")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (AddsALoss, "adds a loss"),
        (Counts, "changes its weights"),
        (Brightens, "gives something else in training"),
        (
            lambda **options: keras.layers.Lambda(lambda x, training=None: x + 1 if training else x, **options),
            "gives something else in",
        ),
        (Doubles, None),
    ],
)
def test_what_a_frozen_layer_of_ones_own_does_in_training_alone_is_never_left_out(data, layer, reason, capsys):
    def build():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((32, 32, 3))
        x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="conv", trainable=False)(inputs)
        x = layer(name="own")(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return models.compiled(keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="head")(x)))

    cached, plain = build(), build()
    first = session_module.fit(cached, *data, epochs=2, shuffle=False, cache="auto", verbose=2)
    said = capsys.readouterr().out
    if reason is None:
        assert "The frozen part runs once" in said
    else:
        assert f"a frozen layer (one of 'own') {reason}" in said
        with pytest.raises(ArgumentError, match=r"can't be run once: a frozen layer.*`cache=False`"):
            session_module.fit(cached, *data, cache=True, verbose=0)
    second = plain.fit(*data, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(first.history["loss"], second.history["loss"], rtol=2e-2 if reason is None else 1e-4)
    if layer is Counts:
        assert cached.get_layer("own").count.numpy() == plain.get_layer("own").count.numpy()


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (2, 4), (1, 4)])
def test_processes_share_each_batch(processes, devices, place, data, monkeypatch):
    """Together they hold what one would, in its order, filled up so that each device has as many rows."""

    def batches(number, count, devices):
        monkeypatch.setattr("kerastl.backend.processes", lambda: (number, count))
        monkeypatch.setattr("kerastl.backend.devices_of_a_batch", lambda: devices)
        options = {"part": "train", "batch_size": 9, "shuffle": True, "seed": 3}
        made = session_module.FeatureBatches(session.stores["train"], ["features_0"], **options)
        return [made[index] for index in range(len(made))]

    options, rows = CacheOptions(place=place, dtype="float32", engine="keras"), adapt(*data)
    model = freezing.freeze(models.flat())
    with session_module.frozen_part_once(model, rows, None, options, False, epochs=[1]) as session:
        alone = batches(0, 1, 1)
        shares = [batches(number, processes, devices) for number in range(processes)]
    for index, (features, labels) in enumerate(alone):
        parts = [share[index] for share in shares]
        assert len({len(part[1]) for part in parts}) == 1
        whole = np.concatenate([part[1] for part in parts])
        assert len(whole) % devices == 0
        assert len(whole) - len(labels) < devices
        np.testing.assert_array_equal(whole[: len(labels)], labels)
        together = np.concatenate([part[0]["features_0"] for part in parts])
        np.testing.assert_array_equal(together[: len(labels)], features["features_0"])
        for part in parts:
            assert part[0]["~rows"].shape == (devices // processes, len(labels))


def test_processes_with_other_data_are_refused(data, monkeypatch):
    """Of two that train together, one with a label less: both must raise, as either would wait for the other."""
    monkeypatch.setattr("kerastl.backend.of_each_process", lambda number: [number, 1])
    model = models.compiled(freezing.freeze(models.flat()))
    with pytest.raises(ArgumentError, match="must have the same data"):
        session_module.fit(model, *data, cache=EXACT, verbose=0)


def test_steps_that_are_not_compiled_are_refused_on_several_devices(data, monkeypatch):
    model = freezing.freeze(models.flat())
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    monkeypatch.setattr("kerastl.backend.devices_of_a_batch", lambda: 2)
    with pytest.raises(ArgumentError, match="run_eagerly=True"):
        session_module.fit(model, *data, cache=EXACT, verbose=0)


def test_several_processes_are_for_data_parallel_alone(data, monkeypatch, capsys):
    monkeypatch.setattr("kerastl.backend.processes", lambda: (0, 2))
    monkeypatch.setattr("kerastl.backend.of_each_process", lambda number: [number] * 2)
    session_module.fit(models.compiled(freezing.freeze(models.flat())), *data, verbose=2)
    assert "by `keras.distribution.DataParallel` alone" in capsys.readouterr().out
