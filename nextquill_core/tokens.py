"""Aligned pairs of token sequences: one answer behind a prompt with history and behind one without.

Prompt and answer are encoded apart, so the answer's tokens are the same in both branches by construction. A prompt
that is too long loses whole past reviews, oldest first, and then the end of its longest text; its own end, which says
what to write, is never cut. Both branches show the same, possibly clipped, item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nextquill_core.errors import ModelError
from nextquill_core.model.identity import ModelSpec
from nextquill_core.prompts import PLAIN, Template, build_prompt
from nextquill_core.schemas import Example, Item, Review


@dataclass(frozen=True, slots=True)
class TokenPair:
    """One example as the model sees it.

    Attributes:
        factual: Prompt ids with history.
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
        # Some tokenizers (Llama, Gemma) open every text with a marker; chat markup already brings its own.
        opens = template.name == "plain" and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._opening: list[int] = [tokenizer.bos_token_id] if opens else []

    def encode(self, examples: Sequence[Example]) -> list[TokenPair]:
        """The pairs of `examples`, in order."""
        shown = [self._shown(example) for example in examples]
        factual = self._prompts(examples, [example.target.item for example in examples], shown)
        items = [example.target.item for example in examples]
        for row, example in enumerate(examples):
            if len(factual[row]) > self.max_prompt_tokens:
                items[row], shown[row], factual[row] = self._fit(example, shown[row])
        without: list[tuple[Review, ...]] = [()] * len(examples)
        counterfactual = self._prompts(examples, items, without)
        targets = self._ids([example.target.text for example in examples])
        return [
            TokenPair(example.example_id, with_history, alone, self._closed(target))
            for example, with_history, alone, target in zip(examples, factual, counterfactual, targets, strict=True)
        ]

    def _shown(self, example: Example) -> tuple[Review, ...]:
        return example.history[-self.max_history :] if self.max_history else ()

    def _prompts(
        self, examples: Sequence[Example], items: Sequence[Item], histories: Sequence[tuple[Review, ...]]
    ) -> list[list[int]]:
        texts = [
            build_prompt(item, example.target.rating, example.target.title, history, template=self.template)
            for example, item, history in zip(examples, items, histories, strict=True)
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

    def _fit(self, example: Example, shown: tuple[Review, ...]) -> tuple[Item, tuple[Review, ...], list[int]]:
        """Drop past reviews, oldest first, all but the newest; then clip the longest text until the prompt fits.

        Raises:
            ModelError: The prompt is too long even without any text to clip.
        """
        item, kept = example.target.item, shown
        while (over := len(ids := self._prompts([example], [item], [kept])[0]) - self.max_prompt_tokens) > 0:
            if len(kept) > 1:
                kept = kept[1:]
                continue
            clipped = _clip_longest(item, kept, over)
            if clipped is None and kept:  # not even the newest review's titles fit beside the rest
                kept = ()
                continue
            if clipped is None:
                raise ModelError(
                    f"the prompt of {example.example_id} needs {len(ids)} tokens without any description or text",
                    "prompt.max_prompt_tokens",
                    f"raise it above {self.max_prompt_tokens}",
                )
            item, kept = clipped
        self.truncation["past_reviews_dropped"] += len(shown) - len(kept)
        self.truncation["prompts_with_dropped_reviews"] += len(kept) < len(shown)
        self.truncation["prompts_with_clipped_text"] += (item, kept[-1:]) != (example.target.item, shown[-1:])
        return item, kept, ids


def encoder_for(spec: ModelSpec, tokenizer: Any, *, template: str, **limits: int) -> PairEncoder:
    """The encoder that the `prompt` settings ask for, with the template of this model."""
    from nextquill_core.model.loading import load_template

    return PairEncoder(tokenizer, template=load_template(template, spec, tokenizer), **limits)


def _clip_longest(item: Item, kept: tuple[Review, ...], over: int) -> tuple[Item, tuple[Review, ...]] | None:
    """Shorten the longest of the remaining texts by about `over` tokens; None when nothing is left to clip.

    A token is one character at least, so cutting `over` characters never cuts more than is needed; the caller repeats.
    """
    past = kept[-1] if kept else Review(Item("", ""), 0, "", "")
    lengths = {
        "description": len(item.description),
        "past_text": len(past.text),
        "past_description": len(past.item.description),
        "title": len(item.title) // 2,  # a title says more a character than the other texts do
    }
    longest = max(lengths, key=lambda name: lengths[name])
    if lengths[longest] == 0:
        return None
    if longest == "description":
        return replace(item, description=item.description[:-over].rstrip()), kept
    if longest == "title":
        return replace(item, title=item.title[:-over].rstrip()), kept
    if longest == "past_text":
        return item, (replace(past, text=past.text[:-over].rstrip()),)
    shorter = replace(past.item, description=past.item.description[:-over].rstrip())
    return item, (replace(past, item=shorter),)
