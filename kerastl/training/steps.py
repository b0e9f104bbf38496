"""How many training steps one call runs: many where a step is small and no callback asks for each batch."""

import keras

from kerastl import backend
from kerastl.training.callbacks import as_list

_MOST, _FEWEST = 32, 8
# Multiply-accumulates of a step on a CPU up to which the call around it counts: a few milliseconds of work
_SMALL_STEP = 5e8
_OF_A_BATCH = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")


def steps_in_one_call(cut, batches: int, batch_size: int, callbacks=()) -> int:
    """Return how many steps on the features of a cut to run in one call, by the work of one; 1 where each is a call.

    A number that leaves few batches of an epoch over, for those run one by one on JAX. On PyTorch Keras has no such call.
    """
    work = 3 * batch_size * (cut.model_macs - cut.trunk_macs)
    small = backend.has_accelerator() or work <= _SMALL_STEP
    if not small or keras.backend.backend() == "torch" or any(map(wants_batches, as_list(callbacks))):
        return 1
    whole = max(batches - 1, 1)  # the last one may be smaller
    return min(range(min(_FEWEST, whole), min(_MOST, whole) + 1), key=lambda count: (whole % count, -count))


def wants_batches(callback) -> bool:
    """Tell whether a callback does something at each batch; Keras's own may be set to do so after an epoch alone."""
    if getattr(callback, "every_batch", True) is False:
        return False
    if isinstance(callback, (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore)):
        return callback.save_freq != "epoch"
    usual = keras.callbacks.Callback
    return any(getattr(getattr(callback, name), "__func__", None) is not getattr(usual, name) for name in _OF_A_BATCH)
