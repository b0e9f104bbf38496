"""Comparing backbones: what is counted, what is timed, and what a backbone that can't be converted leaves behind."""

import csv
import itertools
import json

import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl.cli import main
from kerastl.errors import ArgumentError, BackendError
from kerastl.evaluation import plots
from kerastl.features import litert
from kerastl.lab import comparison as compare
from kerastl.lab.comparison import BackboneComparison, ComparedBackbone, Latency
from kerastl.lab.published import TOP1, Top1
from tests import models

needs_litert = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or not litert.is_installed(), reason="needs LiteRT and its converter"
)


def unconvertible(size: int) -> keras.Model:
    """A network with an operation that LiteRT lacks."""
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, strides=4)(inputs)
    x = layers.GlobalAveragePooling2D()(keras.ops.erfinv(keras.ops.tanh(x)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@pytest.fixture
def tiny_networks(monkeypatch):
    """Let the real names stand for networks that are converted in a second or two."""
    built = {}

    def build(name, num_classes, *, input_shape, weights):
        assert weights is None
        size = input_shape[0]
        built[name] = {
            "mobilenet_v2": lambda: models.nested(size, num_classes, blocks=1, width=4),
            "resnet18": lambda: models.nested(size, num_classes, blocks=1, width=32),
            "shufflenet": lambda: unconvertible(size),
        }[name]()
        return built[name]

    monkeypatch.setattr(compare, "build_classifier", build)
    return built


@needs_litert
def test_what_is_counted_is_timed_and_what_cannot_be_converted_says_why(tiny_networks, capsys):
    names = ["resnet18", "shufflenet", "mobilenet_v2"]
    found = kerastl.compare_backbones(names, 64, num_classes=3, threads=[1], repeats=6)
    assert [row.name for row in found.rows] == names
    for name in ("resnet18", "mobilenet_v2"):
        row, cost = found[name], kerastl.model_cost(tiny_networks[name])
        assert (row.parameters, row.macs, row.problems) == (cost.parameters, cost.macs, ())
        assert row.peak_activation_bytes == cost.peak_activation_bytes
        assert set(row.latency) == {("float32", 1), ("int8", 1)}
        assert all(one.runs == 6 and 0 < one.lower <= one.median <= one.upper for one in row.latency.values())
    large, small = found["resnet18"], found["mobilenet_v2"]
    assert large.file_bytes["int8"] < large.file_bytes["float32"]
    assert large.latency["float32", 1].median > small.latency["float32", 1].median
    missing = found["shufflenet"]
    assert (missing.file_bytes, missing.latency) == ({}, {})
    assert missing.parameters == tiny_networks["shufflenet"].count_params()
    assert missing.top1.percent == 67.8
    assert missing.problems[0].startswith("float32: ")
    assert "can't be converted" in missing.problems[0]
    assert f"shufflenet: {missing.problems[0]}" in str(found)
    assert "2 of 3: converting shufflenet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["mobilenet_v9"]}, "Did you mean 'mobilenet_v2'|Did you mean 'mobilenet_v3"),
        ({"names": "mobilenet_v2"}, "must be a list"),
        ({"names": []}, "must be a list"),
        ({"names": ["resnet18", "resnet18"]}, "once"),
        ({"names": ["mobilenet_v2", "xception"], "input_shape": 64}, "xception takes images of 71×71"),
        ({"names": ["resnet18"], "threads": 0}, "threads=0"),
        ({"names": ["resnet18"], "threads": [1, 1]}, "different numbers"),
        ({"names": ["resnet18"], "threads": []}, "different numbers"),
        ({"names": ["resnet18"], "repeats": 0}, "repeats=0"),
        ({"names": ["resnet18"], "num_classes": 1}, "num_classes=1"),
    ],
)
def test_arguments_are_checked_before_anything_is_built(arguments, message, monkeypatch):
    monkeypatch.setattr(compare, "build_classifier", None)
    with pytest.raises(ArgumentError, match=message):
        kerastl.compare_backbones(**arguments)


def test_without_litert_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(litert, "is_installed", lambda: False)
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(BackendError, match=r"kerastl\[export\]"):
        kerastl.compare_backbones(["resnet18"])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(BackendError, match="KERAS_BACKEND=tensorflow"):
        kerastl.compare_backbones(["resnet18"])


def test_every_backbone_has_a_published_accuracy_with_its_source():
    assert set(TOP1) == set(kerastl.list_backbones())
    assert all(50 < top1.percent < 90 and top1.source for top1 in TOP1.values())


def test_published_mobilenet_v3_is_what_keras_says():
    """The one source that is installed: Keras's own docstring."""
    for name, row in (("mobilenet_v3_small", "small"), ("mobilenet_v3_large", "large")):
        text = getattr(keras.applications, f"MobileNetV3{row.title()}").__doc__
        line = next(line for line in text.splitlines() if f"{name}_1.0_224" in line)
        assert f"{TOP1[name].percent}" in line


def test_median_and_quartiles():
    latency = Latency.of(np.array([5, 1, 2, 3, 4]) / 1000)
    assert (latency.lower, latency.median, latency.upper, latency.runs) == pytest.approx((0.002, 0.003, 0.004, 5))
    assert str(latency) == "3.00 (2.00–4.00)"
    assert str(Latency.of([0.25, 0.25])) == "250 (250–250)"


def row_of(name, milliseconds, top1=70.0, macs=3e8, problems=()) -> ComparedBackbone:
    latency = (
        {} if milliseconds is None else {("float32", 1): Latency.of(np.array([0.9, 1, 1.2]) * milliseconds / 1000)}
    )
    return ComparedBackbone(
        name=name,
        parameters=2_270_794,
        macs=int(macs),
        peak_activation_bytes=1 << 20,
        file_bytes={} if milliseconds is None else {"float32": 9 << 20},
        latency=latency,
        top1=None if top1 is None else Top1(top1, "somewhere"),
        native_size=224,
        problems=tuple(problems),
    )


def comparison_of(*rows) -> BackboneComparison:
    return BackboneComparison(tuple(rows), (224, 160, 3), 10, (1,))


def test_the_table_prints_renders_and_turns_into_rows():
    found = comparison_of(
        row_of("one", 12.0), row_of("two", None, top1=None, macs=2.5e9, problems=["float32: no <Erfinv>"])
    )
    text = str(found)
    for part in ("224×160 pixels, 10 classes", "2.27 M", "300.00 M", "2.50 G", "9.44 MB", "70.0 %", "12.0 (11.4–13.2)"):
        assert part in text
    assert "two: float32: no <Erfinv>" in text
    assert max(map(len, text.splitlines())) < 120
    assert "no &lt;Erfinv&gt;" in found._repr_html_()
    first, second = found.to_rows()
    assert first["float32_1_thread_median_ms"] == pytest.approx(12)
    assert first["int8_bytes"] is None
    assert first["problems"] is None
    assert first.keys() == second.keys()
    assert (second["top1_percent"], second["float32_1_thread_median_ms"]) == (None, None)
    with pytest.raises(KeyError, match="Did you mean 'one'"):
        found["onee"]


# the plot


def crowded() -> BackboneComparison:
    """Points on top of each other, with long names."""
    random = np.random.default_rng(0)
    rows = [
        row_of(
            f"some_backbone_v{number}", 10 + random.normal(0, 1.5), 70 + random.normal(), 3e8 + random.normal(0, 2e7)
        )
        for number in range(9)
    ]
    return comparison_of(*rows, row_of("nothing_measured", None), row_of("unpublished", 30.0, top1=None, macs=9e8))


def test_no_name_covers_another_or_a_point():
    figure = plots.plot_comparison(crowded())
    figure.draw_without_rendering()
    for panel, count in zip(figure.axes, (9, 10), strict=True):
        assert "nothing_measured" not in [text.get_text() for text in panel.texts]
        assert len(panel.texts) == count
        boxes = [super(type(text), text).get_window_extent() for text in panel.texts]
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        points = panel.transData.transform(np.column_stack(panel.lines[0].get_data()))
        assert not any(box.contains(*point) for box in boxes for point in points)
        assert all(panel.bbox.x0 <= box.x0 and box.x1 <= panel.bbox.x1 for box in boxes)


def test_both_panels_share_the_time_and_one_shows_what_proportional_would_be():
    figure = plots.plot_comparison(comparison_of(row_of("one", 10.0, macs=1e8), row_of("two", 20.0, macs=8e8)))
    accuracy, macs = figure.axes
    assert accuracy.get_xlabel() == macs.get_xlabel() == "milliseconds for one image, float32, 1 thread"
    assert list(macs.lines[0].get_ydata()) == [100, 800]
    dashed = next(line for line in macs.lines if line.get_linestyle() == "--")
    across, up = dashed.get_data()
    assert up[1] / across[1] == pytest.approx(np.median([10, 40]))


@pytest.mark.parametrize("arguments", [{"precision": "float16"}, {"threads": 4}, {"precision": "int8"}])
def test_a_plot_of_what_was_not_measured_is_refused(arguments):
    with pytest.raises(ArgumentError):
        plots.plot_comparison(comparison_of(row_of("one", 10.0)), **arguments)


# the command


@pytest.fixture
def prepared(monkeypatch):
    calls = []

    def fake(names, input_shape, **options):
        calls.append((names, input_shape, options))
        return comparison_of(row_of("one", 12.0), row_of("two", None, problems=["float32: why"]))

    monkeypatch.setattr(compare, "compare_backbones", fake)
    return calls


def test_the_command_prints_and_writes(prepared, tmp_path, capsys):
    out = tmp_path / "comparison"
    arguments = ["compare", "resnet18", "squeezenet", "--image-size", "160x224", "--classes", "2", "--out", str(out)]
    assert main(arguments) == 0
    names, shape, options = prepared[0]
    assert (names, shape) == (["resnet18", "squeezenet"], (160, 224, 3))
    assert options == {"num_classes": 2, "threads": [1, 2], "repeats": 50}
    assert "12.0 (11.4–13.2)" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["comparison.csv", "comparison.json", "comparison.png"]
    with open(out / "comparison.csv", newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["one", "two"]
    content = json.loads((out / "comparison.json").read_text())
    assert content["rows"][1]["problems"] == "float32: why"
    assert main(arguments) == 2  # never over something that is there
    assert main([*arguments, "--overwrite"]) == 0


def test_the_command_checks_its_folder_first(prepared, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["compare", "resnet18", "--out", str(tmp_path), "--overwrite"]) == 2
    assert not prepared
    assert "mine.txt" in capsys.readouterr().err
