"""Judge a classifier on images it has never seen, and write down a run: model, curves, tables, pictures, figures."""

from kerastl.report.evaluation import ClassScore, Evaluation, Mistakes, evaluate
from kerastl.report.folder import (
    RUN_FILES,
    check_free_space,
    check_output_folder,
    free_folder_beside,
    is_run_folder,
    new_folder,
)
from kerastl.report.text import markdown_report, terminal_report
from kerastl.report.writing import (
    describe_input,
    describe_run,
    plain_values,
    software_versions,
    write_partial_run,
    write_run,
)

__all__ = [
    "RUN_FILES",
    "ClassScore",
    "Evaluation",
    "Mistakes",
    "check_free_space",
    "check_output_folder",
    "describe_input",
    "describe_run",
    "evaluate",
    "free_folder_beside",
    "is_run_folder",
    "markdown_report",
    "new_folder",
    "plain_values",
    "software_versions",
    "terminal_report",
    "write_partial_run",
    "write_run",
]
