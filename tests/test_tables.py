"""What is printed: aligned tables, escaped HTML, bytes and seconds for people."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerastl import tables


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    count: int


class Rows(tables.NamedRows):
    def _tables(self):
        return [tables.Table(("name", "count"), [(row.name, str(row.count)) for row in self], right={1}, title="rows")]


def test_a_table_is_aligned_and_its_total_set_apart():
    table = tables.Table(("a", "n"), [("x", "1"), ("all", "10")], right={1}, title="T", total=True, notes=["note"])
    assert str(table).splitlines() == ["T", "-------", "a     n", "-------", "x     1", "-------", "all  10", "note"]


def test_columns_stand_below_each_other_in_any_script():
    names = ["cat", "猫", "강아지", "बिल्ली", "قطّة", "cafe\u0301"]
    assert [tables.columns_of(name) for name in names] == [3, 2, 6, 5, 3, 4]
    lines = str(tables.Table(("name", "n"), [(name, "1") for name in names], right={1})).splitlines()
    assert {tables.columns_of(line) for line in lines} == {9}


def test_what_would_disturb_a_terminal_is_written_out():
    table = tables.Table(("a",), [("\x1b[31mred",), ("two\nlines",), ("\u202eturned",), ("\udce9",)], title="\x07")
    assert str(table).splitlines() == [
        r"\x07",
        "-" * 12,
        "a",
        "-" * 12,
        r"\x1b[31mred",
        r"two\nlines",
        r"\u202eturned",
        r"\udce9",
    ]
    assert tables.is_readable("می\u200cخواهم नमस्ते\xa0!")
    assert not tables.is_readable("a\u2028b")


def test_html_escapes_every_cell():
    html = tables.Table(("<a>",), [("<b>",)], title="<c>", notes=["<d>"]).html()
    assert all(f"&lt;{letter}&gt;" in html and f"<{letter}>" not in html for letter in "acd")
    assert "&lt;b&gt;" in html
    assert "a\\x1bb" in tables.Table(("a\x1bb",), []).html()


def test_rows_are_found_by_index_slice_and_name_and_print_the_same_everywhere():
    rows = Rows([Row("first", 1), Row("second", 2)])
    assert rows[1] is rows["second"]
    assert isinstance(rows[:1], Rows)
    assert rows.to_rows() == [{"name": "first", "count": 1}, {"name": "second", "count": 2}]
    assert repr(rows) == str(rows)
    assert rows._repr_html_().startswith("<table><caption>rows</caption>")
    with pytest.raises(KeyError, match="first"):
        rows["frist"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (12_345_678, "12.3 MB"),
        (999_999_999, "1 GB"),
        (5e12, "5 TB"),
    ],
)
def test_bytes_are_readable(count, text):
    assert tables.readable_bytes(count) == text


@given(st.floats(0, 1e6))
def test_seconds_are_readable(seconds):
    text = tables.readable_seconds(seconds)
    if text.endswith(" s"):
        assert float(text[:-2]) == pytest.approx(seconds, abs=0.51)
        assert float(text[:-2]) < 60
    else:
        parts = [int(part) for part in text.split(":")]
        assert all(part < 60 for part in parts[1:])
        total = sum(part * 60**power for power, part in enumerate(reversed(parts)))
        assert total == pytest.approx(seconds, abs=0.51)
