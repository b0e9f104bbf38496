"""Choosing a backbone for one's own images: what is measured, what is left out, and what is recommended."""

import json
import types

import keras
import numpy as np
import pytest
from PIL import Image

import kerastl
from kerastl.cli import main
from kerastl.errors import ArgumentError, WeightsUnavailableError
from kerastl.evaluation import plots
from kerastl.lab import choice, comparison
from kerastl.lab.choice import BackboneChoice, ScoredBackbone
from kerastl.lab.comparison import Latency
from kerastl.tables import NamedRows
from tests import models
from tests.commands import fails, write_photos
from tests.test_lab_comparison import needs_litert


def row_of(name, milliseconds, probe, *, error: float | None = 0.01, tuned=None) -> ScoredBackbone:
    latency = {} if milliseconds is None else {("float32", 1): Latency.of([milliseconds / 1000])}
    return ScoredBackbone(
        name=name,
        parameters=1000,
        macs=10**8,
        peak_activation_bytes=1 << 20,
        file_bytes={"float32": 9 << 20} if latency else {},
        latency=latency,
        top1=None,
        native_size=224,
        problems=() if latency else ("float32: no <Erfinv>",),
        image_size=(224, 160),
        weights="imagenet",
        probe=(probe, error),
        fine_tuned=None if tuned is None else (tuned, error),
    )


def choice_of(*rows, **left_out) -> BackboneChoice:
    return BackboneChoice(NamedRows(rows), (1,), "on 99 images", "accuracy", left_out)


def test_the_front_holds_what_nothing_beats_and_the_fastest_near_the_best_is_recommended():
    found = choice_of(
        row_of("best", 40, 0.910),
        row_of("beaten", 30, 0.899),
        row_of("near", 20, 0.901),
        row_of("equal_but_slower", 21, 0.901),
        row_of("fast", 5, 0.80),
        row_of("untimed", None, 0.905),
        hidden="no connection",
    )
    assert found.front == ["fast", "near", "best"]
    assert found.recommended == "near"
    assert found.recommendation == (
        "Recommended: near, accuracy 0.901 ± 0.010, 20 ms: the fastest within one standard error of the best, "
        "best, accuracy 0.910 ± 0.010, 40 ms."
    )
    text = str(found)
    for part in ("0.910 ± 0.010", "224×160", "9.44 MB", "untimed: float32: no <Erfinv>", "hidden is left out: no conn"):
        assert part in text
    assert text.endswith(found.recommendation)
    assert "fine-tuned" not in text
    first, *_, last = found.to_rows()
    assert (first["height"], first["width"]) == (224, 160)
    assert (first["float32_1_thread_median_ms"], first["on_front"], first["recommended"]) == (40, True, False)
    assert (last["float32_1_thread_median_ms"], last["float32_bytes"], last["on_front"]) == (None, None, False)


def test_fine_tuning_decides_where_it_was_asked_for():
    found = choice_of(row_of("one", 10, 0.9, tuned=0.91), row_of("two", 20, 0.8, tuned=0.95))
    assert (found.front, found.recommended) == (["one", "two"], "two")
    assert "the best, and none within its standard error is faster" in found.recommendation
    assert "0.800 ± 0.010  0.950 ± 0.010" in str(found)


def test_numbers_have_no_standard_error_and_what_cannot_be_timed_can_still_be_the_best():
    found = choice_of(row_of("one", 10, 0.5, error=None), row_of("two", None, 0.7, error=None))
    assert (found.front, found.recommended) == (["one"], "two")
    assert "two, accuracy 0.700, not timed" in found.recommendation


def test_the_picture_shows_front_and_recommendation():
    rows = [row_of("best", 40, 0.910), row_of("beaten", 30, 0.88), row_of("near", 20, 0.901), row_of("out", None, 0.9)]
    figure = plots.plot_comparison(choice_of(*rows))
    (panel,) = figure.axes
    weights = {text.get_text(): text.get_weight() for text in panel.texts}
    assert weights == {"best": "bold", "beaten": "normal", "near": "bold"}
    front = next(line for line in panel.lines if line.get_linestyle() == "--")
    assert list(front.get_xdata()) == [20, 40]
    (ring,) = [one for one in panel.collections if one.get_label() == "recommended"]
    assert ring.get_offsets().tolist() == [[20, 0.901]]
    assert panel.get_ylabel() == "accuracy, on 99 images"
    with pytest.raises(ArgumentError, match="int8"):
        plots.plot_comparison(choice_of(*rows), precision="int8")
    with pytest.raises(ArgumentError, match="No backbone was timed"):
        plots.plot_comparison(choice_of(rows[-1]))


# from images to the table


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos", ["amber", "blue", "green"], count=14)


@pytest.fixture
def tiny_networks(monkeypatch):
    """Let real names stand for networks of a few layers: two that see, one that is blind, one without weights."""

    def build(name, num_classes, *, input_shape, weights, task="classification"):
        if name == "resnet34" and weights is not None:
            raise WeightsUnavailableError("no\nconnection. Received: weights='auto'")
        keras.utils.set_random_seed(0)
        model = models.nested(input_shape[0], num_classes, blocks=1, width={"resnet18": 64}.get(name, 8))
        if name == "squeezenet":
            for weight in model.layers[-3].weights:
                weight.assign(0 * weight)
        if task == "regression":
            units = keras.layers.Dense(num_classes, name="numbers")
            model = keras.Model(model.inputs, units(model.layers[-2].output))
        return model

    for module in (choice, comparison):
        monkeypatch.setattr(module, "build_classifier", build)
    monkeypatch.setattr(choice, "describe_weights", lambda model: types.SimpleNamespace(source="imagenet"))


@needs_litert
def test_the_command_measures_on_a_folder_and_leaves_out_what_has_no_weights(photos, tiny_networks, tmp_path, capsys):
    names = ["resnet18", "squeezenet", "resnet34", "mobilenet_v2"]
    options = [
        "--image-size",
        "32",
        "--threads",
        "1",
        "--repeats",
        "6",
        "--test",
        "0.2",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["compare", str(photos), "--backbones", *names, *options]) == 0
    said = capsys.readouterr().out
    assert "resnet34 is left out: no connection." in said
    assert "cross-validated on 27 training images" in said
    content = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
    rows = {row["name"]: row for row in content["rows"]}
    assert set(rows) == {"resnet18", "squeezenet", "mobilenet_v2"}
    assert rows["squeezenet"]["probe"] < 0.6 < 0.9 < rows["mobilenet_v2"]["probe"]
    assert rows["resnet18"]["float32_1_thread_median_ms"] > rows["mobilenet_v2"]["float32_1_thread_median_ms"]
    assert rows["resnet18"]["float32_bytes"] > rows["mobilenet_v2"]["float32_bytes"]
    assert rows["mobilenet_v2"]["recommended"]
    assert content["left_out"] == {"resnet34": "no connection."}
    assert "mobilenet_v2, accuracy" in content["recommendation"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("comparison.csv", "comparison.json", "comparison.png")
    ]


@needs_litert
def test_the_recipe_is_measured_beside_the_probe_on_the_validation_images(photos, tiny_networks, monkeypatch):
    data, told = kerastl.load_images(photos, image_size=32, verbose=0), []

    def train(model, train, validation, **options):
        told.append((train, validation, options["seed"]))
        model.layers[-1].bias.assign([50, 0, 0])  # from now on it says amber, whatever it sees

    monkeypatch.setattr(choice, "transfer_learn", train)
    found = kerastl.choose_backbone(data, ["mobilenet_v2"], recipe=True, threads=1, repeats=5, seed=3, verbose=0)
    assert told == [(data.train, data.validation, 3)]
    count = data.split_sizes["validation"]
    assert found.measured == f"on {count} validation images"
    row = found["mobilenet_v2"]
    amber = np.mean(np.concatenate([labels for _, labels in data.validation.as_numpy_iterator()]) == 0)
    assert row.fine_tuned == pytest.approx((amber, np.sqrt(amber * (1 - amber) / count)))
    assert row.probe[0] > 0.9


@needs_litert
def test_numbers_are_scored_by_r2_and_trained_by_the_recipe(tmp_path, tiny_networks, monkeypatch):
    known = {}

    def train(model, train, validation, **options):
        kerastl.transfer_learn(model, train, validation, **options, head_epochs=2, fine_tune_epochs=0, views=1)
        known["r2"] = kerastl.evaluate(model, validation, task="regression").scores["r2"]

    monkeypatch.setattr(choice, "transfer_learn", train)
    generator = np.random.default_rng(0)
    light = generator.uniform(40, 215, 40)
    for index, value in enumerate(light):
        pixels = generator.normal(value, 8, (32, 32, 3)).clip(0, 255).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    lines = [f"{index:02}.png,{value / 255:.4f}" for index, value in enumerate(light)]
    (tmp_path / "light.csv").write_text("\n".join(["file,light", *lines]))
    options = {"recipe": True, "threads": 1, "repeats": 5, "labels": "light.csv", "validation": 0.3, "verbose": 0}
    found = kerastl.choose_backbone(tmp_path, ["mobilenet_v2"], 32, **options)
    row = found["mobilenet_v2"]
    assert found.what == "R²"
    assert (row.probe[1], row.fine_tuned[1]) == (None, None)
    assert 0.9 < row.probe[0] <= 1
    assert row.fine_tuned[0] == pytest.approx(known["r2"])
    assert "mobilenet_v2, R² " in found.recommendation


@needs_litert
def test_without_any_weights_there_is_nothing_to_compare(photos, tiny_networks, capsys):
    assert "resnet34: no connection" in fails(
        capsys, "compare", photos, "--backbones", "resnet34", "--image-size", "32", "--threads", 1
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["flowers", "--backbones", "resnet51"], "no such backbone"),
        (["flowers", "--backbones", "resnet18", "--weights", "none"], "--weights"),
        (["flowers", "--backbones", "resnet18", "--classes", "3"], "its classes count"),
        (["flowers", "tulips", "--backbones", "resnet18"], "one source"),
        (["resnet18", "--recipe"], "--backbones"),
        (["nowhere", "--backbones", "resnet18"], "no folder"),
        (["flowers", "--backbones", "resnet18", "--seed", "-1"], "--seed"),
    ],
)
@needs_litert
def test_the_command_says_in_one_line_what_is_wrong(options, said, capsys):
    assert said in fails(capsys, "compare", *options)
