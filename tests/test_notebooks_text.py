"""What the notebooks say: helpers are introduced before they are used, figures in the text were printed above it."""

import re

import nbformat
import pytest

import kerastl
from tests.test_notebooks import FOLDER, WRITTEN, tools

# What is no helper: errors and warnings, and what only holds values
_SELF_EVIDENT = re.compile(r"Error$|Warning$|^__version__$")
_USED = re.compile(r"\bkerastl\.(\w+)")
_NAMED = re.compile(r"`(?:kerastl\.)?(\w+)(?:\([^`]*\))?`")
# Not claims about what was run: quoted, asked, code, and figures with a link to where they come from beside them
_QUOTE, _CODE, _LINK = re.compile(r"^>"), re.compile(r"`[^`]*`"), re.compile(r"\]\(https?://")
_FIGURE = re.compile(
    r"(?<![\w.,^−-])(\d+(?:,\d{3})*(?:\.\d+)?)"
    r"(\s*%|\s*seconds?\b|\s+s\b|×(?!\s?\d)|\s+(?:percentage )?points?\b|\s+times (?:as|(?!lower)[a-z]+er)\b)"
)
_NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
_MOST_PHOTOGRAPHS = 12

every_notebook = pytest.mark.parametrize("name", WRITTEN)


def cells_of(name: str) -> list:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells


def helpers_used(source: str) -> list[str]:
    """Return the public names of kerastl in a code cell, in order, with those that are imported from its modules."""
    names = _USED.findall(source) + re.findall(r"^from kerastl[\w.]* import (.+)$", source, re.MULTILINE)
    found = [name.strip() for text in names for name in text.split(",")]
    return [name for name in found if name in kerastl.__all__ and not _SELF_EVIDENT.search(name)]


def names_in(text: str) -> set[str]:
    return set(_NAMED.findall(text))


def test_it_knows_a_helper_and_where_it_is_named():
    source = "from kerastl.models.freezing import freeze, unfreeze\nkerastl.fit(kerastl.freeze(x), kerastl.DataError)"
    assert helpers_used(source) == ["fit", "freeze", "freeze", "unfreeze"]
    assert names_in("Use `kerastl.fit(model, …)` after `freeze`, not thaw.") == {"fit", "freeze"}


@every_notebook
def test_no_helper_is_used_before_it_is_introduced(name):
    """Earlier notebooks may have introduced it, or a link, with its name, to where it is explained."""
    introduced, missing = set(), set()
    for earlier in WRITTEN[: WRITTEN.index(name) + 1]:
        for cell in cells_of(earlier):
            if cell.cell_type == "markdown":
                introduced |= names_in(cell.source)
            elif earlier == name:
                missing |= set(helpers_used(cell.source)) - introduced
    assert not sorted(missing)


def figures_in(text: str) -> list[tuple[str, str]]:
    """Return the numbers with a unit that a Markdown cell claims, and their units."""
    if text.startswith("# "):  # the header, with the promised minutes
        return []
    lines = [line for line in text.splitlines() if not _QUOTE.match(line) and not _LINK.search(line)]
    return [(match[1], match[2].strip()) for line in lines for match in _FIGURE.finditer(_CODE.sub("", line))]


def numbers_in(text: str) -> list[float]:
    return [float(number.replace(",", "").replace("−", "-")) for number in _NUMBER.findall(text)]


def is_among(figure: str, unit: str, numbers: list[float]) -> bool:
    """Tell whether a figure is one of the numbers, rounded as it is written; shares may be printed as 0.93 or as 93 %."""
    decimals, value = len(figure.partition(".")[2]), float(figure.replace(",", ""))
    scales = (1, 100) if unit == "%" or "point" in unit else (1,)
    return any(abs(abs(one) * scale - value) <= 0.5 * 10**-decimals + 1e-9 for one in numbers for scale in scales)


def text_of(output) -> str:
    data = output.get("data", {})
    return "\n".join(
        [output.get("text", ""), data.get("text/plain", ""), re.sub(r"<[^>]+>", " ", data.get("text/html", ""))]
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It took 12.5 s, that is 93 %, 2.4 times faster: 3 points.", ["12.5", "93", "2.4", "3"]),
        ("A 3×3 kernel, FLOPs = 2 × MACs, 4× as fast, block 5 stands.", ["4"]),
        ("> **Guess first.** 50 %?\n\nOf `0.5 s` they say 94.9 % ([paper](https://arxiv.org)).", []),
        ("# 01 · Title\n\n5 s", []),
    ],
)
def test_it_finds_what_a_text_claims(text, found):
    assert [figure for figure, _ in figures_in(text)] == found


@pytest.mark.parametrize(
    ("figure", "unit", "printed", "expected"),
    [
        ("93", "%", "accuracy 0.934", True),
        ("93", "%", "93.4%", True),
        ("94", "%", "accuracy 0.934", False),
        ("2.5", "s", "took 2.46 s", True),
        ("2.5", "s", "took 2.56 s", False),
        ("3", "points", "difference −0.031", True),
        ("1,200", "s", "1,200 images", True),
    ],
)
def test_it_compares_figures_as_they_are_rounded(figure, unit, printed, expected):
    assert is_among(figure, unit, numbers_in(printed)) is expected


@every_notebook
def test_figures_in_the_text_were_printed_above_it(name):
    printed, missing = [], []
    for cell in cells_of(name):
        if cell.cell_type == "code":
            printed += [number for output in cell.outputs for number in numbers_in(text_of(output))]
            continue
        missing += [f"{one} {unit}" for one, unit in figures_in(cell.source) if not is_among(one, unit, printed)]
    assert not missing


@every_notebook
def test_few_photographs_are_shown_each_with_its_flickr_number(name):
    """A cell that shows photographs of the flowers lists them in its output, below `Flickr numbers:`."""
    shown = []
    for cell in tools.code_cells(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)):
        text = "\n".join(map(text_of, cell.outputs))
        if "Flickr number" in text:
            shown += re.findall(r"\b\d{6,11}\b", text.partition("Flickr number")[2])
            assert any("image/png" in output.get("data", {}) for output in cell.outputs)
    assert len(set(shown)) <= _MOST_PHOTOGRAPHS
