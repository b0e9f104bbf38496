"""Vectors for probes: what every block of a backbone makes of an image, averaged over height and width, in one pass."""

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.data.batches import Rows, read_ahead
from kerastl.errors import DataError
from kerastl.features.extraction import padded, progress_bar
from kerastl.features.litert import choose_engine
from kerastl.models import graph
from kerastl.models.flatten import connect, flatten_model


def pooled_trunk(model: keras.Model, *, blocks: bool = True, backbone: str | None = None) -> tuple[keras.Model, list]:
    """Return a model from images to a vector `(batch, channels)` for each block, and the blocks' names; it shares the layers.

    The last is the backbone's output, under the name of its last block; alone without `blocks`. A vector is the mean over
    height and width of a block's end, `(batch, height, width, channels)`, or over tokens, `(batch, tokens, channels)`.
    `backbone` is as in `graph.find_backbone`. Raises `ModelError` where there is no backbone.
    """
    found, flat = graph.find_backbone(model, backbone), flatten_model(model)
    names = {id(layer): block.name for block in graph.find_blocks(found) for layer in block.layers}
    last, ends = keras_internals.node_of(found.output).operation, {}
    for node in graph.nodes_in_order(flat):
        name = names.get(id(node.operation))
        if name and len(node.outputs) == 1 and graph.has_grid(node.outputs[0]):
            ends[name] = node.outputs[0]
        if node.operation is last:
            output = node.outputs[0]
    ends = {name: tensor for name, tensor in ends.items() if blocks and tensor is not output}
    ends[names.get(id(last), found.name)] = output
    return connect(flat.inputs, list(map(_pooled, ends.values())), "pooled_trunk"), list(ends)


def _pooled(tensor):
    if len(tensor.shape) == 2:
        return tensor
    kind = keras.layers.GlobalAveragePooling2D if graph.has_grid(tensor) else keras.layers.GlobalAveragePooling1D
    return kind(dtype="float32")(tensor)


def pooled_features(trunk: keras.Model, rows: Rows, *, mirrored: bool = False, part: str = "train", verbose: int = 0):
    """Run a `pooled_trunk` over all images, in inference mode; return vectors, labels and sample weights (or `None`).

    The vectors are a list of float32 `(images, views, channels)`, one for each output; the second view of an image is its
    mirror image, with `mirrored`. Raises `DataError` where there are no images.
    """
    views, count = 1 + mirrored, rows.count or (rows.batch_count or 0) * rows.batch_size
    engine = choose_engine(trunk, count * views or None, verbose=verbose)
    bar, done, parts = progress_bar(rows.count, 0, part, verbose), 0, []
    for images, labels, weights in read_ahead(rows.batches(0, engine.batch)):
        seen = [images, images[:, :, ::-1]][:views]
        outputs = [engine(padded(np.ascontiguousarray(one), engine.batch)) for one in seen]
        pooled = [np.stack(one, axis=1)[: len(images)] for one in zip(*outputs, strict=True)]
        parts.append((pooled, labels, weights))
        bar.update(done := done + len(images), finalize=False)
    if not parts:
        raise DataError(f"There are no images in the {part} data.")
    bar.update(done, finalize=True)
    features, labels, weights = zip(*parts, strict=True)
    weights = None if weights[0] is None else np.concatenate(weights)
    return [np.concatenate(one) for one in zip(*features, strict=True)], np.concatenate(labels), weights
