"""Tiny seeded models with BatchNorm, flat and nested, that tests of several modules share."""

import keras
import numpy as np
import pytest
from keras import layers

from kerastl.models import freezing


def backbone_layers(x, *, blocks: int = 3, width: int = 8):
    """Residual blocks named as ResNet names them: conv → BatchNorm → ReLU → conv → BatchNorm → add → ReLU."""
    x = layers.Conv2D(width, 3, strides=2, padding="same", name="conv1_conv")(x)
    x = layers.BatchNormalization(name="conv1_bn")(x)
    x = layers.ReLU(name="conv1_relu")(x)
    for index in range(1, blocks + 1):
        name = f"conv2_block{index}"
        shortcut = x
        x = layers.Conv2D(width, 3, padding="same", name=f"{name}_1_conv")(x)
        x = layers.BatchNormalization(name=f"{name}_1_bn")(x)
        x = layers.ReLU(name=f"{name}_1_relu")(x)
        x = layers.Conv2D(width, 3, padding="same", name=f"{name}_2_conv")(x)
        x = layers.BatchNormalization(name=f"{name}_2_bn")(x)
        x = layers.Add(name=f"{name}_add")([shortcut, x])
        x = layers.ReLU(name=f"{name}_out")(x)
    return x


def head_layers(x, *, classes: int = 3, units: int | None = None):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if units:
        x = layers.Dense(units, activation="relu", name="hidden")(x)
    return layers.Dense(classes, activation="softmax", name="predictions")(x)


def tiny_backbone(size: int = 32, **options) -> keras.Model:
    inputs = keras.Input((size, size, 3), name="pixels")
    return keras.Model(inputs, backbone_layers(inputs, **options), name="tiny")


def flat(size: int = 32, classes: int = 3, augmentation: bool = False, **options) -> keras.Model:
    """Everything in one graph, as the notes build it."""
    inputs = keras.Input((size, size, 3))
    x = layers.RandomFlip("horizontal", name="flip")(inputs) if augmentation else inputs
    x = backbone_layers((x - 127.5) / 127.5, **options)
    return keras.Model(inputs, head_layers(x, classes=classes), name="flat")


def nested(size: int = 32, classes: int = 3, augmentation: bool = False, **options) -> keras.Model:
    """A backbone called as a layer, as the Keras guide builds it."""
    inputs = keras.Input((size, size, 3))
    x = keras.Sequential([layers.RandomFlip("horizontal")], name="augmentation")(inputs) if augmentation else inputs
    x = tiny_backbone(size, **options)((x - 127.5) / 127.5, training=False)
    return keras.Model(inputs, head_layers(x, classes=classes), name="nested")


def sequential(size: int = 32, classes: int = 3) -> keras.Model:
    """The same as a Sequential model."""
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            layers.RandomFlip("horizontal"),
            layers.Rescaling(1 / 127.5, offset=-1),
            tiny_backbone(size),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes, activation="softmax"),
        ],
        name="sequential",
    )


def colours() -> keras.Model:
    """A classifier that names the strongest of three channels."""
    inputs = keras.Input((8, 8, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(pooled), name="colours")
    model.set_weights([np.eye(3) * 5, np.zeros(3)])
    return model


def labelled_colours():
    """Ten images of colour 0, 0, 0, 0, 1, 1, 1, 1, 1, 1 that are labelled 0, 0, 0, 1, 1, 1, 1, 1, 2, 2."""
    images = np.zeros((10, 8, 8, 3), "uint8")
    for place, strength in enumerate([200, 210, 220, 230, 250, 240, 180, 170, 100, 255]):
        images[place, ..., int(place > 3)] = strength
    return images, np.array([0, 0, 0, 1, 1, 1, 1, 1, 2, 2])


def compiled(model: keras.Model, learning_rate: float = 1e-3, **arguments) -> keras.Model:
    arguments = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **arguments}
    model.compile(keras.optimizers.Adam(learning_rate), **arguments)
    return model


def snapshot(layer) -> dict:
    """Return `{path of the weight: its value}`."""
    return {weight.path: keras.ops.convert_to_numpy(weight).copy() for weight in layer.weights}


def changed(before: dict, layer) -> set[str]:
    """Return the paths of the weights that are not bit-identical any more."""
    return {path for path, value in snapshot(layer).items() if (before[path] != value).any()}


def twins(build=nested, **choice):
    """Return two equal compiled models, their backbones frozen but for what is chosen."""
    keras.utils.set_random_seed(0)
    pair = [build(), build()]
    pair[1].set_weights(pair[0].get_weights())
    for model in pair:
        freezing.unfreeze(model, **choice) if choice else freezing.freeze(model)
        compiled(model, 0.01, weighted_metrics=["accuracy"])
    return pair


def small_model(size=8):
    """Two convolutions with BatchNorm between them, and a head."""
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", name="second")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax", name="head")(x), name="small")


# For a whole file, as its `pytestmark`
EAGERLY = [
    pytest.mark.usefixtures("eagerly"),
    pytest.mark.filterwarnings("ignore:Even though the `tf.config"),  # that tf.data stays a graph
]


def slowly(*names):
    """Mark parameters of a test for the slow run."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]
