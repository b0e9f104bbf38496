"""HTML pages that need nothing beside them: one style, escaped text, pictures inside. They run and fetch nothing."""

import base64
import html
import io

import numpy as np
from PIL import Image

from kerastl.tables import Table, readable

# Should anything ever get past the escaping, browsers neither run nor fetch it
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

# Tables and wide pictures scroll in their own box, so that a phone never scrolls the page sideways. Plots have a white
# ground: in the dark they are turned, and the hues turned back.
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #707780; --ground: #8881; }
@media (prefers-color-scheme: dark) {
  :root { --quiet: #98a0a8; } .plot { filter: invert(.93) hue-rotate(180deg); }
}
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1100px; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .2rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem .9rem; margin: .8rem 0; } p { margin: .3rem 0 .8rem; }
.lead { font-size: 1.25rem; margin: .6rem 0; } .quiet, figcaption, dt { color: var(--quiet); }
b, dd, td, th, figcaption { unicode-bidi: isolate; }
.cards, .plots { display: flex; flex-wrap: wrap; gap: .7rem; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .5rem; flex: 0 1 auto; max-width: 100%;
  box-sizing: border-box; }
.card > p { margin: .3rem 0 0; font-size: .85rem; max-width: 16rem; }
.pair { width: 336px; } .pair figure { flex: 1 1 0; min-width: 0; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; } .pair .pictures { flex-wrap: nowrap; }
figure { margin: 0; width: 112px; } figcaption { font-size: .72rem; line-height: 1.25; }
figure img { display: block; max-width: 96px; max-height: 96px; border-radius: 3px; }
.pair img { width: 100%; max-width: none; max-height: none; }
.scroll { overflow-x: auto; margin: .6rem 0; } .plot { display: block; border-radius: 4px; max-width: 100%; height: auto; }
.scroll > .plot { max-width: max(100%, 48rem); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); overflow-wrap: normal; padding: .2rem .7rem .2rem 0; }
td { white-space: nowrap; } td:first-child { min-width: 5.5rem; overflow-wrap: anywhere; white-space: normal; }
dl { display: grid; grid-template-columns: fit-content(9.5rem) 1fr; gap: .15rem .9rem; margin: .6rem 0; } dd { margin: 0; }
pre { background: var(--ground); border-radius: 6px; overflow-x: auto; padding: .7rem; font-size: .85rem; }
.command { white-space: pre-wrap; }
summary { cursor: pointer; }
"""


def page(title: str, body: str) -> str:
    """Return a whole page; `title` is text, `body` HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def text(value) -> str:
    """Return text for HTML, escaped for attributes too; control characters and turned directions are written out."""
    return html.escape(readable(str(value)))


def code(lines: str) -> str:
    """Return lines of code, or a command of one line, which wraps where the window is narrow."""
    wrapped = "" if "\n" in lines else ' class="command"'
    return f"<pre{wrapped}><code>{html.escape(chr(10).join(map(readable, lines.splitlines())))}</code></pre>"


def links(headings: dict[str, str]) -> str:
    """Return the row of links to the sections `{id: heading}`."""
    shown = "".join(f'<a href="#{place}">{text(heading)}</a>' for place, heading in headings.items())
    return f"<nav>{shown}</nav>"


def pairs(rows) -> str:
    """Return `(name, value)` rows as a list of two columns."""
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in rows)}</dl>"


def table(content: Table) -> str:
    """Return a table in a box of its own, which scrolls where the window is narrow."""
    return f'<div class="scroll">{content.html()}</div>'


def thumbnail(pixels: np.ndarray, longest: int = 96) -> str:
    """Return an image, uint8 `(height, width, 3)`, as a data: URI: JPEG, its longer side `longest` pixels at most."""
    image, content = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((longest, longest))
    image.save(content, "JPEG", quality=80)
    return _data_uri("jpeg", content.getvalue())


def plot(figure, alt: str) -> str:
    """Return a Matplotlib figure as a picture, at most 1600 pixels high and wide; `alt` says in words what it shows."""
    content = io.BytesIO()
    resolution = min(160.0, 1600 / max(figure.get_size_inches()))
    figure.savefig(content, format="png", dpi=resolution, bbox_inches="tight")
    image = Image.open(content).convert("RGB")
    width = round(80 * image.width / resolution)  # 80 CSS pixels an inch: a little larger than the page's own text
    smaller = io.BytesIO()
    image.quantize(128).save(smaller, "PNG", optimize=True)  # a plot has few colours
    source = _data_uri("png", smaller.getvalue())
    return f'<img class="plot" src="{source}" alt="{text(alt)}" width="{width}">'


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
