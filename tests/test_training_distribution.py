"""`keras.distribution.DataParallel` on JAX gives the weights of one device: tried with 4 virtual ones, and in 2 processes."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
LIMIT = 240  # seconds: processes that wait for each other would do so forever
SCRIPT = """
import json, sys
devices, processes, number, port = map(int, sys.argv[1:5])
folder, result, *jobs = sys.argv[5:]
import jax
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)
import keras, numpy as np
import kerastl
from tests import models
if devices * processes > 1:
    keras.distribution.set_distribution(keras.distribution.DataParallel())
assert len(jax.devices()) == devices * processes
random, found = np.random.default_rng(0), {}
images, labels = random.integers(0, 256, (90, 32, 32, 3)).astype("uint8"), random.integers(0, 3, 90)
train, validation, epochs = (images, labels), (images[:33], labels[:33]), {"epochs": 2, "verbose": 0}


class Batches(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        pass  # asks for each batch, in one of the processes


def fit_twice(model, place):
    cache = kerastl.CacheOptions(place=place, dtype="float32")
    for choice in ({}, {"last_blocks": 1}):
        if choice:
            kerastl.unfreeze(model, **choice)
        compiled(model)
        options = {"cache": cache, "batch_size": 16, "callbacks": [Batches()] * (number == 1), **epochs}
        history = kerastl.fit(model, *train, validation_data=validation, **options)
    return history


def augmented():
    inputs = keras.Input((32, 32, 3))
    x = keras.Sequential([keras.layers.RandomFlip(), keras.layers.RandomBrightness(0.2)])(inputs)
    x = models.tiny_backbone()((x - 127.5) / 127.5, training=False)
    return keras.Model(inputs, models.head_layers(x))


def both_phases(model):
    compiled(model)
    cache = kerastl.CacheOptions(folder=folder, dtype="float32")
    epochs = {"head_epochs": 2, "fine_tune_epochs": 2, "last_blocks": 1, "learning_rate": 0.01, "verbose": 0}
    options = {"cache": cache, "views": 3, "batch_size": 15, "class_weight": "balanced"}
    return kerastl.transfer_learn(model, train, validation, **epochs, **options).fine_tune


def compiled(model):
    # Adam would amplify what another order of sums leaves
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])


def rates(model):
    compiled(model)
    options = {"rates": [1e-3, 1e-2], "steps": 6, "last_blocks": 1, "batch_size": 15, "verbose": 0}
    result = kerastl.find_learning_rate(model, train, validation, cache=kerastl.CacheOptions(dtype="float32"), **options)
    return {"loss": [result.start, *(run.loss for run in result.runs)], "suggestion": result.suggestion}


for job in jobs:
    keras.utils.set_random_seed(0)
    model = kerastl.freeze(augmented() if job == "folder" else models.nested())
    if job == "rates":
        found |= {f"{job} {name}": np.array(values) for name, values in rates(model).items()}
        continue
    history = both_phases(model) if job == "folder" else fit_twice(model, job)
    found |= {f"{job} {index}": keras.ops.convert_to_numpy(one) for index, one in enumerate(model.weights)}
    found |= {f"{job} {name}": np.array(values) for name, values in history.history.items()}
np.savez(result, **found)
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def trained(folder, devices: int, processes: int, *jobs: str) -> list[dict]:
    """Return the weights and the history that each process finds, by job; all are ended when one fails or time is over."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    port, deadline = free_port(), time.monotonic() + LIMIT
    with contextlib.ExitStack() as stack:
        running = []
        for number in range(processes):
            places = map(str, (devices, processes, number, port, folder / "features", folder / f"{number}.npz"))
            log = stack.enter_context(open(folder / f"{number}.log", "w"))  # a pipe that nobody reads fills up
            command = [sys.executable, "-c", SCRIPT, *places, *jobs]
            running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
            stack.callback(running[-1].wait)
            stack.callback(running[-1].kill)
        while any(one.poll() is None for one in running) and time.monotonic() < deadline:
            if any(one.poll() for one in running):
                break
            time.sleep(0.1)
        ended = [one.poll() for one in running]
    logs = [(folder / f"{number}.log").read_text()[-3000:] for number in range(processes)]
    assert ended == [0] * processes, "\n".join(logs)
    return [dict(np.load(folder / f"{number}.npz")) for number in range(processes)]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    pytest.importorskip("jax")
    return trained(tmp_path_factory.mktemp("one"), 1, 1, "memory", "device", "folder", "rates")[0]


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    pytest.importorskip("jax")
    return trained(tmp_path_factory.mktemp("four"), 4, 1, "memory", "device", "folder", "rates")[0]


def assert_same(found: dict, expected: dict, job: str) -> None:
    names = [name for name in expected if name.startswith(job)]
    assert len(names) > 10
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("job", ["memory", "device", "folder"])
def test_four_devices_give_the_weights_of_one(one_device, four_devices, job):
    """Also where neither the batches nor the last of them can be divided among them."""
    assert_same(four_devices, one_device, job)


def test_four_devices_judge_rates_as_one(one_device, four_devices):
    for name in ("rates loss", "rates suggestion"):
        np.testing.assert_allclose(four_devices[name], one_device[name], rtol=1e-4)


def test_the_device_gives_the_weights_of_the_memory(one_device, four_devices):
    found = {name.replace("device", "memory"): value for name, value in four_devices.items() if "device" in name}
    assert_same(found, one_device, "memory")


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(one_device, tmp_path):
    for found in trained(tmp_path, 1, 2, "memory", "device", "folder", "rates"):
        np.testing.assert_allclose(found["rates loss"], one_device["rates loss"], rtol=1e-4)
        for job in ("memory", "device", "folder"):
            assert_same(found, one_device, job)
