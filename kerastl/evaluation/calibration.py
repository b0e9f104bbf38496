"""Are the probabilities true? Of images called with 80 %, four in five should be right: measured, and mended."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerastl.checks import check_count, received
from kerastl.data.labels import MULTI_LABEL, REGRESSION
from kerastl.errors import ArgumentError, ModelError, warn
from kerastl.evaluation.measures import gather, run_on
from kerastl.models import compiling, graph, outputs
from kerastl.models.flatten import flatten_model
from kerastl.tables import Printed, Table
from kerastl.training.temperature import check_both, find_temperature, log_losses, scale

BINS = 10


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How sure a model was, and how often it was right, in bins of equal width from 0 to 1; arrays `(bins,)`."""

    confidence: np.ndarray  # the mean probability in each bin; NaN in empty ones
    accuracy: np.ndarray  # the share that was right
    count: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |accuracy - confidence|, each bin by its count (Guo et al. 2017)."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.count[filled]).sum() / self.count.sum())


@dataclasses.dataclass(frozen=True, repr=False)
class Calibration(Printed):
    """What `calibrate` found and did; prints as a table. Figures are of the images that the temperature was chosen on.

    Attributes:
        temperature: what the logits were divided by; of several labels a dictionary, one for each.
        before, after: the `Reliability` without and with it.
        loss_before, loss_after: the mean log loss, natural logarithm.
        images: how many there were.
    """

    temperature: float | dict[str, float]
    before: Reliability
    after: Reliability
    loss_before: float
    loss_after: float
    images: int

    @property
    def error_before(self) -> float:
        """The expected calibration error before."""
        return self.before.error

    @property
    def error_after(self) -> float:
        """The expected calibration error after."""
        return self.after.error

    def _tables(self) -> list[Table]:
        bins = f"calibration error ({len(self.before.count)} bins)"
        figures = {bins: (self.error_before, self.error_after), "log loss": (self.loss_before, self.loss_after)}
        rows = [[name, *(f"{value:.4f}" for value in pair)] for name, pair in figures.items()]
        several = isinstance(self.temperature, dict)
        given = self.temperature if several else {"": self.temperature}
        said = ", ".join(f"{name} {value:.3f}".strip() for name, value in given.items())
        title = f"Temperature{'s' * several} {said}, on {self.images} images"
        return [Table(["", "before", "after"], rows, right={1, 2}, title=title)]


def calibrate(
    model: keras.Model,
    validation,
    class_names=None,
    *,
    bins: int = BINS,
    preprocessing: Callable[..., Any] | str | None = "auto",
    task: str | None = None,
) -> Calibration:
    """Divide a model's logits by the temperature that makes its probabilities true, in place: by its last layer's weights.

    Temperature scaling (Guo et al., "On calibration of modern neural networks", 2017) minimizes the log loss on images that
    were not trained on. It changes no most probable class, and is never worse there by that loss. Weights and biases of the
    last dense layer are divided by it, so the model stays plain Keras: it is saved, exported and trained on as before. Each
    of several labels gets a temperature of its own. Judge probabilities without averaging views, which makes them less sure.

    Args:
        model: a classifier of RGB images, or of several labels, that ends in a dense layer.
        validation: images and labels as `evaluate` takes them, some hundreds; not those it was trained on.
        class_names: one name per class or label, in order.
        bins: of the calibration error.
        preprocessing, task: "auto" and `None` go by the model, see `predict`.

    Returns:
        A `Calibration`, which prints; `kerastl.plot_reliability` plots it.

    Raises:
        ModelError: it doesn't end in a dense layer of its own.
        ArgumentError: it predicts numbers, its last activation is another task's, or an argument can't be used.
        DataError: no images, or labels that don't fit.

    Example:
        >>> found = kerastl.calibrate(model, (images, labels), data.class_names)
        >>> found.loss_after <= found.loss_before
        True
    """
    check_count("bins", bins)
    task, names, batches = run_on(model, validation, class_names, preprocessing=preprocessing, task=task)
    if task == REGRESSION:
        raise ArgumentError(
            f"Numbers have no probabilities to calibrate: leave them as they are. {received(task=task)}"
        )
    layer = _last_dense(model)
    _check_task(model, task)
    labels, probabilities = gather(batches)
    temperature = find_temperature(probabilities, labels)
    if (unknown := np.isnan(temperature)).any():
        of_which = f" of {', '.join(np.array(names)[unknown])}" if task == MULTI_LABEL else ""
        warn(
            f"No temperature{of_which} can be told, and none is applied: of the {len(labels)} images too many are right, so "
            "that surer would always be better, or too many wrong. Take more images that were not trained on."
        )
    temperature = np.where(unknown, 1.0, temperature)
    for weight in layer.weights:
        weight.assign(weight / keras.ops.cast(temperature, weight.dtype))
    both = probabilities, scale(probabilities, temperature, labels)
    figures = [
        *(reliability(one, labels, bins) for one in both),
        *(float(log_losses(one, labels).mean()) for one in both),
    ]
    values = dict(zip(names, temperature.tolist(), strict=True)) if temperature.ndim else float(temperature)
    return Calibration(values, *figures, len(labels))


def _check_task(model, task: str) -> None:
    """Raise `ArgumentError` where the last activation is another task's: its probabilities are then not those to judge."""
    kind = outputs.output_kind(model)
    if kind != "logits" and task != (own := compiling.task_of(model)):
        units = outputs.main_tensor(model).shape[-1]
        raise ArgumentError(
            f"The model ends in {units} {kind} unit{'s' * (units > 1)}, made for the task {own!r}. Leave `task` out, or build "
            f"the head for the other one: `kerastl.build_classifier(..., task={task!r})`. {received(task=task)}"
        )


def _last_dense(model) -> keras.layers.Dense:
    """Return the dense layer whose outputs, but for the activation, are the model's, or raise `ModelError`."""
    node, kind = outputs.deciding_node(outputs.main_tensor(model)), outputs.output_kind(model)
    behind = kind is not None and not graph.has_weights(node.operation)  # an activation of its own
    node = outputs.deciding_node(node.input_tensors[0]) if behind else node
    layer = None if node is None else node.operation
    # LoRA and quantization bring more weights, which can't simply be divided
    plain = isinstance(layer, keras.layers.Dense) and len(layer.weights) == 1 + layer.use_bias
    if kind is None or not plain or (behind and layer.activation is not keras.activations.linear):
        raise ModelError(
            "Expected a model that ends in a dense layer with softmax, sigmoid or plain logits, whose weights can be divided "
            "by a temperature. Build its head with `kerastl.build_classifier`, or leave it as it is. "
            f"{received(last_layer=None if layer is None else type(layer).__name__)}"
        )
    uses = sum(node.operation is layer for node in graph.nodes_in_order(flatten_model(model)))
    if uses > 1:
        raise ModelError(
            f"The last layer is used {uses} times in the model, and its weights can't be divided for one of them alone. Give "
            f"the output a dense layer of its own, or leave the model as it is. {received(last_layer=layer.name)}"
        )
    return layer


def reliability(probabilities, labels, bins: int = BINS) -> Reliability:
    """Compare in bins how sure a model was with how often it was right.

    Args:
        probabilities: `(count, classes)`; of labels `(count, labels)` or `(count,)`.
        labels: true classes `(count,)`; of labels 0 and 1, in the shape of `probabilities`. Then all pairs of image and label
            count, and "right" is that the image has the label; of classes the most probable one of each image counts.
        bins: their number, of equal width.

    Raises:
        DataError: shapes that don't fit each other, or no probabilities.
    """
    probabilities, labels = check_both(probabilities, labels)
    if probabilities.shape == labels.shape:
        sure, right = probabilities.ravel(), labels.ravel()
    else:
        sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.clip((sure * bins).astype(int), 0, bins - 1)
    count = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 of empty bins is the NaN that they get
        means = [np.bincount(places, weights=one, minlength=bins) / count for one in (sure, right)]
    return Reliability(*means, count)
