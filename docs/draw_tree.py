"""Draw the package's tree from its code, as docs/images/tree.svg: `python docs/draw_tree.py`.

Each line of the picture is a package or the modules of one row: the question it answers (the first sentence of its docstring),
its files, and what they import. `tests/test_tree.py` holds the order of the lines, and that the picture is of today's code.
"""

import ast
import html
import pathlib
import textwrap

DOCS = pathlib.Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "kerastl"
PICTURE = DOCS / "images" / "tree.svg"

# From what all import to what imports all
ROWS = (
    ("_version",),
    ("errors", "checks", "tables", "files"),
    ("backend", "keras_internals"),
    ("data",),
    ("models",),
    ("costs",),
    ("features",),
    ("training",),
    ("evaluation",),
    ("export",),
    ("lab",),
    ("cli",),
)
_WIDTH, _HEIGHT, _LEFT, _WRAP = 1000, 26, 200, 88
_COLOURS = ("#f3f4f6", "#e8eef8")


def imports_of(path: pathlib.Path) -> set[str]:
    """Return the modules of the package that a file imports, as `features/store`, and packages as `features`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kerastl":
            module = "/".join(node.module.split(".")[1:])
            found |= {module} | {f"{module}/{alias.name}".strip("/") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {"/".join(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("kerastl.")}
    return {name for name in found if name and is_module(name)}


def is_module(name: str) -> bool:
    return (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name / "__init__.py").is_file()


def files_of(part: str) -> list[pathlib.Path]:
    """Return the Python files of a package, or the one of a module."""
    return sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]


def question_of(part: str) -> str:
    """Return the first sentence of a package's docstring, or of a module's."""
    text = ast.get_docstring(ast.parse(files_of(part)[0].read_text())) or ""
    text = " ".join(text.split("\n\n")[0].split())
    ends = [text.index(end) + 1 for end in ("? ", ". ") if end in text]
    return text[: min(ends)] if ends else text


def tree_lines() -> list[list[tuple[str, str]]]:
    """Return the picture's lines row by row, as `(style, text)`."""
    rows = []
    for row in ROWS[1:]:
        lines = []
        for part in row:
            lines.append(("bold", f"{part}{'.py' if (PACKAGE / f'{part}.py').is_file() else '/'}"))
            lines += [("text", text) for text in textwrap.wrap(question_of(part), 100)]
            if (PACKAGE / part).is_dir():
                paths = [path.relative_to(PACKAGE / part) for path in files_of(part) if path.name != "__init__.py"]
                lines += [("mono", text) for text in _wrapped([str(path).removesuffix(".py") for path in paths])]
            above = {other.split("/")[0] for path in files_of(part) for other in imports_of(path)} - {part}
            order = [name for one in ROWS for name in one]
            if len(row) == 1:
                lines.append(("small", "imports " + ", ".join(sorted(above & set(order), key=order.index))))
        rows.append(lines)
    return rows


def _wrapped(names: list[str]) -> list[str]:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) > _WRAP:
            lines.append("")
        lines[-1] += f"{' · ' if lines[-1] else ''}{name}"
    return lines


def draw() -> str:
    """Return the picture as SVG."""
    styles = {
        "bold": 'font-weight="bold" font-size="16"',
        "text": 'font-size="14"',
        "mono": 'font-size="13" font-family="monospace" fill="#1d4ed8"',
        "small": 'font-size="12" fill="#6b7280"',
    }
    body, top = [], 8
    for number, lines in enumerate(tree_lines()):
        merged = _beside(lines)
        height = _HEIGHT * len(merged) + 10
        body.append(
            f'<rect x="8" y="{top}" width="{_WIDTH - 16}" height="{height - 4}" rx="6" fill="{_COLOURS[number % 2]}"/>'
        )
        for index, pieces in enumerate(merged):
            y = top + 22 + _HEIGHT * index
            body += [f'<text x="{x}" y="{y}" {styles[style]}>{html.escape(text)}</text>' for x, style, text in pieces]
        top += height
    size = f'width="{_WIDTH}" height="{top + 4}" viewBox="0 0 {_WIDTH} {top + 4}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" fill="#111827">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{top + 4}" fill="white"/>', *body, "</svg>"]) + "\n"


def _beside(lines) -> list[list[tuple[int, str, str]]]:
    """Put a name and its question beside each other; everything else stands under the question."""
    merged = []
    for style, text in lines:
        if style == "bold":
            merged.append([(20, style, text)])
        elif len(merged[-1]) == 1 and merged[-1][0][1] == "bold":
            merged[-1].append((_LEFT, style, text))
        else:
            merged.append([(_LEFT, style, text)])
    return merged


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(f"Drew {PICTURE}")
