"""1×1 convolutions as matrix products: on a CPU, TensorFlow's gradients of a convolution take about twice as long."""

import contextlib
import functools

import keras

from kerastl import backend, keras_internals


@contextlib.contextmanager
def convolutions_as_products(model):
    """Let a model's 1×1 convolutions be matrix products for the length of a `with`, where TensorFlow runs on a CPU.

    These are the same sums. `Conv2D.convolution_op`, public and made to be overridden, is hidden by one on the layer.
    """
    layers = []
    if keras.backend.backend() == "tensorflow" and not backend.has_accelerator():
        layers = [layer for layer in keras_internals.flatten_layers(model) if _is_a_product(layer)]
    try:
        for layer in layers:
            layer.convolution_op = functools.partial(_product, *layer.strides)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("convolution_op", None)  # an interrupt may have come before it was there


def _is_a_product(layer) -> bool:
    return (
        type(layer) is keras.layers.Conv2D  # a subclass may call `convolution_op` with another kernel
        and "convolution_op" not in vars(layer)
        and tuple(layer.kernel_size) == (1, 1)
        and layer.groups == 1
        and layer.data_format == "channels_last"
        and layer.compute_dtype == "float32"
    )


def _product(down: int, across: int, inputs, kernel):
    """Return the outputs of a 1×1 convolution, without its bias; no padding counts, as it would stay outside."""
    inputs = inputs[:, ::down, ::across]
    *places, channels = keras.ops.shape(inputs)
    outputs = keras.ops.matmul(keras.ops.reshape(inputs, (-1, channels)), keras.ops.reshape(kernel, (channels, -1)))
    return keras.ops.reshape(outputs, (*places, kernel.shape[-1]))
