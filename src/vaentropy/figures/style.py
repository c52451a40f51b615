"""How figures look: colours that can be told apart without colour vision and in print, and one way to make a figure."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vaentropy.errors import MissingExtraError, printable

try:
    import matplotlib.style
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError:
    raise MissingExtraError("matplotlib", "report") from None

__all__ = [
    "COLOURS",
    "INK",
    "LINE_STYLES",
    "MARKERS",
    "PALE",
    "SMALL",
    "Figure",
    "literal",
    "new_figure",
    "styled",
    "whole_numbers",
]

# Of all that is no data: axes, ticks, text. A report replaces it by the page's own colour.
INK = "#333333"
# Of what is there to compare with: grids, references.
PALE = "#999999"
# Okabe & Ito, "Color Universal Design" (2008), ordered so that neighbours differ in lightness as well.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
# Beside colours, for print in black and white.
LINE_STYLES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P")
# Points of the smallest text: legends and remarks.
SMALL = 8
# Letters of a name that are drawn.
LONGEST_NAME = 24

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.35,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.dpi": 110,
}
# Beginnings of the names of settings that are about files, not looks: these stay the user's.
OF_FILES = ("agg.", "pdf.", "pgf.", "ps.", "savefig.", "svg.")


@contextmanager
def styled() -> Iterator[None]:
    """Inside, matplotlib's settings are its defaults with ours over them; afterwards they are the user's again."""
    files: Any = {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name.startswith(OF_FILES)}
    with matplotlib.style.context(["default", STYLE]):
        matplotlib.rcParams.update(files)
        yield


class _Styled(Figure):
    """Matplotlib makes most ticks, and chooses how many, only when a figure is drawn: in our style, whoever draws."""

    def draw(self, renderer: Any) -> None:
        with styled():
            super().draw(renderer)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, without pyplot: nothing is kept, and no display is needed. Draw on it inside `styled()`.

    Args:
        width, height: in inches.
    """
    with styled():
        return _Styled(figsize=(width, height), layout="constrained")


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers, in steps that are easy to count in."""
    axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def literal(text: str, longest: int = LONGEST_NAME) -> str:
    """A name as matplotlib draws it letter by letter: no formulas, no line breaks, not too long."""
    text = printable(text)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    # The legends of older versions leave out what begins with an underscore: before it goes a space without width.
    return ("\u200b" + text if text.startswith("_") else text).replace("$", r"\$")
