"""Magnitude pruning: set the smallest weights to zero, keep them there while the rest trains, and see what it brings.

It makes a file smaller once it is zipped. It makes nothing faster: the zeros are multiplied like all other numbers. The
measurements stand in docs/pruning.md.
"""

import dataclasses
import os
import warnings
import zlib
from collections.abc import Iterable

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.checks import check_choice, check_fraction, nearest, received
from kerastl.errors import ArgumentError, DataError, KerastlWarning, ModelError
from kerastl.models import graph
from kerastl.tables import html_table, text_table

SCOPES = ("layer", "global")

# What is pruned when nothing is said. TensorFlow's Model Optimization Toolkit leaves depthwise kernels out as well.
PRUNED_LAYERS = (keras.layers.Conv2D, keras.layers.Conv2DTranspose, keras.layers.SeparableConv2D, keras.layers.Dense)

# The masks of a gradual pruning are set anew so many times. Zhu and Gupta (2017) do it every 100 to 1000 steps, of
# trainings that are far longer than a fine-tuning
_MASK_UPDATES = 50


def prune(model: keras.Model, sparsity: float, *, layers=None, scope: str = "layer") -> keras.Model:
    """Set the weights of smallest magnitude to zero, in place: the part `sparsity` of the chosen kernels.

    Frozen layers are pruned too. The accuracy falls; train on with `kerastl.keep_pruned()` among the callbacks, or the
    first step of training fills the zeros up. `kerastl.gradual_pruning` prunes while it trains, which costs less accuracy at
    high sparsities. Weights that are zero already stay zero.

    Biases and BatchNorm are never pruned. Neither are depthwise kernels, unless they are named: they are few (3 % of
    MobileNetV2's weights), and each has nine weights or so to do its work with.

    Args:
        model: a built model, flat, nested or Sequential, compiled or not.
        sparsity: part of the chosen kernels' weights that will be zero, in [0, 1).
        layers: which kernels: a name of a layer or block (`list_blocks` shows those), a layer class, or a list of both;
            default: all convolutions that are not depthwise, and all dense layers, the head's included.
        scope: `"layer"`: each kernel by itself reaches `sparsity` (as in Zhu and Gupta, 2017). `"global"`: the smallest of
            all kernels together, so that some layers lose more and others less.

    Returns:
        The same model. `kerastl.sparsity_report` tells what was done.

    Raises:
        ArgumentError: `sparsity`, `layers` or `scope` can't be used.
        ModelError: the model has no kernel to prune.

    Warns:
        KerastlWarning: nothing is left of a kernel, as can happen with `scope="global"`.
    """
    check_fraction("sparsity", sparsity, zero=True, one=False)
    check_choice("scope", scope, SCOPES)
    kernels = _chosen_kernels(model, layers)
    masks = _masks([_as_array(kernel) for kernel in kernels], sparsity, scope)
    _apply(kernels, masks)
    emptied = [kernel.name for kernel, mask in zip(kernels, masks, strict=True) if not mask.any()]
    if emptied:
        warnings.warn(
            f'Nothing is left of {", ".join(map(repr, emptied))}. Take a lower sparsity, `scope="layer"`, or other `layers`.',
            KerastlWarning,
            stacklevel=2,
        )
    return model


def keep_pruned(*, layers=None) -> keras.callbacks.Callback:
    """Return a callback that keeps zero, through a training, what is zero in the chosen kernels when it starts.

    For `kerastl.fit`, `fine_tune`, `transfer_learn` and `model.fit`, cached or not, on every backend. The zeros are put
    back after every step (every execution, where `steps_per_execution` is more than one).

    Args:
        layers: as in `prune`, and the same as there.

    Warns:
        KerastlWarning: at the start of the training, when nothing is zero.
    """
    return _Pruning(None, layers, "layer", 1.0)


def gradual_pruning(
    sparsity: float, *, layers=None, scope: str = "layer", ramp: float = 0.5
) -> keras.callbacks.Callback:
    """Return a callback that prunes while the model trains: more and more weights, then recovery at the full sparsity.

    The sparsity rises from what it is at the start, quickly first and slowly at the end, by
    s(p) = s_final + (s_start - s_final) · (1 - p)³, p going from 0 to 1 over the ramp (Zhu and Gupta, "To prune, or not to
    prune: exploring the efficacy of pruning for model compression", 2017, equation 1). A weight that was pruned stays zero.

    Only what the training changes is pruned, so that features stored of the frozen part stay true; use `prune` for the
    rest. With `kerastl.fine_tune` the best weights are looked for among the epochs at the full sparsity. In `kerastl.fit`
    and `model.fit` put it last among the callbacks, and use neither early stopping nor checkpoints of a best model, which
    would prefer the epochs before.

    Args:
        sparsity: the part of the chosen kernels' weights that is zero in the end, in [0, 1).
        layers, scope: as in `prune`; a frozen layer can't be named.
        ramp: part of the training over which the sparsity rises, in (0, 1]. With data of unknown length, whose batches
            can't be counted beforehand, it rises from epoch to epoch.

    Raises:
        ArgumentError: an argument that can't be used; at the start of the training also `layers` that are frozen.

    Warns:
        KerastlWarning: when the training ends before the sparsity is reached; and when another callback has put back weights
            from before, which are pruned then without having been trained so.
    """
    check_fraction("sparsity", sparsity, zero=True, one=False)
    check_fraction("ramp", ramp)
    check_choice("scope", scope, SCOPES)
    return _Pruning(float(sparsity), layers, scope, float(ramp))


def cubic_sparsity(start: float, final: float, progress: float) -> float:
    """Return the sparsity at a progress of 0 to 1 along the schedule of Zhu and Gupta (2017), equation 1."""
    remaining = 1.0 - min(max(progress, 0.0), 1.0)
    return final + (start - final) * remaining**3


@dataclasses.dataclass(frozen=True)
class SparsityRow:
    """How much of one kernel is zero."""

    name: str
    kind: str
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights


@dataclasses.dataclass(frozen=True)
class SparsityReport:
    """How much of each kernel is zero; prints as a table, and renders as one in a notebook.

    Attributes:
        rows: one `SparsityRow` per kernel.
        model_weights: all numbers that the model holds, biases and BatchNorm included.
    """

    rows: tuple[SparsityRow, ...]
    model_weights: int

    @property
    def zeros(self) -> int:
        return sum(row.zeros for row in self.rows)

    @property
    def sparsity(self) -> float:
        """Part of the listed kernels' weights that is zero."""
        return self.zeros / sum(row.weights for row in self.rows)

    @property
    def model_sparsity(self) -> float:
        """Part of all the model's weights that the listed kernels' zeros are."""
        return self.zeros / self.model_weights

    def to_rows(self) -> list[dict]:
        """Return the rows as dictionaries, for pandas."""
        return [{**dataclasses.asdict(row), "sparsity": row.sparsity} for row in self.rows]

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        weights = sum(row.weights for row in self.rows)
        body = [[row.name, row.kind, f"{row.weights:,}", f"{row.zeros:,}", f"{row.sparsity:.1%}"] for row in self.rows]
        body.append(["all of these", "", f"{weights:,}", f"{self.zeros:,}", f"{self.sparsity:.1%}"])
        return ["layer", "kind", "weights", "zeros", "sparsity"], body

    def _title(self) -> str:
        return f"{self.model_sparsity:.1%} of the model's {self.model_weights:,} weights are zeros of these kernels"

    def __str__(self) -> str:
        return text_table(*self._cells(), right={2, 3, 4}, title=self._title(), total=True)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(*self._cells(), right={2, 3, 4}, title=self._title())


def sparsity_report(model: keras.Model, *, layers=None) -> SparsityReport:
    """Tell how much of each kernel is exactly zero.

    Args:
        model: a built model.
        layers: as in `prune`.

    Raises:
        ArgumentError, ModelError: as `prune`.
    """
    kernels = _chosen_kernels(model, layers)
    rows = []
    for kernel in kernels:
        values = _as_array(kernel)
        rows.append(SparsityRow(kernel.name, kernel.kind, values.size, int((values == 0).sum())))
    return SparsityReport(tuple(rows), model.count_params())


def zipped_size(source) -> int:
    """Return how many bytes something takes once it is zipped (DEFLATE at its highest level, the container left out).

    Args:
        source: a model, of which all weights count, by their dtype and in their order; or the path of a file, such as a
            .tflite.

    Raises:
        DataError: there is no such file.
    """
    packer = zlib.compressobj(level=9)
    return sum(len(packer.compress(piece)) for piece in _pieces(source)) + len(packer.flush())


def _pieces(source):
    if isinstance(source, keras.Model):
        for weight in source.weights:
            yield np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes()
        return
    if not os.path.isfile(source):
        raise DataError(f"Expected a model or the path of a file. {received(source=source)}")
    with open(source, "rb") as file:
        while piece := file.read(1 << 20):
            yield piece


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """One weight to prune, with the layer that it belongs to."""

    name: str
    kind: str
    variable: object


def _as_array(kernel: _Kernel) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(kernel.variable))


def _masks(arrays, sparsity: float, scope: str) -> list[np.ndarray]:
    """Return for each array where it stays: not at its zeros, nor at its smallest magnitudes up to the sparsity."""
    if scope == "layer":
        return [_mask(array, sparsity) for array in arrays]
    together = _mask(np.concatenate([array.ravel() for array in arrays]), sparsity)
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [part.reshape(array.shape) for part, array in zip(np.split(together, ends), arrays, strict=True)]


def _mask(array, sparsity: float) -> np.ndarray:
    magnitudes = np.abs(array).ravel()
    kept = magnitudes > 0
    count = round(sparsity * magnitudes.size)
    if count:
        # by rank rather than by a threshold: equal magnitudes would all fall on one side of it
        kept[np.argpartition(magnitudes, count - 1)[:count]] = False
    return kept.reshape(array.shape)


def _apply(kernels, masks) -> None:
    for kernel, mask in zip(kernels, masks, strict=True):
        # `where`, as a product would leave -0.0 behind, which zips worse, and keep NaN
        values = keras.ops.convert_to_tensor(kernel.variable)
        kernel.variable.assign(keras.ops.where(mask, values, keras.ops.zeros_like(values)))


def _chosen_kernels(model, layers) -> list[_Kernel]:
    found = _all_kernels(model)
    if layers is None:
        chosen = [kernel for layer, kernel in found if isinstance(layer, PRUNED_LAYERS) and not _is_depthwise(layer)]
        if not chosen:
            raise ModelError(f"There is no convolution or dense layer in {model.name!r} to prune. Is it built?")
        return chosen
    wanted = set()
    for choice in [layers] if isinstance(layers, (str, type)) else _listed(layers):
        wanted |= _matching(model, found, choice, layers)
    return [kernel for _, kernel in found if id(kernel.variable) in wanted]


def _listed(layers) -> list:
    if isinstance(layers, Iterable) and (listed := list(layers)):
        return listed
    raise ArgumentError(
        f"`layers` must be a name of a layer or block, a layer class, or a list of them. {received(layers=layers)}"
    )


def _all_kernels(model) -> list[tuple]:
    """Return `(layer, kernel)` of every layer below the model that has one of floating-point numbers, each once."""
    found = {}
    for layer in keras_internals.flatten_layers(model):
        variable = None
        if isinstance(layer, keras.layers.Layer) and layer.built:
            separable = isinstance(layer, (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D))
            variable = getattr(layer, "pointwise_kernel" if separable else "kernel", None)
        # a quantized layer's integers have no small magnitudes to spare; what isn't the layer's own weight is no kernel
        if isinstance(variable, keras.Variable) and "float" in str(variable.dtype) and len(variable.shape) > 1:
            kernel = _Kernel(layer.name, type(layer).__name__, variable)
            found.setdefault(id(variable), (layer, kernel))
    return list(found.values())


def _is_depthwise(layer) -> bool:
    """Tell whether a `Conv2D` has a group for each input channel, as ConvNeXt's have."""
    return getattr(layer, "groups", 1) > 1 and layer.kernel.shape[-2] == 1


def _matching(model, found, choice, layers) -> set[int]:
    """Return the ids of the kernels that one name or class means."""
    if isinstance(choice, type) and issubclass(choice, keras.layers.Layer):
        matches = {id(kernel.variable) for layer, kernel in found if isinstance(layer, choice)}
        name = choice.__name__
        known = {kernel.kind for _, kernel in found}
    elif isinstance(choice, str):
        names = {choice, *_layers_of_block(model, choice)}
        matches = {id(kernel.variable) for layer, kernel in found if layer.name in names}
        name = choice
        known = {kernel.name for _, kernel in found}
    else:
        raise ArgumentError(f"`layers` must hold names and layer classes. {received(layers=layers)}")
    if matches:
        return matches
    raise ArgumentError(
        f"No layer with a kernel to prune in {model.name!r} is meant by {name!r}.{nearest(name, sorted(known))} "
        f"{received(layers=layers)}"
    )


def _layers_of_block(model, name: str) -> set[str]:
    try:
        blocks = graph.find_blocks(graph.find_backbone(model))
    except ModelError:  # no backbone, no blocks
        return set()
    return {layer_name for block in blocks if block.name == name for layer_name in block.layer_names}


class _Pruning(keras.callbacks.Callback):
    """Keeps zeros, and with a `sparsity` makes more of them; see `gradual_pruning`.

    Attributes:
        reached: the sparsity that the masks have now.
        settled: whether it is what it is to be in the end; until then no epoch can be the best one.
    """

    def __init__(self, sparsity, layers, scope, ramp):
        super().__init__()
        self.sparsity, self.layers, self.scope, self.ramp = sparsity, layers, scope, ramp
        self.reached, self.settled = 0.0, sparsity is None
        self._kernels, self._masks, self._updates = [], [], 0
        self._first_epoch = self._epoch = None

    def on_train_begin(self, logs=None):
        self._kernels = self._trained_kernels()
        self._updates, self._first_epoch, self.settled = 0, None, self.sparsity is None
        self._set_masks([_as_array(kernel) != 0 for kernel in self._kernels])
        self._start = self.reached
        if self.sparsity is None and not self.reached:
            self._warn(
                "Nothing is zero in the layers that `keep_pruned` is to watch. Call `kerastl.prune` before training."
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self._first_epoch is None:
            self._first_epoch = epoch
        if not self.params.get("steps"):  # of unknown length: the whole epoch's share now, so that its metrics have it
            self._advance(1.0)

    def on_train_batch_end(self, batch, logs=None):
        sync = getattr(self.model, "jax_state_sync", None)
        if sync is not None:  # on JAX the weights are away from the model during an epoch
            sync()
        _apply(self._kernels, self._masks)
        if self.params.get("steps"):
            self._advance((batch + 1) / self.params["steps"])

    def on_train_end(self, logs=None):
        arrays = [_as_array(kernel) for kernel in self._kernels]
        filled = any((array[~mask] != 0).any() for array, mask in zip(arrays, self._numpy_masks, strict=True))
        _apply(self._kernels, self._masks)
        if filled:
            self._warn(
                "Another callback has put back weights from before the pruning was done. They were pruned now, without "
                "having been trained so: leave early stopping and the like out, or use `kerastl.fine_tune`."
            )
        if not self.settled:
            self._warn(
                f"The training ended at a sparsity of {self.reached:.1%}, before the {self.sparsity:.1%} that it was to "
                "reach. Train for more epochs, without early stopping, or take a smaller `ramp`."
            )

    def _warn(self, message) -> None:
        warnings.warn(message, KerastlWarning, stacklevel=3)

    def _advance(self, epoch_done: float) -> None:
        """Prune up to the sparsity that is due when a part of the present epoch is done."""
        if self.settled:
            return
        epochs = self.params.get("epochs", self._epoch + 1) - self._first_epoch
        progress = min((self._epoch - self._first_epoch + epoch_done) / (self.ramp * epochs), 1.0)
        updates = int(progress * _MASK_UPDATES + 1e-9)
        if updates == self._updates:
            return
        self._updates = updates
        due = cubic_sparsity(self._start, self.sparsity, updates / _MASK_UPDATES)
        self._set_masks(_masks([_as_array(kernel) for kernel in self._kernels], due, self.scope))
        _apply(self._kernels, self._masks)
        self.settled = updates >= _MASK_UPDATES

    def _set_masks(self, masks) -> None:
        self._numpy_masks = masks
        self._masks = [keras.ops.convert_to_tensor(mask) for mask in masks]
        self.reached = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)

    def _trained_kernels(self) -> list[_Kernel]:
        chosen = _chosen_kernels(self.model, self.layers)
        trainable = {id(variable) for variable in self.model.trainable_variables}
        frozen = [kernel.name for kernel in chosen if id(kernel.variable) not in trainable]
        if frozen and self.sparsity is not None and self.layers is not None:
            raise ArgumentError(
                f"Frozen layers can't be pruned in training: {', '.join(map(repr, frozen[:5]))}. Use `kerastl.prune` "
                f"before it, or `kerastl.unfreeze`. {received(layers=self.layers)}"
            )
        if len(frozen) == len(chosen):
            raise ArgumentError("All layers to prune are frozen, so training changes nothing in them. Leave it out.")
        return [kernel for kernel in chosen if id(kernel.variable) in trainable]
