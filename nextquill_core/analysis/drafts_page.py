"""The page of the server: drafts of several methods for one person and one item, side by side.

It is one file. What it shows comes from the server that sent it, and is set as text and never as HTML.
"""

from __future__ import annotations

from typing import Any

from nextquill_core.analysis.html import page, script
from nextquill_core.analysis.token_colours import scale
from nextquill_core.generation.decoding import DECODINGS
from nextquill_core.writing.prompter import SANE


def drafts_html() -> str:
    """Return the page."""
    values: dict[str, Any] = {"decodings": [SANE, *DECODINGS], "scale": scale()}
    return page("drafts.html.j2", **(values | script("token_keys.js", "drafts.js")))
