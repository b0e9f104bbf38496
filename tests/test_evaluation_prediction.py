import functools
import http.server
import json
import os
import threading

import keras
import numpy as np
import pytest
from PIL import Image

import kerastl
from kerastl.data.images import read_image
from kerastl.errors import ArgumentError, DataError, ModelError
from kerastl.evaluation.prediction import predict
from tests.commands import write_photos

NAMES = ["cat", "dog", "eel"]


@pytest.fixture
def model():
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(3)
    (tmp_path / "below").mkdir()
    for place, name in enumerate(["b.png", "a.png", "below/c.png"]):
        pixels = generator.integers(0, 256, (20 + place, 30, 3)).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_files_are_resized_as_in_training(model, folder):
    paths = [folder / "a.png", str(folder / "b.png")]
    for resize in ("squash", "crop", "pad"):
        found = predict(model, paths, class_names=NAMES, resize=resize)
        batch = np.stack([read_image(path, (16, 16), resize) for path in paths])
        np.testing.assert_allclose(found.probabilities, model.predict(batch, verbose=0), rtol=1e-5)
        assert found.names == [str(path) for path in paths]


def test_a_folder_stands_for_the_images_in_it(model, folder):
    found = predict(model, folder, class_names=NAMES)
    assert found.names == [str(folder / name) for name in ("a.png", "b.png", "below/c.png")]
    one = predict(model, folder / "b.png", class_names=NAMES)
    np.testing.assert_allclose(one.probabilities[0], found.probabilities[1], rtol=1e-5)


def test_arrays_of_every_kind_agree(model):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype("uint8")
    expected = model.predict(images, verbose=0)
    for given in (images, images.astype("float32"), list(images), keras.ops.convert_to_tensor(images)):
        np.testing.assert_allclose(predict(model, given).probabilities, expected, rtol=1e-5)
    np.testing.assert_allclose(predict(model, images[0]).probabilities, expected[:1], rtol=1e-5)


def test_arrays_of_other_sizes_are_resized(model):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (size, 24, 3)).astype("uint8") for size in (16, 40)]
    found = predict(model, images)
    assert found.names == ["image 0", "image 1"]
    alone = predict(model, images[1].astype("float32"))
    np.testing.assert_allclose(found.probabilities[1], alone.probabilities[0], atol=2e-3)


def test_batches_don_t_change_the_answer_and_trace_once(model):
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3)).astype("uint8")
    seen = []
    original = model.predict_on_batch
    model.predict_on_batch = lambda batch: seen.append(batch.shape) or original(batch)
    found = predict(model, images, batch_size=3)
    assert seen == [(3, 16, 16, 3)] * 3
    np.testing.assert_allclose(found.probabilities, original(images), rtol=1e-5)


def test_predictions_read_like_a_sequence(model):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype("uint8")
    found = predict(model, images, class_names=NAMES, top=2)
    assert len(found) == 5
    assert [one.label for one in found] == found.labels
    first = found[0]
    assert first.probability == pytest.approx(found.probabilities[0].max())
    assert next(iter(first.probabilities)) == first.label
    assert len(first.probabilities) == 2
    assert found[-1].name == "image 4"
    assert found[1:3].names == ["image 1", "image 2"]
    with pytest.raises(IndexError):
        found[5]


def test_predictions_print_and_serialize(model):
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3)).astype("uint8")
    found = predict(model, images, class_names=["<cat>", "dog", "eel"])
    assert len(str(found).splitlines()) == 32
    assert repr(found).endswith("… and 10 more")
    assert "&lt;cat&gt;" in found._repr_html_()
    rows = json.loads(json.dumps(found.to_rows()))
    assert set(rows[0]) == {"image", "label", "probability", "probabilities"}
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_model_of_any_size_needs_equal_sizes_or_image_size():
    inputs = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(pooled))
    images = [np.full((size, size, 3), 9, "uint8") for size in (16, 20)]
    with pytest.raises(ArgumentError, match="image_size"):
        predict(model, images)
    assert predict(model, images, image_size=16).probabilities.shape == (2, 2)
    assert predict(model, images[:1]).probabilities.shape == (1, 2)


def test_what_can_t_be_predicted(model, folder, tmp_path):
    (tmp_path / "broken.png").write_text("not an image")
    with pytest.raises(DataError, match=r"broken\.png"):
        predict(model, [tmp_path / "broken.png"])
    (tmp_path / "broken.png").unlink()
    with pytest.raises(DataError, match="no_such"):
        predict(model, "no_such.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        predict(model, tmp_path / "empty")
    with pytest.raises(DataError, match="no images to predict"):
        predict(model, [])
    with pytest.raises(DataError, match=r"shape=\(2, 16, 16, 4\)|Received: shape"):
        predict(model, np.zeros((2, 16, 16, 4), "uint8"))
    with pytest.raises(DataError, match="shape"):
        predict(model, np.zeros((16, 16), "float32")[None, :, :, None, None])
    with pytest.raises(DataError, match=r"images\[1\]"):
        predict(model, [np.zeros((16, 16, 3)), None])
    with pytest.raises(DataError, match="Expected a path, a folder"):
        predict(model, object())
    with pytest.raises(DataError, match=r"with labels use `kerastl.evaluate`"):
        predict(model, keras.utils.PyDataset())
    with pytest.raises(DataError, match="NaN"):
        predict(model, np.full((16, 16, 3), np.nan))


@pytest.mark.parametrize("names", [["no", "yes"], ("no", "yes"), np.array(["no", "yes"])])
def test_two_names_of_any_kind_make_one_linear_unit_a_classifier(names):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    found = predict(model, np.full((16, 16, 3), 9, "uint8"), class_names=names)
    assert found.task == "classification"
    assert found.class_names == ["no", "yes"]
    assert predict(model, np.full((16, 16, 3), 9, "uint8")).task == "regression"


@pytest.mark.parametrize("name", ["task", "preprocessing", "resize", "views"])
def test_an_array_in_place_of_a_choice_is_refused_by_name(model, name):
    with pytest.raises(ArgumentError, match=f"`{name}` must be "):
        predict(model, np.full((16, 16, 3), 9, "uint8"), **{name: np.array(["auto", "none"])})


@pytest.mark.parametrize(("activation", "weight"), [("softmax", np.nan), (None, np.nan), (None, np.inf)])
def test_a_model_whose_outputs_are_not_finite_is_refused(activation, weight):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2 if activation else 1, activation=activation)(x))
    model.layers[-1].kernel.assign(np.full(model.layers[-1].kernel.shape, weight))
    with pytest.raises(ModelError, match="NaN or infinite: its weights were ruined in training"):
        predict(model, np.full((16, 16, 3), 9, "uint8"))


def test_arguments_are_checked_before_anything_is_read(model):
    with pytest.raises(ArgumentError, match="resize"):
        predict(model, "no_such.png", resize="stretch")
    with pytest.raises(ArgumentError, match="views"):
        predict(model, "no_such.png", views=8)
    with pytest.raises(ArgumentError, match="top"):
        predict(model, "no_such.png", top=0)
    with pytest.raises(DataError, match="3 classes"):
        predict(model, "no_such.png", class_names=["cat", "dog"])
    with pytest.raises(ArgumentError, match="no others"):
        predict(model, "no_such.png", image_size=32)
    backbone = keras.Model(model.input, model.layers[2].output)
    with pytest.raises(ModelError, match="build_classifier"):
        predict(backbone, "no_such.png")


def test_floats_that_look_scaled_already_warn(model):
    with pytest.warns(UserWarning, match="look scaled"):
        predict(model, np.random.default_rng(0).random((2, 16, 16, 3)))


def test_pixels_of_a_model_that_scales_nothing_itself_are_its_own_business(recwarn):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    predict(model, np.random.default_rng(0).random((2, 16, 16, 3)))
    assert not recwarn.list


def test_every_image_of_a_mixed_list_is_looked_at(model):
    images = [np.full((16, 16, 3), 200, "uint8"), np.full((16, 16, 3), 0.5)]
    with pytest.warns(UserWarning, match=r"from 0\.5 to 0\.5"):
        predict(model, images)


def rotated(folder):
    """A photograph that was taken with the camera on its side: its EXIF data says so."""
    image = Image.open(folder / "a.png").convert("RGB")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / "below" / "turned.jpg", exif=exif, quality=100, subsampling=0)
    return folder / "below" / "turned.jpg"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (lambda folder: str(folder / "*.png"), ["a.png", "b.png"]),
        (lambda folder: str(folder / "**" / "*.png"), ["a.png", "b.png", "below/c.png"]),
        (lambda folder: folder.glob("b*.png"), ["b.png"]),
        (lambda folder: (path for path in [folder / "b.png", folder / "below"]), ["b.png", "below/c.png"]),
        (lambda folder: np.array([str(folder / "b.png"), str(folder / "a.png")]), ["b.png", "a.png"]),
        (lambda folder: np.array([folder / "b.png"], dtype=object), ["b.png"]),
        (lambda folder: [str(folder / "a.png"), folder / "below" / "*.png"], ["a.png", "below/c.png"]),
        (lambda folder: os.fsencode(folder / "a.png").decode(), ["a.png"]),
    ],
)
def test_files_may_be_named_in_many_ways(model, folder, given, expected):
    found = predict(model, given(folder), class_names=NAMES)
    assert found.names == [str(folder / name) for name in expected]
    batch = np.stack([read_image(folder / name, (16, 16)) for name in expected])
    np.testing.assert_allclose(found.probabilities, model.predict(batch, verbose=0), rtol=1e-5)


def test_the_home_folder_may_be_written_as_a_tilde(model, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert predict(model, "~/a.png").names == [str(folder / "a.png")]
    assert predict(model, ["~/*.png"]).names == [str(folder / "a.png"), str(folder / "b.png")]


def test_bytes_and_images_of_pillow_are_read_as_their_files_are(model, folder):
    path = rotated(folder)
    expected = predict(model, path).probabilities
    found = predict(model, [path.read_bytes(), Image.open(path), Image.open(folder / "a.png")])
    assert found.names == ["image 0", "image 1", "image 2"]
    np.testing.assert_allclose(found.probabilities[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found.probabilities[1], expected[0], rtol=1e-2)  # decoded as a whole, then resized
    assert predict(model, Image.open(path)).names == ["image 0"]


def test_an_address_is_downloaded_once(model, folder, tmp_path, monkeypatch):
    handler = functools.partial(QuietHandler, directory=folder)
    kept = functools.partial(keras.utils.get_file, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(keras.utils, "get_file", kept)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.png"
        found = predict(model, [address, folder / "b.png"])
        server.shutdown()
    assert found.names == [address, str(folder / "b.png")]
    np.testing.assert_allclose(predict(model, address).probabilities, found.probabilities[:1], rtol=1e-5)
    with pytest.raises(DataError, match=r"can't be downloaded.*pass the file's path"):
        predict(model, address.replace("a.png", "other.png"))
    with pytest.raises(DataError, match=r"Only http and https.*pass their paths.*gs://"):
        predict(model, "gs://bucket/a.png")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_a_damaged_file_costs_its_row(model, folder):
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"1 of 3 images can't be read and are left out:\n.*a\.png: it is damaged"):
        found = predict(model, folder, class_names=NAMES, batch_size=1)
    assert found.names == [str(folder / "b.png"), str(folder / "below" / "c.png")]
    assert list(found.skipped) == [str(folder / "a.png")]
    expected = predict(model, folder / "b.png").probabilities
    np.testing.assert_allclose(found.probabilities[:1], expected, rtol=1e-5)


SCALINGS = {
    "0 to 1": (keras.layers.Rescaling(1 / 255), "preprocessing=lambda pixels: pixels / 255"),
    "-1 to 1": (keras.layers.Rescaling(1 / 127.5, -1), "preprocessing=lambda pixels: pixels / 127.5 - 1"),
    "ResNet": (
        keras.applications.resnet50.preprocess_input,
        "preprocessing=keras.applications.resnet50.preprocess_input",
    ),
    "as it is": (keras.layers.Identity(), "preprocessing=None"),
}


def with_and_without(scaling):
    """A model that scales pixels itself, and one of the same weights that leaves it to others."""
    keras.utils.set_random_seed(0)
    pair = []
    for front in (scaling, keras.layers.Identity()):
        inputs = keras.Input((16, 16, 3))
        x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(front(inputs))
        x = keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
        pair.append(keras.Model(inputs, x))
    pair[1].set_weights(pair[0].get_weights())
    return pair


@pytest.mark.parametrize("name", SCALINGS)
def test_the_preprocessing_that_the_refusal_names_gives_what_the_scaling_model_gives(name, folder):
    scaling, words = SCALINGS[name]
    inside, outside = with_and_without(scaling)
    with pytest.raises(ArgumentError, match="doesn't scale pixels itself") as caught:
        predict(outside, folder)
    assert f"`{words}`" in str(caught.value)
    options = eval(f"dict({words})", {"keras": keras})
    known = {} if name != "as it is" else options
    expected = predict(inside, folder, views=2, **known).probabilities
    np.testing.assert_allclose(predict(outside, folder, views=2, **options).probabilities, expected, rtol=1e-4)
    images = np.stack([read_image(path, (16, 16)) for path in sorted(folder.glob("*.png"))])
    labels = np.zeros(len(images), int)
    evaluations = [
        kerastl.evaluate(one, (images, labels), **more) for one, more in ((inside, known), (outside, options))
    ]
    np.testing.assert_allclose(*(one.mistakes.probabilities for one in evaluations), rtol=1e-4)
    for function, more in ((kerastl.grad_cam, {}), (kerastl.feature_maps, {"layer": "conv"})):
        expected = function(inside, images, **more, **known)
        np.testing.assert_allclose(function(outside, images, **more, **options), expected, rtol=1e-3, atol=1e-4)


def test_arrays_of_a_model_that_shows_no_range_are_taken_as_they_are(folder):
    inside, outside = with_and_without(SCALINGS["0 to 1"][0])
    images = np.stack([read_image(path, (16, 16)) for path in sorted(folder.glob("*.png"))]) / np.float32(255)
    expected = predict(inside, images * 255).probabilities
    np.testing.assert_allclose(predict(outside, images).probabilities, expected, rtol=1e-4)
    with pytest.raises(ArgumentError, match="doesn't scale pixels itself"):
        predict(outside, [*images, folder / "a.png"])


def test_pixels_of_another_range_than_the_graph_shows_are_refused(folder):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype("uint8")
    model = with_and_without(keras.layers.Normalization(mean=[0.5] * 3, variance=[0.06] * 3))[0]
    calls = [
        lambda **more: predict(model, images, **more),
        lambda **more: predict(model, images.astype("float32"), **more),
        lambda **more: predict(model, folder, **more),
        lambda **more: kerastl.evaluate(model, (images, np.arange(4) % 3), **more),
        lambda **more: kerastl.grad_cam(model, images, **more),
        lambda **more: kerastl.feature_maps(model, images, "conv", **more),
    ]
    for call in calls:
        with pytest.raises(ArgumentError, match="is made for smaller numbers, such as 0–1"):
            call()
        call(preprocessing=lambda pixels: pixels / 255)
    expected = model.predict(images / np.float32(255), verbose=0)
    np.testing.assert_allclose(predict(model, images / np.float32(255)).probabilities, expected, rtol=1e-4)


def test_evaluating_on_photographs_asks_for_the_range_and_on_other_data_does_not(tmp_path):
    inside, outside = with_and_without(SCALINGS["0 to 1"][0])
    write_photos(tmp_path / "photos", NAMES, count=12, size=(16, 16))
    held = kerastl.load_images(tmp_path / "photos", image_size=16, verbose=0).train
    by_keras = keras.utils.image_dataset_from_directory(tmp_path / "photos", image_size=(16, 16), verbose=False)
    for data in (held, by_keras):
        with pytest.raises(ArgumentError, match="doesn't scale pixels itself"):
            kerastl.evaluate(outside, data)
    expected = kerastl.evaluate(inside, held).confusion_matrix
    given = kerastl.evaluate(outside, held, preprocessing=lambda pixels: pixels / 255).confusion_matrix
    np.testing.assert_array_equal(given, expected)
    own = held.map(lambda images, labels: (images / 255, labels))
    np.testing.assert_array_equal(kerastl.evaluate(outside, own).confusion_matrix, expected)


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [
        ("tf", r"must be 'auto', None or a callable.*preprocessing='tf'"),
        (lambda pixels: pixels / 255, "scaled twice. Leave `preprocessing` out"),
        (keras.applications.resnet50.preprocess_input, "scaled twice. Leave `preprocessing` out"),
        (lambda pixels: pixels[:, ::2], r"same shape.*shape_before=\(2, 8, 8, 3\), shape_after=\(2, 4, 8, 3\)"),
    ],
)
def test_preprocessing_that_can_t_be_used(model, folder, preprocessing, words):
    with pytest.raises(ArgumentError, match=words):
        predict(model, folder / "no_such.png", preprocessing=preprocessing)


def test_preprocessing_may_change_what_it_does_not_scale_and_warns_of_scaled_arrays(model, folder):
    swapped = predict(model, folder / "a.png", preprocessing=lambda pixels: pixels[..., ::-1]).probabilities
    batch = read_image(folder / "a.png", (16, 16))[None]
    np.testing.assert_allclose(swapped, model.predict(batch[..., ::-1].copy(), verbose=0), rtol=1e-4)
    outside = with_and_without(SCALINGS["0 to 1"][0])[1]
    with pytest.warns(UserWarning, match="look scaled already"):
        predict(outside, batch / np.float32(255), preprocessing=lambda pixels: pixels / 255)


def test_the_white_of_the_training_images_is_used_as_the_message_says(model, tmp_path):
    pixels = np.full((16, 16), 1000, "uint16")
    Image.fromarray(pixels).save(tmp_path / "dark.png")
    with pytest.warns(UserWarning, match=r"use 0–1023: .*pass it: `white=`"):
        bright = predict(model, tmp_path / "dark.png").probabilities
    dark = predict(model, tmp_path / "dark.png", white=4095).probabilities
    expected = predict(model, np.full((16, 16, 3), round(1000 / 4095 * 255), "uint8")).probabilities
    np.testing.assert_allclose(dark, expected, rtol=1e-5)
    assert not np.allclose(bright, dark)


def channels(units, activation=None):
    """A model that says the brightness of its first channels, 0–255 as 0–1 or, for a sigmoid, as −5…5."""
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs / 25.5 - 5 if activation else inputs / 255)
    head = keras.layers.Dense(units, activation=activation, use_bias=False)
    model = keras.Model(inputs, head(x))
    head.set_weights([np.eye(3)[:, :units]])
    return model


SHADES = np.array([[255, 153, 0], [51, 102, 0], [0, 0, 255]], "uint8")[:, None, None] * np.ones((1, 4, 4, 1), "uint8")


def test_several_labels_are_those_of_a_half_or_more():
    found = predict(channels(3, "sigmoid"), SHADES, class_names=["hot", "wet", "old"], top=1)
    sure, likely = 1 / (1 + np.exp(-5)), 1 / (1 + np.exp(-1))
    assert found.task == "multi-label"
    assert found.labels == [["hot", "wet"], ["wet"], ["old"]]
    assert found[0].labels == pytest.approx({"hot": sure, "wet": likely}, rel=1e-5)
    assert found[1].labels == pytest.approx({"wet": 1 - likely}, rel=1e-5)  # none is: the most probable
    row = {"image": "image 0", "labels": found[0].labels, "probabilities": {"hot": pytest.approx(sure, rel=1e-5)}}
    assert found.to_rows()[0] == row
    assert "labels of 50% or more, else the likeliest" in str(found)
    assert "image 0  hot 99.3 %, wet 73.1 %" in str(found)
    turned = SHADES.copy()
    turned[0, :2] = 0
    averaged = predict(channels(3, "sigmoid"), turned, views=4).probabilities
    np.testing.assert_allclose(averaged, predict(channels(3, "sigmoid"), turned).probabilities, rtol=1e-5)


def test_numbers_are_named_and_stay_as_they_are():
    found = predict(channels(1), SHADES, class_names=["age"])
    assert found.task == "regression"
    assert found.to_rows()[1] == {"image": "image 1", "numbers": {"age": pytest.approx(0.2)}}
    assert "image    age\n" in str(found).replace("-", "")
    assert "image 1  0.2" in str(found)
    with pytest.raises(ArgumentError, match=r"take `\.probabilities` or `\.to_rows\(\)`"):
        found.labels  # noqa: B018
    assert predict(channels(1), SHADES, class_names=["no", "yes"]).labels == ["yes", "yes", "no"]  # a logit
    model = channels(3)
    assert predict(model, SHADES, task="regression").probabilities[0] == pytest.approx([1, 0.6, 0])
    model.compile("sgd", "mse")
    assert predict(model, SHADES[:1], class_names=["a", "b", "c"])[0].numbers["b"] == pytest.approx(0.6)
    with pytest.raises(DataError, match=r"each of the model's 3 numbers.*which is 2"):
        predict(model, SHADES, class_names=["a", "b"])
