"""Set up before Keras is imported: quiet start, CPU only, one seed; and the tiny models that many tests share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import keras
import numpy as np
import pytest

from tests import models

# The same examples in every run, so that a change is judged by what it changed; `make test-all` draws new ones
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


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
