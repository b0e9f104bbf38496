"""What `check` asks of the data, and of the data and the model together: pixels, labels, loss, split, order, caches."""

import itertools

import keras
import numpy as np

from kerastl import keras_internals
from kerastl.data.batches import ImageSource, is_endless, is_tf_dataset
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION, class_indices, label_kind
from kerastl.errors import DataError
from kerastl.models import backbones, compiling, graph, outputs
from kerastl.training.doctor_case import ACTIVATIONS, Case, Finding

_ENOUGH = 10  # labels for each unit of the head, to say that a class is missing; images, that their order is odd
_CHANNELS = (1, 3, 4)
_STRAY = 0.1  # share of the images that may go beyond scaled pixels, as standardized ones do that are nearly blank
# Layers that one family of keras.applications has alone, to know a backbone that is no model of its own by
_FAMILIES = {
    "bn_Conv1": "mobilenet_v2",
    "conv2_block1_3_bn": "resnet50",
    "conv2_block1_preact_bn": "resnet50_v2",
    "pool2_bn": "densenet121",
    "conv_dw_1": "mobilenet",
    "block1_conv1_bn": "xception",
    "block5_conv3": "vgg16",
    "mixed_5b": "inception_resnet_v2",
    "mixed0": "inception_v3",
    "stem_bn1": "nasnet_mobile",
}
# All other activations of Keras, and PReLU, are for hidden layers: they make neither probabilities nor logits
_ENDS = {"softmax", "sigmoid", "linear", "hard_sigmoid", "sparsemax", "sparse_sigmoid", "log_softmax", "log_sigmoid"}
_HIDDEN = {name.replace("_", "") for name in {*dir(keras.activations), "prelu"} - _ENDS}
_FIFTH, _REST = "part[::5]", "np.delete(part, np.s_[::5], axis=0)"  # two parts out of one
_LOSSES = {"one-hot": "categorical", MULTI_LABEL: "binary"}
_TAKES = {"sparse": "integer labels", "binary": "labels of 0 and 1 for each unit", "categorical": "one-hot labels"}


def data_findings(case: Case):
    """Yield what is wrong with the data, or doesn't go with the model."""
    if unfit := [*_missing(case), *_axes(case)]:
        yield from unfit
        return
    fits = list(_sizes(case))
    yield from fits or _pixels(case)
    odd = list(_labels(case))
    order = list(_order(case))
    fit = (_activation(case), _loss(case), () if order else _width(case), _untaught(case))
    yield from odd or itertools.chain(*fit)
    yield from _leak(case)
    yield from order
    yield from _frozen_augmentation(case)


def not_looked_at(case: Case) -> list[str]:
    """Return what is to be said of parts whose images aren't looked at, and of datasets without an end."""
    inputs = len(getattr(case.model, "inputs", None) or [0])
    several = f"the model has {inputs} inputs" if inputs > 1 else "they are not one array, with one array of labels"
    notes = []
    for part in case.unread:
        once = hasattr(case.given[part], "__next__")
        if once or not any(one is None for one in _first_of(case.given[part])):  # that is a finding
            reason = "they can be read only once" if once else several
            notes.append(f"The images of {part} were not looked at: {reason}.")
    endless = [part for part, given in case.given.items() if is_endless(given)]
    return notes + [f"The dataset of {part} never ends: `fit` needs a number of steps for it." for part in endless]


def _first_of(given) -> tuple:
    """Return the images and labels of the first batch, of arrays all; `None` for what is missing."""
    if isinstance(given, keras.utils.PyDataset):
        given = [given[index] for index in range(len(given))[:1]]
    is_array = isinstance(given, dict) or (hasattr(given, "shape") and hasattr(given, "__getitem__"))
    at_once = is_array or (isinstance(given, tuple) and len(given) in (2, 3))
    batch = given if at_once else next(iter(given), None)
    return (*batch, None, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)


def _missing(case):
    """Yield where there are no images, or no labels with them."""
    for part, rows in {**case.rows, **case.unread}.items():
        given = case.given[part]
        if rows.first is None and hasattr(given, "__next__"):
            continue
        images, labels = rows.first or _first_of(given)
        if images is None or 0 in getattr(images, "shape", ())[:1]:
            yield Finding("data", f"{part} holds 0 images.", 0, f"# look for what left no images in {part}")
        elif labels is None:
            of = "be `(images, labels)`" if rows.skips else "hold batches of `(images, labels)`"
            yield Finding("data", f"{part} holds images and 0 labels.", 0, f"# {part} must {of}")


def _axes(case):
    """Yield images, or rows of features, that have more or fewer axes than the model takes, or are no batches."""
    wanted = tuple(case.model.inputs[0].shape) if len(getattr(case.model, "inputs", None) or ()) == 1 else None
    for part, rows in case.rows.items() if wanted else ():
        images, labels = rows.first
        missing = len(wanted) - images.ndim
        single = missing > 0 and not rows.skips and (labels.ndim == 0 or len(labels) != len(images))
        takes = f"The model takes batches of {len(wanted)} axes, {wanted}"
        evidence = f"{takes}; those of {part} have {images.ndim}, {images.shape}."
        if single:
            mend = f"{part} = {part}.batch(32)" if is_tf_dataset(case.given[part]) else f"# make batches of {part}"
        elif not missing or (missing == 1 and wanted[-1] == 1) or (missing == -1 and images.shape[-1] == 1):
            continue  # Keras adds or drops a last axis of 1 itself
        else:
            change = _reshaped(images.shape[1:], wanted[1:])
            mend = case.changed([part], change) if change else f"# {part} must hold arrays of {wanted}"
        yield Finding("data", evidence, images.ndim, mend)


def _reshaped(given: tuple, wanted: tuple) -> str | None:
    """Return what gives images without channels, or in rows, the axes that a model takes."""
    if len(wanted) == 3 and len(given) == 2:
        return f"keras.ops.repeat(images[..., None], {wanted[-1]}, axis=-1)" if wanted[-1] else "images[..., None]"
    if len(given) == 1 and len(wanted) > 1 and None not in wanted:
        sizes = [wanted, (*wanted[:2], 1), (*wanted[:2], 3)]
        fits = next((size for size in sizes if np.prod(size) == given[0]), None)
        return fits and f"keras.ops.reshape(images, {(-1, *fits)})"
    return None


def _sizes(case):
    for part, images in case.images.items():
        try:
            outputs.check_size(case.model, images)
        except DataError as error:
            wanted, given = case.model.inputs[0].shape[1:], images.shape[1:]
            change = _fitted(given, wanted)
            mend = case.changed([part], change) if change else f"# {part} must hold images of {wanted}"
            yield Finding("image size", str(error).partition(" Load")[0], given[0], mend)


def _fitted(given: tuple, wanted: tuple) -> str | None:
    """Return what gives images the order of axes that a model takes, or else its channels, or else its size."""
    first, model_first = (sizes[0] in _CHANNELS and sizes[-1] not in (None, *_CHANNELS) for sizes in (given, wanted))
    if first != model_first:
        return f"keras.ops.moveaxis(images, {'1, -1' if first else '-1, 1'})"
    if first:  # both
        return None
    if wanted[-1] in (None, given[-1]):
        sizes = tuple(own if side is None else side for side, own in zip(wanted[:2], given[:2], strict=True))
        return f"keras.ops.image.resize(images, {sizes})"
    if wanted[-1] == 1 and given[-1] >= 3:
        return "keras.ops.mean(images[..., :3], axis=-1, keepdims=True)"
    if wanted[-1] > 1 and given[-1] < 3:
        return f"keras.ops.repeat(images[..., :1], {wanted[-1]}, axis=-1)"
    return f"images[..., :{wanted[-1]}]" if wanted[-1] < given[-1] else None


def _pixels(case):
    model, takes = case.model, outputs.pixel_range(case.model)
    probed, row = outputs.probe_pixels(model), None if takes == "0-255" else _row_of(case)
    if takes == "0-255" and probed[0] < max(0.1, abs(probed[1]) / 10):
        evidence = "From black to white, 255, the first layer with weights is given {:.2g}, around {:.3g}."
        yield Finding("scaled twice in the model", evidence.format(*probed), probed[0], _without_scaling(case))
    for part, seen in case.seen.items():
        low, high = seen.ends
        pixels = f"The pixels of {part} are {low:.3g} to {high:.3g}"
        if seen.broken:
            change = f"keras.ops.nan_to_num(images, posinf={high:.9g}, neginf={low:.9g})"
            evidence = (
                f"{seen.broken:,} pixels of the {len(seen.lows):,} images of {part} looked at are NaN or infinite."
            )
            yield Finding("broken pixels", evidence, seen.broken, case.changed([part], change))
        elif takes == "0-255" and seen.is_float and outputs.scaled_range(np.array([low, high])):
            evidence = f"{pixels}; the model takes 0–255 and scales them itself."
            yield Finding("preprocessing doubled", evidence, high, case.changed([part], _undone(low, high)))
        elif takes == "scaled" and (seen.highs > outputs.LARGEST_SCALED).mean() > _STRAY:
            evidence = f"The pixels of {part} go up to {high:.3g}; the model is made for smaller numbers, such as 0–1."
            yield Finding("preprocessing missing", evidence, high, case.changed([part], "images / 255"))
        elif row is not None and low >= 0 and high > 0:
            ends = (backbones.preprocess(row, np.full((1, 1, 1, 3), value, "float32")) for value in (0, 255))
            black, white = map(keras.ops.convert_to_numpy, ends)
            full = "images * 255" if high <= 1 and seen.is_float else "images"
            wanted = f"{black.min():.4g} to {white.max():.4g}, and nothing in the model makes them so."
            change = f'kerastl.models.backbones.preprocess("{row.name}", {full})'
            evidence = f"{pixels}; {row.name} was trained on {wanted}"
            yield Finding("preprocessing missing", evidence, high, case.changed([part], change))


def was_trained(layers) -> bool:
    """Tell whether a bias, a factor or a statistic has left the 0 or 1 at which all start; a `Normalization` is no sign."""
    for leaf in graph.leaf_layers(*layers):
        for weight in () if isinstance(leaf, keras.layers.Normalization) else leaf.weights:
            values = keras.ops.convert_to_numpy(weight) if len(weight.shape) == 1 else np.zeros(1)
            if np.ptp(values) or values[0] not in (0, 1):
                return True
    return False


def _row_of(case):
    """Return the row of a trained backbone whose preprocessing the model doesn't hold, as its name or its layers tell it."""
    if case.backbone is None or not was_trained(case.backbone.layers):
        return None
    row = backbones.find_backbone_row(case.backbone.path[-1])
    if row is None:
        names = {layer.name for layer in case.backbone.layers}
        row = next((backbones.BACKBONES[name] for layer, name in _FAMILIES.items() if layer in names), None)
    return None if row is None or row.preprocessing == backbones.IN_MODEL else row


def _undone(low: float, high: float) -> str:
    """Return what turns scaled pixels back into 0–255: from 0…1, −1…1, ImageNet's mean and deviation, or minus its mean."""
    if low >= 0:
        return "images * 255"
    if low >= -1.01 and high <= 1.01:
        back = "(images + 1) * 127.5"
    elif low > -4:
        back = "(images * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255"
    else:
        back = "images[..., ::-1] + [123.68, 116.779, 103.939]"
    return f"keras.ops.clip({back}, 0, 255)"


def _without_scaling(case) -> str:
    inside = {id(layer) for layer in case.backbone.path[-1].layers} if case.backbone else set()
    scaling = [layer for layer in case.model.layers if isinstance(layer, keras.layers.Rescaling)]
    outer = [layer for layer in scaling if id(layer) not in inside] or scaling
    if outer:
        layer = f'model.get_layer("{outer[0].name}")'
        return f"{layer}.scale, {layer}.offset = 1.0, 0.0"
    if case.backbone and len(case.backbone.path) == 2 and case.backbone.name in [one.name for one in case.model.layers]:
        return f'model = kerastl.build_classifier(model.get_layer("{case.backbone.name}"), {case.units}, task="{case.task}")'
    return "# leave one of the two scalings out where the model is built"


def _labels(case):
    """Yield what `label_kind` refuses, for the first part that has it."""
    for part, labels in case.labels.items():
        classes = outputs.count_classes(case.model) if case.task == CLASSIFICATION else case.units
        try:
            label_kind(labels, classes, case.task)
        except DataError as error:
            numbers = labels is not None and labels.size and labels.dtype.kind in "iufb"
            low, high = (float(labels.min()), float(labels.max())) if numbers else (np.nan, np.nan)
            ends = f"The labels of {part} go from {low:.6g} to {high:.6g}, in an array of {np.shape(labels)}. "
            evidence = ends * bool(numbers) + str(error).partition(" For these")[0]
            yield Finding("labels", evidence, high, _labels_mended(case, labels, classes))
            return


def _labels_mended(case, labels, classes: int) -> str:
    if not _are_numbers(labels):
        return "# labels must be numbers: classes, rows of 0 and 1, or what to predict"
    rows = labels.ndim == 2 and labels.shape[1] > 1
    if (labels != np.floor(labels)).any():
        return case.new_head(labels.shape[1] if rows else 1, REGRESSION)
    if rows:
        task = CLASSIFICATION if (labels.sum(axis=1) == 1).all() else MULTI_LABEL
        if labels.shape[1] == case.units:
            return case.new_activation(ACTIVATIONS[task])
        return case.new_head(labels.shape[1], task)
    if case.task == MULTI_LABEL:
        return case.new_activation("softmax")
    return case.new_head(1, REGRESSION) if case.task == REGRESSION else _classes_mended(case, classes)


def _are_numbers(labels) -> bool:
    return labels is not None and labels.dtype.kind in "iufb" and np.isfinite(labels).all() and labels.ndim <= 2


def _classes_mended(case, classes: int) -> str:
    """Return the line that brings classes to 0…classes - 1 in the parts that need it, or gives the head more units.

    Labels that don't start at 0 are moved in each part that doesn't start there, by the same number.
    """
    parts = {part: one for part, one in case.labels.items() if _are_numbers(one) and one.size == len(one) > 0}
    parts = {part: np.unique(one).astype(int) for part, one in parts.items()}
    wrong = {part: one for part, one in parts.items() if one[0] < 0 or one[-1] >= classes}
    sign = np.sign(next(iter(wrong.values()))[0])
    alike = {part: one for part, one in parts.items() if np.sign(one[0]) == sign}
    lowest, highest = min(one[0] for one in alike.values()), max(one[-1] for one in alike.values())
    if sign and highest - lowest < classes:
        return case.changed(alike, labels=f"labels - {lowest}" if lowest > 0 else f"labels + {-lowest}")
    present = np.unique(np.concatenate(list(wrong.values()))).tolist()
    if len(present) > classes:
        return case.new_head(max(present[-1] + 1, len(present)), CLASSIFICATION)
    return case.changed(wrong, labels=f"keras.ops.searchsorted({present}, keras.ops.cast(labels, 'int32'))")


def _activation(case):
    kind = outputs.output_kind(case.model)
    if kind == "softmax" and case.units == 1:
        evidence = "A softmax over 1 unit is 1.0 for every image."
        yield Finding("activation", evidence, 1, case.new_activation("sigmoid"))
    elif kind is None and (not compiling.was_compiled(case.model) or _is_for_hidden_layers(case)):
        evidence = f"The last layer's activation on its {case.units} units is neither softmax, sigmoid nor linear."
        logits = compiling.was_compiled(case.model) and compiling.takes_logits(case.model)
        binary = "sigmoid" if case.units == 1 and case.task == CLASSIFICATION else ACTIVATIONS[case.task]
        yield Finding("activation", evidence, case.units, case.new_activation("linear" if logits else binary))
    elif under := outputs.probabilities_under(case.model):
        evidence = f"The {kind} at the end is given {case.units} numbers from 0 to 1, the output of {under.name!r}."
        mend = f"# leave {under.name!r} out where the model is built"
        if under in case.model.layers and hasattr(under, "activation"):
            mend = f'model.get_layer("{under.name}").activation = keras.activations.linear'
        yield Finding("activation", evidence, case.units, mend)


def _is_for_hidden_layers(case) -> bool:
    """Tell whether a cross-entropy is given what an activation such as ReLU or tanh makes."""
    node = outputs.deciding_node(outputs.main_tensor(case.model))
    name = "" if node is None else outputs.activation_name(node.operation).replace("_", "").lower()
    return name in _HIDDEN and "crossentropy" in compiling.loss_name(case.model)


def _loss(case):
    """Yield where the compiled cross-entropy takes other labels than these, or other outputs than the model's."""
    model, labels = case.model, case.labels.get("train")
    name, kind = compiling.loss_name(model), outputs.output_kind(model)
    if labels is None or "crossentropy" not in name or kind is None or (kind, case.units) == ("softmax", 1):
        return
    given = MULTI_LABEL
    if case.task == CLASSIFICATION:
        given = label_kind(labels, outputs.count_classes(model))
    wanted = ("sparse" if case.units > 1 else "binary") if given == "integer" else _LOSSES.get(given, "binary")
    taken = next((one for one in ("sparse", "binary", "categorical") if one in name), wanted)
    logits = compiling.takes_logits(model)
    if taken != wanted and (given, taken) != ("one-hot", "binary"):
        evidence = f"The loss, {name}, is for {_TAKES[taken]}; the labels are {given}, of {case.units} units."
    elif logits != (kind == "logits"):
        evidence = f"The loss has from_logits={logits}, and the {case.units} outputs are {kind}."
    else:
        return
    right = {"sparse": "SparseCategorical", "binary": "Binary", "categorical": "Categorical"}[wanted]
    call = f"keras.losses.{right}Crossentropy({'from_logits=True' if kind == 'logits' else ''})"
    # "accuracy" beside several labels would be that of the label predicted highest
    metric = 'keras.metrics.BinaryAccuracy(name="accuracy")' if case.task == MULTI_LABEL else '"accuracy"'
    yield Finding("loss", evidence, case.units, f"model.compile(model.optimizer, {call}, metrics=[{metric}])")


def _width(case):
    """Yield where the head has more units than the labels have classes, of enough labels to tell."""
    labels = case.labels.get("train")
    if case.task != CLASSIFICATION or labels is None or labels.ndim != 1:
        return
    if not (case.limit or case.rows["train"].skips):  # a few labels
        return
    classes = max(int(one.max(initial=0)) for one in case.labels.values()) + 1
    if 1 < classes < case.units and len(labels) >= _ENOUGH * case.units:
        evidence = f"The head has {case.units} units, and the {len(labels):,} labels seen are 0…{classes - 1}."
        yield Finding("output width", evidence, case.units, case.new_head(classes, CLASSIFICATION))


def _untaught(case):
    """Yield where validation holds classes of which training has no image, where the labels of all of training are known."""
    if case.task != CLASSIFICATION or len(case.labels) < 2:
        return
    classes = outputs.count_classes(case.model)
    train, validation = (class_indices(case.labels[part], classes) for part in ("train", "validation"))
    read = "train" in case.images and case.limit is not None  # else no more than a first batch is known of a dataset
    known = case.rows["train"].skips or (read and len(train) < case.limit)
    without = np.setdiff1d(validation, train)
    if known and without.size:
        names, count = ", ".join(map(str, without[:10])), int(np.isin(validation, without).sum())
        labels = f"{count:,} of the {len(validation):,} validation labels"
        evidence = f"{labels} are of classes without a training image: {names}."
        given = (case.given["train"], case.given["validation"])
        arrays = all(isinstance(one, tuple) and not any(part is None for part in one) for one in given)
        mend = "# split the images so that each class is in both parts"
        if arrays and [np.ndim(part) for part in given[0]] == [np.ndim(part) for part in given[1]]:
            both = "both = tuple(map(np.concatenate, zip(train, validation)))"
            mend = f"{both}; train, validation = {_of_each('both', _REST)}, {_of_each('both', _FIFTH)}"
        yield Finding("classes not trained", evidence, count, mend)


def _leak(case):
    """Yield where the same image is in both parts; `load_images` says so itself of what it loads."""
    if len(case.images) < 2 or all(isinstance(rows, ImageSource) for rows in case.rows.values()):
        return
    train, validation = (case.seen[part].keys for part in ("train", "validation"))
    held = set(validation) - {None}
    twice = [index for index, key in enumerate(train) if key in held]
    if not twice:
        return
    count = len(held & set(train))
    evidence = f"{count:,} of the {len(held):,} validation images looked at are among {len(train):,} training images."
    mend = "train, validation = keras.utils.split_dataset(train, left_size=0.8, shuffle=True, seed=0)"
    if isinstance(case.given["train"], tuple):
        mend = f"train = {_of_each('train', f'np.delete(part, {_runs(twice)}, axis=0)')}"
        if len(twice) > len(train) / 2:
            mend = f"train, validation = {_of_each('train', _REST)}, {_of_each('train', _FIFTH)}"
    elif not is_tf_dataset(case.given["train"]) or is_endless(case.given["train"]):
        mend = "# split the images once, before anything draws from them"
    yield Finding("split leaks", evidence, count, mend)


def _of_each(name: str, expression: str) -> str:
    """Return what takes the same of images, labels and sample weights, which may be `None`."""
    return f"tuple(part if part is None else {expression} for part in {name})"


def _runs(indices: list[int]) -> str:
    """Return sorted indices as `np.r_[0:12, 15]`."""
    groups = itertools.groupby(enumerate(indices), lambda pair: pair[1] - pair[0])
    runs = [[index for _, index in group] for _, group in groups]
    return f"np.r_[{', '.join(f'{run[0]}:{run[-1] + 1}' if len(run) > 1 else str(run[0]) for run in runs)}]"


def _order(case):
    """Yield where training images come class by class, and nothing draws their order."""
    rows = case.rows.get("train")
    if rows is None or case.task != CLASSIFICATION or "train" not in case.images:
        return
    if rows.shuffles if rows.skips else not case.limit:
        return  # drawn in every epoch, or not read
    labels = np.asarray(case.labels["train"])
    labels = labels.argmax(axis=1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
    shares = np.unique(labels, return_counts=True)[1] / max(len(labels), 1)
    expected, changes = len(labels) * (1 - (shares**2).sum()), int((labels[1:] != labels[:-1]).sum())
    if len(labels) < 2 * _ENOUGH or (len(shares) > 1 and (expected < _ENOUGH or changes > expected / 5)):
        return
    evidence = f"The class changes {changes} times in {len(labels):,} images; shuffled, it would {expected:.0f} times."
    if is_tf_dataset(case.given["train"]):
        mend = f"train = train.unbatch().shuffle(10_000).batch({rows.batch_size})"
    else:
        mend = "# shuffle the training images"
    yield Finding("class order", evidence, changes, mend)


def _frozen_augmentation(case):
    """Yield where a `tf.data.Dataset` caches what a random function drew, and draws nothing afterwards."""
    if not is_tf_dataset(case.given["train"]):
        return
    steps = list(keras_internals.dataset_steps(case.given["train"]))
    last = next((place for place, step in enumerate(steps) if keras_internals.draws_random_numbers(step)), 0)
    if not any(map(keras_internals.keeps_what_it_reads, steps[:last])):
        return
    count, change = len(case.images.get("train", ())), "tf.image.random_flip_left_right(images)"
    evidence = "Random numbers are drawn before `.cache()`: each epoch sees the same views of the {} first images."
    yield Finding("augmentation frozen by a cache", evidence.format(count), count, case.changed(["train"], change))
