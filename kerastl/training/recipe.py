"""The recipe: train the head on a frozen backbone, thaw its end, train on at a low rate, keep the best weights.

`train_head` and `fine_tune` are `freeze` or `unfreeze`, compile, `fit`, and restore the best weights, in that order and
nothing else; `transfer_learn` is one after the other, with the best weights kept across both.
"""

import dataclasses
import functools
import math
import time

import keras

from kerastl.checks import check_count
from kerastl.data import batches as inputs
from kerastl.errors import ArgumentError, ModelError
from kerastl.features.plan import choose_cuts
from kerastl.models import compiling, freezing, graph
from kerastl.training import callbacks as callback_module
from kerastl.training.fitting import fit
from kerastl.training.phases import Phase, Settings, frozen_part_once

__all__ = ["TransferResult", "fine_tune", "fit", "train_head", "transfer_learn"]


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
    cache="auto",
    views: int = 1,
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
        cache: run the frozen part once instead of in every epoch: "auto", `True`, `False`, a folder, or `CacheOptions`; see
            `kerastl.fit`.
        views: augmented versions kept of each training image; see `kerastl.fit`.
        monitor: what decides which weights are the best. With auxiliary heads it is the main output's: "val_loss", which
            Keras calls the total, means "val_predictions_loss".
        batch_size: for arrays; 32 when nothing is said, as in `fit`.
        verbose: as in `fit`.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.

    Returns:
        The `History`, with `.epoch_seconds`, `.best_epoch` (from 1; 0: the starting state), `.best_value`, `.monitor` and
        `.diverged` (`None`, or where the loss became NaN; training stops there).

    Raises:
        ArgumentError, DataError, ModelError: arguments, labels or a model that can't be used.
    """
    settings = Settings(model, train, validation, batch_size, class_weight, monitor, verbose, cache, views)
    phase = Phase(settings, epochs, callbacks)
    freezing.freeze(model, backbone=backbone)
    phase.compile(learning_rate)
    return _run_alone(phase)


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
    cache="auto",
    views: int = 1,
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
        cache, views, monitor, batch_size, verbose, backbone: as in `train_head`.

    Returns:
        The `History`, as `train_head` returns it.

    Raises:
        ArgumentError: nothing but the head is trainable; and what `unfreeze` raises.
        DataError, ModelError: data or a model that can't be used.
    """
    choice = {"last_blocks": last_blocks, "last_layers": last_layers, "from_layer": from_layer, "fraction": fraction}
    settings = Settings(model, train, validation, batch_size, class_weight, monitor, verbose, cache, views)
    phase = Phase(settings, epochs, callbacks)
    _thaw(model, choice, batch_norm, backbone)
    phase.compile(_fine_tuning_rate(phase, learning_rate))
    return _run_alone(phase)


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
    cache="auto",
    views: int = 1,
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
        cache, views: as in `train_head`. One pass over the images serves both phases.
        seed: makes the run repeatable on CPU; `None` leaves the random state alone.

    Returns:
        A `TransferResult`. The model holds the weights of the best epoch of the better phase.

    Raises:
        ArgumentError, DataError, ModelError: arguments, labels or a model that can't be used, before anything is trained.
    """
    choice = {"last_blocks": last_blocks, "last_layers": last_layers, "from_layer": from_layer, "fraction": fraction}
    if not any(value is not None for value in choice.values()):
        choice["last_blocks"] = min(3, len(freezing.list_blocks(model, backbone=backbone)))
    check_count("head_epochs", head_epochs)
    check_count("fine_tune_epochs", fine_tune_epochs, smallest=0)
    for rate in (head_learning_rate, learning_rate):
        if rate is not None:
            compiling.check_rate("learning_rate", rate)
    settings = Settings(model, train, validation, batch_size, class_weight, monitor, verbose, cache, views)
    stopping = None if patience is None or validation is None else check_count("patience", patience)
    if seed is not None:
        keras.utils.set_random_seed(check_count("seed", seed, smallest=0))

    def phase(epochs):
        return Phase(settings, epochs, ()) if epochs else None

    def fresh():
        own = [callback_module.early_stopping(stopping, monitor=settings.monitor)] if stopping else []
        return [*callback_module.fresh_callbacks(callbacks), *own]

    freeze = functools.partial(freezing.freeze, model, backbone=backbone)
    thaw = functools.partial(freezing.unfreeze, model, **choice, batch_norm=batch_norm, backbone=backbone)
    thaw()  # what can't be used raises now
    rates = (head_learning_rate, learning_rate)
    return _run_both(phase(head_epochs), phase(fine_tune_epochs), freeze, thaw, rates, fresh)


def _run_both(head, second, freeze, thaw, rates, fresh_callbacks) -> TransferResult:
    """Run the head phase and, where there is one and the head didn't diverge, the second; one pass serves both."""
    settings = head.settings
    cuts = _cuts_of_both(settings, thaw if second else None, freeze)
    both_cut = len(cuts or ()) == 2
    head.compile(rates[0])
    start = time.perf_counter()
    with frozen_part_once(settings, cuts, [head.epochs, second.epochs] if both_cut else [head.epochs]) as session:
        seconds = {} if session is None else {"extraction": time.perf_counter() - start}
        head.callbacks = fresh_callbacks()
        head.run(session, cuts[-1] if session else None)
        if second is None or head.history.diverged is not None:
            return _result(head.history, None, settings.monitor, seconds)
        thaw()
        second.callbacks = fresh_callbacks()
        second.compile(_fine_tuning_rate(second, rates[1]))
        second.run(*((session, cuts[0]) if session and both_cut else (None, None)))
    return _result(head.history, second.history, settings.monitor, seconds)


def _run_alone(phase: Phase):
    with frozen_part_once(phase.settings, None, [phase.epochs]) as session:
        return phase.run(session, None if session is None else session.cuts[0])


# A second phase whose trunk holds less than this of the work is trained as it is: its features would be large, and spare
# little.
_SMALLEST_SHARE = 0.25


def _cuts_of_both(settings, thaw, freeze):
    """Return the cuts of both phases, earliest first, leaving the model frozen; `None` where there are none to plan with.

    Only the head's is returned where the second phase has none that is worth it.
    """
    if settings.options is None:
        freeze()
        return None
    train, validation = settings.rows()
    later = ()
    try:
        if thaw is not None:
            later = choose_cuts(settings.model, train, validation, settings.views, settings.options)
        freeze()
        first = choose_cuts(settings.model, train, validation, settings.views, settings.options)
    except ModelError:
        freeze()
        return None  # the plan meets the same error, and says so
    if later and first and later[0].trunk_macs >= _SMALLEST_SHARE * later[0].model_macs:
        return (*later, *first)
    return first or None


def _result(head, second, monitor, seconds) -> TransferResult:
    seconds = {**seconds, "head": head.seconds}
    if second is not None:
        seconds["fine_tune"] = second.seconds
    if second is not None and second.best_epoch:
        best, phase = second, "fine_tune"
    else:
        best, phase = head, "head" if head.best_epoch else "start"
    return TransferResult(head, second, phase, best.best_epoch, best.best_value, monitor, seconds)


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
    batches = inputs.count_batches(phase.settings.train, phase.settings.batch_size)
    if batches is None:
        phase.callbacks.append(_cosine_by_epoch(start, phase.epochs))
        return start
    return compiling.falling_rate(start, batches, phase.epochs)


def _cosine_by_epoch(start: float, epochs: int) -> keras.callbacks.LearningRateScheduler:
    """Return the cosine in steps of an epoch, for data whose number of batches isn't known."""
    return keras.callbacks.LearningRateScheduler(lambda epoch, _: start * (1 + math.cos(math.pi * epoch / epochs)) / 2)
