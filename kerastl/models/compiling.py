"""Recompile a model at another learning rate, keeping everything else."""

import numbers
import re

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.checks import received
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.errors import ArgumentError, CompileError, ModelError, warn
from kerastl.models import outputs

OPTIMIZER_NAME = "kerastl_adam"  # tells the recipe's own optimizer from one that a user chose
_SETTINGS = ("loss", "loss_weights", "metrics", "weighted_metrics", "run_eagerly", "steps_per_execution", "jit_compile")


def recompile(model: keras.Model, learning_rate=None, *, divide_by: float | None = None) -> keras.Model:
    """Compile the model again, in place, and return it: same loss, metrics and optimizer settings, another learning rate.

    The optimizer must be a fresh one: the old one knows the old trainable variables only. For fine-tuning take a rate
    10 to 100 times lower than the last one, as the Keras guide on transfer learning and the notes say; outside that
    range a warning is given.

    Args:
        model: a model that was compiled before (and, usually, un-compiled by `freeze` or `unfreeze`).
        learning_rate: a float, or a `LearningRateSchedule`, which is taken as it is.
        divide_by: divide the last learning rate by this. Exactly one of the two is given.

    Raises:
        ArgumentError: none or both given, or not a positive number.
        CompileError: the model was never compiled.

    Example:
        >>> model = kerastl.recompile(kerastl.unfreeze(model, last_blocks=1), divide_by=100)
        >>> f"{float(model.optimizer.learning_rate):.0e}"
        '1e-05'
    """
    if (learning_rate is None) == (divide_by is None):
        raise ArgumentError(
            "Exactly one of `learning_rate` and `divide_by` must be given: `recompile(model, learning_rate=1e-5)` or "
            f"`recompile(model, divide_by=100)`. {received(learning_rate=learning_rate, divide_by=divide_by)}"
        )
    last = last_learning_rate(model)
    if divide_by is not None:
        learning_rate = last / check_rate("divide_by", divide_by)
    new = check_rate("learning_rate", learning_rate)
    ratio = last / new if new else float("inf")
    if not 10 * (1 - 1e-6) <= ratio <= 100 * (1 + 1e-6):
        warn(
            f"The learning rate goes from {last:.3g} to {new:.3g}; for fine-tuning it should be 10 to 100 times lower "
            f"({last / 100:.3g} to {last / 10:.3g}): a higher one ruins the pretrained weights, a lower one learns nothing."
        )
    return compile_again(model, learning_rate)


def compile_again(model, learning_rate) -> keras.Model:
    """Compile with the kept settings and a fresh optimizer at `learning_rate`, saying nothing of the rate."""
    settings = compile_settings(model)  # first, because it raises where there is no optimizer
    for metric in keras.tree.flatten([settings.get("metrics"), settings.get("weighted_metrics")]):
        if isinstance(metric, keras.metrics.Metric):
            metric.reset_state()  # the next `fit` would go on with what it has counted so far
    model.compile(optimizer=fresh_optimizer(model.optimizer, learning_rate), **settings)
    return model


def was_compiled(model) -> bool:
    """Tell whether the model is compiled, or was until a change of `trainable` un-compiled it."""
    return keras_internals.compile_arguments(model) is not None and getattr(model, "optimizer", None) is not None


def has_own_optimizer(model) -> bool:
    """Tell whether the model was compiled with an optimizer that is not the recipe's."""
    return was_compiled(model) and inner_optimizer(model).name != OPTIMIZER_NAME


def compile_settings(model) -> dict:
    """Return the live arguments of the last `compile`, without the optimizer; raise `CompileError` if there was none."""
    if not was_compiled(model):
        raise CompileError(
            f"The model {model.name!r} was never compiled, so there is no loss to keep. "
            "Call `model.compile(optimizer, loss, metrics)` first."
        )
    config = keras_internals.compile_arguments(model)
    return {name: config[name] for name in _SETTINGS if name in config}


def logged_names(model) -> set[str] | None:
    """Return what `fit` logs of a compiled model, "loss" and its metrics; `None` where only a step can tell."""
    settings = compile_settings(model)
    given = [one for name in ("metrics", "weighted_metrics") for one in keras.tree.flatten(settings.get(name)) if one]
    names = {one if isinstance(one, str) else getattr(one, "name", getattr(one, "__name__", None)) for one in given}
    return None if None in names or keras_internals.methods_of_its_own(model) else {"loss", *names}


def has_one_rate(model) -> bool:
    """Tell whether a compiled model's optimizer has one learning rate; a `MultiOptimizer` has several."""
    return hasattr(inner_optimizer(model), "learning_rate")


def last_learning_rate(model) -> float:
    """Return the learning rate that the model was trained with last; of a schedule, its peak.

    Raises `CompileError` for a model that was never compiled, and for an optimizer of several rates.
    """
    compile_settings(model)
    optimizer = inner_optimizer(model)
    if not has_one_rate(model):
        raise CompileError(
            "The model must be compiled with an optimizer that has one learning rate, which is set anew for each phase. "
            f"`kerastl.fit` trains with others as they are. {received(optimizer=type(optimizer).__name__)}"
        )
    if has_schedule(model):
        return check_rate("learning_rate", keras_internals.rate_setting(optimizer))
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def has_schedule(model) -> bool:
    """Tell whether a compiled model's learning rate follows a schedule."""
    setting = keras_internals.rate_setting(inner_optimizer(model))
    return isinstance(setting, keras.optimizers.schedules.LearningRateSchedule)


def check_rate(argument: str, value) -> float:
    """Return a positive number as a `float`, a schedule as its peak; raise `ArgumentError` for anything else."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        steps = {0, int(getattr(value, "warmup_steps", 0) or 0)}
        return max(float(keras.ops.convert_to_numpy(value(step))) for step in steps)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    raise ArgumentError(f"`{argument}` must be a positive number. {received(**{argument: value})}")


def fresh_optimizer(optimizer, learning_rate):
    """Return a new optimizer of the same class and settings, loss scaling included, without state, at another rate."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        config = optimizer.get_config()
        known = {key: config[key] for key in ("initial_scale", "dynamic_growth_steps", "name") if key in config}
        return keras.optimizers.LossScaleOptimizer(fresh_optimizer(optimizer.inner_optimizer, learning_rate), **known)
    fresh = type(optimizer).from_config({**optimizer.get_config(), "learning_rate": learning_rate})
    keras_internals.copy_weight_decay_exclusions(optimizer, fresh)
    return fresh


def inner_optimizer(model):
    """Return the model's optimizer, without what scales its losses."""
    is_scaling = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    return model.optimizer.inner_optimizer if is_scaling else model.optimizer


def check_ready(model) -> None:
    """Raise unless the model is compiled, and its optimizer holds exactly the trainable variables: Keras doesn't check."""
    if not model.compiled:
        raise CompileError(
            f"The model {model.name!r} must be compiled before `fit`: `freeze` and `unfreeze` un-compile it on purpose. "
            "Call `kerastl.recompile(model, learning_rate=...)`, or `model.compile(...)`."
        )
    if not model.trainable_variables:
        raise ArgumentError(
            f"Nothing in {model.name!r} is trainable, so `fit` would change nothing. Call `kerastl.unfreeze`, or add a head."
        )
    new, gone = unheld(model)
    if new or gone:
        count = len(model.trainable_variables)
        raise CompileError(
            f"The optimizer of {model.name!r} holds {count - new + gone} variables, but {count} are trainable now "
            f"({new} new, {gone} gone): `trainable` was changed after `compile`, and `fit` "
            "would ignore that. Call `kerastl.recompile(model, learning_rate=...)`."
        )


def unheld(model) -> tuple[int, int]:
    """Return how many trainable variables a compiled model's optimizer doesn't hold, and how many it holds that aren't."""
    optimizer = inner_optimizer(model)
    if not optimizer.built:
        return 0, 0
    held = {id(variable) for variable in keras_internals.optimized_variables(optimizer)}
    wanted = {id(variable) for variable in model.trainable_variables}
    return len(wanted - held), len(held - wanted)


def task_of(model, labels=None) -> str:
    """Return what a model's main output is for: "classification", "multi-label" or "regression".

    Told by the last activation: softmax for classes, several sigmoid units for labels; of others by the loss that the
    model was compiled with last. Without one, a single linear unit is for numbers; several are logits of classes, unless
    the `labels` are rows of other numbers.
    """
    kind, units = outputs.output_kind(model), outputs.main_tensor(model).shape[-1]
    if kind in ("softmax", "sigmoid"):
        return MULTI_LABEL if kind == "sigmoid" and units > 1 else CLASSIFICATION
    name = loss_name(model)
    if "crossentropy" in name or "hinge" in name:
        return MULTI_LABEL if "binary" in name and units > 1 else CLASSIFICATION
    if units == 1 or re.search("error|huber|cosh|poisson", name):
        return REGRESSION
    rows = np.asarray([] if labels is None or name else labels)
    if rows.shape[1:] != (units,) or rows.dtype.kind not in "iuf" or np.isin(rows, (0, 1)).all():
        return CLASSIFICATION
    return CLASSIFICATION if np.allclose(rows.sum(axis=1), 1, atol=1e-3) else REGRESSION


def loss_name(model) -> str:
    """Return the name of the main output's loss in small letters, such as "binarycrossentropy"; "" without a compile."""
    loss = compiled_loss(model)
    function = getattr(loss, "fn", loss)
    return "" if loss is None else getattr(function, "__name__", type(function).__name__).replace("_", "").lower()


def takes_logits(model) -> bool:
    """Tell whether the main output's loss was made `from_logits=True`."""
    return bool(getattr(compiled_loss(model), "get_config", dict)().get("from_logits", False))


def compiled_loss(model):
    """Return the loss that the main output was compiled with last, a `keras.losses.Loss` or function, or `None`."""
    losses = [one for one in keras.tree.flatten((keras_internals.compile_arguments(model) or {}).get("loss")) if one]
    return keras.losses.get(losses[0]) if losses else None


def usual_loss(model, label_kind: str | None) -> keras.losses.Loss:
    """Return the loss for the main output and such labels: its activation's cross-entropy, or numbers' mean squared error."""
    kind = outputs.output_kind(model)
    if kind is None:
        raise ModelError(
            f"The last activation of {model.name!r} is neither softmax, sigmoid nor linear, so no loss can be chosen for it. "
            "Compile the model with its loss first; it will be kept."
        )
    logits, task = kind == "logits", task_of(model)
    if label_kind == "number" or task == REGRESSION:
        return keras.losses.MeanSquaredError()
    if task == MULTI_LABEL or outputs.main_tensor(model).shape[-1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=logits)
    if label_kind == "one-hot":
        return keras.losses.CategoricalCrossentropy(from_logits=logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
