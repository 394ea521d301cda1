"""Pages of HTML that need nothing but themselves, full of texts that strangers wrote: all of it is escaped."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nextquill_core.analysis.figures import DPI

SCREEN_DPI = 108  # of a CSS inch 96, and a little larger
# What HTML forbids even escaped (control characters) and what UTF-8 cannot hold (halves of surrogate pairs).
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def page(template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """A template of this package, filled in; UTF-8 when written to a file.

    Args:
        template: Its file name.
        filters: Beside `base64` and `pixels` (of PNG bytes) and `visible` (of a token).
        values: What it is filled with; one that is missing is an error.
    """
    environment = Environment(
        loader=PackageLoader("nextquill_core.analysis", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode("ascii"),
        "pixels": pixels,
        "visible": visible,
        **(filters or {}),
    }
    return printable(environment.get_template(template).render(**values))


def printable(text: str) -> str:
    """The text with a replacement character for what no page can hold."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def pixels(png: bytes) -> tuple[int, int]:
    """Width and height at which a figure's type has the size it was drawn for; from the PNG's header."""
    width, height = struct.unpack(">2I", png[16:24])
    return round(width * SCREEN_DPI / DPI), round(height * SCREEN_DPI / DPI)


def visible(token: str) -> str:
    """A token with its white space shown: a leading blank is part of most tokens."""
    return token.translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥", ord("\r"): "␍"})
