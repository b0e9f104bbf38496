"""How many multiply-accumulates a layer does: one formula per layer type, and a register for types of the user's own.

Counted are the products that are summed up: convolutions, matrix products, attention. Not counted, by the convention of
the papers (MobileNet's "multiply-adds"): bias, BatchNorm and other scaling, activations, pooling, sums of branches,
resizing.
"""

import re
import string
from math import isqrt, prod

import keras

from kerastl.checks import check_count, received
from kerastl.costs.calls import run_graph, symbolic_graph
from kerastl.errors import ArgumentError

# Formulas by layer class: `function(layer, input_shapes, output_shapes) -> MACs`, or `None` where it can't say
_FORMULAS = {}

_COUNTED = "MACs were counted from the operations in its `call`"


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
    if callable(macs):
        _FORMULAS[layer_class] = macs
    else:
        count = check_count("macs", macs, smallest=0)
        _FORMULAS[layer_class] = lambda layer, inputs, outputs: count


def call_macs(call) -> tuple[int, str]:
    """Return the MACs of one call, and what is wrong with the figure (an empty string: nothing).

    A layer without a formula is looked into: where it calls Keras layers and `keras.ops` alone, theirs are summed.
    """
    is_layer = isinstance(call.operation, keras.layers.Layer)
    count, problem = _layer_macs(call) if is_layer else (_operation_macs(call), "")
    if count is not None:
        return count, problem
    graph = symbolic_graph(call.operation, call.arguments) if is_layer else None
    if graph is None:
        return 0, "its MACs are not in the figures"
    inner = []
    run_graph(graph, call.inputs, call.path + "/", inner)
    counts = [call_macs(one) for one in inner]
    total = sum(count for count, _ in counts)
    if any(problem and not problem.endswith(_COUNTED) for _, problem in counts):
        return total, f"of its operations {total:,} MACs could be counted, the rest is missing"
    return total, f"{total:,} {_COUNTED}"


def _layer_macs(call) -> tuple[int | None, str]:
    """Count by the formula of the layer's class, or of the nearest parent class, whose `call` it may have replaced."""
    layer = call.operation
    known = next((parent for parent in type(layer).__mro__ if parent in _FORMULAS), None)
    if known is None:
        name = f"{type(layer).__module__}.{type(layer).__name__}".removeprefix("keras.src.applications.")
        return (0 if name in _FREE_APPLICATION_LAYERS else None), ""
    count = _FORMULAS[known](layer, _shapes(call.inputs), _shapes(call.outputs))
    if count is not None:
        whole = int(count) if float(count).is_integer() else count
        count = check_count(f"MACs of {layer.name}", whole, smallest=0)
    same = type(layer).call is known.call
    return count, "" if same else f"it was counted as {known.__name__}, but has a `call` of its own"


def _operation_macs(call) -> int | None:
    """Count an operation in the graph that is no layer: `keras.ops.matmul(x, y)` leaves a `Matmul`."""
    module, name = type(call.operation).__module__, type(call.operation).__name__
    if not module.startswith("keras."):
        return None
    if name in _OPERATION_FORMULAS:
        operands = [value for value in keras.tree.flatten(call.arguments) if hasattr(value, "shape")]
        return _OPERATION_FORMULAS[name](call.operation, _shapes(operands), _shapes(call.outputs))
    elementwise = module.endswith((".ops.numpy", ".ops.nn")) and name not in _SUMMING_OPERATIONS
    return 0 if elementwise or name in _MOVING_OPERATIONS else None


def _shapes(tensors) -> list:
    return [tuple(tensor.shape) for tensor in tensors]


# Formulas take the layer or operation, the shapes of its operands (inputs, then kernels), and those of its outputs


def _convolution(_, shapes, outputs):
    return prod(outputs[0]) * prod(shapes[1][:-1])  # every output is a sum over the kernel of its channel


def _depthwise(_, shapes, outputs):
    return prod(outputs[0]) * prod(shapes[1][:-2])


def _transposed(_, shapes, outputs):
    # Each input value is multiplied into a window of outputs; what `padding="same"` crops is computed all the same
    return prod(shapes[0]) * prod(shapes[1][:-1])


def _separable(_, shapes, outputs):
    depthwise, pointwise = shapes[1], shapes[2]
    return prod(outputs[0]) // pointwise[-1] * (prod(depthwise) + prod(pointwise))


def _einsum(operation, shapes, outputs):
    """Of two operands: the product of the sizes of all letters."""
    equation = operation.equation if isinstance(operation, keras.layers.Layer) else operation.subscripts
    if len(shapes) != 2:
        return None
    terms = equation.replace(" ", "").split("->")[0].split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    sizes = {}
    for term, shape in zip(terms, shapes, strict=True):
        hidden = "".join(spare[: len(shape) - len(term.replace("...", ""))])
        for letter, size in zip(term.replace("...", hidden), shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return prod(sizes.values())


def _multi_head_attention(layer, inputs, outputs):
    query, value = inputs[0], inputs[1]
    if len(query) != 3:
        return None
    key = inputs[2] if len(inputs) > 2 and len(inputs[2]) == 3 else value
    queries, keys = query[1], value[1]
    projections = queries * query[2] * layer.key_dim + keys * (key[2] * layer.key_dim + value[2] * layer.value_dim)
    attention = queries * keys * (layer.key_dim + layer.value_dim)
    return layer.num_heads * (projections + attention + queries * layer.value_dim * outputs[0][-1])


def _attention(_, inputs, outputs):
    query, value = inputs[0], inputs[1]
    return prod(query[:2]) * value[1] * (query[2] + value[2])


def _dot(layer, inputs, outputs):
    first_axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return prod(outputs[0]) * inputs[0][first_axis]


def _tensordot(_, shapes, outputs):
    # The product of both sizes counts every contracted axis twice, the size of the result not at all
    contracted = isqrt(prod(shapes[0]) * prod(shapes[1]) // max(1, prod(outputs[0])))
    return prod(outputs[0]) * contracted


def _matmul(_, shapes, outputs):
    return prod(outputs[0]) * shapes[0][-1] if shapes[0] and len(shapes) > 1 and shapes[1] else 0


# Layer classes by what they do, and the attributes that hold the kernels which the formula has to know
_PRODUCTS = [
    (_convolution, "Conv1D Conv2D Conv3D Dense TernaryDense", ["kernel"]),
    (_transposed, "Conv1DTranspose Conv2DTranspose Conv3DTranspose", ["kernel"]),
    (_depthwise, "DepthwiseConv1D DepthwiseConv2D", ["kernel"]),
    (_separable, "SeparableConv1D SeparableConv2D", ["depthwise_kernel", "pointwise_kernel"]),
    (_einsum, "EinsumDense", ["kernel"]),
    (_multi_head_attention, "MultiHeadAttention", []),
    (_attention, "Attention AdditiveAttention", []),
    (_dot, "Dot", []),
]
_OPERATION_FORMULAS = {
    "Matmul": _matmul,
    "Dot": _matmul,
    "Inner": _matmul,
    "Vdot": lambda _, shapes, outputs: prod(shapes[0]),
    "Tensordot": _tensordot,
    "Einsum": _einsum,
    "Conv": _convolution,
    "DepthwiseConv": _depthwise,
    "SeparableConv": _separable,
    "ConvTranspose": _transposed,
    "DotProductAttention": lambda _, shapes, outputs: 2 * prod(shapes[0]) * shapes[1][1],
}

# Layers that sum up no products, or whose products fold into the convolution before them (BatchNorm)
_FREE_LAYERS = re.compile(
    r"""(Adaptive|Global)?(Average|Max)Pooling[123]D | (ZeroPadding|Cropping|UpSampling)[123]D | (Alpha|Gaussian)?Dropout
    | SpatialDropout[123]D | Random\w+ | (Batch|Layer|Group|RMS|Unit)?Normalization | \w*ReLU | ELU | Softmax | Activation
    | InputLayer | Identity | ActivityRegularization | Rescaling | GaussianNoise | Add | Subtract | Multiply | Average
    | Maximum | Minimum | Concatenate | Flatten | Reshape | Permute | RepeatVector | Masking | Embedding | Resizing
    | CenterCrop | AugMix | AutoContrast | CutMix | MixUp | Mosaic | RandAugment | Solarization | Equalization""",
    re.VERBOSE,
)
# Factors per channel or per branch in the networks of keras.applications; these classes have no public name
_FREE_APPLICATION_LAYERS = {"convnext.LayerScale", "inception_resnet_v2.CustomScaleLayer"}
_SUMMING_OPERATIONS = {"Correlate", "Convolve", "CTCLoss", "CTCDecode", "Kron", "Vander"}
_MOVING_OPERATIONS = {
    *("Cast", "SaturateCast", "ConvertToTensor", "StopGradient", "Slice", "SliceUpdate", "Scatter", "ScatterUpdate"),
    *("Unstack", "Resize", "CropImages", "PadImages", "ExtractPatches", "RGBToGrayscale"),
}


def _with_kernels(formula, names):
    """Hand the shapes of a layer's kernels to its formula; a subclass without them has to be looked into."""

    def macs(layer, inputs, outputs):
        kernels = [getattr(layer, name) for name in names if hasattr(layer, name)]
        return formula(layer, [*inputs, *_shapes(kernels)], outputs) if len(kernels) == len(names) else None

    return macs


def _layer_classes(names) -> list:
    """Return Keras's layers of these names; one that this Keras doesn't have yet, or any more, is left out."""
    return [getattr(keras.layers, name) for name in names if hasattr(keras.layers, name)]


WEIGHTED_SUMS = tuple(one for _, names, kernels in _PRODUCTS if kernels for one in _layer_classes(names.split()))
"""Layers whose outputs are sums of their inputs, weighted by kernels."""

_FORMULAS.update(dict.fromkeys(_layer_classes(filter(_FREE_LAYERS.fullmatch, dir(keras.layers))), lambda *_: 0))
for _formula, _names, _kernels in _PRODUCTS:
    _FORMULAS.update(dict.fromkeys(_layer_classes(_names.split()), _with_kernels(_formula, _kernels)))
