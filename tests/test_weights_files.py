"""Files of weights: what is read, how layers are matched, and what is refused."""

import hashlib
import zipfile

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerastl.errors import WeightsUnavailableError
from kerastl.models.backbones import backbone_row, load_backbone
from kerastl.models.weights import build_pretrained, describe_weights
from kerastl.models.weights.files import assign_weights
from tests.weights import (
    assert_same_weights,
    automatic_backbone,
    classifier_around,
    randomize,
    request_for,
    tiny_backbone,
)


@pytest.mark.parametrize("shape", ["alone", "flat", "nested"])
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5"])
@pytest.mark.parametrize("build", [tiny_backbone, automatic_backbone])
def test_a_saved_backbone_is_found_alone_and_inside_a_classifier(shape, suffix, build, tmp_path):
    saved = randomize(build())
    whole = saved if shape == "alone" else classifier_around(saved, nested=shape == "nested")
    path = tmp_path / f"saved{suffix}"
    if suffix == ".weights.h5":
        whole.save_weights(path)
    else:
        whole.save(path)
    model = build_pretrained(request_for(build), str(path))
    assert_same_weights(model, saved)
    record = describe_weights(model)
    assert (record.source, record.origin) == ("file", str(path))
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_partly_unfrozen_nested_backbone_in_an_h5_file_is_put_back_in_order(tmp_path):
    saved = randomize(tiny_backbone())
    saved.trainable = False
    saved.get_layer("block2_bn").trainable = True  # such a file lists the unfrozen weights first
    classifier_around(saved, nested=True).save(tmp_path / "saved.h5")
    model = build_pretrained(request_for(), tmp_path / "saved.h5")
    for loaded, layer in zip(model.layers, saved.layers, strict=True):
        assert_same_weights(loaded, layer)


def test_a_lambda_in_a_file_is_never_run(tmp_path):
    saved = randomize(tiny_backbone())
    path = tmp_path / "saved.keras"
    classifier_around(saved, nested=True, with_lambda=True).save(path)
    with pytest.raises(ValueError, match="safe_mode"):
        keras.models.load_model(path)
    assert_same_weights(build_pretrained(request_for(), path), saved)


def write_old_h5(path, model, weight_name="{layer}_W_{index}:0", layer_name="{layer}"):
    """An `.h5` file as Keras 1 and 2 wrote them: names without layers in them, layer names of their own time."""
    layers = [layer for layer in model.layers if layer.weights]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer_name.format(layer=layer.name).encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer_name.format(layer=layer.name))
            names = [weight_name.format(layer=layer.name, index=i) for i in range(len(layer.weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.get_weights(), strict=True):
                group.create_dataset(name, data=weight)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param({}, id="keras 1"),
        pytest.param({"weight_name": "{layer}/weight_{index}:0"}, id="keras 2"),
        pytest.param({"weight_name": "{layer}_1/weight_{index}:0"}, id="keras 2, second model of a process"),
        pytest.param({"layer_name": "old_{layer}"}, id="renamed"),
    ],
)
def test_files_of_keras_1_and_2_load(names, tmp_path):
    saved = randomize(tiny_backbone())
    write_old_h5(tmp_path / "old.h5", saved, **names)
    assert_same_weights(build_pretrained(request_for(), tmp_path / "old.h5"), saved)


@pytest.mark.parametrize(
    "weight_name", ["{layer}_W_{index}:0", "{layer}/weight_{index}:0", "{layer}_1/weight_{index}:0"]
)
def test_files_of_keras_1_and_2_load_with_a_top(weight_name, tmp_path):
    def build(classes=None):
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.BatchNormalization(name="bn")(keras.layers.Conv2D(4, 3, name="conv")(inputs))
        if classes:
            x = keras.layers.Dense(classes, name="predictions")(keras.layers.Flatten()(x))
        return keras.Model(inputs, x)

    saved = randomize(build(classes=5))
    write_old_h5(tmp_path / "old.h5", saved, weight_name)
    loaded = build_pretrained(request_for(build), tmp_path / "old.h5")
    for name in ("conv", "bn"):
        assert_same_weights(loaded.get_layer(name), saved.get_layer(name))


def test_a_file_with_other_layer_names_but_the_same_network_loads(tmp_path):
    saved = randomize(tiny_backbone(prefix="mine_"))
    saved.save_weights(tmp_path / "mine.weights.h5")
    assert_same_weights(build_pretrained(request_for(), tmp_path / "mine.weights.h5"), saved)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_a_larger_network_of_the_same_kind_is_refused(suffix, tmp_path):
    larger = tiny_backbone(blocks=3)  # holds every layer of the smaller one, by name and by shape
    path = tmp_path / f"larger{suffix}"
    if suffix == ".h5":
        larger.save(path)
    else:
        larger.save_weights(path)
    with pytest.raises(WeightsUnavailableError, match="larger network, with 'block3_"):
        build_pretrained(request_for(), path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("larger", "name"),
    [
        ("ResNet101", "resnet50"),
        ("VGG19", "vgg16"),
        ("EfficientNetB1", "efficientnet_b0"),
        ("DenseNet169", "densenet121"),
    ],
)
def test_the_larger_brother_of_a_real_network_is_refused(larger, name, tmp_path):
    model = getattr(keras.applications, larger)(include_top=False, weights=None, input_shape=(32, 32, 3))
    for path in (tmp_path / "larger.weights.h5", tmp_path / "larger.h5"):
        model.save_weights(path) if ".weights" in path.name else model.save(path)
        with pytest.raises(WeightsUnavailableError, match=r"larger network|has the shapes"):
            load_backbone(name, input_shape=32, weights=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(
            "convnext_tiny",
            "densenet121",
            "efficientnet_b0",
            "efficientnet_v2_b0",
            "inception_v3",
            "inception_resnet_v2",
        ),
        *("mobilenet", "mobilenet_v3_small", "nasnet_mobile", "resnet50_v2", "vgg16", "xception"),
    ],
)
def test_every_family_is_found_again_in_files(name, tmp_path):
    size = backbone_row(name).smallest_size
    saved = load_backbone(name, input_shape=size, weights=None)
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(saved.output))
    flat = keras.Model(saved.input, outputs)
    inputs = keras.Input((size, size, 3))
    nested = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(saved(inputs))))
    saved.save_weights(tmp_path / "alone.weights.h5")
    saved.save(tmp_path / "alone.h5")
    flat.save(tmp_path / "flat.h5")
    nested.save(tmp_path / "nested.keras")
    for file in ("alone.weights.h5", "alone.h5", "flat.h5", "nested.keras"):
        assert_same_weights(load_backbone(name, input_shape=size, weights=tmp_path / file), saved)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda: tiny_backbone(blocks=1), "layer 'block2_conv' is not in the file"),
        (
            lambda: tiny_backbone(filters=5),
            r"'stem_conv' has the shapes \[\(3, 3, 3, 4\).*in the file \[\(3, 3, 3, 5\)",
        ),
        (automatic_backbone, "'stem_conv' is not in the file.*and 3 more layers"),
    ],
)
def test_a_file_that_does_not_fit_says_what_does_not(saved, message, tmp_path):
    saved().save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(WeightsUnavailableError, match=message):
        build_pretrained(request_for(), tmp_path / "other.weights.h5")


def test_nothing_is_assigned_when_one_layer_does_not_fit():
    model = tiny_backbone()
    before = model.get_weights()
    saved = {layer.name: [np.zeros(weight.shape) for weight in layer.weights] for layer in model.layers}
    assert assign_weights(model, saved)  # the nested convolutions are missing
    for found, wanted in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("stored", [False, True], ids=["link", "storage"])
def test_what_lies_in_another_file_is_not_read(stored, tmp_path):
    """Keras 3.13 follows both."""
    saved, name = tiny_backbone(), "stem_conv/stem_conv_W_0:0"
    write_old_h5(tmp_path / "outside.h5", saved)
    write_old_h5(tmp_path / "linked.h5", saved)
    with h5py.File(tmp_path / "linked.h5", "a") as file:
        values = file[name][()]
        del file[name]
        if stored:
            values.tofile(tmp_path / "outside.raw")
            storage = [(str(tmp_path / "outside.raw"), 0, values.nbytes)]
            file.create_dataset(name, values.shape, values.dtype, external=storage)
        else:
            file[name] = h5py.ExternalLink("outside.h5", f"/{name}")
    with pytest.raises(WeightsUnavailableError, match=r"'stem_conv' .* in the file \[\(4,\)\]"):
        build_pretrained(request_for(), tmp_path / "linked.h5")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".h5", ".weights.h5", ".keras"]), zipped=st.booleans())
def test_whatever_is_no_weights_file_is_an_error_that_names_it(content, suffix, zipped, tmp_path):
    path = tmp_path / f"broken{suffix}"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.weights.h5", content)
    else:
        path.write_bytes(content)
    with pytest.raises(WeightsUnavailableError, match=r"broken.* is not a readable Keras weights file"):
        build_pretrained(request_for(), path)


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_a_damaged_file_is_an_error_that_names_it_or_is_read(suffix, tmp_path):
    whole = tmp_path / f"whole{suffix}"
    request = request_for()
    model = request.build(None)
    model.save(whole) if suffix == ".h5" else model.save_weights(whole)
    content, random = whole.read_bytes(), np.random.default_rng(0)
    refused = 0
    for number in range(30):
        damaged = bytearray(content if number % 2 else content[: int(random.integers(len(content)))])
        for place in random.integers(0, max(len(damaged), 1), 4) if damaged else ():
            damaged[place] ^= 1 << int(random.integers(8))
        path = tmp_path / f"damaged{number}{suffix}"
        path.write_bytes(damaged)
        try:
            build_pretrained(request, path)
        except WeightsUnavailableError as error:
            refused += path.name in str(error)
    assert refused >= 10


def test_a_missing_file_is_an_error_before_anything_is_built(tmp_path):
    def build():
        raise AssertionError("built something")

    with pytest.raises(WeightsUnavailableError, match=r"no weights file at .*missing\.keras.*weights=None"):
        build_pretrained(request_for(build), str(tmp_path / "missing.keras"))


@settings(max_examples=15, deadline=None)
@given(offset=st.integers(0, 10**6), count=st.integers(1, 15))
def test_layers_that_keras_named_are_matched_by_rank(offset, count):
    layers = [keras.layers.LayerNormalization(name=number("layer_normalization", i)) for i in range(count)]
    model = keras.Sequential([keras.Input((1,)), *layers])
    names = [number("layer_normalization", offset + i) for i in range(count)]
    saved = {name: [np.full(1, i), np.zeros(1)] for i, name in reversed(list(enumerate(names)))}
    assert assign_weights(model, saved) == []
    assert [float(layer.get_weights()[0][0]) for layer in layers] == list(range(count))


def number(stem, index):
    return f"{stem}_{index}" if index else stem
