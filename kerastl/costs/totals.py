"""What a model costs: parameters, multiply-accumulates (MACs) and bytes, per layer and in all.

Returns rows and prints nothing; what is counted, and what is not, stands in docs/costs.md. `conv_cost` is the formulas
for one convolution. One MAC is two floating-point operations.
"""

import dataclasses
from math import prod

import keras

from kerastl.checks import check_choice, check_count, received
from kerastl.costs.calls import itemsize, spec_bytes, trace
from kerastl.costs.macs import call_macs
from kerastl.costs.memory import peak_activation_bytes, training_activation_bytes
from kerastl.errors import ArgumentError, warn
from kerastl.tables import NamedRows, Printed, Table, readable_bytes

CONV_KINDS = ("standard", "pointwise", "depthwise", "separable")


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one image.

    Weights are counted as Keras's `count_params` does, BatchNorm's moving statistics included; those that an earlier row
    shares are in that row alone.
    """

    name: str  # after the names of the nested models that hold it: `resnet50/conv1_conv`
    kind: str  # its class
    output_shape: tuple | list  # of its first run, without the batch axis; a list where it returns several tensors
    parameters: int
    trainable_parameters: int  # those of them that training changes now
    macs: int  # multiply-accumulates, summed over its runs
    size_bytes: int  # of its parameters, by their dtype
    activation_bytes: int  # of its outputs, by their dtype, summed over its runs
    dtype: str  # of its outputs
    runs: int = 1  # how often it runs; more than once where it is shared


@dataclasses.dataclass(frozen=True, repr=False)
class ModelCost(Printed):
    """What a model costs: totals over its layers; activations of one image."""

    name: str
    parameters: int  # all weights, BatchNorm's moving statistics included
    trainable_parameters: int  # those that training changes, given what is frozen now
    macs: int  # multiply-accumulates for one image
    size_bytes: int  # of all weights, by their dtype
    peak_activation_bytes: int  # the most bytes of feature maps alive at once while it predicts one image
    training_activation_bytes: int  # of feature maps that training keeps for each image, given what is frozen now

    def to_rows(self) -> list[dict]:
        """Return the totals as a list of one dictionary, for `pandas.DataFrame`."""
        return [dataclasses.asdict(self)]

    def _tables(self):
        cells = [
            ("parameters", f"{self.parameters:,}"),
            ("trainable parameters", f"{self.trainable_parameters:,}"),
            ("MACs", f"{self.macs:,}"),
            ("size of the weights", readable_bytes(self.size_bytes)),
            ("peak of the activations", readable_bytes(self.peak_activation_bytes)),
            ("activations kept in training", readable_bytes(self.training_activation_bytes)),
        ]
        return [Table(("", "whole model"), cells, right={1}, title=self.name)]


_SUMMED = ("parameters", "trainable_parameters", "macs", "activation_bytes")
_HEADER = ("layer", "kind", "output shape", "parameters", "trainable", "MACs", "activation bytes", "dtype")


class LayerCosts(NamedRows):
    """The rows of `layer_costs`: a tuple of `LayerCost` that prints as a table. A row is found by index or by name."""

    def _tables(self):
        sums = [f"{sum(getattr(row, name) for row in self):,}" for name in _SUMMED]
        rows = [*map(_cells, self), ("total", "", "", *sums, "")]
        return [Table(_HEADER, rows, right={3, 4, 5, 6}, total=True)]


def layer_costs(model: keras.Model, input_shape=None) -> LayerCosts:
    """Tell what every layer of a model costs for one image, nested models unfolded.

    A layer that runs several times has one row: its MACs count for each run, its parameters once. Rows stand in the
    order in which Keras runs the layers. Operations such as the `Add` behind `x + y` have rows too. Weights outside the
    graph (a layer that is attached but not used) come last.

    Args:
        model: a Functional or Sequential model; or a built subclassed one that calls Keras layers and `keras.ops`.
        input_shape: `(height, width, channels)` where the model leaves its size open; for several inputs a list in the
            order of `model.inputs`, or a dictionary by input name. Without the batch axis.

    Raises:
        ArgumentError: `input_shape` is missing, or doesn't fit.
        ModelError: the model has no graph that could be walked.

    Warns:
        KerastlWarning: layers without a cost formula, by name; `register_layer_cost` gives them one.

    Example:
        >>> [(row.name, row.macs) for row in kerastl.layer_costs(model) if row.macs]
        [('tiny/block1_conv', 48600), ('tiny/block2_conv', 97344), ('predictions', 24)]
    """
    return _rows(model, trace(model, input_shape), set(map(id, model.trainable_variables)))


def model_cost(model: keras.Model, input_shape=None) -> ModelCost:
    """Tell what a model costs in all: parameters, MACs for one image, bytes of weights and feature maps.

    Args:
        model: a Functional or Sequential model; or a built subclassed one that calls Keras layers and `keras.ops`.
        input_shape: `(height, width, channels)` where the model leaves its size open, as for `layer_costs`.

    Raises:
        ArgumentError: `input_shape` is missing, or doesn't fit.
        ModelError: the model has no graph that could be walked.

    Example:
        >>> cost = kerastl.model_cost(model)
        >>> cost.parameters, cost.trainable_parameters, cost.macs
        (859, 27, 145968)
    """
    run, trainable = trace(model, input_shape), set(map(id, model.trainable_variables))
    rows = _rows(model, run, trainable)
    summed = ("parameters", "trainable_parameters", "macs", "size_bytes")
    return ModelCost(
        name=model.name,
        **{name: sum(getattr(row, name) for row in rows) for name in summed},
        peak_activation_bytes=peak_activation_bytes(run),
        training_activation_bytes=training_activation_bytes(run, trainable),
    )


@dataclasses.dataclass(frozen=True)
class ConvCost:
    """Parameters and multiply-accumulates of one convolution."""

    parameters: int
    macs: int


def conv_cost(
    kernel_size: int | tuple[int, int],
    in_channels: int,
    out_channels: int,
    height: int,
    width: int,
    kind: str = "standard",
    bias: bool = False,
) -> ConvCost:
    """Return what one convolution costs, by the formulas that every comparison of them starts from.

    For a kernel of K×K on a feature map of H×W: standard K²·C_in·C_out·H·W, pointwise C_in·C_out·H·W, depthwise
    K²·C_in·H·W, separable (depthwise, then pointwise) the sum of the last two; parameters are the same without H·W.
    The ratio of separable to standard is 1/C_out + 1/K² (Howard et al., "MobileNets", 2017, section 3.1).

    Args:
        kernel_size: K, or `(height, width)` of the kernel; a pointwise convolution is 1×1 whatever stands here.
        in_channels, out_channels: that come in and go out; of a depthwise convolution as many as come in go out.
        height, width: of the *output* feature map, in pixels.
        kind: `"standard"`, `"pointwise"`, `"depthwise"` or `"separable"`.
        bias: add one parameter for each output channel (a separable one has it at its end, as in Keras). Adding it is
            no multiply-accumulate.

    Raises:
        ArgumentError: a size that is no positive whole number, or an unknown kind.

    Example:
        >>> kerastl.conv_cost(3, 64, 128, height=56, width=56)
        ConvCost(parameters=73728, macs=231211008)
        >>> kerastl.conv_cost(3, 64, 128, height=56, width=56, kind="separable").macs
        27496448
    """
    check_choice("kind", kind, CONV_KINDS)
    kernel = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size, kernel_size)
    if len(kernel) != 2:
        raise ArgumentError(f"`kernel_size` must be one number or (height, width). {received(kernel_size=kernel_size)}")
    window = check_count("kernel_size", kernel[0]) * check_count("kernel_size", kernel[1])
    in_channels, out_channels = check_count("in_channels", in_channels), check_count("out_channels", out_channels)
    positions = check_count("height", height) * check_count("width", width)
    weights = {
        "standard": window * in_channels * out_channels,
        "pointwise": in_channels * out_channels,
        "depthwise": window * in_channels,
        "separable": window * in_channels + in_channels * out_channels,
    }[kind]
    biases = (in_channels if kind == "depthwise" else out_channels) if bias else 0
    return ConvCost(parameters=weights + biases, macs=weights * positions)


def _rows(model, run, trainable) -> LayerCosts:
    calls, counted = {}, set()
    for call in run.calls:
        calls.setdefault(id(call.operation), []).append(call)
    rows, problems = [], []
    for own_calls in calls.values():
        counts = [call_macs(call) for call in own_calls]
        row = _row(own_calls, sum(macs for macs, _ in counts), trainable, counted)
        rows.append(row)
        if problem := counts[0][1]:
            problems.append((row.kind, f"{row.name!r} ({row.kind}): {problem}"))
    outside = _weight_counts(model.weights, trainable, counted)
    if outside["parameters"]:
        rows.append(LayerCost("(outside the graph)", "", (), macs=0, activation_bytes=0, dtype="", runs=0, **outside))
    if problems:
        lines, first = "; ".join(line for _, line in problems), min(kind for kind, _ in problems)
        warn(f"No cost formula for {lines}. Give one with `kerastl.costs.register_layer_cost({first}, macs=...)`.")
    return LayerCosts(rows)


def _row(calls, macs, trainable, counted) -> LayerCost:
    first = calls[0]
    shapes = [tuple(spec.shape[1:]) for spec in first.outputs]
    return LayerCost(
        name=first.path,
        kind=type(first.operation).__name__,
        output_shape=shapes[0] if len(shapes) == 1 else shapes,
        macs=macs,
        activation_bytes=sum(spec_bytes(spec) for call in calls for spec in call.outputs),
        dtype=first.outputs[0].dtype if first.outputs else "",
        runs=len(calls),
        **_weight_counts(getattr(first.operation, "weights", ()), trainable, counted),
    )


def _weight_counts(weights, trainable, counted) -> dict:
    """Sum up the weights that no earlier row has counted, and note them as counted."""
    fresh = list({id(weight): weight for weight in weights if id(weight) not in counted}.values())
    counted.update(id(weight) for weight in fresh)
    return {
        "parameters": sum(prod(weight.shape) for weight in fresh),
        "trainable_parameters": sum(prod(weight.shape) for weight in fresh if id(weight) in trainable),
        "size_bytes": sum(prod(weight.shape) * itemsize(weight.dtype) for weight in fresh),
    }


def _cells(row) -> tuple[str, ...]:
    shape = " ".join(map(str, row.output_shape)) if isinstance(row.output_shape, list) else str(row.output_shape)
    name = row.name if row.runs < 2 else f"{row.name} (runs {row.runs} times)"
    return (name, row.kind, shape, *(f"{getattr(row, column):,}" for column in _SUMMED), row.dtype)
