"""Self-contained HTML pages; every value is escaped, because reviews and generated texts are untrusted."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nextquill_core.analysis.figures import DPI

SCREEN_DPI = 108  # a little more than the 96 of a CSS inch
# Forbidden in HTML even when escaped (control characters) or in UTF-8 (halves of surrogate pairs).
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def page(template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Return a template of this package filled with values.

    Args:
        template: File name of the template.
        filters: Filters beside `base64` and `pixels` (of PNG bytes) and `visible` (of a token).
        values: Values by name; a missing one is an error.
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


def script(*names: str) -> dict[str, Markup]:
    """Return scripts of this package as one, and its hash for the content policy: values `script` and `script_hash`.

    Args:
        names: File names of the scripts.
    """
    folder = resources.files("nextquill_core.analysis")
    text = "\n".join(folder.joinpath(name).read_text(encoding="utf-8").strip() for name in names)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return {"script": Markup(text), "script_hash": Markup(f"sha256-{digest}")}  # noqa: S704 - files of this package


def printable(text: str) -> str:
    """Return the text with a replacement character for every character that HTML forbids."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def pixels(png: bytes) -> tuple[int, int]:
    """Return width and height in CSS pixels at which a figure's type has its designed size, from the PNG's header."""
    width, height = struct.unpack(">2I", png[16:24])
    return round(width * SCREEN_DPI / DPI), round(height * SCREEN_DPI / DPI)


def visible(token: str) -> str:
    """Return a token with its white space visible: most tokens begin with a blank."""
    return token.translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥", ord("\r"): "␍"})
