"""Labels files: a table of image files and of what they show, CSV or Parquet, for a folder of images."""

import collections
import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from kerastl.checks import nearest, received
from kerastl.data.images import find_files
from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION, check_names
from kerastl.data.splitting import TRAIN, Image, splits_of
from kerastl.errors import ArgumentError, DataError

# Columns are told by the letters of their names, in any case
_FILES = re.compile("(image|img|photo|picture)(file)?(name|path|id)?|file(name|path)?|path")
_SPLITS = re.compile("split|set|subset")
_CLASSES = re.compile("(label|class|categor(y|ies)|target)(e?s)?(id|idx|index|number|code)?")
_UNNAMED = re.compile(r"|unnamed: \d+|__index_level_\d+__", re.IGNORECASE)  # row numbers that pandas wrote
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|[+-]?inf(inity)?", re.IGNORECASE)
_FLAGS = {**dict.fromkeys(("0", "0.0", "false"), 0), **dict.fromkeys(("1", "1.0", "true"), 1)}
_TOLD = {
    CLASSIFICATION: "classes (for several labels an image separate them by '|', for numbers call the column 'value')",
    MULTI_LABEL: "labels, several an image (for classes keep one column of names without '|')",
    REGRESSION: "numbers to predict (for classes call the column 'label', and use whole numbers)",
}


def labelled_images(folder: Path, labels, verbose: int) -> tuple[str, tuple, list[Image], list[Path], list[str]]:
    """Return the task, the names of classes or labels, the listed images, not read yet, files of no image, and warnings."""
    table = _Table(_find_labels_file(folder, labels))
    file_column = _find_column(table.columns, _FILES) or next(iter(table.columns), "")
    split_column = _find_column(table.columns, _SPLITS)
    files = table.columns.get(file_column, [])
    columns = {name: cells for name, cells in table.columns.items() if name not in (file_column, split_column)}
    if not files or not columns:
        raise DataError(
            f"{table.name} needs a column of file names and one of labels, named in its first row, and rows below it. "
            f"{received(first_row=table.header, rows=len(files))}"
        )
    images, others = find_files(folder)
    paths = _paths(table, folder, file_column, images, others)
    parts = _parts(table, table.columns[split_column] if split_column else [TRAIN] * len(files))
    task, names, values = _labels(table, columns)
    check_names(names, f"Correct them in {table.name}.")
    rows = collections.defaultdict(set)
    for file, label, part in zip(files, values, parts, strict=True):
        rows[paths[file]].add((label, part))
    what = "Files listed with different labels or splits"
    table.check(files, lambda file: len(rows[paths[file]]) == 1, what, "Keep one row of each.")
    if verbose:
        splits = f", splits in {split_column!r}" if split_column else ""
        what = f"{len(columns)} columns" if len(columns) > 1 else repr(*columns)
        print(f"{table.name}: file names in {file_column!r}{splits}, {what} taken as {_TOLD[task]}.", flush=True)
    unlisted = len({*images} - {*rows})
    notices = [f"{unlisted} images in {folder} are not listed in {table.name}, and left out."] if unlisted else []
    found = [Image(label, part, str(path), b"", path.read_bytes) for path, ((label, part),) in rows.items()]
    return task, names, found, [path for path in others if path not in rows], notices


def _find_labels_file(folder: Path, labels) -> Path:
    if not isinstance(labels, (str, os.PathLike)) or not os.fspath(labels):
        raise ArgumentError(f"`labels` must be the path of a CSV or Parquet file. {received(labels=labels)}")
    path = Path(labels).expanduser()
    path = path if path.is_file() else folder / path
    if not path.is_file():
        near = nearest(path.name, [one.name for one in folder.iterdir() if one.is_file()])
        raise DataError(f"There is no labels file {labels}, here or in {folder}.{near} {received(labels=str(labels))}")
    return path


class _Table:
    """A table as text, `columns` by name; `check` numbers rows as a spreadsheet does, the header being row 1."""

    def __init__(self, path: Path):
        self.name = path.name
        try:
            rows = _parquet_rows(path) if path.suffix.lower() in (".parquet", ".pq") else _text_rows(path)
        except Exception as error:  # every reader has its own kinds
            advice = "Save it as CSV (UTF-8) or Parquet."
            if isinstance(error, ImportError):
                advice = "`pip install pyarrow`, or save it as CSV."
            raise DataError(f"Can't read the labels file {path}: {error}. {advice}") from error
        rows = [[unicodedata.normalize("NFC", cell).strip() for cell in row] for row in rows]
        rows = {number: row for number, row in enumerate(rows, start=1) if any(row)}
        self.header = rows.pop(min(rows, default=1), [])
        self._numbers = list(rows)
        uneven = {",".join(row) for row in rows.values() if len(row) != len(self.header)}
        what, advice = f"Not {len(self.header)} cells, as in the first row", "Quote text that holds a separator."
        self.check(map(",".join, rows.values()), lambda row: row not in uneven, what, advice)
        columns = zip(self.header, zip(*rows.values(), strict=True), strict=False)  # no columns where there are no rows
        columns = [(name, list(cells)) for name, cells in columns if not _UNNAMED.fullmatch(name)]
        self.columns = dict(columns)
        if len(self.columns) < len(columns):
            raise DataError(f"Two columns of {path} have one name. Rename one. {received(first_row=self.header)}")

    def check(self, cells: Iterable[str], is_good: Callable, what: str, advice: str) -> None:
        """Raise `DataError` unless the cell of every row is good."""
        bad = [f"row {row} ({cell!r})" for row, cell in zip(self._numbers, cells, strict=True) if not is_good(cell)]
        if bad:
            listing = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            raise DataError(f"{what} ({len(bad)} of the {len(self._numbers)} rows of {self.name}): {listing}. {advice}")


def _text_rows(path: Path) -> list[list[str]]:
    text = path.read_bytes().decode("utf-8-sig")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    if separator == ";":  # it leaves the comma to decimals
        rows = [[re.sub(r"^([+-]?\d+),(\d+)$", r"\1.\2", cell) for cell in row] for row in rows]
    return rows


def _parquet_rows(path: Path) -> list[list[str]]:
    from pyarrow import parquet  # which pandas reads Parquet with, too

    columns = parquet.ParquetFile(path).read().to_pydict()
    return [list(columns), *([_text(value) for value in row] for row in zip(*columns.values(), strict=True))]


def _text(value) -> str:
    if hasattr(value, "__iter__") and not isinstance(value, str):
        return "".join(f"{one}|" for one in value)  # several labels
    return "" if value is None or value != value else str(value)


def _find_column(names: Iterable[str], pattern: re.Pattern) -> str | None:
    return next((name for name in names if pattern.fullmatch(re.sub("[^a-z]", "", name.lower()))), None)


def _paths(table: _Table, folder: Path, column: str, images: list[Path], others: list[Path]) -> dict[str, Path]:
    """Return the file of each name.

    A name is that of a file in the folder, or the end of its path, where that is the end of one; the ending can be missing.
    """
    places = [collections.defaultdict(list), collections.defaultdict(list)]  # with their endings, and without
    pairs = [(places[0], path, path) for path in (*images, *others)]
    pairs += [(places[1], path, path.with_suffix("")) for path in images]
    for known, path, name in pairs:
        text = _slashed(name)
        for key in (text, text.rpartition("/")[2]):
            known[key].append((text, path))

    def candidates(name: str) -> list[Path]:
        name = name.replace("\\", "/")
        whole, end = _slashed(folder / name), "/" + os.path.normpath(name).lstrip("/")
        for known in places:
            same = known.get(whole) or [one for one in known.get(whole.rpartition("/")[2], ()) if one[0].endswith(end)]
            if same:
                return [path for _, path in same]
        return []

    names = table.columns[column]
    found = {name: candidates(name) for name in names}
    if candidates(column) and not column.isalpha():
        raise DataError(f"The first row of {table.name} must name the columns. {received(first_row=table.header)}")
    advice = f"Correct or remove these rows; if {column!r} isn't the column of file names, call that one 'filename'."
    table.check(names, found.get, f"Files that are not in {folder}", advice)
    advice = "Write their folders and endings."
    table.check(names, lambda name: len(found[name]) == 1, f"Names of several files in {folder}", advice)
    return {name: path for name, (path,) in found.items()}


def _slashed(path: Path) -> str:
    return unicodedata.normalize("NFC", os.path.abspath(path).replace(os.sep, "/"))


def _parts(table: _Table, cells: list[str]) -> list[str]:
    """Return the split of each row."""
    splits = splits_of({*cells})
    table.check(cells, splits.get, "Not the name of a split", "Write train, validation or test, or remove the rows.")
    if TRAIN not in splits.values():
        raise DataError(f"{table.name} lists no images of the split train. {received(splits=sorted(splits))}")
    return [splits[cell] for cell in cells]


def _labels(table: _Table, columns: dict[str, list[str]]) -> tuple[str, tuple[str, ...], list]:
    """Return the task, the names, and the label of each row."""
    if len(columns) > 1:
        return _labels_of_flags(table, columns)
    ((column, cells),) = columns.items()
    if any("|" in cell for cell in cells):
        several = [{part.strip() for part in cell.split("|")} - {""} for cell in cells]
        places = {name: place for place, name in enumerate(sorted(set().union(*several)))}
        return MULTI_LABEL, tuple(places), [tuple(sorted(map(places.get, one))) for one in several]
    table.check(cells, bool, f"No label in the column {column!r}", "Fill them in, or remove the rows.")
    numbers = {cell: float(cell) for cell in cells if _NUMBER.fullmatch(cell)}
    finite = {cell for cell, number in numbers.items() if math.isfinite(number)}
    are_classes = all(map(float.is_integer, numbers.values())) and _find_column([column], _CLASSES)
    if not are_classes and sum(cell in finite for cell in cells) > sum(cell not in numbers for cell in cells):
        advice = "Correct them, or remove the rows. For classes call the column 'label'."
        table.check(cells, finite.__contains__, f"No finite number in the column {column!r} of numbers", advice)
        return REGRESSION, (column,), [numbers[cell] for cell in cells]
    ranks = dict.fromkeys(cells, 0)
    if are_classes:  # 3.0 is the class 3, and 10 comes after it
        cells = [f"{numbers[cell]:.0f}" if cell in numbers else cell for cell in cells]
        ranks = {cell: float(cell) if _NUMBER.fullmatch(cell) else math.inf for cell in cells}
    places = {name: place for place, name in enumerate(sorted(ranks, key=lambda name: (ranks[name], name)))}
    if len(places) < 2:
        raise DataError(f"A classifier needs two classes or more. {column!r} in {table.name} holds {[*places]}.")
    return CLASSIFICATION, tuple(places), [places[cell] for cell in cells]


def _labels_of_flags(table: _Table, columns: dict[str, list[str]]):
    """Return what `_labels` does, of columns of 0 and 1."""
    for name, cells in columns.items():
        advice = "Keep one column of labels, or several that all hold 0 and 1; remove the others."
        table.check(cells, lambda cell: cell.lower() in _FLAGS, f"Neither 0 nor 1 in the column {name!r}", advice)
    rows = zip(*columns.values(), strict=True)
    values = [tuple(place for place, cell in enumerate(row) if _FLAGS[cell.lower()]) for row in rows]
    return MULTI_LABEL, tuple(columns), values
