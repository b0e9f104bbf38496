"""Tables of text cells, for a terminal and for a notebook."""

import html
from collections.abc import Collection, Sequence


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    title: str | None = None,
    total: bool = False,
) -> str:
    """Return an aligned table for a terminal.

    Args:
        header: column names.
        rows: text cells, as many as the header has.
        right: indices of the columns that are aligned to the right (numbers).
        title: a line above the table.
        total: set the last row apart by a rule.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def aligned(cells):
        parts = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [aligned(row) for row in rows]
    if total and body:
        body.insert(-1, rule)
    return "\n".join([*([title, rule] if title else []), aligned(header), rule, *body])


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = (), title: str | None = None
) -> str:
    """Return the same table for a notebook; every cell is escaped."""

    def cells(values, tag):
        return "".join(
            f'<{tag} style="text-align:{"right" if index in right else "left"}">{html.escape(value)}</{tag}>'
            for index, value in enumerate(values)
        )

    caption = f"<caption>{html.escape(title)}</caption>" if title else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table>{caption}<thead><tr>{cells(header, 'th')}</tr></thead><tbody>{body}</tbody></table>"
