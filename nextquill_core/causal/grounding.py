"""Grounded weights, a control for causal effects: does it matter more that the user has used a word before?

A token is grounded if its word occurs in the past reviews that the prompt shows: in their titles and texts, which the
user wrote, and not in what the shop says about their items. Words are runs of letters and digits with their marks,
compared after NFKC and case folding. A word that the tokenizer split counts for all of its tokens. Punctuation, blanks
and the stop token are never grounded.

Nearly every history contains `the` and `and`, so function words are left out unless a setting counts them. The list is
English; without it the control says little about the choice of words.

Two settings give the control of MIRROR-F, names and numbers that occur anywhere in the input: `names` leaves out all
other words, and `item` adds what the prompt says of the text to write. A name is a word with a capital letter at its
beginning or inside, so words that begin a sentence count too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Set
from functools import cache
from typing import TYPE_CHECKING

import regex

from nextquill_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from nextquill_core.causal.weights import Answers, TokenEffects
    from nextquill_core.records import ShownAnswer

WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")
_ENGLISH = """
a an the this that these those each every either neither some any no none all both few many more most much other
another such own same
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
herself it its itself they them their theirs themselves one who whom whose which what whatever
and or but nor so yet if then else because as until while although though since unless whether than
of at by for with about against between into through during before after above below to from up down in out on off
over under again within without upon toward towards among across along around near per via
am is are was were be been being have has had having do does did doing done will would shall should can could may
might must ought cannot
not there here when where why how too very just only also
s t d ll m re ve don doesn didn isn aren wasn weren hasn haven hadn won wouldn shan shouldn couldn mustn needn
"""
FUNCTION_WORDS = frozenset(_ENGLISH.split())
"""English function words, and the pieces that an apostrophe leaves of contractions."""


def grounded(
    effects: TokenEffects,
    answers: Answers,
    *,
    high: float = 0.9,
    low: float = 0.1,
    function_words: float = 0.0,
    names: float = 0.0,
    item: float = 0.0,
) -> Tensor:
    """Return λ for tokens whose word occurs in the shown history, else ε; the effects are not read.

    Args:
        effects: Effects of N tokens.
        answers: The examples that the tokens belong to.
        high: λ, the weight of grounded tokens.
        low: ε, the weight of the others.
        function_words: 1 to treat function words as other words, 0 to give them ε.
        names: 1 to give ε to all words but names and numbers.
        item: 1 to count words of the item and of the review's title too, as the prompt shows them.

    Returns:
        ω, shape (N,).

    Raises:
        UserError: One of the last three is neither 0 nor 1.
    """
    for name, value in (("function_words", function_words), ("names", names), ("item", item)):
        if value not in (0, 1):
            raise UserError(f"{name} is {value:g}", "weights.options", "set it to 0 or 1")
    ignored = frozenset[str]() if function_words else FUNCTION_WORDS
    words_of = cache(words)  # a review is in the histories of several examples
    found = [
        token
        for answer in answers.shown
        for token in grounded_tokens(answer, ignored, words_of, names=bool(names), item=bool(item))
    ]
    return effects.effect.new_full(effects.effect.shape, low).masked_fill(effects.effect.new_tensor(found).bool(), high)


def grounded_tokens(
    answer: ShownAnswer,
    ignored: Set[str],
    words_of: Callable[[str], Set[str]],
    *,
    names: bool = False,
    item: bool = False,
) -> list[bool]:
    """Return for each token of an answer whether a word that it is a part of occurs in the shown history.

    Args:
        answer: The answer, and the history that its prompt shows.
        ignored: Words that are never grounded.
        words_of: The function `words`, or one that remembers what it returned.
        names: Whether names and numbers alone count.
        item: Whether what the prompt says of the text to write counts as well.
    """
    texts = [text for past in answer.history for text in (past.title, past.text)] + list(answer.about if item else ())
    known = {word for text in texts for word in words_of(text)} - ignored
    inside = bytearray(len(answer.text))  # 1 for each character of a grounded word
    for match in WORD.finditer(answer.text):
        if folded(match[0]) in known and (is_name(match[0]) or not names):
            inside[match.start() : match.end()] = b"\1" * len(match[0])
    return [any(inside[begin:end]) for begin, end in answer.spans]


def is_name(word: str) -> bool:
    """Return whether a word looks like a name or a number, such as `Emma`, `iPhone`, `USB` or `1984`.

    A word of two letters needs a digit or a capital letter after the first.
    """
    inside = any(sign.isdigit() for sign in word) or any(sign.isupper() for sign in word[1:])
    return len(word) > 1 and (inside or (len(word) > 2 and word[0].isupper()))


def words(text: str) -> frozenset[str]:
    """Return the different words of a text, folded."""
    return frozenset(folded(word) for word in WORD.findall(text))


def folded(word: str) -> str:
    """Return a word in the form in which words are compared."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())
