"""The page of an audit, and its part in the page of a run: findings with thumbnails."""

from kerastl.data.images import in_threads
from kerastl.evaluation.pages import links, page, text, thumbnail

KINDS = {
    "leak": "Near-duplicates in different splits",
    "label": "Probable label errors",
    "duplicate": "Near-duplicates within a split",
    "classes": "Classes that can't be told apart",
    "outlier": "Images unlike all others",
    "file": "Broken, tiny and blank files",
}
"""The kinds of findings, the worst first, and their headings."""

_MOST = 200  # findings of each kind: a page of thousands of pictures opens slowly; the CSV file has all

_ADVICE = {
    "leak": "The same picture in training and in validation or test: these then measure memory. Keep one of each.",
    "label": "The surest first. Look at each: the class in bold is what a classifier says that hasn't seen it.",
    "duplicate": "They count twice, and add little. Keep one where there are many.",
    "classes": "A classifier on these features hardly does better than a guess. Merge them, or look how they were labelled.",
    "outlier": "The furthest first. Often no picture of any class, or the only one of its kind: then add more of them.",
    "file": "Repair, replace or remove them.",
}


def audit_page(result) -> str:
    """Return the page of an `AuditResult` as HTML. Every name is escaped."""
    title = f"Audit of {result.name}"
    return page(title, f"<h1>{text(title)}</h1>\n{audit_findings(result, rest='are in findings.csv')}")


def audit_findings(result, *, most: int = _MOST, heading: str = "h2", rest: str) -> str:
    """Return the facts and findings of an `AuditResult` as HTML.

    `most` findings of each kind are shown; `rest` says in HTML where the others are; `heading` is the tag of a kind's heading.
    """
    shown = {kind: result.of_kind(kind)[:most] for kind in KINDS}
    needed = sorted({index for found in shown.values() for one in found for index in one.indices})
    pictures = dict(zip(needed, in_threads(lambda index: thumbnail(result.read(index)), needed), strict=True))
    counts = {kind: len(result.of_kind(kind)) for kind in KINDS}
    clean = [KINDS[kind] for kind in KINDS if not counts[kind] and not _left_out(result, kind)]
    notes = [f"Not checked: {what}." for what in result.not_checked]
    notes += [f"Nothing found: {', '.join(clean).lower()}."] if clean else []
    sections = [
        f'<section id="{kind}"><{heading}>{text(KINDS[kind])}: {counts[kind]}</{heading}>\n'
        f'<p class="quiet">{_ADVICE[kind]}</p>\n{_cards(shown[kind], counts[kind], pictures, rest)}</section>'
        for kind in KINDS
        if counts[kind]
    ]
    return "\n".join(
        [
            f"<p>{text(result.facts)}.</p>",
            links({kind: f"{KINDS[kind]} ({counts[kind]})" for kind in KINDS if counts[kind]}),
            *(f'<p class="quiet">{text(note)}</p>' for note in notes),
            *sections,
        ]
    )


def _left_out(result, kind: str) -> bool:
    return result.accuracy is None and kind in ("label", "classes")


def _cards(found, count: int, pictures: dict, rest: str) -> str:
    more = f'<p class="quiet">{count - len(found)} more {rest}.</p>' if count > len(found) else ""
    cards = "\n".join(_card(one, pictures) for one in found)
    return f'<div class="cards">\n{cards}\n</div>{more}'


def _card(finding, pictures: dict) -> str:
    figures = []
    for place, (name, split, label) in enumerate(zip(finding.names, finding.splits, finding.labels, strict=True)):
        about = " · ".join(filter(None, (label, split)))
        short = name.replace("\\", "/").rpartition("/")[2]
        source = pictures[finding.indices[place]] if finding.indices else None
        image = f'<img src="{source}" alt="{text(short)}" loading="lazy">' if source else ""
        figures.append(
            f'<figure title="{text(name)}">{image}<figcaption>{text(about)}<br>{text(short)}</figcaption></figure>'
        )
    bold = f"<b>{text(finding.suggestion)}</b>: " if finding.suggestion else ""
    return f'<div class="card"><div class="pictures">{"".join(figures)}</div><p>{bold}{text(finding.why)}</p></div>'
