"""Does the rate that `find_learning_rate` suggests train as well as the best of a grid of seven?

    python benchmarks/rates.py flowers data/flowers --seeds 3 --json rates.json
    python benchmarks/rates.py elpv --seeds 3
    python benchmarks/rates.py control data/flowers --seeds 3 --size 64

500 images to train on, 125 to validate, all others to judge by (`--train 1050 --validation 225 --size 160`: as many as
in the photographs' own split), another draw for each seed; `control` is a ResNet18 of random weights. Each row is a run of
`transfer_learn` with that peak rate and its defaults otherwise, so it goes back where validation says so. The best of
seven is chosen by the images that judge: luck is on its side.
"""

import argparse
import tempfile
import time

from common import report  # isort: skip

import keras
import numpy as np
from flowers import photographs

import kerastl
from kerastl.training.rates import cosine_decay

GRID = [float(f"{rate:.0e}") for rate in 10 ** np.arange(-5, -1.9, 0.5)]
EPOCHS, BATCH = 8, 32


def images_and_labels(arguments) -> tuple[np.ndarray, np.ndarray]:
    if arguments.data != "elpv":
        return photographs(arguments.photos, arguments.size)
    data = kerastl.load_images("elpv", image_size=arguments.size, shuffle=False, verbose=0)
    batches = [batch for part in (data.train, data.validation, data.test) for batch in part.as_numpy_iterator()]
    images, labels = map(np.concatenate, zip(*batches, strict=True))
    return images, labels


def accuracy_at(arguments, peak: float, parts, classes: int, seed: int, folder: str) -> float:
    """Return the share of the judging images that a model is right on, trained at this peak rate."""
    keras.utils.set_random_seed(seed)
    model, (train, validation, judges) = network(arguments, classes), parts
    schedule, _ = cosine_decay(peak, -(-len(train[0]) // BATCH), EPOCHS)
    kerastl.transfer_learn(model, train, validation, learning_rate=schedule, seed=seed, cache=folder, verbose=0)
    return float((model.predict(judges[0], verbose=0).argmax(axis=1) == judges[1]).mean())


def network(arguments, classes: int) -> keras.Model:
    augmentation = "flips" if arguments.data == "elpv" else None
    backbone, weights = ("resnet18", None) if arguments.data == "control" else ("efficientnet_lite0", "imagenet")
    return kerastl.build_classifier(
        backbone, classes, input_shape=arguments.size, weights=weights, augmentation=augmentation
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["flowers", "elpv", "control"])
    parser.add_argument("photos", nargs="?", help="a folder of class folders, except for elpv")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--validation", type=int, default=125)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    images, labels = images_and_labels(arguments)
    classes, rows = int(labels.max()) + 1, []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        ends = np.cumsum([arguments.train, arguments.validation])
        mixed = np.split(np.random.default_rng(seed).permutation(len(labels)), ends)
        parts = [(images[part], labels[part]) for part in mixed]
        with tempfile.TemporaryDirectory() as folder:
            keras.utils.set_random_seed(seed)
            start = time.perf_counter()
            found = kerastl.find_learning_rate(network(arguments, classes), *parts[:2], verbose=0)
            seconds = time.perf_counter() - start
            print(f"seed {seed}: suggests {found.suggestion:.1e} in {seconds:.0f} s", flush=True)
            peaks = {"suggested": found.suggestion} | {f"{peak:.0e}": peak for peak in GRID}
            for name, peak in peaks.items():
                accuracy = accuracy_at(arguments, peak, parts, classes, seed, folder)
                rows.append({"seed": seed, "rate": name, "peak": peak, "accuracy": accuracy, "searched": seconds})
                print(f"    {name}: {peak:.1e} {accuracy:.4f}", flush=True)
    accuracies = {name: [row["accuracy"] for row in rows if row["rate"] == name] for name in {r["rate"] for r in rows}}
    best = max((name for name in accuracies if name != "suggested"), key=lambda name: np.mean(accuracies[name]))
    less = np.subtract(accuracies["suggested"], accuracies[best])
    error = less.std(ddof=1) / len(less) ** 0.5 if len(less) > 1 else float("nan")
    print(f"suggested {np.mean(accuracies['suggested']):.4f}: {less.mean():+.4f} ± {error:.4f} of the best, {best}")
    report("rates", rows, arguments.json, arguments={key: str(value) for key, value in vars(arguments).items()})


if __name__ == "__main__":
    main()
