"""How much sooner an epoch of fine-tuning ends with 1×1 convolutions as matrix products, on a CPU with TensorFlow.

    python benchmarks/pointwise.py data/flowers
    python benchmarks/pointwise.py data/flowers --backbone resnet50 --count 128

Trains the tail of `transfer_learn` on stored features, with products and with Keras's own convolutions in turns.
"""

import argparse
import contextlib
import tempfile

from common import report  # isort: skip

import keras
import numpy as np
from flowers import photographs

import kerastl
from kerastl.training import session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="a folder of class folders")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--count", type=int, default=1050, help="images to train on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    images, labels = photographs(arguments.photos, arguments.size)
    mixed = np.random.default_rng(0).permutation(len(labels))[: arguments.count + 225]
    train, validation = ((images[part], labels[part]) for part in np.split(mixed, [arguments.count]))
    ways, rows = {"products": session.convolutions_as_products, "convolutions": contextlib.nullcontext}, []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for name, way in ways.items():
                session.convolutions_as_products = way
                keras.utils.set_random_seed(0)
                classes = int(labels.max()) + 1
                model = kerastl.build_classifier(
                    arguments.backbone, classes, input_shape=arguments.size, weights="auto", verbose=0
                )
                options = {"fine_tune_epochs": 3, "cache": folder, "seed": 0, "verbose": 0}
                found = kerastl.transfer_learn(model, train, validation, **options).fine_tune.epoch_seconds[1:]
                rows.append({"repeat": repeat, "way": name, "an epoch, seconds": float(np.median(found))})
                print(rows[-1], flush=True)
    medians = {name: np.median([row["an epoch, seconds"] for row in rows if row["way"] == name]) for name in ways}
    print(f"{medians['convolutions'] / medians['products']:.2f} times faster with products")
    report("pointwise", rows, arguments.json, arguments={key: str(value) for key, value in vars(arguments).items()})


if __name__ == "__main__":
    main()
