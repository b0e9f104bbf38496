"""What a model says of images, by its task: probabilities of classes or labels, or numbers; its names and image size.

Softmax, one sigmoid unit and plain logits all become an array `(count, classes)` of probabilities.
"""

from collections.abc import Callable, Iterable, Mapping

import keras
import numpy as np

from kerastl.checks import check_choice, check_fraction, nearest, received
from kerastl.data.images import check_image_size
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION, TASKS
from kerastl.errors import ArgumentError, DataError, ModelError
from kerastl.models.compiling import task_of
from kerastl.models.outputs import count_classes, main_output, main_tensor, output_kind, to_probabilities

VIEWS = (1, 2, 4)
NAMED = dict(zip(TASKS, ("classes", "labels", "numbers"), strict=True))
"""What the outputs of each task are."""
THRESHOLD = 0.5
"""From this probability on an image has a label, unless `thresholds` say otherwise."""


def find_task(model: keras.Model, class_names=None, *, labels=None, task: str | None = None) -> str:
    """Return the task that was asked for, else the one that `task_of` tells; two names make one linear unit a classifier."""
    if task is not None:
        check_choice("task", task, TASKS)
        return task
    two, found = count_classes(model) == 2 and np.size(class_names) == 2, task_of(model, labels)
    return CLASSIFICATION if two and found == REGRESSION and main_tensor(model).shape[-1] == 1 else found


def input_size(model: keras.Model) -> tuple[int | None, int | None]:
    """Return `(height, width)` that the model takes, in pixels; `None` where it takes any, or nobody knows.

    `ModelError`: it has several inputs, or doesn't take RGB images.
    """
    shapes = [tuple(tensor.shape) for tensor in getattr(model, "inputs", None) or []]
    if not shapes:
        return None, None
    if len(shapes) > 1 or len(shapes[0]) != 4 or shapes[0][3] not in (3, None):
        raise ModelError(
            "Expected a model with one input of RGB images, (batch, height, width, 3). "
            f"{received(input_shapes=shapes)}. Other inputs are out of scope: call `model.predict` on prepared arrays."
        )
    return shapes[0][1], shapes[0][2]


def size_to_use(model: keras.Model, image_size) -> tuple[int | None, int | None]:
    """Return the `(height, width)` that was asked for, else the model's own; raise where it takes no images of that size."""
    own = input_size(model)
    wanted = own if image_size is None else check_image_size(image_size)
    if any(side not in (None, asked) for side, asked in zip(own, wanted, strict=True)):
        raise ArgumentError(f"The model takes images of {own} pixels, no others. {received(image_size=image_size)}")
    return wanted


def class_probabilities(
    model: keras.Model, images, *, views: int = 1, batch_size: int | None = None, task: str = CLASSIFICATION
) -> np.ndarray:
    """Run the model on one batch, `(batch, height, width, 3)`, and return what `to_probabilities` makes of its main output.

    `views`: 1 runs the images as they are; 2 averages them with their mirror images; 4 with both flips and the two
    together. Averaging flips at test time is as old as Krizhevsky et al., "ImageNet classification with deep convolutional
    neural networks" (2012). The batch is filled up to `batch_size` images, so that a last, smaller one doesn't trace the
    model again.
    """
    check_choice("views", views, VIEWS)
    images = np.asarray(images).astype("float32", copy=False)
    count = len(images)
    missing = max(0, (batch_size or 0) - count)
    images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images
    kind = output_kind(model)
    return average_views(lambda flipped: to_probabilities(_forward(model, flipped)[:count], kind, task), images, views)


def average_views(answer: Callable[[np.ndarray], np.ndarray], images: np.ndarray, views: int) -> np.ndarray:
    """Return the mean of what `answer` makes of a batch and of its flips: 1, 2 or 4 views, as `class_probabilities` has it."""
    flips = [images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]][:views]
    return (sum(answer(np.ascontiguousarray(flipped)) for flipped in flips) / views).astype("float32")


def class_names_for(model: keras.Model, class_names, task: str = CLASSIFICATION) -> list[str]:
    """Return the names as a list, or `"0"`, `"1"`, …; raise where there is not one for each class, or the same one twice."""
    classes = count_classes(model)
    if task == REGRESSION:
        classes = main_tensor(model).shape[-1]
    if class_names is None:
        return [str(index) for index in range(classes)]
    if not isinstance(class_names, Iterable):
        raise DataError(f"`class_names` must be a list of names. {received(class_names=class_names)}")
    names = [class_names] if isinstance(class_names, str) else [str(name) for name in class_names]
    if len(names) != classes:
        raise DataError(
            f"Expected one class name for each of the model's {classes} {NAMED[task]}, in their order. "
            f"{received(class_names=names)}, which is {len(names)}"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"Class names must differ from each other. {received(class_names_given_twice=twice)}")
    return names


def check_thresholds(thresholds, names: list[str], task: str) -> np.ndarray | None:
    """Return a threshold for each of `names`, `(names,)`, of what `predict` takes; those of two classes add up to 1.

    `ArgumentError`: names that there are not, no numbers between 0 and 1, numbers or many classes to be predicted.
    """
    if thresholds is None:
        return None
    if not isinstance(thresholds, Mapping):
        expected = (
            "`thresholds` must be what `kerastl.choose_thresholds` returned, or a dictionary from names to numbers."
        )
        raise ArgumentError(f"{expected} {received(thresholds=thresholds)}")
    if task == REGRESSION or (task == CLASSIFICATION and (len(names) > 2 or len(thresholds) != 1)):
        raise ArgumentError(
            "Thresholds are for models of several labels, or for one of two classes. Leave them out: of more classes the most "
            f"probable one is named. {received(task=task, names=names, thresholds=dict(thresholds))}"
        )
    for name, value in thresholds.items():
        check_fraction(f"thresholds[{name!r}]", value, one=False)
        if name not in names:
            raise ArgumentError(f"There is no {name!r}.{nearest(name, names)} {received(thresholds=dict(thresholds))}")
    found = np.array([thresholds.get(name, THRESHOLD) for name in names], dtype="float64")
    if task == CLASSIFICATION:
        [index] = map(names.index, thresholds)
        found[1 - index] = 1 - found[index]
    return found


def decide(probabilities: np.ndarray, task: str, thresholds: np.ndarray | None = None) -> np.ndarray:
    """Return the class of each row, `(count,)`, whether each label is there, `(count, labels)`, or the numbers as they are.

    `thresholds` are what `check_thresholds` returned.
    """
    if task == REGRESSION:
        return probabilities
    if task == MULTI_LABEL:
        return probabilities >= (THRESHOLD if thresholds is None else thresholds)
    return (probabilities if thresholds is None else probabilities - thresholds).argmax(axis=-1)


def _forward(model, images) -> np.ndarray:
    values = model.predict_on_batch(images)
    # JAX hands dictionaries back sorted by key: the model knows which is first
    values = values[next(iter(model.output))] if isinstance(values, dict) else main_output(values)
    return np.asarray(keras.ops.convert_to_numpy(values)).astype("float32")
