"""Weights files of Keras: read as arrays by layer name, and nothing else.

Three layouts exist: the `.h5` of Keras 2 (and of `model.save("x.h5")` today), with a `layer_names` attribute; the
`.weights.h5` of Keras 3, with a group `vars` per layer that carries the layer's name; and `.keras`, a zip archive with
the second inside. The configuration of the model in a `.keras` or `.h5` file is never read: nothing in the file is run.
"""

import io
import itertools
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import keras
import numpy as np

from kerastl.checks import received
from kerastl.errors import WeightsUnavailableError
from kerastl.models import graph

SavedLayers = Mapping[str, list[h5py.Dataset]]

_IMAGENET_DEVIATIONS = (0.229, 0.224, 0.225)


def load_weight_file(model: keras.Model, source: Path | io.BytesIO, *, backbone: str, name: str) -> None:
    """Fill the backbone `model` in place from a `.weights.h5`, `.h5` or `.keras` file.

    The file may hold the backbone alone, the same network with its top, or a flat or nested classifier around it: the
    layers of `model` are looked up by name. A file without layer names must hold exactly this backbone. Raise
    `WeightsUnavailableError` unless all of it fits. `backbone` is its name in `list_backbones()`, `name` the file's path.
    """
    try:
        with _open_weights(source) as file:
            problems = _fill(model, file, source)
    except Exception as error:  # in a damaged file h5py raises OSError, RuntimeError, KeyError, ValueError and others
        raise WeightsUnavailableError(
            f"{Path(name).name} is not a readable Keras weights file: expected .weights.h5, .h5 or .keras. {error}. "
            f"{received(weights=name)}"
        ) from error
    if problems:
        more = f"; and {len(problems) - 3} more layers" if len(problems) > 3 else ""
        raise WeightsUnavailableError(
            f"{Path(name).name} does not fit the backbone {backbone}: {'; '.join(problems[:3])}{more}. The file must "
            f"come from the same network with the same options. {received(weights=name)}"
        )
    if backbone.startswith("efficientnet_b"):
        _fold_imagenet_scaling(model)


def assign_weights(model: keras.Model, saved: SavedLayers) -> list[str]:
    """Set every weight of `model` from `saved`, or none: return what is missing or has another shape.

    Layers that Keras named itself (`conv2d_17`) are numbered through by a counter that depends on what else was built
    in the process; these are matched by rank: the third `conv2d…` of the model is the third of the file.
    """
    layers = _weighted_layers(model)
    in_file = _by_rank(saved)
    by_rank = _by_rank(layer.name for layer in layers if _is_automatic(layer))
    renamed = {name: in_file.get(rank) for rank, name in by_rank.items()}
    found = {layer: saved.get(renamed.get(layer.name, layer.name)) for layer in layers}
    problems = []
    for layer, datasets in found.items():
        expected = [tuple(weight.shape) for weight in layer.weights]
        if datasets is None:
            problems.append(f"layer {layer.name!r} is not in the file")
        elif expected != (shapes := [tuple(dataset.shape) for dataset in datasets]):
            problems.append(f"layer {layer.name!r} has the shapes {expected}, in the file {shapes}")
    if problems:
        return problems
    for layer, datasets in found.items():
        layer.set_weights([np.asarray(dataset) for dataset in datasets])
        if hasattr(layer, "finalize_state"):  # Normalization keeps ready-made copies of its mean and variance
            layer.finalize_state()
    return []


def _fill(model: keras.Model, file: h5py.File, source: Path | io.BytesIO) -> list[str]:
    """Fill `model` by name, or as Keras does; return what does not fit.

    Keras fills the old layout by order, which is better where it holds exactly this network: its own ImageNet files have
    outdated names. In the new layout it goes by class and position, which a second branch in the model throws off.
    """
    is_keras_2 = "model_weights" in file or any(name.startswith("layer_names") for name in file.attrs)
    whole = not _leads_out(file)
    if is_keras_2 and whole and _load_as_keras_does(model, source):
        return []
    datasets = {}

    def collect(name, node):  # links that lead out of the file are not followed
        if isinstance(node, h5py.Dataset) and not node.external:
            datasets[name] = node

    file.visititems(collect)
    saved = (_read_keras_2_layout if is_keras_2 else _read_keras_3_layout)(file, datasets)
    if foreign := _find_foreign_layers(model, saved):
        return [f"the file is of a larger network, with {foreign[0]!r} and {len(foreign) - 1} more layers"]
    problems = assign_weights(model, saved)
    return [] if problems and not is_keras_2 and whole and _load_as_keras_does(model, source) else problems


def _leads_out(file: h5py.File) -> bool:
    """Tell whether anything in the file lies in another file, into which Keras 3.13 follows it."""
    links = file.visititems_links(lambda name, link: True if isinstance(link, h5py.ExternalLink) else None)
    return bool(links or file.visititems(lambda name, node: getattr(node, "external", None) or None))


def _find_foreign_layers(model: keras.Model, saved: SavedLayers) -> list[str]:
    """Return the layers in the file that are named as the model's are, but are not among them.

    ResNet50's layers are all found in a file of ResNet101, with the same names and shapes: a network of the first halves of
    another's stages would be wrong silently. A top or a head has names of another kind.
    """
    counts = {layer.name: len(layer.weights) for layer in _weighted_layers(model) if not _is_automatic(layer)}
    kinds = {(re.sub(r"\d+", "#", name), count) for name, count in counts.items()}
    others = {name: len(found) for name, found in saved.items() if name not in counts}
    return [name for name, count in others.items() if (re.sub(r"\d+", "#", name), count) in kinds]


def _open_weights(source: Path | io.BytesIO) -> h5py.File:
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    return h5py.File(source, "r")


def _load_as_keras_does(model: keras.Model, source: Path | io.BytesIO) -> bool:
    """Try Keras's own loader, which wants a path and exactly the same network; say whether it was content."""
    try:
        model.load_weights(source)
    except Exception:  # Keras raises ValueError, KeyError, OSError and others; whatever it is, this way does not work
        return False
    return True


def _read_keras_2_layout(file: h5py.File, datasets: Mapping[str, h5py.Dataset]) -> SavedLayers:
    """Read `layer_names` and `weight_names`; the group of a nested model holds the weights of all its layers.

    Weights are called `conv1/kernel`, `nested_model/conv1/kernel`, in old files `conv1_W_1:0`, or `conv1_1/kernel:0` in
    the group `conv1`, because the second `conv1` of a process got another scope.
    """
    root = file.get("model_weights", file)
    layers = defaultdict(list)
    for group_name in _read_name_list(root, "layer_names"):
        group = root.get(group_name)
        for weight_name in _read_name_list(group, "weight_names") if isinstance(group, h5py.Group) else []:
            if dataset := datasets.get(f"{root.name}/{group_name}/{weight_name}".strip("/")):
                owner = [group_name, *weight_name.split("/")][-2]
                layers[group_name if _split_number(owner)[0] == group_name else owner].append(dataset)
    return layers


def _read_name_list(group: h5py.Group, attribute: str) -> list[str]:
    """Read a list of names from an attribute, which HDF5's limit may have cut into `attribute0`, `attribute1`, …"""
    keys = [key for key in group.attrs if re.fullmatch(rf"{attribute}\d*", key)]
    pieces = [group.attrs[key] for key in sorted(keys, key=lambda key: (len(key), key))]
    return [name.decode("utf-8") if isinstance(name, bytes) else str(name) for piece in pieces for name in piece]


def _read_keras_3_layout(file: h5py.File, datasets: Mapping[str, h5py.Dataset]) -> SavedLayers:
    """Read the groups `…/vars` with a layer's name (Keras writes it since 3.10), but the optimizer's and ambiguous ones."""
    groups = defaultdict(dict)
    for path, dataset in datasets.items():
        group, _, index = path.rpartition("/")
        if group.endswith("vars") and index.isdigit() and not path.startswith("optimizer"):
            groups[group][int(index)] = dataset
    named = [(file[group].attrs.get("name"), [found[key] for key in sorted(found)]) for group, found in groups.items()]
    counts = Counter(name for name, _ in named)
    return {name: found for name, found in named if name and counts[name] == 1}


def _weighted_layers(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in graph.leaf_layers(model) if layer.weights]


def _is_automatic(layer: keras.layers.Layer) -> bool:
    return _split_number(layer.name)[0].replace("_", "") == type(layer).__name__.lower()


def _by_rank(names: Iterable[str]) -> dict[tuple[str, int], str]:
    """Return names by stem and rank: `conv2d_5` and `conv2d_17` are `("conv2d", 0)` and `("conv2d", 1)`."""
    groups = itertools.groupby(sorted(names, key=_split_number), key=lambda name: _split_number(name)[0])
    return {(stem, rank): name for stem, same in groups for rank, name in enumerate(same)}


def _split_number(name: str) -> tuple[str, int]:
    """Split `conv2d_17` into `("conv2d", 17)` and `conv2d` into `("conv2d", 0)`."""
    match = re.fullmatch(r"(.+?)(?:_(\d+))?", name)
    return match[1], int(match[2] or 0)


def _fold_imagenet_scaling(model: keras.Model) -> None:
    """Make an EfficientNet (version 1) filled from a file see pixels as the one did that the file was saved from.

    ImageNet's have standard deviations where `Normalization` wants variances; only with `weights="imagenet"` does Keras make
    up for it, by another `Rescaling` layer (tensorflow/tensorflow #49930). Squared deviations give the same function.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            mean, variance, *rest = layer.get_weights()
            if np.allclose(variance, _IMAGENET_DEVIATIONS, atol=1e-6):
                layer.set_weights([mean, np.square(variance), *rest])
                layer.finalize_state()
