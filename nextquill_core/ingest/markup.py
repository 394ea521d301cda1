"""Clean the texts of a scan of HTML, as `ingest.clean.html` says.

What counts as HTML is narrow, because these are texts of people: "a < b", "I <3 this" and "rock&roll" are no HTML.

- A reference is complete: `&quot;`, `&#34;` or `&#x22;`, with its semicolon. `html.unescape` alone would also read
  `&amp` in "guitar&amplifier" and `&para` in "this&parallel".
- A tag has the name of an element of HTML, and each of its attributes has a value or is one that needs none. So
  `<b class="x">` is a tag, but `<y and y>`, `<b and c>`, `<grin>` and `<https://example.org>` are not.

All of it is repeated until nothing changes, so a text that was escaped twice becomes plain, and cleaning a clean text
changes nothing. Each round makes a text shorter, so it ends.

HTML parsers are of no use here: they take `<y and y>` for a tag, and `html.parser` reads comments and scripts in
different ways in different releases of Python, so that the same files would give different artifacts. The meaning of
references is that of `html.unescape`. The rest is regular expressions of Polars, which run in linear time.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import partial
from html.entities import html5
from typing import Literal

import polars as pl

from nextquill_core.ingest.batches import Part
from nextquill_core.ingest.canonical import review_facts

Cleaning = Literal["unescape", "strip"]
CLEANED: Mapping[Part, tuple[str, ...]] = {"reviews": ("text", "title"), "items": ("title", "description")}
"""The columns with texts of people, which are cleaned."""
SPACE = r"\s\x1c-\x1f"
"""Python's white space, for a class of characters: that of Unicode and four control characters, which `\\s` lacks."""
# The longest name of HTML has 31 letters. Numbers are limited to what can be a character, with a few leading zeros.
_REFERENCE = r"&(?:#[0-9]{1,10}|#[xX][0-9a-fA-F]{1,8}|[A-Za-z][A-Za-z0-9]{1,30});"
# A text that this does not find has nothing to clean. It is the only expression that most texts meet.
_MARKS: Mapping[Cleaning, str] = {
    "unescape": "&[#A-Za-z][A-Za-z0-9]*;",
    "strip": "&[#A-Za-z][A-Za-z0-9]*;|<[A-Za-z/!]",
}
JOINING = (
    "a|abbr|acronym|b|basefont|bdi|bdo|big|blink|cite|code|data|del|dfn|em|font|i|ins|kbd|mark|nobr|o:p|q|rb|rp|rt|"
    "rtc|ruby|s|samp|small|span|strike|strong|sub|sup|time|tt|u|var|wbr"
)
"""Elements inside a word or a sentence; their tags leave nothing."""
SEPARATING = (
    "address|applet|area|article|aside|audio|base|bgsound|blockquote|body|br|button|canvas|caption|center|col|"
    "colgroup|command|datalist|dd|details|dialog|dir|div|dl|dt|embed|fieldset|figcaption|figure|footer|form|frame|"
    "frameset|h1|h2|h3|h4|h5|h6|head|header|hgroup|hr|html|iframe|img|input|isindex|keygen|label|legend|li|link|"
    "listing|main|map|marquee|math|menu|menuitem|meta|meter|nav|noembed|noframes|noscript|object|ol|optgroup|option|"
    "output|p|param|picture|plaintext|pre|progress|script|search|section|select|slot|source|style|summary|svg|table|"
    "tbody|td|template|textarea|tfoot|th|thead|title|tr|track|ul|video|xmp"
)
"""All other elements of HTML, today's and earlier ones; each of their tags leaves a blank."""
VALUELESS = (
    "allowfullscreen|async|autofocus|autoplay|checked|compact|controls|declare|default|defer|disabled|download|hidden|"
    "inert|ismap|itemscope|loop|multiple|muted|nohref|nomodule|noresize|noshade|novalidate|nowrap|open|playsinline|"
    "readonly|required|reversed|selected"
)
"""Attributes that need no value."""
_VALUE = rf"""(?:"[^"]*"|'[^']*'|[^{SPACE}<>]*)"""
_ATTRIBUTE = rf"(?:(?i-u:{VALUELESS})|[A-Za-z_:@][A-Za-z0-9_:.@-]*[{SPACE}]*=[{SPACE}]*{_VALUE})"
_TAG_END = rf"(?:[{SPACE}/](?:[{SPACE}/]*{_ATTRIBUTE})*[{SPACE}/]*)?>"
# Applied one after the other, because one expression for all could scan the rest of a text again after each match.
_REMOVED = (
    (r"(?s)<!--.*?-->", ""),
    (rf"(?s)<(?i-u:script)(?:[{SPACE}/][^<>]*)?>.*?</(?i-u:script)[{SPACE}]*>", " "),
    (rf"(?s)<(?i-u:style)(?:[{SPACE}/][^<>]*)?>.*?</(?i-u:style)[{SPACE}]*>", " "),
    (r"<!(?i-u:doctype)[^<>]*>", " "),
    (rf"</?(?i-u:{SEPARATING}){_TAG_END}", " "),
    (rf"</?(?i-u:{JOINING}){_TAG_END}", ""),
)


def clean_html(texts: pl.Series, how: Cleaning) -> pl.Series:
    """Return the texts without HTML; a text that has none stays as it is, to the last blank.

    Args:
        texts: The texts; nulls stay.
        how: Under `strip`, a text that changes is stripped, and its runs of blanks become one blank.
    """
    mark = _MARKS[how]
    marked = texts.str.contains(mark).fill_null(False)
    if not marked.any():
        return texts
    original = texts.filter(marked)
    places, rest = pl.int_range(original.len(), eager=True), original
    settled: list[pl.DataFrame] = []
    while rest.len():
        after = unescape(rest if how == "unescape" else without_tags(rest))
        again = (after != rest) & after.str.contains(mark)
        settled.append(pl.DataFrame({"place": places, "text": after}).filter(~again))
        places, rest = places.filter(again), after.filter(again)
    cleaned = pl.concat(settled).sort("place")["text"]
    if how == "strip":
        tidy = cleaned.str.replace_all("  +", " ").str.strip_chars()
        cleaned = tidy.zip_with(cleaned != original, cleaned)
    return texts.clone().scatter(marked.arg_true(), cleaned)


def unescape(texts: pl.Series) -> pl.Series:
    """Return the texts with each reference to a character replaced by the character, once."""
    found = texts.str.extract_all(_REFERENCE).explode().drop_nulls().unique()
    known = {one: html.unescape(one) for one in found if one[1] == "#" or one[1:] in html5}
    # No reference is a part of another one, so the order in which they are replaced does not matter.
    return texts.str.replace_many(known) if known else texts


def without_tags(texts: pl.Series) -> pl.Series:
    """Return the texts without tags, comments, scripts and styles, each of which is looked for once."""
    for expression, left in _REMOVED:
        texts = texts.str.replace_all(expression, left)
    return texts


def cleaned_table(table: pl.LazyFrame, part: Part, how: Cleaning) -> pl.LazyFrame:
    """Return a table of a scan with cleaned texts, and what is derived from them.

    A column that is not asked for is not computed, and no row that is filtered out by its other columns is cleaned.

    Args:
        table: The table as it was scanned.
        part: Reviews or items.
        how: What happens to HTML.

    Returns:
        The table with a further column for each text, named by `changed`: whether cleaning changed it (null if null).
    """
    names = CLEANED[part]
    clean = partial(clean_html, how=how)
    raw = [pl.col(name).alias(f"raw_{name}") for name in names]
    cleaned = [
        pl.col(f"raw_{name}").map_batches(clean, return_dtype=pl.String, is_elementwise=True).alias(name)
        for name in names
    ]
    differs = [(pl.col(name) != pl.col(f"raw_{name}")).alias(changed(name)) for name in names]
    facts = review_facts() if part == "reviews" else ()
    return table.with_columns(raw).with_columns(cleaned).with_columns(*differs, *facts)


def changed(name: str) -> str:
    """Return the name of the column that says whether cleaning changed a text."""
    return f"{name}_changed"
