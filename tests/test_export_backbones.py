"""Every backbone has the same outputs in LiteRT, in float32, as in Keras: one always, the others when slow."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from kerastl.data.images import resize_image
from kerastl.errors import GateError
from kerastl.export import conversion
from kerastl.export.exporting import export_model
from kerastl.features import litert
from kerastl.models import backbones, graph
from kerastl.models.heads import build_classifier
from tests.test_every_backbone import SMALLEST

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the converter is TensorFlow's"),
    pytest.mark.skipif(not litert.is_installed(), reason="needs ai-edge-litert"),
]

NAMES = [
    pytest.param(name, marks=() if name == "mobilenet_v2" else pytest.mark.slow) for name in backbones.list_backbones()
]


@pytest.fixture(scope="module")
def photographs():
    with np.load(Path(__file__).parent / "data" / "efficientnet_lite0.npz") as kept:
        return kept["images"]


def pixels_for(row, size, photographs) -> np.ndarray:
    """Two random images, two real ones, and 28 of several brightnesses, preprocessed."""
    random = np.random.default_rng(0)
    noise = random.uniform(0, 255, (2, size, size, 3))
    real = np.stack([resize_image(one, (size, size)) for one in photographs[:2]])
    others = random.uniform(0, 255, (28, size, size, 3)) * random.uniform(0.2, 1, (28, 1, 1, 3))
    pixels = np.concatenate([noise, real, others]).astype("float32")
    return keras.ops.convert_to_numpy(backbones.preprocess(row, pixels))


def fit_statistics(model, pixels) -> None:
    """Give BatchNorm the statistics of the data: with others random networks fade, and nothing but zeros is compared.

    Nothing is dropped meanwhile: EfficientNet drops whole branches, and statistics without them blow up what comes with
    them. BatchNorm's offsets are 1, not 0, so that most values lie where activations are nearly straight, as in trained
    networks: deep random ones are chaotic at 0, and EfficientNetV2L's own output moves by 2.6 % when its pixels change by
    a millionth (by 0.002 % at 1).
    """
    for layer in graph.leaf_layers(model):
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0
    for layer in (found := graph.batch_norm_layers(model)):
        layer.trainable, layer.momentum = True, 0.0
        if layer.center:
            layer.beta.assign(keras.ops.ones_like(layer.beta))
    model(pixels, training=True)
    for layer in found:
        layer.trainable = False


def largest_differences(expected, given) -> np.ndarray:
    """Return max |a - b| / max |a| for each image."""
    return np.array([np.abs(one - other).max() / np.abs(one).max() for one, other in zip(expected, given, strict=True)])


@pytest.mark.parametrize("name", NAMES)
def test_features_of_random_and_real_images_agree_within_a_thousandth(name, photographs):
    row = backbones.backbone_row(name)
    keras.utils.set_random_seed(0)
    # At 32 the last maps are one pixel, and BatchNorm divides by variances of next to nothing
    size = max(64, row.smallest_size)
    model = backbones.load_backbone(name, input_shape=size, weights=None)
    pixels = pixels_for(row, size, photographs)
    fit_statistics(model, pixels)
    expected = keras.ops.convert_to_numpy(model(pixels[:4], training=False))
    given = litert.LiteRTModel(conversion.convert(model), threads=1)(pixels[:4])[0]
    assert all(one.std() > 0 for one in expected)
    nearby = pixels[:4] * np.random.default_rng(0).uniform(1 - 1e-6, 1 + 1e-6, pixels[:4].shape).astype("float32")
    assert largest_differences(expected, model(nearby, training=False)).max() <= 1e-4, "too chaotic to be compared"
    assert largest_differences(expected, given).max() <= 1e-3
    if name in SMALLEST:
        given = litert.LiteRTModel(litert.convert_to_run(model), threads=1)(pixels[:4])[0]
        assert largest_differences(expected, given).max() <= 1e-3
    keras.backend.clear_session()


@pytest.mark.slow
def test_mobilenet_v3_in_int8_does_as_well_or_is_stopped_with_the_reason(photographs, tmp_path):
    """TensorFlow's issue 83754: its hard swishes and squeeze-and-excitations lose much, or little, in int8."""
    keras.utils.set_random_seed(0)
    model = build_classifier("mobilenet_v3_small", 3, input_shape=64, weights=None, dropout=0)
    random = np.random.default_rng(0)
    real = np.stack([resize_image(one, (64, 64)) for one in photographs[:2]] * 16).astype("float32")
    images = (
        (real * random.uniform(0.2, 1, (32, 1, 1, 1)) + random.normal(0, 20, real.shape)).clip(0, 255).astype("uint8")
    )
    fit_statistics(model, images.astype("float32"))
    folder = tmp_path / "bundle"
    reason = None
    try:
        written = export_model(model, folder, quantize="int8", representative=images, held_out=images, verbose=0)
    except GateError as error:
        reason = error.reason
    if reason is None:
        assert written.card["gate"]["comparisons"][0]["agreement"] >= 0.99
    else:
        assert re.search(r"litert int8: it names Keras's class for \d+\.\d\d% of the images, and must for 99", reason)
        assert not folder.exists()
