"""Magnitude pruning: set the smallest weights to zero, keep them there while the rest trains, and see what it brings.

A file smaller once it is zipped, and nothing faster: zeros are multiplied like all other numbers. See docs/pruning.md.
"""

import contextlib
import dataclasses
import os
import pathlib
import zlib

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.checks import check_choice, check_fraction, nearest, received
from kerastl.errors import ArgumentError, DataError, ModelError, warn
from kerastl.models import graph
from kerastl.tables import Printed, Table

_SCOPES = ("layer", "global")

# What is pruned when nothing is said. TensorFlow's Model Optimization Toolkit leaves depthwise kernels out as well.
_PRUNED_LAYERS = (keras.layers.Conv2D, keras.layers.Conv2DTranspose, keras.layers.SeparableConv2D, keras.layers.Dense)

# The masks of a gradual pruning are renewed so many times. Zhu and Gupta (2017) do it every 100 to 1000 steps, of
# trainings that are far longer than a fine-tuning
_MASK_UPDATES = 50


def prune(model: keras.Model, sparsity: float, *, layers=None, scope: str = "layer") -> keras.Model:
    """Set the weights of smallest magnitude to zero, in place: the part `sparsity` of the chosen kernels.

    Frozen layers are pruned too; biases and BatchNorm never, and depthwise kernels only if they are named: they are few (3 %
    of MobileNetV2's weights), and each has nine weights or so to do its work with. Weights that are zero stay zero.

    The accuracy falls. Train on with `kerastl.keep_pruned()` among the callbacks, or the first step fills the zeros up.
    `kerastl.gradual_pruning` prunes while it trains, which costs less accuracy at high sparsities.

    Args:
        model: a built model, flat, nested or Sequential, compiled or not.
        sparsity: part of the chosen kernels' weights that will be zero, in [0, 1).
        layers: a name of a layer or block (of `list_blocks`), a layer class, or a list of both; default: all convolutions
            that are not depthwise, and all dense layers, the head's included.
        scope: `"layer"`: each kernel by itself reaches `sparsity` (as in Zhu and Gupta, 2017). `"global"`: the smallest of
            all kernels together, so that some layers lose more and others less.

    Returns:
        The same model. `kerastl.sparsity_report` tells what was done.

    Raises:
        ArgumentError: `sparsity`, `layers` or `scope` can't be used.
        ModelError: the model has no kernel to prune.

    Warns:
        KerastlWarning: nothing is left of a kernel, as can happen with `scope="global"`.

    Example:
        >>> [row.sparsity for row in kerastl.sparsity_report(kerastl.prune(model, 0.5)).rows]
        [0.5, 0.5, 0.5]
    """
    check_fraction("sparsity", sparsity, zero=True, one=False)
    check_choice("scope", scope, _SCOPES)
    kernels = _chosen_kernels(model, layers)
    masks = _masks(kernels, sparsity, scope)
    _apply(kernels, masks)
    emptied = [repr(kernel.layer.name) for kernel, mask in zip(kernels, masks, strict=True) if not mask.any()]
    if emptied := ", ".join(emptied):
        warn(f'Nothing is left of {emptied}. Take a lower sparsity, `scope="layer"`, or other `layers`.')
    return model


def keep_pruned(*, layers=None) -> keras.callbacks.Callback:
    """Return a callback that keeps zero, through a training, what is zero in the chosen kernels when it starts.

    For `model.fit`, `kerastl.fit`, `fine_tune` and `transfer_learn`, cached or not, on every backend. The zeros are put
    back after every step (every execution, where `steps_per_execution` is more than one).

    Args:
        layers: names of layers or blocks, or layer classes; default: all dense layers, and all convolutions but depthwise.
            Give the same as to `prune`.

    Warns:
        KerastlWarning: at the start of the training, when nothing is zero.

    Example:
        >>> kerastl.fit(kerastl.prune(model, 0.5), *train, callbacks=[kerastl.keep_pruned()], verbose=0).epoch
        [0]
    """
    return _Pruning(None, layers, "layer", 1.0)


def gradual_pruning(
    sparsity: float, *, layers=None, scope: str = "layer", ramp: float = 0.5
) -> keras.callbacks.Callback:
    """Return a callback that prunes while the model trains: more and more weights, then recovery at the full sparsity.

    The sparsity rises quickly first and slowly at the end, by s(p) = s_final + (s_start - s_final) · (1 - p)³, p going from
    0 to 1 over the ramp (Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", 2017, equation 1). A weight that was pruned stays zero.

    Only what the training changes is pruned, so that features stored of the frozen part stay true; use `prune` for the
    rest. With `kerastl.fine_tune` the best weights are those of an epoch at the full sparsity. In `kerastl.fit` and
    `model.fit` put it last, without early stopping and checkpoints of a best model, which would prefer the epochs before.

    Args:
        sparsity: the part of the chosen kernels' weights that is zero in the end, in [0, 1).
        layers: names of layers or blocks, or layer classes; default: all dense layers, and all convolutions but depthwise;
            a frozen layer can't be named.
        scope: `"layer"`: each kernel by itself reaches `sparsity`; `"global"`: the smallest of all kernels together.
        ramp: part of the training over which the sparsity rises, in (0, 1]. With data of unknown length, whose batches
            can't be counted beforehand, it rises from epoch to epoch.

    Raises:
        ArgumentError: an argument that can't be used; at the start of the training also `layers` that are frozen.

    Warns:
        KerastlWarning: when the training ends before the sparsity is reached; and when another callback has put back weights
            from before, which are pruned then without having been trained so.

    Example:
        >>> model.fit(*train, epochs=4, callbacks=[kerastl.gradual_pruning(0.8)], verbose=0).epoch
        [0, 1, 2, 3]
    """
    check_fraction("sparsity", sparsity, zero=True, one=False)
    check_fraction("ramp", ramp)
    check_choice("scope", scope, _SCOPES)
    return _Pruning(float(sparsity), layers, scope, float(ramp))


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


@dataclasses.dataclass(frozen=True, repr=False)
class SparsityReport(Printed):
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

    def _tables(self) -> list[Table]:
        rows = [*self.rows, SparsityRow("all of these", "", sum(row.weights for row in self.rows), self.zeros)]
        cells = [(row.name, row.kind, f"{row.weights:,}", f"{row.zeros:,}", f"{row.sparsity:.1%}") for row in rows]
        title = f"{self.model_sparsity:.1%} of the model's {self.model_weights:,} weights are zeros of these kernels"
        header = ("layer", "kind", "weights", "zeros", "sparsity")
        return [Table(header, cells, right={2, 3, 4}, title=title, total=True)]


def sparsity_report(model: keras.Model, *, layers=None) -> SparsityReport:
    """Tell how much of each kernel is exactly zero.

    Args:
        model: a built model.
        layers: names of layers or blocks, or layer classes; default: all dense layers, and all convolutions but depthwise.

    Raises:
        ArgumentError: `layers` can't be used.
        ModelError: the model has no kernel to prune.

    Example:
        >>> [(row.name, row.weights) for row in kerastl.sparsity_report(model).rows]
        [('block2_conv', 576), ('block1_conv', 216), ('predictions', 24)]
    """
    rows = []
    for kernel in _chosen_kernels(model, layers):
        values = kernel.array()
        rows.append(SparsityRow(kernel.layer.name, type(kernel.layer).__name__, values.size, int((values == 0).sum())))
    return SparsityReport(tuple(rows), model.count_params())


def zipped_size(source) -> int:
    """Return how many bytes something takes once it is zipped (DEFLATE at its highest level, the container left out).

    Args:
        source: a model, of which all weights count, by their dtype and in their order; or the path of a file, such as a
            .tflite.

    Raises:
        DataError: there is no such file.

    Example:
        >>> whole = kerastl.zipped_size(model)
        >>> kerastl.zipped_size(kerastl.prune(model, 0.9)) < whole
        True
    """
    if isinstance(source, keras.Model):
        pieces = (keras.ops.convert_to_numpy(weight).tobytes() for weight in source.weights)
    elif os.path.isfile(os.path.expanduser(source)):
        pieces = [pathlib.Path(source).expanduser().read_bytes()]
    else:
        raise DataError(f"Expected a model or the path of a file. {received(source=source)}")
    packer = zlib.compressobj(level=9)
    return sum(len(packer.compress(piece)) for piece in pieces) + len(packer.flush())


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """One weight to prune, with the layer that it belongs to."""

    layer: keras.layers.Layer
    variable: keras.Variable

    def array(self) -> np.ndarray:
        return keras.ops.convert_to_numpy(self.variable)


def _masks(kernels, sparsity: float, scope: str) -> list[np.ndarray]:
    """Return for each kernel where it stays: not at its zeros, nor at its smallest magnitudes up to the sparsity."""
    arrays = [kernel.array() for kernel in kernels]
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
        chosen = [kernel for kernel in found if isinstance(kernel.layer, _PRUNED_LAYERS) and not _is_depthwise(kernel)]
        if not chosen:
            raise ModelError(f"There is no convolution or dense layer in {model.name!r} to prune. Is it built?")
        return chosen
    choices = [layers] if isinstance(layers, (str, type)) else list(layers) if np.iterable(layers) else []
    if not choices:
        raise ArgumentError(
            f"`layers` must be a name of a layer or block, a layer class, or a list of them. {received(layers=layers)}"
        )
    wanted = set().union(*(_matching(model, found, choice, layers) for choice in choices))
    return [kernel for kernel in found if id(kernel.variable) in wanted]


def _all_kernels(model) -> list[_Kernel]:
    """Return the floating-point kernels of all layers below the model, each once."""
    found = {}
    for layer in keras_internals.flatten_layers(model):
        variable = None
        if isinstance(layer, keras.layers.Layer) and layer.built:
            separable = isinstance(layer, (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D))
            variable = getattr(layer, "pointwise_kernel" if separable else "kernel", None)
        # a quantized layer's integers have no small magnitudes to spare; what isn't the layer's own weight is no kernel
        if isinstance(variable, keras.Variable) and "float" in str(variable.dtype) and len(variable.shape) > 1:
            found.setdefault(id(variable), _Kernel(layer, variable))
    return list(found.values())


def _is_depthwise(kernel: _Kernel) -> bool:
    """Tell whether a `Conv2D` has a group for each input channel, as ConvNeXt's have."""
    return getattr(kernel.layer, "groups", 1) > 1 and kernel.variable.shape[-2] == 1


def _matching(model, found, choice, layers) -> set[int]:
    """Return the ids of the kernels that one name or class means."""
    if isinstance(choice, type) and issubclass(choice, keras.layers.Layer):
        matches = {id(kernel.variable) for kernel in found if isinstance(kernel.layer, choice)}
        name, known = choice.__name__, {type(kernel.layer).__name__ for kernel in found}
    elif isinstance(choice, str):
        names = {choice}
        with contextlib.suppress(ModelError):  # no backbone, no blocks
            blocks = graph.find_blocks(graph.find_backbone(model))
            names |= {name for block in blocks if block.name == choice for name in block.layer_names}
        matches = {id(kernel.variable) for kernel in found if kernel.layer.name in names}
        name, known = choice, {kernel.layer.name for kernel in found}
    else:
        raise ArgumentError(f"`layers` must hold names and layer classes. {received(layers=layers)}")
    if not matches:
        near = f"{nearest(name, sorted(known))} {received(layers=layers)}"
        raise ArgumentError(f"No layer with a kernel to prune in {model.name!r} is meant by {name!r}.{near}")
    return matches


class _Pruning(keras.callbacks.Callback):
    """Keeps zeros, and with a `sparsity` makes more of them; see `gradual_pruning`.

    The masks have `reached` a sparsity; until it is `settled`, what it is to be in the end, no epoch can be the best one.
    """

    def __init__(self, sparsity, layers, scope, ramp):
        super().__init__()
        self.sparsity, self.layers, self.scope, self.ramp = sparsity, layers, scope, ramp
        self.reached, self.settled = 0.0, sparsity is None

    def on_train_begin(self, logs=None):
        self._kernels = self._trained_kernels()
        self._updates, self._first_epoch, self.settled = 0, None, self.sparsity is None
        self._set_masks([kernel.array() != 0 for kernel in self._kernels])
        self._start = self.reached
        if self.sparsity is None and not self.reached:
            warn("Nothing is zero in the layers that `keep_pruned` is to watch. Call `kerastl.prune` before training.")

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
        masks = map(keras.ops.convert_to_numpy, self._masks)
        filled = any((kernel.array()[~mask] != 0).any() for kernel, mask in zip(self._kernels, masks, strict=True))
        _apply(self._kernels, self._masks)
        if filled:
            warn(
                "Another callback has put back weights from before the pruning was done. They were pruned now, without "
                "having been trained so: leave early stopping and the like out, or use `kerastl.fine_tune`."
            )
        if not self.settled:
            warn(
                f"The training ended at a sparsity of {self.reached:.1%}, before the {self.sparsity:.1%} that it was to "
                "reach. Train for more epochs, without early stopping, or take a smaller `ramp`."
            )

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
        remaining = 1 - updates / _MASK_UPDATES
        due = self.sparsity + (self._start - self.sparsity) * remaining**3  # see `gradual_pruning`
        self._set_masks(_masks(self._kernels, due, self.scope))
        _apply(self._kernels, self._masks)
        self.settled = updates >= _MASK_UPDATES

    def _set_masks(self, masks) -> None:
        self._masks = [keras.ops.convert_to_tensor(mask) for mask in masks]
        self.reached = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)

    def _trained_kernels(self) -> list[_Kernel]:
        chosen = _chosen_kernels(self.model, self.layers)
        trainable = {id(variable) for variable in self.model.trainable_variables}
        frozen = [kernel.layer.name for kernel in chosen if id(kernel.variable) not in trainable]
        if frozen and self.sparsity is not None and self.layers is not None:
            raise ArgumentError(
                f"Frozen layers can't be pruned in training: {', '.join(map(repr, frozen[:5]))}. Use `kerastl.prune` "
                f"before it, or `kerastl.unfreeze`. {received(layers=self.layers)}"
            )
        if len(frozen) == len(chosen):
            raise ArgumentError("All layers to prune are frozen, so training changes nothing in them. Leave it out.")
        return [kernel for kernel in chosen if id(kernel.variable) in trainable]
