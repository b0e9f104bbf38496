"""From a laptop to a billion images, on paper: time, room and money for ResNet50 at 224×224, from rates measured here.

    python benchmarks/plan_scale.py --json plan.json          # docs/scale.md says what it means
    python benchmarks/plan_scale.py --scale scale.json        # checked against a new run of scale.py
    python benchmarks/plan_scale.py --set gpu_hour=2.5 --set gpu_disk_tb=60 --epochs 10 20

Nothing is run: each figure is a rate times a number of images, all of them, one in five for
validation, in files that have to be decoded. Prices and sizes are assumptions, `--set` changes them. Money is hours at the
machine's price. "both" keeps what `transfer_learn(last_layers=10)` keeps, "pooled" the head's features alone: fine-tuning
then runs the whole network in every epoch.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerastl.tables import Table, readable_bytes

# Measured, images per second and seconds. docs/scale.md says where each comes from.
DECODED_A_CORE = 268  # read, decoded and resized
MANIFEST_S_A_SHARD = 6.4e-5  # that a shard adds to each writing of the manifest, one after every ROWS_A_WRITE images
SHARD_BYTES, ROWS_A_WRITE = 64 * 2**20, 32  # features/store.py, features/extraction.py
CUTS = {"pooled": 2_048, "both": 2_048 + 7 * 7 * 2_048}  # numbers kept of an image, float16
ASSUMED = {  # dollars, November 2026, and usual sizes; no provider's offer
    "cpu_hour": 0.09,  # two virtual cores
    "gpu_hour": 4.00,  # an H200 with 16 cores, on demand: 3.50 to 4.50 at specialists, 4.50 to 7 at the largest
    "cpu_disk_tb": 1,
    "gpu_disk_tb": 30,  # local NVMe
    "gb_month": 0.023,  # S3 Standard, as the two below
    "thousand_puts": 0.005,
    "thousand_gets": 0.0004,
    "network_gb_s": 1.25,  # from the object store: 10 Gbit/s
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Images per second: `extraction` by cut, `head` and `tail` on stored features, `plain` through the whole network."""

    name: str
    cores: int
    kind: str
    extraction: dict
    head: float
    tail: float
    plain: float
    shares_cores: bool = False  # what decodes, computes too

    def from_files(self, rate: float) -> float:
        """Return a rate of images in memory as one of images in files."""
        decoded = DECODED_A_CORE * self.cores
        return 1 / (1 / rate + 1 / decoded) if self.shares_cores else min(rate, decoded)


MACHINES = [
    Machine("2 cores", 2, "cpu", {"pooled": 24, "both": 20}, 4_900, 149, 19.4, shares_cores=True),
    Machine("H200", 16, "gpu", {"pooled": 8_498, "both": 1_324}, 23_300, 8_170, 6_545),
]

# What to check against: images per second and seconds to start, and measured seconds by number of images. scale.py's are those
# of its middle row; recipe.py's extractions (with validation) have the rates of extract.py and what the conversion takes.
MEASURED = {
    "scale.py": (1_163, 2.2, {1_000: 3.8, 10_000: 10.8, 100_000: 83.5}),
    "recipe.py, MobileNetV2": (246, 0.6, {320: 2.2, 640: 3.6, 1_280: 6.2}),
    "recipe.py, ResNet50": (24, 4.3, {320: 18.4, 640: 37.8}),
}


def row_bytes(cut) -> int:
    return 2 * CUTS[cut] + 8  # and its label


def shards_of(count, cut) -> int:
    rows = -(-SHARD_BYTES // row_bytes(cut))
    return -(-count // (-(-rows // ROWS_A_WRITE) * ROWS_A_WRITE))


def training(machine, count, epochs, kept) -> float:
    """Return the seconds of both phases after an extraction: without the last block's features it sees the images again."""
    tail = machine.tail if kept == "both" else machine.from_files(machine.plain)
    return count * (epochs[0] / machine.head + epochs[1] / tail)


def break_even(machine) -> float:
    """Return the epochs of fine-tuning from which on it is faster to keep the last block's features."""
    both, pooled = (machine.from_files(machine.extraction[cut]) for cut in ("both", "pooled"))
    return (1 / both - 1 / pooled) / (1 / machine.from_files(machine.plain) - 1 / machine.tail)


def times(count, machine, epochs, assumed) -> dict:
    """Return a row: extraction + training on one machine by what is kept, against plain Keras."""
    row, seconds = {"images": people(count), "machine": machine.name}, {}
    for cut in CUTS:
        extraction = count / machine.from_files(machine.extraction[cut])
        trained = training(machine, count, epochs, cut)
        seconds[cut], row[cut] = extraction + trained, f"{duration(extraction)} + {duration(trained)}"
    seconds["plain"] = count * sum(epochs) / machine.from_files(machine.plain)
    dollars = [f"{value / 3600 * assumed[f'{machine.kind}_hour']:,.2f}" for value in seconds.values()]
    fits = count * row_bytes("both") <= assumed[f"{machine.kind}_disk_tb"] * 1e12
    ratio = seconds["both"] / seconds["pooled"]
    keep = "pooled" if not fits or ratio > 1.1 else "both" if ratio < 0.9 else "either"
    return {**row, "plain Keras": duration(seconds["plain"]), "dollars": " / ".join(dollars), "keep": keep}


def storage(count, cut, assumed) -> dict:
    """Return a row: what a store of one cut takes on a disk or in an object store, requests and months in dollars."""
    size, number = count * row_bytes(cut), shards_of(count, cut)
    files = number * (3 if cut == "both" else 2) + 1
    puts, gets = (files / 1e3 * assumed[f"thousand_{kind}"] for kind in ("puts", "gets"))
    return {
        "images": people(count),
        "kept": cut,
        "room": readable_bytes(size),
        "shards": f"{number:,}",
        "PUTs / GETs": f"{puts:.2f} / {gets:.2f}",
        "GETs by image": f"{count / 1e3 * assumed['thousand_gets']:.2f}",
        "a month": f"{size / 1e9 * assumed['gb_month']:,.2f}",
        "read once": duration(size / 1e9 / assumed["network_gb_s"]),
        "manifest": duration(count / ROWS_A_WRITE * number / 2 * MANIFEST_S_A_SHARD),
    }


def ends(machine, cut, assumed) -> dict:
    """Return a row: how many images one machine can take, by what runs out."""
    rate, disk = machine.from_files(machine.extraction[cut]), assumed[f"{machine.kind}_disk_tb"] * 1e12
    figures = {
        "a day of extraction": 86_400 * rate,
        "the disk": disk / row_bytes(cut),
        "the manifest takes as long": 2 * ROWS_A_WRITE * SHARD_BYTES / row_bytes(cut) / rate / MANIFEST_S_A_SHARD,
    }
    return {"machine": machine.name, "kept": cut} | {name: people(value) for name, value in figures.items()}


def checks(scale: pathlib.Path | None) -> list[dict]:
    """Return rows of measured against predicted seconds."""
    measured = dict(MEASURED)
    if scale:
        rows = sorted(json.loads(scale.read_text(encoding="utf-8"))["rows"], key=lambda row: row["images"])
        by, seconds = rows[len(rows) // 2], {row["images"]: row["seconds"] for row in rows}
        measured["scale.py"] = (1e3 / by["ms an image"], by["start s"], seconds)
    header, rows = ("what", "images", "measured", "predicted", "predicted / measured"), []
    for name, (rate, start, found) in measured.items():
        for count, seconds in found.items():
            predicted = start + count / rate
            cells = (name, f"{count:,}", f"{seconds:.1f} s", f"{predicted:.1f} s", f"{predicted / seconds:.2f}")
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def duration(seconds) -> str:
    for name, size, least in (("days", 86_400, 2), ("h", 3600, 2), ("min", 60, 2)):
        if seconds >= least * size:
            return f"{seconds / size:,.{0 if seconds >= 10 * size else 1}f} {name}"
    return f"{seconds:.0f} s"


def people(count) -> str:
    """Return a number of images for people, to two digits."""
    rounded = float(f"{count:.2g}")
    return f"{rounded / 1e6:,g} M" if rounded >= 1e6 else f"{rounded / 1e3:,g} k"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10**5, 10**6, 10**8, 10**9])
    parser.add_argument("--epochs", type=int, nargs=2, default=[10, 5], help="of the head, of fine-tuning")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help=", ".join(ASSUMED))
    parser.add_argument("--scale", type=pathlib.Path, help="JSON of scale.py, instead of docs/performance.md's figures")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    given = dict(one.partition("=")[::2] for one in arguments.set)
    if unknown := set(given) - set(ASSUMED):
        parser.error(f"--set takes one of {', '.join(ASSUMED)}. Received: {', '.join(sorted(unknown))}")
    assumed = {**ASSUMED, **{name: float(value) for name, value in given.items()}}
    pairs = [(count, machine) for count in arguments.counts for machine in MACHINES]
    tables = {
        "One machine, the whole recipe": [times(count, machine, arguments.epochs, assumed) for count, machine in pairs],
        "Stored": [storage(count, cut, assumed) for count in arguments.counts for cut in CUTS],
        "Images at which one machine ends": [ends(machine, cut, assumed) for machine in MACHINES for cut in CUTS],
        "Measured and predicted": checks(arguments.scale),
    }
    for name, rows in tables.items():
        header = list(rows[0])
        print(Table(header, [list(row.values()) for row in rows], range(1, len(header)), name), end="\n\n")
    even = {machine.name: break_even(machine) for machine in MACHINES}
    for name, value in even.items():
        print(f"{name}: keeping both is faster from {value:.1f} epochs of fine-tuning on")
    print("Assumed:", ", ".join(f"{name}={value:g}" for name, value in assumed.items()))
    if arguments.json:
        content = {"assumed": assumed, "epochs": arguments.epochs, "break_even_epochs": even, "tables": tables}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
