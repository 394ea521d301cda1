"""User text as token ids, in which no control token ever arises.

A tokenizer reads `</s>` or `<|im_end|>` inside a review as the control token of that name, so a review could end an
answer or forge a turn of a chat. Here only the markup of a prompt template is read that way. Text without such a string
keeps exactly the ids that the tokenizer gives it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nextquill_core.errors import ModelError
from nextquill_core.prompts import PLAIN, Template

MARKUP_FORM = re.compile(r"<[|｜][^\s<>]+[|｜]>")
BYTE_FORM = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""Tokens of single bytes, from which tokenizers of the SentencePiece kind build characters outside their vocabulary."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids of one text.

    Attributes:
        ids: Token ids.
        markers: Which tokens the tokenizer put around the text, such as [CLS] and [SEP].
    """

    ids: list[int]
    markers: list[bool]


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the control tokens of a tokenizer, by their text.

    These are its special tokens, and of its other added tokens those that its chat template writes (`<tool_call>`,
    `<think>`) or that have the form `<|name|>`. Other added tokens, such as runs of blanks, stand for ordinary text.
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
    """Encodes user text, alone or inside a prompt template, without control tokens arising from the text.

    Texts are first encoded by the tokenizer itself. Where that gives a control token that the template did not write,
    the text is encoded again by a copy of the tokenizer whose control tokens have other, random names: nothing that a
    user writes can match them, and every other rule of the tokenizer is the same.

    Args:
        tokenizer: A Hugging Face tokenizer.
        template: The markup around a prompt's text.
    """

    def __init__(self, tokenizer: Any, template: Template = PLAIN) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.controls = control_tokens(tokenizer)
        self._control_ids = frozenset(self.controls.values())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts by users, without any marker."""
        return [encoded.ids for encoded in self._encoded(texts, "", "", {"add_special_tokens": False})]

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of prompts: each text between the template's opening and closing."""
        around = self.template.opening, self.template.closing
        return [encoded.ids for encoded in self._encoded(texts, *around, {"add_special_tokens": False})]

    def encode_marked(self, texts: Sequence[str], longest: int) -> list[EncodedText]:
        """Return texts between the tokenizer's own markers, cut at `longest` tokens, as encoder models read them."""
        options = {"add_special_tokens": True, "truncation": True, "max_length": longest, "verbose": False}
        return self._encoded(texts, "", "", options)

    def _encoded(self, texts: Sequence[str], opening: str, closing: str, options: dict[str, Any]) -> list[EncodedText]:
        if not texts:
            return []
        found = self.tokenizer(
            [f"{opening}{text}{closing}" for text in texts], return_special_tokens_mask=True, **options
        )
        marked = options["add_special_tokens"]
        encoded = [
            EncodedText(ids, [bool(marker) and marked for marker in mask])
            for ids, mask in zip(found["input_ids"], found["special_tokens_mask"], strict=True)
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
        return EncodedText(encoded.ids, [bool(marker) and marked for marker in encoded.special_tokens_mask])

    @cached_property
    def _copy(self) -> tuple[Any, dict[str, str]]:
        """The tokenizer with renamed control tokens, and their new names by the old ones.

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
    """A tokenizer.json with other names for its control tokens: among the added tokens and in the model's vocabulary.

    A model of the Unigram kind, or a merge of BPE, would build a control token from its characters otherwise.
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
