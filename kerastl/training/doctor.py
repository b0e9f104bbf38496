"""`check`: what is wrong with a model and its data before they are trained, each with its evidence and the line that mends it.

Nothing here raises for what it finds, and nothing of the model changes. What is looked at stands in `doctor_case`, what the
data say in `doctor_data`.
"""

import dataclasses
import math
import warnings

import keras

from kerastl.checks import check_count
from kerastl.data.batches import adapt, is_endless
from kerastl.errors import KerastlWarning, ModelError, warn
from kerastl.models import compiling, graph, outputs
from kerastl.tables import Printed, Table
from kerastl.training.doctor_case import Case, Finding
from kerastl.training.doctor_data import data_findings, not_looked_at, was_trained

# The lowest rate and the first that is too high, of optimizers that scale each step themselves and of plain SGD. Fine-tuning
# with Adam wins at 1e-4 to 1e-3, with warm-up; its default of 1e-3 from the first step on is what ruins pretrained weights.
_ADAPTIVE = (keras.optimizers.Adam, keras.optimizers.RMSprop, keras.optimizers.Nadam, keras.optimizers.Lion)
_RATES = {
    ("fine-tuning", True): (1e-7, 1e-3, 1e-4),
    ("fine-tuning", False): (1e-6, 0.1, 1e-2),
    ("a fresh head", True): (5e-5, 0.1, 1e-3),
    ("a fresh head", False): (1e-4, 10, 1e-2),
}
_SCHEDULED = 10  # times as high may a schedule's peak be: it warms up, or falls


@dataclasses.dataclass(frozen=True, repr=False)
class CheckResult(Printed):
    """What `check` found; prints as a table, or as one line when all is well.

    Attributes:
        findings: the `Finding`s: `.name`, `.evidence`, `.number`, `.mend` (a line of Python over the names `model`, `train`
            and `validation`), the first to mend first.
        looked_at: number of images looked at, by part.
        notes: what was not looked at and why, as sentences.
    """

    findings: tuple[Finding, ...]
    looked_at: dict[str, int]
    notes: tuple[str, ...] = ()

    def to_rows(self) -> list[dict]:
        """Return the findings as dictionaries, for `pandas.DataFrame`."""
        return [dataclasses.asdict(one) for one in self.findings]

    def _tables(self) -> list[Table]:
        nothing = "its weights" if self.notes else "no images"
        images = " and ".join(f"{count:,} images of {part}" for part, count in self.looked_at.items()) or nothing
        heads, rows = (f"Nothing wrong was found in the model and {images}.",), []
        if self.findings:
            heads = ("found", f"evidence (from the model and {images}), and how to fix it")
            rows = [row for one in self.findings for row in ((one.name, one.evidence), ("", f">>> {one.mend}"))]
        return [Table(heads, rows, notes=self.notes)]


def check(
    model: keras.Model, train, validation=None, *, images: int = 1000, backbone: str | None = None
) -> CheckResult:
    """Look for what quietly ruins a training, before it; nothing is trained or changed.

    Looked for are data that `fit` doesn't take, preprocessing that is missing or done twice, images of another size, broken
    pixels, labels that the head doesn't take, a loss or an activation that doesn't fit, a head that is too wide, classes that
    only validation has, images of one part in the other, data in the order of their classes, an augmentation that a cache
    froze; nothing trainable, all trainable under a fresh head, BatchNorm that would lose its statistics, an optimizer that
    holds other weights, and a learning rate of Adam, RMSprop, Lion or SGD that is far off.

    Args:
        model: a classifier, or a model that predicts numbers, as it is about to be trained; compiled or not.
        train, validation: what `transfer_learn` takes.
        images: of datasets, at most so many images of each part are read; arrays in memory are looked at as a whole, up to
            2 GB. A generator isn't read, nor what goes into a model with several inputs.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.

    Raises:
        ArgumentError, DataError: arguments; what is no data at all, or of different lengths.
        ModelError: no classifier.

    Example:
        >>> [one.name for one in kerastl.check(model, (images / 255, labels)).findings]
        ['preprocessing doubled']
    """
    outputs.count_classes(model)
    given = {"train": train} if validation is None else {"train": train, "validation": validation}
    limit = check_count("images", images)
    ending = {part: data.take(limit) if is_endless(data) else data for part, data in given.items()}
    rows = {part: adapt(data, shuffle=None if part == "train" else False) for part, data in ending.items()}
    case = Case(model, given, rows, limit, _backbone_of(model, backbone))
    findings = (*data_findings(case), *_state_findings(case))
    looked_at = {part: len(seen.keys) for part, seen in case.seen.items()}
    return CheckResult(findings, looked_at, tuple(not_looked_at(case)))


def warn_of_findings(settings, backbone: str | None = None) -> None:
    """Warn of what the data of a phase's `Settings` show without a further pass over datasets; what was said is left out."""
    given = {"train": settings.train, "validation": settings.validation}
    rows = {"train": settings.train_rows, "validation": settings.validation_rows}
    case = Case(settings.model, given, rows, backbone=_backbone_of(settings.model, backbone))
    said = "preprocessing doubled" if any(map(outputs.scaled_range, case.images.values())) else None  # by `Settings`
    found = [one for one in data_findings(case) if one.name != said]
    if found:
        lines = [f"{one.name}: {one.evidence}\n    {one.mend}" for one in found]
        warn("Before training, `kerastl.check` found:\n" + "\n".join(lines))


def _backbone_of(model, name):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KerastlWarning)  # freezing says what is not clear
            return graph.find_backbone(model, name)
    except ModelError:
        if name is not None:
            raise
        return None


def _state_findings(case: Case):
    """Yield what is wrong with what is trainable, with the optimizer and its rate."""
    model, backbone = case.model, case.backbone
    if not model.trainable_variables:
        mend = "model.trainable = True" if backbone is None else "model.trainable = True; kerastl.freeze(model)"
        evidence = f"0 of {model.count_params():,} weights are trainable."
        yield Finding("nothing trainable", evidence, 0, f"{mend}; {_again(model, 'model')}".removesuffix("; model"))
        return
    trained = backbone is not None and was_trained(backbone.layers)
    fine_tuned = _trainable_share(case) if trained else 0.0
    fresh = trained and _has_fresh_head(case)
    if fresh and fine_tuned > 0.5:
        evidence = f"{fine_tuned:.0%} of the trained backbone's weights are trainable, and the head is as initialised."
        mend = _again(model, "kerastl.freeze(model)", 1e-3)
        yield Finding("all trainable under a fresh head", evidence, fine_tuned, mend)
        return
    if trained:
        yield from _moving_batch_norm(case)
    if model.compiled and any(gap := compiling.unheld(model)):
        evidence = "The optimizer lacks {} trainable variables and holds {} that are not trainable any more."
        mend = "kerastl.recompile(model, divide_by=10)"
        yield Finding("optimizer holds other weights", evidence.format(*gap), sum(gap), mend)
        return
    if model.compiled and trained and (fine_tuned or fresh) and compiling.has_one_rate(model):
        yield from _rate(model, "fine-tuning" if fine_tuned else "a fresh head")


def _again(model, expression: str, rate: float | None = None) -> str:
    """Return the line that compiles as before what an expression returns; the expression where there was no compile."""
    if not compiling.was_compiled(model):
        return expression
    rate = compiling.last_learning_rate(model) if rate is None else rate
    return f"kerastl.models.compiling.compile_again({expression}, {rate:.3g})"


def _trainable_share(case) -> float:
    """Return the share of the backbone's weights that training would change, BatchNorm's aside."""
    trained, total, on = {id(variable) for variable in case.model.trainable_variables}, 0, 0
    for leaf in graph.leaf_layers(*case.backbone.layers):
        for weight in () if isinstance(leaf, keras.layers.BatchNormalization) else leaf.weights:
            size = math.prod(weight.shape)
            total, on = total + size, on + size * (id(weight) in trained)
    return on / max(total, 1)


def _has_fresh_head(case) -> bool:
    inside = {id(leaf) for leaf in graph.leaf_layers(*case.backbone.layers, *case.backbone.before)}
    head = [leaf for leaf in graph.leaf_layers(case.model) if id(leaf) not in inside and leaf.weights]
    return any(getattr(leaf, "bias", None) is not None for leaf in head) and not was_trained(head)


def _moving_batch_norm(case):
    layers = case.backbone.layers
    norms = [one for layer in layers for one in graph.batch_norm_layers(layer)]
    moving = [one for one in norms if one.trainable]
    if not moving:
        return
    first = next((one for one in layers if one.trainable_weights and not isinstance(one, type(moving[0]))), None)
    mend = "kerastl.freeze(model)" if first is None else f'kerastl.unfreeze(model, from_layer="{first.name}")'
    size = case.rows["train"].batch_size if "train" in case.rows else 32
    which = f"{len(moving)} of {len(norms)} BatchNorm layers of the backbone"
    evidence = f"{which} would take statistics of batches of {size}."
    yield Finding("BatchNorm about to move", evidence, len(moving), _again(case.model, mend))


def _rate(model, what: str):
    optimizer = compiling.inner_optimizer(model)
    adaptive = isinstance(optimizer, _ADAPTIVE)
    if not adaptive and not isinstance(optimizer, keras.optimizers.SGD):
        return
    low, high, good = _RATES[what, adaptive]
    rate = compiling.last_learning_rate(model)
    scheduled = compiling.has_schedule(model)
    if low <= rate < high * (_SCHEDULED if scheduled else 1):
        return
    kind = f"{what} with {type(optimizer).__name__}"
    evidence = f"The learning rate is {rate:.3g}, for {kind}; usual is {good:g}, or some ten times less or more."
    mend = _again(model, "model", good) if scheduled else f"model.optimizer.learning_rate = {good:g}"
    yield Finding("learning rate far off", evidence, rate, mend)
