"""Models with several outputs, as auxiliary heads make them: one label for all of them, and what the logs call them.

Keras wants labels for each output, takes class weights only where there is a single one, and calls the total `val_loss`.
Here one label is given to every output, class weights become sample weights, and a monitored name is that of the main
output. The main output is the first one; auxiliary ones are told by their names, which begin with `auxiliary_`.
"""

import math
import weakref

import keras
import numpy as np

from kerastl import backend, keras_internals
from kerastl.checks import received
from kerastl.data import batches as inputs
from kerastl.errors import DataError
from kerastl.models import outputs

AUXILIARY = "auxiliary_"

# Of each auxiliary loss in the total, as in GoogLeNet (Szegedy et al., "Going deeper with convolutions", 2015).
AUXILIARY_WEIGHT = 0.3

_WEIGHTS = weakref.WeakKeyDictionary()


def output_names(model: keras.Model) -> list[str]:
    """Return what Keras calls each output in `compile` and in the logs, in the order of `model.outputs`.

    A subclassed model, whose outputs nobody knows, has none.
    """
    if isinstance(structure := _structure(model), dict):
        return keras.tree.flatten({key: key for key in structure})
    if names := getattr(model, "output_names", None):
        return list(names)
    return [keras_internals.node_of(tensor).operation.name for tensor in getattr(model, "outputs", None) or []]


def main_name(model: keras.Model) -> str:
    """Return the name of the main output: the first one."""
    structure = _structure(model)
    return next(iter(structure)) if isinstance(structure, dict) else output_names(model)[0]


def has_several(model: keras.Model) -> bool:
    """Tell whether a model has more than one output."""
    return len(getattr(model, "outputs", None) or []) > 1


def auxiliary_names(model: keras.Model) -> list[str]:
    """Return the names of the outputs that are auxiliary: all but the main one whose names begin with `auxiliary_`."""
    names = output_names(model) if has_several(model) else []
    return [name for name in names if name.startswith(AUXILIARY) and name != main_name(model)]


def remember_loss_weights(model: keras.Model, weights: dict[str, float]) -> None:
    """Keep the weights of auxiliary losses until the model is compiled, which is where Keras keeps them."""
    _WEIGHTS[model] = dict(weights)


def loss_weights(model: keras.Model) -> dict[str, float]:
    """Return the weight of each output's loss in the total, for a model that was not compiled yet.

    Auxiliary outputs have the weight they were made with; in a model read from disk, 0.3. All others have 1.
    """
    weights = dict.fromkeys(auxiliary_names(model), AUXILIARY_WEIGHT) | _WEIGHTS.get(model, {})
    return {name: float(weights.get(name, 1.0)) for name in output_names(model)}


def main_log_name(model: keras.Model, name: str) -> str:
    """Return the name by which the logs of a model know a monitored value of its main output.

    Args:
        model: with one output or several.
        name: such as "val_loss", which with several outputs is the total's: then it becomes "val_predictions_loss". A name
            that tells an output already is returned as it is.
    """
    bare = name.removeprefix("val_")
    if not has_several(model) or any(bare.startswith(f"{one}_") for one in output_names(model)):
        return name
    if bare == "loss" and _single_loss(model):
        return name
    return f"{'val_' if bare != name else ''}{main_name(model)}_{bare}"


def _single_loss(model) -> bool:
    """Tell whether only one output has a loss; Keras logs no loss per output then."""
    loss = getattr(model, "loss", None)
    if not isinstance(loss, (dict, list, tuple)):
        return False
    return sum(one is not None for one in (loss.values() if isinstance(loss, dict) else loss)) == 1


def for_every_output(model: keras.Model, labels):
    """Return the labels once for each output: a dictionary where the model's outputs are one, else a tuple."""
    structure = _structure(model)
    if isinstance(structure, dict):
        return dict.fromkeys(structure, labels)
    return (labels,) * len(model.outputs)


def takes_one_label(model: keras.Model) -> bool:
    """Tell whether a model has several outputs that are all of one shape, so that one label an image fits them all."""
    return has_several(model) and len({tuple(tensor.shape[1:]) for tensor in model.outputs}) == 1


def has_one_label(data) -> bool:
    """Tell whether data as `fit` takes it holds a single array of labels, rather than one for each output.

    Generators are taken at their word: looking would use them up.
    """
    if inputs.find_source(data) is not None or hasattr(data, "__next__"):
        return True
    pair = inputs.split_pair(data)
    if pair is None and inputs.is_tf_dataset(data):
        pair = data.element_spec if isinstance(data.element_spec, tuple) else ()
    elif pair is None and isinstance(data, keras.utils.PyDataset):
        pair = data[0]
    elif pair is None:
        pair = next(iter(data), ()) if hasattr(data, "__iter__") else ()
    return len(pair) > 1 and pair[1] is not None and not isinstance(pair[1], (list, tuple, dict))


def fit_arguments(model: keras.Model, arguments: dict) -> dict:
    """Return the arguments of `fit` with the one `y` given to every output, where a model has several.

    Class weights become sample weights (of the training data only, as in Keras). Validation data is cut into even batches
    where it can be (see `even_batch_size`). Labels that are given per output already are left alone, and so is everything
    where the outputs are of different shapes.

    Args:
        model: the model.
        arguments: of `fit`; those that say what the data is are looked at.

    Raises:
        DataError: data that labels can't be repeated in (a PyTorch `DataLoader`, say).
    """
    if not takes_one_label(model):
        return arguments
    arguments = dict(arguments)
    images, labels = arguments.get("x"), arguments.get("y")
    data = images if labels is None else (images, labels, arguments.get("sample_weight"))
    if has_one_label(data):
        split = arguments.get("validation_split")
        if labels is not None and split and arguments.get("validation_data") is None:
            data, arguments["validation_data"] = inputs.split_validation(data, arguments.pop("validation_split"))
        data = labelled_for_all(model, data, arguments.pop("class_weight", None))
        arguments.update({"x": data} if labels is None else zip(("x", "y", "sample_weight"), data, strict=False))
    validation = arguments.get("validation_data")
    if validation is not None and has_one_label(validation):
        size = arguments.get("validation_batch_size") or arguments.get("batch_size")
        arguments["validation_data"], size = _evenly(model, validation, size)
        if size is not None:
            arguments["validation_batch_size"] = size
    return arguments


def evaluate_arguments(model: keras.Model, data, batch_size: int | None) -> dict:
    """Return the arguments of `evaluate` for data as `fit` takes it, the one label given to every output.

    Raises:
        DataError: data that labels can't be repeated in.
    """
    if takes_one_label(model) and has_one_label(data):
        data, size = _evenly(model, data, batch_size)
        batch_size = size or batch_size
    named = zip(("x", "y", "sample_weight"), inputs.split_pair(data) or (data,), strict=False)
    return {**dict(named), "batch_size": batch_size}


def _evenly(model, data, batch_size) -> tuple:
    """Return validation data with labels for every output, in even batches where their size can be chosen; and that size."""
    pair, source = inputs.split_pair(data), inputs.find_source(data)
    if pair is not None:
        return labelled_for_all(model, data), even_batch_size(len(pair[0]), batch_size or 32)
    if source is not None and len(source) and inputs.is_tf_dataset(data):
        data = data.rebatch(even_batch_size(len(source), source.batch_size))
    return labelled_for_all(model, data), None


def even_batch_size(count: int, batch_size: int) -> int:
    """Return the size that makes as many batches as `batch_size` does, but even ones: of 33 images not 32 and 1.

    With several outputs Keras averages the loss of each over batches, not over images, where a graph on TensorFlow doesn't
    know the batch's size: a last batch of one image would count as much as any other, in the value that decides which weights
    are the best.
    """
    return math.ceil(count / math.ceil(count / batch_size))


def labelled_for_all(model: keras.Model, data, class_weight: dict | None = None):
    """Return data as `fit` takes it, its one label given to every output, and class weights as sample weights.

    Args:
        model: with several outputs.
        data: a `(x, y)` or `(x, y, sample_weight)` tuple, a `tf.data.Dataset`, a `PyDataset` or a generator.
        class_weight: from class index to weight; classes that it leaves out weigh 1.

    Raises:
        DataError: anything else.
    """
    pair = inputs.split_pair(data)
    if pair is not None:
        return _converted(pair, for_every_output(model, 0), class_weight)
    if inputs.is_tf_dataset(data):
        classes = outputs.count_classes(model)
        table = None if class_weight is None else [class_weight.get(index, 1.0) for index in range(classes)]
        return backend.map_labels(data, lambda labels: for_every_output(model, labels), table)
    if isinstance(data, keras.utils.PyDataset):
        return _LabelledForAll(data, for_every_output(model, 0), class_weight)
    if hasattr(data, "__next__"):
        return (_converted(batch, for_every_output(model, 0), class_weight) for batch in data)
    raise DataError(
        f"The model {model.name!r} has {len(model.outputs)} outputs, and its one label can't be given to all of them in "
        f"such data. Let each batch hold the label once per output. {received(data=type(data).__name__)}"
    )


def _converted(batch, structure, class_weight):
    images, labels, weights = (*batch, None)[:3]
    weights = sample_weights(labels, class_weight, weights)
    labels = keras.tree.map_structure(lambda _: labels, structure)
    # Keras gives a single array of sample weights to every output itself
    return (images, labels) if weights is None else (images, labels, weights)


def sample_weights(labels, class_weight: dict | None, given=None):
    """Return a weight for each sample, that of its class times the one that was given; `None` where there is neither.

    Args:
        labels: integers `(count,)` or `(count, 1)`, or one-hot `(count, classes)`.
        class_weight: from class index to weight; classes that it leaves out weigh 1.
        given: sample weights `(count,)`, or a structure of them.
    """
    if class_weight is None:
        return given
    labels = keras.ops.convert_to_numpy(labels)
    classes = labels.argmax(axis=1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
    weights = np.array([class_weight.get(int(one), 1.0) for one in classes], "float32")
    if given is None:
        return weights

    def product(one):
        one = keras.ops.convert_to_numpy(one)
        return one * weights.reshape(-1, *[1] * (one.ndim - 1))

    return keras.tree.map_structure(product, given)


class _LabelledForAll(keras.utils.PyDataset):
    """A `PyDataset` whose batches hold the label once for each output."""

    def __init__(self, dataset, structure, class_weight):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset, self._structure, self._class_weight = dataset, structure, class_weight

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def __getitem__(self, index):
        return _converted(self._dataset[index], self._structure, self._class_weight)

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


def _structure(model):
    """Return the structure of the outputs; `None` for a `Sequential` model that begins with a model, which raises on it."""
    try:
        return model.output
    except (AttributeError, ValueError):
        return None
