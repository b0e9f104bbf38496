"""Every backbone is what its row says, and goes through freezing, unfreezing and cutting.

Five of different kinds always, the others when slow. The blocks and dominators of every family are in test_graph.py.
"""

import dataclasses

import keras
import numpy as np
import pytest

from kerastl.features.cut import find_cuts
from kerastl.models import backbones, freezing, graph
from kerastl.models.heads import build_classifier
from tests import models

SMALLEST = {
    *("convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_b0", "inception_resnet_v2", "inception_v3"),
    *(
        "mobilenet",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "nasnet_mobile",
        "resnet50",
        "resnet50_v2",
        "vgg16",
        "xception",
    ),
    *("vgg19", "resnet18", "squeezenet", "shufflenet", "efficientnet_lite0"),
}
# With shortcuts and without, added and concatenated, with BatchNorm and without, with pixels scaled inside
ALWAYS = {"densenet121", "efficientnet_v2_b0", "mobilenet_v2", "resnet50", "vgg16"}
NAMES = [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in backbones.list_backbones()]


def test_the_smallest_of_every_family_is_known():
    families = {row.family: set() for row in backbones.BACKBONES.values()}
    for row in backbones.BACKBONES.values():
        families[row.family].add(row.name)
    assert [family for family, names in families.items() if not names & SMALLEST] == []


def backbone_in(model):
    return model.get_layer(graph.find_backbone(model).name)


def images_of(size):
    return np.random.default_rng(1).uniform(0, 255, (4, size, size, 3)).astype("float32")


def classifier(name):
    """A classifier with random weights whose BatchNorm statistics fit the data, so that signals don't fade away."""
    size = backbones.backbone_row(name).smallest_size
    model = build_classifier(name, 2, input_shape=(size, size, 3), weights=None, dropout=0)
    assert not any(layer.trainable for layer in graph.leaf_layers(backbone_in(model)))
    for layer in (layers := graph.batch_norm_layers(model)):
        layer.trainable, layer.momentum = True, 0.0
    model(images_of(size), training=True)
    for layer in layers:
        layer.momentum = 0.99
    return model


@pytest.fixture(params=NAMES, scope="module")  # so that the tests of one backbone follow each other, on one model
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    keras.utils.set_random_seed(0)
    yield classifier(name)
    keras.backend.clear_session()


@pytest.fixture
def data(model):
    return images_of(model.input_shape[1]), np.array([0, 1, 0, 1])


def front_of(model):
    """The part of a backbone before its first convolution, as a model; `None` where there is none."""
    output = None
    for operation in model.operations[1:]:
        is_normalization = isinstance(operation, keras.layers.Normalization)
        if isinstance(operation, keras.layers.ZeroPadding2D) or (operation.weights and not is_normalization):
            break
        output = operation.output
    return None if output is None else keras.Model(model.input, output)


def assert_prepares_pixels_as_its_row_says(backbone, row):
    front, images = front_of(backbone), images_of(backbone.input_shape[1])
    if row.preprocessing != backbones.IN_MODEL:
        assert front is None
    elif row.family == "efficientnet":  # the statistics come with the weights: see test_weights.py
        np.testing.assert_allclose(front(images), images / 255, atol=1e-6)
    else:
        expected = backbones.preprocess(dataclasses.replace(row, preprocessing=row.built_in), images)
        np.testing.assert_allclose(front(images), expected, atol=1e-5)


def test_a_backbone_takes_its_smallest_size_and_knows_its_row(name, model):
    row, backbone = backbones.backbone_row(name), backbone_in(model)
    size = row.smallest_size
    assert backbone.input_shape == (None, size, size, 3)
    assert len(backbone.output_shape) == 4
    assert backbones.find_backbone_row(backbone) == row
    with pytest.raises(ValueError, match="at least"):  # Keras itself refuses what the table refuses
        row.constructor(include_top=False, weights=None, input_shape=(size, size - 1, 3))
    assert_prepares_pixels_as_its_row_says(backbone, row)


def test_a_larger_efficientnet_v2_prepares_pixels_in_another_way():
    row = backbones.backbone_row("efficientnet_v2_s")
    backbone = backbones.load_backbone(row.name, input_shape=32, weights=None)
    assert_prepares_pixels_as_its_row_says(backbone, row)


def test_freeze_keeps_the_backbone_bit_identical_and_unfreeze_moves_the_last_block_alone(model, data):
    freezing.freeze(model)
    backbone = backbone_in(model)
    before = models.snapshot(backbone)
    models.compiled(model, 1e-2, run_eagerly=True).fit(*data, verbose=0)  # quicker for a single step than tracing
    assert not models.changed(before, backbone)

    freezing.unfreeze(model, last_blocks=1)
    last = {weight.path for layer in freezing.list_blocks(model)[-1].layers for weight in layer.weights}
    models.compiled(model, 1e-2, run_eagerly=True).fit(*data, verbose=0)
    moved = models.changed(before, backbone)
    assert moved
    assert moved <= last
    statistics = {weight.path for layer in graph.batch_norm_layers(backbone) for weight in layer.weights}
    assert not moved & statistics


@pytest.mark.parametrize("choice", [None, {"last_blocks": 1}, {"fraction": 0.3}], ids=["head", "last block", "30 %"])
def test_tail_of_trunk_is_the_model(model, data, choice):
    freezing.freeze(model) if choice is None else freezing.unfreeze(model, **choice)
    cut = find_cuts(model)[-1]
    trunk, tail = cut.trunk(), cut.tail()
    assert not trunk.trainable_variables
    assert [id(one) for one in tail.trainable_variables] == [id(one) for one in model.trainable_variables]
    whole = keras.ops.convert_to_numpy(model(data[0], training=False))
    parts = trunk(data[0], training=False)
    np.testing.assert_allclose(tail(parts, training=False), whole, rtol=1e-5, atol=1e-6)
    assert len(cut.tensors) == (2 if "nasnet" in model.name and choice else 1)
