"""`compare NAME…`, or `compare SOURCE --backbones NAME…`: time backbones, and say how good they are on one's images."""

import csv

from kerastl.checks import received
from kerastl.cli import chosen, train
from kerastl.cli.quiet import import_quietly
from kerastl.errors import ArgumentError
from kerastl.evaluation import report
from kerastl.files import check_output_folder, new_folder

FILES = ("comparison.csv", "comparison.json", "comparison.png")


def run(arguments) -> int:
    """Compare, print, write, and return the exit status."""
    _check(arguments)
    if arguments.out:
        check_output_folder(arguments.out, overwrite=arguments.overwrite, files=FILES, what="comparison")
    import_quietly("tensorflow", verbose=arguments.verbose)  # the converter would import it, start-up lines and all
    comparison = _choose(arguments) if arguments.backbones else _time(arguments)
    print(f"\n{comparison}")
    if arguments.out:
        _write(comparison, arguments)
        print(f"\nComparison: {arguments.out}")
    return 0


def _check(arguments) -> None:
    """Check that the options go together."""
    if arguments.backbones and (len(arguments.names) > 1 or arguments.classes is not None):
        raise ArgumentError(
            "With --backbones there is one source of images, and its classes count. "
            f"{received(source=arguments.names, classes=arguments.classes)}"
        )
    if not arguments.backbones and (arguments.recipe or arguments.labels):
        raise ArgumentError(
            "--recipe and --labels go with a source of images and --backbones: compare SOURCE --backbones NAME…"
        )
    if arguments.backbones:
        train.check_places(arguments.names[0], arguments)


def _time(arguments):
    from kerastl.lab.comparison import compare_backbones

    size = arguments.image_size or 224
    shape = size if isinstance(size, int) else (*size, 3)
    classes = 10 if arguments.classes is None else arguments.classes
    return compare_backbones(arguments.names, shape, num_classes=classes, **chosen(arguments, ("threads", "repeats")))


def _choose(arguments):
    from kerastl.lab.choice import choose_backbone

    names = ("image_size", "recipe", "weights", "threads", "repeats", "seed", "labels", "validation", "test", "resize")
    return choose_backbone(arguments.names[0], arguments.backbones, **chosen(arguments, names), skip_unreadable=True)


def _write(comparison, arguments) -> None:
    from kerastl.evaluation.plots import plot_comparison

    rows = comparison.to_rows()
    with new_folder(arguments.out, overwrite=arguments.overwrite, files=FILES, what="comparison") as place:
        with open(place / "comparison.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        told = ("input_shape", "num_classes", "measured", "front", "recommendation", "left_out")
        content = {name: getattr(comparison, name) for name in told if hasattr(comparison, name)}
        versions = report.software_versions("ai-edge-litert")
        report.write_json(place / "comparison.json", {**content, "rows": rows, "versions": versions})
        first = comparison.threads[0]
        key = f"float32_{first}_thread{'s' * (first > 1)}_median_ms"
        if any(row[key] is not None for row in rows):
            plot_comparison(comparison, threads=first).savefig(place / "comparison.png", dpi=150)
