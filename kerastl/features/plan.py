"""What running the frozen part once will cost and save, worked out before anything slow."""

import dataclasses
import importlib.util
import math
import os
import re
import tempfile

import keras
import numpy as np

from kerastl import backend, keras_internals
from kerastl.checks import check_choice, check_count, received
from kerastl.data.batches import rows_of
from kerastl.errors import ArgumentError, BackendError, ModelError
from kerastl.features.cut import USUAL_SIDE, Cut, find_cuts, tensors_of
from kerastl.features.litert import ENGINES
from kerastl.features.views import flips_of
from kerastl.files import free_space, is_url
from kerastl.models import graph
from kerastl.tables import readable_bytes

# Below this the work of cutting, storing and a second graph isn't worth it.
_WORTHWHILE = 1.3
# An earlier cut may be taken to save room when running on from it adds at most this share of the model's work.
_CHEAP_SHARE = 0.1
_PLACES = ("device", "memory", "disk")
# Of what is free on a GPU: while the parts are joined the features take twice their bytes, and training needs the rest
_DEVICE_SHARE = 0.4


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """How to run the frozen part once, for `cache=`.

    Attributes:
        folder: keeps the store for the next run; a URL, such as "s3://bucket/features", keeps it for any machine.
        place: without a folder: "device" (that trains: beside a GPU's weights; of a CPU it is the memory), "memory", "disk"
            (a temporary folder), or "auto", the first of them that has room.
        dtype: of the stored features: "auto" is float16 where the values fit, else float32; "float32" is exact.
        budget: bytes (or text such as "2GB") that the features may take; `None` for four tenths of what is free of a GPU's
            memory, a quarter of the free memory, and half of the free disk. Of a URL, that much is on this disk at a time.
        engine: "auto", "keras" (in training too, where others compute 1×1 convolutions as matrix products on a CPU) or
            "litert"; or "ray", for a folder or URL: like "auto", in the workers of a Ray job.
        workers: of the Ray job; by default one for each GPU of the cluster, or for each machine where there is none.
        insist: raise where caching can't be done, instead of training without.
        seed: of the augmented views.

    Example:
        >>> exact = kerastl.CacheOptions(place="memory", dtype="float32")
        >>> history = kerastl.fit(model, *train, epochs=2, cache=exact, verbose=0)
    """

    folder: str | os.PathLike | None = None
    place: str = "auto"
    dtype: str = "auto"
    budget: int | str | None = None
    engine: str = "auto"
    workers: int | None = None
    insist: bool = True
    seed: int = 0

    def __post_init__(self):
        check_choice("place", self.place, ("auto", *_PLACES))
        check_choice("dtype", self.dtype, ("auto", "float16", "float32"))
        check_choice("engine", self.engine, (*ENGINES, "ray"))
        if self.engine == "ray" and self.folder is None:
            raise ArgumentError(f"Ray's workers need a folder that they all reach, or a URL. {received(folder=None)}")
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise BackendError('Ray is not installed. Install it with `pip install "kerastl[ray]"`.')
        if self.workers is not None:
            check_count("workers", self.workers)
        parse_bytes(self.budget)
        if self.folder is not None and self.place != "auto":
            raise ArgumentError(
                "Features that are kept in a folder are read from it: leave out `place`, or leave out `folder`. "
                f"{received(folder=self.folder, place=self.place)}"
            )


def parse_bytes(budget: int | str | None, argument: str = "budget") -> int | None:
    """Return a number of bytes from a positive number, or from text such as "500MB", "2 GB" or "1.5GiB"."""
    if budget is None or (type(budget) is int and budget > 0):
        return budget
    match = isinstance(budget, str) and re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", budget.lower())
    if match and float(match.group(1)) > 0:
        return int(float(match.group(1)) * (1024 if match.group(3) else 1000) ** " kmgt".index(match.group(2) or " "))
    raise ArgumentError(
        f"`{argument}` must be a number of bytes, or text such as '2GB'. {received(**{argument: budget})}"
    )


def options_of(cache) -> CacheOptions | None:
    """Return the options that a `cache=` argument means, or `None` for `False`."""
    if isinstance(cache, CacheOptions) or cache is None:
        return cache
    if isinstance(cache, bool):
        return CacheOptions() if cache else None
    if isinstance(cache, str) and cache in ("auto", "device"):
        return CacheOptions(place=cache, insist=cache == "device")
    if isinstance(cache, (str, os.PathLike)) and os.fspath(cache):
        return CacheOptions(folder=cache)
    raise ArgumentError(
        f"`cache` must be 'auto', 'device', True, False, a folder, or CacheOptions. {received(cache=cache)}"
    )


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """What will be done, and why; prints as one line.

    Attributes:
        chosen: whether the frozen part will be run once.
        reason: why, or why not.
        cuts: where the model is cut: for one phase one, for head training and fine-tuning the head's last.
        values_per_image: numbers stored for one image (all views and cuts).
        dtype: in which they are stored ("auto" begins as float16).
        bytes_per_image: what that takes.
        total_bytes: for all images, `None` where their number isn't known.
        place: "device", "memory", "disk" (a temporary folder) or the folder that was given.
        trunk_share: part of the model's multiply-accumulates that the trunk holds, 0–1.
        expected_speed_up: plain training's work through this one's, estimated in multiply-accumulates.
        notes: what else should be known.
    """

    chosen: bool
    reason: str
    cuts: tuple[Cut, ...] = ()
    values_per_image: int = 0
    dtype: str = "float16"
    bytes_per_image: int = 0
    total_bytes: int | None = None
    place: str | None = None
    trunk_share: float = 0.0
    expected_speed_up: float = 1.0
    notes: tuple[str, ...] = ()
    views: int = 1
    augmentation: keras.Model | None = None  # what makes the views where the model has nothing in front that does

    def __str__(self) -> str:
        if not self.chosen:
            return f"The frozen part runs in every epoch: {self.reason}."
        total = "size known after one pass" if self.total_bytes is None else readable_bytes(self.total_bytes)
        cut = " + ".join(self.cuts[0].layer_names)
        on_device = "on the device" if backend.has_accelerator() else "in memory"
        where = on_device if self.place == "device" else f"in {self.place}"
        notes = "".join(f" {note}" for note in self.notes)
        return (
            f"The frozen part runs once, up to {cut} ({self.trunk_share:.0%} of the work): "
            f"{readable_bytes(self.bytes_per_image)} an image, {total} {where}; expected to be about "
            f"{_in_words(self.expected_speed_up)}.{notes}"
        )


def make_plan(
    model,
    train,
    validation,
    *,
    epochs,
    options: CacheOptions | None,
    views: int = 1,
    cuts=None,
    obstacle=None,
    augmentation=None,
    views_if_possible: bool = False,
) -> CachePlan:
    """Work out whether and how to run the frozen part of a model, as it is frozen now, once.

    `train` and `validation` are `Rows`, or `None`: of training data, that it can be read only once. `epochs` says for each
    phase how often the data will be seen; `options` of `None` mean plain Keras. `cuts` are the phases' chosen ones, earliest
    first; `None` looks for one. `obstacle` is what the caller knows to stand in the way, as the end of a sentence.
    `augmentation` makes the views of a model that has no random layers in front. What stands in the way raises
    `ArgumentError` where the options insist, or `views` are wanted; with `views_if_possible` there are fewer, or one.
    """
    views = check_count("views", views)
    if options is None:
        if views > 1 and not views_if_possible:
            raise ArgumentError(f"`views` above 1 needs caching: each view is computed once. {received(cache=False)}")
        return CachePlan(False, "cache=False")
    given = obstacle
    try:
        found = () if obstacle else cuts or choose_cuts(model, train, validation, views, options)
        if views_if_possible and found and found[0].augments:
            views = min(views, len(flips_of(found[0].front())) or views)
        obstacle = obstacle or _obstacle(model, train, found, views, augmentation)
    except ModelError as error:
        obstacle = str(error)
    plan = CachePlan(False, obstacle) if obstacle else _weigh(train, validation, found, epochs, views, options)
    if not plan.chosen and views > 1 and views_if_possible:
        return make_plan(model, train, validation, epochs=epochs, options=options, cuts=cuts, obstacle=given)
    if not plan.chosen and (options.insist or views > 1):
        plain = "`cache=False, views=1`" if views > 1 else "`cache=False`"
        raise ArgumentError(
            f"The frozen part can't be run once: {plan.reason}. Pass {plain} for plain Keras. {received(views=views)}"
        )
    return dataclasses.replace(plan, augmentation=augmentation if views > 1 else None)


def choose_cuts(model, train, validation, views, options) -> tuple:
    """Return the cut to use in the model's present state, in a tuple; an empty one where there is none.

    The latest one, unless its features outgrow the memory and a slightly earlier tensor is much smaller (in MobileNetV2
    `block_15_add` holds a sixth of `block_16_expand_relu`).
    """
    cuts, count = find_cuts(model), _count_rows(train, validation, views)
    room = 0 if is_url(options.folder) else memory_budget(options)  # the machine that trains must find the same cut
    if not cuts or count is None or count * cuts[-1].values_per_image * 2 <= room:
        return tuple(cuts[-1:])
    latest = cuts[-1]
    limit = latest.trunk_macs - _CHEAP_SHARE * latest.model_macs
    near = [cut for cut in cuts if cut.trunk_macs >= limit and cut.start is latest.start]
    smallest = min(near, key=lambda cut: (cut.values_per_image, -cut.trunk_macs))
    return (smallest if smallest.values_per_image * 4 <= latest.values_per_image else latest,)


def _count_rows(train, validation, views) -> int | None:
    if train is None or train.count is None:
        return None
    return train.count * views + (validation.count or 0 if validation is not None else 0)


def _obstacle(model, train, cuts, views, augmentation) -> str | None:
    """Return what stands in the way, as the end of a sentence, or `None`."""
    if train is None:
        return "the data can be read only once (a generator), or isn't a pair of one image array and one label array"
    if own := keras_internals.methods_of_its_own(model):
        return f"the model has a `{own[0]}` of its own, which expects images"
    if not cuts:
        return "nothing with weights is frozen in front of the first layer that trains"
    if cuts[0].augments and views == 1:
        return "random layers stand in front of the backbone, and would be drawn only once; pass views=4, say"
    if views > 1 and not cuts[0].augments and augmentation is None:
        return f"views={views} needs random layers in front of the backbone, such as build_classifier(augmentation='flips')"
    if views > 1 and cuts[0].augments:
        distinct = len(flips_of(cuts[0].front()))
        if 0 < distinct < views:
            return f"flips make only {distinct} different views; pass views={distinct}, or another augmentation"
    if keras_internals.distribution_strategy(model) is not None:
        return "the model trains under a distribution strategy"
    distribution = keras.distribution.distribution()
    if backend.processes()[1] > 1 and not isinstance(distribution, keras.distribution.DataParallel):
        return "several processes train on features by `keras.distribution.DataParallel` alone"
    regularized = [node.operation for node in graph.nodes_in_order(cuts[0].flat, cuts[0].tensors)]
    if any(getattr(operation, "activity_regularizer", None) is not None for operation in regularized):
        return "a frozen layer has an activity regularizer, whose loss depends on every image"
    return _effect_of_training(cuts[0])


def _effect_of_training(cut: Cut) -> str | None:
    """Return what frozen layers that aren't Keras's, or a `Lambda`, do in training alone, tried on one image, or `None`."""
    trunk, read = cut.trunk(), keras.ops.convert_to_numpy
    layers = keras_internals.flatten_layers(trunk)
    own = [
        one for one in layers if isinstance(one, keras.layers.Lambda) or not type(one).__module__.startswith("keras.")
    ]
    if not own:
        return None
    before = [read(weight) for weight in trunk.weights]
    image = keras.random.uniform((1, *(side or USUAL_SIDE for side in trunk.inputs[0].shape[1:])), 0, 255, seed=0)
    plain, trained = (list(map(read, keras.tree.flatten(trunk(image, training=one)))) for one in (False, True))
    effect = None
    if trunk.losses:
        effect = "adds a loss, which depends on every image"
    elif not all(map(np.array_equal, before, map(read, trunk.weights))):
        effect = "changes its weights with every image"
    elif not cut.random_inside and not all(map(np.allclose, plain, trained)):
        effect = "gives something else in training than in inference"
    for weight, value in zip(trunk.weights, before, strict=True):
        weight.assign(value)
    return effect and f"a frozen layer (one of {', '.join(repr(layer.name) for layer in own)}) {effect}"


def _weigh(train, validation, cuts, epochs, views, options) -> CachePlan:
    """Return the plan with its figures; not chosen where there is no room or nothing to win."""
    values = sum(math.prod(tensor.shape[1:]) for tensor in tensors_of(cuts)) * views
    size = 4 if options.dtype == "float32" else 2
    rows = _count_rows(train, validation, views)
    total = None if rows is None else rows * (values // views) * size
    place = _place(total, options)
    speed = _speed_up(train, validation, cuts, epochs, views)
    notes, random = (), cuts[0].random_inside
    if random:
        layers = "layer" if len(random) == 1 else "layers"
        notes = (f"{len(random)} random {layers} inside it ({random[0]}…) run in inference mode.",)
    chosen, reason = True, f"about {_in_words(speed)}"
    if place is None:
        words = {"device": "the device's memory" if backend.has_accelerator() else "memory"}
        allowed = [f"{readable_bytes(room)} of {words.get(name, name)}" for name, room in _rooms(options).items()]
        allowed = " and ".join(dict.fromkeys(allowed))
        chosen, reason = False, f"the features would take {readable_bytes(total)}, but {allowed} may be used"
    elif not options.insist and speed < _WORTHWHILE and views == 1:
        chosen, reason = False, f"it would be only {reason}"
    return CachePlan(
        chosen,
        reason,
        cuts=tuple(cuts),
        values_per_image=values,
        dtype="float32" if options.dtype == "float32" else "float16",
        bytes_per_image=values * size,
        total_bytes=total,
        place=place,
        trunk_share=cuts[0].trunk_macs / max(cuts[0].model_macs, 1),
        expected_speed_up=speed,
        notes=notes,
        views=views,
    )


def _in_words(speed: float) -> str:
    return f"{speed:.1f} times faster" if speed >= 1 else f"{1 / speed:.1f} times slower"


def _place(total, options) -> str | None:
    """Return where features of so many bytes go, of an unknown number to the last place; `None` where there is no room."""
    rooms = _rooms(options)
    if total is None:
        return next(reversed(rooms))
    return next((name for name, room in rooms.items() if total <= room), None)


def _rooms(options) -> dict[str, float]:
    """Return the places that features may go to, the best first, and the bytes that they may take there."""
    if options.folder is not None:
        return {os.fspath(options.folder): math.inf if is_url(options.folder) else disk_budget(options)}
    budgets = {"device": device_budget, "memory": memory_budget, "disk": disk_budget}
    return {name: budget(options) for name, budget in budgets.items() if options.place in ("auto", name)}


def device_budget(options: CacheOptions) -> int:
    """Return the bytes of the training device's memory that features may take; of a CPU it is `memory_budget`."""
    if not backend.has_accelerator():
        return memory_budget(options)
    free, budget = backend.free_device_memory(), parse_bytes(options.budget)
    return int(free * _DEVICE_SHARE) if budget is None else min(budget, free // 2)


def _speed_up(train, validation, cuts, epochs, views) -> float:
    """Return plain work through cached work, in multiply-accumulates; a training step is three forward passes."""
    images = train.count or 1
    held = 0.2 * images if validation is None or validation.count is None else validation.count
    plain, cached = 0.0, (images * views + held) * max(cut.trunk_macs for cut in cuts)
    for cut, count in zip(cuts[::-1], epochs, strict=True):
        tail = count * (3 * images + held) * (cut.model_macs - cut.trunk_macs)
        plain += tail + count * (images + held) * cut.trunk_macs
        cached += tail
    return plain / max(cached, 1.0)


def memory_budget(options: CacheOptions) -> int:
    """Return the bytes of memory that features may take: the budget, or a quarter of what is free (2 GB if unknown)."""
    free, budget = available_memory(), parse_bytes(options.budget)
    return free // 4 if budget is None else min(budget, free // 2)


def disk_budget(options: CacheOptions) -> int:
    """Return the bytes of disk that features may take: the budget, or half of what is free."""
    folder = tempfile.gettempdir() if options.folder is None or is_url(options.folder) else options.folder
    free, budget = free_space(folder), parse_bytes(options.budget)
    return free // 2 if budget is None else min(budget, free)


def available_memory() -> int:
    """Return the bytes of memory that are free for use now; 8 GB where the system doesn't tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 8 * 10**9


def plan_cache(model: keras.Model, x, y=None, *, validation_data=None, epochs: int = 1, cache="auto", views: int = 1):
    """Return a `CachePlan`, to print: where a model would be cut, what running its frozen part once would cost and save.

    Args:
        model: a classifier in the state in which it will train.
        x, y, validation_data: what `model.fit` takes.
        cache: "auto", or what `kerastl.fit` takes; `views`: versions kept of each training image.
        epochs: how often the data will be seen.

    Raises:
        ArgumentError: arguments that can't be used, or `cache=True` where it can't be done.

    Example:
        >>> print(kerastl.plan_cache(model, *train, epochs=10))
        The frozen part runs once, up to avg_pool (100% of the work): 16 bytes an image, 288 bytes in memory;...
    """
    train = rows_of(x, y)
    validation = None if validation_data is None else rows_of(validation_data, shuffle=False)
    planned = {"epochs": [check_count("epochs", epochs)], "options": options_of(cache), "views": views}
    return make_plan(model, train, validation, **planned)
