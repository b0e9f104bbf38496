"""How high a phase's learning rate is, how it rises and falls, and how much lower it is for early blocks."""

import math

import keras

from kerastl.models import graph

HEAD_RATE = 1e-3  # Adam's default, and that of the Keras guide
RECIPE_RATE = 3e-4  # the peak at which the recipe's Adam fine-tunes; benchmarks/README.md has what others give


def cosine_decay(peak: float, batches: int | None, epochs: int) -> tuple:
    """Return a learning rate that rises to `peak` and falls to 0 along a cosine, for `compile`, and the callbacks it needs.

    It rises for one epoch, of few for a fifth of them: Adam's first steps know little of the gradients' size (Goyal et al.,
    2017). Where nobody knows the number of batches in an epoch, the rate changes from epoch to epoch, by a callback.
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, without the restarts.
    """
    warm_up = min(1, epochs / 5)
    if batches is not None:
        steps = max(batches * epochs, 2)
        rising = max(int(batches * warm_up), 1)
        schedule = keras.optimizers.schedules.CosineDecay(
            peak / rising, decay_steps=max(steps - rising, 1), warmup_target=peak, warmup_steps=rising
        )
        return schedule, []

    def rate_of(epoch, _):
        return peak * (1 + math.cos(math.pi * epoch / epochs)) / 2

    return peak, [keras.callbacks.LearningRateScheduler(rate_of)]


def block_factors(model: keras.Model, layer_decay: float, backbone: str | None = None) -> dict[int, float]:
    """Return `{id(variable): factor}`: 1 in the head, `layer_decay` in the last block, its square in the one before, and on.

    Howard and Ruder, "Universal language model fine-tuning for text classification", 2018; their factor is 1/2.6 a layer.
    """
    blocks = graph.find_blocks(graph.find_backbone(model, backbone))
    return {
        id(variable): layer_decay**depth
        for depth, block in enumerate(reversed(blocks), 1)
        for layer in block.layers
        for variable in layer.variables
    }


def lower(rate: float) -> float:
    """Return the rate at which fine-tuning starts after `rate`: a tenth; the Keras guide's is 10 to 100 times lower."""
    return rate / 10
