"""What is wrong with a deep classifier that doesn't learn: does the gradient vanish, or is there nothing in the data?

Both look like a loss that doesn't fall. The verdict rests on the gradient norms over depth, on the loss, and on whether
features tell anything about the labels: the Hilbert-Schmidt independence criterion against shuffled labels.
"""

import dataclasses

import keras
import numpy as np

from kerastl.checks import check_count, received
from kerastl.data.labels import class_indices
from kerastl.errors import DataError
from kerastl.evaluation.explanation import as_maps, input_batches, operations_of, run
from kerastl.lab.gradients import GradientNorms, gradient_norms, readable
from kerastl.models.flatten import flatten_model
from kerastl.models.graph import nodes_in_order
from kerastl.models.outputs import count_classes, main_index, output_kind, to_probabilities
from kerastl.tables import Printed, Table

VANISHING = "vanishing gradient"
EXPLODING = "exploding gradient"
NO_GRADIENT = "no gradient"
NOTHING_TO_LEARN = "nothing to learn"
HEALTHY = "healthy"

# A gradient that changes so much from one end of the network to the other is out of one learning rate's range. With random
# weights seven families of keras.applications stay within a factor of 50, SqueezeNet (which has no BatchNorm) within 250
_RANGE = 1e4
# How much of the logarithm's variance a straight line must explain for the fall to be called geometric
_STRAIGHT = 0.7
# Fewer layers say nothing about a trend
_SMALLEST_DEPTH = 6
# How far below the labels' entropy the loss must be for the network to have learned something
_LEARNED = 0.95
# Chance of calling pure noise learnable
_SIGNIFICANCE = 0.005
_SHUFFLES = 999

# More images make a surer verdict, and matrices that grow with their square
_LARGEST_COUNT = 512
_LARGEST_FEATURES = 1024
_FEATURE_LAYERS = 6


@dataclasses.dataclass(frozen=True, repr=False)
class DepthDiagnosis(Printed):
    """A verdict, and what it rests on.

    A change is the factor by which the kernels' gradient norm changes from a layer to one *before* it: below 1 it falls on its
    way to the input. 1.0 where there are too few layers to tell. The smallest p-value that can come out is 0.001.
    """

    verdict: str  # `"vanishing gradient"`, `"exploding gradient"`, `"no gradient"`, `"nothing to learn"` or `"healthy"`
    reason: str  # the evidence in sentences
    loss: float  # mean cross-entropy of the main output on the data, in nats
    label_entropy: float  # in nats: the loss of always predicting the classes' frequencies
    change_per_layer: float
    total_change: float  # from the last layer to the first, by the fitted line
    straightness: float  # R² of the line through the logarithms: 1 for a change that is exactly geometric
    signal_p_value: float  # how often shuffled labels go with some layer's features as well as the true ones do
    signal_layer: str  # the layer whose input goes with the labels best
    norms: GradientNorms

    def to_rows(self) -> list[dict]:
        """Return everything but the norms as a list of one dictionary, for `pandas.DataFrame`."""
        fields = [field.name for field in dataclasses.fields(self) if field.name != "norms"]
        return [{name: getattr(self, name) for name in fields}]

    def _tables(self) -> list[Table]:
        cells = [
            ("loss on the data (nats)", readable(self.loss)),
            ("entropy of the labels (nats)", readable(self.label_entropy)),
            ("gradient, from a layer to the one before", f"× {readable(self.change_per_layer)}"),
            ("gradient, from the last layer to the first", f"× {readable(self.total_change)}"),
            ("straightness of its logarithm (R²)", readable(self.straightness)),
            ("chance of such features with shuffled labels", readable(self.signal_p_value)),
        ]
        return [Table(("measured", ""), cells, right={1}, title=f"{self.verdict}: {self.reason}")]


def diagnose_depth(model: keras.Model, x, y, *, batch_size: int = 64, seed: int = 0) -> DepthDiagnosis:
    """Tell why a deep classifier doesn't learn: the gradient vanishes (or explodes), or the data hold nothing to learn.

    Three measurements decide, in this order:

    1. *Does the gradient's norm change geometrically with depth?* A line through the logarithms of the kernels'
       gradient norms; a change by 10,000 or more along it, and straight, is the classic vanishing (or exploding)
       gradient: backpropagation multiplies by about the same factor at every layer (Bengio et al., "Learning long-term
       dependencies with gradient descent is difficult", 1994).
    2. *Is the loss below the entropy of the labels?* Then something has been learned already.
    3. *Do the features of any layer, the input among them, go with the labels?* How well they do is compared with 999
       shufflings of the labels. If no better than shuffled: the gradient reaches every layer, and there is nothing in
       it to follow.

    Give it data that the model was not trained on: a network that is large enough learns noise by heart, and on what it
    has learned by heart it looks healthy. At the start of training the third question asks the pixels and random
    features, which can miss patterns that only trained ones see.

    Args:
        model: a Functional or Sequential classifier with one input; it stays as it is.
        x: images or other inputs, an array; the first 512 are used. A hundred or more are needed for a sure verdict.
        y: labels, integers `(count,)` or one-hot `(count, classes)`.
        batch_size: of the batch that the gradient is measured on, and of inference.
        seed: of the shufflings.

    Raises:
        BackendError: a backend other than TensorFlow and JAX.
        DataError: labels that don't fit the images or the classes, or that are all the same.
        ModelError: no classifier, nothing trainable, or a subclassed model.

    Example:
        >>> kerastl.diagnose_depth(model, images, labels).verdict
        'healthy'
    """
    check_count("batch_size", batch_size)
    labels = _checked_labels(y, len(x), count_classes(model))[:_LARGEST_COUNT]
    norms = gradient_norms(model, x[:batch_size], y[:batch_size])
    features, outputs = _features_and_outputs(model, x[:_LARGEST_COUNT], batch_size)
    shares = np.bincount(labels) / len(labels)
    p_value, layer = _label_signal(features, labels, seed)
    evidence = {
        **_trend(model, norms),
        "loss": _cross_entropy(outputs, output_kind(model), labels),
        "label_entropy": float(-sum(share * np.log(share) for share in shares if share)),
        "signal_p_value": p_value,
        "signal_layer": layer,
    }
    return DepthDiagnosis(*_judge(norms, evidence), **evidence, norms=norms)


def _judge(norms, evidence) -> tuple[str, str]:
    """Return the verdict, and what it rests on in sentences."""
    gradients = [row.gradient_norm for row in norms]
    first, last = readable(gradients[0]), readable(gradients[-1])
    ends = f"The gradient's norm is {last} in the last layer and {first} in the first"
    losses = f"The loss is {evidence['loss']:.3f}, the entropy of the labels {evidence['label_entropy']:.3f}"
    if not np.isfinite([*gradients, evidence["loss"]]).all():
        cure = "A lower learning rate, or normalization, cures it."
        return EXPLODING, f"{ends}; {losses.lower()}: not finite. {cure}"
    if not any(gradients):
        return NO_GRADIENT, "The gradient is zero in every layer: see `dead_relu_fraction`, or a saturated last layer."
    if evidence["straightness"] >= _STRAIGHT and not 1 / _RANGE < evidence["total_change"] < _RANGE:
        straight = f"geometrically (R² {evidence['straightness']:.2f})"
        if evidence["total_change"] > 1:
            cure = "Normalization, smaller initial weights or clipping cure it."
            return EXPLODING, f"{ends}; in between it grows {straight}. {cure}"
        cure = "Shortcuts, normalization or ReLU in place of sigmoid and tanh cure it."
        why = f"in between it falls {straight}. The first layers can't learn, whatever the data."
        return VANISHING, f"{ends}; {why} {cure}"
    flat = f"{ends}, with no geometric fall: it reaches every layer. {losses}"
    if evidence["loss"] < _LEARNED * evidence["label_entropy"]:
        return HEALTHY, f"{flat}: it has learned."
    shuffled = f"than with shuffled ones (p = {evidence['signal_p_value']:.3f})"
    if evidence["signal_p_value"] <= _SIGNIFICANCE:
        goes = f"What goes into {evidence['signal_layer']!r} goes with the labels better {shuffled}"
        return HEALTHY, f"{flat}. {goes}: there is something to learn."
    return NOTHING_TO_LEARN, (
        f"{flat}: no better than knowing how frequent the classes are. The features of no layer go with the labels "
        f"better {shuffled}. It is the data: labels that don't depend on the images, or too few images."
    )


def _trend(model, norms) -> dict[str, float]:
    """Fit a line to the logarithms of the kernels' gradient norms over depth."""
    layers = operations_of(model)
    values = np.array([row.gradient_norm for row in norms if _has_kernel(layers[row.layer].trainable_variables)])
    if len(values) < _SMALLEST_DEPTH or not np.isfinite(values).all() or not values.any():
        return {"change_per_layer": 1.0, "total_change": 1.0, "straightness": 0.0}
    # Zeros have fallen below float32's range: they count as the smallest number
    logarithms = np.log(np.maximum(values, np.finfo("float32").smallest_subnormal))
    depths = np.arange(len(values))
    slope = np.polyfit(depths, logarithms, 1)[0]
    straightness = float(np.corrcoef(depths, logarithms)[0, 1] ** 2) if np.ptp(logarithms) else 0.0
    change, total = np.exp(-slope), np.exp(-slope * (len(values) - 1))
    return {"change_per_layer": float(change), "total_change": float(total), "straightness": straightness}


def _has_kernel(weights) -> bool:
    """Tell whether one of the weights is a matrix or a filter, not a bias or a factor per channel."""
    return any(len(weight.shape) > 1 for weight in weights)


def _features_and_outputs(model, x, batch_size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return what goes into some of a classifier's layers with kernels, `(count, features)` by name, and its main output.

    They are the first, the last and up to four layers between; feature maps are averaged over a coarse grid.
    """
    flat, first_runs = flatten_model(model), {}
    for node in nodes_in_order(flat):
        if _has_kernel(getattr(node.operation, "weights", ())):
            first_runs.setdefault(node.operation, node.input_tensors[0])
    places = np.linspace(0, len(first_runs) - 1, min(_FEATURE_LAYERS, len(first_runs))).round().astype(int)
    chosen = [list(first_runs.items())[place] for place in places]
    wanted = [tensor for _, tensor in chosen] + [flat.outputs[main_index(model)]]
    parts = []
    for known in input_batches(flat, x, batch_size):
        values = run(flat, known, wanted)
        parts.append([_flat(values[id(tensor)]) for tensor in wanted])
    *features, outputs = [np.concatenate(values) for values in zip(*parts, strict=True)]
    paths = {one: path for path, one in reversed(operations_of(model).items())}
    return {paths[layer]: values for (layer, _), values in zip(chosen, features, strict=True)}, outputs


def _label_signal(features: dict[str, np.ndarray], labels: np.ndarray, seed: int) -> tuple[float, str]:
    """Return the p-value of features, by layer name, that go with the labels, and the layer whose input does so best.

    For each layer the Hilbert-Schmidt independence criterion (Gretton et al., "A kernel statistical test of
    independence", 2007) between its features and the classes, with a linear and with a Gaussian kernel (of the median
    distance), is compared with its values for shuffled labels, in their standard deviations. The largest of all counts;
    for every shuffling too, so that looking at several layers doesn't make noise look like signal.
    """
    kernels = {(name, kind): kernel for name, values in features.items() for kind, kernel in _kernels(values).items()}
    if not kernels:
        return 1.0, ""
    flat = np.stack([kernel.ravel() for kernel in kernels.values()], axis=1).astype("float32")
    generator = np.random.default_rng(seed)
    shuffled = np.stack([labels, *(labels[generator.permutation(len(labels))] for _ in range(_SHUFFLES))])
    # The kernels are centred, so the classes' kernel, which is 1 for two of the same class, need not be
    same = ((part[:, :, None] == part[:, None, :]).reshape(len(part), -1) for part in np.array_split(shuffled, 50))
    strengths = np.concatenate([part.astype("float32") @ flat for part in same])
    deviations = strengths.std(axis=0)
    standardized = (strengths - strengths.mean(axis=0)) / np.where(deviations > 0, deviations, 1)
    largest = standardized.max(axis=1)
    best = list(kernels)[standardized[0].argmax()][0]
    return float((largest >= largest[0]).mean()), best


def _kernels(values) -> dict[str, np.ndarray]:
    """Return the centred kernel matrices of standardized features; none where all features are constant."""
    centred = values - values.mean(axis=0)
    deviations = centred.std(axis=0)
    used = deviations > 1e-6 * np.abs(values).max(initial=0)
    if not used.any():
        return {}
    scaled = centred[:, used] / deviations[used]
    linear = scaled @ scaled.T
    squares = np.diag(linear)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * linear, 0)
    gaussian = np.exp(-distances / max(np.median(distances), 1e-12))
    gaussian = gaussian - gaussian.mean(axis=0) - gaussian.mean(axis=1)[:, None] + gaussian.mean()
    return {"linear": linear / np.linalg.norm(linear), "gaussian": gaussian / np.linalg.norm(gaussian)}


def _flat(values) -> np.ndarray:
    """Return `(count, features)`: feature maps averaged over the finest grid of at most 8×8 that leaves few features."""
    values = as_maps(values).astype("float64")
    if values.ndim != 4:
        return values.reshape(len(values), -1)
    channels = values.shape[3]
    grid = next(size for size in (8, 4, 2, 1) if size * size * channels <= _LARGEST_FEATURES or size == 1)
    for axis, length in enumerate(values.shape[1:3], start=1):
        edges = np.linspace(0, length, min(grid, length), endpoint=False).astype(int)
        values = np.add.reduceat(values, edges, axis=axis)
    return values.reshape(len(values), -1)


def _cross_entropy(outputs, kind, labels) -> float:
    """Return the mean cross-entropy in nats of the main output: softmax, logits, or one unit of either kind."""
    if not np.isfinite(outputs).all():
        return float("nan")
    chosen = to_probabilities(outputs, kind)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, 1e-37)).mean())


def _checked_labels(y, count: int, classes: int) -> np.ndarray:
    labels = np.asarray(y)
    if not count or not labels.ndim or len(labels) != count:
        raise DataError(f"Expected one label for each of the {count} images. {received(labels=labels.shape)}")
    labels = class_indices(labels, classes)
    if len(np.unique(labels[:_LARGEST_COUNT])) < 2:
        raise DataError(f"All labels are the same: there is nothing to tell apart. {received(y=np.unique(labels))}")
    return labels
