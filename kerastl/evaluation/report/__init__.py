"""Judge a classifier on images it has never seen, and write down a run: model, curves, tables, pictures, figures."""

from kerastl.evaluation.report.evaluation import ClassScore, Evaluation, Mistakes, evaluate
from kerastl.evaluation.report.text import markdown_report, terminal_report
from kerastl.evaluation.report.writing import (
    RUN_FILES,
    describe_input,
    describe_run,
    is_run_folder,
    plain_values,
    software_versions,
    write_partial_run,
    write_run,
)
from kerastl.files import check_free_space, check_output_folder, free_folder_beside, new_folder

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
