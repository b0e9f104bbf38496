"""The part of a classifier that is exported: pixels of one size in, the main output out, nothing random in between."""

import keras

from kerastl import keras_internals
from kerastl.checks import check_choice, received
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from kerastl.errors import ArgumentError, ModelError
from kerastl.evaluation.probabilities import VIEWS, size_to_use
from kerastl.models import graph, outputs
from kerastl.models.flatten import connect, replay

PIXEL_TYPES = ("float32", "uint8")


def inference_model(
    model: keras.Model,
    *,
    pixels: str = "float32",
    image_size=None,
    preprocessing="auto",
    views: int = 1,
    task: str = CLASSIFICATION,
) -> keras.Model:
    """Return what is exported: one flat graph that shares the layers of `model`, without augmentation and dropout.

    They have to be left out: Keras 3.15's augmentation layers take `training=True` for granted where nobody says otherwise,
    and its SavedModel and ONNX exporters don't say. The exported model would flip and turn the images it is asked about.
    Arguments are those of `export_model`. Several views go through the layers as one larger batch, so that no weight is there
    twice; logits become probabilities before they are averaged, as `predict` does it.

    Raises:
        ArgumentError: an `image_size` that the model doesn't take, or none where it takes any; another type of pixels;
            preprocessing that can't be part of a graph.
        ModelError: no classifier of RGB images, a graph that can't be walked, or one that doesn't compute in float32.
    """
    check_choice("pixels", pixels, PIXEL_TYPES)
    check_choice("views", views, VIEWS)
    functional = graph.functional_of(model)
    outputs.count_classes(model)
    size = size_to_use(model, image_size)
    if None in size:
        raise ArgumentError(
            f"The model takes images of any size, and an exported one has a fixed size: pass `image_size=`. "
            f"{received(image_size=image_size)}"
        )
    mixed = {one.compute_dtype for one in graph.leaf_layers(functional)} - {"float32"}
    mixed -= {one.dtype for one in functional.inputs}  # an input layer of integers computes nothing
    if mixed:
        raise ModelError(
            "Expected a model that computes in float32. Build it again under "
            '`keras.config.set_dtype_policy("float32")` and give it the weights: `new.set_weights(model.get_weights())`. '
            f"{received(compute_dtype=', '.join(sorted(mixed)))}"
        )
    inputs = keras.Input((*size, 3), dtype=pixels, name="pixels")
    images = inputs if pixels == "float32" else keras.ops.cast(inputs, "float32")
    if callable(preprocessing):
        images = _preprocessed(images, preprocessing)
    results = replay(functional, [_with_flips(images, views)], _does_nothing_in_inference)
    main = results[outputs.main_index(functional)]
    if views > 1:
        main = _averaged(main, views, outputs.output_kind(model), task)
    return connect([inputs], [main], model.name)


def _with_flips(images, views: int):
    """Return the views that `average_views` averages as one batch, `(batch × views, height, width, 3)`, image by image."""
    if views == 1:
        return images
    mirrored = keras.ops.flip(images, 2)
    flips = [images, mirrored, keras.ops.flip(images, 1), keras.ops.flip(mirrored, 1)]
    return keras.ops.reshape(keras.ops.concatenate(flips[:views], axis=1), (-1, *images.shape[1:]))


def _averaged(values, views: int, kind: str | None, task: str):
    """Return the mean over the views of outputs, `(batch × views, units)`, as probabilities or numbers."""
    units = values.shape[-1]
    if kind == "logits" and task != REGRESSION:
        squash = "sigmoid" if task == MULTI_LABEL or units == 1 else "softmax"
        values = keras.layers.Activation(squash, dtype="float32")(values)
    return keras.ops.mean(keras.ops.reshape(values, (-1, views, units)), axis=1)


def _preprocessed(images, preprocessing):
    try:
        found = preprocessing(images)
    except Exception as error:  # whatever a function of NumPy or Pillow makes of a symbolic tensor
        found = f"{type(error).__name__}: {error}"
    if getattr(found, "shape", None) == images.shape and keras_internals.has_history(found):
        return found
    raise ArgumentError(
        "To become part of the exported model, `preprocessing` must be arithmetic or made of `keras.ops`, such as "
        "`lambda pixels: pixels / 255` or `keras.applications.….preprocess_input`, and keep the shape. "
        f"{received(preprocessing=preprocessing, gave=found)}"
    )


def _does_nothing_in_inference(operation) -> bool:
    """Tell Keras's own augmentation, dropout and noise, which hand images of the same shape on as they are."""
    if not isinstance(operation, keras.layers.Layer) or isinstance(operation, keras.Model):
        return False
    if not type(operation).__module__.startswith("keras.") or not graph.is_random(operation):
        return False
    if graph.has_weights(operation):  # a recurrent layer with dropout, say
        return False
    nodes = keras_internals.calls_of(operation)
    return all(len(node.input_tensors) == 1 and node.input_tensors[0].shape == node.outputs[0].shape for node in nodes)
