"""HTML in texts: cases by hand, a slow reference, and the ingest stage with it, from every source."""

from __future__ import annotations

import html
import json
import sys
from functools import cache
from html.entities import html5
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nextquill_core.ingest.account import account_rows, cleaning_summary
from nextquill_core.ingest.markup import JOINING, SEPARATING, VALUELESS, Cleaning, clean_html
from nextquill_core.ingest.sequences import clean_text
from tests.nextquill_core.ingest.world import AS_TABLE, Row, World, item, plain_category, review, without_examples

HOWS: tuple[Cleaning, ...] = get_args(Cleaning)
CASES = [  # as read, unescaped, stripped
    ("plain text, 100 %", "plain text, 100 %", "plain text, 100 %"),
    ("  kept \n as  it is ", "  kept \n as  it is ", "  kept \n as  it is "),
    ("&quot;Help&quot; &amp; &#39;Let It Be&#39;", "\"Help\" & 'Let It Be'", "\"Help\" & 'Let It Be'"),
    ("&#34;x&#x22; caf&eacute; &#x1F600;", '"x" café 😀', '"x" café 😀'),
    ("&amp;quot;twice&amp;amp;quot;", '"twice"', '"twice"'),
    ("&#8217; &#x92; &#146; &#0;", "’ ’ ’ \ufffd", "’ ’ ’ \ufffd"),
    ("R&B, AT&T, rock&roll; R&B; guitar&amplifier", *["R&B, AT&T, rock&roll; R&B; guitar&amplifier"] * 2),
    ("?a=1&copy=2 &notit; &unknown; &#x; &#99999999999;", *["?a=1&copy=2 &notit; &unknown; &#x; &#99999999999;"] * 2),
    ("I <3 this", "I <3 this", "I <3 this"),
    ("I &lt;3 this", "I <3 this", "I <3 this"),
    ("a < b", "a < b", "a < b"),
    ("x<y and y>z", "x<y and y>z", "x<y and y>z"),
    ("a<b and b>c", "a<b and b>c", "a<b and b>c"),
    ("<-- great", "<-- great", "<-- great"),
    ("<!-- not closed, 3<b", "<!-- not closed, 3<b", "<!-- not closed, 3<b"),
    ("<grin> <me@example.org> <https://example.org>", *["<grin> <me@example.org> <https://example.org>"] * 2),
    (">_< <_< <>", ">_< <_< <>", ">_< <_< <>"),
    ("cut off <a href=", "cut off <a href=", "cut off <a href="),
    ("good<br />bad<br/>ugly<BR>end", "good<br />bad<br/>ugly<BR>end", "good bad ugly end"),
    ("one <br /><br /> two<br>\nthree", "one <br /><br /> two<br>\nthree", "one two \nthree"),
    ("un<b>believ</b>able <i>so</i>", "un<b>believ</b>able <i>so</i>", "unbelievable so"),
    (
        'see <a class="a-link" data-hook="x" href="/dp/B00?a=1&amp;b=2">the first one</a>!',
        'see <a class="a-link" data-hook="x" href="/dp/B00?a=1&b=2">the first one</a>!',
        "see the first one!",
    ),
    ('<a href=http://x.org/?a=1 title="a>b">text</a>', '<a href=http://x.org/?a=1 title="a>b">text</a>', "text"),
    ("<ul><li>one</li><li checked>two</li></ul>", "<ul><li>one</li><li checked>two</li></ul>", "one two"),
    ("a<script type='x'>if (1<2) {}</script>b<STYLE>p {}</style >c", None, "a b c"),
    ("a<script>alert(1)", None, "a alert(1)"),
    ("so<!-- a <b> & -->me<!doctype html> page", None, "some page"),
    ("&lt;b&gt;bold&lt;/b&gt; &amp;lt;br&amp;gt; end", "<b>bold</b> <br> end", "bold end"),
    ("<<b>b>x<</b>/b>", "<<b>b>x<</b>/b>", "x"),
    ("&<b></b>amp;", "&<b></b>amp;", "&"),
    ('<a title="&quot;>q">x</a>', '<a title="">q">x</a>', "x"),
    ("<br>", "<br>", ""),
    ("<ſcript>x</ſcript> <\u212abd>", *["<ſcript>x</ſcript> <\u212abd>"] * 2),
    ("<o:p></o:p>Word", "<o:p></o:p>Word", "Word"),
    (None, None, None),
]


@pytest.mark.parametrize(("raw", "unescaped", "stripped"), CASES)
def test_cases_by_hand(raw: str | None, unescaped: str | None, stripped: str | None) -> None:
    texts = pl.Series([raw], dtype=pl.String)
    assert clean_html(texts, "unescape").to_list() == [raw if unescaped is None else unescaped]
    assert clean_html(texts, "strip").to_list() == [stripped]
    assert texts.to_list() == [raw]


def test_a_reference_means_what_it_means_in_python() -> None:
    references = [f"&{name}" for name in html5 if name.endswith(";")]
    references += [f"&#{number};" for number in range(0x500)] + [f"&#x{number:X};" for number in range(0xD700, 0x11000)]
    references += ["&#x10FFFF;", "&#x110000;", "&#9999999999;"]
    texts = pl.Series([f"a{reference}b" for reference in references])
    expected = [html.unescape(text) for text in texts]
    found = clean_html(texts, "unescape").to_list()
    assert [one for one in zip(references, found, expected, strict=True) if one[1] != one[2]] == []


def reference(text: str, how: Cleaning) -> str:
    """Clean in slow, plain Python, one character at a time."""
    before, cleaned = None, text
    while cleaned != before:
        before = cleaned
        if how == "strip":
            cleaned = cut(cleaned, "<!--", "-->")
            for name in ("script", "style"):
                cleaned = cut_element(cleaned, name)
            cleaned = cut_doctype(cleaned)
            cleaned = cut_tags(cleaned, set(SEPARATING.split("|")), " ")
            cleaned = cut_tags(cleaned, set(JOINING.split("|")), "")
        cleaned = with_characters(cleaned)
    if how == "strip" and cleaned != text:
        while "  " in cleaned:
            cleaned = cleaned.replace("  ", " ")
        cleaned = cleaned.strip(RUST_SPACE)
    return cleaned


SPACE = "".join(character for character in map(chr, range(sys.maxunicode + 1)) if character.isspace())
RUST_SPACE = "".join(set(SPACE) - set("\x1c\x1d\x1e\x1f"))
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def cut(text: str, opening: str, closing: str) -> str:
    kept, at = "", 0
    while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start + len(opening))) >= 0:
        kept, at = kept + text[at:start], end + len(closing)
    return kept + text[at:]


def lower(text: str) -> str:
    return "".join(character.lower() if character.isascii() else character for character in text)


def cut_element(text: str, name: str) -> str:
    kept, at = "", 0
    while at < len(text):
        end = element_end(text, at, name)
        kept, at = (kept + text[at], at + 1) if end is None else (kept + " ", end)
    return kept


def element_end(text: str, at: int, name: str) -> int | None:
    start = at + 1 + len(name)
    if lower(text[at:start]) != f"<{name}":
        return None
    if text[start : start + 1] != ">":
        if text[start : start + 1] not in tuple(SPACE + "/"):
            return None
        start = min((place for place in (text.find("<", start), text.find(">", start)) if place >= 0), default=-1)
        if start < 0 or text[start] == "<":
            return None
    for place in range(start + 1, len(text)):
        if lower(text[place : place + 2 + len(name)]) == f"</{name}":
            end = skip(text, place + 2 + len(name), SPACE)
            if text[end : end + 1] == ">":
                return end + 1
    return None


def cut_doctype(text: str) -> str:
    kept, at = "", 0
    while at < len(text):
        end = text.find(">", at)
        if lower(text[at : at + 9]) == "<!doctype" and end >= 0 and "<" not in text[at + 1 : end]:
            kept, at = kept + " ", end + 1
        else:
            kept, at = kept + text[at], at + 1
    return kept


def skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def cut_tags(text: str, names: set[str], left: str) -> str:
    kept, at = "", 0
    while at < len(text):
        end = tag_end(text, at, names) if text[at] == "<" else None
        kept, at = (kept + text[at], at + 1) if end is None else (kept + left, end)
    return kept


def tag_end(text: str, at: int, names: set[str]) -> int | None:
    """Return where the tag that starts here ends, or None if there is none."""
    at += 2 if text[at : at + 2] == "</" else 1
    after = skip(text, at, LETTERS + LETTERS.upper() + "123456:")
    if lower(text[at:after]) not in names:
        return None
    if text[after : after + 1] == ">":
        return after + 1
    if text[after : after + 1] not in tuple(SPACE + "/"):
        return None

    @cache
    def end_of_attributes(place: int) -> int | None:
        place = skip(text, place, SPACE + "/")
        for following in attribute_ends(text, place):
            if following > place and (end := end_of_attributes(following)) is not None:
                return end
        return place + 1 if text[place : place + 1] == ">" else None

    return end_of_attributes(after)


def attribute_ends(text: str, at: int) -> list[int]:
    """Return where an attribute that starts here may end, the preferred end first."""
    ends = [at + len(name) for name in VALUELESS.split("|") if lower(text[at : at + len(name)]) == name]
    first = LETTERS + LETTERS.upper() + "_:@"
    if text[at : at + 1] not in tuple(first):
        return ends
    value = skip(text, skip(text, at, first + "0123456789.-"), SPACE)
    if text[value : value + 1] != "=":
        return ends
    value = skip(text, value + 1, SPACE)
    quote = text[value : value + 1]
    if quote in ('"', "'") and (end := text.find(quote, value + 1)) >= 0:
        ends.append(end + 1)
    end = value
    while end < len(text) and text[end] not in SPACE + "<>":
        end += 1
    return ends + list(range(end, value - 1, -1))


def with_characters(text: str) -> str:
    kept, at = "", 0
    while at < len(text):
        end = text.find(";", at)
        body = text[at + 1 : end]
        if text[at] == "&" and end > 0 and is_reference(body):
            kept, at = kept + html.unescape(f"&{body};"), end + 1
        else:
            kept, at = kept + text[at], at + 1
    return kept


def is_reference(body: str) -> bool:
    if body[:2] in ("#x", "#X"):
        return 1 <= len(body) - 2 <= 8 and all(character in "0123456789abcdefABCDEF" for character in body[2:])
    if body[:1] == "#":
        return 1 <= len(body) - 1 <= 10 and all(character in "0123456789" for character in body[1:])
    return f"{body};" in html5


PIECES = [
    *"<>/=\"' \n;&b3-",
    "</", "/>", "br", "<br />", "<b>", "</b>", "<i ", "a href=", "checked", "class='x'", "script", "<script>",
    "</script>", "<style x>", "</STYLE >", "<!--", "-->", "<!doctype", "amp;", "&amp;", "&amp;amp;", "lt;", "&lt;",
    "&gt;", "&quot;", "&#39;", "&#x3c;", "#38;", "&nbsp;", "&NewLine;", "&#1;", "&nvlt;", "y and y", "title=\"",
    "\x1c", "\x85", "\u2003", "é", "ſ", "\u212a", "kbd", "<o:p>", "  ", "good",
]  # fmt: skip
MARKUP = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@given(st.lists(st.none() | MARKUP | st.text(max_size=20), max_size=4), st.sampled_from(HOWS))
@example(["<b \x1c>", "<\x1cb>", '<a x="<b>', "<a x='\">", "<b x==y/ z>", "<br checked=checked/>"], "strip")
def test_the_fast_way_is_the_slow_one(texts: list[str | None], how: Cleaning) -> None:
    found = clean_html(pl.Series(texts, dtype=pl.String), how).to_list()
    assert found == [None if text is None else reference(text, how) for text in texts]


def white(texts: pl.Series) -> pl.Series:
    return texts.to_frame("text").select(clean_text(pl.col("text"))).to_series()


@given(st.lists(MARKUP, min_size=1, max_size=4), st.sampled_from(HOWS))
def test_what_is_clean_stays_as_it_is(texts: list[str], how: Cleaning) -> None:
    once = clean_html(pl.Series(texts, dtype=pl.String), how)
    assert clean_html(once, how).to_list() == once.to_list()
    assert clean_html(once, "unescape").to_list() == once.to_list()
    assert clean_html(white(once), how).to_list() == white(once).to_list()


@given(st.text(st.characters(codec="utf-8", exclude_characters="&<")), st.sampled_from(HOWS))
def test_a_text_without_marks_is_not_touched(text: str, how: Cleaning) -> None:
    assert clean_html(pl.Series([text]), how).to_list() == [text]


@given(MARKUP, st.sampled_from(HOWS))
def test_a_text_never_grows(text: str, how: Cleaning) -> None:
    (found,) = clean_html(pl.Series([text]), how)
    assert len(found) <= len(text)


def test_many_layers_end() -> None:
    layers = 300
    texts = pl.Series(["<" * layers + "b>" * layers, "&" + "amp;" * layers + "lt;", "<!--" * layers, "<a x='" * layers])
    assert clean_html(texts, "strip").to_list() == ["", "<", "<!--" * layers, "<a x='" * layers]


TEXTS = [
    "<p>text</p> {u} of {i}", "text &lt;b&gt;{u}&lt;/b&gt; &amp;amp; {i}", "te<!-- x -->xt<br />{u} < {i}",
    "text {u} of {i}",
]  # fmt: skip


def marked_category() -> tuple[list[Row], list[Row]]:
    """The plain category with HTML in all texts, and with reviews that are too short, or repeat others, without it."""
    reviews, items = plain_category()
    for number, row in enumerate(reviews):
        u, i = row["user_id"][1:], row["parent_asin"][1:]
        row |= {"text": TEXTS[number % 4].format(u=u, i=i), "title": ["t", "<i>t</i>", "&quot;t&quot;"][number % 3]}
    for number, row in enumerate(items):
        row |= {"title": f"Item<br>{number} &amp; co", "description": [f"<ul><li>d</li></ul> &#62; {number}"]}
    others = [
        review("u0", "i1", 400, "<br /><br /><br />ab"),
        review("u0", "i1", 401, "&quot;&quot;&quot;&quot;"),
        review("u0", "i1", 402, "<p></p>"),
        review("u0", "i1", 403, "long enough", title="<b></b>"),
        reviews[5] | {"text": reviews[5]["text"].replace("text", "t&#101;xt")},
        review("u1", "i9", 404, "long enough"),
    ]
    return [*reviews, *others], [*items, item("i9", description=["<a href='http://example.org/a/long/address'>d</a>"])]


def cleaned_rows(rows: list[Row], how: Cleaning) -> list[Row]:
    made = []
    for row in rows:
        texts = {name: reference(row[name], how) for name in ("text", "title") if name in row}
        if "description" in row:
            texts["description"] = [reference(" ".join(row["description"]), how)]
        made.append(row | texts)
    return made


LIMITS = {"min_text_chars": 5, "max_description_chars": 30}


@pytest.mark.parametrize("how", HOWS)
def test_the_stage_decides_as_if_the_texts_had_been_clean(tmp_path: Path, how: Cleaning) -> None:
    reviews, items = marked_category()
    before, after = World(tmp_path / "before"), World(tmp_path / "after")
    expected = before.ingest(cleaned_rows(reviews, how), cleaned_rows(items, how), **LIMITS)
    found = after.ingest(reviews, items, clean={"html": how}, **LIMITS)
    for name in ("sequences", "items", "examples"):
        assert after.table(name) == before.table(name)
    for part in ("reviews", "items"):
        cleaned = found[part].pop("cleaned")
        assert found[part] == expected[part]
        rows = {"reviews": reviews, "items": items}[part]
        for name, count in cleaned.items():
            pairs = zip(rows, cleaned_rows(rows, how), strict=True)
            assert count == sum(row[name] != clean[name] for row, clean in pairs) > 0


def test_thresholds_and_repeats_see_cleaned_texts_and_the_quarantine_the_raw_ones(tmp_path: Path) -> None:
    reviews, items = marked_category()
    stats = World(tmp_path / "keep").ingest(reviews, items, **LIMITS)
    assert stats["reviews"]["dropped"] == {"item_dropped": 1, "repeat_item": 5}
    assert "cleaned" not in stats["reviews"]
    world = World(tmp_path / "strip")
    stats = world.ingest(reviews, items, clean={"html": "strip"}, **LIMITS)
    assert stats["reviews"]["dropped"] == {"duplicate_row": 1, "no_text": 1, "no_title": 1, "short_text": 2}
    assert stats["reviews"]["read"] == stats["reviews"]["kept"] + sum(stats["reviews"]["dropped"].values())
    (listed,) = world.table("quarantine")
    assert json.loads(listed["raw"])["text"] == reviews[28]["text"] == "t&#101;xt &lt;b&gt;0&lt;/b&gt; &amp;amp; 5"
    assert stats["per_category"]["C"]["reviews"]["examples"]["short_text"] == (
        "r.jsonl:25: item 'i1', the text has 2 characters; lower ingest.protocol.min_text_chars (now 5)"
    )
    texts = [entry["text"] for entry in world.table("sequences")[0]["reviews"]]
    assert texts == ["text 0 of 0", "text 0 & 1", "text 0 < 2", "text 0 of 3", "text 0 of 4", "text 0 & 5"]
    assert world.table("items")[1] | {"category": ""} == {
        "item_id": "i1", "category": "", "title": "Item 1 & co", "description": "d > 1",
    }  # fmt: skip


@pytest.mark.parametrize("how", ["keep", *HOWS])
def test_parts_and_files_change_nothing(tmp_path: Path, how: str) -> None:
    reviews, items = marked_category()
    whole, parts = World(tmp_path / "whole"), World(tmp_path / "parts")
    expected = whole.ingest(reviews, items, clean={"html": how}, **LIMITS)
    parts.write("r-1.jsonl", reviews[:11])
    parts.write("r-2.jsonl.gz", reviews[11:])
    config = parts.config(parts.folder / "r-*", parts.write("i.jsonl", items), clean={"html": how}, **LIMITS)
    found = parts.run(config, batch_bytes=300)
    assert len(list((parts.out / "scan/C/reviews").iterdir())) > 5
    assert without_examples(found) == without_examples(expected)
    tables = [name for name in whole.shards() if "quarantine" not in name]
    assert [parts.shards()[name] for name in tables] == [whole.shards()[name] for name in tables]


def test_html_is_kept_unless_something_else_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextquill_core.ingest.markup.clean_html", None)
    reviews, items = marked_category()
    default, keep = World(tmp_path / "default"), World(tmp_path / "keep")
    assert default.ingest(reviews, items, **LIMITS) == keep.ingest(reviews, items, clean={"html": "keep"}, **LIMITS)
    assert default.shards() == keep.shards()
    assert default.table("sequences")[0]["reviews"][0]["text"] == "<p>text</p> 0 of 0"


def test_the_account_says_in_how_many_rows_a_text_changed(tmp_path: Path) -> None:
    reviews, items = plain_category()
    reviews[3] |= {"text": "<b>text</b> 0 of 3", "title": "&#116;"}
    reviews[4]["text"] += "<br>"
    items[0] |= {"title": "Item &quot;i0&quot;", "description": None}
    stats = World(tmp_path).ingest(reviews, items, clean={"html": "strip"})
    assert stats["reviews"]["cleaned"] == {"text": 2, "title": 1}
    assert stats["items"]["cleaned"] == {"title": 1, "description": 0}
    shown = {(row["what"], row["outcome"]): row["rows"] for row in account_rows(stats) if "HTML" in row["outcome"]}
    assert shown == {
        ("reviews", "HTML in the text"): 2, ("reviews", "HTML in the title"): 1,
        ("items", "HTML in the title"): 1, ("items", "HTML in the description"): 0,
    }  # fmt: skip
    assert cleaning_summary(stats) == [
        "C: cleaning HTML changed 2 of 24 reviews in the text, 1 of 24 reviews in the title, 1 of 6 items in the "
        "title, 0 of 6 items in the description"
    ]


def test_rows_that_cannot_be_read_keep_their_raw_text(tmp_path: Path) -> None:
    reviews, items = plain_category()
    bad, odd = review(text="<b>&amp;</b>", rating="five"), review(text="<b>odd</b>", rating=7.0, time=500)
    world = World(tmp_path)
    world.ingest([*reviews, bad, odd], items, clean={"html": "strip"}, suspect_rows="list")
    listed = [json.loads(row["raw"])["text"] for row in world.table("quarantine")]
    assert [text for text in listed if "<" in text] == ["<b>&amp;</b>", "<b>odd</b>"]


OLD = {"user_id": "reviewerID", "parent_asin": "asin", "rating": "overall", "title": "summary", "text": "reviewText"}


@pytest.mark.parametrize("source", ["amazon-2014", "amazon-2018", "table", "lamp"])
def test_texts_of_every_source_are_cleaned(tmp_path: Path, source: str) -> None:
    world, options = World(tmp_path), dict[str, Any]()
    texts = [f"<p>text&nbsp;{number}</p>" for number in range(3)]
    if source == "lamp":
        told = (
            'Generate the review text written by a reviewer who has a given an overall rating of "5.0" for a product '
            'with description "<i>d0</i>". The summary of the review text is "<b>s</b>".'
        )
        profile = [
            {"overall": "4.0", "summary": "<b>s</b>", "reviewText": text, "description": f"<i>d{number}</i>"}
            for number, text in enumerate(texts[1:], 1)
        ]
        row = {"reviewerId": "u", "input": told, "output": texts[0], "profile": profile}
        reviews = items = world.write("r.json", json.dumps([row]).encode())
        options = {"task": "longlamp-product-review"}
    else:
        rows = [review("u", f"i{number}", number + 1, text, title="<b>s</b>") for number, text in enumerate(texts)]
        described = [item(f"i{number}", description=[f"<i>d{number}</i>"]) for number in range(3)]
        if source == "table":
            options = AS_TABLE
        else:
            rows = [{OLD.get(key, key): value for key, value in row.items()} for row in rows]
            rows = [row | {"unixReviewTime": row.pop("timestamp")} for row in rows]
            several = source == "amazon-2018"
            described = [
                {"asin": row["parent_asin"], "title": row["title"], "category": ["c"], "categories": [["c"]]}
                | {"description": row["description"] if several else row["description"][0]}
                for row in described
            ]
        reviews, items = world.write("r.jsonl", rows), world.write("i.jsonl", described)
    stats = world.run(world.config(reviews, items, source=source, options=options, clean={"html": "strip"}))
    (user,) = world.table("sequences")
    assert sorted(entry["text"] for entry in user["reviews"]) == ["text 0", "text 1", "text 2"]
    assert {entry["title"] for entry in user["reviews"]} == {"s"}
    assert sorted(row["description"] for row in world.table("items")) == ["d0", "d1", "d2"]
    assert stats["reviews"]["cleaned"] == {"text": 3, "title": 3}
    assert stats["items"]["cleaned"]["description"] == 3
