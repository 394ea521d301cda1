"""Figures of matplotlib as SVG inside an HTML page: text stays text, and colours follow the page's scheme.

matplotlib knows no CSS variables, so a figure is drawn in the colours of `figures` and each of them is replaced by a
variable afterwards. The page sets the variables (`report_style.html.j2`), for screens in light and dark and for paper.
"""

from __future__ import annotations

import html
import io
import re
import threading

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from nextquill_core.analysis import figures

NAMES = ("ink", "quiet", "rule", "pale", "blue", "orange", "green", "vermilion", "purple", "sky", "yellow")
VARIABLES = {"#ffffff": "card"} | {getattr(figures, name.upper()).lower(): name for name in NAMES}
"""The page's CSS variable for each colour of a figure."""
SCALE = 1.6
"""CSS pixels of a point, so that labels of 8 to 9 points have the size of the text around them."""
_DRAWING = threading.Lock()
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_TAG = re.compile(r"<[^>]*>")
_LONG = re.compile(r"(\d\.\d{2})\d+")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Return a figure as an `svg` element for a page; the same figure and name give the same text.

    Args:
        figure: The figure. Its labels become text of the page, escaped.
        name: Differs for each figure of a page, so that the ids inside differ too.
        alt: What the figure shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with _DRAWING, mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # the settings are global
        # Not `savefig`, which would draw it twice.
        FigureCanvasSVG(figure).print_svg(buffer, metadata=_METADATA)  # type: ignore[no-untyped-call]
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<style.*?</style>", "", drawn, count=1, flags=re.DOTALL)  # it would hold for the whole page
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = _TAG.sub(lambda found: _plain_tag(found[0]), drawn)
    drawn = re.sub(r">\s+<", "><", drawn)
    width, height = (72 * inches for inches in figure.get_size_inches())
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width * SCALE:.0f}"'
    opening = f'<svg role="img" aria-label="{html.escape(alt)}" {size}>'
    inside = drawn[drawn.index(">") + 1 :].strip()
    return Markup(opening + inside)  # noqa: S704 - labels and alt are escaped


def _plain_tag(tag: str) -> str:
    """Return a tag of matplotlib's SVG with short numbers, the page's colours and fonts, and only ids that are used."""
    tag = _LONG.sub(r"\1", " ".join(tag.split()))
    tag = re.sub(r"font(-family)?: [^;\"]*'[^;\"]*(; )?", "", tag)
    tag = tag.replace("xlink:href", "href")
    if tag.startswith("<g id="):
        tag = re.sub(r' id="[^"]*"', "", tag)
    return _COLOUR.sub(lambda found: f"var(--{VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0], tag)
