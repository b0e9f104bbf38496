"""Choose a backbone for one's own images: how good each is on them, against how long one image takes and how large it is."""

import dataclasses
import functools
from collections.abc import Sequence

import keras
import numpy as np

from kerastl.checks import check_count, received
from kerastl.data.folders import ImageSplits, load_images
from kerastl.data.labels import REGRESSION
from kerastl.errors import ArgumentError, DataError, WeightsUnavailableError
from kerastl.evaluation.measures import evaluate
from kerastl.lab.comparison import ComparedBackbone, check_timing, checked_shapes, measure_backbones
from kerastl.models.heads import build_classifier
from kerastl.models.weights import describe_weights
from kerastl.tables import NamedRows, Printed, Table, readable_bytes
from kerastl.training.probe import probe
from kerastl.training.recipe import transfer_learn
from kerastl.training.scoring import Problem


@dataclasses.dataclass(frozen=True)
class BackboneScore:
    """One backbone on one's own images; a score is the accuracy (of several labels, that of each), or R² of numbers."""

    name: str
    image_size: tuple[int, int]  # height and width, in pixels
    weights: str  # what it started from: "imagenet", say
    probe: float  # score of a linear model on the backbone's pooled output
    probe_error: float | None  # its standard error; of numbers `None`
    fine_tuned: float | None = None  # score after `transfer_learn` with its defaults
    fine_tuned_error: float | None = None
    takes: ComparedBackbone | None = None  # size and time

    @property
    def decisive(self) -> tuple[float, float]:
        """Score and standard error, after fine-tuning where that was asked for, else the probe's."""
        score, error = self.probe, self.probe_error
        if self.fine_tuned is not None:
            score, error = self.fine_tuned, self.fine_tuned_error
        return score, error or 0.0

    def milliseconds(self, threads: int) -> float | None:
        """Return the median time of one image in float32; `None` where it couldn't be run."""
        latency = self.takes.latency.get(("float32", threads))
        return None if latency is None else 1000 * latency.median


@dataclasses.dataclass(frozen=True, repr=False)
class BackboneChoice(Printed):
    """What `choose_backbone` found; prints as a table with its recommendation.

    Attributes:
        rows: a `BackboneScore` of each backbone whose weights are available. `choice["mobilenet_v2"]` is one of them.
        left_out: name of each other one → why.
        measured: which images the scores are of, in words.
        what: what a score is, "accuracy" or "R²".
        threads: numbers of CPU threads; the times with the first one decide.
        front: the Pareto front: names of those than which none is both as good and faster, the fastest first.
        recommended: name of the fastest one whose score is within one standard error of the best (Breiman et al., 1984).
        recommendation: the same and why, in a sentence.
    """

    rows: NamedRows
    left_out: dict[str, str]
    measured: str
    what: str
    threads: tuple[int, ...]

    def __getitem__(self, name: str) -> BackboneScore:
        return self.rows[name]

    @property
    def _by_time(self) -> list[BackboneScore]:
        """The fastest first, and of the equally fast the best; last those that couldn't be timed."""
        times = {row.name: row.milliseconds(self.threads[0]) or np.inf for row in self.rows}
        return sorted(self.rows, key=lambda row: (times[row.name], -row.decisive[0]))

    @property
    def front(self) -> list[str]:
        found, best = [], -np.inf
        for row in self._by_time:
            if row.milliseconds(self.threads[0]) is not None and row.decisive[0] > best:
                found, best = [*found, row.name], row.decisive[0]
        return found

    @property
    def _best(self) -> BackboneScore:
        return max(self._by_time, key=lambda row: row.decisive[0])

    @property
    def recommended(self) -> str:
        score, error = self._best.decisive
        return next(row.name for row in self._by_time if row.decisive[0] >= score - error)

    @property
    def recommendation(self) -> str:
        best, chosen = self._best, self[self.recommended]
        if chosen is best:
            return f"Recommended: {self._in_words(best)}: the best, and none within its standard error is faster."
        near = f"the fastest within one standard error of the best, {self._in_words(best)}"
        return f"Recommended: {self._in_words(chosen)}: {near}."

    def _in_words(self, row: BackboneScore) -> str:
        time = row.milliseconds(self.threads[0])
        return f"{row.name}, {self.what} {_figure(*row.decisive)}, {'not timed' if time is None else f'{time:.3g} ms'}"

    def to_rows(self) -> list[dict]:
        """Return plain dictionaries, for pandas: sizes in bytes, times in milliseconds, `None` for what is missing."""
        return [self._plain(row) for row in self.rows]

    def _plain(self, row: BackboneScore) -> dict:
        plain = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        takes = plain.pop("takes")
        plain |= {"parameters": takes.parameters, "macs": takes.macs, "float32_bytes": takes.file_bytes.get("float32")}
        plain |= {f"float32_{key}_median_ms": row.milliseconds(count) for count, key in self._thread_words("_").items()}
        plain |= {"on_front": row.name in self.front, "recommended": row.name == self.recommended}
        return plain | {"problems": "; ".join(takes.problems) or None}

    def _thread_words(self, space: str) -> dict[int, str]:
        return {count: f"{count}{space}thread{'s' * (count > 1)}" for count in self.threads}

    def _tables(self) -> list[Table]:
        scores = ["probe", *["fine-tuned"] * any(row.fine_tuned is not None for row in self.rows)]
        header = ["backbone", "weights", "pixels", *scores, *self._thread_words(" ").values(), "file", "Pareto front"]
        cells = []
        for row in self.rows:
            both = [(row.probe, row.probe_error), (row.fine_tuned, row.fine_tuned_error)][: len(scores)]
            times = [str(row.takes.latency.get(("float32", count), "–")) for count in self.threads]
            size = row.takes.file_bytes.get("float32")
            front = "yes" if row.name in self.front else ""
            known = [row.name, row.weights, "×".join(map(str, row.image_size)), *(_figure(*one) for one in both)]
            cells.append([*known, *times, "–" if size is None else readable_bytes(size), front])
        notes = [f"{row.name}: {problem}" for row in self.rows for problem in row.takes.problems]
        notes += [f"{name} is left out: {reason}" for name, reason in self.left_out.items()]
        title = f"{self.what} ± standard error, {self.measured}; one image in float32, ms: median (quartiles)"
        return [Table(header, cells, range(3, len(header) - 1), title, notes=[*notes, self.recommendation])]


def _figure(score: float, error: float | None) -> str:
    return f"{score:.3f} ± {error:.3f}" if error else f"{score:.3f}"


def choose_backbone(
    source,
    names: Sequence[str],
    image_size: int | tuple[int, int] | None = None,
    *,
    recipe: bool = False,
    weights: str = "auto",
    threads: Sequence[int] = (1, 2),
    repeats: int = 50,
    seed: int = 0,
    verbose: int = 1,
    **loading,
) -> BackboneChoice:
    """Measure how good backbones are on your images, and how long one image takes: table, Pareto front, recommendation.

    A linear model on the pooled output of each backbone says how good it is, cross-validated on the training images; with
    `recipe` also `transfer_learn` with its defaults, both on the validation images. The test images stay aside. Then all are
    timed in one run, in float32, as `compare_backbones` does it. The best of several looks a little better than it is.

    Args:
        source: what `load_images` takes, or what it returned; then its image size serves all.
        names: of `list_backbones()`, or KerasHub's.
        image_size: pixels, one number or `(height, width)`, the same for all; default: the native size of each.
        recipe: fine-tune each too, which takes minutes.
        weights: as in `load_backbone`; without them there is nothing to compare.
        threads, repeats: as in `compare_backbones`.
        seed: of the splits, the folds and the training.
        verbose: 0 says nothing while it works.
        **loading: what `load_images` takes besides, such as `labels` or `validation`.

    Returns:
        A `BackboneChoice`: `print` it, or draw it with `plot_comparison`.

    Raises:
        ArgumentError: arguments that can't be used, random weights among them.
        DataError: images that can't be used; no validation images for `recipe`.
        WeightsUnavailableError: of no backbone the weights are available.
        BackendError: Keras doesn't run on TensorFlow, or LiteRT is not installed.
    """
    threads, seed = check_timing(threads, repeats), check_count("seed", seed, smallest=0, largest=2**32 - 1)
    if weights is None or str(weights).lower() == "none":
        raise ArgumentError(f"Accuracies need pretrained weights: pass `weights='auto'`. {received(weights=weights)}")
    if isinstance(source, ImageSplits):
        image_size = source.image_size
    shapes = checked_shapes(names, image_size if image_size is None or np.ndim(image_size) == 0 else (*image_size, 3))
    load = functools.cache(functools.partial(_load, source, seed=seed, verbose=verbose, **loading))
    rows, left_out = [], {}
    for number, (name, shape) in enumerate(shapes.items(), start=1):
        data = load(shape[:2])
        if recipe and data.validation is None:
            raise DataError(f"Fine-tuning is measured on validation images. {received(splits=data.split_sizes)}")
        if verbose:
            print(f"{number} of {len(shapes)}: {name}", flush=True)
        try:
            rows.append(_score(name, data, shape, recipe, weights, seed, verbose))
        except WeightsUnavailableError as error:
            left_out[name] = " ".join(str(error).split())
    if not rows:
        raise WeightsUnavailableError(" ".join(f"{name}: {reason}" for name, reason in left_out.items()))
    kept = {row.name: shapes[row.name] for row in rows}
    taken = measure_backbones(
        kept, max(2, len(data.class_names)), threads, repeats, precisions=["float32"], verbose=verbose
    )
    rows = NamedRows(dataclasses.replace(row, takes=one) for row, one in zip(rows, taken, strict=True))
    part, how = ("validation", "on") if recipe else ("train", "cross-validated on")
    measured = f"{how} {data.split_sizes[part]} {'validation' if recipe else 'training'} images"
    return BackboneChoice(rows, left_out, measured, "R²" if data.task == REGRESSION else "accuracy", threads)


def _load(source, image_size, **options) -> ImageSplits:
    return source if isinstance(source, ImageSplits) else load_images(source, image_size=image_size, **options)


def _score(name, data, shape, recipe, weights, seed, verbose) -> BackboneScore:
    """Probe a backbone, and fine-tune it where asked for."""
    keras.utils.set_random_seed(seed)
    classes = len(data.class_names)
    model = build_classifier(name, classes, task=data.task, input_shape=shape, weights=weights)
    options = {"class_names": data.class_names, "task": data.task, "verbose": verbose, "seed": seed}
    # The backbone's plain output alone: what is timed
    probed = probe(model, data.train, data.validation if recipe else None, blocks=False, mirrored=False, **options)
    score = BackboneScore(name, shape[:2], describe_weights(model).source, probed.accuracy, probed.standard_error)
    if not recipe:
        return score
    transfer_learn(model, data.train, data.validation, seed=seed, verbose=2 * min(verbose, 1))
    judged = evaluate(model, data.validation, data.class_names, mistakes=0, task=data.task)
    tuned = judged.scores["r2" if data.task == REGRESSION else "accuracy"]
    error = Problem(data.task, data.class_names).standard_error(tuned, judged.count)
    return dataclasses.replace(score, fine_tuned=tuned, fine_tuned_error=error)
