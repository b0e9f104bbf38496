"""Tables of rows, each about one layer."""

import dataclasses

from kerastl.checks import nearest, received
from kerastl.tables import html_table, text_table


class Table(tuple):
    """Rows that print as a table; a row is had by index or by its layer's name."""

    columns = ()

    def __getitem__(self, key):
        if not isinstance(key, str):
            return super().__getitem__(key)
        for row in self:
            if row.layer == key:
                return row
        raise KeyError(f"No layer of that name.{nearest(key, [row.layer for row in self])} {received(name=key)}")

    def to_rows(self) -> list[dict]:
        """Return the rows as dictionaries, for `pandas.DataFrame`."""
        return [dataclasses.asdict(row) for row in self]

    def __str__(self) -> str:
        return text_table(self._header(), self._body(), right=set(range(2, len(self.columns))))

    def _repr_html_(self) -> str:
        return html_table(self._header(), self._body(), right=set(range(2, len(self.columns))))

    def _header(self) -> tuple[str, ...]:
        return tuple(column.replace("_", " ") for column in self.columns)

    def _body(self) -> list[tuple[str, ...]]:
        return [tuple(cell(getattr(row, column)) for column in self.columns) for row in self]


def cell(value) -> str:
    """Return a value as text; numbers that are not whole with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
