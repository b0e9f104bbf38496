"""The building blocks of the well-known networks, as functions from tensor to tensor in Keras's functional style.

All take `x`, `(batch, height, width, channels)`, and give such a tensor; a `stride` of 2 halves height and width. Layers
have names that begin with `name`, so that blocks can be told by prefix, frozen and unfrozen by it; what follows is as in
`keras.applications` in the blocks of ResNet-50 and MobileNetV2. A size that is no positive whole number, or doesn't fit,
raises `ArgumentError`. A network is a chain of such calls: see `kerastl.models.networks`.
"""

import keras

from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError

layers = keras.layers

# keras.applications writes 1.001e-5 in ResNet; weights copied from there need the same number
RESNET_EPSILON = 1.001e-5


def bottleneck_block(x, filters: int, *, stride: int = 1, projection: bool | None = None, name: str = "block"):
    """Apply the bottleneck block of ResNet-50, 101 and 152: 1×1 to few channels, 3×3, 1×1 to many, plus the shortcut.

    The stride is in the first 1×1 convolution, as in the paper and in `keras.applications.ResNet50` (torchvision has it
    in the 3×3). The narrow layers have `filters` channels; four times as many come out, none negative. `projection` says
    whether the shortcut is a 1×1 convolution, as in ResNet50's first block of every stage; `None`: only where the identity
    doesn't fit, which `False` raises for. Source: He et al., "Deep residual learning for image recognition", 2015, figure 5.
    """
    narrow, wide = check_count("filters", filters), 4 * filters
    shortcut = _shortcut(x, wide, stride, projection, name)
    x = conv_norm(x, narrow, 1, f"{name}_1", strides=stride)
    x = layers.Activation("relu", name=f"{name}_1_relu")(x)
    x = conv_norm(x, narrow, 3, f"{name}_2")
    x = layers.Activation("relu", name=f"{name}_2_relu")(x)
    x = conv_norm(x, wide, 1, f"{name}_3")
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_out")(x)


def basic_block(x, filters: int, *, stride: int = 1, projection: bool | None = None, name: str = "block"):
    """Apply the block of ResNet-18 and 34: two 3×3 convolutions, plus the shortcut.

    Convolutions have no bias and pad by one pixel on each side, as in torchvision. `filters` channels come out, none
    negative; the first convolution has the stride. `projection` and the source are those of `bottleneck_block`.
    """
    check_count("filters", filters)
    bare = {"use_bias": False, "epsilon": 1e-5}
    shortcut = _shortcut(x, filters, stride, projection, name, **bare)
    if stride > 1:  # "same" would pad on one side alone
        x = layers.ZeroPadding2D(1, name=f"{name}_1_pad")(x)
    padding = "valid" if stride > 1 else "same"
    x = conv_norm(x, filters, 3, f"{name}_1", strides=stride, padding=padding, **bare)
    x = layers.Activation("relu", name=f"{name}_1_relu")(x)
    x = conv_norm(x, filters, 3, f"{name}_2", **bare)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_out")(x)


def depthwise_separable_block(x, filters: int, *, stride: int = 1, alpha: float = 1.0, name: str = "block"):
    """Apply the block of MobileNet: a depthwise 3×3 convolution, then a pointwise one, each with BatchNorm and ReLU6.

    `alpha` is the width multiplier: `int(alpha × filters)` channels come out, as in `keras.applications.MobileNet`. The
    depthwise convolution has the stride. Source: Howard et al., "MobileNets: efficient convolutional neural networks for
    mobile vision applications", 2017.
    """
    outside = check_count("alpha × filters", int(check_count("filters", filters) * alpha))
    x = _depthwise_relu6(x, 3, stride, f"{name}_depthwise", epsilon=1e-3)
    return _pointwise(x, outside, f"{name}_pointwise", epsilon=1e-3, relu6=True)


def inverted_residual_block(
    x,
    filters: int,
    *,
    stride: int = 1,
    expansion: int = 6,
    alpha: float = 1.0,
    kernel_size: int = 3,
    momentum: float = 0.999,
    name: str = "block",
):
    """Apply the block of MobileNetV2: 1×1 to many channels, depthwise, 1×1 to few *without* activation, plus shortcut.

    The shortcut is there where it fits: stride 1 and as many channels in as out. ReLU6 follows the two wide layers; the
    narrow one is linear, because ReLU loses information where channels are few (the paper's section 3.2).

    The inner layers are `expansion` times wider than the input. `alpha × filters` channels come out, rounded to multiples
    of 8. Stride and kernel size are the depthwise convolution's. EfficientNet has a `momentum` of 0.99 in BatchNorm.
    Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018.
    """
    inside = x.shape[channel_axis()]
    outside = make_divisible(check_count("filters", filters) * alpha)
    check_count("expansion", expansion)
    norm = {"epsilon": 1e-3, "momentum": momentum}
    shortcut = x
    if expansion > 1:
        x = _pointwise(x, expansion * inside, f"{name}_expand", relu6=True, **norm)
    x = _depthwise_relu6(x, kernel_size, stride, f"{name}_depthwise", **norm)
    x = _pointwise(x, outside, f"{name}_project", **norm)
    if stride > 1 or inside != outside:
        return x
    return layers.Add(name=f"{name}_add")([shortcut, x])


def fire_module(x, squeeze_filters: int, expand_filters: int, *, name: str = "fire"):
    """Apply the module of SqueezeNet: 1×1 to few channels, then 1×1 and 3×3 side by side, concatenated.

    Each of the two expand layers has `expand_filters` channels; twice as many come out. Source: Iandola et al.,
    "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", 2016, section 3.
    """
    check_count("squeeze_filters", squeeze_filters)
    check_count("expand_filters", expand_filters)

    def conv_relu(x, filters, kernel_size, suffix):
        x = layers.Conv2D(filters, kernel_size, padding="same", name=f"{name}_{suffix}")(x)
        return layers.ReLU(name=f"{name}_{suffix}_relu")(x)

    x = conv_relu(x, squeeze_filters, 1, "squeeze")
    branches = [conv_relu(x, expand_filters, 1, "expand1x1"), conv_relu(x, expand_filters, 3, "expand3x3")]
    return layers.Concatenate(axis=channel_axis(), name=f"{name}_concat")(branches)


def shuffle_unit(x, filters: int, *, groups: int = 3, stride: int = 1, group_first: bool = True, name: str = "block"):
    """Apply the unit of ShuffleNet: grouped 1×1, channel shuffle, depthwise 3×3, grouped 1×1, plus shortcut.

    With stride 1 the shortcut is the identity, added; with stride 2 it is an average pooling, concatenated. `filters`
    channels come out, none negative; a quarter of them are inside. In the network's first unit, whose input has
    few channels, the first convolution is not grouped: `group_first=False`. Source: Zhang et al., "ShuffleNet: an extremely
    efficient convolutional neural network for mobile devices", 2017.
    """
    inside = x.shape[channel_axis()]
    check_count("groups", groups)
    narrow, outside = check_count("filters", filters) // 4, filters if stride == 1 else filters - inside
    first_groups = groups if group_first else 1
    divisible = narrow % groups == 0 and outside % groups == 0 and inside % first_groups == 0 and filters % 4 == 0
    if not divisible or outside < 1 or (stride == 1 and inside != filters):
        raise ArgumentError(
            "A shuffle unit needs channels that the groups divide, four times as many outside as inside; with stride 1 "
            "as many in as out, with stride 2 more out than in. "
            f"{received(channels=inside, filters=filters, groups=groups, stride=stride)}"
        )
    shortcut = x
    x = conv_norm(x, narrow, 1, f"{name}_1", groups=first_groups, use_bias=False, epsilon=1e-5)
    x = layers.ReLU(name=f"{name}_1_relu")(x)
    x = channel_shuffle(x, groups)
    x = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False, name=f"{name}_2_depthwise")(x)
    x = layers.BatchNormalization(axis=channel_axis(), epsilon=1e-5, name=f"{name}_2_bn")(x)
    x = conv_norm(x, outside, 1, f"{name}_3", groups=groups, use_bias=False, epsilon=1e-5)
    if stride == 1:
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    else:
        shortcut = layers.AveragePooling2D(3, strides=stride, padding="same", name=f"{name}_pool")(shortcut)
        x = layers.Concatenate(axis=channel_axis(), name=f"{name}_concat")([shortcut, x])
    return layers.ReLU(name=f"{name}_out")(x)


def channel_shuffle(x, groups: int):
    """Interleave the channels of the groups, so that the next grouped convolution sees channels of every group.

    It is the paper's reshape and transpose as one `keras.ops.take`, which doesn't have to know height and width.
    """
    channels = x.shape[channel_axis()]
    if channels % check_count("groups", groups):
        raise ArgumentError(f"`groups` must divide the {channels} channels. {received(groups=groups)}")
    size = channels // groups
    order = [group * size + place for place in range(size) for group in range(groups)]
    return keras.ops.take(x, order, axis=channel_axis())


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, up where a tenth would be lost, as in tensorflow/models (`slim/nets`)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def channel_axis() -> int:
    """Return the axis of the channels in Keras's present image data format: the last one, or 1."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def conv_norm(x, filters, kernel_size, name, *, padding="same", epsilon=RESNET_EPSILON, **options):
    """Apply a convolution, `{name}_conv`, and BatchNorm, `{name}_bn`."""
    x = layers.Conv2D(filters, kernel_size, padding=padding, name=f"{name}_conv", **options)(x)
    return layers.BatchNormalization(axis=channel_axis(), epsilon=epsilon, name=f"{name}_bn")(x)


def _shortcut(x, filters, stride, projection, name, **options):
    check_count("stride", stride)
    fits = stride == 1 and x.shape[channel_axis()] == filters
    if projection is False and not fits:
        raise ArgumentError(
            f"The identity shortcut needs stride 1 and as many channels in as out ({filters}); leave `projection` to "
            f"None, or pass True. {received(channels=x.shape[channel_axis()], stride=stride)}"
        )
    if projection or not fits:
        return conv_norm(x, filters, 1, f"{name}_0", strides=stride, **options)
    return x


def _depthwise_relu6(x, kernel_size, stride, name, **norm):
    x = layers.DepthwiseConv2D(kernel_size, strides=stride, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(axis=channel_axis(), name=f"{name}_BN", **norm)(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x)


def _pointwise(x, filters, name, *, relu6=False, **norm):
    x = layers.Conv2D(filters, 1, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(axis=channel_axis(), name=f"{name}_BN", **norm)(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu6 else x
