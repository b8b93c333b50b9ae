"""The colours and markers that every picture of a variant has, and its words in a legend.

Names of variants, layers and data sets are data: nothing in them is read as markup.
"""

from collections.abc import Iterable
from itertools import cycle
from typing import Any, NamedTuple

from matplotlib.font_manager import FontProperties, findfont, get_font

from lottery.report.text import in_order


class Style(NamedTuple):
    """How a variant is drawn: colour, marker in Matplotlib and in Vega, words in a legend."""

    colour: str
    marker: Any
    symbol: str
    label: str


PENTAGON = "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z"
HEXAGON = "M0,-1L0.87,-0.5L0.87,0.5L0,1L-0.87,0.5L-0.87,-0.5Z"
THIN_DIAMOND = "M0,-1L0.6,0L0,1L-0.6,0Z"
X = "M-1,-0.6L-0.6,-1L0,-0.4L0.6,-1L1,-0.6L0.4,0L1,0.6L0.6,1L0,0.4L-0.6,1L-1,0.6L-0.4,0Z"
FLAT_HEXAGON = "M.5,-.87L1,0L.5,.87L-.5,.87L-1,0L-.5,-.87Z"
OCTAGON = "M.38,-.92L.92,-.38L.92,.38L.38,.92L-.38,.92L-.92,.38L-.92,-.38L-.38,-.92Z"
FOUR_POINTS = "M0,-1L.25,-.25L1,0L.25,.25L0,1L-.25,.25L-1,0L-.25,-.25Z"
THREE_POINTS = "M0,-1L.3,-.18L.87,.5L0,.35L-.87,.5L-.3,-.18Z"
TURNED_POINTS = "M0,1L-.3,.18L-.87,-.5L0,-.35L.87,-.5L.3,.18Z"
STAR = "M0,-1L.22,-.31L.95,-.31L.36,.12L.59,.81L0,.38L-.59,.81L-.36,.12L-.95,-.31L-.22,-.31Z"
# After Okabe & Ito's palette, told apart by the colour-blind, on white and black.
STYLES = {
    "dense": Style("#767676", "o", "circle", "dense network"),
    "ticket": Style("#0072B2", "o", "circle", "ticket"),
    "random_reinit": Style("#D55E00", "s", "square", "random re-initialisation"),
    "sign_preserving_reinit": Style("#E69F00", "D", "diamond", "constants, signs kept"),
    "random_sign_constant": Style("#A23B72", "d", THIN_DIAMOND, "constants, random signs"),
    "signed_reinit": Style("#6A6ADB", "h", HEXAGON, "re-initialisation, signs kept"),
    "random_mask": Style("#009E73", "^", "triangle-up", "random mask"),
    "random_mask_global": Style(
        "#56B4E9", "v", "triangle-down", "random mask, all layers together"
    ),
    "random_mask_erk": Style("#3C9D9B", "8", OCTAGON, "random mask, densities by ERK"),
    "shuffled_mask": Style("#CC79A7", "P", "cross", "shuffled mask"),
    "small_dense": Style("#94702B", "p", PENTAGON, "small dense network"),
    "dense_longer": Style("#8F5BB5", "*", STAR, "dense network, trained longer"),
    "set": Style("#4C78A8", "H", FLAT_HEXAGON, "SET"),
    "rigl": Style("#B8860B", (4, 1, 0), FOUR_POINTS, "RigL"),
    "supermask": Style("#C44E52", (3, 1, 0), THREE_POINTS, "supermask"),
    "supermask_signed_constant": Style(
        "#7F7F00", (3, 1, 180), TURNED_POINTS, "supermask, signed constants"
    ),
    "pruning": Style("#0072B2", "None", "circle", "while pruning, every round"),
}
OWN_COLOURS = ("#7A8B00", "#00A5B5", "#A66F5B", "#D81B60")  # of one's own, in order of name
OWN_MARKERS = ((">", "triangle-right"), ("<", "triangle-left"), ("X", X))
STYLE: Any = [
    "default",  # and nothing of the user's matplotlibrc
    {
        "figure.figsize": (7.0, 4.3),
        "figure.dpi": 120,
        "savefig.dpi": 120,
        "figure.constrained_layout.use": True,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "svg.hashsalt": "lottery",  # the same bytes each time
        "legend.frameon": False,
        "text.parse_math": False,
    },
]


def styles(variants: Iterable[str]) -> dict[str, Style]:
    """The style of each variant, in the order of legends."""
    looks = zip(cycle(OWN_COLOURS), cycle(OWN_MARKERS))
    own = (Style(colour, *markers, "") for colour, markers in looks)
    return {
        variant: STYLES.get(variant) or next(own)._replace(label=printable(variant))
        for variant in sorted(set(variants), key=in_order)
    }


def printable(name: str, most: int = 60) -> str:
    """The name in one line of at most so many characters, each of which Matplotlib's own font has.

    Another is written as its code, ``\\u4e2d``: fonts of the machine would make other bytes.
    """
    known = get_font(findfont(FontProperties(family=["DejaVu Sans"]))).get_charmap()
    name = " ".join(name.split())
    written = "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in name)
    return written if len(written) <= most else f"{written[: most - 11]}…{written[-10:]}"
