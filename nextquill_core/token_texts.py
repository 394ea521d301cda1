"""The text of each token of an answer, so that a page can show tokens and their texts joined are the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; joined, the texts are what the tokenizer makes of all the tokens.

    A token's text is what decoding gains by it, for a token decoded alone may lose its leading blank. Where a character
    takes several tokens, as an emoji does in byte-level BPE, its last token has the text and those before it have none.
    Bytes at the end that never become a character show as the replacement character. The stop token is a token too.

    Args:
        tokenizer: A Hugging Face tokenizer.
        ids: Of one answer, from its beginning.

    Returns:
        One text a token.
    """
    texts: list[str] = []
    # Only the tokens since the piece before last are decoded again, so that time grows with the length and no faster;
    # the piece before keeps a tokenizer of the SentencePiece kind from taking a blank for the text's beginning.
    before, start = 0, 0
    for end in range(1, len(ids) + 1):
        known, text = _decoded(tokenizer, ids[before:start]), _decoded(tokenizer, ids[before:end])
        whole = text.startswith(known) and len(text) > len(known) and not text.endswith(UNFINISHED)
        if whole or end == len(ids):
            texts += [""] * (end - start - 1) + [text[len(known) :]]
            before, start = start, end
    return texts


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
