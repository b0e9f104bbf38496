"""`train SOURCE`: load images, train in two phases, judge, and write the run folder."""

import collections
import contextlib
import dataclasses
import functools
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import keras

from kerastl import files
from kerastl.checks import check_count, check_fraction, received
from kerastl.cli import chosen, in_options
from kerastl.cli.models import report_beside
from kerastl.cli.quiet import import_quietly
from kerastl.data.images import check_image_size, is_hidden
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.errors import ArgumentError, DataError, KerastlError, OutputError
from kerastl.evaluation import measures, report
from kerastl.evaluation.calibration import calibrate
from kerastl.evaluation.report_text import terminal_report
from kerastl.evaluation.thresholds import choose_thresholds
from kerastl.models import backbones
from kerastl.models.compiling import check_rate
from kerastl.models.heads import build_classifier
from kerastl.training.rates import RECIPE_RATE, cosine_decay
from kerastl.training.recipe import TransferResult, transfer_learn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; `docker stop` and Slurm
# For what a run writes besides the model: pictures and tables
_OTHER_FILES_BYTES = 10_000_000


class _Watch(keras.callbacks.Callback):
    """Names the phases and counts finished epochs."""

    def __init__(self):
        super().__init__()
        self.phases = self.epochs = 0
        self.interrupted = 0  # the number of the signal

    def on_train_begin(self, logs=None):
        self.phases += 1
        if self.params.get("fitted"):
            print("Fitting the head", flush=True)
            return
        epochs = self.params.get("epochs")
        name = "Training the head" if self.phases == 1 else "\nFine-tuning"
        print(f"{name}, {epochs} epoch{'s' if epochs != 1 else ''} at most", flush=True)

    def on_train_batch_begin(self, batch, logs=None):
        # Python drops a KeyboardInterrupt that is raised in a destructor or in a callback of C++ code
        if self.interrupted:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1

    def note_and_raise(self, number, frame):
        """Note the signal besides raising `KeyboardInterrupt`, which can get lost on its way."""
        self.interrupted = number
        signal.default_int_handler(number, frame)


@dataclasses.dataclass
class _Job:
    """One training run: what was asked for, and what came of it so far."""

    arguments: object
    folder: Path
    started: float
    splits: object = None
    model: keras.Model | None = None
    audit: object = None
    watch: _Watch = dataclasses.field(default_factory=_Watch)


def run(arguments) -> int:
    """Train, print what came of it, and return the exit status."""
    fill_in(arguments)
    _check(arguments)
    if arguments.resume and _is_done(arguments):
        print(f"{arguments.out} holds this run, and it is complete.")
        return 0
    folder = files.check_output_folder(arguments.out, overwrite=arguments.overwrite, files=report.RUN_FILES, what="run")
    job = _Job(arguments, folder, time.perf_counter())
    _prepare(job)
    try:
        with _handling_interruptions(job.watch.note_and_raise):
            result = _train(job)
            summary = _judge_and_write(job, result)
    except BaseException as error:
        interrupted = job.watch.interrupted or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0)
        saved = _rescue(job, interrupted=bool(interrupted))
        if saved and not interrupted:
            return _say_what_is_missing(error, saved, job)
        if not interrupted:
            raise
        kept = f"the best model so far is in {saved}" if saved else "no epoch was over yet, so nothing was written"
        kept = "the same command goes on from here" if arguments.resume else kept
        print(f"\nInterrupted: {kept}.", file=sys.stderr)
        return 128 + interrupted
    shutil.rmtree(_unfinished(arguments.out), ignore_errors=True)
    print(f"\n{terminal_report(summary, arguments.out)}")
    return 0


def _unfinished(out: str) -> Path:
    """Return the folder that `--resume` keeps a run in: beside the one it makes, which is there whole or not at all."""
    folder = Path(out).expanduser().resolve()
    return folder.with_name(f"{folder.name}-unfinished")


def _is_done(arguments) -> bool:
    """Tell whether the run folder is what the same command made before."""
    return report_beside(Path(arguments.out).expanduser() / "model.keras").get("command") == _command(arguments)


def _command(arguments) -> str:
    return f"python -m kerastl {shlex.join(arguments.command_line)}"


def _say_what_is_missing(error, saved: Path, job: _Job) -> int:
    """Say in the last line where the model is and what of the run isn't there, and why; return the exit status."""
    is_known = isinstance(error, KerastlError)
    reason = in_options(error, job.arguments) if is_known else f"{type(error).__name__}: {error}."
    if not is_known:
        traceback.print_exception(error)
    missing = ", ".join(name for name in report.run_files(job.splits.task) if not (saved / name).exists())
    print(f"error: {reason} The best model so far is in {saved}; missing there: {missing}.", file=sys.stderr)
    return 2 if is_known else 1


def fill_in(arguments) -> None:
    """Set what was left open: plain images have one view, and outputs are averaged for the flips that training shows."""
    if arguments.views is None and arguments.augmentation == "none":
        arguments.views = 1
    if arguments.test_views is None:
        arguments.test_views = {"none": 1, "flips": 4}.get(arguments.augmentation, 2)


def _check(arguments) -> None:
    """Check what nothing else would check before the images are read, which can be slow."""
    check_images(arguments)
    for name in ("head-epochs", "fine-tune-epochs", "patience", "batch-size"):
        smallest, value = 0 if name == "fine-tune-epochs" else 1, getattr(arguments, name.replace("-", "_"))
        if value is not None:
            check_count(f"--{name}", value, smallest=smallest)
    if arguments.hidden_units is not None:
        check_count("hidden_units", arguments.hidden_units)
    check_fraction("--layer-decay", arguments.layer_decay)
    check_fraction("--dropout", arguments.dropout, zero=True, one=False)
    check_rate("--head-learning-rate", arguments.head_learning_rate)
    if arguments.learning_rate is not None:
        check_rate("--learning-rate", arguments.learning_rate)


def check_images(arguments) -> None:
    """Check what says which images are read, and by which network."""
    row = backbones.backbone_row(arguments.backbone)
    arguments.image_size = check_image_size(row.native_size if arguments.image_size is None else arguments.image_size)
    backbones.check_input_shape(row, (*arguments.image_size, 3))
    if arguments.views is not None:
        check_count("--views", arguments.views)
        if arguments.views > 1 and arguments.augmentation in ("auto", "none"):
            raise ArgumentError(
                "More --views than 1 are made by an --augmentation that is named, flips, photo, strong or light; auto makes 4 "
                f"where --views is left out. {received(views=arguments.views, augmentation=arguments.augmentation)}"
            )
    if arguments.labels is not None and (not arguments.labels or not Path(arguments.source).expanduser().is_dir()):
        raise ArgumentError(
            "--labels names a CSV or Parquet file that goes with a folder of images. "
            f"{received(source=arguments.source, labels=arguments.labels)}"
        )
    check_count("--seed", arguments.seed, smallest=0, largest=2**32 - 1)
    check_places(arguments.source, arguments)


def check_places(source: str, arguments) -> None:
    """Raise `OutputError` for what would be written among class folders: the next run would take it for a class."""
    folder = Path(source).expanduser().resolve()
    if arguments.labels is not None or not folder.is_dir():
        return
    for name in ("out", "to", "cache"):
        place = getattr(arguments, name, None)
        if not place or place in ("auto", "device", "none") or files.is_url(place):
            continue
        path = Path(place).expanduser().resolve()
        if folder in path.parents and not any(map(is_hidden, path.relative_to(folder).parts)):
            raise OutputError(
                "The next run would take what is written among class folders for a class, or for images of one. Choose a "
                f"folder outside of the source. {received(source=str(source), **{name: place})}"
            )


def _prepare(job: _Job) -> None:
    job.splits, job.model = load_and_build(job.arguments)
    task, classes = job.splits.task, len(job.splits.class_names)
    if job.arguments.calibrate and task == REGRESSION:
        raise ArgumentError(f"Numbers have no probabilities: leave --calibrate out. {received(task=task)}")
    if job.arguments.choose_thresholds and task != MULTI_LABEL and (task == REGRESSION or classes > 2):
        raise ArgumentError(
            "--choose-thresholds is for several labels an image, or for two classes: leave it out. "
            f"{received(task=task, classes=classes)}"
        )
    files.check_free_space(job.folder, 4 * job.model.count_params() + _OTHER_FILES_BYTES)
    if job.arguments.audit:
        job.audit = _audit(job)


def _audit(job: _Job):
    """Look for what is wrong with the images, by the network that is trained on them; print it, and return it."""
    from kerastl.evaluation.audit import audit  # brings TensorFlow's data pipelines, as `load_images` does

    arguments = job.arguments
    found = audit(job.splits, backbone=arguments.backbone, weights=weights_of(arguments), seed=arguments.seed)
    print(f"\n{found}", end="\n\n", flush=True)
    return found


def load_and_build(arguments) -> tuple:
    """Load the images and build the network; return the splits and the model."""
    keras.utils.set_random_seed(arguments.seed)
    import_quietly("tensorflow", verbose=arguments.verbose)  # load_images would import it, start-up lines and all
    from kerastl.data.folders import load_images

    names = ("image_size", "labels", "batch_size", "validation", "test", "seed", "resize", "skip_unreadable")
    splits = load_images(arguments.source, **chosen(arguments, names))
    if splits.validation is None:
        raise DataError(
            "Training keeps the weights that do best on validation images, and there are none. Set --validation."
        )
    if splits.task != CLASSIFICATION and arguments.class_weight != "none":
        raise ArgumentError(
            f"--class-weight is for one class an image; leave it out for {splits.task}. "
            f"{received(class_weight=arguments.class_weight)}"
        )
    print(splits.summary(), end="\n\n", flush=True)
    return splits, build_classifier(
        arguments.backbone,
        len(splits.class_names),
        task=splits.task,
        input_shape=(*arguments.image_size, 3),
        weights=weights_of(arguments),
        **chosen(arguments, ("hidden_units", "dropout")),
        # "auto" is made where the frozen part is run, and leaves no layers in the model
        augmentation=None if arguments.augmentation in ("auto", "none") else arguments.augmentation,
    )


def weights_of(arguments) -> str | None:
    """Return what `--weights` says, as Python takes it."""
    return None if arguments.weights.lower() == "none" else arguments.weights


def _train(job: _Job) -> TransferResult:
    arguments = job.arguments
    phases = ("head_epochs", "fine_tune_epochs", "head_learning_rate", "keep", "patience", "views", "seed")
    unfrozen = ("last_blocks", "last_layers", "from_layer", "fraction", "layer_decay")
    return transfer_learn(
        job.model,
        job.splits.train,
        job.splits.validation,
        **chosen(arguments, phases + unfrozen),
        learning_rate=_fine_tuning_rate(job),
        callbacks=[job.watch],
        class_weight=None if arguments.class_weight == "none" else arguments.class_weight,
        cache=False if arguments.cache == "none" else arguments.cache,
        # A bar redraws itself; in a file or a pipe a line for each epoch is better
        verbose=1 if sys.stdout.isatty() else 2,
        run_folder=_unfinished(arguments.out) if arguments.resume else None,
    )


def _judge_and_write(job: _Job, result: TransferResult) -> dict:
    """Judge on the test images, write the run folder, and return the report."""
    arguments, splits = job.arguments, job.splits
    part = "test" if splits.test is not None else "validation"
    judge = functools.partial(measures.evaluate, job.model, getattr(splits, part), splits.class_names, task=splits.task)
    started = time.perf_counter()
    noted = _finish(job)
    judge = functools.partial(judge, thresholds=noted.get("thresholds"))
    evaluation, averaged = judge(), None
    head_scores = evaluation.scores
    if result.best_phase == "fine_tune":
        with result.head_alone():
            head_scores = judge(mistakes=0).scores
    if arguments.test_views > 1:
        averaged = judge(views=arguments.test_views, mistakes=0)
    now = time.perf_counter()
    summary = report.describe_run(
        job.model,
        splits,
        result,
        evaluation,
        evaluated_on=part,
        head_scores=head_scores,
        averaged=averaged,
        backbone=arguments.backbone,
        learning_rates=_learning_rates(arguments),
        arguments={key: value for key, value in vars(arguments).items() if key not in ("module", "command_line")},
        command=_command(arguments),
        **noted,
        seconds={"evaluation": now - started, "total": now - job.started},
    )
    outcome = {"model": job.model, "report": summary, "result": result, "evaluation": evaluation, "audit": job.audit}
    report.write_run(job.folder, **outcome, overwrite=arguments.overwrite)
    return summary


def _finish(job: _Job) -> dict:
    """Calibrate the model and choose thresholds on the validation images, where asked for; return what the report notes."""
    arguments, splits, noted = job.arguments, job.splits, {}
    if job.audit is not None:
        counts = collections.Counter(finding.kind for finding in job.audit.findings)
        noted["audit"] = {"summary": job.audit.facts, "findings": counts}
    given = job.model, splits.validation, splits.class_names
    if arguments.calibrate:
        found = calibrate(*given, task=splits.task)
        names = ("temperature", "error_before", "error_after", "loss_before", "loss_after", "images")
        noted["calibration"] = {name: getattr(found, name) for name in names}
    if arguments.choose_thresholds:
        noted["thresholds"] = dict(choose_thresholds(*given, task=splits.task))
    return noted


def _fine_tuning_rate(job: _Job):
    """Return the second phase's rate: what was asked for, with the default's warm-up and cosine decay."""
    arguments = job.arguments
    if arguments.learning_rate is None:
        return None
    batches = int(job.splits.train.cardinality())  # known: `load_images` made it
    return cosine_decay(arguments.learning_rate, batches, arguments.fine_tune_epochs)[0]


def _learning_rates(arguments) -> dict:
    rate = RECIPE_RATE if arguments.learning_rate is None else arguments.learning_rate
    return {"head": arguments.head_learning_rate, "fine_tune": rate, "fine_tune_schedule": "warm-up, cosine decay to 0"}


def _rescue(job: _Job, *, interrupted: bool) -> Path | None:
    """Save the best model so far, beside an earlier run rather than over it; as a last resort, in the temporary folder."""
    if not job.watch.epochs or (interrupted and job.arguments.resume):
        return None
    word = "interrupted" if interrupted else "rescued"
    details = report.describe_input(job.model, job.splits, job.arguments.backbone)
    with _handling_interruptions(signal.SIG_IGN):  # a second one doesn't stop the saving
        for place in (job.folder, Path(tempfile.gettempdir(), f"kerastl-{job.folder.name}")):
            with contextlib.suppress(OutputError):
                folder = files.free_folder_beside(place, word)
                return report.write_partial_run(folder, model=job.model, details=details)
    return None


@contextlib.contextmanager
def _handling_interruptions(handler):
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
