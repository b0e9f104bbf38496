"""The gradient's norm in every layer."""

import dataclasses

import keras
import numpy as np

from kerastl.backend import gradients_of
from kerastl.errors import ModelError
from kerastl.lab.gradients.rows import Table
from kerastl.lab.gradients.running import leaf_layers
from kerastl.models import several_outputs
from kerastl.models.outputs import count_classes, output_kind


@dataclasses.dataclass(frozen=True)
class GradientNorm:
    """What one layer's trainable weights are told by one batch.

    Attributes:
        layer: the layer's name, after the names of the nested models that hold it.
        kind: its class.
        depth: its place among the layers with trainable weights, from the input on, beginning with 1.
        gradient_norm: L2 norm of the loss's gradient with respect to all its trainable weights.
        weight_norm: L2 norm of these weights.
        ratio: gradient_norm / weight_norm; infinite where the weights are all zero.
    """

    layer: str
    kind: str
    depth: int
    gradient_norm: float
    weight_norm: float
    ratio: float


class GradientNorms(Table):
    """The rows of `gradient_norms`, from the first layer to the last, and the `loss` they belong to."""

    columns = ("layer", "kind", "depth", "gradient_norm", "weight_norm", "ratio")
    loss: float


def gradient_norms(model: keras.Model, x, y) -> GradientNorms:
    """Measure the gradient of the loss on one batch, per layer with trainable weights, in one pass.

    The model runs as in training (dropout drops, BatchNorm that isn't frozen uses the batch), and stays as it was:
    nothing is trained, no statistic moves.

    Args:
        model: a model; compiled, its loss is used, else the cross-entropy that its last activation and `y` call for.
        x: one batch of inputs, as `fit` takes it; 32 to 256 images are a good measure.
        y: their labels, as the loss takes them.

    Raises:
        BackendError: a backend other than TensorFlow and JAX.
        ModelError: nothing is trainable, or it isn't compiled and no loss can be told.
    """
    layers = [(path, layer) for path, layer in leaf_layers(model) if layer.trainable_variables]
    if not layers:
        raise ModelError("Nothing is trainable: every layer is frozen. `kerastl.unfreeze` some, then measure.")
    variables = list({id(v): v for _, layer in layers for v in layer.trainable_variables}.values())
    loss, gradients = gradients_of(_loss_function(model, x, y), variables)
    gradient_of = {id(variable): gradient for variable, gradient in zip(variables, gradients, strict=True)}
    rows = []
    for depth, (path, layer) in enumerate(layers, start=1):
        of_gradient = _norm([gradient_of[id(variable)] for variable in layer.trainable_variables])
        of_weights = _norm([variable.numpy() for variable in layer.trainable_variables])
        ratio = of_gradient / of_weights if of_weights else float("inf")
        rows.append(GradientNorm(path, type(layer).__name__, depth, of_gradient, of_weights, ratio))
    norms = GradientNorms(rows)
    norms.loss = loss
    return norms


def _loss_function(model, x, y):
    y = several_outputs.fit_arguments(model, {"x": x, "y": y})["y"]  # auxiliary heads take the one label, too

    def compiled():
        return model.compute_loss(x=x, y=y, y_pred=model(x, training=True), training=True)

    if model.compiled:
        return compiled
    loss = _usual_loss(model, y)
    return lambda: keras.ops.mean(loss(y, model(x, training=True)))


def _usual_loss(model, y):
    kind = output_kind(model)
    if kind is None or len(model.outputs) > 1:
        raise ModelError("The model is not compiled, and which loss it takes can't be told. Compile it first.")
    from_logits = kind == "logits"
    if count_classes(model) == 2 and model.outputs[0].shape[-1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=from_logits)
    if kind == "sigmoid":
        return keras.losses.BinaryCrossentropy()
    if np.ndim(y) == 2 and np.shape(y)[1] > 1:
        return keras.losses.CategoricalCrossentropy(from_logits=from_logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def _norm(arrays) -> float:
    """Return the L2 norm over all arrays, in float64: squares of vanishing gradients leave float32's range."""
    return float(np.sqrt(sum((np.asarray(array, "float64") ** 2).sum() for array in arrays)))
