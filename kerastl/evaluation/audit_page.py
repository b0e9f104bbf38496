"""The page of an audit: findings with thumbnails, in one HTML file that needs nothing beside it."""

import base64
import html
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from kerastl.data.images import in_threads
from kerastl.tables import readable

_THUMBNAIL = 96  # pixels, of the longer side
_MOST = 200  # findings of each kind: a page of thousands of pictures opens slowly; the CSV file has all

_ADVICE = {
    "leak": "The same picture in training and in validation or test: these then measure memory. Keep one of each.",
    "label": "The surest first. Look at each: the class in bold is what a classifier says that hasn't seen it.",
    "duplicate": "They count twice, and add little. Keep one where there are many.",
    "classes": "A classifier on these features hardly does better than a guess. Merge them, or look how they were labelled.",
    "outlier": "The furthest first. Often no picture of any class, or the only one of its kind: then add more of them.",
    "file": "Repair, replace or remove them.",
}

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #888; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1100px; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .2rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .2rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem .9rem; margin: .8rem 0; } p { margin: .3rem 0 .8rem; }
.quiet, figcaption { color: var(--quiet); } .cards { display: flex; flex-wrap: wrap; gap: .7rem; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .5rem; flex: 0 1 auto; max-width: 100%; }
.card > p { margin: .3rem 0 0; font-size: .85rem; }
.single { display: flex; gap: .5rem; width: 15.5rem; } .single > p { margin: 0; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; width: 112px; } figcaption { font-size: .72rem; line-height: 1.25; }
img { display: block; max-width: 96px; max-height: 96px; border-radius: 3px; }
"""


def audit_page(result, kinds: Mapping[str, str]) -> str:
    """Return the page of an `AuditResult` as HTML; `kinds` are the headings. Every name is escaped."""
    shown = {kind: result.of_kind(kind)[:_MOST] for kind in kinds}
    needed = sorted({index for found in shown.values() for one in found for index in one.indices})
    pictures = dict(zip(needed, in_threads(lambda index: thumbnail(result.read(index)), needed), strict=True))
    counts = {kind: len(result.of_kind(kind)) for kind in kinds}
    links = "".join(
        f'<a href="#{kind}">{_text(heading)} ({counts[kind]})</a>' for kind, heading in kinds.items() if counts[kind]
    )
    clean = [heading for kind, heading in kinds.items() if not counts[kind] and not _left_out(result, kind)]
    sections = [_section(kind, kinds[kind], shown[kind], counts[kind], pictures) for kind in kinds if counts[kind]]
    notes = [f"Not checked: {what}." for what in result.not_checked]
    notes += [f"Nothing found: {', '.join(clean).lower()}."] if clean else []
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Audit of {_text(result.name)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>Audit of {_text(result.name)}</h1>\n<p>{_text(result.facts)}.</p>\n<nav>{links}</nav>\n"
        + "".join(f'<p class="quiet">{_text(note)}</p>\n' for note in notes)
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _left_out(result, kind: str) -> bool:
    return result.accuracy is None and kind in ("label", "classes")


def _section(kind: str, heading: str, found, count: int, pictures: dict) -> str:
    more = f'<p class="quiet">{count - len(found)} more are in findings.csv.</p>' if count > len(found) else ""
    cards = "\n".join(_card(one, pictures) for one in found)
    return (
        f'<section id="{kind}"><h2>{_text(heading)}: {count}</h2>\n<p class="quiet">{_ADVICE[kind]}</p>\n'
        f'<div class="cards">\n{cards}\n</div>{more}</section>'
    )


def _card(finding, pictures: dict) -> str:
    figures = []
    for place, (name, split, label) in enumerate(zip(finding.names, finding.splits, finding.labels, strict=True)):
        about = " · ".join(filter(None, (label, split)))
        image = f'<img src="{pictures[finding.indices[place]]}" alt="" loading="lazy">' if finding.indices else ""
        short = name.replace("\\", "/").rpartition("/")[2]
        figures.append(
            f'<figure title="{_text(name)}">{image}<figcaption>{_text(about)}<br>{_text(short)}</figcaption></figure>'
        )
    bold = f"<b>{_text(finding.suggestion)}</b>: " if finding.suggestion else ""
    wide = " wide" if len(finding.names) > 1 else ""
    return (
        f'<div class="card{wide}"><div class="pictures">{"".join(figures)}</div><p>{bold}{_text(finding.why)}</p></div>'
    )


def thumbnail(pixels: np.ndarray) -> str:
    """Return an image as a data: URI, JPEG, its longer side 96 pixels at most."""
    image, content = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    image.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def _text(text: str) -> str:
    return html.escape(readable(str(text)))
