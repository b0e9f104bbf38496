"""What all pictures share: figures that belong to no global state, colours, short texts."""

import functools
import io
import math
import warnings

import numpy as np

from kerastl.checks import received
from kerastl.errors import ArgumentError, DataError, warn

_TOLD = set()  # characters
QUIET, INK, FRAME = "#5f6b76", "#24313d", "#c5ccd3"


class AxesArray(np.ndarray):
    """Axes as `Figure.subplots` gives them; a notebook shows their picture."""

    def _repr_png_(self) -> bytes:
        return as_png(self.flat[0].figure)


def as_png(figure) -> bytes:
    """Return the picture of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def panels_of(axes, count: int, what: str, *, columns: int | None = None, **figure_options) -> np.ndarray:
    """Return `count` axes in a flat array: the first of those that a user passed (raises where these are fewer), or new ones.

    Pyplot knows nothing of a new figure, in which they stand in rows of `columns`; a notebook shows it, and its axes as it.
    """
    if axes is not None:
        panels = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
        if len(panels) < count:
            raise ArgumentError(f"Expected {count} axes, {what}. {received(axes=len(panels))}")
        return panels[:count]
    columns = min(columns or count, count)
    figure = _figure_class()(**{"layout": "constrained", **figure_options})
    # A notebook shows what has a PNG of its own, whether or not pyplot was ever imported in it
    figure._repr_png_ = functools.partial(as_png, figure)
    panels = figure.subplots(math.ceil(count / columns), columns, squeeze=False).ravel()
    for panel in panels:
        panel._repr_png_ = figure._repr_png_
    for panel in panels[count:]:
        panel.set_axis_off()
    return panels[:count].view(AxesArray)


@functools.cache
def _figure_class():
    """Return Matplotlib's `Figure`, which chooses fonts that have the characters of its texts when it is drawn."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    class ReadableFigure(Figure):
        def draw(self, renderer):
            texts = [one for one in self.findobj(Text) if not one.get_text().isascii()]
            others = _fonts_besides(frozenset("".join(one.get_text() for one in texts)))
            for text in texts if others else ():
                text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *others])))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing from")  # said once, with what to do
                # before 3.11 some scripts are drawn letter by letter, which can still be read
                warnings.filterwarnings("ignore", "Matplotlib currently does not support .* natively")
                super().draw(renderer)

    return ReadableFigure


@functools.cache
def _fonts_besides(characters: frozenset) -> tuple[str, ...]:
    """Return installed fonts for the characters that Matplotlib's usual font lacks; say once which no font has."""
    from matplotlib import font_manager

    usual = font_manager.findfont(font_manager.FontProperties())
    missing = {one for one in characters - _characters(usual) if one.isprintable()}
    fonts = []
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: ("Sans" not in font.name, font.name)):
        if missing and not font.name.startswith("Last Resort") and (found := missing & _characters(font.fname)):
            fonts.append(font.name)
            missing -= found
    if missing - _TOLD:
        _TOLD.update(missing)
        warn(
            f"No installed font has the characters {' '.join(sorted(missing)[:10])}, so that plots show boxes for them. "
            "Install one that has, such as Noto (`apt-get install fonts-noto-cjk fonts-noto-core`), and remove Matplotlib's "
            "list of fonts (`rm ~/.cache/matplotlib/fontlist*`)."
        )
    return tuple(fonts)


@functools.cache
def _characters(file: str) -> set[str]:
    from matplotlib.ft2font import FT2Font

    return set(map(chr, FT2Font(file).get_charmap()))


def draw_grid(panel, axis: str = "both") -> None:
    """Give a panel of curves or points a quiet grid, and no frame at the top and at the right."""
    panel.grid(axis=axis, color="#e3e7eb", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def colour_bar(panels, drawn, label: str, colour: str = QUIET, **options) -> None:
    """Say beside panels that are drawn on one scale what its colours mean."""
    bar = panels.flat[0].figure.colorbar(drawn, ax=list(panels.flat), pad=0.02, aspect=30, **options)
    bar.set_label(label, fontsize=8.5, color=colour)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def label_left_edge(panels, label: str) -> None:
    """Label the y axes of panels with a common scale, but leave it to the neighbour where one stands right beside on the left.

    Which panels stand beside each other is the user's choice where the axes are: a row, a column, or a grid.
    """
    for panel in panels:
        place = panel.get_position()
        beside = (one.get_position() for one in panels if one is not panel and one.figure is panel.figure)
        if any(one.x1 <= place.x0 and abs(one.y0 - place.y0) < 0.01 for one in beside):
            panel.tick_params(axis="y", labelleft=False)
        else:
            panel.set_ylabel(label)


def empty_figure(text: str):
    """Return a figure that holds nothing but a line of text."""
    [panel] = panels_of(None, 1, "for the text", figsize=(5, 1.5))
    panel.set_axis_off()
    panel.text(0.5, 0.5, text, ha="center", va="center", fontsize=12)
    return panel.figure


def hide_ticks(panel) -> None:
    """Leave nothing of a picture's axes but a thin frame."""
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_color(FRAME)


def round_ticks(last: int) -> list[int]:
    """Return at most about eight whole numbers from 1 to `last`, the first included."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if last / step <= 8)
    return sorted({1, *range(1 if step == 2 else step, last + 1, step)})


def displayable(image) -> np.ndarray:
    """Return an image as uint8 RGB, `(height, width, 3)`: 0–255 as it is; values that were scaled are stretched to that."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise DataError(f"Expected images of (height, width, 3) or (height, width, 1). {received(shape=image.shape)}")
    if image.dtype.kind == "f" and image.size and (image.min() < 0 or image.max() <= 1.5):
        image = (image - image.min()) * (255 / max(float(image.max() - image.min()), 1e-12))
    return np.repeat(np.clip(image, 0, 255).astype("uint8"), 3 // image.shape[-1], axis=-1)


def percent(probability: float) -> str:
    """Return a whole percentage, but never 0 % or 100 % for what is not exactly that."""
    value = 100 * float(probability)
    if 99 < value < 100:
        return ">99 %"
    return "<1 %" if 0 < value < 1 else f"{value:.0f} %"


def shorten(name, length: int) -> str:
    """Return the name with its middle left out where it is too long: ends tell names apart as often as beginnings.

    Dollar signs are escaped: between two of them Matplotlib reads a formula.
    """
    name = str(name)
    if len(name) > length:
        front = (length - 1) * 2 // 3
        name = f"{name[:front]}…{name[len(name) - (length - 1 - front) :]}"
    return name.replace("$", r"\$")
