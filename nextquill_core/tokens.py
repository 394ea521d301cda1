"""Aligned pairs of token sequences: one answer behind a prompt with history and behind one without.

Prompt and answer are encoded apart, so the answer's tokens are the same in both branches by construction. A prompt
that is too long loses whole past reviews, oldest first, and then the end of its longest text, the user's summary among
them; its own end, which says what to write, is never cut. Both branches show the same, possibly clipped, item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nextquill_core.errors import ModelError
from nextquill_core.model.identity import ModelSpec
from nextquill_core.prompts import PLAIN, Template, build_prompt
from nextquill_core.records import Example, Item, Review


@dataclass(frozen=True, slots=True)
class TokenPair:
    """One example as the model sees it.

    Attributes:
        factual: Prompt ids with history, and with the user's summary where the example has one.
        counterfactual: Prompt ids without; equal to `factual` for a user without history.
        target: Answer ids, the stop token last (missing only where the answer was cut at the limit).
    """

    example_id: str
    factual: list[int]
    counterfactual: list[int]
    target: list[int]

    @property
    def has_history(self) -> bool:
        """Whether the branches differ at all."""
        return self.factual != self.counterfactual

    @property
    def tokens(self) -> int:
        """Token positions that a forward pass over both branches computes."""
        branches = 2 if self.has_history else 1
        return len(self.factual) + (branches - 1) * len(self.counterfactual) + branches * (len(self.target) - 1)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a prompt shows beside what to write."""

    item: Item
    past: tuple[Review, ...] = ()
    summary: str = ""


class PairEncoder:
    """Turns examples into token pairs under fixed limits, and counts what had to be left out.

    Args:
        tokenizer: A fast Hugging Face tokenizer with an end-of-sequence token.
        max_history: Most recent past reviews shown.
        max_prompt_tokens: Limit of each prompt.
        max_target_tokens: Limit of the answer, stop token included.
        template: What stands around the prompt's text.

    Raises:
        ModelError: The tokenizer names no end-of-sequence token, so no answer could ever end.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_history: int,
        max_prompt_tokens: int,
        max_target_tokens: int,
        template: Template = PLAIN,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token", tokenizer.name_or_path, "set eos_token")
        self.tokenizer = tokenizer
        self.template = template
        self.max_history = max_history
        self.max_prompt_tokens = max_prompt_tokens
        self.max_target_tokens = max_target_tokens
        self.truncation: Counter[str] = Counter()
        self._opening = opening_ids(tokenizer, template)

    def encode(self, examples: Sequence[Example]) -> list[TokenPair]:
        """The pairs of `examples`, in order."""
        shown = [_Shown(example.target.item, self._newest(example), example.summary) for example in examples]
        factual = self._prompts(examples, shown)
        for row, example in enumerate(examples):
            if len(factual[row]) > self.max_prompt_tokens:
                shown[row], factual[row] = self._fit(example, shown[row])
        counterfactual = self._prompts(examples, [_Shown(kept.item) for kept in shown])
        targets = self._ids([example.target.text for example in examples])
        return [
            TokenPair(example.example_id, with_history, alone, self._closed(target))
            for example, with_history, alone, target in zip(examples, factual, counterfactual, targets, strict=True)
        ]

    def _newest(self, example: Example) -> tuple[Review, ...]:
        return example.history[-self.max_history :] if self.max_history else ()

    def _prompts(self, examples: Sequence[Example], shown: Sequence[_Shown]) -> list[list[int]]:
        texts = [
            build_prompt(
                what.item,
                example.target.rating,
                example.target.title,
                what.past,
                summary=what.summary,
                template=self.template,
            )
            for example, what in zip(examples, shown, strict=True)
        ]
        return [self._opening + ids for ids in self._ids(texts)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return ids

    def _closed(self, target: list[int]) -> list[int]:
        if len(target) + 1 > self.max_target_tokens:
            self.truncation["targets_cut"] += 1
            return target[: self.max_target_tokens]
        return [*target, self.tokenizer.eos_token_id]

    def _fit(self, example: Example, shown: _Shown) -> tuple[_Shown, list[int]]:
        """Drop past reviews, oldest first, all but the newest; then clip the longest text until the prompt fits.

        Raises:
            ModelError: The prompt is too long even without any text to clip.
        """
        kept = shown
        while (over := len(ids := self._prompts([example], [kept])[0]) - self.max_prompt_tokens) > 0:
            if len(kept.past) > 1:
                kept = replace(kept, past=kept.past[1:])
                continue
            clipped = _clip_longest(kept, over)
            if clipped is None and kept.past:  # not even the newest review's titles fit beside the rest
                kept = replace(kept, past=())
                continue
            if clipped is None:
                raise ModelError(
                    f"the prompt of {example.example_id} needs {len(ids)} tokens without any description or text",
                    "prompt.max_prompt_tokens",
                    f"raise it above {self.max_prompt_tokens}",
                )
            kept = clipped
        self.truncation["past_reviews_dropped"] += len(shown.past) - len(kept.past)
        self.truncation["prompts_with_dropped_reviews"] += len(kept.past) < len(shown.past)
        self.truncation["prompts_with_clipped_text"] += replace(kept, past=kept.past[-1:]) != replace(
            shown, past=shown.past[-1:]
        )
        return kept, ids


def opening_ids(tokenizer: Any, template: Template) -> list[int]:
    """What stands before every prompt: the marker with which some tokenizers (Llama, Gemma) open every text.

    Chat markup already brings its own.
    """
    opens = template.name == "plain" and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return [tokenizer.bos_token_id] if opens else []


def encoder_for(spec: ModelSpec, tokenizer: Any, *, template: str, **limits: int) -> PairEncoder:
    """The encoder that the `prompt` settings ask for, with the template of this model."""
    from nextquill_core.model.loading import load_template

    return PairEncoder(tokenizer, template=load_template(template, spec, tokenizer), **limits)


def _clip_longest(shown: _Shown, over: int) -> _Shown | None:
    """Shorten the longest of the remaining texts by about `over` tokens; None when nothing is left to clip.

    A token is one character at least, so cutting `over` characters never cuts more than is needed; the caller repeats.
    """
    item = shown.item
    past = shown.past[-1] if shown.past else Review(Item("", ""), 0, "", "")
    lengths = {
        "description": len(item.description),
        "past_text": len(past.text),
        "past_description": len(past.item.description),
        "title": len(item.title) // 2,  # a title says more a character than the other texts do
        "summary": len(shown.summary),
    }
    longest = max(lengths, key=lambda name: lengths[name])
    if lengths[longest] == 0:
        return None
    if longest == "summary":
        return replace(shown, summary=_without_end(shown.summary, over))
    if longest == "description":
        return replace(shown, item=replace(item, description=_without_end(item.description, over)))
    if longest == "title":
        return replace(shown, item=replace(item, title=_without_end(item.title, over)))
    if longest == "past_text":
        return replace(shown, past=(replace(past, text=_without_end(past.text, over)),))
    shorter = replace(past.item, description=_without_end(past.item.description, over))
    return replace(shown, past=(replace(past, item=shorter),))


def _without_end(text: str, over: int) -> str:
    return text[:-over].rstrip()
