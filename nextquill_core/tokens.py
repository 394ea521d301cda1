"""Aligned pairs of token sequences: one answer behind a prompt with history and behind one without.

Prompt and answer are encoded apart, so the answer's tokens are the same in both branches by construction. The item is
fitted first, by a rule that knows nothing of the history: so an example shows the same item in both branches and under
every method. The history then gets the rest of the room: whole past reviews are dropped, oldest first, and then the
longest text of the newest one, or the user's summary, is cut at its end. The end of a prompt is never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nextquill_core.errors import ModelError
from nextquill_core.model.control_tokens import UserTextTokenizer
from nextquill_core.model.identity import ModelSpec
from nextquill_core.prompts import PLAIN, Template, build_prompt
from nextquill_core.records import Example, Item, Review

HISTORY_SHARE = 0.5
"""Share of the prompt's tokens that a long item leaves to the history, whether there is one or not."""


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
        template: The text around a prompt, and the token with which an answer ends.

    Attributes:
        stop_id: The token with which an answer ends.

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
        self.tokenizer = tokenizer
        self.template = template
        self.stop_id = stop_id(tokenizer, template)
        self.max_history = max_history
        self.max_prompt_tokens = max_prompt_tokens
        self.max_target_tokens = max_target_tokens
        self.truncation: Counter[str] = Counter()
        self._text = UserTextTokenizer(tokenizer, template)
        self._opening = opening_ids(tokenizer, template)

    def encode(self, examples: Sequence[Example]) -> list[TokenPair]:
        """The pairs of `examples`, in order."""
        shown = [_Shown(example.target.item) for example in examples]
        counterfactual = self._prompts(examples, shown)
        for row, example in enumerate(examples):
            if len(counterfactual[row]) > self._item_limit:
                shown[row], counterfactual[row] = self._fit_item(example, shown[row], counterfactual[row])
        shown = [
            replace(item, past=self._newest(example), summary=example.summary)
            for example, item in zip(examples, shown, strict=True)
        ]
        factual = self._prompts(examples, shown)
        for row, example in enumerate(examples):
            if len(factual[row]) > self.max_prompt_tokens:
                factual[row] = self._fit_history(example, shown[row])
        targets = self._text.encode([example.target.text for example in examples])
        return [
            TokenPair(example.example_id, with_history, alone, self._closed(target))
            for example, with_history, alone, target in zip(examples, factual, counterfactual, targets, strict=True)
        ]

    def _newest(self, example: Example) -> tuple[Review, ...]:
        return example.history[-self.max_history :] if self.max_history else ()

    def _prompts(self, examples: Sequence[Example], shown: Sequence[_Shown]) -> list[list[int]]:
        texts = [
            build_prompt(what.item, example.target.rating, example.target.title, what.past, summary=what.summary)
            for example, what in zip(examples, shown, strict=True)
        ]
        return [self._opening + ids for ids in self._text.encode_prompts(texts)]

    def _closed(self, target: list[int]) -> list[int]:
        if len(target) + 1 > self.max_target_tokens:
            self.truncation["targets_cut"] += 1
            return target[: self.max_target_tokens]
        return [*target, self.stop_id]

    @property
    def _item_limit(self) -> int:
        """The longest prompt without history; the same for methods that show none, so that all see the same item."""
        return self.max_prompt_tokens - int(HISTORY_SHARE * self.max_prompt_tokens)

    def _fit_item(self, example: Example, shown: _Shown, ids: list[int]) -> tuple[_Shown, list[int]]:
        """Cut the item's description, or its title, until the prompt without history fits.

        Raises:
            ModelError: The prompt is too long even without any text to cut.
        """
        kept = shown
        while (over := len(ids) - self._item_limit) > 0:
            clipped = _clip_longest(kept, over, _item_lengths(kept))
            if clipped is None:
                break
            kept, ids = clipped, self._prompts([example], [clipped])[0]
        if len(ids) > self.max_prompt_tokens:
            raise ModelError(
                f"the prompt of {example.example_id} needs {len(ids)} tokens without any description or text",
                "prompt.max_prompt_tokens",
                f"raise it above {self.max_prompt_tokens}",
            )
        self.truncation["items_clipped"] += kept != shown
        return kept, ids

    def _fit_history(self, example: Example, shown: _Shown) -> list[int]:
        """Drop past reviews, oldest first, all but the newest; then cut the longest text of the history."""
        kept = shown
        while (over := len(ids := self._prompts([example], [kept])[0]) - self.max_prompt_tokens) > 0:
            if len(kept.past) > 1:
                kept = replace(kept, past=kept.past[1:])
                continue
            # Where nothing is left to cut, not even the titles of the newest review fit beside the rest.
            kept = _clip_longest(kept, over, _history_lengths(kept)) or replace(kept, past=())
        self.truncation["past_reviews_dropped"] += len(shown.past) - len(kept.past)
        self.truncation["prompts_with_dropped_reviews"] += len(kept.past) < len(shown.past)
        self.truncation["prompts_with_clipped_text"] += replace(kept, past=kept.past[-1:]) != replace(
            shown, past=shown.past[-1:]
        )
        return ids


def stop_id(tokenizer: Any, template: Template) -> int:
    """Return the token with which an answer ends: the one that ends a turn of the template, else end-of-sequence.

    Raises:
        ModelError: There is neither, so no answer could ever end.
    """
    token = tokenizer.convert_tokens_to_ids(template.stop) if template.stop else tokenizer.eos_token_id
    if token is None:
        raise ModelError("the tokenizer has no end-of-sequence token", tokenizer.name_or_path, "set eos_token")
    return int(token)


def opening_ids(tokenizer: Any, template: Template) -> list[int]:
    """What stands before every prompt: the marker with which some tokenizers (Llama, Gemma) open every text.

    Chat markup already brings its own.
    """
    opens = template.name == "plain" and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return [tokenizer.bos_token_id] if opens else []


def prompt_lengths(prompt: int, target: int) -> dict[str, int]:
    """Tokens of a prompt and its answer, by the settings that allow them."""
    return {f"prompt.max_prompt_tokens {prompt} and prompt.max_target_tokens {target}": prompt + target}


def encoder_for(spec: ModelSpec, tokenizer: Any, *, template: str, **limits: int) -> PairEncoder:
    """Return the encoder that the `prompt` settings ask for, with the template of this model.

    Raises:
        ModelError: Model, tokenizer and limits do not fit each other.
    """
    from nextquill_core.model.limits import check_limits
    from nextquill_core.model.loading import load_template

    # Once more, because a hub model's files are on this machine only now.
    check_limits(
        spec.name_or_path, spec.revision, prompt_lengths(limits["max_prompt_tokens"], limits["max_target_tokens"])
    )
    return PairEncoder(tokenizer, template=load_template(template, spec, tokenizer), **limits)


def _item_lengths(shown: _Shown) -> dict[str, int]:
    # A title says more a character than a description does.
    return {"description": len(shown.item.description), "title": len(shown.item.title) // 2}


def _history_lengths(shown: _Shown) -> dict[str, int]:
    lengths = {"summary": len(shown.summary)}
    if shown.past:
        past = shown.past[-1]
        lengths |= {"past_text": len(past.text), "past_description": len(past.item.description)}
    return lengths


def _clip_longest(shown: _Shown, over: int, lengths: dict[str, int]) -> _Shown | None:
    """Shorten the longest of these texts by about `over` tokens; None when nothing is left to clip.

    A token is one character at least, so cutting `over` characters never cuts more than is needed; the caller repeats.
    """
    longest = max(lengths, key=lambda name: lengths[name])
    if lengths[longest] == 0:
        return None
    item = shown.item
    if longest == "summary":
        return replace(shown, summary=_without_end(shown.summary, over))
    if longest == "description":
        return replace(shown, item=replace(item, description=_without_end(item.description, over)))
    if longest == "title":
        return replace(shown, item=replace(item, title=_without_end(item.title, over)))
    past = shown.past[-1]
    if longest == "past_text":
        return replace(shown, past=(replace(past, text=_without_end(past.text, over)),))
    shorter = replace(past.item, description=_without_end(past.item.description, over))
    return replace(shown, past=(replace(past, item=shorter),))


def _without_end(text: str, over: int) -> str:
    return text[:-over].rstrip()
