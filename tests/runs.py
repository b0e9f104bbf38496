"""What tests of run folders share: a training that is over, splits, and all that `write_run` takes, for each task."""

import math
import types

import keras
import numpy as np

from kerastl.evaluation import report
from kerastl.evaluation.measures import evaluate
from tests import models


def history(epochs, **extra):
    falling = [0.9**epoch for epoch in range(epochs)]
    values = {"loss": falling, "accuracy": falling[::-1], "val_loss": falling, "val_accuracy": falling}
    return types.SimpleNamespace(history={**values, **extra}, epoch_seconds=[1.5] * epochs, diverged=None)


def make_result():
    return types.SimpleNamespace(
        head=history(3),
        fine_tune=history(2, learning_rate=[1e-4, math.nan]),
        best_phase="fine_tune",
        best_epoch=2,
        best_value=0.25,
        monitor="val_loss",
        seconds={"head": 4.5, "fine_tune": 3.0},
    )


def make_splits(names=("red", "green", "blue"), *, task="classification", size=8, count=10, **more):
    known = {
        "class_names": tuple(names),
        "class_counts": dict.fromkeys(names, 30),
        "split_sizes": {"train": 80, "validation": 10, "test": count},
        "image_size": (size, size),
        "resize": "crop",
        "white": None,
        "seed": 7,
        "name": "colours",
        "licence": "CC0",
        "task": task,
        "files": {"test": tuple(f"photos/{index}.png" for index in range(count))},
    }
    return types.SimpleNamespace(**{**known, **more})


def make_run(model, data, splits, **noted):
    """Return everything that `write_run` takes, of a model judged on `(images, labels)`."""
    result, evaluation = make_result(), evaluate(model, data, list(splits.class_names), task=splits.task)
    summary = report.describe_run(model, splits, result, evaluation, **noted)
    return {"model": model, "report": summary, "result": result, "evaluation": evaluation}


def small_run(task="classification", names=("red", "green", "blue"), *, count=16, units=None, **noted):
    """Return what `write_run` takes, of an untrained network with convolutions on random 32×32 images."""
    splits = make_splits(names, task=task, size=32, count=count, **noted.pop("splits", {}))
    generator, width = np.random.default_rng(0), len(names)
    images = generator.integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    labels = {
        "classification": generator.integers(0, width, count),
        "multi-label": generator.integers(0, 2, (count, width)),
        "regression": generator.normal(size=(count, width)),
    }[task]
    return make_run(small_network(task, units or width), (images, labels), splits, **noted)


def small_network(task, units):
    """Return a network with convolutions whose head suits a task."""
    keras.utils.set_random_seed(3)
    activation = {"classification": "softmax" if units > 1 else "sigmoid", "multi-label": "sigmoid", "regression": None}
    inputs = keras.Input((32, 32, 3))
    x = models.tiny_backbone(blocks=1)((inputs - 127.5) / 127.5, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(units, activation=activation[task])(x), name="small")
