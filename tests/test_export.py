"""What is exported has the model's outputs, or is stopped; and nothing that is half done stays behind."""

import importlib.util
import json
import sys

import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl.errors import (
    ArgumentError,
    BackendError,
    DataError,
    GateError,
    KerastlWarning,
    ModelError,
    OutputError,
)
from kerastl.evaluation.probabilities import class_probabilities
from kerastl.export import conversion, formats, gate
from kerastl.export.gate import Comparison, Limits, failure_of
from kerastl.export.inference import inference_model
from kerastl.features import litert
from tests import models

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the exporters are TensorFlow's"),
    pytest.mark.skipif(not litert.is_installed(), reason="needs ai-edge-litert"),
]
NAMES = ["amber", "blue", "crimson"]


def needs(name):
    missing = [one for one in formats.FORMATS[name].packages if importlib.util.find_spec(one) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def coloured(count, seed=0):
    """Images of three colours in noise, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = random.normal(90, 40, (count, 32, 32, 3))
    images[np.arange(count), :, :, labels] += 60
    return images.clip(0, 255).astype("uint8"), labels


@pytest.fixture(scope="module")
def model():
    """A nested model with augmentation that has learned its three colours."""
    keras.utils.set_random_seed(0)
    trained = models.compiled(models.nested(32, augmentation=True, blocks=1), 1e-2)
    images, labels = coloured(96)
    trained.fit(images.astype("float32"), labels, epochs=8, verbose=0)
    for layer in trained.layers:
        layer.trainable = False
    return trained


@pytest.fixture(scope="module")
def data():
    return {"representative": coloured(48), "held_out": coloured(60, seed=1)}


@pytest.fixture(scope="module")
def _conversions():
    return {}


@pytest.fixture
def convert_once(_conversions, monkeypatch):
    """Let tests of what comes after the conversion share those of the trained model, which take seconds each."""
    convert = conversion.convert

    def remembered(model, **options):
        key = (options["quantize"], model.inputs[0].dtype)
        if key not in _conversions:
            _conversions[key] = convert(model, **options)
        return _conversions[key]

    monkeypatch.setattr(conversion, "convert", remembered)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "bundle"


def left_behind(folder):
    return sorted(path.name for path in folder.parent.iterdir())


def card_of(folder):
    return json.loads((folder / "model_card.json").read_text())


def test_the_model_has_learned_enough_for_its_accuracy_to_say_something(model, data):
    assert kerastl.evaluate(model, data["held_out"]).accuracy > 0.9


@pytest.mark.parametrize(
    ("name", "quantize", "pixels"),
    [
        ("litert", None, "uint8"),
        pytest.param("litert", "float16", "float32", marks=pytest.mark.slow),
        ("litert", "dynamic", "float32"),
        ("litert", "int8", "uint8"),
        ("saved_model", None, "float32"),
        pytest.param("onnx", None, "uint8", marks=needs("onnx")),
    ],
)
def test_every_format_passes_the_gate_and_says_on_the_card_how(model, data, folder, name, quantize, pixels):
    written = kerastl.export_model(
        model, folder, formats=name, quantize=quantize, pixels=pixels, labels=NAMES, verbose=0, **data
    )
    card = written.card
    compared = card["gate"]["comparisons"][0]
    assert (compared["format"], compared["quantize"], compared["count"]) == (name, quantize, 60)
    assert compared["agreement"] >= (0.995 if quantize is None else 0.95)
    assert compared["largest_difference"] < (1e-4 if quantize is None else 0.2)
    assert compared["keras_accuracy"] == pytest.approx(kerastl.evaluate(model, data["held_out"]).accuracy)
    assert [one["name"] for one in compared["classes"]] == NAMES
    assert card["gate"]["images"] == "held-out"
    assert card["input"] == {
        "shape": [1, 32, 32, 3],
        "type": pixels,
        "channels": "RGB",
        "range": [0, 255],
        "resize": "squash",
        "preprocessing": "the model's own",
    }
    assert set(card["files"]) >= {"labels.txt"}
    if name == "litert":
        images, labels = data["held_out"]
        assert np.mean(np.array(written.predict(images).labels) == np.array(NAMES)[labels]) == compared["accuracy"]


@pytest.mark.skipif(sys.platform == "darwin", reason="there the gate runs it")
@needs("coreml")
@pytest.mark.usefixtures("convert_once")
def test_core_ml_is_written_with_a_warning_where_it_cannot_run(model, folder):
    with pytest.warns(KerastlWarning, match="coreml float32 was written, but not compared"):
        written = kerastl.export_model(model, folder, formats=["litert", "coreml"], verbose=0)
    assert [one["count"] for one in written.card["gate"]["comparisons"]] == [32, 0]
    assert any(name.startswith("model.mlpackage/") for name in written.card["files"])


def test_augmentation_and_dropout_stay_behind_and_the_outputs_stay():
    inputs = keras.Input((32, 32, 3))
    x = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.5), layers.RandomContrast(0.5)])(inputs)
    x = layers.GaussianNoise(0.9)(models.tiny_backbone(32, blocks=1)(x))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    exported = inference_model(model)
    kinds = {type(layer).__name__ for layer in exported.layers}
    assert not {kind for kind in kinds if "Random" in kind or "Drop" in kind or "Noise" in kind or "Sequential" in kind}
    assert not [weight.path for weight in exported.weights if "seed" in weight.path]
    images = coloured(4)[0].astype("float32")
    both = [keras.ops.convert_to_numpy(one(images, training=False)) for one in (model, exported)]
    np.testing.assert_allclose(*both, rtol=1e-6)


def test_the_keras_savedmodel_of_an_augmenting_model_is_random_and_ours_is_not(model, tmp_path):
    """The trap that leaving augmentation out protects from; when Keras mends it, the docstring has to be changed."""
    import tensorflow as tf

    images = coloured(4)[0].astype("float32")
    model.export(str(tmp_path / "plain"), format="tf_saved_model", verbose=False)
    plain = tf.saved_model.load(str(tmp_path / "plain"))
    assert len({plain.serve(images).numpy().tobytes() for _ in range(12)}) > 1
    formats.write("saved_model", inference_model(model), tmp_path / "ours", None, None)
    ours = formats.load("saved_model", tmp_path / "ours")
    assert len({ours(images).tobytes() for _ in range(12)}) == 1


@pytest.mark.parametrize("shape", ["flat", "nested", "sequential"])
def test_flat_nested_and_sequential_models_export_unchanged(shape):
    model = getattr(models, shape)(32)
    before = models.snapshot(model)
    exported = inference_model(model, pixels="uint8")
    images = coloured(4)[0]
    both = [keras.ops.convert_to_numpy(one(images, training=False)) for one in (model, exported)]
    np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-6)
    assert not models.changed(before, model)


def test_a_model_of_any_size_needs_one_and_gets_it():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    with pytest.raises(ArgumentError, match="pass `image_size=`"):
        inference_model(model)
    assert inference_model(model, image_size=(24, 40)).input_shape == (None, 24, 40, 3)
    with pytest.raises(ArgumentError, match="no others"):
        inference_model(models.flat(32), image_size=64)


def test_the_first_of_several_outputs_is_exported():
    inputs = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    main, other = layers.Dense(3, activation="softmax")(x), layers.Dense(5)(x)
    for structure in ([main, other], {"z": main, "a": other}):
        assert inference_model(keras.Model(inputs, structure)).output_shape == (None, 3)


def test_sigmoid_and_logits_are_compared_as_probabilities(folder):
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(inputs)))
    for units, activation in ((1, "sigmoid"), (4, None)):
        model = keras.Model(inputs, layers.Dense(units, activation=activation)(x))
        written = kerastl.export_model(model, folder, overwrite=True, verbose=0)
        images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), "uint8")
        expected = class_probabilities(model, images)
        np.testing.assert_allclose(written.predict(images).probabilities, expected, atol=1e-5)


def broken(monkeypatch, change):
    """Let what is loaded from LiteRT be wrong, as a bad conversion would."""
    load = formats.load

    def load_and_spoil(name, path):
        run = load(name, path)
        return lambda pixels: change(run(pixels).copy())

    monkeypatch.setattr("kerastl.export.exporting.writing.load", load_and_spoil)


def rolled(given):
    """Name the next class for one image in ten."""
    given[::10] = np.roll(given[::10], 1, axis=1)
    return given


def with_nan(given):
    given[0, 0] = np.nan
    return given


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (rolled, {}, r"litert float32: it names Keras's class for 8\d\.\d\d% of the images, and must for 99\.50%"),
        (rolled, {"quantize": "dynamic"}, r"litert dynamic: it loses \d+\.\d\d points of accuracy, and may lose 1\.00"),
        (with_nan, {"quantize": "dynamic"}, "its outputs hold NaN or infinity"),
    ],
)
@pytest.mark.usefixtures("convert_once")
def test_the_gate_stops_a_bad_export_and_leaves_nothing(model, data, folder, monkeypatch, change, options, reason):
    broken(monkeypatch, change)
    with pytest.raises(GateError, match=reason) as caught:
        kerastl.export_model(model, folder, labels=NAMES, verbose=0, held_out=data["held_out"], **options)
    assert "FAILED" in caught.value.table
    assert "60 held-out images" in caught.value.reason
    assert left_behind(folder) == []


@pytest.mark.usefixtures("convert_once")
def test_the_gate_lets_pass_what_the_limits_allow(model, data, folder, monkeypatch):
    broken(monkeypatch, rolled)
    written = kerastl.export_model(
        model, folder, quantize="dynamic", verbose=0, held_out=data["held_out"], accuracy_loss=0.2, labels=NAMES
    )
    lost = [one["lost"] for one in written.card["gate"]["comparisons"][0]["classes"]]
    assert max(lost) > 0


@pytest.mark.usefixtures("convert_once")
def test_a_failed_export_leaves_an_earlier_bundle_alone(model, data, folder, monkeypatch):
    kerastl.export_model(model, folder, verbose=0)
    before = (folder / "model_card.json").read_bytes()
    broken(monkeypatch, rolled)
    with pytest.raises(GateError):
        kerastl.export_model(model, folder, verbose=0, overwrite=True, held_out=data["held_out"])
    assert (folder / "model_card.json").read_bytes() == before
    assert left_behind(folder) == ["bundle"]


def comparison(**values):
    return Comparison(**{"format": "litert", "quantize": "int8", "count": 1000, "largest_difference": 0.1, **values})


@pytest.mark.parametrize(
    ("values", "passes"),
    [
        ({"agreement": 0.9, "keras_accuracy": 0.8, "accuracy": 0.79}, True),
        ({"agreement": 0.9, "keras_accuracy": 0.8, "accuracy": 0.789}, False),
        ({"agreement": 0.9, "keras_accuracy": 0.8, "accuracy": 0.85}, True),
        ({"agreement": 0.99}, True),
        ({"agreement": 0.989}, False),
        ({"agreement": 0.995, "quantize": None}, True),
        ({"agreement": 0.994, "quantize": None, "keras_accuracy": 0.5, "accuracy": 0.6}, False),
        ({"agreement": 1.0, "largest_difference": None}, False),
        ({"count": 0, "largest_difference": None}, True),
    ],
)
def test_the_limits_are_those_that_the_documentation_names(values, passes):
    assert (failure_of(comparison(**values), Limits()) is None) is passes


def test_the_table_names_the_classes_that_lose_most_first():
    classes = [
        {"name": name, "images": 10, "keras": 0.9, "exported": 0.9 - lost, "lost": lost}
        for name, lost in (("a", 0.0), ("b", 0.4), ("c", -0.1))
    ]
    text = str(gate.Comparisons([comparison(agreement=0.9, keras_accuracy=0.9, accuracy=0.8, classes=classes)]))
    lines = [line.split() for line in text.splitlines()[-3:]]
    assert [(line[0], line[-1]) for line in lines] == [("b", "-40.0"), ("a", "+0.0"), ("c", "+10.0")]


@pytest.mark.usefixtures("convert_once")
def test_without_held_out_images_the_card_says_what_was_compared_on(model, data, folder, capsys):
    kerastl.export_model(model, folder, representative=data["representative"])
    assert "representative images (no held-out ones were given)" in capsys.readouterr().out
    assert card_of(folder)["gate"]["images"] == "representative"
    kerastl.export_model(model, folder, overwrite=True)
    assert "32 images of noise (no others were given)" in capsys.readouterr().out
    assert card_of(folder)["gate"]["images"] == "noise"
    assert card_of(folder)["gate"]["comparisons"][0]["accuracy"] is None


@pytest.mark.usefixtures("convert_once")
def test_datasets_in_batches_serve_as_well_as_arrays(model, data, folder):
    import tensorflow as tf

    identities = []
    for held_out in (data["held_out"], tf.data.Dataset.from_tensor_slices(data["held_out"]).batch(32)):
        unlabelled = tf.data.Dataset.from_tensor_slices(data["representative"][0]).batch(16)
        written = kerastl.export_model(
            model, folder, overwrite=True, representative=unlabelled, held_out=held_out, verbose=0
        )
        assert written.card["gate"]["comparisons"][0]["accuracy"] > 0.9
        identities.append(written.card["gate"]["identity"])
    assert identities[0] == identities[1]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"formats": []}, ArgumentError, "`formats` must name"),
        ({"formats": "tflite"}, ArgumentError, "Did you mean 'litert'"),
        ({"formats": ["litert", "litert"]}, ArgumentError, "each once"),
        ({"quantize": "int4"}, ArgumentError, "'int8'"),
        ({"formats": "saved_model", "quantize": "int8"}, ArgumentError, "is for 'litert' alone"),
        ({"pixels": "int16"}, ArgumentError, "'uint8'"),
        ({"resize": "stretch"}, ArgumentError, "'squash'"),
        ({"quantize": "int8"}, ArgumentError, "needs `representative=`"),
        ({"quantize": "int8", "representative": np.zeros((0, 32, 32, 3))}, DataError, "no representative images"),
        ({"representative": np.zeros((4, 16, 16, 3)) + 9}, DataError, "takes images of 32 × 32 × 3.*16 × 16 × 3"),
        ({"representative": np.full((4, 32, 32, 3), np.nan)}, DataError, "NaN"),
        ({"held_out": (np.zeros((0, 32, 32, 3)), np.zeros(0))}, DataError, "no held-out images"),
        ({"held_out": (np.zeros((4, 64, 32, 3)) + 9, np.zeros(4))}, DataError, "takes images of 32"),
        ({"held_out": (np.zeros((4, 32, 32, 3)) + 9, np.full(4, 3))}, DataError, "from 0 to 2"),
        ({"held_out": 3}, DataError, "Expected a `tf.data.Dataset`"),
        ({"labels": ["a", "b"]}, DataError, "one class name for each"),
        ({"labels": ["a", "b", " "]}, DataError, "must not be empty"),
        ({"accuracy_loss": -1}, ArgumentError, "accuracy_loss"),
        ({"agreement": 2}, ArgumentError, "agreement"),
        ({"details": {"files": {}}}, ArgumentError, "says these itself"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(model, folder, monkeypatch, options, error, words):
    monkeypatch.setattr("kerastl.export.exporting.writing.write", lambda *_: pytest.fail("the slow work had begun"))
    with pytest.raises(error, match=words):
        kerastl.export_model(model, folder, verbose=0, **options)
    assert left_behind(folder) == []


def test_models_that_are_no_float32_classifiers_of_pixels_are_refused(folder):
    inputs = keras.Input((32, 32, 3))
    with pytest.raises(ModelError, match="Expected a classifier"):
        kerastl.export_model(models.tiny_backbone(32), folder)
    half = keras.Model(inputs, layers.Dense(2, dtype="mixed_float16")(layers.GlobalAveragePooling2D()(inputs)))
    with pytest.raises(ModelError, match=r"float32.*compute_dtype='float16'"):
        kerastl.export_model(half, folder)

    class Subclassed(keras.Model):
        pass

    with pytest.raises(ModelError, match=r"keras\.Model\(inputs, model\(inputs\)\)"):
        kerastl.export_model(Subclassed(), folder)
    assert left_behind(folder) == []


def test_a_model_that_cannot_be_converted_leaves_nothing(folder):
    class Determinant(layers.Layer):
        def call(self, x):
            return keras.ops.det(x[..., :3, :3, 0])[:, None]

    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, layers.Dense(2)(Determinant()(inputs)))
    with pytest.raises(ModelError, match="MatrixDeterminant"):
        kerastl.export_model(model, folder, verbose=0)
    assert left_behind(folder) == []


@pytest.mark.usefixtures("convert_once")
def test_an_interrupted_export_leaves_nothing(model, folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kerastl.export.exporting.writing.load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        kerastl.export_model(model, folder, verbose=0)
    assert left_behind(folder) == []


def test_a_folder_of_something_else_is_never_replaced(model, folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"not empty|holds more than a bundle"):
            kerastl.export_model(model, folder, overwrite=overwrite, verbose=0)
    assert (folder / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["litert", "onnx", "coreml"])
def test_a_missing_package_is_an_error_that_names_the_extra(model, folder, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=rf"'{name}' needs .*kerastl\[export\]"):
        kerastl.export_model(model, folder, formats=name)
    assert left_behind(folder) == []


@pytest.mark.usefixtures("convert_once")
def test_the_details_of_the_caller_and_the_versions_stand_on_the_card(model, folder):
    kerastl.export_model(model, folder, verbose=0, details={"licence": "CC0", "data": {"name": "drawn"}})
    card = card_of(folder)
    assert card["licence"] == "CC0"
    assert card["data"] == {"name": "drawn"}
    assert card["versions"]["keras"] == keras.__version__
    assert card["versions"]["ai-edge-litert"]


def numbers_gate(exported, labels=None, task="regression", quantize=None):
    """Compare a model of one number (or of two labels) with what `exported` makes of its outputs."""
    inputs = keras.Input((2, 2, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, pooled[:, :1] / 10 if task == "regression" else keras.ops.sigmoid(pooled[:, :2] - 100))
    values = np.array([0, 60, 120, 255], "float32")
    images = np.broadcast_to(values[:, None, None, None], (4, 2, 2, 3)).copy()
    (found,) = gate.compare(
        model,
        {"litert": lambda pixels: exported(model.predict(pixels, verbose=0))},
        [(images, labels)],
        quantizations={"litert": quantize},
        limits=gate.Limits(),
        class_names=["weight"] if task == "regression" else ["wet", "cold"],
        pixels="float32",
        task=task,
    )
    return found


def test_numbers_may_differ_by_a_part_of_their_deviation():
    deviation = np.std([0, 6, 12, 25.5])
    found = numbers_gate(lambda numbers: numbers + 0.004 * deviation)
    assert found.failure is None
    assert found.largest_difference == pytest.approx(0.004, rel=1e-3)
    assert found.mean_difference == pytest.approx(0.004, rel=1e-3)
    assert found.agreement == pytest.approx(1 - 0.004**2)
    said = numbers_gate(lambda numbers: numbers + 0.02 * deviation).failure
    assert said == "a number is 0.02 standard deviations from Keras's, and may be 0.005"
    assert numbers_gate(lambda numbers: numbers * np.nan).failure == "its outputs hold NaN or infinity"


def test_quantized_numbers_may_lose_a_part_of_r2():
    labels = np.array([[0], [6], [12], [25.5]])
    found = numbers_gate(lambda numbers: numbers + 0.09 * labels.std(), labels, quantize="int8")
    assert (found.keras_accuracy, found.failure) == (pytest.approx(1), None)
    assert found.accuracy == pytest.approx(1 - 0.09**2)
    found = numbers_gate(lambda numbers: numbers + 0.2 * labels.std(), labels, quantize="int8")
    assert found.failure == "it loses 4.00 points of R², and may lose 1.00"
    assert (
        "R² of its numbers against Keras's is 96.00%"
        in numbers_gate(lambda numbers: numbers + 0.2 * labels.std(), quantize="int8").failure
    )


def test_labels_must_be_kept():
    labels = np.array([[0, 0], [0, 1], [1, 1], [1, 1]], bool)
    found = numbers_gate(lambda said: said, labels, "multi-label")
    assert (found.agreement, found.keras_accuracy, found.failure) == (1.0, 7 / 8, None)
    assert [(one["name"], one["images"], one["keras"]) for one in found.classes] == [
        ("wet", 2, 1.0),
        ("cold", 3, pytest.approx(2 / 3)),
    ]
    found = numbers_gate(lambda said: said * [1, 0], labels, "multi-label")
    assert found.agreement == 6 / 8
    assert found.failure == "75.00% of its labels are Keras's, and must be 99.50%"
    found = numbers_gate(lambda said: said * [1, 0], labels, "multi-label", quantize="int8")
    assert found.failure == "it loses 25.00 points of accuracy, and may lose 1.00"


def labelled_model(activation="softmax"):
    """A model that says which channel is brightest on the left half of an image, and less so on the right."""
    inputs = keras.Input((8, 8, 3))
    left = layers.AveragePooling2D(4)(inputs / 255)[:, 0, 0]
    right = layers.AveragePooling2D(4)(inputs / 255)[:, 1, 1]
    head = layers.Dense(3, activation=activation, name="last")
    model = keras.Model(inputs, head(layers.Concatenate()([left, right])))
    head.set_weights([np.concatenate([4 * np.eye(3), np.eye(3)]), np.zeros(3)])
    return model


@pytest.mark.parametrize(
    ("name", "views", "activation"),
    [
        ("litert", 2, "softmax"),
        ("litert", 4, "linear"),
        pytest.param("onnx", 2, "softmax", marks=needs("onnx")),
        pytest.param("onnx", 4, "linear", marks=needs("onnx")),
        ("saved_model", 2, "linear"),
    ],
)
def test_an_exported_model_averages_views_itself(folder, name, views, activation):
    model = labelled_model(activation)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), "uint8")
    options = {"formats": name, "labels": NAMES, "task": "classification", "verbose": 0}
    kerastl.export_model(model, folder, held_out=images, views=views, **options)
    run = formats.load(name, folder / formats.FORMATS[name].path)
    expected = class_probabilities(model, images, views=views)
    parts = [images[:1], images[1:]] if name != "litert" else images[:, None]
    given = np.concatenate([run(one.astype("float32")) for one in parts])
    np.testing.assert_allclose(given, expected, atol=1e-5)
    assert not np.allclose(expected, class_probabilities(model, images), atol=1e-3)
    card = json.loads((folder / "model_card.json").read_text())
    assert card["output"] == {
        "task": "classification",
        "kind": "softmax",
        "units": 3,
        "views": views,
        "thresholds": None,
    }
    assert card["gate"]["comparisons"][0]["largest_difference"] < 1e-5
    assert f"averages {views} flips" in (folder / "README.md").read_text()
    if name == "litert":
        read = kerastl.load_bundle(folder).predict(images)
        np.testing.assert_allclose(read.probabilities, expected, atol=1e-5)


def test_an_int8_export_averages_views_too(model, data, folder):
    plain = len((kerastl.export_model(model, folder, labels=NAMES, verbose=0).folder / "model.tflite").read_bytes())
    options = {"quantize": "int8", "labels": NAMES, "verbose": 0, "overwrite": True}
    kerastl.export_model(model, folder, views=2, **data, **options)
    assert json.loads((folder / "model_card.json").read_text())["gate"]["comparisons"][0]["accuracy"] > 0.9
    kerastl.export_model(model, folder, views=2, labels=NAMES, verbose=0, overwrite=True)
    assert (folder / "model.tflite").stat().st_size < 1.2 * plain + 4000  # no weight is there twice


def test_the_gate_compares_with_as_many_views(folder, monkeypatch):
    model = labelled_model()
    monkeypatch.setattr(
        "kerastl.export.inference._with_flips", lambda images, views: keras.ops.repeat(images, views, axis=0)
    )
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), "uint8")
    with pytest.raises(GateError):
        kerastl.export_model(model, folder, held_out=images, views=2, labels=NAMES, verbose=0)


def test_thresholds_go_with_the_bundle(folder):
    model = labelled_model("sigmoid")
    model.get_layer("last").set_weights([np.concatenate([4 * np.eye(3), np.eye(3)]), np.array([0, -6, -2.5])])
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), "uint8")
    options = {"class_names": NAMES, "thresholds": {"blue": 0.03, "crimson": 0.6}}
    expected = kerastl.predict(model, images, **options).labels
    assert expected != kerastl.predict(model, images, class_names=NAMES).labels
    kerastl.export_model(model, folder, labels=NAMES, held_out=images, thresholds=options["thresholds"], verbose=0)
    read = kerastl.load_bundle(folder)
    assert read.card["output"]["thresholds"] == options["thresholds"]
    assert read.predict(images).labels == kerastl.predict(read, images).labels == expected
    own = kerastl.predict(read, images, thresholds={"amber": 0.5}).labels
    assert own == kerastl.predict(model, images, class_names=NAMES).labels
    assert "blue from 0.03, crimson from 0.6" in (folder / "README.md").read_text()
    for wrong in ({"red": 0.5}, {"blue": 2}, [0.5], {"blue": "low"}):
        card = json.loads((folder / "model_card.json").read_text())
        card["output"]["thresholds"] = wrong
        (folder / "model_card.json").write_text(json.dumps(card))
        with pytest.raises(kerastl.BundleError, match="can't be used: "):
            kerastl.load_bundle(folder)
