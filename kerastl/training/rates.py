"""How high a phase's learning rate starts, and how it falls."""

import math

import keras


def cosine_decay(start: float, batches: int | None, epochs: int) -> tuple:
    """Return a learning rate that falls from `start` to 0 along a cosine, for `compile`, and the callbacks that it needs.

    Where nobody knows the number of batches in an epoch, the rate falls from epoch to epoch, by a callback. Loshchilov and
    Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, without the restarts.
    """
    if batches is not None:
        return keras.optimizers.schedules.CosineDecay(start, decay_steps=max(batches * epochs, 1)), []

    def rate_of(epoch, _):
        return start * (1 + math.cos(math.pi * epoch / epochs)) / 2

    return start, [keras.callbacks.LearningRateScheduler(rate_of)]


def lower(rate: float) -> float:
    """Return the rate at which fine-tuning starts after `rate`: a tenth; the Keras guide's is 10 to 100 times lower."""
    return rate / 10
