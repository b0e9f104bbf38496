"""`compare NAME…`: say what backbones take, and time them; with --out also as a table and a picture."""

import csv

from kerastl.cli.quiet import import_quietly
from kerastl.evaluation import report
from kerastl.files import check_output_folder, new_folder

FILES = ("comparison.csv", "comparison.json", "comparison.png")


def run(arguments) -> int:
    """Compare, print, write, and return the exit status."""
    if arguments.out:
        check_output_folder(arguments.out, overwrite=arguments.overwrite, files=FILES, what="comparison")
    import_quietly("tensorflow", verbose=arguments.verbose)  # the converter would import it, start-up lines and all
    from kerastl.lab.comparison import compare_backbones

    size = arguments.image_size
    comparison = compare_backbones(
        arguments.names,
        size if isinstance(size, int) else (*size, 3),
        num_classes=arguments.classes,
        threads=arguments.threads,
        repeats=arguments.repeats,
    )
    print(f"\n{comparison}")
    if arguments.out:
        _write(comparison, arguments)
        print(f"\nComparison: {arguments.out}")
    return 0


def _write(comparison, arguments) -> None:
    from kerastl.evaluation.plots import plot_comparison

    rows = comparison.to_rows()
    with new_folder(arguments.out, overwrite=arguments.overwrite, files=FILES, what="comparison") as place:
        with open(place / "comparison.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        content = {"input_shape": comparison.input_shape, "num_classes": comparison.num_classes, "rows": rows}
        versions = report.software_versions("ai-edge-litert")
        report.write_json(place / "comparison.json", {**content, "versions": versions})
        if any(row.latency for row in comparison.rows):
            plot_comparison(comparison, threads=comparison.threads[0]).savefig(place / "comparison.png", dpi=150)
