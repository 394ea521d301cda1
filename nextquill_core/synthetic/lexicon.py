"""The words of the synthetic book world: those of tastes, of items and of ratings.

Every word is one common English word, and no word belongs to two drivers or two styles, so a word of a review shows
what caused it. There are few frames and words, so that a transformer of a million weights learns them within minutes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Style:
    """One way of judging an aspect: the words of praise and of complaint that a reader of this taste uses."""

    name: str
    praise: tuple[str, ...]
    complaint: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Aspect:
    """A subject of a sentence, such as the plot.

    Attributes:
        frames: Sentences with one `{word}`; the same for every taste and both polarities, so a frame shows neither.
        styles: The tastes that a user can have; one user has the same for every aspect.
    """

    name: str
    frames: tuple[str, ...]
    styles: tuple[Style, ...]


def _style(name: str, praise: str, complaint: str) -> Style:
    return Style(name, tuple(praise.split()), tuple(complaint.split()))


# One lexicon for all aspects: any word of a style predicts the next words of its writer. A model of a million
# parameters learns that within two minutes; it does not learn a separate lexicon for each aspect.
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

# Words that an item shows in its title and description, and that a review may mention.
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

# Words of the ratings 1 to 5, the same for every writer.
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
# Added until a review is long enough; they come after every word that a taste drives.
PADDING = (
    "It goes back on my shelf now.",
    "My copy came on time and without a scratch.",
    "I may try another book of this writer.",
    "The print is clear and the cover is nice.",
)
REVIEW_TITLES = ("A {verdict} read", "{verdict} {genre} novel", "{verdict} book", "I {verb} it", "{stars} stars")
STAR_WORDS = ("one", "two", "three", "four", "five")
