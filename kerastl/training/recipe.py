"""The recipe: fit the head on a frozen backbone, unfreeze its end, train on at a low rate, never keep a worse model.

`train_head` and `fine_tune` are `freeze` or `unfreeze`, compile, `fit`, and put back the weights to keep, in that order and
nothing else; `transfer_learn` is one after the other. What its defaults gain, benchmarks/README.md has the table of.
"""

import contextlib
import dataclasses
import functools
import os
import time

import keras

from kerastl.checks import check_choice, check_count, check_fraction
from kerastl.data.folders import ImageSplits, load_images
from kerastl.errors import ArgumentError, ModelError
from kerastl.features.plan import CacheOptions, choose_cuts
from kerastl.models import compiling, freezing, graph
from kerastl.training import callbacks as callback_module
from kerastl.training import doctor, resume, solving
from kerastl.training.phases import KEEP, Phase, Settings
from kerastl.training.rates import HEAD_RATE, RECIPE_RATE, block_factors, cosine_decay, lower

# Arguments of `transfer_learn` that may be others where a run is gone on with
_NOT_ASKED = ("model", "train", "validation", "callbacks", "cache", "verbose", "run_folder")
_MOST_HEAD_EPOCHS, _EPOCHS_WITHOUT_STORE = 40, 10  # of a head that is trained until validation stops improving
# A second phase whose trunk holds less than this of the work is trained as it is: its features would be large, and spare
# little.
_SMALLEST_SHARE = 0.25


@dataclasses.dataclass(repr=False)
class TransferResult:
    """What `transfer_learn` did.

    Attributes:
        head: the `History` of the head phase.
        fine_tune: the `History` of the second phase, or `None` when it was not run.
        best_phase: "head" or "fine_tune", or "start" when neither improved on the model as it came.
        best_epoch: the best epoch, counted from 1 within its phase; 0 for "start".
        best_value: the monitored value there, or `None` when nothing was measured.
        monitor: name of the monitored value.
        seconds: wall-clock seconds of each phase, the run of the frozen part apart as "extraction".
        head_accuracy: validation accuracy of the head phase's best epoch; `None` when it wasn't measured, or the start was
            better than any, and for numbers.
        head_weights: copies of the weights of that epoch that fine-tuning changed, as `(variable, value)`, kept in memory as
            long as this result is; see `head_alone`.
    """

    head: keras.callbacks.History
    fine_tune: keras.callbacks.History | None
    best_phase: str
    best_epoch: int
    best_value: float | None
    monitor: str
    seconds: dict[str, float]
    head_accuracy: float | None = None
    head_weights: list = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def head_alone(self):
        """Give the model the best weights of the head phase alone for the length of a `with`, to judge them, say."""
        final = callback_module.copies(variable for variable, _ in self.head_weights)
        try:
            callback_module.put_back(self.head_weights)
            yield
        finally:
            callback_module.put_back(final)

    def __str__(self) -> str:
        value = "nothing measured" if self.best_value is None else f"{self.monitor} {self.best_value:.4f}"
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"best: {value} in epoch {self.best_epoch} of {self.best_phase!r} ({phases})"

    __repr__ = __str__


def train_head(
    model: keras.Model,
    train,
    validation,
    *,
    epochs: int = 10,
    learning_rate=HEAD_RATE,
    callbacks=(),
    class_weight=None,
    cache="auto",
    views: int = 1,
    monitor: str = "val_loss",
    batch_size: int | None = None,
    verbose="auto",
    backbone: str | None = None,
) -> keras.callbacks.History:
    """Freeze the backbone, train the head, and keep the best weights, in place.

    A compile that the model has is kept, but for the learning rate; without one it is Adam and the loss that head and labels
    call for: the cross-entropy, with accuracy (of several labels, that of each label), or for numbers the mean squared
    error, with "mae".

    Args:
        model: a classifier, or a model that predicts numbers, with one output, flat or nested.
        train: a `(x, y)` or `(x, y, sample_weight)` tuple, a `tf.data.Dataset`, or a `keras.utils.PyDataset`; labels are
            integers or one-hot; for several labels an image rows of 0 and 1; or numbers.
        validation: the same, or `None`: then the last weights are kept, as there is nothing to judge them by.
        epochs: at most so many passes over the data.
        learning_rate: a float or a Keras schedule; 1e-3 is Adam's default and that of the Keras guide.
        callbacks: Keras callbacks, such as `early_stopping()`.
        class_weight: `None`, a dictionary from class index to weight, or "balanced"; for one class an image only.
        cache, views: run the frozen part once, on so many augmented versions of each image; see `kerastl.fit`.
        monitor: what decides which weights are the best.
        batch_size: of arrays; `None` is 32, and a dataset brings its own. `verbose=0` shows no progress.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.

    Returns:
        The `History`, with `.seconds` (the frozen part's run included), `.epoch_seconds`, `.best_epoch` (from 1;
        0: the starting state), `.best_value`, `.monitor` and `.diverged` (`None`, or where the loss became NaN; training
        stops there).

    Raises:
        ArgumentError, DataError, ModelError: arguments, labels or a model that can't be used.

    Example:
        >>> history = kerastl.train_head(model, train, validation, epochs=2, verbose=0)
        >>> len(history.history["val_loss"])
        2
    """
    settings = Settings(model, train, validation, batch_size, class_weight, monitor, verbose, cache, views)
    phase = Phase(settings, epochs, callbacks)
    freezing.check_head_learns(model, backbone)
    freezing.freeze(model, backbone=backbone)
    phase.compile(learning_rate)
    return _run_alone(phase)


def fine_tune(
    model: keras.Model,
    train,
    validation,
    *,
    epochs: int = 5,
    learning_rate=None,
    callbacks=(),
    class_weight=None,
    last_blocks: int | None = None,
    last_layers: int | None = None,
    from_layer: str | None = None,
    fraction: float | None = None,
    batch_norm: bool = False,
    layer_decay: float = 1.0,
    keep: str = "last",
    cache="auto",
    views: int = 1,
    monitor: str = "val_loss",
    batch_size: int | None = None,
    verbose="auto",
    backbone: str | None = None,
) -> keras.callbacks.History:
    """Unfreeze the end of the backbone, train at a low rate, and keep the last weights, in place; never a worse model.

    Returns the `History`, as `train_head` does. BatchNorm layers stay frozen unless `batch_norm=True`; see `unfreeze`.

    Args:
        model: a classifier whose head is trained already.
        train, validation: `(x, y)` arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`; `validation` may be `None`.
        callbacks, class_weight: none by default; a dictionary from class index to weight, or "balanced".
        cache, views: "auto" runs the frozen part once where that pays; 1 view is the plain image. See `kerastl.fit`.
        monitor, batch_size, verbose: "val_loss" judges the epochs; `None` is 32 for arrays; 0 shows no progress.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.
        epochs: at most so many passes over the data.
        learning_rate: `None` for one that rises for an epoch and falls to 0 by a cosine (Loshchilov and Hutter, 2017), its
            peak 3e-4, or, of an optimizer that you compiled, a tenth of its last rate; a float or a Keras schedule is taken
            as it is.
        last_blocks, last_layers, from_layer, fraction: at most one of them, as `unfreeze` takes it. With none, what is
            unfrozen already is trained. `batch_norm=True` trains BatchNorm too.
        layer_decay: the rate of each block through that of the next one, 0–1; 0.8, say, changes early blocks less.
        keep: which weights stay: those of the "last" epoch, of the "best" one by `monitor`, or the "average" of the last
            third. Where the start's validation accuracy (or else `monitor`) was better, those of the latest epoch that was
            not worse, or else the start.

    Raises:
        ArgumentError: nothing but the head is trainable; and what `unfreeze` raises.
        DataError, ModelError: data or a model that can't be used.

    Example:
        >>> history = kerastl.fine_tune(model, train, validation, epochs=2, last_blocks=1, verbose=0)
        >>> history.monitor, len(history.epoch_seconds)
        ('val_loss', 2)
    """
    choice = {"last_blocks": last_blocks, "last_layers": last_layers, "from_layer": from_layer, "fraction": fraction}
    settings = Settings(model, train, validation, batch_size, class_weight, monitor, verbose, cache, views)
    phase = Phase(settings, epochs, callbacks, keep)
    _unfreeze(model, choice, batch_norm, backbone)
    phase.rate_factors = _rate_factors(model, layer_decay, backbone)
    _compile_for_fine_tuning(phase, learning_rate)
    return _run_alone(phase)


def transfer_learn(
    model: keras.Model,
    train,
    validation,
    *,
    head_epochs: int | None = None,
    fine_tune_epochs: int = 8,
    head_learning_rate=HEAD_RATE,
    learning_rate=None,
    last_blocks: int | None = None,
    last_layers: int | None = None,
    from_layer: str | None = None,
    fraction: float | None = None,
    batch_norm: bool = False,
    layer_decay: float = 1.0,
    keep: str = "last",
    patience: int | None = None,
    callbacks=(),
    class_weight=None,
    cache="auto",
    views: int | None = None,
    monitor: str = "val_loss",
    batch_size: int | None = None,
    verbose="auto",
    seed: int | None = None,
    backbone: str | None = None,
    run_folder: str | os.PathLike | None = None,
) -> TransferResult:
    """Fit the head on the frozen backbone's outputs, then fine-tune the end of the backbone; never keep a worse model.

    One pass over the images serves both phases. What `check` finds is warned of. The model holds the better weights.

    Args:
        model: a classifier, or a model that predicts numbers, with one output, flat or nested.
        train, validation: `(x, y)` arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`; `validation` may be `None`.
        class_weight: `None`, a dictionary from class index to weight, or "balanced".
        cache: "auto" runs the frozen part once where that pays; `False` in every epoch; a folder keeps its outputs.
        monitor, batch_size, verbose: "val_loss" judges the epochs; `None` is 32 for arrays; 0 shows no progress.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.
        head_epochs: `None` puts a head of one dense layer where logistic regression on the stored features says (Kumar et
            al., 2022), and trains any other until validation stops improving; a number is at most so many epochs of Adam.
        fine_tune_epochs: at most so many with the end of the backbone unfrozen; 0 leaves the phase out.
        head_learning_rate, learning_rate: of the two phases: 1e-3; `None` rises to 3e-4 and falls to 0, see `fine_tune`.
        last_blocks, last_layers, from_layer, fraction: at most one of them; default: five blocks, at most half of all.
            `batch_norm=True` trains BatchNorm too.
        layer_decay: 1 trains all blocks at one rate; 0.8 each at 0.8 times that of the next one.
        keep: the "last" epoch's weights, the "best" one's or their "average"; of the head's epochs the best one stays.
        callbacks: Keras callbacks for both phases.
        patience: epochs without improvement after which a phase stops; `None` for never.
        views: versions kept of each training image; `None` for four where that is possible: mirrored, and crops of 60–100 %
            of the area, or what the model's own random layers make. 1 for the plain images alone.
        seed: makes the run repeatable on a CPU, with as many threads; `None` leaves the random state alone.
        run_folder: a folder of this run alone, which outlives a kill: the same call goes on after the last epoch kept there.

    Raises:
        ArgumentError, DataError, ModelError: arguments, labels or a model that can't be used, before anything is trained.

    Example:
        >>> result = kerastl.transfer_learn(model, train, validation, fine_tune_epochs=2, verbose=0)
        >>> sorted(result.seconds)
        ['extraction', 'fine_tune', 'head']
    """
    asked = {name: value for name, value in locals().items() if name not in _NOT_ASKED}
    choice = {"last_blocks": last_blocks, "last_layers": last_layers, "from_layer": from_layer, "fraction": fraction}
    settings = Settings(model, train, validation, batch_size, class_weight, monitor, verbose, cache, views)
    rates, factors = (head_learning_rate, learning_rate), _rate_factors(model, layer_decay, backbone)
    phases = checked_phases(settings, (head_epochs, fine_tune_epochs), rates, patience, callbacks, keep, factors)
    if run_folder is not None:
        resume.check_run_folder(run_folder)
    if seed is not None:
        keras.utils.set_random_seed(check_count("seed", seed, smallest=0, largest=2**32 - 1))
    freeze, unfreeze = part_to_train(model, choice, batch_norm, backbone)
    doctor.warn_of_findings(settings, backbone)
    with contextlib.nullcontext() if run_folder is None else resume.opened(run_folder, phases, asked):
        return _run_both(*phases, freeze, unfreeze, rates)


def extract_features(
    source,
    model: keras.Model,
    *,
    to: str | os.PathLike,
    validation=None,
    engine: str = "auto",
    workers: int | None = None,
    last_blocks: int | None = None,
    views: int | None = None,
) -> None:
    """Run the frozen part over images ahead of training, and keep its outputs for `cache=` with the same folder or URL.

    Args:
        source: what `load_images` takes, of which the training and validation images are run; or its result; or what
            `train_head` takes as `train`, with `validation` beside it. Ray and URLs need images or arrays, not datasets.
        model: a classifier, frozen as it will train.
        to: a folder, or a URL, such as "s3://bucket/features".
        engine: "ray" for the workers of a Ray job, on one machine or many, which must reach images and folder by the same
            paths; "auto", "keras" or "litert" in this process.
        workers: of the Ray job; `None` for one for each GPU of the cluster, or for each machine where there is none.
        last_blocks: for `transfer_learn` with as many, keep what both phases need; the model is left frozen.
        views: versions kept of each training image; `None` for four where `last_blocks` are given, else 1.

    Raises:
        ArgumentError, DataError, ModelError: arguments, data or a model that can't be used.
        BackendError: Ray, or what fsspec needs for the URL, is not installed.
        StoreError: the folder holds something else, or there is no room.

    Example:
        >>> kerastl.extract_features(train, model, to="features", validation=validation)
        The frozen part runs once...
        >>> history = kerastl.train_head(model, train, validation, epochs=2, cache="features", verbose=0)
    """
    options = CacheOptions(folder=to, engine=engine, workers=workers)
    if isinstance(source, (str, os.PathLike)):
        source = load_images(source, image_size=model.input_shape[1:3])
    if isinstance(source, ImageSplits):
        source, validation = source.train, source.validation
    views = 1 if views is None and last_blocks is None else views
    settings, cuts = Settings(model, source, validation, None, None, "val_loss", 1, options, views), None
    if last_blocks is not None:
        freezing.unfreeze(model, last_blocks=last_blocks)
        cuts = cuts_of_both(settings, functools.partial(freezing.freeze, model), has_second=True)
    with settings.session([1] * len(cuts or [1]), cuts):
        return


def part_to_train(model, choice, batch_norm, backbone):
    """Return what freezes the backbone for the head's phase, and what unfreezes the chosen part, which is done already."""
    freezing.check_head_learns(model, backbone)
    if not any(value is not None for value in choice.values()):
        choice["last_blocks"] = default_blocks(model, backbone)
    unfreeze = functools.partial(freezing.unfreeze, model, **choice, batch_norm=batch_norm, backbone=backbone)
    unfreeze()  # what can't be used raises now
    return functools.partial(freezing.freeze, model, backbone=backbone), unfreeze


def default_blocks(model, backbone: str | None = None) -> int:
    """Return how many blocks are unfrozen where nobody says: five, but no more than half of them."""
    return max(min(5, len(freezing.list_blocks(model, backbone=backbone)) // 2), 1)


def checked_phases(settings, epochs, rates, patience, callbacks, keep, factors) -> list:
    """Return the head's phase, and the second one or `None`; raise for arguments that can't be used."""
    check_choice("keep", keep, KEEP)
    open_end = epochs[0] is None
    head_epochs = _MOST_HEAD_EPOCHS if open_end else check_count("head_epochs", epochs[0])
    check_count("fine_tune_epochs", epochs[1], smallest=0)
    for rate in rates:
        if rate is not None:
            compiling.check_rate("learning_rate", rate)
    head, second = Phase(settings, head_epochs, callbacks), None
    head.may_solve = open_end
    if epochs[1]:
        second = Phase(settings, epochs[1], callbacks, keep)
        second.rate_factors = factors
    if patience is not None:
        check_count("patience", patience)
    for phase, count in ((head, patience or (3 if open_end else None)), (second, patience)):
        if phase is not None and count is not None and settings.validation is not None:
            stopping = callback_module.early_stopping(count, monitor=settings.monitor)
            stopping.restore_best_weights = phase.keep == "best"
            phase.callbacks.append(stopping)
    return [head, second]


def _run_both(head: Phase, second: Phase | None, freeze, unfreeze, rates) -> TransferResult:
    """Run the head phase and, where there is one and the head didn't diverge, the second; one pass serves both."""
    settings = head.settings
    cuts = cuts_of_both(settings, freeze, has_second=second is not None)
    both_cut = len(cuts) == 2
    head.compile(rates[0])
    start = time.perf_counter()
    last, epochs = (second or head).keeper, [head.epochs, second.epochs] if both_cut else [head.epochs]
    with contextlib.nullcontext() if last is not None and last.finished else settings.session(epochs, cuts) as session:
        seconds = {} if session is None else {"extraction": time.perf_counter() - start}
        run_head(head, session)
        if second is None or head.history.diverged is not None:
            return _result(head, None, seconds)
        unfreeze()
        _compile_for_fine_tuning(second, rates[1])
        second.run(session if both_cut else None)
    return _result(head, second, seconds)


def run_head(head: Phase, session) -> None:
    """Fit the head on a session's features, by gradient steps or without; or through the whole network where it is `None`."""
    if head.may_solve and session is None:
        head.epochs = min(head.epochs, _EPOCHS_WITHOUT_STORE)  # each is a pass through the whole network
    head.solves = head.may_solve and session is not None and solving.can_solve(session, -1, head.settings)
    head.run(session, cut=-1)


def _run_alone(phase: Phase):
    start = time.perf_counter()
    with phase.settings.session([phase.epochs]) as session:
        history = phase.run(session)
    history.seconds = time.perf_counter() - start
    return history


def cuts_of_both(settings, freeze, has_second):
    """Return the cuts of both phases, earliest first, leaving the model frozen; none where there are none to plan with.

    The model comes as the second phase trains it. Only the head's cut is returned where that phase has none that is worth it.
    """

    def present_cuts():
        with contextlib.suppress(ModelError):  # the plan meets the same error, and says so
            if settings.options:
                return choose_cuts(settings.model, *settings.rows(), settings.most_views, settings.options)
        return ()

    later = present_cuts() if has_second else ()
    freeze()
    first = present_cuts()
    if later and first and later[0].trunk_macs >= _SMALLEST_SHARE * later[0].model_macs:
        return (*later, *first)
    return first


def _result(head: Phase, second: Phase | None, seconds: dict) -> TransferResult:
    histories = {"head": head.history, "fine_tune": second and second.history}
    seconds = {**seconds, **{name: one.seconds for name, one in histories.items() if one is not None}}
    improved = [name for name, one in histories.items() if one is not None and one.best_epoch]
    phase = improved[-1] if improved else "start"
    best = histories.get(phase, head.history)
    accuracies = head.history.history.get("val_accuracy", [])
    return TransferResult(
        **histories,
        best_phase=phase,
        best_epoch=best.best_epoch,
        best_value=best.best_value,
        monitor=head.settings.monitor,
        seconds=seconds,
        head_accuracy=float(accuracies[head.history.best_epoch - 1]) if "head" in improved and accuracies else None,
        head_weights=second.start if phase == "fine_tune" else [],
    )


def _unfreeze(model, choice, batch_norm, backbone) -> None:
    if any(value is not None for value in choice.values()):
        freezing.unfreeze(model, **choice, batch_norm=batch_norm, backbone=backbone)
        return
    found = graph.find_backbone(model, backbone)
    trainable = {id(variable) for variable in model.trainable_variables}
    if not any(id(weight) in trainable for layer in found.layers for weight in layer.weights):
        raise ArgumentError(
            f"Nothing of the backbone {found.name!r} is trainable, so there is nothing to fine-tune. Say what to unfreeze: "
            "`last_blocks=3`, `last_layers=`, `from_layer=` or `fraction=`."
        )


def _rate_factors(model, layer_decay, backbone) -> dict:
    return {} if check_fraction("layer_decay", layer_decay) == 1 else block_factors(model, layer_decay, backbone)


def _compile_for_fine_tuning(phase: Phase, learning_rate) -> None:
    """Compile at this rate, or at the recipe's; of somebody's own optimizer it peaks at a tenth of the last rate."""
    if learning_rate is None:
        model = phase.model
        peak = lower(compiling.last_learning_rate(model)) if compiling.has_own_optimizer(model) else RECIPE_RATE
        learning_rate, callbacks = cosine_decay(peak, phase.settings.train_rows.batch_count, phase.epochs)
        phase.callbacks += callbacks
    phase.compile(learning_rate)
