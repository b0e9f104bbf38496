"""Callbacks that fine-tuning needs: early stopping with sane defaults, and what our fit functions put beside them."""

import math
import time

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError

_LARGER_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "fbeta", "iou", "r2", "sensitivity", "specificity")
_LARGER_IS_BETTER += ("correlation", "similarity")


def early_stopping(
    patience: int = 3, *, monitor: str = "val_loss", min_delta: float = 0.0
) -> keras.callbacks.EarlyStopping:
    """Return a fresh `EarlyStopping` that restores the best weights, its direction told from the monitored name.

    Make a new one for every phase: in Keras 3.11 to 3.14 a reused one keeps the best value of the phase before.

    Args:
        patience: epochs without improvement after which training stops.
        monitor: name in the training logs; of a model with several outputs "val_loss" is the total.
        min_delta: smallest change that counts as improvement.

    Raises:
        ArgumentError: a negative patience or `min_delta`.

    Example:
        >>> stop = kerastl.early_stopping(patience=2, monitor="val_accuracy")
        >>> stop.mode, stop.restore_best_weights
        ('max', True)
    """
    if not (isinstance(min_delta, (int, float)) and min_delta >= 0 and math.isfinite(min_delta)):
        raise ArgumentError(f"`min_delta` must be a number of at least 0. {received(min_delta=min_delta)}")
    return keras.callbacks.EarlyStopping(
        monitor=monitor,
        patience=check_count("patience", patience, smallest=0),
        min_delta=min_delta,
        mode=direction(monitor),
        restore_best_weights=True,
    )


def direction(monitor: str) -> str:
    """Return "max" for a monitored name such as `val_accuracy`, where larger is better, else "min"."""
    name = monitor.removeprefix("val_").lower()
    is_loss = "loss" in name or "error" in name
    return "max" if not is_loss and any(word in name for word in _LARGER_IS_BETTER) else "min"


def is_better(value: float, best: float | None, mode: str) -> bool:
    """Tell whether a monitored value beats the best so far; NaN never does, and anything else beats NaN."""
    if value is None or not math.isfinite(value):
        return False
    if best is None or not math.isfinite(best):
        return True
    return value > best if mode == "max" else value < best


def as_list(callbacks) -> list:
    """Return a list of what `fit` takes as callbacks: `None`, one, several, or Keras's own `CallbackList`."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    callbacks = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else callbacks or ()
    if not isinstance(callbacks, (list, tuple)) or not all(
        isinstance(one, keras.callbacks.Callback) for one in callbacks
    ):
        raise ArgumentError(f"`callbacks` must be Keras callbacks. {received(callbacks=callbacks)}")
    return list(callbacks)


def fresh_callbacks(callbacks: list) -> list:
    """Return the callbacks for one more phase: early stopping forgets the one before, a checkpoint of the best must not."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.EarlyStopping):
            callback.best, callback.best_weights, callback.best_epoch = None, None, 0
    return callbacks


class BestWeights(keras.callbacks.Callback):
    """Keep the weights of the best epoch, the state before training included, which `restore` puts back.

    `starting_value` is the monitored value of that state, if it was measured. Without `judged` there is nothing to judge
    by, and the last weights with a finite loss count as the best. `best_epoch` counts from 1; 0 is the starting state.
    While one of the `others`, the callbacks beside this one, says by `settled = False` that it is still changing the model
    (gradual pruning), the last weights count as the best, and never those of the start.

    With `keep="last"` the last weights count as the best, with "average" the mean of those of the last third of the epochs
    (Izmailov et al., 2018), which `average` puts together; unless they are worse than the start: its validation accuracy was
    better, or at the same accuracy the monitored loss has more than doubled. Without accuracy the monitored value judges. Then
    the latest epoch that was not worse counts, and the start where there is none.
    """

    def __init__(
        self, monitor: str, starting_value: float | None = None, judged: bool = True, others=(), keep: str = "best"
    ):
        super().__init__()
        self.monitor, self.mode, self.judged, self.others, self.keep = monitor, direction(monitor), judged, others, keep
        self.best_epoch, self.best_value = 0, starting_value
        self.start = self.best_weights = self.sums = self.not_worse = ()
        self._not_worse_epoch, self._not_worse_value = 0, None
        self._unsettled, self._start_logs, self._last_logs, self._summed = False, {}, {}, 0

    def begin(self, logs: dict) -> None:
        """Note what validation says of the starting state."""
        self._start_logs, self.best_value = logs, logs.get(self.monitor)

    def on_train_begin(self, logs=None):
        self.start = self.best_weights = self._copy()
        self._unsettled = not self._settled()
        if self._unsettled:
            self.best_value, self._start_logs = None, {}

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        value, has_loss = logs.get(self.monitor), math.isfinite(logs.get("loss", math.nan))
        if not self._settled():
            # what was before is another model, also where this begins late
            self._unsettled, self._start_logs = True, {}
            self._keep(epoch, None)
        elif not self.judged or self.keep != "best":
            # the last weights are kept, unless a loss is no number
            if has_loss and (self._unsettled or math.isfinite(value or 0)):
                self._unsettled = False
                self._keep(epoch, None if value is None else float(value))
                self._add(epoch)
                self._last_logs = {name: float(one) for name, one in logs.items()}
                if self.keep != "best" and not self._is_worse():
                    self.not_worse = self.best_weights
                    self._not_worse_epoch, self._not_worse_value = self.best_epoch, self.best_value
        elif (self._unsettled and has_loss) or is_better(value, self.best_value, self.mode):
            self._unsettled = self._unsettled and not has_loss  # what was kept before is another model
            self._keep(epoch, None if value is None else float(value))

    def restore(self) -> None:
        put_back(self.best_weights)

    def average(self, measure) -> None:
        """After a whole training, put the average in place of the last weights where that is asked for; `measure()` it."""
        if self._summed > 1:
            self.best_weights = [(one, (total / self._summed).astype(total.dtype)) for one, total in self.sums]
            self.restore()
            self._last_logs = measure()
            self.best_value = self._last_logs.get(self.monitor, self.best_value)

    def settle(self) -> None:
        """After training, also one that was cut off: go back to better weights where the last are worse than the start."""
        if self.keep == "best" or not self.best_epoch or not self._is_worse():
            return
        self.best_epoch, self.best_value = self._not_worse_epoch, self._not_worse_value
        self.best_weights = self.not_worse
        if not self.best_epoch:
            self.best_weights, self.best_value = self.start, self._start_logs.get(self.monitor)

    def _is_worse(self) -> bool:
        """Tell whether the last epoch, or the average, is worse than the start."""
        accuracy, monitored = self._gain("val_accuracy"), self._gain(self.monitor)
        if accuracy is None:
            return monitored is not None and monitored < 0
        # at the same accuracy a somewhat higher loss only says that the model is surer of its mistakes
        is_lost = monitored is not None and monitored < -abs(self._start_logs[self.monitor])
        return accuracy < 0 or (accuracy == 0 and is_lost)

    def _gain(self, name: str) -> float | None:
        """Return by how much a logged value got better than it was at the start; `None` where it wasn't measured."""
        start, last = (logs.get(name) for logs in (self._start_logs, self._last_logs))
        if start is None or last is None:
            return None
        return start - last if direction(name) == "min" else last - start

    def _add(self, epoch: int) -> None:
        if self.keep == "average" and 3 * (epoch + 1) > 2 * (self.params or {}).get("epochs", 0):
            sums = [total for _, total in self.sums] or [0] * len(self.best_weights)
            self.sums = [(one, total + value) for (one, value), total in zip(self.best_weights, sums, strict=True)]
            self._summed += 1

    def _keep(self, epoch: int, value: float | None) -> None:
        self.best_epoch, self.best_value, self.best_weights = epoch + 1, value, self._copy()

    def _settled(self) -> bool:
        return all(getattr(one, "settled", True) for one in self.others)

    def _copy(self) -> list:
        return copies(changeable_weights(self.model))


def copies(variables) -> list:
    """Return `(variable, value)` for each variable, the values copied."""
    return [(one, np.array(keras.ops.convert_to_numpy(one))) for one in variables]


def put_back(weights) -> None:
    """Give variables the values of `copies`."""
    for variable, value in weights:
        variable.assign(value)


def changeable_weights(layer) -> list:
    """Return the weights that training can change: all those of layers that are trainable at every level."""
    if not layer.trainable:
        return []
    children = keras_internals.child_layers(layer)
    below = {id(weight) for child in children for weight in child.weights}
    own = [weight for weight in layer.weights if id(weight) not in below]
    return list({id(one): one for part in (own, *map(changeable_weights, children)) for one in part}.values())


class Watch(keras.callbacks.Callback):
    """Measure the seconds of every epoch, and stop where the loss is no finite number: `diverged` is "epoch 3, batch 17"."""

    every_batch = False  # several at once will do

    def __init__(self):
        super().__init__()
        self.epoch_seconds, self.diverged = [], None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._start = epoch, time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)) and self.diverged is None:
            self.diverged = f"epoch {self._epoch + 1}, batch {batch + 1}"
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        self.epoch_seconds.append(time.perf_counter() - self._start)
