"""A bundle is used when it is what was written, and refused when it is anything else."""

import json
import os
import shutil

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from PIL import Image

import kerastl
from kerastl.errors import ArgumentError, BackendError, BundleError, DataError, KerastlError
from kerastl.export import bundle
from kerastl.features import litert
from tests import models

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the converter is TensorFlow's"),
    pytest.mark.skipif(not litert.is_installed(), reason="needs ai-edge-litert"),
]
NAMES = ["amber", "blue", "crimson"]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return models.nested(32)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), "uint8")


@pytest.fixture(scope="module")
def original(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "original"
    kerastl.export_model(model, folder, labels=NAMES, verbose=0)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of the bundle, to be spoiled."""
    return shutil.copytree(original, tmp_path / "bundle")


def card_of(folder):
    return json.loads((folder / bundle.CARD).read_text())


def change_card(folder, **changes):
    (folder / bundle.CARD).write_text(json.dumps({**card_of(folder), **changes}))


def test_a_bundle_predicts_as_the_model_does(model, original, images):
    read = kerastl.load_bundle(original)
    assert read.labels == NAMES
    assert read.image_size == (32, 32)
    for views in (1, 4):
        expected = kerastl.predict(model, images, class_names=NAMES, views=views)
        given = read.predict(images, views=views)
        assert given.labels == expected.labels
        np.testing.assert_allclose(given.probabilities, expected.probabilities, atol=1e-5)
    assert kerastl.predict(read, images).labels == read.predict(images).labels
    assert "model.tflite" in repr(read)


@pytest.mark.parametrize(
    "own", [{"class_names": NAMES}, {"class_names": np.array(NAMES)}, {"image_size": (32, 32)}, {"task": "multi-label"}]
)
def test_what_a_bundle_brings_is_refused_by_name(original, images, own):
    with pytest.raises(ArgumentError, match=f"A bundle brings its own: leave `{next(iter(own))}` out"):
        kerastl.predict(kerastl.load_bundle(original), images, **own)


def test_images_are_resized_as_the_card_says(model, original, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (48, 90, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    read = kerastl.load_bundle(original)
    for resize in (None, "crop", "pad"):
        expected = kerastl.predict(model, tmp_path / "photo.png", resize=resize)
        given = kerastl.predict(read, tmp_path / "photo.png", resize=resize)
        np.testing.assert_allclose(given.probabilities, expected.probabilities, atol=1e-5)


def test_a_bundle_can_be_moved_and_read_from_a_relative_path(folder, monkeypatch):
    moved = folder.rename(folder.with_name("moved"))
    monkeypatch.chdir(moved.parent)
    assert kerastl.load_bundle("moved").labels == NAMES


def test_a_bundle_brings_its_own_names_and_size(original, images):
    read = kerastl.load_bundle(original)
    with pytest.raises(ArgumentError, match="class_names"):
        kerastl.predict(read, images, class_names=NAMES)
    with pytest.raises(ArgumentError, match="image_size"):
        kerastl.predict(read, images, image_size=64)


@pytest.mark.parametrize("shape", [(4, 32, 32), (2, 32, 32, 4), (2, 2, 32, 32, 3)])
def test_arrays_that_are_no_rgb_images_are_refused(original, shape):
    with pytest.raises(DataError):
        kerastl.load_bundle(original).predict(np.zeros(shape, "float32"))


@given(data=strategies.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_flipped_bit_in_any_file_of_the_card_is_found(folder, data):
    path = data.draw(strategies.sampled_from([folder / name for name in card_of(folder)["files"]]))
    content = path.read_bytes()
    place = data.draw(strategies.integers(0, len(content) - 1))
    bit = data.draw(strategies.integers(0, 7))
    path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
    try:
        with pytest.raises(BundleError):
            kerastl.load_bundle(folder)
    finally:
        path.write_bytes(content)


@given(data=strategies.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_card_is_read_as_a_valid_one_or_refused(folder, data):
    path = folder / bundle.CARD
    content = path.read_bytes()
    place = data.draw(strategies.integers(0, len(content) - 1))
    path.write_bytes(content[:place] + data.draw(strategies.binary(min_size=1, max_size=1)) + content[place + 1 :])
    try:
        assert kerastl.load_bundle(folder).labels == NAMES
    except BundleError:
        pass
    finally:
        path.write_bytes(content)


def test_a_changed_card_whose_content_is_valid_is_read_and_so_are_cards_with_a_seal_of_before(folder):
    change_card(folder, licence="CC0", seal="0" * 64)
    assert kerastl.load_bundle(folder).card["licence"] == "CC0"


@pytest.mark.parametrize("name", [bundle.CARD, bundle.LABELS, "model.tflite"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        kerastl.load_bundle(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"no such folder.*nowhere"):
        kerastl.load_bundle(tmp_path / "nowhere")


def test_a_shorter_file_is_refused(folder):
    path = folder / "model.tflite"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"model\.tflite is damaged"):
        kerastl.load_bundle(folder)


def test_a_file_that_the_card_does_not_know_is_refused_but_not_litter(folder):
    (folder / ".DS_Store").write_bytes(b"x")
    kerastl.load_bundle(folder)
    (folder / "extra.py").write_text("print('hello')")
    with pytest.raises(BundleError, match=r"extra\.py doesn't belong"):
        kerastl.load_bundle(folder)


OUTSIDE = [
    "../secret.txt",
    "a/../../secret.txt",
    "/etc/passwd",
    "C:/x",
    "..\\secret.txt",
    "a//b",
    "./a",
    "",
    "nul",
    "a\nb",
    "..",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_folder_is_refused(folder, name):
    (folder.parent / "secret.txt").write_text("secret")
    files = card_of(folder)["files"]
    change_card(folder, files={**files, name: files[bundle.LABELS]})
    with pytest.raises(BundleError, match="leads out of the folder"):
        kerastl.load_bundle(folder)


@given(strategies.text(alphabet="ab./\\:~ \0", min_size=1, max_size=12))
def test_no_name_that_is_accepted_leads_out(name):
    if bundle._stays_inside(name):
        assert os.path.commonpath([os.path.normpath(os.path.join("/bundle", name)), "/bundle"]) == "/bundle"
        assert os.path.normpath(name) not in ("", ".")


@pytest.mark.parametrize("what", ["model.tflite", bundle.LABELS, bundle.CARD])
def test_links_are_refused_wherever_they_lead(folder, what):
    target = folder.parent / "elsewhere"
    (folder / what).rename(target)
    (folder / what).symlink_to(target)
    with pytest.raises(BundleError, match="is a link"):
        kerastl.load_bundle(folder)


def test_a_card_that_names_a_models_file_elsewhere_is_refused(folder):
    change_card(folder, models={"litert": {"path": "../model.tflite", "quantize": None}})
    with pytest.raises(BundleError, match=r"doesn't list the file of 'litert', '\.\./model\.tflite'"):
        kerastl.load_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"input": {"shape": [1, 64, 64, 3], "type": "float32", "resize": "squash"}},
            r"\(1, 32, 32, 3\).*\(1, 64, 64, 3\)",
        ),
        ({"input": {"shape": [1, 32, 32, 3], "type": "uint8", "resize": "squash"}}, "takes float32.*says uint8"),
        ({"input": {"shape": [1, 32, 32], "type": "float32", "resize": "squash"}}, "`input` is missing or not"),
        ({"input": {"shape": [1, 32, -1, 3], "type": "float32", "resize": "squash"}}, "`input` is missing or not"),
        ({"classes": ["amber", "blue"]}, "labels.txt and the classes"),
        ({"classes": "amber"}, "`classes` is missing or not"),
        ({"output": {"kind": "exec"}}, "`output` is missing or not"),
        ({"models": {}}, "`models` is missing or not"),
        ({"files": {}}, "doesn't list labels.txt"),
        ({"files": {"labels.txt": {"bytes": 1, "sha256": "x"}}}, "`files` is missing or not"),
        ({"models": {"litert": {"path": "model.tflite/x"}}}, "doesn't list the file of 'litert'"),
        ({"format": 2}, "its format is 2"),
    ],
)
def test_a_card_that_contradicts_itself_or_the_model_is_refused(folder, changes, words):
    change_card(folder, **changes)
    with pytest.raises(BundleError, match=words):
        kerastl.load_bundle(folder)


def test_labels_that_are_not_as_many_as_the_models_outputs_are_refused(folder):
    (folder / bundle.CARD).unlink()
    card = {
        "input": {"shape": [1, 32, 32, 3], "type": "float32", "resize": "squash"},
        "output": {"kind": "softmax"},
        "classes": ["amber", "blue"],
        "models": {"litert": {"path": "model.tflite", "quantize": None}},
    }
    bundle.write_card(folder, card)
    with pytest.raises(BundleError, match=r"has outputs of \[\(3,\)\], and the card names 2 classes"):
        kerastl.load_bundle(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "nonsense", "[" * 100_000, '{"format": NaN}', "\udcff", "null", "1"])
def test_a_card_that_is_no_card_is_refused(folder, text):
    (folder / bundle.CARD).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=r"model_card\.json"):
        kerastl.load_bundle(folder)


@given(
    strategies.recursive(
        strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(max_size=5),
        lambda inner: (
            strategies.lists(inner, max_size=4)
            | strategies.dictionaries(strategies.sampled_from(["format", "files", "classes", "input", "models"]), inner)
        ),
        max_leaves=12,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_card_gets_anything_but_a_clear_error(folder, content):
    card = {"format": 1, **content} if isinstance(content, dict) else content
    (folder / bundle.CARD).write_text(json.dumps(card))
    with pytest.raises(BundleError):
        kerastl.load_bundle(folder)


def test_what_is_no_litert_model_is_refused_although_its_hash_is_right(folder):
    (folder / "model.tflite").write_bytes(b"TFL3" * 100)
    card = {key: value for key, value in card_of(folder).items() if key not in ("files", "format")}
    (folder / bundle.CARD).unlink()
    bundle.write_card(folder, card)
    with pytest.raises(BundleError, match=r"model\.tflite can't be used"):
        kerastl.load_bundle(folder)


def test_without_the_interpreter_a_bundle_is_checked_and_predicting_names_the_extra(original, images, monkeypatch):
    monkeypatch.setattr(litert, "is_installed", lambda: False)
    read = kerastl.load_bundle(original)
    with pytest.raises(BackendError, match=r"kerastl\[export\]"):
        read.predict(images)


def test_every_error_of_a_bundle_is_one_of_the_packages():
    assert issubclass(BundleError, KerastlError)
    assert issubclass(BundleError, ValueError)
