"""How texts are cleaned, and how the parts of a description become one text."""

from __future__ import annotations

import polars as pl

# Python's white space is that of Unicode and four control characters more, which `\s` lacks here. Runs of one plain
# blank stay as they are, so that the expression matches only where there is work to do.
_SPACE = r"\s\x1c-\x1f"
_RUN = rf"[{_SPACE}]{{2,}}|[{_SPACE}--[ ]]"
_HEADING = "Product Description"


def cleaned(text: pl.Expr) -> pl.Expr:
    r"""Strip, and turn runs of white space into one blank: Python's `re.sub(r"\s+", " ", text.strip())`."""
    return text.str.replace_all(_RUN, " ").str.strip_chars(" ")


def joined(description: pl.Expr) -> pl.Expr:
    """An item's description (list of str) as one text: joined by blanks, without a leading "Product Description".

    Nulls in the list are left out.
    """
    parts = description.fill_null([])
    headed = parts.list.first().eq(_HEADING).fill_null(False)
    return pl.when(headed).then(parts.list.slice(1)).otherwise(parts).list.join(" ").alias("description")
