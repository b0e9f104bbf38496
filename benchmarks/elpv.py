"""Accuracy against seconds on the ELPV photographs: several seeds, each its own split; mean ± standard deviation.

    python benchmarks/elpv.py --seeds 5 --json elpv.json

The defaults are those of `make quickstart`. The test part of each split is looked at once, at the end. Averaging the
flips at test time is reported apart.
"""

import argparse
import time

from common import report  # isort: skip

import keras
import numpy as np

import kerastl
from kerastl.evaluation.probabilities import class_probabilities
from kerastl.training.rates import cosine_decay


def accuracy(model, dataset, views: int) -> float:
    right = count = 0
    for images, labels in dataset.as_numpy_iterator():
        right += int((class_probabilities(model, images, views=views).argmax(axis=1) == labels).sum())
        count += len(labels)
    return right / count


def one_seed(arguments, seed: int) -> dict:
    data = kerastl.load_images("elpv", image_size=arguments.size, seed=seed, verbose=0)
    keras.utils.set_random_seed(seed)
    model = kerastl.build_classifier(
        arguments.backbone,
        2,
        input_shape=arguments.size,
        weights=arguments.weights,
        augmentation="flips" if arguments.views > 1 else None,
        dropout=arguments.dropout,
    )
    start, rate = time.perf_counter(), arguments.learning_rate
    result = kerastl.transfer_learn(
        model,
        data.train,
        data.validation,
        head_epochs=arguments.head_epochs,
        fine_tune_epochs=arguments.fine_tune_epochs,
        from_layer=arguments.from_layer,
        last_blocks=arguments.last_blocks,
        learning_rate=rate and cosine_decay(rate, len(data.train), arguments.fine_tune_epochs)[0],
        keep=arguments.keep,
        layer_decay=arguments.layer_decay,
        patience=arguments.patience,
        cache=arguments.cache != "false",
        views=arguments.views,
        seed=seed,
        verbose=0,
    )
    seconds = time.perf_counter() - start
    row = {
        "seed": seed,
        "seconds": seconds,
        "best phase": result.best_phase,
        "test accuracy": accuracy(model, data.test, 1),
    }
    row["4 flips averaged"] = accuracy(model, data.test, 4)
    with result.head_alone():
        row["head alone"] = accuracy(model, data.test, 1)
    print(row, {name: round(value, 1) for name, value in result.seconds.items()}, flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--head-epochs", type=int)
    parser.add_argument("--fine-tune-epochs", type=int, default=8)
    parser.add_argument("--last-blocks", type=int)
    parser.add_argument("--from-layer")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--keep", default="last")
    parser.add_argument("--layer-decay", type=float, default=1.0)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--patience", type=int)
    parser.add_argument("--cache", default="true")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = [one_seed(arguments, seed) for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)]
    numbers = [name for name in rows[0] if name not in ("seed", "best phase")]
    for name, function in (("mean", np.mean), ("standard deviation", lambda values: np.std(values, ddof=1))):
        if len(rows) > 1:
            summary = {column: float(function([row[column] for row in rows[: arguments.seeds]])) for column in numbers}
            rows.append({"seed": name, "best phase": "", **summary})
    report("ELPV", rows, arguments.json, arguments={key: str(value) for key, value in vars(arguments).items()})


if __name__ == "__main__":
    main()
