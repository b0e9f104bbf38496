"""A run folder: `transfer_learn` goes on after a kill, to the same result."""

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from kerastl.errors import ArgumentError, KerastlWarning, OutputError
from kerastl.features.store import ArraySpec, MemoryWriter
from kerastl.training import phases, resume
from kerastl.training.recipe import transfer_learn
from kerastl.training.session import FeatureBatches
from tests import models

ROOT = Path(__file__).parents[1]


def build(seed=0, **compiling):
    """Return a nested model with a dropout layer in its head; `seed` draws the head."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((16, 16, 3))
    keras.utils.set_random_seed(1)
    x = models.tiny_backbone(16, blocks=2, width=4)((inputs - 127.5) / 127.5)
    keras.utils.set_random_seed(seed)
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    # to trace the steps takes longer than all of them
    return models.compiled(model, **{"run_eagerly": keras.backend.backend() != "jax", **compiling})


def images():
    generator = np.random.default_rng(1)
    labels = np.arange(40) % 3
    pixels = generator.normal(labels[:, None, None, None] * 90.0 + 30, 60, (40, 16, 16, 3)).clip(0, 255)
    return pixels.astype("float32"), labels


class Notes(keras.callbacks.Callback):
    """Notes every epoch that is begun in a list or a file, and does something then."""

    def __init__(self, note, then=lambda: None):
        super().__init__()
        self.note, self.then, self.phases = note, then, 0

    def on_train_begin(self, logs=None):
        self.phases += 1

    def on_epoch_begin(self, epoch, logs=None):
        self.note(f"{['head', 'fine_tune'][self.phases - 1]}-{epoch + 1:04d}")
        self.then()


def train(folder, note=lambda _: None, then=lambda: None, model=None, logs=(), **options):
    """Train for 2 and 2 epochs, and return the model and the result."""
    model, (pixels, labels) = model or build(), images()
    callbacks = [
        keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=0.05),
        keras.callbacks.EarlyStopping(patience=3, min_delta=0.01),
        Notes(note, then),
        *logs,
    ]
    options = {"head_epochs": 2, "fine_tune_epochs": 2, "last_blocks": 1, "learning_rate": 1e-2, **options}
    options = {"head_learning_rate": 0.1, "cache": True, "batch_size": 8, "verbose": 0, "seed": 3, **options}
    held = (pixels[:12, ::-1], labels[:12])
    return model, transfer_learn(model, (pixels, labels), held, callbacks=callbacks, run_folder=folder, **options)


def check_same(one, other):
    (model, result), (expected, wanted) = one, other
    for mine, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
    predictions = [each.predict(images()[0], verbose=0) for each in (model, expected)]
    np.testing.assert_allclose(*predictions, rtol=0, atol=1e-6)
    for phase in ("head", "fine_tune"):
        histories = [getattr(each, phase) for each in (result, wanted)]
        assert histories[0].epoch == histories[1].epoch
        assert histories[0].history.keys() == histories[1].history.keys()
        for name, values in histories[0].history.items():
            np.testing.assert_allclose(values, histories[1].history[name], rtol=1e-5)
        assert len(histories[0].epoch_seconds) == len(histories[0].epoch)
        assert histories[0].best_epoch == histories[1].best_epoch
    assert (result.best_phase, result.best_epoch) == (wanted.best_phase, wanted.best_epoch)
    assert result.best_value == pytest.approx(wanted.best_value, rel=1e-5)
    for (_, mine), (_, theirs) in zip(result.head_weights, wanted.head_weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing cut off."""
    return train(tmp_path_factory.mktemp("whole") / "run")


def test_a_run_that_is_cut_off_before_every_epoch_ends_as_if_it_was_not(tmp_path, whole, monkeypatch):
    begun = []

    def stop():
        if begun.count(begun[-1]) == 1:
            raise RuntimeError("power cut")

    for attempt in range(20):
        try:
            # a script that draws another head each time goes on with the one it began with
            again = train(tmp_path / "run", begun.append, stop, build(seed=attempt if begun[1:] else 0))
            break
        except RuntimeError:
            pass
    assert sorted(begun) == sorted(2 * ["head-0001", "head-0002", "fine_tune-0001", "fine_tune-0002"])
    check_same(again, whole)

    monkeypatch.setattr(phases.Settings, "session", lambda *_: pytest.fail("the features are of no use any more"))
    check_same(train(tmp_path / "run", lambda _: pytest.fail("there is nothing left to train")), whole)


class Told(keras.callbacks.Callback):
    """Says that the first epoch is right about all validation images, and later ones about none."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_accuracy"] = float(epoch == 0)


def test_the_epoch_that_was_not_worse_than_the_start_outlives_a_cut(tmp_path):
    def stop():
        if begun.count("fine_tune-0003") == 1:
            raise RuntimeError("power cut")

    begun, options = [], {"fine_tune_epochs": 3, "logs": [Told()]}
    expected = train(tmp_path / "whole", **options)
    assert (expected[1].best_phase, expected[1].fine_tune.best_epoch) == ("fine_tune", 1)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "run", begun.append, stop, **options)
    check_same(train(tmp_path / "run", begun.append, **options), expected)
    assert begun[-2:] == ["fine_tune-0003", "fine_tune-0003"]


def test_a_run_that_is_killed_goes_on(tmp_path, whole, capfd):
    code = """
import os, signal
from tests import test_training_resume
begun = []
def stop():
    if len(begun) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
log = test_training_resume.keras.callbacks.CSVLogger("log.csv", append=True)
test_training_resume.train("run", begun.append, stop, logs=[log])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path, env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run").glob("*.npz")) == ["head-0001.npz", "head-0002.npz"]
    # the disk lost the end of the newest
    os.truncate(tmp_path / "run" / "head-0002.npz", 3000)
    (tmp_path / "run" / ".head-0003.npz.0a").touch()
    begun, log = [], keras.callbacks.CSVLogger(tmp_path / "log.csv", append=True)
    check_same(train(tmp_path / "run", begun.append, logs=[log]), whole)
    assert not (tmp_path / "run" / ".head-0003.npz.0a").exists()
    lines = [line.split(",")[0] for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert lines == ["epoch", "0", "1", "1", "0", "1"]  # the epoch that was lost twice, and one header
    assert begun == ["head-0002", "fine_tune-0001", "fine_tune-0002"]


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_a_state_that_is_none_is_passed_over(tmp_path, content):
    (tmp_path / "head-0003.npz").write_bytes(content)
    assert resume.Keeper(tmp_path / "head", 0).epoch == 0
    np.savez(tmp_path / "head-0002.npz", facts=np.frombuffer(b'{"epoch": 2, "finished": true}', "uint8"))
    assert resume.Keeper(tmp_path / "head", 0).epoch == 2
    assert resume.Keeper(tmp_path / "head", 0).finished
    assert resume.Keeper(tmp_path / "fine_tune", 0).epoch == 0


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("kerastl.backend.processes", lambda: (0, 2))
    with pytest.raises(ArgumentError, match="leave out `run_folder`"):
        train(tmp_path / "run")


def test_another_run_is_refused_and_both_are_named(tmp_path, whole):
    def stop():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        train(tmp_path / "run", then=stop)
    with pytest.raises(ArgumentError, match=r"head_epochs was 2, not 5.*another folder.*Received: run_folder="):
        train(tmp_path / "run", head_epochs=5)
    with pytest.raises(ArgumentError, match=r"batch_size was 8, not 4; seed was 3, not None"):
        train(tmp_path / "run", batch_size=4, seed=None)
    other = build()
    other.layers[-1].set_weights([value + 1 for value in other.layers[-1].get_weights()])
    with pytest.raises(RuntimeError):
        train(tmp_path / "run", then=stop, model=other)
    backbone = next(layer for layer in other.layers if isinstance(layer, keras.Model))
    backbone.layers[1].set_weights([value + 1 for value in backbone.layers[1].get_weights()])
    with pytest.raises(ArgumentError, match=r"model was \w+, not \w+\. "):
        train(tmp_path / "run", model=other)
    for content in ("", "[]", '{"random": null}', '{"train": "x"}'):
        (tmp_path / "run" / "run.json").write_text(content)
        with pytest.raises(OutputError, match=r"run\.json is damaged\. Delete the folder.*Received: run_folder="):
            train(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "head-mine.npz").touch()
    with pytest.raises(OutputError, match=r"head-mine\.npz"):
        train(tmp_path / "photos")


def test_a_disk_without_locks_and_with_slow_renames_is_told_of_and_used(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    def slowly(*names, replace=os.replace):
        time.sleep(0.05)
        replace(*names)

    monkeypatch.setattr(fcntl, "flock", refuses)
    monkeypatch.setattr(os, "replace", slowly)
    results = []
    for _ in range(2):
        with pytest.warns(KerastlWarning, match="knows no locks") as told:
            results.append(train(tmp_path / "run", head_epochs=1, fine_tune_epochs=0)[1])
        # for the run's folder, and where that isn't finished, that of the features
        assert len({str(one.message) for one in told if one.category is KerastlWarning}) == 2 - len(results) // 2
    assert results[0].head.history == results[1].head.history


def test_what_a_callback_counts_is_kept_where_json_can_hold_it():
    callback = keras.callbacks.EarlyStopping()
    callback.on_train_begin()
    callback.best, callback.wait, callback.seen = float("nan"), 2, [1, {"a": None}]
    callback.held, callback.numbers, callback.best_weights = (1, 2), {1: 2}, [np.zeros(2)]
    kept = resume._plain_attributes(callback)
    assert {"best", "wait", "seen", "patience"} <= kept.keys()
    assert not {"held", "numbers", "best_weights", "params", "min_delta"} & kept.keys()


def test_the_order_of_an_epoch_follows_from_the_seed_and_its_number():
    writer = MemoryWriter([ArraySpec("features", (), "int64"), ArraySpec("labels", (), "int64")], 20)
    writer.append({"features": np.arange(20), "labels": np.zeros(20, "int64")})
    store = writer.finish()

    def orders(first, epochs):
        options = {"part": "train", "batch_size": 20, "shuffle": True, "views": 2, "seed": 5, "epoch": first}
        batches = FeatureBatches(store, ["features"], **options)
        found = []
        for _ in range(epochs):
            found.append(batches[0][0]["features"].tolist())
            batches.on_epoch_end()
        return found

    assert len(set(map(tuple, orders(0, 4)))) == 4
    assert orders(0, 4)[2:] == orders(2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_ten_kills_at_random_moments_change_nothing(tmp_path, backend):
    pytest.importorskip(backend)
    code = """
import sys, time
import numpy as np
from tests import test_training_resume
noted = open(sys.argv[1] + ".txt", "a", buffering=1)
model = test_training_resume.build(run_eagerly=False)
print("ready", flush=True)
start = time.perf_counter()
epochs = {"head_epochs": 9, "fine_tune_epochs": 7}
note = lambda text: print(text, file=noted)
test_training_resume.train(sys.argv[1], note, lambda: time.sleep(0.2), model, **epochs)
np.save(sys.argv[1] + ".npy", model.predict(test_training_resume.images()[0], verbose=0))
print(time.perf_counter() - start, flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend}

    def begin(name):
        command = [sys.executable, "-c", code, name]
        child = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        return child

    with begin("whole") as child:
        seconds = float(child.stdout.readline())
    kills, runs, generator = 0, 0, random.Random(0)
    while kills < 10 or not (tmp_path / f"{runs}.npy").exists():
        if (tmp_path / f"{runs}.npy").exists():
            runs += 1
        states = sorted((tmp_path / str(runs)).glob("*.npz"))
        noted = tmp_path / f"{runs}.txt"
        before = len(noted.read_text().splitlines()) if noted.exists() else 0
        with begin(str(runs)) as child:
            if kills < 10:
                time.sleep(generator.uniform(0, seconds))
                child.kill()
            child.communicate()
        kills += child.returncode == -signal.SIGKILL
        begun = noted.read_text().splitlines()[before:]
        assert not {path.stem for path in states} & set(begun)
    for run in range(runs + 1):
        np.testing.assert_allclose(np.load(tmp_path / f"{run}.npy"), np.load(tmp_path / "whole.npy"), rtol=0, atol=1e-6)
