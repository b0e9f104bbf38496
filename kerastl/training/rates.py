"""How high a phase's learning rate starts, and how it falls."""

import math

import keras

from kerastl.models import compiling


def cosine_decay(start: float, batches: int | None, epochs: int) -> tuple:
    """Return a learning rate that falls from `start` to 0 along a cosine, and the callbacks that it needs.

    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, without the restarts.

    Args:
        start: the rate of the first step.
        batches: in an epoch; `None` where nobody knows: the rate then falls from epoch to epoch, by a callback.
        epochs: of the phase.

    Returns:
        `(rate, callbacks)`: a schedule or a float for `compile`, and a list that is empty or holds the callback.
    """
    if batches is not None:
        return keras.optimizers.schedules.CosineDecay(start, decay_steps=max(batches * epochs, 1)), []

    def rate_of(epoch, _):
        return start * (1 + math.cos(math.pi * epoch / epochs)) / 2

    return start, [keras.callbacks.LearningRateScheduler(rate_of)]


def fine_tuning_rate(model, learning_rate, batches: int | None, epochs: int) -> tuple:
    """Return fine-tuning's learning rate and the callbacks that it needs.

    Args:
        model: before it is compiled for the phase.
        learning_rate: a float or a schedule, taken as it is; `None`: a cosine decay to 0 from a tenth of the last rate, or
            from 1e-4 where the model was never compiled. The Keras guide fine-tunes 10 to 100 times lower than it trains
            the head.
        batches, epochs: as in `cosine_decay`.
    """
    if learning_rate is not None:
        return learning_rate, []
    start = lower(compiling.last_learning_rate(model)) if compiling.was_compiled(model) else 1e-4
    return cosine_decay(start, batches, epochs)


def lower(rate: float) -> float:
    """Return the rate at which fine-tuning starts after a phase at `rate`: a tenth."""
    return rate / 10
