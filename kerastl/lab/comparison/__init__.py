"""Compare backbones before choosing one: what each takes in parameters, arithmetic, memory and file size, and how long one
image takes on this machine.

Multiply-accumulates are a poor guide to time: see docs/compare.md.
"""

import warnings
from collections.abc import Sequence

import keras
import numpy as np

from kerastl import costs
from kerastl.checks import check_count, received
from kerastl.errors import ArgumentError, BackendError, KerastlWarning, ModelError
from kerastl.features import litert
from kerastl.lab.comparison.published import TOP1, Top1
from kerastl.lab.comparison.table import PRECISIONS, BackboneComparison, ComparedBackbone, Latency
from kerastl.models import backbones
from kerastl.models.heads import build_classifier

__all__ = ["PRECISIONS", "TOP1", "BackboneComparison", "ComparedBackbone", "Latency", "Top1", "compare_backbones"]

# Images of noise that the ranges of int8 are taken from. They have to exist; nothing here depends on what they show
_NOISE_IMAGES = 4


def compare_backbones(
    names: Sequence[str],
    input_shape: tuple[int, int, int] | int = 224,
    *,
    num_classes: int = 10,
    threads: Sequence[int] = (1, 2),
    repeats: int = 50,
    verbose: int = 1,
) -> BackboneComparison:
    """Build a classifier on each backbone, convert it to LiteRT in float32 and int8, and time one image through each.

    The weights are random: parameters, size and time don't depend on their values, and nothing is fetched. The ImageNet
    accuracy is the published one, of the full network at its own image size; that of your classifier is another.

    All networks are timed in one run, in turns, each after runs that don't count, so that what else the machine does
    meets all of them. Compare the times of one comparison with each other, not with those of another machine or day.

    Args:
        names: of `list_backbones()`.
        input_shape: `(height, width, 3)` in pixels, or one number for a square; the same for all.
        num_classes: of the head: average pooling and one dense layer.
        threads: numbers of CPU threads to time with.
        repeats: timed runs of each network, precision and number of threads.
        verbose: 0 says nothing while it works.

    Returns:
        A `BackboneComparison`: `print` it, let a notebook render it, or take `.to_rows()`. A backbone that can't be converted
        or run has what can be told of it, and the reason in `problems`.

    Raises:
        ArgumentError: an unknown or repeated name, a size that a backbone doesn't take, or a count that can't be used.
        BackendError: Keras doesn't run on TensorFlow, or LiteRT is not installed.
    """
    shape = _checked(names, input_shape)
    check_count("num_classes", num_classes, smallest=2)
    check_count("repeats", repeats)
    threads = [check_count("threads", count) for count in ([threads] if isinstance(threads, int) else threads)]
    if len(set(threads)) != len(threads) or not threads:
        raise ArgumentError(f"`threads` must hold one or more different numbers. {received(threads=threads)}")
    _check_backend()
    rows, runners = [], {}
    for number, name in enumerate(names, start=1):
        if verbose:
            print(f"{number} of {len(names)}: converting {name}", flush=True)
        row, models = _prepared(name, shape, num_classes, threads)
        rows.append(row)
        runners.update({(name, *key): model for key, model in models.items()})
    if verbose and runners:
        print(f"Timing {len(runners)} models, {repeats} runs each", flush=True)
    seconds = litert.measure_latency(list(runners.values()), repeats=repeats) if runners else []
    for (name, *key), values in zip(runners, seconds, strict=True):
        next(row for row in rows if row.name == name).latency[tuple(key)] = Latency.of(values)
    return BackboneComparison(tuple(rows), shape, num_classes, tuple(threads))


def _checked(names, input_shape) -> tuple[int, int, int]:
    """Return the shape; raise for names that can't be compared, and for a shape that one of them doesn't take."""
    if isinstance(names, str) or not len(names):
        raise ArgumentError(f"`names` must be a list of backbones' names. {received(names=names)}")
    shapes = [backbones.check_input_shape(backbones.backbone_row(name), input_shape) for name in names]
    if len(set(names)) < len(names):
        raise ArgumentError(f"Each backbone can be compared once. {received(names=list(names))}")
    return shapes[0]


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise BackendError(
            "Comparing needs LiteRT's converter, which takes Keras on TensorFlow. Set KERAS_BACKEND=tensorflow. "
            f"{received(backend=keras.backend.backend())}"
        )
    if not litert.is_installed():
        raise BackendError('LiteRT is not installed. Install it with `pip install "kerastl[export]"`.')


def _prepared(name, shape, num_classes, threads) -> tuple[ComparedBackbone, dict]:
    """Return a backbone's row, without times, and what is to be timed: `(precision, threads)` → model."""
    model = build_classifier(name, num_classes, input_shape=shape, weights=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KerastlWarning)  # layers that `model_cost` has no formula for
        cost = costs.model_cost(model)
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE_IMAGES, *shape)).astype("float32")
    sizes, models, problems = {}, {}, []
    for precision in PRECISIONS:
        try:
            content = _converted(model, precision, noise)
            sizes[precision] = len(content)
            for count in threads:
                models[precision, count] = _running(content, count, noise[:1])
        except ModelError as error:
            problems.append(f"{precision}: {error}")
    row = ComparedBackbone(
        name=name,
        parameters=cost.parameters,
        macs=cost.macs,
        peak_activation_bytes=cost.peak_activation_bytes,
        file_bytes=sizes,
        latency={},
        top1=TOP1.get(name),
        native_size=backbones.backbone_row(name).native_size,
        problems=tuple(problems),
    )
    return row, models


def _converted(model, precision, noise) -> bytes:
    if precision == "float32":
        return litert.convert(model, batch_size=1)
    return litert.convert(model, quantize=precision, images=noise, batch_size=1)


def _running(content, threads: int, image) -> litert.LiteRTModel:
    """Return a LiteRT model that has been seen to run.

    Raises:
        ModelError: it can't be read, or not run.
    """
    model = litert.LiteRTModel(content, threads)
    try:
        model.time_once(image)
    except RuntimeError as error:
        raise ModelError(f"LiteRT can't run the model: {error}") from error
    return model
