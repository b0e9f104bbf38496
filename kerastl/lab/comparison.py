"""Compare backbones before choosing one: parameters, arithmetic, memory, file size, and how long one image takes here.

Multiply-accumulates are a poor guide to time: see docs/compare.md.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Sequence

import keras
import numpy as np

from kerastl import costs
from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError, BackendError, KerastlWarning, ModelError
from kerastl.export import conversion
from kerastl.features import litert
from kerastl.lab.published import TOP1, Top1
from kerastl.models import backbones
from kerastl.models.heads import build_classifier
from kerastl.tables import NamedRows, Printed, Table, readable_bytes

PRECISIONS = ("float32", "int8")

# Images of noise that the ranges of int8 are taken from. They have to exist; nothing here depends on what they show
_NOISE_IMAGES = 4


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long one image takes, in seconds: median, lower and upper quartile of so many runs."""

    median: float
    lower: float
    upper: float
    runs: int

    @classmethod
    def of(cls, seconds) -> "Latency":
        """Return the median and quartiles of single runs."""
        lower, median, upper = np.quantile(seconds, (0.25, 0.5, 0.75))
        return cls(float(median), float(lower), float(upper), len(seconds))

    def __str__(self) -> str:
        return f"{_milliseconds(self.median)} ({_milliseconds(self.lower)}–{_milliseconds(self.upper)})"


@dataclasses.dataclass(frozen=True)
class ComparedBackbone:
    """One backbone with its head, as compared."""

    name: str  # as `list_backbones` has it
    parameters: int  # all weights, the head's and BatchNorm's statistics included
    macs: int  # multiply-accumulates for one image
    peak_activation_bytes: int  # the most bytes of float32 feature maps alive at once; see docs/costs.md
    file_bytes: dict[str, int]  # of the `.tflite` file, by precision; without those that couldn't be made
    latency: dict[tuple[str, int], Latency]  # by `(precision, threads)`; without those that couldn't be run
    top1: Top1 | None  # the published ImageNet accuracy
    native_size: int  # height and width of the images that the published accuracy is of
    problems: tuple[str, ...] = ()  # why a precision is missing


@dataclasses.dataclass(frozen=True, repr=False)
class BackboneComparison(Printed):
    """What `compare_backbones` found; prints as two tables, and renders as them in a notebook.

    Attributes:
        rows: one `ComparedBackbone` per name, in the order asked for. `comparison["mobilenet_v2"]` is one of them.
        input_shape: `(height, width, 3)`.
        num_classes: of the head.
        threads: numbers of CPU threads.
    """

    rows: tuple[ComparedBackbone, ...]
    input_shape: tuple[int, int, int]
    num_classes: int
    threads: tuple[int, ...]

    def __getitem__(self, name: str) -> ComparedBackbone:
        return NamedRows(self.rows)[name]

    def to_rows(self) -> list[dict]:
        """Return plain dictionaries, for pandas: sizes in bytes, times in milliseconds, `None` for what is missing."""
        return [plain_row(row, self.threads) for row in self.rows]

    def _tables(self) -> list[Table]:
        height, width, _ = self.input_shape
        title = f"{height}×{width} pixels, {self.num_classes} classes; top-1 as published, at the native size"
        files = [f"{precision} file" for precision in PRECISIONS]
        header = ["backbone", "parameters", "MACs", *files, "peak of activations", "ImageNet top-1"]
        takes = Table(header, [_taken(row) for row in self.rows], right=range(1, len(header)), title=title)
        keys = list(itertools.product(PRECISIONS, self.threads))
        header = ["backbone", *(f"{precision}, {threads} thread{'s' * (threads > 1)}" for precision, threads in keys)]
        cells = [[row.name, *(str(row.latency.get(key, "–")) for key in keys)] for row in self.rows]
        runs = max((latency.runs for row in self.rows for latency in row.latency.values()), default=0)
        title = f"one image, milliseconds: median (quartiles) of {runs} runs"
        notes = [f"{row.name}: {problem}" for row in self.rows for problem in row.problems]
        return [takes, Table(header, cells, right=range(1, len(header)), title=title, notes=notes)]


def plain_row(row: ComparedBackbone, threads, precisions=PRECISIONS) -> dict:
    """Return a row as a plain dictionary; see `BackboneComparison.to_rows`."""
    plain = {key: getattr(row, key) for key in ("name", "parameters", "macs", "peak_activation_bytes")}
    plain |= {f"{precision}_bytes": row.file_bytes.get(precision) for precision in precisions}
    for precision, count in itertools.product(precisions, threads):
        latency = row.latency.get((precision, count))
        for part in ("median", "lower", "upper"):
            value = None if latency is None else 1000 * getattr(latency, part)
            plain[f"{precision}_{count}_thread{'s' * (count > 1)}_{part}_ms"] = value
    plain |= {f"top1_{part}": getattr(row.top1, part, None) for part in ("percent", "source")}
    return plain | {"native_size": row.native_size, "problems": "; ".join(row.problems) or None}


def _taken(row: ComparedBackbone) -> list[str]:
    sizes = [row.file_bytes.get(precision) for precision in PRECISIONS]
    files = ["–" if size is None else readable_bytes(size) for size in sizes]
    counts = [_large_number(row.parameters), _large_number(row.macs)]
    top1 = "–" if row.top1 is None else f"{row.top1.percent:.1f} %"
    return [row.name, *counts, *files, readable_bytes(row.peak_activation_bytes), top1]


def _large_number(count: int) -> str:
    return f"{count / 1e9:,.2f} G" if count >= 1e9 else f"{count / 1e6:,.2f} M"


def _milliseconds(seconds: float) -> str:
    """Return three digits, as more would be noise."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def compare_backbones(
    names: Sequence[str],
    input_shape: tuple[int, int, int] | int = 224,
    *,
    num_classes: int = 10,
    threads: Sequence[int] = (1, 2),
    repeats: int = 50,
    verbose: int = 1,
) -> BackboneComparison:
    """Build a classifier on each backbone, convert it to LiteRT in float32 and int8, and time one image through each.

    The weights are random: parameters, size and time don't depend on their values, and nothing is fetched. The ImageNet
    accuracy is the published one, of the full network at its own image size; that of your classifier is another.

    All networks are timed in one run, in turns, each after runs that don't count, so that what else the machine does
    meets all of them. Compare the times of one comparison with each other, not with those of another machine or day.

    Args:
        names: of `list_backbones()`.
        input_shape: `(height, width, 3)` in pixels, or one number for a square; the same for all.
        num_classes: of the head: average pooling and one dense layer.
        threads: numbers of CPU threads to time with.
        repeats: timed runs of each network, precision and number of threads.
        verbose: 0 says nothing while it works.

    Returns:
        A `BackboneComparison`: `print` it, let a notebook render it, or take `.to_rows()`. A backbone that can't be converted
        or run has what can be told of it, and the reason in `problems`.

    Raises:
        ArgumentError: an unknown or repeated name, a size that a backbone doesn't take, or a count that can't be used.
        BackendError: Keras doesn't run on TensorFlow, or LiteRT is not installed.

    Example:
        >>> comparison = kerastl.compare_backbones(["squeezenet"], 32, repeats=1, verbose=0)
        >>> comparison["squeezenet"].macs
        9148448
        >>> kerastl.plot_comparison(comparison).savefig("comparison.png")
    """
    shapes = checked_shapes(names, input_shape)
    threads = check_timing(threads, repeats)
    check_count("num_classes", num_classes, smallest=2)
    rows = measure_backbones(shapes, num_classes, threads, repeats, verbose=verbose)
    return BackboneComparison(tuple(rows), next(iter(shapes.values())), num_classes, threads)


def measure_backbones(shapes, num_classes, threads, repeats, *, precisions=PRECISIONS, verbose=1) -> list:
    """Convert and time backbones, given as `name → (height, width, 3)`, in one run; arguments are checked already."""
    rows, runners = [], {}
    for number, (name, shape) in enumerate(shapes.items(), start=1):
        if verbose:
            print(f"{number} of {len(shapes)}: converting {name}", flush=True)
        row, models = _prepared(name, shape, num_classes, threads, precisions)
        rows.append(row)
        runners.update({(name, *key): model for key, model in models.items()})
    if verbose and runners:
        print(f"Timing {len(runners)} models, {repeats} runs each", flush=True)
    seconds = conversion.measure_latency(list(runners.values()), repeats=repeats) if runners else []
    for (name, *key), values in zip(runners, seconds, strict=True):
        next(row for row in rows if row.name == name).latency[tuple(key)] = Latency.of(values)
    return rows


def checked_shapes(names, input_shape=None) -> dict[str, tuple[int, int, int]]:
    """Return `name → shape`, by default its own; raise for names that can't be compared, and for a shape too small."""
    if isinstance(names, str) or not len(names):
        raise ArgumentError(f"`names` must be a list of backbones' names. {received(names=names)}")
    shapes = {name: backbones.check_input_shape(backbones.backbone_row(name), input_shape) for name in names}
    if len(shapes) < len(names):
        raise ArgumentError(f"Each backbone can be compared once. {received(names=list(names))}")
    return shapes


def check_timing(threads, repeats) -> tuple[int, ...]:
    """Return the numbers of threads as a tuple; raise for counts that can't be used, and where nothing can be timed."""
    check_count("repeats", repeats)
    threads = [check_count("threads", count) for count in ([threads] if isinstance(threads, int) else threads)]
    if len(set(threads)) != len(threads) or not threads:
        raise ArgumentError(f"`threads` must hold one or more different numbers. {received(threads=threads)}")
    if keras.backend.backend() != "tensorflow":
        raise BackendError(
            "Comparing needs LiteRT's converter, which takes Keras on TensorFlow. Set KERAS_BACKEND=tensorflow. "
            f"{received(backend=keras.backend.backend())}"
        )
    if not litert.is_installed():
        raise BackendError('LiteRT is not installed. Install it with `pip install "kerastl[export]"`.')
    return tuple(threads)


def _prepared(name, shape, num_classes, threads, precisions) -> tuple[ComparedBackbone, dict]:
    """Return a backbone's row, without times, and what is to be timed: `(precision, threads)` → model."""
    model = build_classifier(name, num_classes, input_shape=shape, weights=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KerastlWarning)  # layers that `model_cost` has no formula for
        cost = costs.model_cost(model)
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE_IMAGES, *shape)).astype("float32")
    options = {"float32": {}, "int8": {"quantize": "int8", "images": noise}}
    sizes, models, problems = {}, {}, []
    for precision in precisions:
        try:
            content = conversion.convert(model, batch_size=1, **options[precision])
            sizes[precision] = len(content)
            for count in threads:
                runner = litert.LiteRTModel(content, count)
                runner.time_once(noise[:1])
                models[precision, count] = runner
        except ModelError as error:
            problems.append(f"{precision}: {error}")
        except RuntimeError as error:
            problems.append(f"{precision}: LiteRT can't run the model: {error}")
    figures = {key: getattr(cost, key) for key in ("parameters", "macs", "peak_activation_bytes")}
    published = {"top1": TOP1.get(name), "native_size": backbones.backbone_row(name).native_size}
    row = ComparedBackbone(name, **figures, file_bytes=sizes, latency={}, **published, problems=tuple(problems))
    return row, models
