"""Does the audit find what is known to be wrong? Near-duplicates found by eye, flipped labels, ELPV's undecided cells.

    python benchmarks/audit.py flowers photos/flowers --json flowers.json
    python benchmarks/audit.py elpv --json elpv.json

flowers: of the 12 near-duplicates that data/flowers-duplicates.csv lists, how many are found, and which pairs besides
("same scene" is listed there too); and of 52 labels of the 1,050 training photographs, flipped at random, how many stand
among the first 80, for three seeds. elpv: how high the 401 cells rank on which the experts were undecided (0: at the top of
the list, 0.5: no better than chance).
"""

import argparse
import csv
import pathlib

from common import Measured, report  # isort: skip

import keras
import numpy as np

import kerastl
from kerastl.data.batches import find_source
from kerastl.models import backbones

DATA = pathlib.Path(__file__).parents[1] / "data"
BACKBONE, SEEDS, FLIPPED, FIRST = "efficientnet_lite0", 3, 52, 80


def read_table(name: str) -> list[dict]:
    with open(DATA / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def everything(splits) -> tuple:
    """Return names, pixels, labels and features of all images, train, validation and test one after the other."""
    sources = [find_source(getattr(splits, split)) for split in splits.split_sizes]
    names = [name for split in splits.split_sizes for name in splits.files[split]]
    pixels = np.stack([source.read(index) for source in sources for index in range(source.count)])
    inputs = keras.Input(pixels.shape[1:])
    base = kerastl.load_backbone(BACKBONE, input_shape=pixels.shape[1:], pooling="avg")
    model = keras.Model(inputs, base(backbones.preprocess(BACKBONE, inputs)))
    labels = np.concatenate([source.labels for source in sources])
    return names, pixels, labels, model.predict(pixels, verbose=0)


def number_of(name: str) -> str:
    return pathlib.Path(name).name.partition("_")[0]


def judge_flowers(folder: str) -> list[dict]:
    splits = kerastl.load_images(folder, image_size=224)
    names, pixels, labels, features = everything(splits)
    with Measured() as measured:
        result = kerastl.audit(splits, features, verbose=0)
    listed = {frozenset((row["first"], row["second"])): row["kind"] for row in read_table("flowers-duplicates.csv")}
    found = {frozenset(map(number_of, one.names)) for kind in ("leak", "duplicate") for one in result.of_kind(kind)}
    near = {pair for pair, kind in listed.items() if kind == "near-duplicate"}
    rows = [{"what": "near-duplicates found", "value": len(near & found), "of": len(near)}]
    rows.append({"what": "same scene", "value": len(found & listed.keys() - near), "of": len(listed) - len(near)})
    unlisted = [" = ".join(sorted(pair)) for pair in sorted(found - listed.keys(), key=sorted)]
    rows.append({"what": f"not listed: {', '.join(unlisted)}", "value": len(unlisted), "of": len(found)})
    rows.append({"what": "seconds, features given", "value": round(measured.seconds), "of": ""})
    training = {row["number"] for row in read_table("flowers.csv") if row["split"] == "train"}
    kept = np.array([number_of(name) in training for name in names])
    for seed in range(SEEDS):
        generator, given = np.random.default_rng(seed), labels[kept].copy()
        flipped = generator.choice(len(given), FLIPPED, replace=False)
        given[flipped] = (given[flipped] + generator.integers(1, 5, FLIPPED)) % 5
        found = kerastl.audit((pixels[kept], given), features[kept], verbose=0).of_kind("label")[:FIRST]
        hits = len({one.indices[0] for one in found} & set(flipped.tolist()))
        rows.append({"what": f"flipped labels among the first {FIRST}, seed {seed}", "value": hits, "of": FLIPPED})
    return rows


def judge_elpv(_) -> list[dict]:
    import importlib.resources

    splits = kerastl.load_images("elpv", image_size=224)
    names, _, _, features = everything(splits)
    result = kerastl.audit(splits, features, verbose=0)
    text = importlib.resources.files("elpv_dataset").joinpath("data", "labels.csv").read_text()
    defective = {line.split()[0]: float(line.split()[1]) for line in text.splitlines()}
    undecided = np.array([0 < defective[name] < 1 for name in names])
    ranks = result.label_quality.argsort().argsort() / (len(names) - 1)
    first = undecided[result.label_quality.argsort()[:200]]
    return [
        {
            "what": "mean rank of the undecided",
            "value": round(float(ranks[undecided].mean()), 3),
            "of": int(undecided.sum()),
        },
        {
            "what": "mean rank of the others",
            "value": round(float(ranks[~undecided].mean()), 3),
            "of": int((~undecided).sum()),
        },
        {"what": "undecided among the first 200", "value": int(first.sum()), "of": 200},
        {
            "what": "near-duplicates",
            "value": sum(one.kind in ("leak", "duplicate") for one in result.findings),
            "of": "",
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["flowers", "elpv"])
    parser.add_argument("folder", nargs="?", help="of the photographs, one folder per class")
    parser.add_argument("--json", help="write the figures there")
    arguments = parser.parse_args()
    if arguments.data == "flowers" and not arguments.folder:
        parser.error("flowers needs the folder of the photographs")
    rows = {"flowers": judge_flowers, "elpv": judge_elpv}[arguments.data](arguments.folder)
    report(f"audit of {arguments.data}", rows, arguments.json)


if __name__ == "__main__":
    main()
