"""Who runs the trunk: the engines answer alike, and the quicker one is taken."""

import keras
import numpy as np
import pytest

from kerastl.errors import BackendError
from kerastl.features import litert
from tests import models

pytestmark = pytest.mark.skipif(not litert.litert_available(), reason="LiteRT is not here, or not on this backend")


@pytest.fixture(scope="module")
def trunk():
    """From pixels to two tensors of one shape and a pooled one."""
    keras.utils.set_random_seed(0)
    model = models.tiny_backbone()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([np.linspace(0.5, 1.5, 8) for _ in range(4)])
    ends = [model.get_layer(f"conv2_block{number}_out").output for number in (1, 3)]
    return keras.Model(model.inputs[0], [*ends, keras.layers.GlobalAveragePooling2D()(ends[1])], name="trunk")


def test_litert_answers_as_keras_does_each_output_in_its_place(trunk):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype("uint8")
    expected = litert.KerasEngine(trunk)(images)
    given = litert.LiteRTEngine(trunk)(images)
    assert len(given) == len(expected) == 3
    for ours, theirs in zip(given, expected, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()
    assert np.abs(given[0] - given[1]).max() > 0.1 * np.abs(given[1]).max()  # so that a mix-up would show


def test_the_engine_is_chosen_by_the_number_of_images(trunk):
    assert isinstance(litert.choose_engine(trunk, 10), litert.KerasEngine)
    assert isinstance(litert.choose_engine(trunk, None), litert.KerasEngine)
    assert isinstance(litert.choose_engine(trunk, 10**6), litert.LiteRTEngine)


def test_what_litert_cannot_run_keras_runs(capsys):
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(4, 1)(inputs)
    model = keras.Model(inputs, keras.ops.det(keras.ops.transpose(x, (0, 3, 1, 2))))
    with pytest.raises(BackendError, match="MatrixDeterminant"):
        litert.choose_engine(model, 10, "litert")
    assert isinstance(litert.choose_engine(model, 10**9, verbose=1), litert.KerasEngine)
    assert "so Keras does" in capsys.readouterr().out


def test_a_mixed_policy_is_left_to_keras():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.tiny_backbone()
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(litert.choose_engine(model, 10**9), litert.KerasEngine)
