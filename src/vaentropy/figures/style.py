"""How figures look: colours that can be told apart without colour vision and in print, and one way to make a figure."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vaentropy.errors import MissingExtraError

try:
    import matplotlib.style
    from matplotlib.figure import Figure
except ImportError:
    raise MissingExtraError("matplotlib", "report") from None

__all__ = ["COLOURS", "INK", "LINE_STYLES", "MARKERS", "PALE", "Figure", "new_figure", "styled"]

# Of all that is no data: axes, ticks, text. A report replaces it by the page's own colour.
INK = "#333333"
# Of what is there to compare with: grids, references.
PALE = "#999999"
# Okabe & Ito, "Color Universal Design" (2008), ordered so that neighbours differ in lightness as well.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
# Beside colours, for print in black and white.
LINE_STYLES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P")

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
    "savefig.dpi": 160,
}


@contextmanager
def styled() -> Iterator[None]:
    """Inside, matplotlib's settings are its defaults with ours over them; afterwards they are the user's again."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, without pyplot: nothing is kept, and no display is needed. Draw on it inside `styled()`.

    Args:
        width, height: in inches.
    """
    with styled():
        return Figure(figsize=(width, height), layout="constrained")
