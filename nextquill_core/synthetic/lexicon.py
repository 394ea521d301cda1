"""The words of the synthetic book world: what a taste, an item and a rating each have to say.

Every word is one common English word, and no word serves two drivers or two styles, so a word of a review says by
itself what drove it. Frames and words are kept few: a transformer of a million weights learns them within minutes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Style:
    """One way of judging an aspect: the words a reader of this taste praises with, and those of a complaint."""

    name: str
    praise: tuple[str, ...]
    complaint: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Aspect:
    """What a sentence is about.

    Attributes:
        frames: Sentences with one `{word}`; the same for every taste and both polarities, so that a frame gives away
            neither.
        styles: The tastes a user can have; one user has one, for every aspect.
    """

    name: str
    frames: tuple[str, ...]
    styles: tuple[Style, ...]


def _style(name: str, praise: str, complaint: str) -> Style:
    return Style(name, tuple(praise.split()), tuple(complaint.split()))


# One lexicon for all aspects: any word of a style, wherever it was read, tells how its writer will put things next. A
# model of a million parameters learns that within its two minutes; a lexicon an aspect it does not.
STYLES: tuple[Style, ...] = (
    _style("bold", "daring fierce thrilling vivid", "reckless noisy frantic violent"),
    _style("warm", "tender lovable gentle sweet", "sappy sugary childish easy"),
    _style("sharp", "clever witty crisp elegant", "smug cold dry clipped"),
    _style("dark", "haunting sinister moody grim", "bleak hopeless harsh cruel"),
)


def _judged(noun: str) -> Aspect:
    frames = (
        f"I found the {noun} {{word}}.",
        f"I call the {noun} {{word}} here.",
        f"To me this made the {noun} {{word}}.",
    )
    return Aspect(noun, frames, STYLES)


ASPECTS: tuple[Aspect, ...] = tuple(
    _judged(noun) for noun in ("plot", "cast", "pacing", "prose", "dialogue", "ending", "mood")
)

# What an item shows in its title and description, and a review may take up.
ITEM_WORDS: dict[str, tuple[str, ...]] = {
    "genre": ("mystery", "romance", "fantasy", "western", "horror", "war", "crime", "history"),
    "setting": (
        "harbor", "castle", "island", "forest", "desert", "village", "palace", "mountain", "city", "valley", "river",
        "school",
    ),
    "hero": (
        "sailor", "doctor", "detective", "widow", "orphan", "soldier", "painter", "teacher", "farmer", "queen",
        "singer", "pilot",
    ),
    "quest": ("brother", "letter", "treasure", "secret", "murder", "map", "daughter", "crown"),
}  # fmt: skip
TITLE_WORDS = (
    "Silver", "Broken", "Hidden", "Last", "Golden", "Frozen", "Burning", "Silent", "Empty", "Lost", "Red", "Winter",
    "Summer", "Midnight", "Blue", "Narrow", "Crooked", "Stolen", "Little", "White",
)  # fmt: skip
TITLE_FRAMES = ("The {adjective} {setting}", "The {adjective} {hero}", "{adjective} {quest}", "The {setting} {quest}")
DESCRIPTION_OPENINGS = (
    "A {genre} novel about a young {hero} who comes to the {setting} to find a lost {quest}.",
    "In this {genre} novel a {hero} goes back to the {setting} and finds a strange {quest}.",
    "A {hero}, a {quest} and the {setting}: a {genre} novel in three parts about the price of coming home.",
)
DESCRIPTION_CLOSINGS = (
    "Over one long year nothing at home stays the same.",
    "Nobody there wants to talk about the past.",
    "A story of family, time and hope.",
    "The first book of a new writer.",
)

# What a rating from 1 to 5 says, whoever writes.
RATING_WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "verb": (
        ("hated", "regretted"),
        ("disliked", "endured"),
        ("tried", "managed"),
        ("liked", "enjoyed"),
        ("loved", "adored"),
    ),
    "verdict": (
        ("awful", "terrible"),
        ("weak", "poor"),
        ("fair", "decent"),
        ("good", "solid"),
        ("great", "perfect"),
    ),
}
OPENINGS = ("I {verb} this {genre} novel.", "I {verb} this {genre} story.", "I {verb} it, and it is a {genre} novel.")
REMARKS = (
    "The scenes in the {setting} stood out.",
    "I kept thinking about the {hero}.",
    "So much turns on the {quest}.",
    "It is all about the {hero} and the {quest}.",
)
CLOSINGS = ("All in all a {verdict} read.", "In short it is a {verdict} book.", "For me a {verdict} novel.")
# Said to reach the length a review needs; they come after every word that a taste drives.
PADDING = (
    "It goes back on my shelf now.",
    "My copy came on time and without a scratch.",
    "I may try another book of this writer.",
    "The print is clear and the cover is nice.",
)
REVIEW_TITLES = ("A {verdict} read", "{verdict} {genre} novel", "{verdict} book", "I {verb} it", "{stars} stars")
STAR_WORDS = ("one", "two", "three", "four", "five")
