"""Every backbone goes to LiteRT in float32 and answers there as in Keras: those that convert soon always, others when slow."""

from pathlib import Path

import keras
import numpy as np
import pytest

from kerastl import backbones, graph, litert
from kerastl.images import resize_image
from tests.test_every_backbone import SMALLEST

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the converter is TensorFlow's"),
    pytest.mark.skipif(not litert.is_installed(), reason="needs ai-edge-litert"),
]

QUICK = {
    *("efficientnet_b0", "efficientnet_lite0", "mobilenet", "mobilenet_v2", "mobilenet_v3_small"),
    *("resnet18", "shufflenet", "squeezenet", "vgg16"),
}
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in backbones.list_backbones()]


@pytest.fixture(scope="module")
def photographs():
    with np.load(Path(__file__).parent / "data" / "efficientnet_lite0.npz") as kept:
        return kept["images"]


def pixels_for(row, size, photographs) -> np.ndarray:
    """Two random images, two real ones, and 28 of several brightnesses, preprocessed."""
    random = np.random.default_rng(0)
    noise = random.uniform(0, 255, (2, size, size, 3))
    real = np.stack([resize_image(one, size) for one in photographs[:2]])
    others = random.uniform(0, 255, (28, size, size, 3)) * random.uniform(0.2, 1, (28, 1, 1, 3))
    pixels = np.concatenate([noise, real, others]).astype("float32")
    return keras.ops.convert_to_numpy(backbones.preprocess(row, pixels))


def fit_statistics(model, pixels) -> None:
    """Give BatchNorm the statistics of the data: with others random networks fade, and nothing but zeros is compared."""
    for layer in (found := graph.batch_norm_layers(model)):
        layer.trainable, layer.momentum = True, 0.0
    model(pixels, training=True)
    for layer in found:
        layer.trainable = False


@pytest.mark.parametrize("name", NAMES)
def test_features_of_random_and_real_images_agree_within_a_thousandth(name, photographs):
    row = backbones.backbone_row(name)
    size = max(32, row.smallest_size)
    model = backbones.load_backbone(name, input_shape=size, weights=None)
    pixels = pixels_for(row, size, photographs)
    fit_statistics(model, pixels)
    expected = keras.ops.convert_to_numpy(model(pixels[:4], training=False))
    given = litert.LiteRTModel(litert.convert(model), threads=1)(pixels[:4])[0]
    for one, other in zip(expected, given, strict=True):
        assert one.std() > 0
        assert np.abs(one - other).max() <= 1e-3 * np.abs(one).max()
    keras.backend.clear_session()


def test_the_quick_ones_are_among_the_smallest_of_their_families():
    assert QUICK <= SMALLEST
