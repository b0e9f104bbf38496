"""What a probe measures: right for every kind of label, honest, and telling which block knows."""

import warnings

import keras
import numpy as np
import pytest
from PIL import Image

import kerastl
from kerastl.errors import ArgumentError, DataError, ModelError
from kerastl.evaluation import plots
from kerastl.training.probe import CurvePoint, _advice, _compare, _Part, probe
from kerastl.training.scoring import Problem
from tests import models


def photographs(count=90, classes=3, size=16, noise=20.0, seed=0):
    """Images whose class is the channel that is brightest, in noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = generator.normal(110, noise, (count, size, size, 3))
    images[np.arange(count), :, :, labels] += 30
    return np.clip(images, 0, 255).astype("uint8"), labels.astype("int32")


def small(**options):
    keras.utils.set_random_seed(0)
    return models.nested(16, **options)


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_every_block_is_probed_and_the_output_is_the_last(build):
    keras.utils.set_random_seed(0)
    model = build(16, augmentation=True)
    result = probe(model, photographs(), verbose=0)
    names = [block.name for block in kerastl.list_blocks(model)]
    assert [row.name for row in result.rows][: len(names)] == names
    assert len(result.rows) == len(names) + 1
    assert result.rows[-1].channels == 8 * len(result.rows[-1].name.split(" + "))
    assert result.accuracy == result.rows[result.best].linear > 0.95
    assert result.measured == "cross-validation"
    assert result.curve[-1].images == 72
    assert set(result.seconds) == {"extraction", "fitting"}
    assert [one.name for one in result.per_class] == ["0", "1", "2"]
    text = str(result)
    assert "by cross-validation" in text
    assert result.advice in text
    assert result.best in text
    assert "<table>" in result._repr_html_()


def test_the_model_stays_as_it_is_and_the_linear_model_fits_its_features():
    model = small()
    images, labels = photographs()
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    trainable = [layer.trainable for layer in model.layers]
    result = probe(model, (images, labels), blocks=False, mirrored=False, verbose=0)
    assert [layer.trainable for layer in model.layers] == trainable
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    model.get_layer("predictions").set_weights([result.fit.kernel, result.fit.bias])
    predicted = model.predict(images, verbose=0)
    assert (predicted.argmax(axis=1) == labels).mean() >= result.accuracy
    assert [row.name for row in result.rows] == ["conv2_block3"]


def test_noise_is_not_known_and_more_of_it_adds_little():
    images, _ = photographs(noise=60)
    labels = np.random.default_rng(1).permutation(np.arange(90) % 2)
    result = probe(small(), (images, labels), mirrored=False, class_names=["a", "b", "c"], verbose=0)
    assert 0.3 < result.accuracy < 0.7
    assert "more would help, by" not in result.advice


def test_validation_images_are_measured_on_and_decide_nothing():
    model, train = small(), photographs()
    images, labels = photographs(60, seed=1)
    right = probe(model, train, (images, labels), mirrored=False, verbose=0)
    wrong = probe(model, train, (images, (labels + 1) % 3), mirrored=False, verbose=0)
    assert right.measured == "validation"
    assert right.accuracy == right.rows[right.best].validation > 0.9
    assert wrong.accuracy < 0.1
    assert right.best == wrong.best
    assert [row.linear for row in right.rows] == [row.linear for row in wrong.rows]
    assert right.curve[-1] == CurvePoint(90, right.accuracy, None)


def compared(*features, classes=2):
    """Compare blocks that give these features, `(images, views, channels)`, of images whose classes take turns."""
    labels = np.arange(len(features[0])) % classes
    names = [f"block{place}" for place in range(len(features))]
    return _compare(names, _Part(list(features), labels, None), None, Problem("classification", ["a", "b"]), 0)


@pytest.mark.parametrize("other_noise", [1.0, 30.0])
def test_mirror_images_are_averaged_where_that_is_better(other_noise):
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(100, 2, 4)) * np.array([1.0, other_noise])[:, None]
    features = (noise + 0.5 * (np.arange(100) % 2)[:, None, None]).astype("float32")
    result = compared(features)
    assert result.mirrored == (other_noise == 1)
    assert (
        result.accuracy == result.rows[0].linear == compared(features if result.mirrored else features[:, :1]).accuracy
    )


def test_blocks_that_know_different_things_are_best_side_by_side():
    generator = np.random.default_rng(0)
    classes = (np.arange(200) % 2)[:, None, None]
    first, second, third = (generator.normal(size=(200, 1, 3)).astype("float32") for _ in range(3))
    result = compared(first + classes * 0.8, third, second + classes * 0.8)
    assert result.best == "block0 + block2"
    assert [row.name for row in result.rows] == ["block0", "block1", "block2", "block0 + block2"]
    assert result.fit.kernel.shape == (6, 2)
    assert result.accuracy > max(row.linear for row in result.rows[:3])


def test_of_blocks_side_by_side_the_louder_one_does_not_drown_the_other():
    generator = np.random.default_rng(0)
    classes = (np.arange(200) % 2)[:, None, None]
    first, second = (generator.normal(size=(200, 1, 3)).astype("float32") + classes * 0.8 for _ in range(2))
    alike, louder = compared(first, second), compared(first, 1000 * second)
    assert alike.best == louder.best == "block0 + block1"
    np.testing.assert_allclose(louder.accuracy, alike.accuracy, atol=0.02)
    features = np.concatenate([first, 1000 * second], axis=2)[:, 0].astype("float32")
    right = (louder.fit.outputs(features).argmax(axis=1) == classes[:, 0, 0]).mean()  # takes features as they are
    assert right >= louder.accuracy


def test_several_labels_and_numbers():
    images, labels = photographs()
    several = np.stack([labels == 0, labels >= 1], axis=1).astype("float32")
    backbone = models.tiny_backbone(16)
    result = probe(backbone, (images, several), blocks=False, preprocessing=None, task="multi-label", verbose=0)
    assert result.task == "multi-label"
    assert result.accuracy > 0.95
    assert len(result.per_class) == 2
    numbers = images.mean(axis=(1, 2))[:, :2] / 10
    result = probe(backbone, (images, numbers), blocks=False, preprocessing=None, verbose=0)
    assert result.task == "regression"
    assert result.accuracy > 0.8
    assert result.standard_error is None
    assert "R²" in str(result)
    both = np.stack([labels == 0, np.ones(90)], axis=1).astype("float32")
    assert probe(backbone, (images, both), blocks=False, preprocessing=None, verbose=0).task == "multi-label"


def test_one_hot_labels_weights_datasets_and_names_are_taken():
    model, (images, labels) = small(), photographs()
    plain = probe(model, (images, labels), blocks=False, mirrored=False, verbose=0)
    one_hot = probe(model, (images, np.eye(3)[labels], np.ones(90)), blocks=False, mirrored=False, verbose=0)
    assert plain.accuracy == one_hot.accuracy
    batches = [(images[start : start + 20], labels[start : start + 20]) for start in range(0, 90, 20)]
    listed = probe(model, batches, blocks=False, mirrored=False, class_names=["r", "g", "b"], verbose=0)
    assert listed.accuracy == plain.accuracy
    assert [one.name for one in listed.per_class] == ["r", "g", "b"]
    assert [one.images for one in listed.per_class] == [30, 30, 30]


def test_what_load_images_returned_is_taken_with_its_names(tmp_path):
    images, labels = photographs(60, classes=2)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / ("reddish", "greenish")[label] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    data = kerastl.load_images(tmp_path, image_size=16, validation=0.25, test=0)
    result = probe(small(classes=2), data, blocks=False, mirrored=False, verbose=0)
    assert result.measured == "validation"
    assert [one.name for one in result.per_class] == list(data.class_names) == ["greenish", "reddish"]
    assert sum(one.images for one in result.per_class) == data.split_sizes["validation"]


def test_a_backbone_by_name_gets_its_preprocessing(monkeypatch):
    images, labels = photographs(size=32)
    backbone = kerastl.load_backbone("mobilenet_v2", input_shape=32, weights=None, alpha=0.35)
    given = []
    monkeypatch.setattr(
        "kerastl.models.backbones.load_backbone", lambda name, **options: given.append(options) or backbone
    )
    named = probe("mobilenet_v2", (images, labels), blocks=False, mirrored=False, verbose=0)
    assert given == [{"input_shape": (32, 32, 3)}]
    scaled = (images / 127.5 - 1).astype("float32")
    raw = probe(
        backbone, (scaled, labels), blocks=False, mirrored=False, preprocessing=lambda pixels: pixels, verbose=0
    )
    assert named.rows[0].loss == pytest.approx(raw.rows[0].loss, abs=0.02)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([0.60, 0.70, 0.80], "more would help"),
        ([0.60, 0.61, 0.605], "would add little"),
        ([0.90, 0.70, 0.50], "would add little"),
    ],
)
def test_the_advice_follows_the_slope(images, words):
    points = [CurvePoint(100 * 2**place, score, 0.005) for place, score in enumerate(images)]
    assert words in _advice((*points[:-1], CurvePoint(400, images[-1], None)), "accuracy")
    noisy = [CurvePoint(100, 0.6, 0.2), CurvePoint(200, 0.62, 0.2), CurvePoint(400, 0.64, None)]
    assert "can't be told" in _advice(noisy, "accuracy")
    assert "too few" in _advice([CurvePoint(10, 0.5, None)], "accuracy")
    nearly = [CurvePoint(36, 0.88, 0.001), CurvePoint(45, 0.98, None)]
    assert "by about 0.020 for twice" in _advice(nearly, "accuracy")  # never to more than 1


def test_few_images_and_a_rare_class():
    images, labels = photographs(14)
    labels[-1], labels[:-1] = 2, np.arange(13) % 2
    result = probe(small(), (images, labels), mirrored=False, verbose=0)
    assert result.per_class["2"].images == 1
    assert "too few" in result.advice


def test_the_plot_shows_blocks_and_curve():
    result = probe(small(), photographs(), photographs(60, seed=1), mirrored=False, verbose=0)
    figure = plots.plot_probe(result)
    blocks, curve = figure.axes
    labels = [line.get_label() for line in blocks.get_lines()]
    assert labels[:3] == ["nearest neighbours", "linear, cross-validated", "linear, on validation images"]
    assert list(blocks.get_lines()[1].get_ydata()) == [row.linear for row in result.rows[:-1]]
    assert [text.get_text() for text in blocks.get_xticklabels()] == [row.name for row in result.rows[:-1]]
    assert list(curve.get_lines()[0].get_xdata()) == [one.images for one in result.curve]
    assert curve.get_title() == result.advice
    figure.draw_without_rendering()
    with pytest.raises(ArgumentError, match="probe"):
        plots.plot_probe([1, 2])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda images, labels: {"train": (images, labels * 0)}, DataError, "one class"),
        (lambda images, labels: {"train": (images, labels + 1)}, DataError, "whole numbers"),
        (lambda images, labels: {"train": (pair for pair in [(images, labels)])}, DataError, "read again"),
        (lambda images, labels: {"train": (images[:, :8], labels)}, DataError, "16"),
        (lambda images, labels: {"task": "ranking"}, ArgumentError, "task"),
        (lambda images, labels: {"class_names": ["a"]}, ArgumentError, "class_names"),
        (lambda images, labels: {"model": 3}, ArgumentError, "model"),
        (lambda images, labels: {"model": models.tiny_backbone(16)}, ArgumentError, "preprocessing"),
        (lambda images, labels: {"backbone": "nothing"}, ModelError, "nothing"),
    ],
)
def test_what_cannot_be_probed_is_refused(change, error, words):
    images, labels = photographs(12)
    arguments = {"model": small(), "train": (images, labels), "verbose": 0, **change(images, labels)}
    with pytest.raises(error, match=words):
        probe(**arguments)


def changed(**what):
    """Return a change of the arguments: labels, weights or images of the training data, or of the validation data."""

    def change(images, labels):
        data = what.get("images", lambda one: one)(images), what.get("labels", lambda one: one)(labels)
        train = (*data, what["weights"](labels)) if "weights" in what else data
        return {"train": train, "validation": (images, what["held"](labels)) if "held" in what else None}

    return change


def nan_where_one(labels):
    return np.where(labels == 1, np.nan, labels)


WRONG = {
    "NaN labels": (changed(labels=nan_where_one), DataError, "finite numbers.*part='train'"),
    "text": (changed(labels=lambda one: one.astype(str)), DataError, r"numpy\.unique.*dtype="),
    "NaN in validation": (changed(held=nan_where_one), DataError, "part='validation'"),
    "three axes": (changed(labels=lambda one: np.ones((12, 2, 2))), DataError, r"shape=\(12, 2, 2\)"),
    "two kinds": (
        changed(held=lambda one: np.eye(3)[one]),
        DataError,
        r"one kind.*train=\(12,\), validation=\(12, 3\)",
    ),
    "out of range": (changed(labels=lambda one: one + 1), DataError, "whole numbers"),
    "out of range in validation": (changed(held=lambda one: one + 1), DataError, "whole numbers"),
    "one class": (changed(labels=lambda one: one * 0), DataError, "one class"),
    "no images": (lambda images, labels: {"train": (images[:0], labels[:0])}, DataError, "no images in the train"),
    "NaN weights": (changed(weights=nan_where_one), DataError, "Sample weights"),
    "no weight": (changed(weights=lambda one: one * 0), DataError, "not all 0"),
    "weights below 0": (changed(weights=lambda one: one - 1), DataError, "from 0 on.*smallest=-1"),
    "weights in rows": (changed(weights=lambda one: np.ones((12, 2))), DataError, r"shape=\(12, 2\)"),
    "seed -1": (lambda images, labels: {"seed": -1}, ArgumentError, "`seed` must be.*seed=-1"),
    "seed 1.5": (lambda images, labels: {"seed": 1.5}, ArgumentError, "`seed` must be.*seed=1.5"),
    "task": (lambda images, labels: {"task": "ranking"}, ArgumentError, "task"),
    "few names": (lambda images, labels: {"class_names": ["a"]}, ArgumentError, "3 names"),
    "one text for names": (lambda images, labels: {"class_names": "abc"}, ArgumentError, "names.*class_names='abc'"),
    "grey": (changed(images=lambda one: one[..., 0]), DataError, r"height, width, channels.*shape=\(8, 16, 16\)"),
}


@pytest.mark.parametrize(("change", "error", "words"), WRONG.values(), ids=WRONG)
def test_it_is_refused_before_the_backbone_runs(change, error, words, monkeypatch):
    monkeypatch.setattr("kerastl.training.probe.pooled_features", lambda *a, **more: pytest.fail("the backbone ran"))
    images, labels = photographs(12)
    arguments = {"model": small(), "train": (images, labels), "verbose": 0, **change(images, labels)}
    with pytest.raises(error, match=words):
        probe(**arguments)


def test_of_datasets_the_first_labels_are_checked_before_the_backbone_runs_and_all_after(monkeypatch):
    images, labels = photographs(12)

    def batches(labels, *weights):
        return [tuple(one[start : start + 4] for one in (images, labels, *weights)) for start in range(0, 12, 4)]

    with pytest.raises(DataError, match="whole numbers"):
        probe(small(), batches(np.repeat([0, 1, 4], 4)), verbose=0)
    with pytest.raises(DataError, match="Sample weights"):
        probe(small(), batches(labels, np.repeat([1, 1, -1], 4)), verbose=0)
    options = {"preprocessing": None, "blocks": False, "mirrored": False, "verbose": 0}
    late = probe(models.tiny_backbone(16), batches(np.repeat([0, 1, 2], 4)), class_names=list("abc"), **options)
    assert [one.name for one in late.per_class] == ["a", "b", "c"]
    monkeypatch.setattr("kerastl.training.probe.pooled_features", lambda *a, **more: pytest.fail("the backbone ran"))
    for wrong, words in ((labels.astype(str), "finite numbers"), (labels + 2, "whole numbers")):
        with pytest.raises(DataError, match=words):
            probe(small(), batches(wrong), verbose=0)
    with pytest.raises(DataError, match="one kind"):
        probe(small(), batches(labels), batches(np.eye(3)[labels]), verbose=0)


def test_names_may_be_an_array():
    options = {"blocks": False, "mirrored": False, "verbose": 0}
    result = probe(small(), photographs(30), class_names=np.array(["a", "b", "c"]), **options)
    assert [one.name for one in result.per_class] == ["a", "b", "c"]


def test_validation_numbers_that_are_all_the_same_give_nan_and_no_warnings():
    images, _ = photographs(48)
    numbers = images.mean(axis=(1, 2, 3))
    options = {"blocks": False, "mirrored": False, "preprocessing": None, "verbose": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = probe(models.tiny_backbone(16), (images, numbers), (images[:4], np.full(4, 0.5)), **options)
    assert np.isnan(result.accuracy)
    assert np.isfinite(result.rows[0].linear)
    assert "can't be told, as all numbers" in result.advice
    assert result.advice in str(result)
