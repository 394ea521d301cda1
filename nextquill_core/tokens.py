"""Aligned token pairs: one answer after a prompt with history and after a prompt without.

Prompt and answer are encoded separately, so the answer has the same tokens in both branches by construction. The item
is fitted first, by a rule that does not depend on the history, so an example shows the same item in both branches and
under every method. The history gets the remaining tokens: whole reviews are dropped, oldest first, and then the longest
text of the newest review, or the user's summary, is cut at its end. The end of a prompt is never cut.

User text yields no control tokens. A tokenizer reads `</s>` or `<|im_end|>` inside a review as the control token of
that name, so a review could end an answer or forge a turn of a chat. Here only the markup of a prompt template is read
that way. Text without such a string keeps exactly the ids that the tokenizer gives it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from nextquill_core.errors import ModelError
from nextquill_core.prompts import PLAIN, REVIEW, Template, Wording, build_prompt
from nextquill_core.records import Example, Item, Review, ShownAnswer
from nextquill_core.records import TokenPair as TokenPair

HISTORY_SHARE = 0.5
"""Share of the prompt's tokens that a long item leaves to the history, even for a prompt without history."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class _Shown:
    """The item, history and summary that a prompt shows."""

    item: Item
    history: tuple[Review, ...] = ()
    summary: str = ""


_Cut = tuple[int, Callable[[int], _Shown]]
"""Length of a text that a prompt shows, and what cuts characters from its end."""


class PairEncoder:
    """Encodes examples as token pairs within fixed limits, and counts what was left out.

    Args:
        tokenizer: A fast Hugging Face tokenizer with an end-of-sequence token.
        max_history: Maximum number of reviews in the shown history, the newest ones.
        max_prompt_tokens: Maximum number of tokens in a prompt.
        max_target_tokens: Maximum number of tokens in an answer, stop token included.
        template: Text around a prompt, and the token that ends an answer.
        wording: Words of the prompt for the kind of text.

    Attributes:
        stop_id: Token that ends an answer.
        truncation: Counts of what was left out; the keys stand in the score artifact's stats.

    Raises:
        ModelError: The tokenizer names no end-of-sequence token, so no answer could end.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_history: int,
        max_prompt_tokens: int,
        max_target_tokens: int,
        template: Template = PLAIN,
        wording: Wording = REVIEW,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.wording = wording
        self.stop_id = stop_id(tokenizer, template)
        self.max_history = max_history
        self.max_prompt_tokens = max_prompt_tokens
        self.max_target_tokens = max_target_tokens
        self.truncation: Counter[str] = Counter()
        self._text = UserTextTokenizer(tokenizer, template)
        self._opening = opening_ids(tokenizer, template)

    def encode(self, examples: Sequence[Example]) -> list[TokenPair]:
        """Return the token pairs of examples, in their order."""
        return [pair for pair, _ in self.encode_with_history(examples)]

    def encode_with_history(self, examples: Sequence[Example]) -> list[tuple[TokenPair, tuple[Review, ...]]]:
        """Return the token pairs of examples, each with the past reviews in its prompt as `ShownAnswer.history`."""
        shown, factual, counterfactual = self._fitted(examples)
        targets = self._text.encode([example.target.text for example in examples])
        columns = zip(examples, shown, factual, counterfactual, targets, strict=True)
        return [
            (TokenPair(example.example_id, with_history, alone, self._closed(target)), what.history)
            for example, what, with_history, alone, target in columns
        ]

    def with_answer(self, pair: TokenPair, text: str) -> TokenPair:
        """Return the prompts of a pair with another answer."""
        return replace(pair, target=self._closed(self._text.encode([text])[0]))

    def shown_answers(self, examples: Sequence[Example]) -> list[ShownAnswer]:
        """Return the answers of examples with the past reviews that the prompts of `encode` show, in their order."""
        shown, _, _ = self._fitted(examples)
        targets = self._text.encode_located([example.target.text for example in examples])
        found = []
        for example, what, target in zip(examples, shown, targets, strict=True):
            text, ids = example.target.text, self._closed(target.ids)
            spans = [*target.spans, (len(text), len(text))][: len(ids)]
            about = (what.item.title, what.item.description, example.target.title)
            found.append(ShownAnswer(example.example_id, text, ids, spans, what.history, about))
        return found

    def _fitted(self, examples: Sequence[Example]) -> tuple[list[_Shown], list[list[int]], list[list[int]]]:
        """Return what the prompts show, and the prompts with and without history."""
        shown = [_Shown(example.target.item) for example in examples]
        counterfactual = self._prompts(examples, shown)
        for row, example in enumerate(examples):
            if len(counterfactual[row]) > self._item_limit:
                shown[row], counterfactual[row] = self._fit_item(example, shown[row], counterfactual[row])
            newest = example.history[-self.max_history :] if self.max_history else ()
            shown[row] = replace(shown[row], history=newest, summary=example.summary)
        factual = self._prompts(examples, shown)
        for row, example in enumerate(examples):
            if len(factual[row]) > self.max_prompt_tokens:
                shown[row], factual[row] = self._fit_history(example, shown[row])
        return shown, factual, counterfactual

    def _prompts(self, examples: Sequence[Example], shown: Sequence[_Shown]) -> list[list[int]]:
        texts = [
            build_prompt(
                what.item,
                example.target.rating,
                example.target.title,
                what.history,
                summary=what.summary,
                wording=self.wording,
            )
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
        """Maximum length of a prompt without history; the same under every method, so that all show the same item."""
        return self.max_prompt_tokens - int(HISTORY_SHARE * self.max_prompt_tokens)

    def _fit_item(self, example: Example, shown: _Shown, ids: list[int]) -> tuple[_Shown, list[int]]:
        """Cut the item's description, or its title, until the prompt without history fits.

        Raises:
            ModelError: The prompt is too long even without any text to cut.
        """
        kept = shown
        while (over := len(ids) - self._item_limit) > 0:
            clipped = _cut_longest(_item_cuts(kept), over)
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

    def _fit_history(self, example: Example, shown: _Shown) -> tuple[_Shown, list[int]]:
        """Drop reviews of the history, oldest first, except the newest; then cut the longest text of the history."""
        kept = shown
        while (over := len(ids := self._prompts([example], [kept])[0]) - self.max_prompt_tokens) > 0:
            if len(kept.history) > 1:
                kept = replace(kept, history=kept.history[1:])
                continue
            # If no text is left to cut, not even the titles of the newest review fit.
            kept = _cut_longest(_history_cuts(kept), over) or replace(kept, history=())
        self.truncation["past_reviews_dropped"] += len(shown.history) - len(kept.history)
        self.truncation["prompts_with_dropped_reviews"] += len(kept.history) < len(shown.history)
        self.truncation["prompts_with_clipped_text"] += replace(kept, history=kept.history[-1:]) != replace(
            shown, history=shown.history[-1:]
        )
        return kept, ids


def stop_id(tokenizer: Any, template: Template) -> int:
    """Return the token that ends an answer: the one that ends a turn of the template, else end-of-sequence.

    Raises:
        ModelError: There is neither, so no answer could end.
    """
    token = tokenizer.convert_tokens_to_ids(template.stop) if template.stop else tokenizer.eos_token_id
    if token is None:
        raise ModelError("the tokenizer has no end-of-sequence token", tokenizer.name_or_path, "set eos_token")
    return int(token)


def opening_ids(tokenizer: Any, template: Template) -> list[int]:
    """Return the ids before every prompt: the marker with which some tokenizers (Llama, Gemma) begin every text.

    Chat markup already contains it.
    """
    opens = template.name == "plain" and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return [tokenizer.bos_token_id] if opens else []


def prompt_lengths(prompt: int, target: int) -> dict[str, int]:
    """Return the tokens of a prompt and its answer, by the text that names their settings in error messages."""
    return {f"prompt.max_prompt_tokens {prompt} and prompt.max_target_tokens {target}": prompt + target}


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text that each token of an answer adds; joined, they are the decoded answer.

    A token that is decoded by itself may lose its leading blank, so each text is the difference of two decodings. Where
    a character takes several tokens, as an emoji does in byte-level BPE, its last token has the text and the others
    have none. Bytes at the end that never become a character show as the replacement character.

    Args:
        tokenizer: A Hugging Face tokenizer.
        ids: Ids of one answer from its beginning, stop token included.

    Returns:
        One text per token.
    """
    texts: list[str] = []
    # Decoding restarts at the piece before last, so the time grows linearly. The piece before it keeps a tokenizer of
    # the SentencePiece kind from treating a blank as the beginning of the text.
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


def _item_cuts(shown: _Shown) -> list[_Cut]:
    item = shown.item
    return [
        (len(item.description), lambda over: replace(shown, item=_without_end_of_description(item, over))),
        # A character of a title says more than one of a description.
        (len(item.title) // 2, lambda over: replace(shown, item=replace(item, title=_without_end(item.title, over)))),
    ]


def _history_cuts(shown: _Shown) -> list[_Cut]:
    summary: _Cut = (len(shown.summary), lambda over: replace(shown, summary=_without_end(shown.summary, over)))
    if not shown.history:
        return [summary]
    newest = shown.history[-1]

    def cut_text(over: int) -> _Shown:
        return replace(shown, history=(replace(newest, text=_without_end(newest.text, over)),))

    def cut_description(over: int) -> _Shown:
        return replace(shown, history=(replace(newest, item=_without_end_of_description(newest.item, over)),))

    return [summary, (len(newest.text), cut_text), (len(newest.item.description), cut_description)]


def _cut_longest(cuts: Sequence[_Cut], over: int) -> _Shown | None:
    """Cut the longest of these texts by up to `over` tokens; return None if no text is left.

    A token has at least one character, so cutting `over` characters never cuts too much; the caller repeats this.
    """
    length, cut = max(cuts, key=lambda one: one[0])
    return cut(over) if length else None


def _without_end_of_description(item: Item, over: int) -> Item:
    return replace(item, description=_without_end(item.description, over))


def _without_end(text: str, over: int) -> str:
    return text[:-over].rstrip()


MARKUP_FORM = re.compile(r"<[|｜][^\s<>]+[|｜]>")
BYTE_FORM = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""Tokens of single bytes, with which SentencePiece tokenizers encode characters outside their vocabulary."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids of one text.

    Attributes:
        ids: Token ids.
        markers: Whether each token is one that the tokenizer put around the text, such as [CLS] and [SEP].
        spans: Begin and end of each token in characters of the text; empty where they were not asked for.
    """

    ids: list[int]
    markers: list[bool]
    spans: list[tuple[int, int]] = field(default_factory=list)


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the control tokens of a tokenizer by their text.

    These are its special tokens, and those other added tokens that its chat template writes (`<tool_call>`, `<think>`)
    or that have the form `<|name|>`. Further added tokens, such as runs of blanks, stand for ordinary text.
    """
    template = tokenizer.chat_template or ""
    written = template if isinstance(template, str) else "\0".join(template.values())
    found = {str(text): int(tokenizer.convert_tokens_to_ids(text)) for text in tokenizer.all_special_tokens}
    for token, added in tokenizer.added_tokens_decoder.items():
        text = added.content
        in_markup = MARKUP_FORM.fullmatch(text) is not None or (text in written and not text.isspace())
        if added.special or in_markup:
            found[text] = int(token)
    return {text: token for text, token in found.items() if text and not BYTE_FORM.fullmatch(text)}


class UserTextTokenizer:
    """Encodes user text, alone or inside a prompt template, so that the text yields no control token.

    Texts are first encoded by the tokenizer itself. If that yields a control token that the template did not write, the
    text is encoded again by a copy of the tokenizer whose control tokens have random names. No user text can match
    them, and every other rule of the tokenizer is the same.

    Args:
        tokenizer: A Hugging Face tokenizer.
        template: Markup around a prompt's text.
    """

    def __init__(self, tokenizer: Any, template: Template = PLAIN) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.controls = control_tokens(tokenizer)
        self._control_ids = frozenset(self.controls.values())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of user texts without markers."""
        return [encoded.ids for encoded in self._encoded(texts, "", "", {"add_special_tokens": False})]

    def encode_located(self, texts: Sequence[str]) -> list[EncodedText]:
        """Return user texts without markers, with the characters that each token stands for."""
        return self._encoded(texts, "", "", {"add_special_tokens": False, "return_offsets_mapping": True})

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of prompts: each text between the template's opening and closing."""
        around = self.template.opening, self.template.closing
        return [encoded.ids for encoded in self._encoded(texts, *around, {"add_special_tokens": False})]

    def encode_marked(self, texts: Sequence[str], longest: int) -> list[EncodedText]:
        """Return texts between the tokenizer's markers, cut at `longest` tokens, as encoder models read them."""
        options = {"add_special_tokens": True, "truncation": True, "max_length": longest, "verbose": False}
        return self._encoded(texts, "", "", options)

    def _encoded(self, texts: Sequence[str], opening: str, closing: str, options: dict[str, Any]) -> list[EncodedText]:
        if not texts:
            return []
        found = self.tokenizer(
            [f"{opening}{text}{closing}" for text in texts], return_special_tokens_mask=True, **options
        )
        marked = options["add_special_tokens"]
        located = found.get("offset_mapping", [[]] * len(texts))
        encoded = [
            EncodedText(ids, [bool(marker) and marked for marker in mask], spans)
            for ids, mask, spans in zip(found["input_ids"], found["special_tokens_mask"], located, strict=True)
        ]
        allowed = Counter(token for token in self._markup_ids(opening, closing) if token in self._control_ids)
        for row, one in enumerate(encoded):
            pairs = zip(one.ids, one.markers, strict=True)
            if Counter(token for token, marker in pairs if token in self._control_ids and not marker) != allowed:
                encoded[row] = self._encoded_by_copy(texts[row], opening, closing, options)
        return encoded

    def _markup_ids(self, opening: str, closing: str) -> list[int]:
        if not opening and not closing:
            return []
        ids: list[int] = self.tokenizer(f"{opening}x{closing}", add_special_tokens=False)["input_ids"]
        return ids

    def _encoded_by_copy(self, text: str, opening: str, closing: str, options: dict[str, Any]) -> EncodedText:
        backend, names = self._copy
        pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")
        before, after = (pattern.sub(lambda match: names[match[0]], markup) for markup in (opening, closing))
        if "max_length" in options:
            direction = getattr(self.tokenizer, "truncation_side", "right")
            backend.enable_truncation(options["max_length"], direction=direction)
        else:
            backend.no_truncation()
        encoded = backend.encode(f"{before}{text}{after}", add_special_tokens=options["add_special_tokens"])
        marked = options["add_special_tokens"]
        spans = encoded.offsets if "return_offsets_mapping" in options else []
        return EncodedText(encoded.ids, [bool(marker) and marked for marker in encoded.special_tokens_mask], spans)

    @cached_property
    def _copy(self) -> tuple[Any, dict[str, str]]:
        """Return the tokenizer with renamed control tokens, and their new names by the old ones.

        Raises:
            ModelError: The tokenizer is not a fast one, or its control tokens cannot be renamed.
        """
        from tokenizers import Tokenizer

        original = getattr(self.tokenizer, "backend_tokenizer", None)
        if original is None:
            raise ModelError(
                "a text spells a control token, and only a fast tokenizer (tokenizer.json) can read that as text",
                str(self.tokenizer.name_or_path),
                "save the tokenizer as a fast one: AutoTokenizer.from_pretrained(NAME, use_fast=True).save_pretrained",
            )
        names = {text: f"<{secrets.token_hex(12)}>" for text in self.controls}
        copy = Tokenizer.from_str(json.dumps(_renamed(json.loads(original.to_str()), names)))
        copy.no_padding()
        copy.encode_special_tokens = False
        if any(copy.token_to_id(name) != self.controls[text] for text, name in names.items()):
            raise ModelError(
                "the control tokens of the tokenizer cannot be kept out of text",
                str(self.tokenizer.name_or_path),
                "use the tokenizer files that the model was published with",
            )
        return copy, names


def _renamed(description: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return a tokenizer.json with other names for its control tokens, in the added tokens and in the vocabulary.

    Otherwise a Unigram model, or a merge of BPE, would build a control token from its characters.
    """
    for token in description["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = description["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): token for text, token in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _builds_one_of(merge, names)]
    return description


def _builds_one_of(merge: str | list[str], names: dict[str, str]) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    return "".join(parts) in names or any(part in names for part in parts)
