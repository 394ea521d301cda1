"""Words show what drove them: no word belongs to two drivers or two styles."""

from __future__ import annotations

from collections import Counter

from nextquill_core.synthetic import lexicon
from nextquill_core.synthetic.world import (
    polarity_words,
)


def test_taste_words_belong_to_one_style_and_stand_nowhere_else() -> None:
    owners = Counter(word for style in lexicon.STYLES for word in (*style.praise, *style.complaint))
    assert max(owners.values()) == 1
    controls = {word for words in lexicon.ITEM_WORDS.values() for word in words}
    controls |= {word for of in lexicon.RATING_WORDS.values() for words in of for word in words}
    sentences = (*lexicon.OPENINGS, *lexicon.REMARKS, *lexicon.CLOSINGS, *lexicon.PADDING, *lexicon.REVIEW_TITLES)
    frames = " ".join((*sentences, *(frame for aspect in lexicon.ASPECTS for frame in aspect.frames)))
    fixed = {word.strip(".,").lower() for word in frames.split()}
    assert not set(owners) & (controls | fixed)
    for aspect in lexicon.ASPECTS:
        assert len(polarity_words(aspect, praise=True)) == len(polarity_words(aspect, praise=False)) == 16
