"""The code in a bundle's README.md, run as it stands, prints the probabilities of the Keras model and of `Bundle.predict`."""

import importlib.util
import re
import sys
import types

import keras
import numpy as np
import pytest
from PIL import Image

import kerastl
from kerastl.errors import ArgumentError
from kerastl.export import formats, usage
from kerastl.features import litert

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the exporters are TensorFlow's"),
    pytest.mark.skipif(not litert.is_installed(), reason="needs ai-edge-litert"),
]
NAMES = ["amber", "blue", "crimson"]
HAS_ONNX = all(importlib.util.find_spec(one) for one in formats.FORMATS["onnx"].packages)
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs tf2onnx, onnx, onnxruntime")


def classifier(units, activation, scaling=True):
    inputs = keras.Input((24, 32, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs) if scaling else inputs
    x = keras.layers.Conv2D(4, 5, strides=3, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(units, activation=activation)(keras.layers.Flatten()(x)))


def export(model, folder, names=NAMES, **options):
    """Export beside a photograph that was taken with the camera on its side."""
    bundle = kerastl.export_model(model, folder, labels=names, verbose=0, **options)
    pixels, exif = np.random.default_rng(0).integers(0, 256, (11, 7, 3), "uint8"), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).resize((60, 90), Image.Resampling.BICUBIC).save(folder.parent / "photo.jpg", exif=exif)
    return bundle


def run(text, bundle, monkeypatch, capsys):
    """Run the one block of code of a readme in the bundle's folder, and return the probabilities that it prints."""
    monkeypatch.chdir(bundle.folder)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code.replace("photo.jpg", "../photo.jpg"), "README.md", "exec"), {})
    lines = [line.split(": ") for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == bundle.labels
    return [float(value) for _, value in lines]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return classifier(3, "softmax")


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    chosen = ["litert", "saved_model", *(["onnx"] if HAS_ONNX else [])]
    return export(model, tmp_path_factory.mktemp("bundles") / "bundle", formats=chosen)


def card_for(bundle, name, resize):
    return {
        **bundle.card,
        "models": {name: bundle.card["models"][name]},
        "input": {**bundle.card["input"], "resize": resize},
    }


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("name", ["litert", "saved_model", pytest.param("onnx", marks=needs_onnx)])
def test_the_code_of_each_runtime_gives_what_keras_and_the_bundle_give(
    model, bundle, name, resize, monkeypatch, capsys
):
    given = run(usage.readme(card_for(bundle, name, resize)), bundle, monkeypatch, capsys)
    photo = bundle.folder.parent / "photo.jpg"
    for predictions in (kerastl.predict(model, photo, resize=resize), bundle.predict(photo, resize=resize)):
        np.testing.assert_allclose(given, predictions.probabilities[0], atol=1e-4)


def test_the_code_of_core_ml_hands_the_pixels_over_by_name(model, bundle, monkeypatch, capsys):
    """Its runtime is macOS's, so the Keras model stands in for it."""

    def load(path):
        assert path == "model.mlpackage"
        return types.SimpleNamespace(predict=lambda given: {"Identity": np.asarray(model(given["pixels"]))})

    monkeypatch.setitem(sys.modules, "coremltools", types.SimpleNamespace(models=types.SimpleNamespace(MLModel=load)))
    card = card_for(bundle, "litert", "squash")
    card["models"] = {"coreml": {"path": "model.mlpackage", "output_name": "output_0"}}
    given = run(usage.readme(card), bundle, monkeypatch, capsys)
    expected = kerastl.predict(model, bundle.folder.parent / "photo.jpg").probabilities[0]
    np.testing.assert_allclose(given, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("units", "activation", "options"),
    [
        (1, "sigmoid", {}),
        (1, None, {"pixels": "uint8"}),
        (3, None, {"quantize": "int8", "agreement": 0, "accuracy_loss": 1}),
        (3, "sigmoid", {}),
    ],
)
def test_the_code_makes_probabilities_of_every_kind_of_output(
    units, activation, options, tmp_path, monkeypatch, capsys
):
    model = classifier(units, activation)
    if options.get("quantize"):
        options["representative"] = np.random.default_rng(0).integers(0, 256, (8, 24, 32, 3), "uint8")
    bundle = export(model, tmp_path / "bundle", NAMES[: max(2, units)], **options)
    given = run((bundle.folder / "README.md").read_text(), bundle, monkeypatch, capsys)
    np.testing.assert_allclose(given, bundle.predict(tmp_path / "photo.jpg").probabilities[0], atol=1e-4)


def test_the_readme_says_how_to_resize_the_pixels_and_the_order_of_classes(bundle):
    text = (bundle.folder / "README.md").read_text()
    assert "24 × 32 pixels (height × width)" in text
    assert 'antialiased bilinear\n  interpolation to this size whatever its proportions ("squash")' in text
    assert "red, green, blue; 0–255 as float32; `(1, 24, 32, 3)`. Preprocessing: the model's own." in text
    assert "Outputs: softmax, in the order of the lines of `labels.txt`" in text
    assert set(re.findall("^## (.*)", text, re.MULTILINE)) == set(bundle.card["models"])
    assert bundle.card["files"]["README.md"]["bytes"] == len(text.encode())


def test_a_bundle_without_a_readme_is_read_as_before_and_replaced(model, bundle, tmp_path):
    old = tmp_path / "old"
    kerastl.export_model(model, old, verbose=0)
    (old / "README.md").unlink()
    card = {key: value for key, value in bundle.card.items() if key not in ("files", "format")}
    (old / "model_card.json").unlink()
    from kerastl.export.bundle import write_card

    write_card(old, {**card, "models": {"litert": card["models"]["litert"]}})
    assert "README.md" not in kerastl.load_bundle(old).card["files"]
    assert "README.md" in kerastl.export_model(model, old, verbose=0, overwrite=True).card["files"]


def tensors_of(path):
    import onnx

    graph = onnx.load(path)
    tensors = [*graph.graph.input, *graph.graph.output]
    return graph.opset_import[0].version, [(one.name, one.type.tensor_type.shape.dim[0].dim_param) for one in tensors]


@needs_onnx
def test_onnx_names_its_pixels_its_output_and_the_batch_in_the_newest_opset(bundle):
    assert tensors_of(bundle.folder / "model.onnx") == (18, [("pixels", "batch"), ("probabilities", "batch")])
    names = {name: (one["input_name"], one["output_name"]) for name, one in bundle.card["models"].items()}
    assert names == {
        "litert": ("pixels", "output_0"),
        "saved_model": ("pixels", "output_0"),
        "onnx": ("pixels", "probabilities"),
    }
    import onnxruntime

    session = onnxruntime.InferenceSession(bundle.folder / "model.onnx")
    for count in (1, 5):
        given = session.run(["probabilities"], {"pixels": np.zeros((count, 24, 32, 3), "float32")})
        assert given[0].shape == (count, 3)


@needs_onnx
def test_another_opset_and_logits_are_called_outputs(tmp_path):
    kerastl.export_model(classifier(3, None), tmp_path / "bundle", formats="onnx", opset=13, verbose=0)
    assert tensors_of(tmp_path / "bundle" / "model.onnx") == (13, [("pixels", "batch"), ("outputs", "batch")])


@needs_onnx
@pytest.mark.parametrize("opset", [6, 99, "18", 18.0, True])
def test_an_opset_that_the_runtime_does_not_read_is_refused(model, tmp_path, opset):
    with pytest.raises(ArgumentError, match=rf"`opset` must be a whole number from 7 to 18\..*opset={opset!r}"):
        kerastl.export_model(model, tmp_path / "bundle", formats="onnx", opset=opset)
    with pytest.raises(ArgumentError, match=r"`opset` is for the format 'onnx' alone.*formats=\['litert'\]"):
        kerastl.export_model(model, tmp_path / "bundle", opset=opset)


@pytest.mark.parametrize(
    ("preprocessing", "said"),
    [
        (lambda pixels: pixels / 127.5 - 1, "`<lambda>`, part of the exported graph"),
        (keras.applications.mobilenet_v2.preprocess_input, "`preprocess_input`, part of the exported graph"),
    ],
)
def test_preprocessing_becomes_part_of_the_exported_model(model, bundle, tmp_path, preprocessing, said):
    plain = classifier(3, "softmax", scaling=False)
    plain.set_weights(model.get_weights())
    written = export(plain, tmp_path / "bundle", preprocessing=preprocessing, pixels="uint8")
    assert written.card["input"]["preprocessing"] == said
    photo = tmp_path / "photo.jpg"
    expected = bundle.predict(photo).probabilities
    np.testing.assert_allclose(written.predict(photo).probabilities, expected, atol=5e-3)  # whole numbers of pixels


def test_an_export_without_a_known_range_of_pixels_is_refused_or_told(tmp_path):
    plain = classifier(3, "softmax", scaling=False)
    with pytest.raises(ArgumentError, match=r"doesn't scale pixels itself.*preprocessing=lambda pixels: pixels / 255"):
        kerastl.export_model(plain, tmp_path / "bundle", verbose=0)
    with pytest.raises(ArgumentError, match=r"must be arithmetic or made of `keras.ops`"):
        kerastl.export_model(
            plain, tmp_path / "bundle", verbose=0, preprocessing=lambda pixels: np.asarray(pixels) / 255
        )
    assert not (tmp_path / "bundle").exists()
    written = kerastl.export_model(plain, tmp_path / "bundle", verbose=0, preprocessing=None)
    assert written.card["input"]["preprocessing"] == "none"
    options = {"held_out": (np.random.default_rng(0).random((4, 24, 32, 3)), np.zeros(4)), "agreement": 0}
    with pytest.warns(UserWarning, match="look scaled already"):
        kerastl.export_model(plain, tmp_path / "other", verbose=0, preprocessing=None, **options)
