"""Whether features tell anything about the labels: the Hilbert-Schmidt independence criterion against shuffled labels."""

import keras
import numpy as np

from kerastl.lab.gradients.running import batches, has_kernel, leaf_layers, run
from kerastl.models.outputs import main_index

SHUFFLES = 999

# More images make a surer verdict, and matrices that grow with their square
LARGEST_COUNT = 512
_LARGEST_FEATURES = 1024
_LAYERS = 6


def features_and_outputs(model: keras.Model, x, batch_size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Run a classifier and keep its main output, and what goes into some of its layers with kernels.

    Returns:
        By layer name `(count, features)` for the first, the last and up to four layers between, feature maps averaged
        over a coarse grid; and the main output, `(count, units)`.
    """
    paths = [path for path, layer in leaf_layers(model) if has_kernel(layer.weights)]
    places = np.linspace(0, len(paths) - 1, min(_LAYERS, len(paths))).round().astype(int)
    features = {paths[place]: [] for place in places}
    main = main_index(model)
    outputs = []
    for number, batch in enumerate(batches(x, batch_size)):

        def watch(operation, path, inputs, _, number=number):
            if path in features and len(features[path]) == number:  # a shared layer: its first run
                features[path].append(_flat(keras.ops.convert_to_numpy(inputs[0])))

        outputs.append(np.asarray(keras.ops.convert_to_numpy(run(model, batch, watch)[main]), "float64"))
    return {path: np.concatenate(parts) for path, parts in features.items() if parts}, np.concatenate(outputs)


def label_signal(features: dict[str, np.ndarray], labels: np.ndarray, seed: int) -> tuple[float, str]:
    """Test whether the features of any layer go with the labels.

    For each layer the Hilbert-Schmidt independence criterion (Gretton et al., "A kernel statistical test of
    independence", 2007) between its features and the classes, with a linear and with a Gaussian kernel (of the median
    distance), is compared with its values for shuffled labels, in their standard deviations. The largest of all counts;
    for every shuffling too, so that looking at several layers doesn't make noise look like signal.

    Args:
        features: `(count, features)` by layer name.
        labels: class indices, `(count,)`.
        seed: of the shufflings.

    Returns:
        The p-value, `1 / (SHUFFLES + 1)` at least, and the name of the layer whose input goes with the labels best.
    """
    kernels = {(name, kind): kernel for name, values in features.items() for kind, kernel in _kernels(values).items()}
    if not kernels:
        return 1.0, ""
    flat = np.stack([kernel.ravel() for kernel in kernels.values()], axis=1).astype("float32")
    classes = np.eye(labels.max() + 1)[labels]
    same_class = ((classes - classes.mean(axis=0)) @ (classes - classes.mean(axis=0)).T).astype("float32")
    generator = np.random.default_rng(seed)
    orders = [np.arange(len(labels)), *(generator.permutation(len(labels)) for _ in range(SHUFFLES))]
    strengths = np.stack([same_class[np.ix_(order, order)].ravel() @ flat for order in orders])
    deviations = strengths.std(axis=0)
    standardized = (strengths - strengths.mean(axis=0)) / np.where(deviations > 0, deviations, 1)
    largest = standardized.max(axis=1)
    best = list(kernels)[standardized[0].argmax()][0]
    return float((largest >= largest[0]).mean()), best


def _kernels(values) -> dict[str, np.ndarray]:
    """Return the centred kernel matrices of standardized features; none where all features are constant."""
    centred = values - values.mean(axis=0)
    deviations = centred.std(axis=0)
    used = deviations > 1e-6 * np.abs(values).max(initial=0)
    if not used.any():
        return {}
    scaled = centred[:, used] / deviations[used]
    linear = scaled @ scaled.T
    squares = np.diag(linear)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * linear, 0)
    gaussian = np.exp(-distances / max(np.median(distances), 1e-12))
    gaussian = gaussian - gaussian.mean(axis=0) - gaussian.mean(axis=1)[:, None] + gaussian.mean()
    return {"linear": linear / np.linalg.norm(linear), "gaussian": gaussian / np.linalg.norm(gaussian)}


def _flat(values) -> np.ndarray:
    """Return `(count, features)`: feature maps averaged over the finest grid of at most 8×8 that leaves few features."""
    values = np.asarray(values, "float64")
    if values.ndim != 4:
        return values.reshape(len(values), -1)
    if keras.config.image_data_format() == "channels_first":
        values = np.moveaxis(values, 1, -1)
    height, width, channels = values.shape[1:]
    grid = next(size for size in (8, 4, 2, 1) if size * size * channels <= _LARGEST_FEATURES or size == 1)
    for axis, length in ((1, height), (2, width)):
        edges = np.linspace(0, length, min(grid, length), endpoint=False).astype(int)
        values = np.add.reduceat(values, edges, axis=axis)
    return values.reshape(len(values), -1)
