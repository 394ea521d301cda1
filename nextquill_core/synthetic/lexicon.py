"""The words of the synthetic book world: what a taste, an item and a rating each have to say.

Every word is one common English word, and no word serves two drivers or two aspects, so a word of a review says by
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
        styles: The tastes a user can have; one user has one.
    """

    name: str
    frames: tuple[str, ...]
    styles: tuple[Style, ...]


def _aspect(name: str, frames: tuple[str, ...], styles: dict[str, tuple[str, str]]) -> Aspect:
    built = tuple(
        Style(style, tuple(praise.split()), tuple(complaint.split())) for style, (praise, complaint) in styles.items()
    )
    return Aspect(name, frames, built)


def _judged(noun: str) -> tuple[str, ...]:
    # The noun stands right before the word, so that whoever copies by context finds the aspect next to it.
    return (
        f"I found the {noun} {{word}}.",
        f"I call the {noun} {{word}} here.",
        f"To me this made the {noun} {{word}}.",
    )


ASPECTS: tuple[Aspect, ...] = (
    _aspect(
        "plot",
        _judged("plot"),
        {
            "puzzle": ("clever intricate", "confusing tangled"),
            "adventure": ("thrilling daring", "reckless noisy"),
            "simple": ("simple direct", "thin plain"),
            "dark": ("haunting sinister", "grim bleak"),
        },
    ),
    _aspect(
        "cast",
        _judged("cast"),
        {
            "warm": ("lovable tender", "sappy childish"),
            "witty": ("witty funny", "smug silly"),
            "deep": ("complex layered", "moody distant"),
            "brave": ("heroic fierce", "cruel violent"),
        },
    ),
    _aspect(
        "pacing",
        _judged("pacing"),
        {
            "fast": ("swift brisk", "rushed frantic"),
            "slow": ("patient gentle", "sluggish sleepy"),
            "steady": ("steady even", "flat stiff"),
            "playful": ("bouncy lively", "choppy jumpy"),
        },
    ),
    _aspect(
        "prose",
        _judged("prose"),
        {
            "poetic": ("lyrical graceful", "flowery purple"),
            "lean": ("crisp lean", "dry cold"),
            "chatty": ("chatty friendly", "wordy rambling"),
            "classic": ("elegant formal", "stuffy dated"),
        },
    ),
    _aspect(
        "dialogue",
        _judged("dialogue"),
        {
            "sharp": ("sharp snappy", "rude clipped"),
            "natural": ("natural honest", "dull casual"),
            "quiet": ("subtle quiet", "timid faint"),
            "grand": ("dramatic grand", "loud theatrical"),
        },
    ),
    _aspect(
        "ending",
        _judged("ending"),
        {
            "surprise": ("shocking bold", "random sudden"),
            "happy": ("happy sweet", "sugary easy"),
            "open": ("open mysterious", "vague unfinished"),
            "sad": ("moving bittersweet", "hopeless harsh"),
        },
    ),
    # A habit, not a judgement: both polarities share the words, so the rating says nothing about them.
    _aspect(
        "drink",
        ("I read it over my {word}.", "I sat down with it and my {word}.", "I read most of it over my {word}."),
        {
            "coffee": ("coffee espresso", "coffee espresso"),
            "tea": ("tea cocoa", "tea cocoa"),
            "wine": ("wine beer", "wine beer"),
            "juice": ("juice lemonade", "juice lemonade"),
        },
    ),
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
