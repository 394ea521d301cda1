"""Writing reviews: prompts in, texts out, in length-sorted batches, with masks and stop tokens always in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

STOPPED, CUT = "stop", "length"


@dataclass(frozen=True)
class Decoding:
    """A decoding preset.

    Attributes:
        repetition_penalty: Divides (or multiplies, if negative) the logit of every token seen in prompt or output.
    """

    name: str
    summary: str
    repetition_penalty: float = 1.0


DECODINGS: dict[str, Decoding] = {
    preset.name: preset
    for preset in (
        Decoding("paper", "greedy, repetition penalty 1.2 over prompt and output (official code)", 1.2),
        Decoding("sane", "greedy, no penalty"),
    )
}


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer: its text, its length in tokens (stop token not counted), and why it ended."""

    text: str
    n_tokens: int
    finish_reason: str


class UnpaddedRepetitionPenalty(LogitsProcessor):  # type: ignore[misc]
    """The repetition penalty over real tokens only.

    The library's own also penalises what stands in the padding. Where padding is the stop token, short prompts in a
    batch would then find it harder to stop than long ones.

    Args:
        penalty: > 1 discourages repetition.
        lengths_B: Real tokens of each left-padded prompt.
    """

    def __init__(self, penalty: float, lengths_B: Tensor) -> None:
        self.penalty = penalty
        self.lengths_B = lengths_B
        self.width = int(lengths_B.max())

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Penalised scores, shape (B, V)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        real_BT = positions[None] >= (self.width - self.lengths_B)[:, None]
        seen_BV = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids)
        seen_BV[rows[real_BT], input_ids[real_BT]] = True
        penalised = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen_BV, penalised, scores)


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, so that padding is small and memory trouble comes at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // lengths[order[start]])
        yield order[start : start + size]
        start += size


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    max_new_tokens: int,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda finished: None,
) -> list[Generation]:
    """Answer every prompt.

    Args:
        model: A causal language model, with or without adapter.
        tokenizer: Its tokenizer; its end-of-sequence token stops an answer.
        prompts: Prompt ids.
        decoding: The preset.
        max_new_tokens: Longest answer.
        batch_tokens: Prompt positions of a batch, padding included.
        advance: Told of every batch: how many prompts it finished.

    Returns:
        The answers in the order of the prompts.
    """
    answers: list[Generation | None] = [None] * len(prompts)
    for batch in batches_by_length([len(prompt) for prompt in prompts], batch_tokens):
        chosen = [list(prompts[index]) for index in batch]
        for index, answer in zip(
            batch, _generate_batch(model, tokenizer, chosen, decoding, max_new_tokens), strict=True
        ):
            answers[index] = answer
        advance(len(batch))
    return [answer for answer in answers if answer is not None]


def _generate_batch(
    model: Any, tokenizer: Any, prompts: list[list[int]], decoding: Decoding, max_new_tokens: int
) -> list[Generation]:
    stop = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop
    width = max(map(len, prompts))
    ids_BT = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    mask_BT = torch.arange(width, device=model.device)[None] >= (width - lengths_B)[:, None]
    processors = LogitsProcessorList()
    if decoding.repetition_penalty != 1.0:
        processors.append(UnpaddedRepetitionPenalty(decoding.repetition_penalty, lengths_B))
    output = model.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT.long(),
        logits_processor=processors,
        do_sample=False,
        repetition_penalty=1.0,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=pad,
    )
    return [_finished(tokenizer, row, stop) for row in output[:, width:].tolist()]


def _finished(tokenizer: Any, row: list[int], stop: int) -> Generation:
    reason = STOPPED if stop in row else CUT
    ids = row[: row.index(stop)] if stop in row else row
    return Generation(tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids), reason)
