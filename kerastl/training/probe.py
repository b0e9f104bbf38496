"""What stored features can say before any training: linear models and nearest neighbours on every block of a backbone."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence

import keras
import numpy as np

from kerastl.checks import check_choice, check_count, received
from kerastl.data.batches import rows_of
from kerastl.data.folders import ImageSplits
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION, TASKS
from kerastl.errors import ArgumentError, DataError
from kerastl.features.pooled import pooled_features, pooled_trunk
from kerastl.models import backbones, compiling, graph, heads, outputs
from kerastl.tables import NamedRows, Printed, Table
from kerastl.training.linear import LinearFit, check_weights, folds_of
from kerastl.training.scoring import Problem, neighbour_score, task_of_labels
from kerastl.training.session import check_first_batch

_JOINED = (2, 3, 4, 6)  # blocks side by side that are tried, the best ones
# The learning curve: one part of so many of the photographs, drawn so often
_PARTS, _DRAWS = (8, 4, 2), 3
_SMALLEST_PART = 10
_LITTLE = 0.005  # of accuracy by twice as many photographs: not worth taking them


@dataclasses.dataclass(frozen=True)
class BlockScore:
    """How much a block's pooled output, or several side by side, tells about the labels."""

    name: str  # of the block, or of several: "block6b + block7a"
    channels: int
    linear: float  # score of the linear model, cross-validated on the training images
    neighbours: float  # score of the nearest neighbours by cosine, each image left out of its own
    loss: float  # of the linear model, cross-validated: cross-entropy in nats, of numbers 1 − R²; it decides
    c: float  # the chosen strength of the linear model, as in `LinearFit`
    validation: float | None  # score of the linear model on the validation images


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """How good the best block's linear model is with a part of the training images."""

    images: int
    score: float  # mean of several draws
    spread: float | None  # their standard deviation; of all images there is one draw


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ProbeResult(Printed):
    """What `probe` found; prints as tables.

    A score is the accuracy: of several labels that of each label, of numbers R² (0 for always predicting the mean, NaN where
    all are the same).

    Attributes:
        rows: a `BlockScore` of each block, in order, the backbone's output last, and of the best few side by side.
        best: name of the row with the lowest cross-validated loss.
        fit: its linear model, fitted on all training images.
        accuracy: its score: on the validation images where there are any, else cross-validated.
        standard_error: by the binomial distribution; of numbers `None`.
        measured: "validation" or "cross-validation": what `accuracy`, `per_class` and the curve's last point are measured on.
        per_class: a `ClassAccuracy` of each class, label or number.
        curve: a `CurvePoint` each with an eighth, a quarter, half and all of the training images.
        advice: what more photographs would bring, in a sentence.
        mirrored: whether features are means over an image and its mirror image, which was better (by the loss).
        task: "classification", "multi-label" or "regression".
        seconds: of the backbone's run as "extraction", and of all else as "fitting".
    """

    rows: NamedRows
    best: str
    fit: LinearFit
    accuracy: float
    standard_error: float | None
    measured: str
    per_class: NamedRows
    curve: tuple[CurvePoint, ...]
    advice: str
    mirrored: bool
    task: str
    seconds: dict[str, float]

    def to_rows(self) -> list[dict]:
        """Return the blocks as dictionaries, for `pandas.DataFrame`."""
        return self.rows.to_rows()

    def _tables(self) -> list[Table]:
        what = "R²" if self.task == REGRESSION else "accuracy"
        error = "" if self.standard_error is None else f" ± {self.standard_error:.3f}"
        title = f"{what} {self.accuracy:.3f}{error} by {self.measured}, linear on {self.best}"
        header = ["block", "channels", "linear", "neighbours"]
        blocks = [[one.name, str(one.channels), _text(one.linear), _text(one.neighbours)] for one in self.rows]
        if self.measured == "validation":
            header.append("validation")
            blocks = [[*cells, _text(one.validation)] for cells, one in zip(blocks, self.rows, strict=True)]
        notes = ["linear, neighbours: cross-validated on the training images."]
        notes += ["Each image and its mirror image averaged."] if self.mirrored else []
        classes = [[one.name, _text(one.score), str(one.images)] for one in self.per_class]
        curve = [[str(one.images), _text(one.score), _text(one.spread)] for one in self.curve]
        numbers = range(1, len(header))
        each = {CLASSIFICATION: "class", MULTI_LABEL: "label", REGRESSION: "number"}[self.task]
        return [
            Table(header, blocks, right=numbers, title=title, notes=notes),
            Table([each, what, "images"], classes, right=(1, 2)),
            Table(["training images", what, "spread"], curve, right=(0, 1, 2), notes=[self.advice]),
        ]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def probe(
    model: keras.Model | str,
    train,
    validation=None,
    *,
    blocks: bool = True,
    mirrored: bool = True,
    class_names: Sequence[str] | None = None,
    task: str | None = None,
    preprocessing="auto",
    backbone: str | None = None,
    verbose="auto",
    seed: int = 0,
) -> ProbeResult:
    """Measure what a backbone's features tell about the labels, with linear models and nearest neighbours; train nothing.

    The backbone runs once over the images, in inference mode (augmentation and dropout are inactive). What each block makes
    of them is averaged over height and width. On these vectors softmax regression (of several labels one
    logistic regression each, of numbers ridge regression) is fitted with the penalty that is best in five-fold
    cross-validation. Nearest neighbours by cosine stand beside it. The best few blocks side by side often know more than the
    last one (Evci et al., "Head2Toe", 2022). All choices are made by cross-validation on the training images; being the best
    of several, the chosen one looks a little better there than it is.

    Args:
        model: a classifier, or a backbone: a `keras.Model` that ends in a feature map, or a name as in `build_classifier`. It
            stays as it is.
        train: images and labels: an `(x, y)` or `(x, y, sample_weight)` tuple, a `tf.data.Dataset`, a `keras.utils.PyDataset`,
            or what `load_images` returned: its training and validation images. The model takes pixels 0–255, as in `fit`.
        validation: the same, to measure on and for nothing else; without it figures are cross-validated.
        blocks: look at every block; `False` for the backbone's output alone.
        mirrored: also look at mirror images, and average where that is better; takes twice the time of the backbone.
        class_names: in the order of the labels; default: those of `load_images`, or numbers.
        task: "classification", "multi-label" or "regression"; default: what `load_images` says, the head, or
            else the labels.
        preprocessing: for a backbone: "auto" for its own, `None` for none, or a callable from tensor to tensor.
        backbone: name of the nested backbone, or of the last layer of a flat one, where it can't be told.
        verbose: 0 for no progress.
        seed: of the folds and draws.

    Raises:
        ArgumentError, ModelError: arguments or a model that can't be used.
        DataError: labels that don't fit the head, or are all the same; weights below 0; data that can be read only once. All
            of that is looked at before the backbone runs, of datasets in the first batch.

    Example:
        >>> result = kerastl.probe(model, data, verbose=0)
        >>> [row.name for row in result.rows]
        ['block1', 'block2', 'block1 + block2']
    """
    seed = check_count("seed", seed, smallest=0)
    if isinstance(train, ImageSplits):
        class_names, task = train.class_names if class_names is None else class_names, task or train.task
        train, validation = train.train, train.validation if validation is None else validation
    given = {"train": train} if validation is None else {"train": train, "validation": validation}
    rows = {name: _rows_of(name, data) for name, data in given.items()}
    start = time.perf_counter()
    model = _with_preprocessing(model, rows["train"], preprocessing)
    labels = {name: one.labels if one.skips else one.first[1] for name, one in rows.items()}
    weights = {name: data[2] for name, data in given.items() if isinstance(data, tuple) and len(data) == 3}
    known = all(one.skips for one in rows.values())  # of datasets, only a pass tells more than the first labels
    problem = _problem(model, labels, weights, task, class_names, complete=known)
    names, parts = _extract(model, rows, blocks, mirrored, backbone, verbose != 0)
    seconds, start = {"extraction": time.perf_counter() - start}, time.perf_counter()
    if not known:
        labels, weights = ({name: getattr(one, what) for name, one in parts.items()} for what in ("labels", "weights"))
        problem = _problem(model, labels, weights, task, class_names)
    result = _compare(names, parts["train"], parts.get("validation"), problem, seed)
    seconds["fitting"] = time.perf_counter() - start
    return dataclasses.replace(result, seconds=seconds)


def _rows_of(name: str, data):
    rows = rows_of(data, shuffle=False)
    if rows is None:
        raise DataError(
            f"`{name}` must be data that ends, holds an image and can be read again: arrays `(images, labels)`, or a dataset "
            f"of such batches; of one that is endless `.take(batches)`. {received(**{name: type(data).__name__})}"
        )
    if rows.first[0].ndim != 4:
        raise DataError(
            f"The images of `{name}` must be `(images, height, width, channels)`: grey ones take `images[..., None]`, and a "
            f"dataset of single images `.batch(32)`. {received(shape=rows.first[0].shape)}"
        )
    return rows


def _with_preprocessing(model, rows, preprocessing) -> keras.Model:
    """Return a model that takes pixels: what was given, or a backbone with its preprocessing in front."""
    if isinstance(model, str):
        model = backbones.load_backbone(model, input_shape=rows.first[0].shape[1:])
    if not isinstance(model, keras.Model):
        raise ArgumentError(f"`model` must be a `keras.Model` or a backbone's name. {received(model=model)}")
    tensor = outputs.main_tensor(model)
    row = backbones.find_backbone_row(model)
    if tensor is None or not (graph.has_grid(tensor) or row):
        return model
    prepare = heads.preprocessing_of(row, model, preprocessing)
    inputs = keras.Input(model.inputs[0].shape[1:], name="image", dtype="float32")
    return keras.Model(inputs, model(prepare(inputs)), name=f"{model.name.replace('.', '_')}_probed")


def _extract(model, rows, blocks, mirrored, backbone, verbose) -> tuple[list[str], dict]:
    """Run the backbone over all images; return the blocks' names, and a `_Part` of each part of the data."""
    trunk, names = pooled_trunk(model, blocks=blocks, backbone=backbone)
    parts = {}
    for name, one in rows.items():
        check_first_batch(model, one)
        parts[name] = _Part(*pooled_features(trunk, one, mirrored=mirrored, part=name, verbose=verbose))
    return names, parts


@dataclasses.dataclass
class _Part:
    """Pooled features of the training or of the validation images: of each block `(images, views, channels)`."""

    features: list
    labels: np.ndarray
    weights: np.ndarray | None

    def view(self, index: int, mean: bool) -> np.ndarray:
        return self.features[index].mean(axis=1) if mean else self.features[index][:, 0]


def _problem(model, labels: dict, weights: dict, task, class_names, *, complete: bool = True) -> Problem:
    """Return the task with its names, having checked the labels and sample weights of each part of the data.

    Not `complete`: they are those of a first batch, and what only all of them can tell is left open.
    """
    rows, tensor = _joined(labels), outputs.main_tensor(model)
    for name, one in weights.items():
        check_weights(None if one is None else keras.ops.convert_to_numpy(one), len(labels[name]))
    units = rows.shape[1]
    has_head = tensor is not None and len(tensor.shape) == 2 and outputs.output_kind(model) is not None
    if task is None:
        task = compiling.task_of(model, rows) if has_head else task_of_labels(rows)
    check_choice("task", task, TASKS)
    count = units if units > 1 or task == REGRESSION else int(rows.max()) + 1
    if has_head and task == CLASSIFICATION:
        count = max(outputs.count_classes(model), 2)
    _check_names(class_names, count if complete or has_head or units > 1 else None)
    problem = Problem(task, list(range(count)))
    targets = {name: problem.targets(np.asarray(one)) for name, one in labels.items()}["train"]
    if complete and (targets == targets[:1]).all():
        what = (
            "All training images are of one class, or have the same labels or numbers: there is nothing to tell apart."
        )
        raise DataError(f"{what} {received(label=targets[0].tolist())}")
    return problem if class_names is None else Problem(task, list(class_names))


def _check_names(class_names, count: int | None) -> None:
    """Raise `ArgumentError` unless these are so many names, or any number where the count isn't known."""
    if class_names is None:
        return
    is_list = np.iterable(class_names) and not isinstance(class_names, str)
    if not is_list or count not in (None, len(class_names)):
        of_how_many = "a list of names" if count is None else f"{count} names"
        raise ArgumentError(
            f"`class_names` must be {of_how_many}, one for each class. {received(class_names=class_names)}"
        )


def _joined(labels: dict) -> np.ndarray:
    """Return the labels of all parts, `(images, columns)`; raise `DataError` where they are no numbers, or of two kinds."""
    columns = {}
    for name, one in labels.items():
        one = np.asarray(one)
        if one.ndim and not len(one):
            raise DataError(f"There are no images in the {name} data.")
        if one.dtype.kind not in "iufb" or one.ndim not in (1, 2) or not np.isfinite(one).all():
            raise DataError(
                "Labels must be finite numbers, `(images,)` or `(images, columns)`. Make numbers of text by "
                f"`numpy.unique(labels, return_inverse=True)`. {received(part=name, dtype=str(one.dtype), shape=one.shape)}"
            )
        columns[name] = one.reshape(len(one), -1)
    if len({one.shape[1] for one in columns.values()}) > 1:
        shapes = {name: np.shape(one) for name, one in labels.items()}
        raise DataError(
            "Labels of `train` and `validation` must be of one kind, whole numbers or rows. Of one-hot rows "
            f"`labels.argmax(axis=1)` makes numbers. {received(**shapes)}"
        )
    return np.concatenate(list(columns.values()))


def _compare(names, train, held, problem, seed) -> ProbeResult:
    """Fit on every block and on the best ones side by side, and return the result, less its seconds."""
    search = _Search(names, train, held, problem, seed)
    search.choose_view()
    singles = [search.add((place,)) for place in range(len(names))]
    joined = search.join_best() if len(names) > 1 else []
    best = min([*singles, *joined], key=lambda one: one.row.loss)
    listed = [*singles, *sorted(joined, key=lambda one: one.row.loss)[:1]]
    targets, fit, measured = search.targets, best.fit, "cross-validation" if held is None else "validation"
    predicted, true = fit.probabilities, targets
    if held is not None:
        predicted, true = fit.outputs(best.held), search.held_targets
    accuracy = problem.score(predicted, true)
    curve = _learning_curve(search, best)
    return ProbeResult(
        NamedRows(one.row for one in listed),
        best.row.name,
        dataclasses.replace(fit, kernel=fit.kernel / best.scale[:, None]),
        accuracy,
        problem.standard_error(accuracy, len(true)),
        measured,
        NamedRows(problem.per_class(predicted, true)),
        curve,
        _advice(curve, "R²" if problem.task == REGRESSION else "accuracy"),
        search.mean,
        problem.task,
        {},
    )


@dataclasses.dataclass
class _Found:
    """A block's score with the linear model, and the features of the training and of the validation images.

    Those are divided by `scale`, one number for each block, so that of several side by side none drowns the others.
    """

    row: BlockScore
    fit: LinearFit
    features: np.ndarray
    held: np.ndarray | None
    scale: np.ndarray


class _Search:
    """Fits on blocks, told by their places in `names`, and remembers what it found."""

    def __init__(self, names, train, held, problem, seed):
        self.names, self.train, self.held, self.problem, self.seed = names, train, held, problem, seed
        self.targets = problem.targets(train.labels)
        self.held_targets = None if held is None else problem.targets(held.labels)
        self.mean, self.found = False, {}

    def choose_view(self) -> None:
        """Look at the backbone's output, and average an image and its mirror image from now on where that is better."""
        output = (len(self.names) - 1,)
        plain = self.add(output)
        if self.train.features[0].shape[1] > 1:
            self.mean = True
            del self.found[output]
            if self.add(output).row.loss >= plain.row.loss:
                self.mean, self.found[output] = False, plain

    def join_best(self) -> list[_Found]:
        """Put more and more of the best blocks side by side, as long as it helps; return what was tried."""
        ranked, tried = sorted(self.found, key=lambda places: self.found[places].row.loss), []
        for count in _JOINED:
            if count > len(ranked) or (len(tried) > 1 and tried[-1].row.loss >= tried[-2].row.loss):
                break
            tried.append(self.add(tuple(sorted(place for (place,) in ranked[:count]))))
        return tried

    def add(self, places: tuple[int, ...]) -> _Found:
        """Fit on blocks side by side, unless that was done."""
        if places not in self.found:
            train = [self.train.view(place, self.mean) for place in places]
            spreads = [float(np.sqrt(one.var(axis=0).mean())) or 1.0 for one in train]
            scale = np.repeat(np.array(spreads, "float32"), [one.shape[1] for one in train])
            features, held = np.concatenate(train, axis=1) / scale, None
            if self.held is not None:
                held = np.concatenate([self.held.view(place, self.mean) for place in places], axis=1) / scale
            self.found[places] = self._score(" + ".join(self.names[place] for place in places), features, held, scale)
        return self.found[places]

    def _score(self, name, features, held, scale) -> _Found:
        problem, targets = self.problem, self.targets
        fit = problem.fit(features, targets, self.train.weights, self.seed)
        row = BlockScore(
            name,
            features.shape[1],
            problem.score(fit.probabilities, targets),
            neighbour_score(features, targets, problem),
            problem.loss(fit.probabilities, targets),
            fit.c,
            None if held is None else problem.score(fit.outputs(held), self.held_targets),
        )
        return _Found(row, fit, features, held, scale)


def _learning_curve(search, best) -> tuple[CurvePoint, ...]:
    """Return how good the linear model is with parts of the images: on the validation images, or on all that are left out."""
    problem, targets, weights, points = search.problem, search.targets, search.train.weights, []
    keys = targets if targets.ndim == 1 else targets[:, 0]
    for parts in _PARTS:
        scores, size = [], len(targets) // parts
        for draw in range(_DRAWS if size >= max(_SMALLEST_PART, 2 * len(problem.names)) else 0):
            inside = folds_of(keys, count=parts, seed=search.seed + 1 + draw) == 0
            others = (best.features[~inside], targets[~inside])
            if best.held is not None:
                others = best.held, search.held_targets
            with contextlib.suppress(DataError):  # all of one class
                own_weights = None if weights is None else weights[inside]
                fit = problem.fit(best.features[inside], targets[inside], own_weights, search.seed)
                scores.append(problem.score(fit.outputs(others[0]), others[1]))
        scores = [one for one in scores if not np.isnan(one)]
        if scores:
            points.append(CurvePoint(size, float(np.mean(scores)), float(np.std(scores))))
    whole = CurvePoint(len(targets) * 4 // 5, best.row.linear, None)  # in cross-validation a fifth is left out
    if best.held is not None:
        whole = CurvePoint(len(targets), best.row.validation, None)
    return (*points, whole)


def _advice(curve, what: str) -> str:
    """Say what more photographs would bring: by the slope over doublings of their number, against the draws' spread."""
    *parts, whole = curve
    if np.isnan(whole.score):
        return f"{what} can't be told, as all numbers that it is measured on are the same."
    if not parts or whole.images <= parts[-1].images:
        return "There are too few images to tell what more of them would bring."
    near = parts[-2:]  # a straight line over the last two doublings: errors fall by a power law, slowly
    steps = np.log2(whole.images / near[0].images)
    slope = min((whole.score - near[0].score) / steps, 1 - whole.score)  # nothing is above 1
    spread = np.sqrt(np.mean([one.spread**2 for one in parts])) * np.sqrt(1 + 1 / _DRAWS) / steps
    known = f"With {parts[-1].images} images {what} {parts[-1].score:.3f}, with {whole.images} {whole.score:.3f}"
    if slope < _LITTLE:
        return f"{known}: more would add little."
    if slope < 2 * spread:
        return f"{known}: whether more would help can't be told from the spread of the draws."
    return f"{known}: more would help, by about {slope:.3f} for twice as many."
