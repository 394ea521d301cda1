"""One person explained: what was known, what was written, and what each method wrote, as a page or in a terminal.

The report shows three users, and a picker for all of them. Their data are deflated JSON in blocks of users; the
browser opens a block when one of its users is chosen. A script builds the page from text, never from HTML.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.text import Text

from nextquill_core.analysis import token_colours
from nextquill_core.analysis.html import page, printable, script
from nextquill_core.analysis.token_colours import Unit, scale, terminal_safe, terminal_text
from nextquill_core.schemas import Example, Review
from nextquill_core.writing.draft import WORD

# Words without content, by which any two English texts match.
STOP_WORDS = frozenset(
    WORD.findall(
        "a about after again all also am an and any are as at be because been before being but by can could did "
        "do does don't down even few for from get got had has have having he her here hers him his how i i'm i've "
        "if in into is it it's its just like made make many may me more most much my no nor not now of off on "
        "once one only or other our out over own really s same she should so some such than that that's the their "
        "them then there these they this those through to too two under until up us very was we well were what "
        "when where which while who why will with would you your "
    )
)
BOILERPLATE_SHARE, BOILERPLATE_REVIEWS = 0.2, 20
PAST_CHARS, BLOCK_USERS = 160, 100  # of a past review in the picker; users in one deflated block
LARGEST_PICKER = 7_000_000  # bytes of all blocks, so that a page stays below 10 MB
SCALE = 1000  # probabilities in the picker are whole numbers of 1/1000
PREFERRED, PHRASE = "preferred", "phrase"


@dataclass(frozen=True, slots=True)
class TargetToken:
    """A token of the true review.

    Attributes:
        text: What it adds to the text.
        p_with: Probability with the user's history.
        p_without: Probability without it.
        effect: The causal effect, `p_with - p_without`.
        weight: The weight of its loss in training.
        preferred: Whether the effect is above δ.
    """

    text: str
    p_with: float
    p_without: float
    effect: float
    weight: float
    preferred: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a generated text; `kind` is `preferred`, `phrase`, or empty for one that does not match."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class ExplainedExample:
    """An example with all that is known about it.

    Attributes:
        example: The example with its true review.
        item_id: The item of the true review.
        history: The past reviews that a prompt shows, newest first.
        units: The true review, as it is coloured.
        tokens: The tokens of the true review.
        texts: Generated text by method; empty if the example's split is not measured.
        log_likelihoods: Mean log-probability of the true review in nats a token, by method.
        gain: What the user's history is worth for this review, in nats a token.
        boilerplate: Words so common in this run's reviews that a match means nothing.
        decoding: The preset under which the texts were generated; empty without texts.
    """

    example: Example
    item_id: str
    history: tuple[Review, ...]
    units: tuple[Unit, ...]
    tokens: tuple[TargetToken, ...]
    texts: Mapping[str, str]
    log_likelihoods: Mapping[str, float]
    gain: float
    boilerplate: frozenset[str] = frozenset()
    decoding: str = ""

    @property
    def user(self) -> tuple[str, str]:
        """Category and id of the user."""
        return self.example.category, self.example.user_id

    @property
    def title(self) -> str:
        """The item, or its id where the data have no title."""
        return self.example.target.item.title or self.item_id

    @property
    def facts(self) -> str:
        """One line about the example: category, split, rating, title, preference tokens, gain and decoding preset."""
        target, preferred = self.example.target, sum(token.preferred for token in self.tokens)
        parts = [self.example.category, f"{self.example.split} split"]
        parts += [f"{target.rating:g} of 5"] if target.rating is not None else []
        parts += [target.title] if target.title else []
        parts += [f"{preferred} of {len(self.tokens):,} are preference tokens"]
        parts += [f"gain by history {self.gain:+.3f} nats a token"]
        parts += [f"texts by {self.decoding} decoding"] if self.decoding else []
        return " · ".join(parts)

    def marked(self) -> list[tuple[str, list[Segment]]]:
        """Return each method's text with its matches, in the order of the methods."""
        words = preference_words(self.units)
        reference = self.example.target.text
        return [(method, marks(text, reference, words, self.boilerplate)) for method, text in self.texts.items()]


def boilerplate(texts: Sequence[str]) -> frozenset[str]:
    """Return the words that stand in more than a fifth of the texts; none where there are fewer than 20 texts."""
    if len(texts) < BOILERPLATE_REVIEWS:
        return frozenset()
    counts = Counter(word for text in texts for word in set(_words(text)))
    return frozenset(word for word, count in counts.items() if count > BOILERPLATE_SHARE * len(texts))


def preference_words(units: Sequence[Unit]) -> frozenset[str]:
    """Return the content words of the true review in which a preference token stands."""
    text = "".join(unit.text for unit in units)
    preferred: list[bool] = []
    for unit in units:
        preferred += [unit.preferred] * len(unit.text)
    return frozenset(
        found[0].casefold()
        for found in WORD.finditer(text)
        if any(preferred[found.start() : found.end()]) and has_content(found[0].casefold())
    )


def marks(text: str, reference: str, preferred: frozenset[str], common: frozenset[str] = frozenset()) -> list[Segment]:
    """Return a generated text in segments, with what matches the true review marked.

    Marked are content words in which a preference token of the true review stands, and phrases: two or more words that
    follow each other in the true review too, begin and end with a content word.

    Args:
        text: The generated text.
        reference: The true review.
        preferred: Words of the true review with preference tokens, in lower case.
        common: Words that are boilerplate in this run.
    """
    places, wanted = list(WORD.finditer(text)), _words(reference)
    words = [place[0].casefold() for place in places]
    content = [has_content(word, common) for word in words]
    starts: dict[str, list[int]] = {}
    for index, word in enumerate(wanted):
        starts.setdefault(word, []).append(index)
    found: list[tuple[int, int, str]] = []  # first and last word, and the kind
    at = 0
    while at < len(words):
        length = max((_common_length(words, at, wanted, start) for start in starts.get(words[at], ())), default=0)
        while length > 1 and not content[at + length - 1]:
            length -= 1
        if length > 1 and content[at]:
            inside = any(content[i] and words[i] in preferred for i in range(at, at + length))
            found.append((at, at + length - 1, PREFERRED if inside else PHRASE))
            at += length
        else:
            if words[at] in preferred and content[at] and words[at] in starts:
                found.append((at, at, PREFERRED))
            at += 1
    segments, done = [], 0
    for first, last, kind in found:
        start, end = places[first].start(), places[last].end()
        segments += [Segment(text[done:start]), Segment(text[start:end], kind)]
        done = end
    return [segment for segment in (*segments, Segment(text[done:])) if segment.text]


def choose(gains: Mapping[tuple[str, str], float]) -> dict[str, tuple[str, str]]:
    """Return the users with the highest, the median and the lowest gain, so that no example is picked by hand.

    Users with equal gains are ordered by category and id; the median of an even number is the lower one. With fewer
    than three users, a user is named once.

    Args:
        gains: Mean gain by history of each user's reviews, in nats a token.
    """
    ordered = sorted(gains, key=lambda user: (gains[user], user))
    if not ordered:
        return {}
    named = {"best": ordered[-1], "median": ordered[(len(ordered) - 1) // 2], "worst": ordered[0]}
    chosen: dict[str, tuple[str, str]] = {}
    for name in ("best", "worst", "median"):
        if named[name] not in chosen.values():
            chosen[name] = named[name]
    return {name: chosen[name] for name in named if name in chosen}


def example_html(explained: Sequence[ExplainedExample]) -> str:
    """Return the page of one person, with the examples in their order."""
    values: dict[str, Any] = {"user": explained[0].example.user_id, "examples": explained, "scale": scale()}
    return page("example.html.j2", **(values | script("token_keys.js")))


def example_terminal(explained: Sequence[ExplainedExample]) -> Group:
    """Return the same in colour for a terminal."""
    return Group(*_terminal_parts(explained))


@dataclass(frozen=True)
class People:
    """What the report shows of single users.

    Attributes:
        chosen: `best`, `median` and `worst`, each with the mean gain of its user and the examples.
        users: The names of the users in the picker, in the order of the blocks.
        blocks: Deflated JSON of `BLOCK_USERS` users each, in base64.
        settings: What the script needs to draw tokens as pages draw them.
        scale: The legend of the colours.
        left_out: What the picker leaves out to keep the page small, as a sentence; empty where it has everything.
    """

    chosen: Sequence[tuple[str, float, Sequence[ExplainedExample]]]
    users: Sequence[str]
    blocks: Sequence[str]
    settings: Mapping[str, Any]
    scale: Sequence[Unit]
    left_out: str = ""


def people_of(explained: Iterable[ExplainedExample], methods: Sequence[str] = ()) -> People | None:
    """Return three users to show at once, and all of them for the picker; None without examples.

    Where all users do not fit into `LARGEST_PICKER`, the picker leaves out past reviews, then all methods but two, but
    one, all methods, and then the last users.

    Args:
        explained: The measured examples; all are kept in memory.
        methods: The methods whose texts the picker keeps longest.
    """
    kept: dict[tuple[str, str], list[ExplainedExample]] = {}
    for one in explained:
        kept.setdefault(one.user, []).append(one)
    if not kept:
        return None
    means = {user: sum(one.gain for one in examples) / len(examples) for user, examples in kept.items()}
    users = sorted(kept)
    several = len({category for category, _ in users}) > 1
    blocks, left_out = _fitting_blocks([kept[user] for user in users], methods)
    listed = users[: len(blocks) * BLOCK_USERS]
    settings = {
        "block": BLOCK_USERS, "scale": SCALE, "growth": token_colours.GROWTH, "strongest": token_colours.STRONGEST,
        "faintest": token_colours.FAINTEST, "green": token_colours.GREEN, "red": token_colours.RED,
    }  # fmt: skip
    if len(listed) < len(users):
        left_out = f"{left_out}, and {len(users) - len(listed):,} of {len(users):,} users"
    return People(
        chosen=[(name, means[user], kept[user]) for name, user in choose(means).items()],
        users=[f"{category} · {user}" if several else user for category, user in listed],
        blocks=blocks,
        settings=settings,
        scale=scale(),
        left_out=f"To keep this page small, the list leaves out {left_out}." if left_out else "",
    )


def _fitting_blocks(users: Sequence[Sequence[ExplainedExample]], methods: Sequence[str]) -> tuple[list[str], str]:
    """Return the users as deflated blocks with as much detail as fits, and what was left out.

    If they do not fit with the least detail either, only the first blocks are returned, at least one.
    """
    details: list[tuple[int, Sequence[str] | None, str]] = [(PAST_CHARS, None, ""), (0, None, "past reviews")]
    for kept in (methods[:2], methods[:1], ()):
        others = f" but {' and '.join(kept)}" if kept else ""
        details.append((0, kept, f"past reviews, the texts of all methods{others}"))
    parts = [users[first : first + BLOCK_USERS] for first in range(0, len(users), BLOCK_USERS)]
    blocks: list[str] = []
    left_out = ""
    for past_chars, shown, left_out in details:
        blocks, size = [], 0
        for part in parts:
            blocks.append(_block(part, past_chars, shown))
            size += len(blocks[-1])
            if size > LARGEST_PICKER:
                break
        else:
            return blocks, left_out
    return blocks[:-1] or blocks, left_out


def _block(users: Sequence[Sequence[ExplainedExample]], past_chars: int, methods: Sequence[str] | None) -> str:
    """Return users as deflated JSON in base64; the other arguments are those of `_compact`."""
    value = [[_compact(one, past_chars, methods) for one in examples] for examples in users]
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(printable(text).encode(), 9)).decode("ascii")


def _compact(one: ExplainedExample, past_chars: int, methods: Sequence[str] | None) -> dict[str, Any]:
    """Return an example as short JSON: title, facts, past reviews, tokens, and segments by method.

    Args:
        one: The example.
        past_chars: Characters of a past review; 0 leaves them out, which is None in the JSON.
        methods: The methods whose texts are kept; None keeps all.
    """
    return {
        "t": one.title,
        "f": one.facts,
        "p": [[_past_title(past), _shortened(past.text, past_chars)] for past in one.history] if past_chars else None,
        "k": [  # by column, which deflates better
            [token.text for token in one.tokens],
            [round(SCALE * token.p_with) for token in one.tokens],
            [round(SCALE * token.p_without) for token in one.tokens],
            [round(token.weight, 3) for token in one.tokens],
            [int(token.preferred) for token in one.tokens],
        ],
        "m": [
            [method, [_short(segment) for segment in segments]]
            for method, segments in one.marked()
            if methods is None or method in methods
        ],
    }  # fmt: skip


def _short(segment: Segment) -> str | list[str]:
    return [segment.text, segment.kind] if segment.kind else segment.text


def _past_title(past: Review) -> str:
    rating = f"{past.rating:g} of 5" if past.rating is not None else ""
    return " · ".join(filter(None, (past.item.title, rating, past.title)))


def _shortened(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[:chars].rstrip()} …"


def _terminal_parts(explained: Sequence[ExplainedExample]) -> Iterator[Any]:
    for one in explained:
        yield Text(terminal_safe(f"{one.example.user_id} · {one.title}"), "bold reverse")
        yield Text(terminal_safe(one.facts))
        for past in one.history:
            yield Text(f"\nPast review: {terminal_safe(_past_title(past))}", "bold")
            yield Text(terminal_safe(past.text))
        yield Text(
            "\nThe true review (green: likelier by the history, red: less likely, underlined: preference)", "bold"
        )
        yield terminal_text(one.units)
        for method, segments in one.marked():
            yield Text(f"\n{terminal_safe(method)}", "bold")
            styles = {PREFERRED: "bold underline", PHRASE: "underline", "": ""}
            yield Text.assemble(*((terminal_safe(part.text), styles[part.kind]) for part in segments))
        yield Text("")


def _words(text: str) -> list[str]:
    return [word.casefold() for word in WORD.findall(text)]


def has_content(word: str, common: frozenset[str] = frozenset()) -> bool:
    """Return whether a folded word is neither a letter, a stop word nor one of the common words."""
    return len(word) > 1 and word.replace("’", "'") not in STOP_WORDS and word not in common


def _common_length(ours: Sequence[str], at: int, theirs: Sequence[str], start: int) -> int:
    length, limit = 0, min(len(ours) - at, len(theirs) - start)
    while length < limit and ours[at + length] == theirs[start + length]:
        length += 1
    return length
