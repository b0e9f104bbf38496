"""Pages that need nothing beside them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from kerastl.evaluation import pages, plots
from kerastl.tables import Table
from tests.pages import Page

ODD = [
    "<script>alert(1)</script>",
    "\"double\" & 'single'",
    "花 🌻",
    "\u202eturned",
    "two\nlines",
    "\ud800",
    "&lt;b&gt;",
]
READ = [*ODD[:3], "\\u202eturned", "two\\nlines", "\\ud800", "&lt;b&gt;"]


@pytest.mark.parametrize(("odd", "read"), [*zip(ODD, READ, strict=True)], ids=range(len(ODD)))
def test_every_text_is_read_as_what_it_is(odd, read):
    parts = [
        pages.links({"place": odd}),
        pages.pairs([(odd, odd)]),
        pages.table(Table([odd], [[odd]])),
        pages.code(odd),
        f'<p title="{pages.text(odd)}">',
    ]
    page = Page(pages.page(odd, "".join(parts)))
    if "\n" in odd:  # of code the lines stay lines
        assert page.code == [odd]
    else:
        assert page.code == [read]
    assert page.text.count(read) == (6 if "\n" in odd else 7)
    assert page.values("title") == [read]
    assert {"script", "b", "i"}.isdisjoint(page.tags)
    pages.page(odd, "").encode("utf-8")


def test_a_browser_may_neither_run_nor_fetch_anything():
    page = Page(pages.page("a", "b"))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.values("content")
    assert page.sources == []
    assert "width=device-width, initial-scale=1" in page.values("content")
    assert ("lang", "en") in page.attributes


@pytest.mark.parametrize("shape", [(300, 150, 3), (40, 20, 3)])
def test_thumbnails_are_small(shape):
    content = base64.b64decode(pages.thumbnail(np.zeros(shape, "uint8")).partition(",")[2])
    assert max(Image.open(io.BytesIO(content)).size) == min(96, max(shape))


def test_a_plot_says_what_it_shows_and_has_a_largest_size():
    small, large = (
        plots.plot_confusion_matrix(np.eye(count, dtype=int), [str(index) for index in range(count)])
        for count in (2, 130)
    )
    for figure, largest in ((small, 700), (large, 1650)):
        page = Page(pages.plot(figure, 'shows "<b>"'))
        assert page.values("alt") == ['shows "<b>"']
        image = Image.open(io.BytesIO(base64.b64decode(page.sources[0].removeprefix("data:image/png;base64,"))))
        assert largest / 3 < max(image.size) <= largest
