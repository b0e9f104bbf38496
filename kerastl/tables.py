"""What is printed: tables for a terminal and for a notebook, bytes and seconds for people."""

import dataclasses
import html
import unicodedata
from collections.abc import Collection, Sequence

from kerastl.checks import nearest, received


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text; `str` aligns them for a terminal, `html` makes a table for a notebook.

    `right` are the indices of the columns that are aligned to the right (numbers); `total` sets the last row apart by a rule.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[int] = ()
    title: str | None = None
    total: bool = False
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        lines = [[readable(cell) for cell in line] for line in (self.header, *self.rows)]
        widths = [max(columns_of(line[column]) for line in lines) for column in range(len(self.header))]

        def aligned(cells):
            parts = []
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
                fill = " " * (width - columns_of(cell))
                parts.append(fill + cell if index in self.right else cell + fill)
            return "  ".join(parts).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        header, *body = map(aligned, lines)
        if self.total and body:
            body.insert(-1, rule)
        return "\n".join([*([readable(self.title), rule] if self.title else []), header, rule, *body, *self.notes])

    def html(self) -> str:
        """Return the table for a notebook; every cell is escaped."""

        def shown(text):
            return html.escape(readable(text))

        def cells(values, tag):
            return "".join(
                f'<{tag} style="text-align:{"right" if index in self.right else "left"}">{shown(value)}</{tag}>'
                for index, value in enumerate(values)
            )

        caption = f"<caption>{shown(self.title)}</caption>" if self.title else ""
        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self.rows)
        notes = "".join(f"<p>{shown(note)}</p>" for note in self.notes)
        return f"<table>{caption}<thead><tr>{cells(self.header, 'th')}</tr></thead><tbody>{body}</tbody></table>{notes}"


class Printed:
    """Prints as tables in a terminal, and renders as them in a notebook: those that a subclass's `_tables` returns."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self._tables()))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in self._tables())


class NamedRows(Printed, tuple):
    """A tuple of dataclasses that prints as a table; a row is found by index or by its name, the field `key`."""

    key = "name"

    def __getitem__(self, key):
        if isinstance(key, slice):
            return type(self)(super().__getitem__(key))
        if not isinstance(key, str):
            return super().__getitem__(key)
        names = [getattr(row, self.key) for row in self]
        if key in names:
            return super().__getitem__(names.index(key))
        raise KeyError(f"No row of that name.{nearest(key, names)} {received(name=key)}")

    def to_rows(self) -> list[dict]:
        """Return the rows as dictionaries, for `pandas.DataFrame`."""
        return [dataclasses.asdict(row) for row in self]


def is_readable(text: str) -> bool:
    """Tell whether text stays on its line as it is: no line breaks, control sequences, turned directions, or broken UTF-8."""
    return not any(map(_disturbs, text))


def readable(text: str) -> str:
    """Return text with what would disturb a terminal written out, as `\\x1b`."""
    return "".join(ascii(one)[1:-1] if _disturbs(one) else one for one in text)


def _disturbs(character: str) -> bool:
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return turns or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def columns_of(text: str) -> int:
    """Return how many columns of a terminal text takes: two for a character of East Asia, none for a mark on another."""
    shown = (one for one in text if unicodedata.category(one) not in ("Mn", "Me", "Cf"))
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in shown)


def readable_bytes(count: float) -> str:
    """Return a number of bytes for people: `12.3 MB`, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def readable_seconds(seconds: float) -> str:
    """Return `1.5 s`, `12 s`, `3:05` (minutes) or `1:02:30` (hours)."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
