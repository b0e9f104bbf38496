"""What is wrong with a deep classifier that doesn't learn: the verdict, and the evidence."""

import dataclasses

import keras
import numpy as np

from kerastl.checks import check_count, received
from kerastl.errors import DataError
from kerastl.lab.gradients.norms import GradientNorms, gradient_norms
from kerastl.lab.gradients.rows import cell
from kerastl.lab.gradients.running import has_kernel, leaf_layers
from kerastl.lab.gradients.signal import LARGEST_COUNT, features_and_outputs, label_signal
from kerastl.models.outputs import count_classes, output_kind
from kerastl.tables import html_table, text_table

VANISHING = "vanishing gradient"
EXPLODING = "exploding gradient"
NO_GRADIENT = "no gradient"
NOTHING_TO_LEARN = "nothing to learn"
HEALTHY = "healthy"

# A gradient that changes by this factor from one end of the network to the other is out of the range of one learning
# rate. With random weights seven families of keras.applications stay within a factor of 50, SqueezeNet (which has no
# BatchNorm) within 250
_RANGE = 1e4
# How much of the logarithm's variance a straight line must explain for the fall to be called geometric
_STRAIGHT = 0.7
# Fewer layers say nothing about a trend
_SMALLEST_DEPTH = 6
# How far below the labels' entropy the loss must be for the network to have learned something
_LEARNED = 0.95
# Chance of calling pure noise learnable
_SIGNIFICANCE = 0.005


@dataclasses.dataclass(frozen=True)
class DepthDiagnosis:
    """A verdict, and what it rests on.

    Attributes:
        verdict: `"vanishing gradient"`, `"exploding gradient"`, `"no gradient"`, `"nothing to learn"` or `"healthy"`.
        reason: the evidence in sentences.
        loss: mean cross-entropy of the main output on the data, in nats.
        label_entropy: entropy of the labels, in nats: the loss of always answering with the classes' frequencies.
        change_per_layer: by which factor the kernels' gradient norm changes from a layer to the one *before* it: below
            1 it falls on its way to the input. 1.0 where there are too few layers to tell.
        total_change: the same from the last layer to the first, by the fitted line.
        straightness: R² of the line through the logarithms: 1 for a change that is exactly geometric.
        signal_p_value: how often shuffled labels go with some layer's features as well as the true ones do; near 0: the
            features tell something about the labels. 0.001 is the smallest that can come out.
        signal_layer: the layer whose input goes with the labels best.
        norms: the gradient norms.
    """

    verdict: str
    reason: str
    loss: float
    label_entropy: float
    change_per_layer: float
    total_change: float
    straightness: float
    signal_p_value: float
    signal_layer: str
    norms: GradientNorms

    def to_rows(self) -> list[dict]:
        """Return everything but the norms as a list of one dictionary, for `pandas.DataFrame`."""
        fields = [field.name for field in dataclasses.fields(self) if field.name != "norms"]
        return [{name: getattr(self, name) for name in fields}]

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}\n\n{text_table(('measured', ''), self._cells(), right={1})}"

    def _repr_html_(self) -> str:
        return html_table(("measured", ""), self._cells(), right={1}, title=f"{self.verdict}: {self.reason}")

    def _cells(self) -> list[tuple[str, str]]:
        return [
            ("loss on the data (nats)", cell(self.loss)),
            ("entropy of the labels (nats)", cell(self.label_entropy)),
            ("gradient, from a layer to the one before", f"× {cell(self.change_per_layer)}"),
            ("gradient, from the last layer to the first", f"× {cell(self.total_change)}"),
            ("straightness of its logarithm (R²)", cell(self.straightness)),
            ("chance of such features with shuffled labels", cell(self.signal_p_value)),
        ]


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
    """
    check_count("batch_size", batch_size)
    labels = _class_indices(y, len(x), count_classes(model))[:LARGEST_COUNT]
    norms = gradient_norms(model, x[:batch_size], y[:batch_size])
    features, outputs = features_and_outputs(model, x[:LARGEST_COUNT], batch_size)
    frequencies = np.bincount(labels) / len(labels)
    p_value, layer = label_signal(features, labels, seed)
    evidence = {
        **_trend(model, norms),
        "loss": _cross_entropy(outputs, output_kind(model), labels),
        "label_entropy": float(-sum(share * np.log(share) for share in frequencies if share)),
        "signal_p_value": p_value,
        "signal_layer": layer,
    }
    verdict = _verdict(norms, evidence)
    return DepthDiagnosis(verdict, _reason(verdict, norms, evidence), **evidence, norms=norms)


def _verdict(norms, evidence) -> str:
    gradients = [row.gradient_norm for row in norms]
    if not np.isfinite(gradients).all() or not np.isfinite(evidence["loss"]):
        return EXPLODING
    if not any(gradients):
        return NO_GRADIENT
    if evidence["straightness"] >= _STRAIGHT and evidence["total_change"] <= 1 / _RANGE:
        return VANISHING
    if evidence["straightness"] >= _STRAIGHT and evidence["total_change"] >= _RANGE:
        return EXPLODING
    has_learned = evidence["loss"] < _LEARNED * evidence["label_entropy"]
    return HEALTHY if has_learned or evidence["signal_p_value"] <= _SIGNIFICANCE else NOTHING_TO_LEARN


def _reason(verdict, norms, evidence) -> str:
    ends = (
        f"The gradient's norm is {cell(norms[-1].gradient_norm)} in the last layer and "
        f"{cell(norms[0].gradient_norm)} in the first"
    )
    straight = f"geometrically (R² {evidence['straightness']:.2f})"
    shuffled = f"than with shuffled ones (p = {evidence['signal_p_value']:.3f})"
    losses = f"The loss is {evidence['loss']:.3f}, the entropy of the labels {evidence['label_entropy']:.3f}"
    if verdict == NO_GRADIENT:
        return "The gradient is zero in every layer: see `dead_relu_fraction`, or a saturated last layer."
    if verdict == VANISHING:
        return (
            f"{ends}; in between it falls {straight}. The first layers can't learn, whatever the data. Shortcuts, "
            "normalization or ReLU in place of sigmoid and tanh cure it."
        )
    if verdict == EXPLODING and evidence["straightness"] < _STRAIGHT:
        return f"{ends}; {losses.lower()}: not finite. A lower learning rate, or normalization, cures it."
    if verdict == EXPLODING:
        return f"{ends}; in between it grows {straight}. Normalization, smaller initial weights or clipping cure it."
    flat = f"{ends}, with no geometric fall: it reaches every layer. {losses}"
    if verdict == NOTHING_TO_LEARN:
        return (
            f"{flat}: no better than knowing how frequent the classes are. The features of no layer go with the labels "
            f"better {shuffled}. It is the data: labels that don't depend on the images, or too few images."
        )
    if evidence["loss"] < _LEARNED * evidence["label_entropy"]:
        return f"{flat}: it has learned."
    return (
        f"{flat}. What goes into {evidence['signal_layer']!r} goes with the labels better {shuffled}: there is "
        "something to learn."
    )


def _trend(model, norms) -> dict[str, float]:
    """Fit a line to the logarithms of the kernels' gradient norms over depth."""
    kernels = {path for path, layer in leaf_layers(model) if has_kernel(layer.trainable_variables)}
    values = np.array([row.gradient_norm for row in norms if row.layer in kernels])
    if len(values) < _SMALLEST_DEPTH or not np.isfinite(values).all() or not values.any():
        return {"change_per_layer": 1.0, "total_change": 1.0, "straightness": 0.0}
    # Zeros have fallen below float32's range: they count as the smallest number
    logarithms = np.log(np.maximum(values, np.finfo("float32").smallest_subnormal))
    depths = np.arange(len(values))
    slope, start = np.polyfit(depths, logarithms, 1)
    spread = ((logarithms - logarithms.mean()) ** 2).sum()
    rest = ((logarithms - start - slope * depths) ** 2).sum()
    return {
        "change_per_layer": float(np.exp(-slope)),
        "total_change": float(np.exp(-slope * (len(values) - 1))),
        "straightness": float(1 - rest / spread) if spread else 0.0,
    }


def _cross_entropy(outputs, kind, labels) -> float:
    """Return the mean cross-entropy in nats of the main output: softmax, logits, or one unit of either kind."""
    if outputs.shape[1] == 1:  # one unit p stands for the classes (1 - p, p), a logit z for (0, z)
        others = np.zeros_like(outputs) if kind == "logits" else 1 - outputs
        outputs = np.concatenate([others, outputs], axis=1)
    if kind == "logits":
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        outputs = powers / powers.sum(axis=1, keepdims=True)
    return float(-np.log(np.maximum(outputs[np.arange(len(labels)), labels], 1e-37)).mean())


def _class_indices(y, count, classes) -> np.ndarray:
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels.argmax(axis=1)
    labels = labels.reshape(-1)
    if len(labels) != count or not count:
        raise DataError(f"Expected one label for each of the {count} images. {received(labels=len(labels))}")
    if not np.equal(np.mod(labels, 1), 0).all() or labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"Expected labels from 0 to {classes - 1}, the classes of the model. {received(y=np.unique(labels)[:10])}"
        )
    if len(np.unique(labels[:LARGEST_COUNT])) < 2:
        raise DataError(f"All labels are the same: there is nothing to tell apart. {received(y=np.unique(labels))}")
    return labels.astype(int)
