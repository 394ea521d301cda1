"""An answer part by part while it is generated; joined, the parts are the finished text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nextquill_core.generation.engines import finished_text
from nextquill_core.tokens import UNFINISHED


class TextParts:
    """Passes on the text of an answer as it grows, without surrounding blanks and unfinished characters.

    Args:
        send: Receives each part; empty ones are not sent.
    """

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._raw = ""
        self._sent = 0

    def grow(self, more: str) -> None:
        """Append to the raw text, and pass on what is sure to be part of the finished one."""
        self._raw += more
        self._pass_on(finished_text(self._raw))

    def restart(self) -> None:
        """Begin the raw text again, after a failed attempt; what has been passed on is not sent twice."""
        self._raw = ""

    def finish(self, text: str) -> None:
        """Pass on the rest of the finished text."""
        self._pass_on(text)

    def _pass_on(self, text: str) -> None:
        if len(text) > self._sent:
            part = text[self._sent :]
            self._sent = len(text)
            self._send(part)


class TokenParts(TextParts):
    """The same from token ids.

    Args:
        send: As for `TextParts`.
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, send: Callable[[str], None], tokenizer: Any) -> None:
        super().__init__(send)
        self._tokenizer = tokenizer
        self._before = self._start = 0

    def extend(self, ids: Sequence[int]) -> None:
        """Pass on what the newest tokens add.

        Args:
            ids: All tokens of the answer so far.
        """
        # As in `tokens.token_texts`: the piece before last keeps the blank before the last one.
        known, text = self._decoded(ids[self._before : self._start]), self._decoded(ids[self._before :])
        if text.startswith(known) and len(text) > len(known) and not text.endswith(UNFINISHED):
            self._before, self._start = self._start, len(ids)
            self.grow(text[len(known) :])

    def restart(self) -> None:
        """Begin with the first token again."""
        super().restart()
        self._before = self._start = 0

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
