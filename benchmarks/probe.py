"""What `probe` takes beyond the backbone's run: the search for the penalty, nearest neighbours, and the learning curve.

    python benchmarks/probe.py data/flowers --json probe.json

The 1,050 training photographs of the flowers' own split; EfficientNet-Lite0; the pooled output alone, and every block. The
median of several runs each.
"""

import argparse
import pathlib

from common import report  # isort: skip

import numpy as np

import kerastl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=pathlib.Path)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    data = kerastl.load_images(arguments.photos, image_size=arguments.size, verbose=0)
    model = kerastl.build_classifier(arguments.backbone, len(data.class_names), input_shape=arguments.size)
    rows = []
    for name, options in (("pooled output", {"blocks": False, "mirrored": False}), ("every block", {})):
        runs = [kerastl.probe(model, data.train, verbose=0, **options) for _ in range(arguments.repeats)]
        seconds = {what: float(np.median([run.seconds[what] for run in runs])) for what in runs[0].seconds}
        rows.append({"what": name, "images": sum(one.images for one in runs[0].per_class), **seconds})
        rows[-1] |= {"best": runs[0].best, "cross-validated": round(runs[0].accuracy, 3)}
    report("probe", rows, arguments.json)


if __name__ == "__main__":
    main()
