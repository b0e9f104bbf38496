"""On a GPU: the same answers and the same training as plain Keras, in every precision; `make test-gpu`."""

import keras
import numpy as np
import pytest

import kerastl
from kerastl import backend
from kerastl.features import litert
from kerastl.features.plan import CacheOptions
from kerastl.training import recipe as training
from kerastl.training.session import fit
from tests import models
from tests.models import twins

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not backend.has_accelerator(), reason="no GPU is seen")]
EXACT = CacheOptions(dtype="float32", engine="keras")


def scaled(pixels):
    return pixels / 127.5 - 1


@pytest.fixture(params=["float32", "mixed_float16", "mixed_bfloat16"])
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_the_engine_answers_as_the_model_does(policy, kind):
    trunk = kerastl.load_backbone("mobilenet_v2", weights=None, input_shape=96)
    images = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3)).astype(kind)
    given = litert.choose_engine(trunk, 10**9)(images)
    assert given[0].dtype == np.float32
    expected = keras.ops.convert_to_numpy(keras.ops.cast(trunk(images.astype("float32"), training=False), "float32"))
    allowed = 1e-3 if policy == "float32" else 2e-2  # of one half-precision program fused otherwise than the other
    assert np.abs(given[0] - expected).max() <= allowed * np.abs(expected).max()


def test_the_frozen_part_stays_on_the_gpu():
    trunk = models.tiny_backbone()
    assert isinstance(litert.choose_engine(trunk, 10**9), litert.KerasEngine)


@pytest.mark.parametrize("choice", [{}, {"last_blocks": 1}])
def test_a_cached_run_equals_an_uncached_one(choice, data):
    cached, plain = twins(**choice)
    arguments = {"epochs": 3, "batch_size": 16, "shuffle": False, "verbose": 0}
    arguments["validation_data"] = (data[0][:10], data[1][:10])
    first = fit(cached, *data, cache=EXACT, **arguments)
    second = plain.fit(*data, **arguments)
    assert first.history.keys() == second.history.keys()
    answers = [keras.ops.convert_to_numpy(model(data[0], training=False)) for model in (cached, plain)]
    assert np.abs(answers[0] - answers[1]).max() <= 1e-2  # TensorFloat-32 keeps ten bits


def test_both_phases_run_in_every_precision(policy, data):
    model = kerastl.build_classifier(models.tiny_backbone(), 3, input_shape=32, preprocessing=scaled)
    result = training.transfer_learn(
        model, data, (data[0][:10, ::-1], data[1][:10]), last_blocks=1, head_epochs=3, fine_tune_epochs=2, verbose=0
    )
    assert "extraction" in result.seconds
    assert np.isfinite(result.fine_tune.history["val_loss"]).all()
    assert model.layers[-1].compute_dtype == "float32"
