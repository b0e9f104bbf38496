"""One phase of training: everything checked first, then compiled, then run with the best weights restored."""

import dataclasses
import time
from numbers import Real

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.checks import check_choice, check_count, nearest, received
from kerastl.data.batches import adapt, is_tf_dataset
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION, balanced_class_weight, label_kind
from kerastl.errors import ArgumentError, DataError, ModelError, warn
from kerastl.features.plan import options_of
from kerastl.models import compiling, heads, outputs
from kerastl.training import callbacks as callback_module
from kerastl.training import solving
from kerastl.training.session import check_first_batch, frozen_part_once

RECIPE_VIEWS = 4  # the plain image and three others, where nobody says how many
KEEP = ("best", "last", "average")  # which weights stay after a phase
_DIVERGED = 10  # times the loss of the start, in the best epoch: worse than learning nothing


@dataclasses.dataclass
class Settings:
    """What all phases of a run share: the data, and how it is used; checked against the model when it is made.

    All as in `train_head`; `task` is what head and labels are for, and `label_kind` what `labels.label_kind` finds in the
    data, or `None` where it can't be told.
    """

    model: keras.Model
    train: object
    validation: object
    batch_size: int | None
    class_weight: object
    monitor: str
    verbose: object
    cache: object
    views: int | None  # `None` for those of the recipe, where the frozen part can be run once

    def __post_init__(self):
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        if self.views is not None:
            check_count("views", self.views)
        if not isinstance(self.monitor, str):
            raise ArgumentError(f"`monitor` must be the name of a logged value. {received(monitor=self.monitor)}")
        self.options = options_of(self.cache)
        self.num_classes = outputs.count_classes(self.model)
        if len(getattr(self.model, "outputs", None) or []) > 1:
            raise ModelError(
                f"The phases train models with one output, and {self.model.name!r} has {len(self.model.outputs)}. Train it "
                "with `model.fit`, labels for each output; of a model with auxiliary heads "
                "`kerastl.lab.auxiliary_heads.auxiliary_training` says how."
            )
        self.label_kind = self._check_data()
        self.class_weight = self._class_weights(self.class_weight)

    def _check_data(self) -> str | None:
        if self.train is None:
            raise DataError(f"`train` must hold images and labels. {received(train=self.train)}")
        self.train_rows, self.validation_rows = adapt(self.train, batch_size=self.batch_size), None
        if self.validation is not None:
            self.validation_rows = adapt(self.validation, batch_size=self.batch_size, shuffle=False)
        self.task, kinds = compiling.task_of(self.model), {}
        for name, rows in (("train", self.train_rows), ("validation", self.validation_rows)):
            if rows is not None and rows.first is not None:
                check_first_batch(self.model, rows)
                labels = rows.labels if rows.skips else rows.first[1]
                self.task = self.task if kinds else compiling.task_of(self.model, labels)
                units = outputs.main_tensor(self.model).shape[-1]
                kinds[name] = label_kind(labels, self.num_classes if self.task == CLASSIFICATION else units, self.task)
        if len(set(kinds.values()) - {None}) > 1:
            raise DataError(f"The labels of `train` and `validation` must be of one kind. {received(**kinds)}")
        return kinds.get("train")

    def _class_weights(self, class_weight):
        if class_weight is not None and self.task != CLASSIFICATION:
            raise ArgumentError(
                f"`class_weight` is for one class an image, and the head of {self.model.name!r} is for {self.task}. Weigh the "
                f"images: `train=(images, labels, sample_weight)`. {received(class_weight=class_weight)}"
            )
        if class_weight is None:
            return None
        if isinstance(class_weight, dict):
            given = class_weight.items()
            if not all(
                one in range(self.num_classes) and isinstance(weight, Real) and weight >= 0 for one, weight in given
            ):
                raise ArgumentError(
                    f"`class_weight` must map classes, 0 to {self.num_classes - 1}, to weights of 0 or more. "
                    f"{received(class_weight=class_weight)}"
                )
            return class_weight
        check_choice("class_weight", class_weight, ["balanced"])
        labels = self.train_rows.labels
        if labels is None:
            raise DataError(
                "`class_weight='balanced'` needs labels that can be counted; a generator's can't. Pass a dict."
            )
        return balanced_class_weight(labels, self.num_classes)

    def rows(self) -> tuple:
        """Return the rows of the training and validation data; `None` for what can be read only once, or is not there."""
        both = (self.train_rows, self.validation_rows)
        return (None, None) if any(rows is not None and rows.first is None for rows in both) else both

    @property
    def most_views(self) -> int:
        return RECIPE_VIEWS if self.views is None else self.views

    def session(self, epochs, cuts=None):
        """Run the frozen part once where that pays, for phases of so many epochs each, with one of `cuts` for each.

        The cuts come the earliest first, the phases the latest cut's first; without cuts the model is cut as it stands.
        """
        planned = {"epochs": epochs, "views": self.views, "cuts": cuts}
        if self.views is None and len(self.model.inputs) > 1:
            planned["views"] = 1
        elif self.views is None:
            planned |= {"views": RECIPE_VIEWS, "augmentation": _augmentation(self.model), "views_if_possible": True}
        return frozen_part_once(self.model, *self.rows(), self.options, self.verbose != 0, **planned)


class Phase:
    """One phase of training; after `run`, `history` is its `History`, `start` the `copies` of what it could change.

    With a `resume.Keeper` as `keeper`, `run` goes on where an earlier process was cut off. `keep` says which weights stay:
    "best", "last" or "average", see `BestWeights`. Where it `solves`, the last layer is put where the features say.
    """

    def __init__(self, settings: Settings, epochs: int, callbacks, keep: str = "best"):
        self.settings, self.model = settings, settings.model
        check_choice("keep", keep, KEEP)
        self.epochs, self.keep = check_count("epochs", epochs), keep
        self.may_solve = self.solves = False
        self.rate_factors = {}
        self.callbacks = callback_module.as_list(callbacks)
        self.history, self.start, self.keeper = None, (), None
        self._usual_metric = "mae" if settings.task == REGRESSION else "accuracy"
        self._check_what_is_watched()
        if compiling.was_compiled(self.model):
            compiling.last_learning_rate(self.model)  # raises where there is none to set

    def compile(self, learning_rate) -> None:
        compiling.check_rate("learning_rate", learning_rate)
        if compiling.was_compiled(self.model):
            compiling.compile_again(self.model, learning_rate)
        else:
            loss = compiling.usual_loss(self.model, self.settings.label_kind)
            # "accuracy" beside several labels would be that of the label predicted highest
            several = self.settings.task == MULTI_LABEL
            metric = keras.metrics.BinaryAccuracy(name="accuracy") if several else self._usual_metric
            # a batch of hard images moves pretrained weights no further than others (Pascanu et al., 2013)
            optimizer = keras.optimizers.Adam(learning_rate, global_clipnorm=1.0, name=compiling.OPTIMIZER_NAME)
            self.model.compile(optimizer, loss, metrics=[metric])

    def _check_what_is_watched(self) -> None:
        """Raise `ArgumentError`, before any work, for a monitored name that nothing will log."""
        was_compiled = compiling.was_compiled(self.model)
        known = compiling.logged_names(self.model) if was_compiled else {"loss", self._usual_metric}
        if known is None or not all(type(one).__module__.startswith(("keras.", "kerastl.")) for one in self.callbacks):
            return  # somebody's own step or callback may log anything
        watched = {"monitor": self.settings.monitor}
        watched |= {type(one).__name__: one.monitor for one in self.callbacks if getattr(one, "monitor", None)}
        for who, name in watched.items():
            if name.removeprefix("val_") not in {*known, "learning_rate"}:
                valid = [prefix + one for prefix in ("", "val_") for one in sorted(known)]
                raise ArgumentError(
                    f"`{who}` watches {name!r}, which is not logged.{nearest(name, valid)} Logged are {', '.join(valid)}. "
                    f"{received(monitor=name)}"
                )

    def run(self, session=None, cut: int = 0):
        """Train, on a session's features where there is one; whatever happens, the model ends with the best weights."""
        start = time.perf_counter()
        compiling.check_ready(self.model)
        monitor, judged = self.settings.monitor, self.settings.validation is not None
        # a fitted head may be surer of its mistakes than a random one, whose loss can then be lower
        keep = "last" if self.solves else self.keep
        best = callback_module.BestWeights(monitor, judged=judged, others=self.callbacks, keep=keep)
        watch, done = callback_module.Watch(), 0
        callbacks = [watch, *callback_module.fresh_callbacks(self.callbacks), best]
        if self.keeper is not None:
            callbacks, done = self.keeper.begin(self.model, callbacks), self.keeper.epoch
        if done == 0:
            best.begin(self._measure(session, cut))
        elif self.settings.verbose != 0:
            print(f"Going on after epoch {done} of {self.epochs}" + ", which was the last" * self.keeper.finished)
        try:
            with keras_internals.rates_scaled(compiling.inner_optimizer(self.model), self.rate_factors):
                self.history = self.fit(callbacks, session, cut, done)
            best.average(lambda: self._measure(session, cut))
        finally:
            best.settle()
            best.restore()
            self.start = best.start
        self._describe(best, watch, time.perf_counter() - start + sum(watch.epoch_seconds[:done]))
        return self.history

    def _measure(self, session, cut) -> dict:
        """Return what validation says of the model as it is, under the names that `fit` logs."""
        settings = self.settings
        if settings.validation is None:
            return {}
        if session is not None:
            logs = session.evaluate(cut)
        else:
            data = {**_as_arguments(settings.validation), "batch_size": settings.batch_size}
            logs = self.model.evaluate(**data, verbose=0, return_dict=True)
        return {f"val_{name}": value for name, value in logs.items()}

    def fit(self, callbacks, session=None, cut: int = 0, done: int = 0) -> keras.callbacks.History:
        """Train with these callbacks alone, after so many epochs that are `done`; nothing is put back."""
        if done and self.keeper.finished:
            return self.keeper.finish()
        settings = self.settings
        common = {"epochs": self.epochs, "initial_epoch": done, "callbacks": callbacks}
        common |= {"class_weight": settings.class_weight, "verbose": settings.verbose}
        if self.solves:
            return solving.solve_head(session, cut, **common)
        if session is not None:
            return session.fit(cut, **common)
        data = {**_as_arguments(settings.train), "validation_data": settings.validation}
        if is_tf_dataset(settings.train):
            data["shuffle"] = False  # it shuffles itself, or not; Keras warns about its own default
        return self.model.fit(**data, batch_size=settings.batch_size, **common)

    def _describe(self, best, watch, seconds) -> None:
        history, monitor = self.history, self.settings.monitor
        history.best_epoch, history.best_value, history.monitor = best.best_epoch, best.best_value, monitor
        history.epoch_seconds, history.diverged, history.seconds = watch.epoch_seconds, watch.diverged, seconds
        if self.settings.validation is not None and monitor not in history.history and watch.diverged is None:
            names = ", ".join(sorted(history.history))
            raise ArgumentError(f"`monitor` must be one of the logged values: {names}. {received(monitor=monitor)}")
        if watch.diverged:
            kept = f"epoch {best.best_epoch}" if best.best_epoch else "the start"
            warn(
                f"The loss became NaN or infinite in {watch.diverged}; training stopped there, and the weights of {kept} "
                "are kept. Take a lower learning rate, or look for NaN in the images."
            )
        elif best.best_epoch == 0 and monitor in history.history and not np.isfinite(history.history[monitor]).any():
            warn(
                f"{monitor!r} was NaN or infinite in every epoch, so there is nothing to choose an epoch by, and the weights "
                "of the start are kept. Look for NaN in the validation images."
            )
        elif best.best_epoch == 0 and "loss" in monitor and best.best_value is not None:
            least, rate = min(history.history.get(monitor, [0])), compiling.last_learning_rate(self.model)
            wrong = 1 - max(history.history.get("val_accuracy", [1]))
            # PyTorch and JAX clip probabilities: a loss rises no further where every mistake is made with certainty
            highest = max(-0.99 * np.log(keras.config.epsilon()) * wrong, 2 * best.best_value) if wrong > 0 else np.inf
            if least > min(_DIVERGED * best.best_value, highest):
                warn(
                    f"Training diverged: {monitor} rose from {best.best_value:.3g} to {least:.3g} or more, and the weights of "
                    f"the start are kept. Take a lower learning rate, {rate / 100:.2g}, say, instead of {rate:.2g}."
                )


def _augmentation(model) -> keras.Model:
    """Return the recipe's augmentation as a model, the same in every run: `features.views` seeds it."""
    inputs = x = keras.Input(model.input_shape[1:])
    for layer in heads.augmentation_layer("photo", seed=0).layers:
        x = layer(x)
    return keras.Model(inputs, x)


def _as_arguments(data) -> dict:
    return dict(zip(("x", "y", "sample_weight"), data if isinstance(data, tuple) else (data,), strict=False))
