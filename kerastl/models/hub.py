"""Backbones of KerasHub: one graph from pixels to a feature map, in which the layers of a transformer are blocks.

KerasHub keeps a transformer's layers inside one layer, the encoder, where they can't be frozen apart nor the model be cut
between them. Here the encoder's `call` runs on symbolic tensors, which puts what it calls into the graph: the same layers
and weights in the same order. Tokens become a feature map, so that everything made for convolutional networks fits.
"""

import inspect
import math
from collections.abc import Callable

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.checks import received
from kerastl.errors import ArgumentError, BackendError, KerastlError, ModelError, WeightsUnavailableError
from kerastl.models import flatten, graph

PREFIX = "hub:"  # before a preset's name: "hub:dinov2_small"


def is_from_hub(thing) -> bool:
    """Tell whether an object's class is KerasHub's, or derives from one; imports nothing."""
    return any(one.__module__.startswith("keras_hub.") for one in type(thing).__mro__)


def load_converter(name: str):
    """Return the `ImageConverter` of a preset, which knows its image size and the scale of its pixels.

    Raises `BackendError` without KerasHub, `WeightsUnavailableError` where the preset can't be read.
    """
    hub = _keras_hub(name)
    return _from_preset(hub.layers.ImageConverter, name)


def plain_preprocessing(converter) -> Callable:
    """Return what a KerasHub `ImageConverter` does to pixels 0–255, as a function of plain Keras operations.

    The images are expected at their size: resizing is the data's business. Raises `ArgumentError` for one that does more
    than to scale and shift.
    """
    general = next((one for one in type(converter).__mro__ if one.__name__ == "ImageConverter"), None)
    if general is None or type(converter).call is not general.call:
        raise ArgumentError(
            "`preprocessing` must be an `ImageConverter` of KerasHub that scales and shifts, or a function of tensors. "
            f"{received(preprocessing=converter)}"
        )
    scale, offset = (_factor(getattr(converter, key)) for key in ("scale", "offset"))

    def preprocess(pixels):
        if scale is not None:
            pixels = keras.ops.multiply(pixels, scale)
        return pixels if offset is None else keras.ops.add(pixels, offset)

    return preprocess


def build_backbone(preset: str, include_top=False, input_shape=None, weights=None, name=None) -> keras.Model:
    """Build a preset's backbone as `open_backbone` makes it, with the preset's weights or, for `None`, random ones.

    A constructor of the shape of those in `keras.applications`; `preset` begins with "hub:".
    """
    kind, options = _keras_hub(preset).models.Backbone, {"load_weights": weights is not None}
    backbone = _from_preset(kind, preset, **options)
    if input_shape is not None and not _takes(backbone, input_shape):
        backbone = _from_preset(kind, preset, image_shape=tuple(input_shape), **options)
    return open_backbone(backbone, input_shape, name or preset.removeprefix(PREFIX).rpartition("/")[2])


def open_backbone(backbone: keras.Model, input_shape=None, name: str | None = None) -> keras.Model:
    """Return a model of one graph that shares the layers of a KerasHub backbone for images.

    Args:
        backbone: such as `keras_hub.models.ViTBackbone(…)`; of one for images and texts (SigLIP) its image tower.
        input_shape: `(height, width, 3)` for a network that takes any size; default: the backbone's own.
        name: of the model; default: the backbone's.

    Returns:
        A model from `(batch, height, width, 3)`, scaled as the preset's `ImageConverter` does it, to feature maps. Those of a
        transformer are its patches, `(batch, rows, columns, channels)`, each followed, where there is one, by what stands for
        the whole image: the class token, or what SigLIP pools. So `pooling="avg"` gives both (Oquab et al., "DINOv2", 2023,
        evaluate them so).

    Raises:
        ModelError: not a backbone for images, or tokens that don't lie in rows and columns.
    """
    tower = getattr(backbone, "vision_encoder", None) or backbone
    functional = graph.functional_of(tower)
    if len(functional.inputs) != 1 or len(functional.outputs) != 1 or not graph.has_grid(functional.inputs[0]):
        raise ModelError(
            f"{type(backbone).__name__} doesn't take one batch of images and give one output. Choose a backbone for images, "
            f"such as `ViTBackbone`, or wrap this one in a `keras.Model` that does. {received(inputs=functional.inputs)}"
        )
    inputs = keras.Input(input_shape or functional.inputs[0].shape[1:], name="pixels")
    (outputs,) = flatten.replay(functional, [inputs], call=_call_opened)
    return flatten.connect([inputs], [_feature_map(tower, inputs, outputs)], name or backbone.name)


def _keras_hub(name: str):
    try:
        import keras_hub
    except ImportError as error:
        major, minor = map(int, keras.__version__.split(".")[:2])
        bound = "keras-hub>=0.30" if (major, minor) >= (3, 15) else "keras-hub>=0.26,<0.30"
        raise BackendError(
            f'`{PREFIX}…` needs KerasHub. Install the one for this Keras: `pip install "{bound}"` ({error}). '
            f"{received(backbone=name, keras=keras.__version__)}"
        ) from error
    return keras_hub


def _from_preset(kind, name: str, **options):
    try:
        return kind.from_preset(name.removeprefix(PREFIX), **options)
    except (KerastlError, MemoryError):
        raise
    # KerasHub raises ValueError for an unknown name, and whatever kagglehub or huggingface_hub do without a connection
    except Exception as error:
        raise WeightsUnavailableError(
            f"KerasHub could not read the preset {name.removeprefix(PREFIX)!r}: {error}. Check its name (keras.io/keras_hub/"
            "presets), the connection, and the image size: most transformers take that of their preset alone. "
            f"{received(backbone=name, **options)}"
        ) from error


def _factor(value):
    """Return a scale or offset as a number, or as an array with one for each channel."""
    return value if value is None or np.ndim(value) == 0 else np.array(value, "float32")


def _takes(backbone, input_shape) -> bool:
    own = graph.functional_of(getattr(backbone, "vision_encoder", None) or backbone).inputs[0].shape[1:]
    return all(size in (None, wanted) for size, wanted in zip(own, input_shape, strict=False))


def _call_opened(operation, *arguments, **options):
    """Call an operation; of a stack of transformer layers its `call`, which puts each of them into the graph.

    Where that can't be done (DeiT's layers return more than tensors), the stack stays one layer.
    """
    if not is_from_hub(operation) or not isinstance(operation, keras.layers.Layer):
        return operation(*arguments, **options)
    _mend_config(operation)
    if _is_stack(operation):
        parts = keras_internals.child_layers(operation)
        put_back = keras_internals.forget_calls(parts)
        try:
            outputs = operation.call(*arguments, **options)
            for part in parts:
                _mend_config(part)
            return outputs
        except (TypeError, ValueError):
            put_back()
    return _with_true_length(operation(*arguments, **options), operation, arguments, options)


def _is_stack(layer) -> bool:
    """Tell whether a layer holds several composite layers of one class of KerasHub's."""
    parts = filter(is_from_hub, keras_internals.child_layers(layer))
    kinds = [type(one) for one in parts if keras_internals.child_layers(one)]
    return len(set(kinds)) < len(kinds)


def _with_true_length(tokens, layer, arguments, options):
    """Cut the tokens made of an image to as many as there are, where a layer announces more.

    SigLIP's embedding announces a class token that it doesn't have (KerasHub 0.32). At run time this changes nothing.
    """
    given = arguments[0] if arguments else None
    if not isinstance(given, keras.KerasTensor) or not isinstance(tokens, keras.KerasTensor):
        return tokens
    if not graph.has_grid(given) or len(tokens.shape) != 3:
        return tokens
    found = keras.Operation.compute_output_spec(layer, *arguments, **options).shape[1]
    return tokens if found is None or found >= tokens.shape[1] else tokens[:, :found]


def _mend_config(layer) -> None:
    """Leave out of a layer's configuration what its constructor doesn't take: a saved model could not be loaded.

    In KerasHub 0.32 that is `num_patches` and `num_positions` of ViT's and DeiT's embedding.
    """
    try:
        config = layer.get_config()
    except Exception:  # that of DeiT's and Swin's stacks fails (KerasHub 0.32); `save` will say so
        return
    constructors = [one.__init__ for one in type(layer).__mro__ if issubclass(one, keras.layers.Layer)]
    known = {name for one in constructors for name in inspect.signature(one).parameters}
    known |= keras.layers.Layer().get_config().keys()
    if config.keys() - known:
        own = layer.get_config
        layer.get_config = lambda: {name: value for name, value in own().items() if name in known}


def _feature_map(tower, inputs, outputs):
    """Return `(batch, rows, columns, channels)`: the outputs themselves, or of tokens the patches and the whole image."""
    if graph.has_grid(outputs):
        return outputs
    tokens, whole = outputs, None
    if len(outputs.shape) == 2:  # pooled from tokens
        passed = [node.outputs[0] for node in graph.dominators(flatten.connect([inputs], [outputs], "pooled"))]
        tokens, whole = next((one for one in reversed(passed) if len(one.shape) == 3), None), outputs
    rows, columns = _grid(tower, inputs)
    extra = -1 if tokens is None else tokens.shape[1] - rows * columns
    if extra < 0:
        raise ModelError(
            f"The outputs of {type(tower).__name__} can't be laid out in {rows} rows and {columns} columns of patches. Use "
            f"another backbone. {received(output_shape=tuple(outputs.shape))}"
        )
    layers, channels = keras.layers, tokens.shape[-1]
    patches = layers.Cropping1D((extra, 0), name="patch_tokens")(tokens) if extra else tokens
    patches = layers.Reshape((rows, columns, channels), name="patches")(patches)
    if whole is None and extra:  # the first token is the class's, the others registers
        whole = layers.Cropping1D((0, tokens.shape[1] - 1), name="class_token")(tokens)
    if whole is None:
        return patches
    whole = layers.Reshape((1, 1, math.prod(whole.shape[1:])), name="whole_image")(whole)
    everywhere = layers.UpSampling2D((rows, columns), name="whole_image_everywhere")(whole)
    return layers.Concatenate(name="feature_map")([patches, everywhere])


def _grid(tower, inputs) -> tuple[int, int]:
    patch = getattr(tower, "patch_size", None) or 1
    height, width = (patch, patch) if np.ndim(patch) == 0 else patch
    return inputs.shape[1] // height, inputs.shape[2] // width
