"""Several devices: `keras.distribution.DataParallel` on JAX gives the weights of one device, tried with 4 virtual ones."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = """
import sys
import keras, numpy as np
import kerastl
from tests import models
if int(sys.argv[1]) > 1:
    keras.distribution.set_distribution(keras.distribution.DataParallel())
random, weights = np.random.default_rng(0), {}
images, labels = random.integers(0, 256, (96, 32, 32, 3)).astype("uint8"), random.integers(0, 3, 96)
options = {"validation_data": (images[:32], labels[:32]), "epochs": 2, "batch_size": 16, "verbose": 0}
for place in ("memory", "device"):
    keras.utils.set_random_seed(0)
    model = kerastl.freeze(models.nested())
    for choice in ({}, {"last_blocks": 1}):
        if choice:
            kerastl.unfreeze(model, **choice)
        # Adam would amplify what another order of sums leaves
        model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
        cache = kerastl.CacheOptions(place=place, dtype="float32")
        history = kerastl.fit(model, images, labels, cache=cache, **options)
    weights |= {f"{place}{index:03d}": np.array(one) for index, one in enumerate(model.weights)}
import jax
assert len(jax.devices()) == int(sys.argv[1])
np.savez(sys.argv[2], **weights)
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights after both phases, by place, on one device and on four."""
    pytest.importorskip("jax")
    found = {}
    for count in (1, 4):
        path = tmp_path_factory.mktemp("weights") / f"{count}.npz"
        flags = f"--xla_force_host_platform_device_count={count}"
        environment = {"KERAS_BACKEND": "jax", "XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", SCRIPT, str(count), str(path)]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[count] = dict(np.load(path))
    return found


@pytest.mark.parametrize("place", ["memory", "device"])
def test_four_devices_give_the_weights_of_one(weights, place):
    one, four = ({name: value for name, value in weights[count].items() if place in name} for count in (1, 4))
    assert len(one) > 10
    for name, value in one.items():
        np.testing.assert_allclose(value, four[name], atol=1e-5)


def test_the_device_gives_the_weights_of_the_memory(weights):
    for name, value in weights[4].items():
        np.testing.assert_allclose(value, weights[1][name.replace("memory", "device")], atol=1e-5)
