"""Does tf.data's autotuning hold up the end of an epoch? Plain Keras, one small network, epochs of about 3 s.

    python benchmarks/autotuning.py --json autotuning.json

The thread that tunes sleeps for 10 ms, then 20, 40 and so on. Where the end of a pass has to wait for it, epochs end after
0.63, 1.27, 2.55, 5.11, 10.23, 20.47 … seconds, whatever they hold. The lowest of each row is what the epoch needs.
"""

import argparse
import time

from common import report  # isort: skip

import keras
import numpy as np
import tensorflow as tf

from kerastl.backend import batches_for_fit, without_autotuning


class Batches(keras.utils.PyDataset):
    """Arrays, 32 images at a time."""

    def __init__(self, images, labels):
        super().__init__()
        self._images, self._labels = images, labels

    def __len__(self):
        return len(self._labels) // 32

    def __getitem__(self, index):
        chosen = slice(index * 32, (index + 1) * 32)
        return self._images[chosen], self._labels[chosen]


def network():
    inputs = x = keras.Input((56, 56, 16))
    for _ in range(4):
        x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def seconds(model, data) -> float:
    start = time.perf_counter()
    model.fit(*data, epochs=1, verbose=0, shuffle=False)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="about what an epoch should need")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    model, random = network(), np.random.default_rng(0)
    batch = random.random((32, 56, 56, 16), "float32"), random.integers(0, 2, 32)
    model.train_on_batch(*batch)
    start = time.perf_counter()
    for _ in range(10):
        model.train_on_batch(*batch)
    count = 32 * max(1, round(10 * arguments.seconds / (time.perf_counter() - start)))
    arrays = random.random((count, 56, 56, 16), "float32"), random.integers(0, 2, count)
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(32)
    variants = {
        "fit on arrays": arrays,
        "fit on a tf.data.Dataset": (dataset,),
        "fit on a PyDataset": (Batches(*arrays),),
        "the dataset without autotuning": (without_autotuning(dataset),),
        "the PyDataset as kerastl hands it over": (batches_for_fit(Batches(*arrays)),),
    }
    taken = {name: [] for name in variants}
    for _ in range(arguments.epochs):
        for name, data in variants.items():
            taken[name].append(seconds(model, data))
    rows = [
        {"what": name, "median s": float(np.median(all_)), "lowest s": min(all_), "highest s": max(all_)}
        for name, all_ in taken.items()
    ]
    report("seconds of an epoch", rows, arguments.json, seconds=taken)


if __name__ == "__main__":
    main()
