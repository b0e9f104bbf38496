"""Several augmented versions of each image: the layers in front of the trunk, run with seeds that can be repeated."""

import itertools

import keras
import numpy as np

from kerastl import backend, keras_internals
from kerastl.models import graph


class Views:
    """Makes view `number` of a batch; view 0 is the plain image.

    Random flips alone are enumerated instead of drawn, so that the views differ: of an augmentation that flips both ways,
    four views are all there are. Everything else is drawn, with a seed made of the batch and the view, so that an
    extraction that was stopped goes on as if it had not been. `front` is the model that augments, and what stands before it.
    """

    def __init__(self, front: keras.Model | None, count: int, seed: int = 0):
        self._front, self.count, self._seed = front, count, seed
        self._flips = flips_of(front)
        layers = [] if front is None else keras_internals.flatten_layers(front)
        generators = (one for layer in layers for one in keras_internals.seed_generators(layer))
        self._generators = list(dict.fromkeys(generators))  # layers may share one
        states = {id(one.state) for one in self._generators}
        others = [one for one in ([] if front is None else front.variables) if id(one) not in states]
        self._given = list(zip(others, backend.in_this_process(others), strict=True))

    def make(self, images: np.ndarray, batch: int, number: int) -> np.ndarray:
        """Return view `number` of the images `(batch, height, width, 3)`, batch `batch` of the data."""
        if self._front is None:
            return images
        if number == 0:
            return self._run(images, training=False)
        if number < len(self._flips):
            rows, columns = self._flips[number]
            return self._run(np.ascontiguousarray(images[:, rows, columns]), training=False)
        draw = batch * self.count + number
        seeds = [(one, (self._seed + index, draw)) for index, one in enumerate(self._generators)]
        return self._run(images, training=True, seeds=seeds)

    def _run(self, images, training, seeds=()):
        if not training and all(map(graph.is_random, _operations(self._front))):
            return images  # such layers do nothing in inference mode
        states = [(one.state, keras.ops.convert_to_tensor(np.array(seed, "uint32"))) for one, seed in seeds]
        with keras.StatelessScope(self._given + states):  # the variables themselves stay as they are
            outputs = self._front(keras.ops.convert_to_tensor(images, "float32"), training=training)
        return np.asarray(keras.ops.convert_to_numpy(outputs))


def flips_of(front: keras.Model | None) -> list:
    """Return the flips that a front of `RandomFlip` layers alone can make, the plain image first: slices of height, width."""
    layers = _operations(front)
    if not layers or not all(type(layer) is keras.layers.RandomFlip for layer in layers):
        return []
    modes = " ".join(layer.mode for layer in layers)
    plain, backwards = slice(None), slice(None, None, -1)
    rows, columns = ([plain, backwards] if name in modes else [plain] for name in ("vertical", "horizontal"))
    return list(itertools.product(rows, columns))


def _operations(front) -> list:
    return [node.operation for node in graph.nodes_in_order(front) if not node.is_input] if front is not None else []
