"""What people have: pipelines, models, folders, calls and accidents. Every case holds the right value or the right error."""

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import time
import unicodedata
import warnings
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

import kerastl
from kerastl import files
from kerastl.cli import main
from kerastl.cli import train as train_command
from kerastl.data.batches import find_source
from kerastl.data.folders import load_images
from kerastl.data.images import find_files, read_image
from kerastl.errors import ArgumentError, DataError, KerastlWarning, OutputError
from kerastl.evaluation import plots
from kerastl.evaluation.plots.drawing import as_png
from kerastl.export import formats
from kerastl.features import litert
from kerastl.features.plan import CacheOptions
from kerastl.models import freezing
from kerastl.training import session
from tests import models
from tests.commands import fails, only_line, write_photos

tf = pytest.importorskip("tensorflow")

pytestmark = [
    *models.EAGERLY,
    pytest.mark.filterwarnings("ignore:(Classes|Labels) with fewer than 10 images"),
    pytest.mark.filterwarnings("ignore:No cost formula"),
]
EXACT = CacheOptions(dtype="float32", engine="keras", insist=False)
TINY = ["--image-size", "32", "--head-epochs", "1", "--fine-tune-epochs", "0", "--dropout", "0"]
ONCE, EVERY_EPOCH = "The frozen part runs once", "The frozen part runs in every epoch"
CASES = {}


def case(function):
    """Add a function to the cases, under its own name."""
    CASES[function.__name__] = function
    return function


def cases(table):
    """Add one case for each entry of a table: the function is also given the entry's value."""

    def add(function):
        for name, value in table.items():
            CASES[f"{function.__name__}: {name!a}"] = lambda here, value=value: function(here, value)
        return function

    return add


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("cases") / "photos", ["amber", "blue", "crimson"], count=12)


@pytest.fixture(scope="module")
def run(photos):
    """The run folder of a tiny network, made by the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "build_classifier", tiny_network)
        assert main(["train", str(photos), "--out", str(photos.parent / "run"), *TINY]) == 0
    return photos.parent / "run"


@pytest.fixture(scope="module")
def bundle(run, photos):
    if not litert.is_installed():
        pytest.skip("needs ai-edge-litert")
    assert main(["export", str(run), "--data", str(photos), "--out", str(photos.parent / "bundle")]) == 0
    return photos.parent / "bundle"


def tiny_network(backbone, classes, augmented=False, **_):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.RandomFlip()(inputs) if augmented else inputs
    x = models.tiny_backbone(blocks=1, width=4)((x - 127.5) / 127.5, training=False)
    return keras.Model(inputs, models.head_layers(x, classes=classes), name="tiny_classifier")


def twins():
    """Return two equal models with a frozen backbone, compiled for short runs."""
    pair = [tiny_network(None, 3) for _ in range(2)]
    pair[1].set_weights(pair[0].get_weights())
    for model in pair:
        models.compiled(freezing.freeze(model), 0.01, weighted_metrics=["accuracy"], jit_compile=False)
    return pair


class Here:
    """What a case may use: a folder, what was printed, patches, small data, and what was made once for all cases."""

    def __init__(self, request):
        names = {"folder": "tmp_path", "capsys": "capsys", "patch": "monkeypatch"}
        for name, fixture in names.items():
            setattr(self, name, request.getfixturevalue(fixture))
        self._request = request

    def __getattr__(self, name):
        return self._request.getfixturevalue(name)

    def printed(self):
        return self.capsys.readouterr().out

    def refused(self, *arguments):
        return fails(self.capsys, *arguments)


def write_classes(folder, names, count=4, blue=10):
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9), (40 * label, 20 * number, blue)).save(folder / name / f"{number}.png")
    return folder


def load(folder, **options):
    return load_images(folder, **{"image_size": 8, "verbose": 0, "validation": 0, "test": 0, **options})


def same(first, second, tolerance=1e-4):
    """Assert that two histories hold the same names and numbers."""
    assert first.history.keys() == second.history.keys()
    for name, values in second.history.items():
        np.testing.assert_allclose(first.history[name], values, rtol=tolerance, atol=tolerance / 10, err_msg=name)


# Part 3: pipelines


def of_directory(here, **options):
    options = {"image_size": (32, 32), "batch_size": 8, "verbose": False, "shuffle": False, **options}
    return keras.utils.image_dataset_from_directory(here.photos, **options)


def halved(images, labels):
    return images / 2, labels


def noisy(images, labels):
    return images + tf.random.uniform(tf.shape(images), 0, 40), labels


@cases(
    {
        "as it comes": lambda data: data,
        "map cache prefetch": lambda data: data.map(halved, num_parallel_calls=2).cache().prefetch(2),
        "batched again": lambda data: data.unbatch().batch(7, drop_remainder=True),
        "filter and weights": lambda data: (
            data.unbatch().filter(lambda x, y: y < 2).batch(8).map(lambda x, y: (x, y, tf.cast(y, "float32") + 0.5))
        ),
    }
)
def a_directory_trains_as_in_fit(here, chain):
    keras.utils.set_random_seed(3)  # a start from which no two classes come so close that rounding decides
    cached, plain = twins()
    first = session.fit(cached, chain(of_directory(here)), cache=EXACT, epochs=2, verbose=2)
    assert ONCE in here.printed()
    data = chain(of_directory(here))  # Keras counts wrongly where it isn't told the length
    data = data.apply(tf.data.experimental.assert_cardinality(sum(1 for _ in data)))
    same(first, plain.fit(data, epochs=2, shuffle=False, verbose=0))


@case
def a_directory_is_reshuffled_in_every_epoch_by_default(here):
    orders = []

    class Spied(session.FeatureBatches):
        def on_epoch_end(self):
            super().on_epoch_end()
            orders.append(self._order.tolist())

    here.patch.setattr(session, "FeatureBatches", Spied)
    data = of_directory(here, shuffle=True, seed=1)
    session.fit(twins()[0], data, cache=EXACT, epochs=2, verbose=0)
    assert sorted(orders[0]) == sorted(orders[1]) == [*range(36)]
    assert orders[0] != orders[1]


RANDOM = {
    "noise": lambda data: data.map(noisy),
    "noise after a shuffle": lambda data: data.shuffle(8).map(noisy),
    "half of the batches turned": lambda data: data.rebatch(1).map(
        lambda x, y: (tf.where(tf.random.uniform([]) < 0.5, x, x[:, ::-1]), y)
    ),
}


@cases(RANDOM)
def a_random_map_is_found_and_never_frozen(here, chain):
    tf.random.set_seed(None)  # with a seed tf.data draws the same numbers in every pass, and nothing is random
    with pytest.raises(ArgumentError, match=r"gives other images at every pass.*pass views=4\. Or pass `cache=False`"):
        session.fit(twins()[0], chain(of_directory(here)), cache=True, verbose=0)


@case
def the_calls_that_a_refused_random_map_names_work(here):
    tf.random.set_seed(None)
    data = of_directory(here).map(noisy)
    session.fit(twins()[0], data, epochs=2, verbose=2)
    said = here.printed()
    assert f"{EVERY_EPOCH}: the dataset gives other images at every pass" in said
    (views,) = re.findall(r"pass views=(\d)", said)
    assert len(session.fit(twins()[0], data, cache=False, epochs=2, verbose=0).epoch) == 2
    model = models.compiled(freezing.freeze(tiny_network(None, 3, augmented=True)), jit_compile=False)
    assert len(session.fit(model, of_directory(here), views=int(views), epochs=2, verbose=2).epoch) == 2
    assert ONCE in here.printed()


@case
def another_map_makes_other_features_in_the_same_folder(here):
    options = CacheOptions(folder=here.folder / "store", dtype="float32", engine="keras")
    for change in (lambda x, y: (x, y), lambda x, y: (255 - x, y)):
        cached, plain = twins()
        data = of_directory(here).map(change)
        same(session.fit(cached, data, cache=options, verbose=0), plain.fit(data, shuffle=False, verbose=0))


@case
def a_dataset_of_unknown_length_is_measured_on_disk(here):
    data = of_directory(here).unbatch().filter(lambda image, label: label > 0).batch(8)
    plan = kerastl.plan_cache(twins()[0], data, epochs=9)
    assert (plan.chosen, plan.total_bytes, plan.place) == (True, None, "disk")
    assert "size known after one pass" in str(plan)


@case
def a_plan_of_a_generator_says_that_it_is_read_once(here):
    batches = (batch for batch in of_directory(here))
    assert f"{EVERY_EPOCH}: the data can be read only once" in str(kerastl.plan_cache(twins()[0], batches))
    assert len(next(batches)[0]) == 8  # nothing was used up


@case
def evaluating_a_directory_is_what_keras_measures(here):
    model, data = twins()[0], of_directory(here)
    assert kerastl.evaluate(model, data).accuracy == pytest.approx(model.evaluate(data, verbose=0)[1])


@case
def predicting_a_labelled_dataset_names_the_call_that_works(here):
    model, data = twins()[0], of_directory(here)
    with pytest.raises(DataError, match="without labels") as caught:
        kerastl.predict(model, data)
    (call,) = re.findall(r"use `kerastl\.(\w+)`", str(caught.value))
    assert getattr(kerastl, call)(model, data).count == 36


# Part 4: `kerastl.fit` is `model.fit` (its table has a test file of its own)


class Logs(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["mine"] = float(self.model.metrics[0].result()) + epoch


class StopsAtOnce(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.model.stop_training = True


@cases(
    {
        "no callbacks": {"callbacks": None},
        "one callback, and what it logs": {"callbacks": Logs()},
        "the learning rate": {"callbacks": [keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))]},
        "stopped before it began": {"callbacks": [StopsAtOnce()]},
        "no epochs": {"epochs": 0},
        "validation in a list": {"validation_data": "list"},
        "class weights for some": {"class_weight": {1: 4.0}},
        "labels in a column": {"y": "column"},
    }
)
def an_argument_means_what_it_means_in_fit(here, given):
    (images, labels), histories = here.data, []
    special = {"list": [images[:9], labels[:9]], "column": labels[:, None]}
    for model, train in zip(twins(), (session.fit, keras.Model.fit), strict=True):
        options = {"x": images, "y": labels, "epochs": 2, "shuffle": False, "verbose": 0}
        options |= {
            name: special.get(value, value) if isinstance(value, str) else value for name, value in given.items()
        }
        if train is session.fit:
            options["cache"] = EXACT
        elif "class_weight" in given:
            options["sample_weight"] = np.where(labels == 1, 4.0, 1.0)
            del options["class_weight"]
        histories.append(train(model, **options))
    assert histories[0].epoch == histories[1].epoch
    same(*histories)


def of_file(here):
    np.save(here.folder / "images.npy", here.data[0].round())
    return np.load(here.folder / "images.npy", mmap_mode="r")


@cases(
    {
        "uint8 in a tensor": lambda here: tf.constant(here.data[0].round().astype("uint8")),
        "a dictionary": lambda here: {"image": here.data[0].round()},
        "a read-only file": of_file,
    }
)
def images_in_every_form_train_as_arrays(here, form):
    images, labels = here.data[0].round(), here.data[1]
    cached, plain = twins()
    first = session.fit(cached, form(here), labels, 10, 2, cache=EXACT, shuffle=False, verbose=0)
    same(first, plain.fit(images, labels, 10, 2, shuffle=False, verbose=0))


@cases({"none": None, "one": Logs()})
def the_recipe_takes_callbacks_as_fit_does(here, given):
    options = {"cache": False, "verbose": 0, "batch_size": 20, "epochs": 1, "callbacks": given}
    history = kerastl.train_head(twins()[0], here.data, here.data, **options)
    assert ("mine" in history.history) is (given is not None)
    if given:
        options |= {"head_epochs": options["epochs"], "fine_tune_epochs": options.pop("epochs"), "last_blocks": 1}
        held = (here.data[0][:, ::-1], here.data[1])
        result = kerastl.transfer_learn(twins()[0], here.data, held, **options)
        assert {"mine"} <= result.head.history.keys() & result.fine_tune.history.keys()


@case
def a_backup_goes_on_where_it_was(here):
    begun = []

    class Breaks(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            begun.append(epoch)
            if begun == [0, 1]:
                raise RuntimeError("power cut")

    model = twins()[0]
    callbacks = [keras.callbacks.BackupAndRestore(here.folder / "backup"), Breaks()]
    with pytest.raises(RuntimeError, match="power cut"):
        session.fit(model, *here.data, cache=True, epochs=3, callbacks=callbacks, verbose=0)
    session.fit(model, *here.data, cache=True, epochs=3, callbacks=callbacks, verbose=0)
    assert begun == [0, 1, 1, 2]


# Part 5: pixel ranges


def of_pixels(where, scaling=(1 / 255, 0.0), size=16):
    """A model that is seeded, with `Rescaling` inside, outside, in a nested model, or in front of a nested one."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((size, size, 3))
    scale = keras.layers.Rescaling(*scaling)
    layers = [keras.layers.Conv2D(4, 3, activation="relu", name="conv"), keras.layers.GlobalAveragePooling2D()]
    layers.append(keras.layers.Dense(3, activation="softmax"))
    front = [] if where == "outside" else [scale]
    if where == "sequential":
        return keras.Sequential([inputs, *front, *layers])
    if where == "nested":
        layers = [keras.Sequential([keras.Input((size, size, 3)), *front, *layers[:1]]), *layers[1:]]
    elif where == "before nested":
        layers = [*front, keras.Sequential([keras.Input((size, size, 3)), layers[0]]), *layers[1:]]
    else:
        layers = [*front, *layers]
    x = inputs
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def photo(here, size=16):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), "uint8")
    Image.fromarray(pixels).save(here.folder / "photo.png")
    return here.folder / "photo.png", pixels[None]


@cases(
    {
        f"{where}, {suffix or 'as built'}": (where, suffix)
        for where in ("flat", "nested", "before nested", "sequential")
        for suffix in (".keras", ".h5")
    }
)
def a_model_that_scales_is_given_pixels(here, built):
    model, (path, pixels) = of_pixels(built[0], (1 / 127.5, -1)), photo(here)
    expected = model.predict(pixels, verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are saving your model as an HDF5 file")
        model.save(here.folder / f"model{built[1]}")
    loaded = keras.models.load_model(here.folder / f"model{built[1]}", compile=False)
    np.testing.assert_allclose(kerastl.predict(loaded, path).probabilities, expected, rtol=1e-4)
    np.testing.assert_allclose(kerastl.predict(loaded, pixels.astype("float32")).probabilities, expected, rtol=1e-4)
    with pytest.warns(KerastlWarning, match="look scaled already"):
        kerastl.predict(loaded, pixels / np.float32(255))


@cases({".keras": ".keras", ".h5": ".h5"})
def a_model_of_scaled_pixels_asks_and_the_call_that_is_named_works(here, suffix):
    inside, outside, (path, _) = of_pixels("flat"), of_pixels("outside"), photo(here)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are saving your model as an HDF5 file")
        outside.save(here.folder / f"model{suffix}")
    loaded = keras.models.load_model(here.folder / f"model{suffix}", compile=False)
    with pytest.raises(ArgumentError, match="doesn't scale pixels itself") as caught:
        kerastl.predict(loaded, path)
    (call,) = re.findall(r"`(preprocessing=[^`]+)` for 0–1", str(caught.value))
    found = kerastl.predict(loaded, path, **eval(f"dict({call})"))
    np.testing.assert_allclose(found.probabilities, kerastl.predict(inside, path).probabilities, rtol=1e-4)


@case
def every_image_of_a_mixed_list_is_looked_at(here):
    _, (pixels,) = photo(here)
    with pytest.warns(KerastlWarning, match=r"look scaled already \(from 0 to 1\)"):
        kerastl.predict(of_pixels("flat"), [pixels, pixels / np.float32(255)])
    with pytest.raises(ArgumentError, match="The pixels are 0–255, and the model doesn't scale"):
        kerastl.predict(of_pixels("outside"), [pixels / np.float32(255), here.folder / "photo.png"])


@case
def the_preprocessing_of_an_application_in_the_graph_is_known(here):
    path, pixels = photo(here, 32)
    inputs = keras.Input((32, 32, 3))
    x = models.tiny_backbone()(keras.applications.resnet50.preprocess_input(inputs))
    model = keras.Model(inputs, models.head_layers(x))
    np.testing.assert_allclose(kerastl.predict(model, path).probabilities, model.predict(pixels, verbose=0), rtol=1e-4)
    with pytest.raises(ArgumentError, match=r"scaled twice\. Leave `preprocessing` out"):
        kerastl.predict(model, path, preprocessing=keras.applications.resnet50.preprocess_input)


@case
def a_normalization_by_fractions_refuses_pixels(here):
    path, pixels = photo(here)
    front = keras.layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.0524, 0.0502, 0.0506])
    inner = of_pixels("outside")
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, inner(front(inputs)))
    with pytest.raises(ArgumentError, match="made for smaller numbers, such as 0–1"):
        kerastl.predict(model, path)
    expected = model.predict(pixels / np.float32(255), verbose=0)
    found = kerastl.predict(model, path, preprocessing=lambda pixels: pixels / 255)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)


@case
def a_file_of_a_newer_keras_says_both_versions(here):
    of_pixels("flat").save(here.folder / "now.keras")
    with zipfile.ZipFile(here.folder / "now.keras") as old, zipfile.ZipFile(here.folder / "newer.keras", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            content = content.replace(b'"Rescaling"', b'"RescalingOfTomorrow"') if name == "config.json" else content
            version = json.dumps({"keras_version": "99.1.0", "date_saved": "2099-01-01"}).encode()
            new.writestr(name, version if name == "metadata.json" else content)
    line = here.refused("summary", here.folder / "newer.keras")
    assert f"Keras 99.1.0 wrote it, and here is Keras {keras.__version__}" in line
    assert 'pip install --upgrade "keras>=99.1.0"' in line


@case
def an_export_asks_for_the_range_and_keeps_it_on_the_card(here):
    if not litert.is_installed():
        pytest.skip("needs ai-edge-litert")
    outside, (path, _) = of_pixels("outside"), photo(here)
    kerastl.export_model(outside, here.folder / "bundle", preprocessing=lambda pixels: pixels / 255, verbose=0)
    written = kerastl.load_bundle(here.folder / "bundle")
    assert written.card["input"]["preprocessing"].endswith("<lambda>`, part of the exported graph")
    expected = kerastl.predict(of_pixels("flat"), path).probabilities
    np.testing.assert_allclose(written.predict(path).probabilities, expected, atol=1e-4)


# Part 6: folders


@cases(
    {
        names: tuple(names.split(", "))
        for names in (
            "Train, Test",
            "TRAINING, TESTING",
            "training_set, test_set",
            "train, holdout",
            "train_images, test_images",
            "chest-train, chest-test",
            "train2017, test2017",
            "1_train, 2_test",
            "TrainingSet, TestSet",
            "trainset, testset",
            "Train Data (80%), Test Data (20%)",
        )
    }
)
def splits_are_told_by_their_names(here, names):
    train, test = names
    write_classes(here.folder / train, ["a", "b"], 5)
    write_classes(here.folder / test, ["a", "b"], 2, blue=99)
    assert load_images(here.folder, image_size=8, validation=0).split_sizes == {"train": 10, "test": 4}
    assert f"Took {train}/ as train, {test}/ as test" in here.printed()


@cases({"val": "val", "Valid": "Valid", "validation": "validation", "eval": "eval", "dev-set": "dev-set"})
def validation_has_many_names(here, name):
    write_classes(here.folder / "train", ["a", "b"], 5)
    write_classes(here.folder / name, ["a", "b"], 2, blue=99)
    assert load_images(here.folder, image_size=8, verbose=0).split_sizes == {"train": 10, "validation": 4}


@case
def classes_beside_splits_are_refused_with_both_readings(here):
    for name in ("train", "test", "bird"):
        write_classes(here.folder / name, ["a", "b"])
    with pytest.raises(DataError) as caught:
        load(here.folder)
    assert "comes split (test, train), but also holds 'bird'. If these are no part of it, move them" in str(
        caught.value
    )
    assert "if all folders are classes, rename test, train." in str(caught.value)


@case
def a_test_split_without_a_training_split_is_no_class(here):
    write_classes(here.folder / "test", ["a", "b"])
    write_classes(here.folder / "val", ["a", "b"], blue=99)
    with pytest.raises(DataError, match=r"holds test and val, but no images to train on.*a folder `train`"):
        load(here.folder)


@case
def splits_inside_the_classes_are_refused_with_the_place_for_them(here):
    for name in ("cat", "dog"):
        write_classes(here.folder / name, ["train", "test"])
    with pytest.raises(DataError, match=r"cat holds splits itself \(test, train\)") as caught:
        load(here.folder)
    assert f"put the split above it: {here.folder / 'train' / 'cat'}" in str(caught.value)


@case
def what_systems_leave_behind_is_left_out_and_said(here):
    write_classes(here.folder, ["a", "b", ".ipynb_checkpoints", "__MACOSX"])
    for name in ("Thumbs.db", ".DS_Store", "._0.png", "notes.txt"):
        (here.folder / "a" / name).write_bytes(b"x")
    data = load(here.folder)
    assert data.class_counts == {"a": 4, "b": 4}
    assert data.ignored == {
        ".ipynb_checkpoints": 1, "__MACOSX": 1, "Thumbs.db": 1, ".DS_Store": 1, "dot files": 1, ".txt": 1
    }  # fmt: skip
    assert "Other files, ignored: 1 .DS_Store, 1 .ipynb_checkpoints, 1 .txt" in data.summary()


# the file of labels, the task, the images of each label, and the label of the first image
LABELS = {
    "classes": ("file,label|{}.png,cat|{}.png,dog", "classification", {"cat": 5, "dog": 5}, 0),
    "semicolons": ("image;class|{}.png;cat|{}.png;dog", "classification", {"cat": 5, "dog": 5}, 0),
    "tabs": ("path\tcategory|{}\tcat|{}\tdog", "classification", {"cat": 5, "dog": 5}, 0),
    "numbers of classes": ("filename,label|{}.png,10|{}.png,9", "classification", {"9": 5, "10": 5}, 1),
    "several labels": ("filename,tags|{}.png,cat¦dog|{}.png,dog", "multi-label", {"cat": 5, "dog": 10}, [1, 1]),
    "columns of flags": ("filename,cat,dog|{}.png,0,1|{}.png,1,1", "multi-label", {"cat": 5, "dog": 10}, [0, 1]),
    "numbers": ("filename,age|{}.png,1.5|{}.png,70", "regression", {"age": 10}, 1.5),
    "quotes": ('filename,label|"{}.png","cat, wild"|{}.png,"dog"', "classification", {"cat, wild": 5, "dog": 5}, 0),
    "paths of Windows": ("filename,label|photos\\{}.png,b|{}.png,a", "classification", {"a": 5, "b": 5}, 1),
}


@cases(LABELS)
def a_labels_file_is_read(here, table):
    text, task, counts, first = table
    folder = write_classes(here.folder, ["photos"], 10) / "photos"
    header, *rows = (one.replace("¦", "|") for one in text.split("|"))
    lines = [header, *(rows[number % 2].format(number) for number in range(10))]
    (here.folder / "labels.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    data = load(folder, labels=here.folder / "labels.csv")
    assert (data.task, data.class_counts, data.split_sizes) == (task, counts, {"train": 10})
    place = data.files["train"].index(str(folder / "0.png"))
    assert find_source(data.train).labels[place].tolist() == first


@case
def a_parquet_file_of_labels_is_read(here):
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = write_classes(here.folder, ["photos"], 10) / "photos"
    table = {"filename": [f"{n}.png" for n in range(10)], "labels": [["x", "y"] if n % 2 else ["x"] for n in range(10)]}
    parquet.write_table(pytest.importorskip("pyarrow").table(table), folder / "train.parquet")
    data = load(folder, labels="train.parquet")
    assert (data.task, data.class_counts) == ("multi-label", {"x": 10, "y": 5})


@case
def a_labels_file_that_names_missing_files_says_which_rows(here):
    folder = write_classes(here.folder, ["photos"], 3) / "photos"
    (folder / "train.csv").write_text("filename,label\n0.png,a\n1.png,b\n7.png,a\n")
    with pytest.raises(DataError, match=r"\(1 of the 3 rows of train\.csv\): row 4 \('7\.png'\)\. Correct or remove"):
        load(folder, labels="train.csv")
    with pytest.raises(DataError, match=r"no labels file tran\.csv.*Did you mean 'train\.csv'"):
        load(folder, labels="tran.csv")


# mode of Pillow, three pixels, what they are stored as, format, and what is read
PIXELS = {
    "16 bits": ("I;16", [0, 32767, 65535], "uint16", "PNG", [0, 127, 255]),
    "12 bits": ("I;16", [0, 2047, 4095], "uint16", "PNG", [0, 127, 255]),
    "12 bits in TIFF": ("I;16", [0, 2047, 4095], "uint16", "TIFF", [0, 127, 255]),
    "32 bits": ("I", [0, 32767, 65535], "int32", "TIFF", [0, 127, 255]),
    "floats of 0 to 1": ("F", [0, 0.5, 1], "float32", "TIFF", [0, 127, 255]),
    "floats of 0 to 255": ("F", [0, 127, 255], "float32", "TIFF", [0, 127, 255]),
    "alpha": ("RGBA", [[9, 9, 9, 0], [9, 9, 9, 255], [0, 0, 0, 128]], "uint8", "PNG", [255, 9, 127]),
    "grey and alpha": ("LA", [[9, 0], [9, 255], [0, 128]], "uint8", "PNG", [255, 9, 127]),
    "a palette": ("P", [0, 1, 2], "uint8", "PNG", [10, 200, 90]),
    "CMYK": ("CMYK", [[0, 0, 0, 255], [0, 0, 0, 128], [0, 0, 0, 0]], "uint8", "TIFF", [0, 127, 255]),
}


@cases(PIXELS)
def pixels_of_every_kind_become_rgb(here, kind):
    mode, pixels, stored, form, expected = kind
    image = Image.frombytes(mode, (3, 1), np.array(pixels, stored).tobytes())
    if mode == "P":
        image.putpalette([10] * 3 + [200] * 3 + [90] * 3)
    path = here.folder / "photo"  # files without an ending are looked at
    image.save(path, form)
    found = read_image(path)
    assert (found.dtype, found.shape) == (np.uint8, (1, 3, 3))
    np.testing.assert_allclose(found[0].astype(int), np.array(expected)[:, None].repeat(3, 1), atol=1)
    assert find_files(here.folder)[0] == [path]


@case
def an_animation_is_its_first_frame(here):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(here.folder / name, save_all=True, append_images=frames[1:], **options)
        assert np.abs(read_image(here.folder / name)[0, 0].astype(int) - (250, 0, 0)).max() <= 5, name


@case
def one_white_of_a_folder_is_that_of_predict(here):
    for number in range(12):
        (here.folder / "ab"[number % 2]).mkdir(exist_ok=True)
        pixels = np.full((8, 8), 4095 if number == 3 else 100 * number, "uint16")
        Image.fromarray(pixels).save(here.folder / "ab"[number % 2] / f"{number}.png")
    with pytest.warns(KerastlWarning, match=r"use 0–4095: their largest value is 4095, in .*3\.png"):
        data = load(here.folder)
    assert data.white == 4095
    dark = here.folder / "a" / "2.png"
    place = data.files["train"].index(str(dark))
    seen = find_source(data.train).read(place)
    assert seen.max() == round(200 / 4095 * 255)
    found = kerastl.predict(models.colours(), dark, white=data.white).probabilities
    np.testing.assert_allclose(found, models.colours().predict(seen[None], verbose=0), rtol=1e-4)


NAMES = ["$a$", r"$\frac$", "a_b^c", "50%", "'quoted'", '"quoted"', "猫", "강아지", "बिल्ली", "قطة", "café", "x" * 120, "a|b",
         "<b>", "`a`", "[x](y)", "-rf", "👍🏽", "#1", "NULL", "1"]  # fmt: skip


@cases({name: name for name in NAMES})
def a_class_may_have_any_readable_name(here, name):
    data = load(write_classes(here.folder, [name, "other"]))
    assert name in data.class_names
    assert f"{name}  " in data.summary() + "  "
    figure = plots.plot_confusion_matrix(np.eye(2, dtype=int), [name, "other"])
    drawn = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert any(text.replace(r"\$", "$")[:8] == name[:8] for text in drawn)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No installed font has the characters")
        assert Image.open(io.BytesIO(as_png(figure))).width > 100


@cases({"a line break": "two\nlines", "an escape sequence": "\x1b[31mred", "a tab": "tab\there", "turned": "a\u202eb"})
def a_class_name_that_cannot_be_printed_is_refused_before_anything_is_read(here, name):
    with pytest.raises(DataError, match=r"readable text in one line\. Rename the folder"):
        load(write_classes(here.folder, [name, "other"]))


@case
def a_class_name_that_is_no_utf8_is_refused_before_anything_is_read(here):
    try:
        write_classes(here.folder, [os.fsdecode(b"caf\xe9"), "other"])
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(DataError, match=r"Rename the folder.*caf\\udce9"):
        load(here.folder)


@case
def two_class_names_that_look_the_same_are_refused(here):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    write_classes(here.folder, [*names, "other"])
    if len(list(here.folder.iterdir())) < 3:
        pytest.skip("this file system has one of them only")
    with pytest.raises(DataError, match="café"):
        load(here.folder)


# Part 7: predict


@cases(
    {
        "text": (lambda folder: str(folder / "0.png"), 1),
        "a path": (lambda folder: folder / "0.png", 1),
        "a pattern": (lambda folder: str(folder / "*.png"), 3),
        "a pattern of every folder": (lambda folder: str(folder.parent / "**" / "*.png"), 3),
        "a generator": (lambda folder: (path for path in sorted(folder.glob("*.png"))), 3),
        "an array of paths": (lambda folder: np.array(sorted(map(str, folder.glob("*.png")))), 3),
        "a folder of folders": (lambda folder: folder.parent, 3),
        "bytes": (lambda folder: (folder / "0.png").read_bytes(), 1),
        "an image of Pillow": (lambda folder: Image.open(folder / "0.png"), 1),
        "a mix": (lambda folder: [folder / "0.png", np.array(Image.open(folder / "1.png")), str(folder / "2.png")], 3),
    }
)
def images_are_given_in_many_ways(here, given):
    make, count = given
    folder = here.folder / "photos" / "of 100%"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), "uint8")
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    found = kerastl.predict(models.colours(), make(folder)).probabilities
    np.testing.assert_allclose(found, models.colours().predict(pixels[:count], verbose=0), rtol=1e-4)


@case
def the_home_folder_is_a_tilde(here):
    path, pixels = photo(here, 8)
    here.patch.setenv("HOME", str(here.folder))
    found = kerastl.predict(models.colours(), "~/photo.png")
    np.testing.assert_allclose(found.probabilities, models.colours().predict(pixels, verbose=0), rtol=1e-4)
    assert found.names == [str(path)]


@cases({"ftp": "ftp://example.org/a.png", "s3": "s3://bucket/a.png"})
def an_address_that_is_not_of_the_web_is_refused(here, address):
    with pytest.raises(DataError, match=rf"Only http and https addresses can be read.*{address}"):
        kerastl.predict(models.colours(), address)


@cases({"text": b"no image", "empty": b"", "cut": "half", "a folder's name": None})
def a_damaged_file_costs_its_row(here, content):
    path, pixels = photo(here, 8)
    whole, bad = path.read_bytes(), here.folder / "bad.png"
    bad.mkdir() if content is None else bad.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    if content is None:
        bad.rmdir()  # and then it is gone
    with pytest.warns(KerastlWarning, match=r"1 of 2 images can't be read and are left out:\s+.*bad\.png"):
        found = kerastl.predict(models.colours(), [bad, path])
    assert (found.names, list(found.skipped)) == ([str(path)], [str(bad)])
    np.testing.assert_allclose(found.probabilities, models.colours().predict(pixels, verbose=0), rtol=1e-4)


@case
def a_damaged_file_costs_its_row_on_the_command_line(here):
    (here.folder / "bad.png").write_bytes(b"no image")
    good = here.photos / "amber" / "00.png"
    run, _ = here.run, here.capsys.readouterr()
    assert main(["predict", str(run), str(here.folder / "bad.png"), str(good), "--json"]) == 0
    captured = here.capsys.readouterr()
    assert [row["image"] for row in json.loads(captured.out)] == [str(good)]
    assert "bad.png" in captured.err


CALLS = {
    "predict --top": (["predict", "{run}", "{photo}", "--top", "0"], "top"),
    "predict --batch-size": (["predict", "{run}", "{photo}", "--batch-size", "0"], "batch-size"),
    "train --validation": (["train", "{photos}", "--validation", "1.5"], "validation"),
    "train --test": (["train", "{photos}", "--test", "-1"], "test"),
    "train --batch-size": (["train", "{photos}", "--batch-size", "0"], "batch-size"),
    "train --image-size 0": (["train", "{photos}", "--image-size", "0"], "image-size"),
    "train --image-size 1000000": (["train", "{photos}", "--image-size", "1000000"], "image-size"),
    "train --head-epochs": (["train", "{photos}", "--head-epochs", "0"], "head-epochs"),
    "train --last-blocks": (["train", "{photos}", "--last-blocks", "99", "--image-size", "32"], "last-blocks"),
    "train --fraction": (["train", "{photos}", "--fraction", "7", "--image-size", "32"], "fraction"),
    "train --hidden-units": (["train", "{photos}", "--hidden-units", "0", "--image-size", "32"], "hidden-units"),
    "train --learning-rate": (["train", "{photos}", "--learning-rate", "0"], "learning-rate"),
    "train --from-layer": (["train", "{photos}", "--from-layer", "nowhere", "--image-size", "32"], "from-layer"),
    "export --accuracy-loss": (["export", "{run}", "--accuracy-loss", "2"], "accuracy-loss"),
    "export --agreement": (["export", "{run}", "--agreement", "-1"], "agreement"),
}


@cases(CALLS)
def an_error_names_the_option_and_no_argument(here, call):
    arguments, option = call
    here.patch.setattr("kerastl.training.session.extract", lambda *_, **__: pytest.fail("it ran the frozen part"))
    if arguments[0] == "train" and "32" in arguments:
        arguments = [*arguments, "--backbone", "mobilenet", "--weights", "none"]
    if arguments[0] != "predict":
        arguments = [*arguments, "--out", "{folder}/out"]
    places = {"run": here.run, "photo": here.photos / "amber" / "00.png", "photos": here.photos, "folder": here.folder}
    here.capsys.readouterr()
    line = here.refused(*(one.format(**places) for one in arguments))
    assert f"--{option}" in line
    assert f"`{option.replace('-', '_')}`" not in line
    assert not (here.folder / "out").exists()


# Part 8: export


def changed_data(here, change):
    data = shutil.copytree(here.photos, here.folder / "data")
    before, after = change
    (data / before).rename(data / after) if after else shutil.rmtree(data / before)
    return data


@cases(
    {
        "a class renamed": (("blue", "azure"), "Only in the model: blue. Only in the data: azure."),
        "a class missing": (("blue", None), "Only in the model: blue. Only in the data: none."),
        "other case": (("blue", "Blue"), "Only in the model: blue. Only in the data: Blue."),
    }
)
def data_of_other_classes_is_refused_with_both_lists(here, change):
    options = ["--data", changed_data(here, change[0]), "--out", here.folder / "bundle"]
    run = here.run
    here.capsys.readouterr()
    line = here.refused("export", run, *options)
    assert f"{change[1]} Model: amber, blue, crimson. Received: classes=" in line
    assert not (here.folder / "bundle").exists()


@case
def a_bundle_says_how_to_use_it_and_its_code_works(here):
    text, card = (
        (here.bundle / "README.md").read_text("utf-8"),
        json.loads((here.bundle / "model_card.json").read_text()),
    )
    assert card["classes"] == ["amber", "blue", "crimson"]
    assert "Size: 32 × 32 pixels" in text
    assert "antialiased bilinear" in text
    assert "0–255 as float32" in text
    assert "in the order of the lines of `labels.txt`" in text
    here.patch.chdir(here.bundle)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = here.photos / "blue" / "00.png"
    here.capsys.readouterr()
    exec(compile(code.replace("photo.jpg", str(path)), "README.md", "exec"), {})
    printed = dict(line.split(": ") for line in here.printed().splitlines())
    expected = kerastl.load_bundle(here.bundle).predict(path)[0].probabilities
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(expected, abs=1e-3)


def export_onnx(here, **options):
    if missing := [one for one in formats.FORMATS["onnx"].packages if not importlib.util.find_spec(one)]:
        pytest.skip(f"needs {missing}")
    return kerastl.export_model(of_pixels("flat"), here.folder / "bundle", formats="onnx", verbose=0, **options)


@case
def onnx_names_what_goes_in_and_out_and_the_batch(here):
    export_onnx(here)
    import onnx

    model = onnx.load(here.folder / "bundle" / "model.onnx")
    tensors = [*model.graph.input, *model.graph.output]
    assert [one.name for one in tensors] == ["pixels", "probabilities"]
    assert [one.type.tensor_type.shape.dim[0].dim_param for one in tensors] == ["batch", "batch"]
    assert model.opset_import[0].version == 18


@cases({"too old": 3, "too new": 77})
def an_opset_that_cannot_be_read_is_refused(here, opset):
    with pytest.raises(ArgumentError, match=rf"`opset` must be a whole number from 7 to 18\. Received: opset={opset}"):
        export_onnx(here, opset=opset)


# Part 9: checked up front, lost, hanging, said, left behind, escaping


@cases(
    {
        "monitor": (lambda: {"monitor": "val_lost"}, "`monitor` watches 'val_lost', which is not logged. Did you mean"),
        "a plateau": (
            lambda: {"callbacks": keras.callbacks.ReduceLROnPlateau("accurcy")},
            "`ReduceLROnPlateau` watches 'accurcy', which is not logged. Did you mean 'accuracy'",
        ),
        "a checkpoint": (
            lambda: {"callbacks": [keras.callbacks.ModelCheckpoint("x.keras", monitor="val_f1", save_best_only=True)]},
            "`ModelCheckpoint` watches 'val_f1', which is not logged",
        ),
        "early stopping": (
            lambda: {"callbacks": [kerastl.early_stopping(monitor="val_auc")]},
            "`EarlyStopping` watches 'val_auc', which is not logged",
        ),
    }
)
def a_monitored_name_that_nothing_logs_is_told_before_any_work(here, given):
    options, said = given
    here.patch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(ArgumentError) as caught:
        kerastl.train_head(models.nested(), here.data, here.data, cache=False, verbose=0, **options())
    assert said in str(caught.value)


@case
def a_folder_that_cannot_be_written_is_told_before_the_images_are_read(here):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    here.patch.setattr(files.tempfile, "TemporaryDirectory", read_only)
    line = here.refused("train", "no_such_folder", "--out", here.folder / "out")
    assert f"Nothing can be written in {here.folder}: Read-only file system. Choose another folder." in line


@case
def a_disk_that_is_too_small_is_told_before_training(here):
    usage = shutil.disk_usage(here.folder)
    here.patch.setattr(train_command, "build_classifier", tiny_network)
    here.patch.setattr(train_command, "transfer_learn", lambda *_, **__: pytest.fail("it trained"))
    here.patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    line = here.refused("train", here.photos, "--out", here.folder / "out", *TINY)
    assert re.search(r"Not enough space for .*: about 10 MB are needed, 1 MB are free", line)


@case
def a_bad_class_name_is_told_before_training(here):
    write_classes(here.folder / "photos", ["one\x07", "two"], 12)
    line = here.refused("train", here.folder / "photos", "--out", here.folder / "out", *TINY)
    assert r"Rename the folder. Received: name='one\x07'" in line


@case
def a_folder_that_another_process_filled_meanwhile_is_not_replaced(here):
    options = {"files": {"model.keras"}, "what": "run"}

    def write_slowly():
        with files.new_folder(here.folder / "run", **options):
            (here.folder / "run").mkdir()
            (here.folder / "run" / "model.keras").write_text("the other one's")

    with pytest.raises(OutputError, match="exists and is not empty"):
        write_slowly()
    assert (here.folder / "run" / "model.keras").read_text() == "the other one's"
    assert [path.name for path in here.folder.iterdir()] == ["run"]


@case
def of_two_runs_into_one_folder_the_later_stands_beside_the_earlier(here):
    def trains_while_another_ends(*arguments, **options):
        (here.folder / "out").mkdir()
        (here.folder / "out" / "model.keras").write_text("the other one's")
        return kerastl.transfer_learn(*arguments, **options)

    here.patch.setattr(train_command, "build_classifier", tiny_network)
    here.patch.setattr(train_command, "transfer_learn", trains_while_another_ends)
    assert main(["train", str(here.photos), "--out", str(here.folder / "out"), *TINY]) == 2
    beside = here.folder / "out-rescued"
    assert f"The best model so far is in {beside}" in only_line(here.capsys)
    assert (here.folder / "out" / "model.keras").read_text() == "the other one's"
    assert keras.models.load_model(beside / "model.keras").output_shape == (None, 3)


@cases({"predict": ["predict"], "export": ["export", "--out"]})
def labels_given_twice_are_refused(here, command):
    here.run, (here.folder / "labels.txt").write_text("red\nred\nblue\n")
    last = here.folder / "out" if "--out" in command else here.photos / "amber"
    here.capsys.readouterr()
    line = here.refused(command[0], here.run, *command[1:], last, "--labels", here.folder / "labels.txt")
    assert "must differ from each other" in line
    assert "['red']" in line


@case
def escape_sequences_in_labels_are_not_printed_raw(here):
    here.run, (here.folder / "labels.txt").write_text("red\x1b[2J\nblue\x07\ncrimson\n")
    photo = here.photos / "amber" / "00.png"
    here.capsys.readouterr()
    status = main(["predict", str(here.run), str(photo), "--labels", str(here.folder / "labels.txt")])
    captured = here.capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "\x07" not in captured.out + captured.err
    assert r"\x1b[2J" in captured.out + captured.err
    assert status in (0, 2)


@cases({"pipe": "pipe", "device": "/dev/zero", "socket": "/dev/null"})
def what_is_no_file_is_not_waited_for(here, kind):
    if os.name != "posix":
        pytest.skip("pipes and devices are POSIX")
    write_classes(here.folder, ["a", "b"])
    odd = here.folder / "a" / "odd.jpg"
    os.mkfifo(odd) if kind == "pipe" else odd.symlink_to(kind)
    assert load(here.folder).class_counts == {"a": 4, "b": 4}
    with pytest.raises(DataError, match=r"odd\.jpg: it is a folder, a pipe or a device"):
        read_image(odd)
    with pytest.raises(DataError, match=r"odd\.jpg: it is a folder, a pipe or a device"):
        kerastl.predict(models.colours(), odd)


@cases({"nothing": "nowhere.jpg", "itself": "odd.jpg"})
def a_link_to_nothing_is_an_image_that_cannot_be_read(here, target):
    if os.name != "posix":
        pytest.skip("not everybody may make links elsewhere")
    write_classes(here.folder, ["a", "b"])
    (here.folder / "a" / "odd.jpg").symlink_to(target)
    (here.folder / "a" / "notes.txt").symlink_to("nowhere.txt")
    with pytest.raises(DataError, match=r"1 file can't be read:\n.*odd\.jpg"):
        load(here.folder)


@cases(
    {"a pipe as the model": "model.keras", "a pipe as the labels": "labels.txt", "a pipe as the report": "report.json"}
)
def a_pipe_in_a_run_folder_is_not_waited_for(here, name):
    run = shutil.copytree(here.run, here.folder / "run")
    (run / name).unlink()
    os.mkfifo(run / name)
    here.capsys.readouterr()
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(20)
    try:
        status = main(["predict", str(run), str(here.photos / "amber" / "00.png")])
    finally:
        signal.alarm(0)
    assert status == (2 if name == "model.keras" else 0)


@case
def a_file_that_unpacks_to_gigabytes_is_not_unpacked(here):
    with zipfile.ZipFile(here.folder / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", "{}")
        file.writestr("model.weights.h5", bytes(50_000_000))
    line = here.refused("predict", here.folder / "bomb.keras", "photo.png")
    assert "would unpack to 50 MB, over 20 times its size" in line


@cases({"0": 0, "below 0": -1, "1000000": 1_000_000, "a pair": (8, 10**9)})
def an_image_size_that_cannot_be_meant_is_refused(here, size):
    with pytest.raises(ArgumentError, match=r"from 1 to 8192 \(pixels\)\. Received: image_size="):
        load_images(here.folder, image_size=size)


@case
def a_run_that_diverged_says_so_and_what_to_try(here):
    here.patch.setattr(train_command, "build_classifier", tiny_network)
    options = ["--out", str(here.folder / "out"), *TINY, "--head-learning-rate", "1e5"]
    assert main(["train", str(here.photos), *options]) == 0
    line = here.capsys.readouterr().err.strip()
    assert re.search(
        r"warning: Training diverged: val_loss rose from [\d.]+ to .*the weights of the start are kept", line
    )
    assert "Take a lower learning rate, 1e+03, say, instead of 1e+05" in line


@case
def a_lambda_in_a_file_is_named(here):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Lambda(lambda x: x[:, 0, 0], name="corner")(inputs)
    keras.Model(inputs, x).save(here.folder / "code.keras")
    line = here.refused("predict", here.folder / "code.keras", "photo.png")
    assert "needs code of its own, which no file may bring along: 'corner' (Lambda)" in line
    assert "safe_mode=False" in line


class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2


@case
def a_layer_of_ones_own_in_a_file_is_named(here):
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.Flatten()(Doubled(name="twice")(inputs))).save(here.folder / "own.keras")
    line = here.refused("summary", here.folder / "own.keras")
    assert "'twice' (Doubled)" in line
    assert "custom_objects" in line


@case
def a_link_upwards_brings_no_other_classes_images_in(here):
    write_classes(here.folder, ["a", "b"])
    (here.folder / "a" / "loop").symlink_to("..")
    (here.folder / "a" / "self").symlink_to(".")
    elsewhere = write_classes(here.folder / "elsewhere", ["more"], 2)
    (here.folder / "b" / "more").symlink_to(elsewhere / "more")
    assert len(find_files(here.folder / "a")[0]) == 4
    assert len(find_files(here.folder / "b")[0]) == 6


@cases({"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT})
def a_signal_keeps_the_best_model(here, number):
    original = train_command._Watch.on_epoch_end

    def stopped(self, epoch, logs=None):
        original(self, epoch, logs)
        signal.raise_signal(number)

    here.patch.setattr(train_command._Watch, "on_epoch_end", stopped)
    here.patch.setattr(train_command, "build_classifier", tiny_network)
    assert main(["train", str(here.photos), "--out", str(here.folder / "out"), *TINY]) == 128 + number
    assert only_line(here.capsys) == f"Interrupted: the best model so far is in {here.folder / 'out'}."
    assert (here.folder / "out" / "labels.txt").read_text() == "amber\nblue\ncrimson\n"
    assert keras.models.load_model(here.folder / "out" / "model.keras").output_shape == (None, 3)


@case
def what_a_killed_process_left_behind_is_cleared_after_a_day(here):
    old, new, other = (
        here.folder / f".{name}.{number * 32}" for name, number in (("run", "a"), ("run", "b"), ("runs", "a"))
    )
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "half").write_text("")
    for folder in (old, other):
        os.utime(folder, (time.time() - 2 * 86400,) * 2)
    with files.new_folder(here.folder / "run", files={"model.keras"}, what="run") as place:
        (place / "model.keras").write_text("")
    assert {path.name for path in here.folder.iterdir()} == {"run", new.name, other.name}


@case
def names_are_escaped_in_the_report_and_the_last_table(here):
    names = ["a|b", "<script>", "`c`"]
    data = write_photos(here.folder / "data|set", names, count=12)
    here.patch.setattr(train_command, "build_classifier", tiny_network)
    assert main(["train", str(data), "--out", str(here.folder / "out"), *TINY]) == 0
    text = (here.folder / "out" / "report.md").read_text("utf-8")
    assert r"a\|b" in text
    assert "<script>" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert all(one > 2 for one in columns)
    assert (here.folder / "out" / "labels.txt").read_text("utf-8") == "".join(f"{name}\n" for name in sorted(names))


@pytest.mark.parametrize("name", CASES)
def test_case(name, request):
    CASES[name](Here(request))


def test_there_are_at_least_eighty():
    assert len(CASES) >= 80
