"""The recipe: train the head on a frozen backbone, thaw its end, train on at a low rate, keep the best weights.

`train_head` and `fine_tune` are `freeze` or `unfreeze`, compile, `fit`, and restore the best weights, in that order and
nothing else; `transfer_learn` is one after the other, with the best weights kept across both.
"""

import dataclasses
import math
import time
import warnings

import keras

from kerastl import callbacks as callback_module
from kerastl import compiling, freezing, graph, inputs, outputs
from kerastl.checks import check_choice, check_count, received
from kerastl.errors import ArgumentError, DataError, KerastlWarning, ModelError


def fit(model: keras.Model, x=None, y=None, **fit_arguments) -> keras.callbacks.History:
    """Train as `model.fit` does, after checks that Keras leaves out.

    Args:
        model: a compiled model.
        x: what `model.fit` takes.
        y: what `model.fit` takes.
        **fit_arguments: all other arguments of `model.fit`.

    Returns:
        The `History` of `model.fit`.

    Raises:
        CompileError: the model is not compiled, or its optimizer doesn't hold exactly the trainable variables.
        ArgumentError: nothing is trainable.
        DataError: images of another size than the model takes.
    """
    compiling.check_ready(model)
    _check_first_batch(model, x, y)
    return model.fit(x, y, **fit_arguments)


@dataclasses.dataclass
class TransferResult:
    """What `transfer_learn` did.

    Attributes:
        head: the `History` of the head phase.
        fine_tune: the `History` of the second phase, or `None` when it was not run.
        best_phase: "head" or "fine_tune", or "start" when neither improved on the model as it came.
        best_epoch: the best epoch, counted from 1 within its phase; 0 for "start".
        best_value: the monitored value there, or `None` when nothing was measured.
        monitor: name of the monitored value.
        seconds: wall-clock seconds of each phase.
    """

    head: keras.callbacks.History
    fine_tune: keras.callbacks.History | None
    best_phase: str
    best_epoch: int
    best_value: float | None
    monitor: str
    seconds: dict[str, float]

    def __str__(self) -> str:
        value = "nothing measured" if self.best_value is None else f"{self.monitor} {self.best_value:.4f}"
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"best: {value} in epoch {self.best_epoch} of {self.best_phase!r} ({phases})"

    __repr__ = __str__


def train_head(
    model: keras.Model,
    train,
    validation,
    *,
    epochs: int = 10,
    learning_rate=1e-3,
    callbacks=(),
    class_weight=None,
    monitor: str = "val_loss",
    batch_size: int | None = None,
    verbose="auto",
    backbone: str | None = None,
) -> keras.callbacks.History:
    """Freeze the backbone, train the head, and keep the best weights, in place.

    A compile that the model has is kept, but for the learning rate; without one it is Adam and the loss that head and
    labels call for (sparse or categorical cross-entropy, binary for one sigmoid unit), with accuracy.

    Args:
        model: a classifier, flat or nested.
        train: a `(x, y)` or `(x, y, sample_weight)` tuple, a `tf.data.Dataset`, or a `keras.utils.PyDataset`. Labels are
            integers or one-hot.
        validation: the same, or `None`: then the last weights are kept, as there is nothing to judge them by.
        epochs: at most so many passes over the data.
        learning_rate: a float or a Keras schedule; 1e-3 is Adam's default and that of the Keras guide.
        callbacks: Keras callbacks, such as `early_stopping()`.
        class_weight: `None`, a dictionary from class index to weight, or "balanced".
        monitor: what decides which weights are the best.
        batch_size: for arrays; 32 when nothing is said, as in `fit`.
        verbose: as in `fit`.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.

    Returns:
        The `History`, with `.epoch_seconds`, `.best_epoch` (from 1; 0: the starting state), `.best_value`, `.monitor` and
        `.diverged` (`None`, or where the loss became NaN; training stops there).

    Raises:
        ArgumentError, DataError, ModelError: arguments, labels or a model that can't be used.
    """
    phase = _Phase(model, train, validation, epochs, callbacks, class_weight, monitor, batch_size, verbose)
    freezing.freeze(model, backbone=backbone)
    phase.compile(learning_rate)
    return phase.run()


def fine_tune(
    model: keras.Model,
    train,
    validation,
    *,
    epochs: int = 5,
    learning_rate=None,
    callbacks=(),
    class_weight=None,
    last_blocks: int | None = None,
    last_layers: int | None = None,
    from_layer: str | None = None,
    fraction: float | None = None,
    batch_norm: bool = False,
    monitor: str = "val_loss",
    batch_size: int | None = None,
    verbose="auto",
    backbone: str | None = None,
) -> keras.callbacks.History:
    """Thaw the end of the backbone, train at a low rate, and keep the best weights, in place; never a worse model.

    BatchNorm layers stay frozen unless `batch_norm=True`; see `unfreeze`.

    Args:
        model: a classifier whose head is trained already.
        train: as in `train_head`.
        validation: as in `train_head`.
        epochs: at most so many passes over the data.
        learning_rate: `None` for a tenth of the last rate, falling to 0 by a cosine (Loshchilov and Hutter, 2017); a
            float or a Keras schedule is taken as it is.
        callbacks: Keras callbacks, fresh ones.
        class_weight: as in `train_head`.
        last_blocks, last_layers, from_layer, fraction, batch_norm: as in `unfreeze`; at most one of the first four. With
            none of them, what is thawed already is trained.
        monitor, batch_size, verbose, backbone: as in `train_head`.

    Returns:
        The `History`, as `train_head` returns it.

    Raises:
        ArgumentError: nothing but the head is trainable; and what `unfreeze` raises.
        DataError, ModelError: data or a model that can't be used.
    """
    choice = {"last_blocks": last_blocks, "last_layers": last_layers, "from_layer": from_layer, "fraction": fraction}
    phase = _Phase(model, train, validation, epochs, callbacks, class_weight, monitor, batch_size, verbose)
    _thaw(model, choice, batch_norm, backbone)
    phase.compile(_fine_tuning_rate(phase, learning_rate))
    return phase.run()


def transfer_learn(
    model: keras.Model,
    train,
    validation,
    *,
    head_epochs: int = 10,
    fine_tune_epochs: int = 5,
    head_learning_rate=1e-3,
    learning_rate=None,
    last_blocks: int | None = None,
    last_layers: int | None = None,
    from_layer: str | None = None,
    fraction: float | None = None,
    batch_norm: bool = False,
    patience: int | None = 3,
    callbacks=(),
    class_weight=None,
    monitor: str = "val_loss",
    batch_size: int | None = None,
    verbose="auto",
    seed: int | None = None,
    backbone: str | None = None,
) -> TransferResult:
    """Train the head, then fine-tune the end of the backbone, with early stopping; keep the best weights of both.

    Args:
        model: a classifier, flat or nested.
        train: as in `train_head`.
        validation: as in `train_head`.
        head_epochs: at most so many epochs on the frozen backbone.
        fine_tune_epochs: at most so many epochs with the end of the backbone thawed; 0 leaves the phase out.
        head_learning_rate: rate of the first phase.
        learning_rate: rate of the second; `None` for a tenth of the first, falling to 0 by a cosine.
        last_blocks, last_layers, from_layer, fraction, batch_norm: as in `unfreeze`; `last_blocks=3` when none is given.
        patience: epochs without improvement after which a phase stops (3, as in the notes); `None` for never.
        callbacks: Keras callbacks, used in both phases.
        class_weight, monitor, batch_size, verbose, backbone: as in `train_head`.
        seed: makes the run repeatable on CPU; `None` leaves the random state alone.

    Returns:
        A `TransferResult`. The model holds the weights of the best epoch of the better phase.

    Raises:
        ArgumentError, DataError, ModelError: arguments, labels or a model that can't be used, before anything is trained.
    """
    choice = {"last_blocks": last_blocks, "last_layers": last_layers, "from_layer": from_layer, "fraction": fraction}
    if not any(value is not None for value in choice.values()):
        choice["last_blocks"] = min(3, len(freezing.list_blocks(model, backbone=backbone)))
    fine_tune_epochs = check_count("fine_tune_epochs", fine_tune_epochs, smallest=0)
    if patience is not None:
        check_count("patience", patience)
    _check_rates(head_learning_rate, learning_rate)
    freezing.unfreeze(model, **choice, batch_norm=batch_norm, backbone=backbone)  # what can't be used raises now
    if seed is not None:
        keras.utils.set_random_seed(check_count("seed", seed, smallest=0))
    settings = (class_weight, monitor, batch_size, verbose)

    def phase_of(epochs):
        stopping = [callback_module.early_stopping(patience, monitor=monitor)] if patience and validation is not None else []
        used = [*callback_module.fresh_callbacks(callbacks), *stopping]
        return _Phase(model, train, validation, epochs, used, *settings)

    first = phase_of(head_epochs)
    freezing.freeze(model, backbone=backbone)
    first.compile(head_learning_rate)
    head = first.run()
    second = None
    if fine_tune_epochs and head.diverged is None:
        second = phase_of(fine_tune_epochs)
        freezing.unfreeze(model, **choice, batch_norm=batch_norm, backbone=backbone)
        second.compile(_fine_tuning_rate(second, learning_rate))
        second.run(starting_value=head.best_value)
    return _result(head, second.history if second else None, monitor)


def _result(head, second, monitor) -> TransferResult:
    seconds = {"head": head.seconds}
    if second is not None:
        seconds["fine_tune"] = second.seconds
    if second is not None and second.best_epoch:
        best, phase = second, "fine_tune"
    else:
        best, phase = head, "head" if head.best_epoch else "start"
    return TransferResult(head, second, phase, best.best_epoch, best.best_value, monitor, seconds)


def _check_rates(*rates) -> None:
    for rate in rates:
        if rate is not None:
            compiling.check_rate("learning_rate", rate)


def _thaw(model, choice, batch_norm, backbone) -> None:
    if any(value is not None for value in choice.values()):
        freezing.unfreeze(model, **choice, batch_norm=batch_norm, backbone=backbone)
        return
    found = graph.find_backbone(model, backbone)
    trainable = {id(variable) for variable in model.trainable_variables}
    if not any(id(weight) in trainable for layer in found.layers for weight in layer.weights):
        raise ArgumentError(
            f"Nothing of the backbone {found.name!r} is trainable, so there is nothing to fine-tune. Say what to thaw: "
            "`last_blocks=3`, `last_layers=`, `from_layer=` or `fraction=`."
        )


def _fine_tuning_rate(phase, learning_rate):
    """Return the rate as given, or a cosine from a tenth of the last rate to 0 over the phase."""
    if learning_rate is not None:
        return learning_rate
    start = compiling.last_learning_rate(phase.model) / 10 if compiling.was_compiled(phase.model) else 1e-4
    batches = inputs.count_batches(phase.train, phase.batch_size)
    if batches is None:
        phase.callbacks.append(_cosine_by_epoch(start, phase.epochs))
        return start
    return keras.optimizers.schedules.CosineDecay(start, decay_steps=batches * phase.epochs)


def _cosine_by_epoch(start: float, epochs: int) -> keras.callbacks.LearningRateScheduler:
    """Return the cosine in steps of an epoch, for data whose number of batches isn't known."""
    return keras.callbacks.LearningRateScheduler(lambda epoch, _: start * (1 + math.cos(math.pi * epoch / epochs)) / 2)


class _Phase:
    """One phase of training: everything checked first, then compiled, then run with the best weights restored."""

    def __init__(self, model, train, validation, epochs, callbacks, class_weight, monitor, batch_size, verbose):
        self.model, self.train, self.validation = model, train, validation
        self.epochs = check_count("epochs", epochs)
        self.batch_size = None if batch_size is None else check_count("batch_size", batch_size)
        self.callbacks, self.monitor, self.verbose = list(callbacks), monitor, verbose
        self.num_classes = outputs.count_classes(model)
        self.label_kind = self._check_data()
        self.class_weight = self._class_weights(class_weight)
        self.history = None

    def _check_data(self) -> str | None:
        kinds = {}
        for name, data in (("train", self.train), ("validation", self.validation)):
            if data is None and name == "train":
                raise DataError(f"`train` must hold images and labels. {received(train=data)}")
            if data is None:
                continue
            batch = _check_first_batch(self.model, data)
            pair = inputs.split_pair(data)
            labels = pair[1] if pair and hasattr(pair[1], "shape") else batch[1] if batch else None
            kinds[name] = None if labels is None else inputs.label_kind(labels, self.num_classes)
        if len(set(kinds.values()) - {None}) > 1:
            raise DataError(f"The labels of `train` and `validation` must be of one kind. {received(**kinds)}")
        return kinds["train"]

    def _class_weights(self, class_weight):
        if class_weight is None or isinstance(class_weight, dict):
            return class_weight
        check_choice("class_weight", class_weight, ["balanced"])
        labels = inputs.all_labels(self.train)
        if labels is None:
            raise DataError("`class_weight='balanced'` needs labels that can be counted; a generator's can't. Pass a dict.")
        return inputs.balanced_class_weight(labels, self.num_classes)

    def compile(self, learning_rate) -> None:
        _check_rates(learning_rate)
        if compiling.was_compiled(self.model):
            compiling.compile_again(self.model, learning_rate)
            return
        loss = _loss_for(self.model, self.label_kind)
        self.model.compile(keras.optimizers.Adam(learning_rate), loss=loss, metrics=["accuracy"])

    def run(self, starting_value: float | None = None):
        """Train; whatever happens, the model ends with the best weights so far."""
        start = time.perf_counter()
        compiling.check_ready(self.model)
        if starting_value is None:
            starting_value = self._measure()
        best = callback_module.BestWeights(self.monitor, starting_value, judged=self.validation is not None)
        watch, clock = callback_module.StopOnNaN(), callback_module.EpochClock()
        try:
            self.history = self._fit([watch, clock, *self.callbacks, best])
        finally:
            best.restore()
        self._describe(best, watch, clock, time.perf_counter() - start)
        return self.history

    def _measure(self) -> float | None:
        """Return the monitored value of the model as it is, on the validation data."""
        if self.validation is None:
            return None
        pair = inputs.split_pair(self.validation)
        arguments = dict(zip(("x", "y", "sample_weight"), pair or (self.validation,), strict=False))
        logs = self.model.evaluate(**arguments, batch_size=self.batch_size, verbose=0, return_dict=True)
        return logs.get(self.monitor.removeprefix("val_")) if self.monitor.startswith("val_") else None

    def _fit(self, callbacks):
        pair = inputs.split_pair(self.train)
        arguments = dict(zip(("x", "y", "sample_weight"), pair or (self.train,), strict=False))
        if inputs.is_tf_dataset(self.train):
            arguments["shuffle"] = False  # it shuffles itself, or not; Keras warns about its own default
        return self.model.fit(
            **arguments,
            validation_data=self.validation,
            epochs=self.epochs,
            batch_size=self.batch_size,
            class_weight=self.class_weight,
            callbacks=callbacks,
            verbose=self.verbose,
        )

    def _describe(self, best, watch, clock, seconds) -> None:
        history = self.history
        history.best_epoch, history.best_value, history.monitor = best.best_epoch, best.best_value, self.monitor
        history.epoch_seconds, history.diverged, history.seconds = clock.epoch_seconds, watch.diverged, seconds
        if self.validation is not None and self.monitor not in history.history and watch.diverged is None:
            names = ", ".join(sorted(history.history))
            raise ArgumentError(f"`monitor` must be one of the logged values: {names}. {received(monitor=self.monitor)}")
        if watch.diverged:
            kept = f"epoch {best.best_epoch}" if best.best_epoch else "the start"
            warnings.warn(
                f"The loss became NaN or infinite in {watch.diverged}; training stopped there, and the weights of {kept} "
                "are kept. Take a lower learning rate, or look for NaN in the images.",
                KerastlWarning,
                stacklevel=4,
            )


def _check_first_batch(model, x, y=None):
    batch = inputs.first_batch(x, y)
    if batch is not None and batch[0].ndim == 4:
        inputs.check_images(model, batch[0])
    return batch


def _loss_for(model, label_kind):
    """Return the loss that the head's last activation and the labels call for."""
    kind = outputs.output_kind(model)
    if kind is None:
        raise ModelError(
            f"The last activation of {model.name!r} is neither softmax, sigmoid nor linear, so no loss can be chosen for it. "
            "Compile the model with its loss first; it will be kept."
        )
    logits = kind == "logits"
    if outputs.main_output(model.output).shape[-1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=logits)
    if kind == "sigmoid":
        raise ModelError(
            "Several sigmoid units mean multi-label classification, which is out of scope. Use softmax for one label an image."
        )
    if label_kind == "one-hot":
        return keras.losses.CategoricalCrossentropy(from_logits=logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
