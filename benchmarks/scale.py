"""Do memory and time grow with the number of images? Images drawn on the fly, features on disk, one process for each size.

    python benchmarks/scale.py --counts 1000 10000 100000 --json scale.json

"ms an image" is that of the pass over the images, between its first and its last batch, and of the epoch that trains on
what it stored, likewise; what has to be prepared once (graphs traced, files made) stands apart as "start s".
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

from common import report  # isort: skip


def one(count: int, size: int) -> None:
    import keras
    import numpy as np

    import kerastl

    drawn_at, trained_at = [], []

    class Drawn(keras.utils.PyDataset):
        """Noise whose mean tells the class; drawn again, the same for the same index."""

        def __len__(self):
            return count // 100

        def __getitem__(self, index):
            drawn_at.append(time.perf_counter())
            random = np.random.default_rng(index)
            labels = random.integers(0, 2, 100)
            images = (
                random.integers(0, 200, (100, size, size, 3), dtype="uint8")
                + (labels * 50).astype("uint8")[:, None, None, None]
            )
            return images, labels

    model = kerastl.build_classifier("mobilenet_v2", 2, input_shape=size, weights=None, alpha=0.35)
    kerastl.unfreeze(model, last_blocks=4)
    model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", metrics=["accuracy"])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cache = kerastl.CacheOptions(folder=f"{folder}/features", engine="keras")
        clock = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda *_, **__: trained_at.append(time.perf_counter())
        )
        kerastl.fit(model, Drawn(), cache=cache, epochs=1, verbose=0, callbacks=[clock])
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    drawn_at = drawn_at[-(count // 100) :]  # the first batch was looked at before, to check it
    running = drawn_at[-1] - drawn_at[0] + trained_at[-1] - trained_at[0]
    row = {"images": count, "seconds": seconds, "start s": seconds - running, "ms an image": running / count * 1e3}
    print(json.dumps({**row, "peak MB": peak / 1e6}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.size)
        return
    rows = []
    for count in arguments.counts:
        command = [sys.executable, __file__, "--one", str(count), "--size", str(arguments.size)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(result.stderr)
        rows.append(json.loads(result.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    report("scale", rows, arguments.json, size=arguments.size)


if __name__ == "__main__":
    main()
