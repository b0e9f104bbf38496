"""Accuracy against seconds on the flower photographs: a probe, the defaults, those of before, Keras's guide, and fastai.

    python benchmarks/flowers.py data/flowers --splits 10 --settings cd6ed3d probe defaults --json flowers.json
    python benchmarks/flowers.py data/flowers --splits 10 --settings probe defaults --per-class 20 --classes 2
    python benchmarks/flowers.py data/flowers --own-split --on-validation --splits 3 --settings probe --peaks 1e-3 5e-4 3e-4
    python benchmarks/flowers.py data/flowers --own-split --splits 3 --fastai .venv-fastai/bin/python \\
        --settings defaults guide "guide, longer" fastai "fastai, longer"

Each split draws 70 % of the photographs to train on, 15 % to validate and 15 % to test, the same for all settings, so that
the differences are paired. `--per-class` leaves so many of each class to train on. `cd6ed3d` is the package as it was at
that commit, with its own defaults: it is taken out of this repository's history and run in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import report  # isort: skip

import keras
import numpy as np
import tensorflow as tf

import kerastl
from kerastl.evaluation.probabilities import class_probabilities
from kerastl.models.backbones import preprocess
from kerastl.training.rates import cosine_decay

_OLD = {"head_epochs": 10, "fine_tune_epochs": 5, "last_blocks": 3, "patience": 3, "keep": "best", "views": 1}
SETTINGS = {
    "before": _OLD,  # the defaults until version 0.1, whose rate was 1e-4 with cosine decay
    "defaults": {},
    "head alone": {"fine_tune_epochs": 0},
    "plain views": {"views": 1},
    "strong": {"views": 8, "fine_tune_epochs": 16, "keep": "average"},
}


# What fastai's tutorials call `fine_tune` with, after an epoch with the body frozen; and a longer run
_FASTAI_EPOCHS = {"fastai": 1, "fastai, longer": 10}
# Epochs of the head, epochs of the whole network, and their rate: what the guide has, and a longer run at a higher one
_GUIDE = {"guide": (2, 1, 1e-5), "guide, longer": (10, 10, 1e-4)}
APART = ("cd6ed3d", *_FASTAI_EPOCHS)
_OLD_PROCESS = """
import json, sys, time
import keras, numpy as np, kerastl
settings, start = json.loads(sys.argv[1]), time.perf_counter()
parts = np.load(settings["arrays"])
train, validation = (parts["x0"], parts["y0"]), (parts["x1"], parts["y1"])
keras.utils.set_random_seed(settings["seed"])
classes, shape = int(max(train[1])) + 1, train[0].shape[1:]
model = kerastl.build_classifier(settings["backbone"], classes, input_shape=shape, weights=settings["weights"])
kerastl.transfer_learn(model, train, validation, seed=settings["seed"], verbose=0)
accuracy = float((model.predict(parts["x2"], verbose=0).argmax(axis=1) == parts["y2"]).mean())
print(json.dumps({"accuracy": accuracy, "mirrored too": None, "seconds": time.perf_counter() - start}))
"""


def run_apart(arguments, setting: str, images, labels, parts, seed: int) -> dict:
    """Return what another package, or this one as it was, comes to in a process of its own, its start left out."""
    with tempfile.TemporaryDirectory() as folder:
        here, environment = Path(__file__).resolve().parent, dict(os.environ)
        arrays = str(Path(folder, "arrays.npz"))
        named = [{f"x{index}": images[part], f"y{index}": labels[part]} for index, part in enumerate(parts)]
        np.savez(arrays, **named[0], **named[1], **named[2])
        settings = {"arrays": arrays, "seed": seed, "backbone": arguments.backbone, "weights": arguments.weights}
        if setting == "cd6ed3d":
            archive = subprocess.run(
                ["git", "archive", setting, "kerastl"], cwd=here.parent, check=True, capture_output=True
            )
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            command, environment["PYTHONPATH"] = [sys.executable, "-c", _OLD_PROCESS], folder
        else:
            command = [arguments.fastai, str(here / "fastai_flowers.py")]
            settings["epochs"] = _FASTAI_EPOCHS[setting]
        command.append(json.dumps(settings))
        done = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def photographs(folder: Path, size: int) -> tuple:
    """Return images `(count, size, size, 3)` and class indices."""
    data = kerastl.load_images(folder, image_size=size, validation=0, test=0, batch_size=64, verbose=0)
    images, labels = map(np.concatenate, zip(*data.train.as_numpy_iterator(), strict=True))
    return images, labels


def own_parts(size: int) -> tuple:
    """Return images, class indices, and those of each part of the photographs' own split."""
    data = kerastl.load_images("flowers", image_size=size, batch_size=64, shuffle=False, verbose=0)
    arrays = [
        list(map(np.concatenate, zip(*part.as_numpy_iterator(), strict=True)))
        for part in (data.train, data.validation, data.test)
    ]
    images, labels = map(np.concatenate, zip(*arrays, strict=True))
    return images, labels, np.split(np.arange(len(labels)), np.cumsum([len(part) for _, part in arrays])[:2])


def random_parts(labels, seed: int, per_class: int | None) -> list[np.ndarray]:
    """Return the indices of the images to train, validate and test on, each class split alike."""
    generator, parts = np.random.default_rng(seed), [[], [], []]
    for one in np.unique(labels):
        of_class = generator.permutation(np.flatnonzero(labels == one))
        held = round(0.15 * len(of_class))
        test, validation, train = of_class[:held], of_class[held : 2 * held], of_class[2 * held :]
        for part, chosen in zip(parts, (train[:per_class], validation, test), strict=True):
            part.extend(chosen)
    return [np.array(part) for part in parts]


def guide(arguments, setting: str, train, validation, classes: int) -> keras.Model:
    """Return a model trained by the code of Keras's guide to transfer learning, its own layers, batches and optimizers."""
    head_epochs, epochs, rate = _GUIDE[setting]
    batched = [
        tf.data.Dataset.from_tensor_slices(part).shuffle(len(part[1])).batch(64).prefetch(tf.data.AUTOTUNE)
        for part in (train, validation)
    ]
    base_model = kerastl.load_backbone(arguments.backbone, input_shape=arguments.size, weights=arguments.weights)
    base_model.trainable = False
    inputs = keras.Input(base_model.input_shape[1:])
    x = keras.layers.RandomRotation(0.1)(keras.layers.RandomFlip("horizontal")(inputs))
    x = base_model(preprocess(arguments.backbone, x), training=False)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(x))
    model.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(batched[0], epochs=head_epochs, validation_data=batched[1], verbose=0)
    base_model.trainable = True
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(batched[0], epochs=epochs, validation_data=batched[1], verbose=0)
    return model


def recipe(arguments, setting: str, train, validation, classes: int, seed: int) -> keras.Model:
    """Return a model trained by `transfer_learn`."""
    options = dict(SETTINGS.get(setting, {}))
    if setting.startswith("peak "):
        options["learning_rate"], _ = cosine_decay(float(setting.removeprefix("peak ")), -(-len(train[0]) // 32), 8)
    model = kerastl.build_classifier(arguments.backbone, classes, input_shape=arguments.size, weights=arguments.weights)
    if setting == "before":
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        steps = -(-len(train[0]) // 32) * options["fine_tune_epochs"]
        options["learning_rate"] = keras.optimizers.schedules.CosineDecay(1e-4, steps)
    kerastl.transfer_learn(model, train, validation, seed=seed, verbose=0, **options)
    return model


def probe(arguments, train, test, classes: int) -> float:
    """Return the accuracy of a linear probe on the pooled output."""
    model = kerastl.build_classifier(arguments.backbone, classes, input_shape=arguments.size, weights=arguments.weights)
    return kerastl.probe(model, train, test, blocks=False, mirrored=False, verbose=0).accuracy


def run(arguments, setting: str, images, labels, parts, seed: int) -> dict:
    """Return the accuracy on the test part, alone and with mirrored copies, and the seconds from pixels to the first."""
    if setting in APART:
        return run_apart(arguments, setting, images, labels, parts, seed)
    train, validation, test = ((images[part], labels[part]) for part in parts)
    start, classes = time.perf_counter(), int(labels.max()) + 1
    keras.utils.set_random_seed(seed)
    if setting == "probe":
        accuracy = probe(arguments, train, test, classes)
        return {"accuracy": accuracy, "mirrored too": None, "seconds": time.perf_counter() - start}
    if setting in _GUIDE:
        model = guide(arguments, setting, train, validation, classes)
    else:
        model = recipe(arguments, setting, train, validation, classes, seed)
    found = {}
    for views in (1, 2):
        outputs = class_probabilities(model, test[0], views=views)
        found["accuracy" if views == 1 else "mirrored too"] = float((outputs.argmax(axis=1) == test[1]).mean())
        found.setdefault("seconds", time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument(
        "--settings", nargs="+", default=["cd6ed3d", "defaults"], choices=["probe", *APART, *SETTINGS, *_GUIDE]
    )
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed of the first split")
    parser.add_argument("--own-split", action="store_true", help="of the table in each split: scenes stay together")
    parser.add_argument("--on-validation", action="store_true", help="judge by that part, to choose a setting")
    parser.add_argument(
        "--peaks", type=float, nargs="+", default=[], help="the defaults with these peak rates, besides"
    )
    parser.add_argument("--per-class", type=int)
    parser.add_argument("--classes", type=int, help="the first so many classes alone")
    parser.add_argument("--fastai", help="the Python of an environment with fastai: see fastai_flowers.py")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    arguments.settings += [f"peak {peak:g}" for peak in arguments.peaks]
    images, labels, own = (
        own_parts(arguments.size) if arguments.own_split else (*photographs(arguments.photos, arguments.size), None)
    )
    if arguments.classes:
        chosen = labels < arguments.classes
        numbers = np.cumsum(chosen) - 1
        own = own and [numbers[part[chosen[part]]] for part in own]
        images, labels = images[chosen], labels[chosen]
    rows = []
    for seed in range(arguments.first, arguments.first + arguments.splits):
        parts = list(own or random_parts(labels, seed, arguments.per_class))
        if arguments.on_validation:
            parts[2] = parts[1]
        for setting in arguments.settings:
            rows.append({"split": seed, "setting": setting, **run(arguments, setting, images, labels, parts, seed)})
            print(
                {name: round(one, 3) if isinstance(one, float) else one for name, one in rows[-1].items()}, flush=True
            )
    base = np.array([row["accuracy"] for row in rows if row["setting"] == arguments.settings[0]])
    for setting in arguments.settings:
        found = [row for row in rows if row["setting"] == setting]
        values, more = np.array([row["accuracy"] for row in found]), np.array([row["accuracy"] for row in found]) - base
        error = more.std(ddof=1) / len(more) ** 0.5 if len(more) > 1 else float("nan")
        seconds = np.median([row["seconds"] for row in found])
        print(
            f"{setting}: {values.mean():.4f}, {more.mean():+.4f} ± {error:.4f} of {arguments.settings[0]}, {seconds:.0f} s"
        )
    report("flowers", rows, arguments.json, arguments={key: str(value) for key, value in vars(arguments).items()})


if __name__ == "__main__":
    main()
