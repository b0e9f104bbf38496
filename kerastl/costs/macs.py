"""How many multiply-accumulates a layer does: one formula per layer type, and a register for types of the user's own.

Counted are the products that are summed up: convolutions, matrix products, attention. Not counted, by the convention of
the papers (MobileNet's "multiply-adds"): bias, BatchNorm and other scaling, activations, pooling, sums of branches,
resizing.
"""

import math
import string

import keras

from kerastl.checks import check_count, received
from kerastl.costs.calls import elements, run_graph, symbolic_graph
from kerastl.errors import ArgumentError


class UnknownCostError(Exception):
    """A layer for which there is no formula. Never leaves `costs`."""


# Registered formulas by layer class: `function(layer, input_shapes, output_shapes) -> MACs`
_FORMULAS = {}


def register_layer_cost(layer_class: type, macs) -> None:
    """Tell `layer_costs` how many MACs a layer class of your own does.

    Args:
        layer_class: a subclass of `keras.layers.Layer`. A class that is known already is told again.
        macs: `macs(layer, input_shapes, output_shapes) -> int`, where both are lists of shapes with batch 1, one for
            each tensor: `[(1, height, width, channels)]`. Or a number, such as 0 for a layer that sums up no products.

    Raises:
        ArgumentError: not a layer class, or neither a function nor a whole number.
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, keras.Operation)):
        raise ArgumentError(f"`layer_class` must be a Keras layer class. {received(layer_class=layer_class)}")
    if not callable(macs):
        count = check_count("macs", macs, smallest=0)
        _FORMULAS[layer_class] = lambda layer, inputs, outputs: count
        return
    _FORMULAS[layer_class] = macs


def call_macs(call) -> tuple[int, str]:
    """Return the MACs of one call, and what is wrong with the figure (an empty string: nothing).

    A layer without a formula is looked into: where it calls Keras layers and `keras.ops` alone, theirs are summed.
    """
    operation = call.operation
    inputs, outputs = _shapes(call.inputs), _shapes(call.outputs)
    try:
        if not isinstance(operation, keras.layers.Layer):
            return operation_macs(operation, call.arguments, outputs), ""
        return layer_macs(operation, inputs, outputs), _overridden(operation)
    except UnknownCostError:
        pass
    graph = symbolic_graph(operation, call.arguments) if isinstance(operation, keras.layers.Layer) else None
    if graph is None:
        return 0, "its MACs are not in the figures"
    inner = []
    run_graph(graph, call.inputs, call.path + "/", inner)
    counts = [call_macs(one) for one in inner]
    total = sum(count for count, _ in counts)
    if any(problem for _, problem in counts):
        return total, f"of its operations {total:,} MACs could be counted, the rest is missing"
    return total, f"{total:,} MACs were counted from the operations in its `call`"


def layer_macs(layer, inputs, outputs) -> int:
    """Return the MACs of one run of a layer, by the formula of its class or of the nearest parent class.

    Raises:
        UnknownCostError: there is none.
        ArgumentError: a registered formula returned something else than a whole number.
    """
    formula = _FORMULAS.get(_known_class(layer))
    if formula is None and (type(layer).__module__, type(layer).__name__) in _FREE_APPLICATION_LAYERS:
        return 0
    if formula is None:
        raise UnknownCostError(type(layer).__name__)
    count = formula(layer, inputs, outputs)
    return check_count(f"MACs of {layer.name}", int(count) if float(count).is_integer() else count, smallest=0)


def operation_macs(operation, arguments, outputs) -> int:
    """Return the MACs of an operation in the graph that is no layer: `keras.ops.matmul(x, y)` leaves a `Matmul`.

    Raises:
        UnknownCostError: neither has it a formula nor is it one of those that sum up no products.
    """
    module, name = type(operation).__module__, type(operation).__name__
    if not module.startswith("keras."):
        raise UnknownCostError(name)
    if name in _OPERATION_FORMULAS:
        args, kwargs = arguments
        shapes = [tuple(value.shape) for value in keras.tree.flatten((args, kwargs)) if hasattr(value, "shape")]
        return _OPERATION_FORMULAS[name](operation, shapes, outputs)
    elementwise = module.endswith((".ops.numpy", ".ops.nn")) and name not in _SUMMING_OPERATIONS
    if elementwise or name in _MOVING_OPERATIONS:
        return 0
    raise UnknownCostError(name)


def _shapes(specs) -> list:
    return [tuple(spec.shape) for spec in specs]


def _known_class(layer):
    return next((parent for parent in type(layer).__mro__ if parent in _FORMULAS), None)


def _overridden(layer) -> str:
    """Say so where a subclass of a known layer brings a `call` of its own, which may do anything."""
    known = _known_class(layer)
    if known is None or type(layer).call is known.call:
        return ""
    return f"it was counted as {known.__name__}, but has a `call` of its own"


def _channels(layer, shape) -> int:
    return shape[1] if layer.data_format == "channels_first" else shape[-1]


def _conv(layer, inputs, outputs):
    per_output = math.prod(layer.kernel_size) * _channels(layer, inputs[0]) // layer.groups
    return elements(outputs[0]) * per_output


def _conv_transpose(layer, inputs, outputs):
    # Each input value is multiplied into a window of outputs; what `padding="same"` crops is computed all the same
    return elements(inputs[0]) * math.prod(layer.kernel_size) * layer.filters


def _depthwise_conv(layer, inputs, outputs):
    return elements(outputs[0]) * math.prod(layer.kernel_size)


def _separable_conv(layer, inputs, outputs):
    middle = _channels(layer, inputs[0]) * layer.depth_multiplier
    positions = elements(outputs[0]) // layer.filters
    return positions * middle * (math.prod(layer.kernel_size) + layer.filters)


def _dense(layer, inputs, outputs):
    return elements(outputs[0]) * inputs[0][-1]


def _einsum_dense(layer, inputs, outputs):
    return _einsum(layer.equation, [inputs[0], tuple(layer.kernel.shape)])


def _einsum(equation, shapes) -> int:
    """Return the MACs of an einsum of two operands: the product of the sizes of all its letters."""
    if len(shapes) != 2:
        raise UnknownCostError("Einsum")
    terms = equation.replace(" ", "").split("->")[0].split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    sizes = {}
    for term, shape in zip(terms, shapes, strict=True):
        hidden = "".join(spare[: len(shape) - len(term.replace("...", ""))])
        for letter, size in zip(term.replace("...", hidden), shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


def _multi_head_attention(layer, inputs, outputs):
    query, value = inputs[0], inputs[1]
    if len(query) != 3:
        raise UnknownCostError("MultiHeadAttention")
    key = inputs[2] if len(inputs) > 2 and len(inputs[2]) == 3 else value
    queries, keys = query[1], value[1]
    projections = queries * query[2] * layer.key_dim + keys * (key[2] * layer.key_dim + value[2] * layer.value_dim)
    attention = queries * keys * (layer.key_dim + layer.value_dim)
    return layer.num_heads * (projections + attention + queries * layer.value_dim * outputs[0][-1])


def _attention(layer, inputs, outputs):
    query, value = inputs[0], inputs[1]
    return elements(query[:2]) * value[1] * (query[2] + value[2])


def _dot(layer, inputs, outputs):
    axes = (layer.axes, layer.axes) if isinstance(layer.axes, int) else layer.axes
    return elements(outputs[0]) * inputs[0][axes[0]]


def _nothing(layer, inputs, outputs):
    return 0


_LAYER_FORMULAS = {
    _conv: ("Conv1D", "Conv2D", "Conv3D"),
    _conv_transpose: ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    _depthwise_conv: ("DepthwiseConv1D", "DepthwiseConv2D"),
    _separable_conv: ("SeparableConv1D", "SeparableConv2D"),
    _dense: ("Dense",),
    _einsum_dense: ("EinsumDense",),
    _multi_head_attention: ("MultiHeadAttention",),
    _attention: ("Attention", "AdditiveAttention"),
    _dot: ("Dot",),
}

# Layers that sum up no products, or whose products fold into the convolution before them (BatchNorm)
_FREE_LAYERS = """
    InputLayer Identity Activation ReLU LeakyReLU PReLU ELU Softmax ActivityRegularization
    BatchNormalization LayerNormalization GroupNormalization RMSNormalization UnitNormalization Normalization Rescaling
    Dropout AlphaDropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D SpatialDropout3D
    Add Subtract Multiply Average Maximum Minimum Concatenate
    AveragePooling1D AveragePooling2D AveragePooling3D MaxPooling1D MaxPooling2D MaxPooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D
    ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D UpSampling1D UpSampling2D UpSampling3D
    Flatten Reshape Permute RepeatVector Masking Embedding Resizing CenterCrop
    RandomFlip RandomRotation RandomTranslation RandomZoom RandomShear RandomCrop RandomPerspective RandomErasing
    RandomBrightness RandomContrast RandomSaturation RandomHue RandomGrayscale RandomInvert RandomPosterization
    RandomSharpness RandomColorJitter RandomColorDegeneration RandomGaussianBlur RandomElasticTransform
    AugMix AutoContrast CutMix MixUp RandAugment Solarization Equalization
"""


# Factors per channel or per branch in the networks of keras.applications; these classes have no public name
_FREE_APPLICATION_LAYERS = {
    ("keras.src.applications.convnext", "LayerScale"),
    ("keras.src.applications.inception_resnet_v2", "CustomScaleLayer"),
}


def _register_keras_layers() -> None:
    """Fill the register with Keras's own layers; a name that this Keras doesn't have yet, or any more, is left out."""
    named = {name: formula for formula, names in _LAYER_FORMULAS.items() for name in names}
    named.update(dict.fromkeys(_FREE_LAYERS.split(), _nothing))
    for name, formula in named.items():
        if hasattr(keras.layers, name):
            _FORMULAS[getattr(keras.layers, name)] = formula


def _positions_times(last_axes):
    """Each output value is a sum over the kernel without its last axes (output channels, depth multiplier)."""

    def formula(operation, shapes, outputs):
        return elements(outputs[0]) * elements(shapes[1][:-last_axes])

    return formula


def _separable_operation(operation, shapes, outputs):
    depthwise, pointwise = shapes[1], shapes[2]
    positions = elements(outputs[0]) // pointwise[-1]
    return positions * (elements(depthwise) + elements(pointwise))


def _tensordot(operation, shapes, outputs):
    # elements(a) × elements(b) counts every contracted axis twice, elements(result) not at all
    contracted = math.isqrt(elements(shapes[0]) * elements(shapes[1]) // max(1, elements(outputs[0])))
    return elements(outputs[0]) * contracted


def _dot_operation(operation, shapes, outputs):
    return elements(outputs[0]) * shapes[0][-1] if shapes[0] and len(shapes) > 1 and shapes[1] else 0


def _attention_operation(operation, shapes, outputs):
    query, key = shapes[0], shapes[1]
    return 2 * elements(query) * key[1]


_OPERATION_FORMULAS = {
    "Matmul": _dot_operation,
    "Dot": _dot_operation,
    "Inner": _dot_operation,
    "Vdot": lambda operation, shapes, outputs: elements(shapes[0]),
    "Tensordot": _tensordot,
    "Einsum": lambda operation, shapes, outputs: _einsum(operation.subscripts, shapes),
    "Conv": _positions_times(1),
    "DepthwiseConv": _positions_times(2),
    "SeparableConv": _separable_operation,
    "ConvTranspose": lambda operation, shapes, outputs: elements(shapes[0]) * elements(shapes[1][:-1]),
    "DotProductAttention": _attention_operation,
}
_SUMMING_OPERATIONS = {"Correlate", "Convolve", "CTCLoss", "CTCDecode", "Kron", "Vander"}
_MOVING_OPERATIONS = {
    *("Cast", "SaturateCast", "ConvertToTensor", "StopGradient", "Slice", "SliceUpdate", "Scatter", "ScatterUpdate"),
    *("Unstack", "Resize", "CropImages", "PadImages", "ExtractPatches", "RGBToGrayscale"),
}

_register_keras_layers()
