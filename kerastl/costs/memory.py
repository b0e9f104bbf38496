"""How many bytes of feature maps a model holds at once: while it predicts, and while it trains.

Both are sums over tensors of one image (batch 1) without the weights, by the definitions in docs/costs.md. What a
runtime really allocates differs: it fuses layers, works in place, pads, and keeps workspaces.
"""

import re
from math import prod

import keras

from kerastl.costs.calls import itemsize, spec_bytes
from kerastl.costs.macs import WEIGHTED_SUMS


def _names(text) -> frozenset:
    return frozenset(text.split())


# Hand their input on: at inference they are the identity, or change the shape alone; so does all augmentation
_VIEW_LAYERS = tuple(
    getattr(keras.layers, name)
    for name in _names("""
        Flatten Reshape Identity ActivityRegularization Dropout AlphaDropout GaussianDropout GaussianNoise
    """)
)
_VIEW_OPERATIONS = _names("Reshape Squeeze ExpandDims Identity StopGradient")
_AUGMENTATION_MODULE = ".random_"

# What the backward pass reads of all but weighted sums, by the activation, or the class of the layer or operation
_KEEPS_NOTHING = _names("""
    linear Add Subtract Average Concatenate Rescaling Normalization Permute RepeatVector Stack Embedding Resizing
    ZeroPadding Cropping UpSampling AveragePooling GlobalAveragePooling AdaptiveAveragePooling
    Transpose GetItem Mean Sum Pad Negative Cast AveragePool BroadcastTo Split Flip
""")
_KEEPS_OUTPUT = _names("""
    relu relu6 leaky_relu sigmoid hard_sigmoid tanh softmax elu selu
    ReLU LeakyReLU ELU Softmax Relu Relu6 LeakyRelu Sigmoid HardSigmoid Tanh Elu Exp Sqrt Rsqrt Reciprocal
""")
_KEEPS_INPUTS = _names("""
    Maximum Minimum Dot LayerNormalization GroupNormalization RMSNormalization UnitNormalization PReLU
    LayerScale Matmul Einsum Divide Power Square Absolute Silu HardSilu Gelu Log
""")


def peak_activation_bytes(trace) -> int:
    """Return the most bytes of feature maps that are alive at once while the model predicts one image.

    Calls run in the order of the trace. While one runs, its inputs and outputs are alive, and every earlier tensor that
    a later call still reads or that the model returns. Layers that hand their input on (dropout, reshaping) make no
    tensor; otherwise nothing happens in place, and what a layer uses inside is not seen.
    """
    owners = _owners(trace)
    last_read = {}
    for number, call in enumerate(trace.calls):
        last_read.update({owners[id(spec)]: number for spec in (*call.inputs, *call.outputs)})
    last_read.update({owners[id(spec)]: len(trace.calls) for spec in trace.outputs})
    made = [*trace.inputs, *(spec for call in trace.calls for spec in call.outputs)]
    sizes = {id(spec): spec_bytes(spec) for spec in made}
    live = {id(spec): sizes[id(spec)] for spec in trace.inputs}
    peak = sum(live.values())
    for number, call in enumerate(trace.calls):
        live.update({owners[id(spec)]: sizes[owners[id(spec)]] for spec in call.outputs})
        peak = max(peak, sum(live.values()))
        live = {owner: size for owner, size in live.items() if last_read.get(owner, -1) > number}
    return peak


def training_activation_bytes(trace, trainable: set[int]) -> int:
    """Return the bytes of feature maps of one image that training keeps for the backward pass, given what is frozen.

    A call takes part in the backward pass when it holds trainable weights, or when one of its inputs was computed by a
    call that takes part. Each kept tensor counts once, whichever layers read it. `trainable`: ids of the variables.
    """
    owners = _owners(trace)
    kept, extra, flowing = {}, 0, set()
    for call in trace.calls:
        has_trainable = any(id(weight) in trainable for weight in getattr(call.operation, "weights", ()))
        arrives = any(id(spec) in flowing for spec in call.inputs)
        if not (has_trainable or arrives):
            continue
        flowing.update(id(spec) for spec in call.outputs)
        kept.update({owners[id(spec)]: spec_bytes(spec) for spec in _kept(call, trainable, flowing)})
        extra += _kept_inside(call, trainable)
    return sum(kept.values()) + extra


def _owners(trace) -> dict:
    """Map each tensor to the one whose memory it shares: its own, or that of the tensor that was handed on."""
    owners = {id(spec): id(spec) for spec in trace.inputs}
    for call in trace.calls:
        for spec in call.outputs:
            owners[id(spec)] = owners[id(call.inputs[0])] if call.inputs and _is_view(call.operation) else id(spec)
    return owners


def _is_view(operation) -> bool:
    if not isinstance(operation, keras.layers.Layer):
        return type(operation).__name__ in _VIEW_OPERATIONS
    is_augmentation = _AUGMENTATION_MODULE in type(operation).__module__
    return isinstance(operation, _VIEW_LAYERS) or is_augmentation or _kind(operation) == "linear"


def _kind(operation) -> str:
    """Return the class name without its number of dimensions, or for `Activation` the function's name."""
    if isinstance(operation, keras.layers.Activation):
        return getattr(operation.activation, "__name__", "")
    return re.sub("[123]D$", "", type(operation).__name__)


def _kept(call, trainable, flowing) -> tuple:
    """Return the specs among a call's inputs and outputs that the backward pass reads."""
    operation, kind = call.operation, _kind(call.operation)
    if isinstance(operation, WEIGHTED_SUMS):  # the weights' gradient reads the input, that of the input the weights
        kernels = [weight for weight in operation.weights if len(weight.shape) > 1]
        inputs = call.inputs if any(id(kernel) in trainable for kernel in kernels) else ()
        fused = getattr(operation.activation, "__name__", "")
        return inputs if fused in _KEEPS_NOTHING else (*inputs, *call.outputs)
    if isinstance(operation, keras.layers.BatchNormalization):
        # Frozen it runs in inference mode: a factor and an offset per channel, which are no feature maps
        return call.inputs if operation.trainable else ()
    if kind in _KEEPS_OUTPUT:
        return call.outputs
    if kind in _KEEPS_NOTHING or _is_view(operation):
        return ()
    if kind == "Multiply":  # a factor is read where the gradient goes to another one
        arriving = [id(spec) in flowing for spec in call.inputs]
        return tuple(spec for spec, own in zip(call.inputs, arriving, strict=True) if sum(arriving) > own)
    if kind in _KEEPS_INPUTS or isinstance(operation, keras.layers.Activation):
        return call.inputs
    return (*call.inputs, *call.outputs)


def _kept_inside(call, trainable) -> int:
    """Return the bytes kept that are no layer's output: dropout masks, the middle of a separable convolution."""
    layer, output = call.operation, call.outputs[0] if call.outputs else None
    if isinstance(layer, keras.layers.Dropout):
        mask = zip(layer.noise_shape or output.shape, output.shape, strict=True)
        return prod(size if own is None else own for own, size in mask) if layer.rate > 0 else 0
    if not isinstance(layer, WEIGHTED_SUMS) or id(getattr(layer, "pointwise_kernel", None)) not in trainable:
        return 0
    between = prod(output.shape) // layer.filters * prod(layer.depthwise_kernel.shape[-2:])
    return between * itemsize(output.dtype)
