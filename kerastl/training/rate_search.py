"""`find_learning_rate`: the rate at which fine-tuning gains most, by short runs from the same start on stored features.

Each is a whole fine-tuning in small, with its warm-up and its decay. In the range test of one run at a rising rate (Smith,
2017) each rate starts from what the rates before it made of the weights.
"""

import contextlib
import dataclasses
import math
import random
import time
from collections.abc import Sequence

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.checks import check_count, received
from kerastl.data.batches import adapt
from kerastl.data.labels import CLASSIFICATION, REGRESSION
from kerastl.errors import ArgumentError, DataError, ModelError
from kerastl.models import compiling, outputs
from kerastl.tables import Printed, Table, readable_seconds
from kerastl.training.callbacks import Watch, changeable_weights, copies, put_back
from kerastl.training.phases import Phase, Settings
from kerastl.training.rates import HEAD_RATE, RECIPE_RATE, cosine_decay, lower
from kerastl.training.recipe import checked_phases, cuts_of_both, part_to_train, run_head
from kerastl.training.scoring import prepare_labels
from kerastl.training.session import frozen_part_once
from kerastl.training.temperature import least_log_losses

_STRIDE = 10**0.5  # between a rate and the next that is tried
_MOST_RUNS = 7
_HELD_OUT = 5  # one image of so many judges where there are no validation images


@dataclasses.dataclass(frozen=True)
class RateRun:
    """A short fine-tuning at one rate."""

    learning_rate: float  # the peak
    loss: float  # on the validation images at its end, see `find_learning_rate`; infinite where training diverged
    accuracy: float | None  # there, where it is logged
    seconds: float
    error: float = 0.0  # standard error of the difference to the lowest loss, image by image; 0 of the lowest


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LearningRates(Printed):
    """What `find_learning_rate` found; prints as a table.

    Attributes:
        suggestion: the peak learning rate to fine-tune at.
        runs: a `RateRun` for each rate that was tried, the lowest first.
        start: the validation loss before the runs: that of the head alone.
        steps: of each run.
        batches: in an epoch; `None` where nobody knows.
        seconds: of everything.
    """

    suggestion: float
    runs: tuple[RateRun, ...]
    start: float
    steps: int
    batches: int | None
    seconds: float

    def schedule(self, epochs: int = 8) -> keras.optimizers.schedules.LearningRateSchedule:
        """Return what `transfer_learn` and `fine_tune` train at by themselves, with the suggestion as its peak.

        Args:
            epochs: `fine_tune_epochs` of `transfer_learn`, or `epochs` of `fine_tune`.

        Raises:
            ArgumentError: nobody knows how many batches an epoch has.
        """
        if self.batches is None:
            raise ArgumentError(
                "A schedule needs the number of batches in an epoch, which this training data doesn't tell. Pass "
                f"`learning_rate=result.suggestion`. {received(batches=self.batches)}"
            )
        return cosine_decay(self.suggestion, self.batches, check_count("epochs", epochs))[0]

    def to_rows(self) -> list[dict]:
        """Return the runs as dictionaries, for `pandas.DataFrame`."""
        return [dataclasses.asdict(one) for one in self.runs]

    def _tables(self) -> list[Table]:
        with_accuracy = any(one.accuracy is not None for one in self.runs)
        header = ["peak rate", "validation loss", *["accuracy"] * with_accuracy]
        cells = [
            [f"{one.learning_rate:.1e}", _in_words(one)]
            + ["" if one.accuracy is None else f"{one.accuracy:.3f}"] * with_accuracy
            for one in self.runs
        ]
        verdict = "" if min(one.loss for one in self.runs) < self.start else ", which no rate improved"
        notes = [
            f"The head alone: validation loss {self.start:.4f}{verdict}.",
            "± is the standard error of the difference to the lowest loss. Where several rates are as good, within it, the",
            "suggestion is that nearest to the rate of `fine_tune`.",
        ]
        how = f"runs of {self.steps} steps, {readable_seconds(self.seconds)} in all"
        title = f"suggestion: {self.suggestion:.1e} ({how})"
        return [Table(header, cells, right=range(len(header)), title=title, notes=notes)]


def _in_words(run: RateRun) -> str:
    told = f"{run.loss:.4f}" if math.isfinite(run.loss) else "diverged"
    return f"{told} ± {run.error:.4f}" if run.error else told


def find_learning_rate(
    model: keras.Model,
    train,
    validation=None,
    *,
    rates: Sequence[float] | None = None,
    steps: int = 60,
    last_blocks: int | None = None,
    last_layers: int | None = None,
    from_layer: str | None = None,
    fraction: float | None = None,
    batch_norm: bool = False,
    class_weight=None,
    cache="auto",
    batch_size: int | None = None,
    verbose="auto",
    backbone: str | None = None,
) -> LearningRates:
    """Find the rate at which fine-tuning gains most, by short runs; the model is left exactly as it was.

    The head is fitted first, as `transfer_learn` does it, and each run starts from there, on the stored outputs of what stays
    frozen. Of the rates whose loss is within one standard error of the lowest (Breiman et al., 1984) the one nearest to the
    rate of `fine_tune` is suggested; where that is the lowest itself, the lowest point of a parabola through it and its
    neighbours, in powers of ten. The loss of classes and labels is the log loss at its best temperature: short runs make a
    model surer before they teach it much, and how sure it is, `calibrate` mends. Of numbers it is the squared error.

    Args:
        model: a classifier. One that is compiled is tried with its own optimizer and loss, another one with the recipe's.
        train: `(x, y)` arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`.
        class_weight, cache: `None` or as `train_head` takes it; "auto" runs the frozen part once.
        batch_size, verbose: `None` is 32 for arrays; 0 shows no progress.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.
        validation: what judges; `None` holds out a fifth of the training images, of arrays alone.
        rates: those to try; `None` begins with the rate of `fine_tune` and goes on by half powers of ten, to where the two
            on each side of the best one are worse: five to seven.
        steps: of each run; the rate rises for a fifth of them and falls to 0 by a cosine.
        last_blocks, last_layers, from_layer, fraction: at most one of them; default: five blocks, at most half of all.
            `batch_norm=True` trains BatchNorm too.

    Raises:
        ArgumentError, DataError, ModelError: arguments, data or a model that can't be used; also data that can be read only
            once, and a model with steps of its own.

    Example:
        >>> result = kerastl.find_learning_rate(model, train, validation, rates=[1e-4, 1e-3], steps=5, verbose=0)
        >>> [run.learning_rate for run in result.runs]
        [0.0001, 0.001]
    """
    begin = time.perf_counter()
    choice = {"last_blocks": last_blocks, "last_layers": last_layers, "from_layer": from_layer, "fraction": fraction}
    check_count("steps", steps, smallest=5)
    rates = rates if rates is None else _checked(rates)
    train, validation = (train, validation) if validation is not None else _held_out(train)
    with _left_as_it_was(model) as trial:
        settings = Settings(trial, train, validation, batch_size, class_weight, "val_loss", verbose, cache, 1)
        if None in settings.rows():
            raise DataError(
                "`train` and `validation` must be one array of images and one of labels each, or a dataset of such batches "
                f"that can be read more than once. {received(train=type(train).__name__, model_inputs=len(model.inputs))}"
            )
        freeze, unfreeze = part_to_train(trial, choice, batch_norm, backbone)
        runs, start, usual = _try(settings, freeze, unfreeze, rates, steps)
    batches, seconds = settings.train_rows.batch_count, time.perf_counter() - begin
    return LearningRates(_suggested(runs, usual), tuple(runs), start, steps, batches, seconds)


def _checked(rates) -> list[float]:
    if not isinstance(rates, (list, tuple, np.ndarray)):
        raise ArgumentError(f"`rates` must be a list of at least two numbers. {received(rates=rates)}")
    rates = sorted({compiling.check_rate("rates", one) for one in rates})
    if len(rates) < 2:
        raise ArgumentError(f"`rates` must hold at least two different numbers. {received(rates=rates)}")
    return rates


def _held_out(train) -> tuple[tuple, tuple]:
    """Return arrays without a fifth of their rows, chosen by chance, always the same; and these."""
    if not adapt(train).skips or not isinstance(train, tuple):
        raise DataError(
            f"Without `validation`, `train` must be a tuple of arrays. {received(train=type(train).__name__)}"
        )
    order = np.random.default_rng(0).permutation(len(train[0]))
    if len(order) < _HELD_OUT:
        raise DataError(f"`train` must hold at least {_HELD_OUT} images. {received(images=len(order))}")
    parts = np.split(order, [len(order) // _HELD_OUT])
    held, rest = (tuple(one if one is None else np.asarray(one)[np.sort(part)] for one in train) for part in parts)
    return rest, held


@contextlib.contextmanager
def _left_as_it_was(model):
    """Yield another model of the same layers to train, which has a compile of its own; afterwards all is as it was."""
    outputs.count_classes(model)  # raises for what has no graph
    if own := keras_internals.methods_of_its_own(model):
        raise ModelError(
            f"The model must train with Keras's own steps. Compare rates with `fine_tune`. {received(methods=own)}"
        )
    layers = keras_internals.flatten_layers(model)
    flags = [(one, "trainable", one.trainable) for one in (*layers, *model.weights)]
    flags += [(one, "compiled", one.compiled) for one in layers if isinstance(one, keras.Model)]
    before, chance = copies([*model.weights, *_seeds(model), *model.metrics_variables]), random.getstate()
    inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]  # of a list Keras expects lists
    trial = keras.Model(inputs, model.outputs, name=model.name)
    if compiling.was_compiled(model):
        own = {**compiling.compile_settings(model), "steps_per_execution": 1}  # the rate changes at each
        rate = compiling.last_learning_rate(model)
        trial.compile(compiling.fresh_optimizer(model.optimizer, rate), **own)
    try:
        yield trial
    finally:
        put_back(before)
        random.setstate(chance)
        for one, name, value in flags:
            setattr(one, name, value)


def _seeds(model) -> list:
    layers = keras_internals.flatten_layers(model)
    return [generator.state for layer in layers for generator in keras_internals.seed_generators(layer)]


def _try(settings: Settings, freeze, unfreeze, rates, steps: int) -> tuple[list[RateRun], float, float]:
    """Fit the head, and run from there at each rate; return the runs by their rate, the head's loss, and the usual rate."""
    model, batches, verbose = settings.model, settings.train_rows.batch_count, settings.verbose != 0
    [head, _] = checked_phases(settings, (None, 1), (), None, (), "last", {})
    short = Phase(settings, steps if batches is None else math.ceil(steps / batches), ())
    first = lower(compiling.last_learning_rate(model)) if compiling.has_own_optimizer(model) else RECIPE_RATE
    cuts = cuts_of_both(settings, freeze, has_second=True)
    head.compile(HEAD_RATE)
    # random layers in front need several views; there are as few as can be, for these runs are over soon
    epochs = [head.epochs, short.epochs * _MOST_RUNS][: len(cuts) or 1]
    planned = {"epochs": epochs, "views": 2, "cuts": cuts, "views_if_possible": True}
    with frozen_part_once(model, *settings.rows(), settings.options, verbose, **planned) as session:
        run_head(head, session)
        unfreeze()
        short.compile(first)
        settings.verbose = 0
        session, losses = session if len(cuts) == 2 else None, {}
        start = _losses(settings, session).mean()
        run = _runner(short, session, steps, verbose, losses)
        runs = list(map(run, rates)) if rates else _walk(run, first)
    lowest = losses[min(runs, key=lambda one: one.loss).learning_rate]
    for place, one in enumerate(runs):
        if math.isfinite(one.loss):
            error = (losses[one.learning_rate] - lowest).std() / len(lowest) ** 0.5
            runs[place] = dataclasses.replace(one, error=float(error))
    return runs, float(start), first


def _losses(settings: Settings, session) -> np.ndarray:
    """Return the loss of each validation image as it judges, `(images,)`; infinite where the outputs are no numbers."""
    model, task = settings.model, settings.task
    if session is None:
        batches = ((model.predict_on_batch(images), *rest) for images, *rest in settings.validation_rows.batches())
    else:
        batches = session.predictions()
    values, labels, weights = zip(*batches, strict=True)
    values = np.concatenate([keras.ops.convert_to_numpy(outputs.main_output(one)) for one in values]).astype("float64")
    if not np.isfinite(values).all():
        return np.full(len(values), np.inf)
    units = settings.num_classes if task == CLASSIFICATION else values.shape[1]
    values = outputs.to_probabilities(values, outputs.output_kind(model), task)
    labels = prepare_labels(np.concatenate(labels), units, task)
    losses = np.square(values - labels).mean(axis=1) if task == REGRESSION else least_log_losses(values, labels)
    if weights[0] is None:
        return losses
    weights = np.concatenate(weights)
    return losses * weights / weights.mean()


def _runner(phase: Phase, session, steps: int, verbose: bool, losses: dict):
    """Return what trains from the present state at a rate, and returns its `RateRun`; the state is put back before each.

    The `losses` of the validation images are added by the rate.
    """
    model = phase.model
    model.optimizer.build(model.trainable_variables)
    state = [*changeable_weights(model), *model.optimizer.variables, *_seeds(model)]
    start, chance = copies(state), random.getstate()

    def run(rate: float) -> RateRun:
        begin = time.perf_counter()
        put_back(start)
        random.setstate(chance)  # which the order of the images follows from
        logs = phase.fit([_Steps(rate, steps), Watch()], session).history
        diverged = not math.isfinite(logs.get("val_loss", [math.inf])[-1])
        losses[rate] = np.array([np.inf]) if diverged else _losses(phase.settings, session)
        loss, accuracy = float(losses[rate].mean()), logs.get("val_accuracy", [None])[-1]
        found = RateRun(rate, loss, accuracy, time.perf_counter() - begin)
        if verbose:
            print(f"peak rate {rate:.1e}: validation loss {loss:.4f} ({readable_seconds(found.seconds)})", flush=True)
        return found

    return run


class _Steps(keras.callbacks.Callback):
    """Let the rate rise to its peak and fall to 0 in so many steps, and stop there."""

    def __init__(self, peak: float, steps: int):
        super().__init__()
        self._rate, self._steps, self._done = cosine_decay(peak, steps, 1)[0], steps, 0

    def on_train_batch_begin(self, batch, logs=None):
        compiling.inner_optimizer(self.model).learning_rate = float(self._rate(self._done))

    def on_train_batch_end(self, batch, logs=None):
        self._done += 1
        if self._done >= self._steps:
            self.model.stop_training = True


def _walk(run, first: float) -> list[RateRun]:
    """Run at rates around `first` until two on each side of the best one are known, or there were enough runs.

    Two, because the loss is not always one valley: a few steps at a middling rate disturb the head more than they teach.
    """
    runs = {0: run(first)}
    while len(runs) < _MOST_RUNS:
        best = min(runs, key=lambda place: runs[place].loss)
        if not math.isfinite(runs[best].loss):
            best = min(runs)  # all diverged: lower
        missing = [best + step for step in (1, -1, 2, -2) if best + step not in runs]
        if not missing:
            break
        runs[missing[0]] = run(first * _STRIDE ** missing[0])
    return [runs[place] for place in sorted(runs)]


def _suggested(runs: list[RateRun], usual: float) -> float:
    """Return the rate nearest to the usual one of those as good as the best, within a standard error.

    Where that is the best one, it is the lowest point of the parabola through it and its neighbours, at most half the way to
    one of them; at an end, the best rate itself. Raises `ArgumentError` where all diverged.
    """
    best = min(range(len(runs)), key=lambda place: runs[place].loss)
    if not math.isfinite(runs[best].loss):
        raise ArgumentError(
            "Training diverged at all rates that were tried. Look for NaN in the images, or pass lower `rates`. "
            f"{received(rates=[one.learning_rate for one in runs])}"
        )
    as_good = [one for one in runs if one.loss - one.error <= runs[best].loss]
    nearest = min(as_good, key=lambda one: (round(abs(math.log(one.learning_rate / usual)), 6), one.loss))
    if nearest is not runs[best]:
        return nearest.learning_rate
    near = runs[max(best - 1, 0) : best + 2]
    if len(near) < 3 or not all(math.isfinite(one.loss) for one in near):
        return runs[best].learning_rate
    logs = np.log10([one.learning_rate for one in near])
    curvature, slope, _ = np.polyfit(logs - logs[1], [one.loss for one in near], 2)
    lowest = -slope / (2 * curvature) if curvature > 0 else 0.0
    low, high = (logs[[0, 2]] - logs[1]) / 2
    return float(f"{10 ** (logs[1] + np.clip(lowest, low, high)):.2g}")
