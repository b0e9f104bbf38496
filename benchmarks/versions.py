"""Two checkouts against each other: one command, run in turn in each, and the ratio of a figure that it prints, pair by pair.

    python benchmarks/versions.py ../before . --figure "kerastl s" -- benchmarks/recipe.py --order kerastl
    python benchmarks/versions.py ../before . --pairs 7 --figure "kerastl, litert" -- benchmarks/extract.py

The command is run by this Python with the checkout on its path and `--json FILE` behind it. Which checkout goes first changes
from pair to pair. The ratio is the second checkout's figure through the first one's.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile


def figures_of(rows) -> dict:
    """Return every number of a benchmark's rows by its column, with the row's name in front where there are several."""
    found = {}
    for row in rows:
        name = row.get("what") or (f"{row['images']} images" if len(rows) > 1 and "images" in row else "")
        prefix = f"{name}: " if name else ""
        found |= {prefix + name: value for name, value in row.items() if isinstance(value, (int, float))}
    return found


def run(checkout: pathlib.Path, command: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "figures.json")
        environment = {**os.environ, "PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3"}
        full = [sys.executable, *command, "--json", str(path)]
        result = subprocess.run(full, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(f"{' '.join(full)} failed in {checkout}:\n{result.stdout}\n{result.stderr}")
        return figures_of(json.loads(path.read_text())["rows"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--figure", action="append", help="only figures whose names hold this; may be given several times"
    )
    own, command = sys.argv[1:], []
    if "--" in own:
        own, command = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    checkouts = [path.resolve() for path in arguments.checkouts]
    pairs = []
    for number in range(arguments.pairs):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        measured = {index: run(checkouts[index], command) for index in order}
        pairs.append((measured[0], measured[1]))
        print(f"pair {number + 1} of {arguments.pairs}", flush=True)
    for name in pairs[0][0]:
        if arguments.figure and not any(part in name for part in arguments.figure):
            continue
        ratios = sorted(second[name] / first[name] for first, second in pairs if first.get(name) and second.get(name))
        if ratios:
            both = [statistics.median(pair[index][name] for pair in pairs) for index in (0, 1)]
            print(
                f"{name}: {both[0]:.4g} and {both[1]:.4g}; second / first median {statistics.median(ratios):.3f}, "
                f"from {ratios[0]:.3f} to {ratios[-1]:.3f}"
            )


if __name__ == "__main__":
    main()
