"""Set up before Keras is imported: quiet start, CPU only, one seed; and the tiny models that many tests share."""

import collections
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import keras
import numpy as np
import pytest

from tests import models, sweeps

# The same examples in every run, so that a change is judged by what it changed; `make test-all` draws new ones
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the further cases of long tests."""
    seen = collections.Counter()
    for item in items:
        function = item.path.name, getattr(item, "originalname", None)
        seen[function] += 1
        if seen[function] > sweeps.KEPT.get(function[0], {}).get(function[1], seen[function]):
            item.add_marker(pytest.mark.sweep)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def eagerly():
    """TensorFlow runs operation by operation: a few steps of a tiny model take less time than tracing them.

    What `fit` does in a graph is tried by test_fit_table, test_features_fit, test_training_steps and others.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def pixels():
    """Sixteen random 32×32 images in 0–255 and labels of three classes, all present."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (16, 32, 32, 3)).astype("float32")
    return images, np.arange(16) % 3


@pytest.fixture(scope="session")
def colours():
    return models.colours()


@pytest.fixture(scope="session")
def labelled():
    return models.labelled_colours()


@pytest.fixture
def small_shards(monkeypatch, tmp_path_factory):
    """Feature stores with shards of three of the tests' chunks; temporary stores in a folder of this test's."""
    monkeypatch.setattr("kerastl.features.store.SHARD_BYTES", 1100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))


@pytest.fixture
def data():
    """Forty 32×32 images in 0–255 of three classes that differ in brightness, and their labels, to train on."""
    generator = np.random.default_rng(1)
    labels = np.arange(40) % 3
    images = generator.normal(labels[:, None, None, None] * 90.0 + 30, 20, (40, 32, 32, 3)).clip(0, 255)
    return images.astype("float32"), labels
