"""Labels files: a table of image files and of what they show, CSV or Parquet, for a folder of images."""

import collections
import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Iterable
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
    for path, label, part in zip(paths, values, parts, strict=True):
        rows[path].add((label, part))
    twice = [len(rows[path]) > 1 for path in paths]
    table.refuse(files, twice, "Files listed with different labels or splits", "Keep one row of each.")
    if verbose:
        splits = f", splits in {split_column!r}" if split_column else ""
        what = f"{len(columns)} columns" if len(columns) > 1 else repr(*columns)
        print(f"{table.name}: file names in {file_column!r}{splits}, {what} taken as {_TOLD[task]}.", flush=True)
    unlisted = len({*images} - {*paths})
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
    """A table as text, `columns` by name; `refuse` numbers rows as a spreadsheet does, the header being row 1."""

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
        uneven = [len(row) != len(self.header) for row in rows.values()]
        what = f"Not {len(self.header)} cells, as in the first row"
        self.refuse(map(",".join, rows.values()), uneven, what, "Quote text that holds a separator.")
        columns = zip(self.header, zip(*rows.values(), strict=True), strict=False)  # no columns where there are no rows
        columns = [(name, list(cells)) for name, cells in columns if not _UNNAMED.fullmatch(name)]
        self.columns = dict(columns)
        if len(self.columns) < len(columns):
            raise DataError(f"Two columns of {path} have one name. Rename one. {received(first_row=self.header)}")

    def refuse(self, cells, bad: list[bool], what: str, advice: str) -> None:
        """Raise `DataError` where `bad` says so of rows, and show their `cells`."""
        rows = [f"row {row} ({cell!r})" for row, cell, wrong in zip(self._numbers, cells, bad, strict=True) if wrong]
        if rows:
            listing = ", ".join(rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
            raise DataError(f"{what} ({len(rows)} of the {len(bad)} rows of {self.name}): {listing}. {advice}")


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


def _paths(table: _Table, folder: Path, column: str, images: list[Path], others: list[Path]) -> list[Path]:
    """Return the file of each row.

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
    found = [candidates(name) for name in names]
    if candidates(column) and not column.isalpha():
        raise DataError(f"The first row of {table.name} must name the columns. {received(first_row=table.header)}")
    advice = f"Correct or remove these rows; if {column!r} isn't the column of file names, call that one 'filename'."
    table.refuse(names, [not paths for paths in found], f"Files that are not in {folder}", advice)
    several = [len(paths) > 1 for paths in found]
    table.refuse(names, several, f"Names of several files in {folder}", "Write their folders and endings.")
    return [path for (path,) in found]


def _slashed(path: Path) -> str:
    return unicodedata.normalize("NFC", os.path.abspath(path).replace(os.sep, "/"))


def _parts(table: _Table, cells: list[str]) -> list[str]:
    """Return the split of each row."""
    splits = splits_of({*cells})
    bad = [not splits.get(cell) for cell in cells]
    table.refuse(cells, bad, "Not the name of a split", "Write train, validation or test, or remove the rows.")
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
    empty = [not cell for cell in cells]
    table.refuse(cells, empty, f"No label in the column {column!r}", "Fill them in, or remove the rows.")
    numbers = [float(cell) if _NUMBER.fullmatch(cell) else None for cell in cells]
    finite = [number is not None and math.isfinite(number) for number in numbers]
    are_whole = all(number is None or number.is_integer() for number in numbers)
    are_classes = are_whole and _find_column([column], _CLASSES)
    if not are_classes and sum(finite) > numbers.count(None):
        bad = [not fine for fine in finite]
        advice = "Correct them, or remove the rows. For classes call the column 'label'."
        table.refuse(cells, bad, f"No finite number in the column {column!r} of numbers", advice)
        return REGRESSION, (column,), numbers
    ranks = [0] * len(cells)
    if are_classes:  # 3.0 is the class 3, and 10 comes after it
        cells = [cell if number is None else f"{number:.0f}" for cell, number in zip(cells, numbers, strict=True)]
        ranks = [math.inf if number is None else number for number in numbers]
    places = {name: place for place, (_, name) in enumerate(sorted({*zip(ranks, cells, strict=True)}))}
    if len(places) < 2:
        raise DataError(f"A classifier needs two classes or more. {column!r} in {table.name} holds {[*places]}.")
    return CLASSIFICATION, tuple(places), [places[cell] for cell in cells]


def _labels_of_flags(table: _Table, columns: dict[str, list[str]]):
    """Return what `_labels` does, of columns of 0 and 1."""
    for name, cells in columns.items():
        bad = [cell.lower() not in _FLAGS for cell in cells]
        advice = "Keep one column of labels, or several that all hold 0 and 1; remove the others."
        table.refuse(cells, bad, f"Neither 0 nor 1 in the column {name!r}", advice)
    rows = zip(*columns.values(), strict=True)
    values = [tuple(place for place, cell in enumerate(row) if _FLAGS[cell.lower()]) for row in rows]
    return MULTI_LABEL, tuple(columns), values
