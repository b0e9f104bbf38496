"""Small models whose weights are told apart, and requests for them."""

import keras
import numpy as np

from kerastl.models.weights import WeightsRequest


def tiny_backbone(blocks=2, prefix="", filters=4):
    """A little of everything: an explicit name, numbered blocks, BatchNorm, a nested part."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(filters, 3, name=f"{prefix}stem_conv")(inputs)
    x = keras.layers.BatchNormalization(name=f"{prefix}stem_bn")(x)
    for block in range(1, blocks + 1):
        part = keras.Sequential(
            [keras.layers.DepthwiseConv2D(3, padding="same", name=f"{prefix}block{block}_conv")], name=f"part{block}"
        )
        x = keras.layers.Add()([x, part(x)])
        x = keras.layers.BatchNormalization(name=f"{prefix}block{block}_bn")(x)
    return keras.Model(inputs, x, name="tiny")


def automatic_backbone():
    """Layers that Keras names itself, as in InceptionV3: the names depend on what was built before."""
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for filters in (4, 4, 5):
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, 3)(x))
    return keras.Model(inputs, x)


def request_for(build=tiny_backbone, **details):
    return WeightsRequest("tiny", lambda weights: build(), **details)


def randomize(model):
    """Different numbers in every weight, so that no mix-up goes unseen."""
    generator = np.random.default_rng(1)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
    return model


def classifier_around(backbone, nested, with_lambda=False):
    inputs = keras.Input((8, 8, 3)) if nested else backbone.input
    x = backbone(keras.layers.RandomFlip()(inputs)) if nested else backbone.output
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 1)(x))
    x = keras.layers.Lambda(lambda values: values * 2.0)(x) if with_lambda else x
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.BatchNormalization()(x)))


def assert_same_weights(model, expected):
    for found, wanted in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
