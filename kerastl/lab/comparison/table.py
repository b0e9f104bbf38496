"""The table of a comparison: one row per backbone, for a terminal, a notebook and pandas."""

import dataclasses

import numpy as np

from kerastl.checks import nearest, received
from kerastl.lab.comparison.published import Top1
from kerastl.tables import html_table, readable_bytes, text_table

PRECISIONS = ("float32", "int8")


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long one image takes, in seconds.

    Attributes:
        median: of the runs.
        lower: their lower quartile.
        upper: their upper quartile.
        runs: how many there were.
    """

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
    """One backbone with its head, as compared.

    Attributes:
        name: as `list_backbones` has it.
        parameters: all weights, the head's and BatchNorm's statistics included.
        macs: multiply-accumulates for one image.
        peak_activation_bytes: the most bytes of float32 feature maps alive at once; see docs/costs.md.
        file_bytes: of the `.tflite` file, by precision; without those that couldn't be made.
        latency: of one image, by `(precision, threads)`; without those that couldn't be run.
        top1: the published ImageNet accuracy, or `None`.
        native_size: height and width of the images that the published accuracy is of.
        problems: why a precision is missing.
    """

    name: str
    parameters: int
    macs: int
    peak_activation_bytes: int
    file_bytes: dict[str, int]
    latency: dict[tuple[str, int], Latency]
    top1: Top1 | None
    native_size: int
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class BackboneComparison:
    """What `compare_backbones` found; prints as two tables, and renders as one in a notebook.

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
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"It was not compared.{nearest(name, [row.name for row in self.rows])} {received(name=name)}")

    def to_rows(self) -> list[dict]:
        """Return plain dictionaries, for pandas: sizes in bytes, times in milliseconds, `None` for what is missing."""
        return [self._plain(row) for row in self.rows]

    def _plain(self, row) -> dict:
        plain = {
            "name": row.name,
            "parameters": row.parameters,
            "macs": row.macs,
            "peak_activation_bytes": row.peak_activation_bytes,
            **{f"{precision}_bytes": row.file_bytes.get(precision) for precision in PRECISIONS},
        }
        for precision, threads in self._keys():
            latency = row.latency.get((precision, threads))
            for part in ("median", "lower", "upper"):
                value = None if latency is None else 1000 * getattr(latency, part)
                plain[f"{precision}_{threads}_thread{'s' * (threads > 1)}_{part}_ms"] = value
        plain |= {
            "top1_percent": row.top1.percent if row.top1 else None,
            "top1_source": row.top1.source if row.top1 else None,
            "native_size": row.native_size,
            "problems": "; ".join(row.problems) or None,
        }
        return plain

    def _keys(self) -> list[tuple[str, int]]:
        return [(precision, threads) for precision in PRECISIONS for threads in self.threads]

    def __str__(self) -> str:
        runs = max((latency.runs for row in self.rows for latency in row.latency.values()), default=0)
        names = [[row.name] for row in self.rows]
        takes = text_table(
            ["backbone", *_TAKES],
            [name + _takes(row) for name, row in zip(names, self.rows, strict=True)],
            right=set(range(1, 1 + len(_TAKES))),
            title=self._title(),
        )
        times = text_table(
            ["backbone", *self._time_header()],
            [name + self._times(row) for name, row in zip(names, self.rows, strict=True)],
            right=set(range(1, 1 + len(self._keys()))),
            title=f"one image, milliseconds: median (quartiles) of {runs} runs",
        )
        notes = [f"{row.name}: {problem}" for row in self.rows for problem in row.problems]
        return "\n\n".join([takes, times, *(["\n".join(notes)] if notes else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header = ["backbone", *_TAKES, *(f"{name}, ms" for name in self._time_header()), "why something is missing"]
        body = [[row.name, *_takes(row), *self._times(row), "; ".join(row.problems)] for row in self.rows]
        return html_table(header, body, right=set(range(1, len(header) - 1)), title=self._title())

    def _title(self) -> str:
        height, width, _ = self.input_shape
        return f"{height}×{width} pixels, {self.num_classes} classes; top-1 as published, at the native size"

    def _time_header(self) -> list[str]:
        return [f"{precision}, {count} thread{'s' * (count > 1)}" for precision, count in self._keys()]

    def _times(self, row) -> list[str]:
        return [str(row.latency.get(key, "–")) for key in self._keys()]


_TAKES = ("parameters", "MACs", "float32 file", "int8 file", "peak of activations", "ImageNet top-1")


def _takes(row) -> list[str]:
    files = [row.file_bytes.get(precision) for precision in PRECISIONS]
    return [
        _large_number(row.parameters),
        _large_number(row.macs),
        *("–" if size is None else readable_bytes(size) for size in files),
        readable_bytes(row.peak_activation_bytes),
        "–" if row.top1 is None else f"{row.top1.percent:.1f} %",
    ]


def _large_number(count: int) -> str:
    return f"{count / 1e9:,.2f} G" if count >= 1e9 else f"{count / 1e6:,.2f} M"


def _milliseconds(seconds: float) -> str:
    """Return three digits, as more would be noise."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
