"""The engine that runs a model in this process, by its own decoding loop or by continuous batching.

In the decoding loop, rows join the batch by prefill and leave it as soon as they are finished.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from nextquill_core.errors import ModelError
from nextquill_core.generation.cache import CachedRows, Prefiller, check_cache, decode_step, joined, room_in_memory
from nextquill_core.generation.decoding import Contrast, Decoding, next_tokens, penalised
from nextquill_core.generation.engines import (
    BASE,
    CUT,
    STOPPED,
    Generation,
    Request,
    Usage,
    discard,
    finished_text,
    no_progress,
    request_seed,
)
from nextquill_core.memory import is_out_of_memory, peak_memory

logger = logging.getLogger(__name__)

ADAPTER = "default"  # PEFT's name for the adapter of a model that has one
Joining = Literal["when rows leave", "at once"]


class TransformersEngine:
    """Generates with a Hugging Face model in this process.

    Each row of a batch has its own mask and positions, so an answer does not depend on the rest of its batch, except
    for ties within rounding. Finished rows leave the batch, and waiting requests take their places. On a GPU, greedy
    decoding without penalty, contrast and adapters uses transformers' continuous batching instead, which has no padding
    at all; the tokens are the same.

    Args:
        model: A causal language model in evaluation mode, with or without PEFT adapters.
        tokenizer: Its tokenizer. Answers stop at its end-of-sequence token and at those of the model's generation
            config.
        decoding: The preset.
        max_new_tokens: Maximum number of tokens in an answer.
        batch_tokens: Maximum number of positions in a batch, padding included, when rows join it; a single row may have
            more. None for as many as fit into half of the free memory.
        stop: The token with which the prompts' template ends an answer; answers stop at it too. None for no other.
        contrast: How the two branches of a request become one; None where no request has two.
        seed: Seed of the run; see `Request.key`.
        continuous: Whether to use continuous batching where it is possible; None for what is faster on the device.

    Raises:
        ModelError: The model caches something else than keys and values.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        decoding: Decoding,
        *,
        max_new_tokens: int,
        batch_tokens: int | None,
        stop: int | None = None,
        contrast: Contrast | None = None,
        seed: int = 0,
        continuous: bool | None = None,
    ) -> None:
        check_cache(model)
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding
        self.max_new_tokens, self.contrast, self.seed = max_new_tokens, contrast, seed
        self.batch_tokens = batch_tokens if batch_tokens is not None else room_in_memory(model)
        self.usage = Usage()
        self.stops = stop_tokens(model, tokenizer, stop)
        self._one_branch = contrast is None or contrast.neutral
        plain = decoding.greedy and decoding.repetition_penalty == 1.0 and self._one_branch
        wanted = continuous if continuous is not None else model.device.type != "cpu"
        self._continuous = plain and wanted and hasattr(model, "generate_batch")
        self._most_rows = sys.maxsize
        self.prefiller = Prefiller(model)

    def generate(
        self,
        requests: Sequence[Request],
        advance: Callable[[int], None] = no_progress,
        *,
        keep: Callable[[Request, Generation], None] = discard,
    ) -> list[Generation]:
        """Answer every request; see `Engine.generate`.

        Args:
            requests: As for `Engine.generate`.
            advance: As for `Engine.generate`.
            keep: As for `Engine.generate`.

        Raises:
            ModelError: The model holds no adapter of a request's name, or memory does not suffice for one row.
            ValueError: A request has two branches and the engine has no contrast.
        """
        self.check(requests)
        started = time.perf_counter()
        answers: dict[int, Generation] = {}

        def finish(row: Row) -> None:
            answers[row.index] = self.answer(row)
            keep(requests[row.index], answers[row.index])
            advance(1)

        try:
            if self._continuous and all(request.adapter is None for request in requests):
                self._continuously(requests, finish)
            rows = [self.row(index, request) for index, request in enumerate(requests) if index not in answers]
            for count in (2, 1):
                self._decode([row for row in rows if len(row.request.branches) == count], finish)
        finally:
            self.usage.seconds += time.perf_counter() - started
            self.usage.peak_bytes = max(self.usage.peak_bytes, peak_memory(self.model.device))
        return [answers[index] for index in range(len(requests))]

    def check(self, requests: Sequence[Request]) -> None:
        """Make sure that the engine can answer requests.

        Raises:
            ModelError: The model holds no adapter of a request's name.
            ValueError: A request has two branches and the engine has no contrast.
        """
        if self.contrast is None and any(len(request.branches) == 2 for request in requests):
            raise ValueError("a request has two branches, and the engine has no contrast")
        named = {adapter for request in requests for _, adapter in request.branches}
        unknown = named - set(self._adapters) - {None, BASE}
        if unknown:
            raise ModelError(f"the model holds no adapter {min(map(str, unknown))!r}", "Request.adapter")

    def row(self, index: int, request: Request) -> Row:
        """Return the row of a request that begins to be answered.

        Args:
            index: Number by which the caller knows the request.
            request: The request; two branches that give the same answer as one become one.
        """
        if self._one_branch or request.branches[0] == request.branches[-1]:  # nothing to contrast with
            request = replace(request, counterfactual=None)
        draws = None
        if not self.decoding.greedy:
            draws = torch.Generator().manual_seed(request_seed(self.seed, request.key))
        return Row(index, request, min(request.limit or self.max_new_tokens, self.max_new_tokens), draws)

    def answer(self, row: Row) -> Generation:
        """Return the answer of a finished row, and count what it has cost."""
        self.usage.answers += 1
        self.usage.prompt_tokens += sum(len(prompt) for prompt, _ in row.request.branches)
        self.usage.new_tokens += len(row.output)
        self.usage.first_token_seconds += row.first_token_seconds
        text = self.tokenizer.decode(row.output, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generation(finished_text(text), len(row.output), row.reason)

    def halve_batch(self, tried: int) -> None:
        """Allow only half as many rows in a batch, after memory ran out.

        Args:
            tried: Number of rows in the batch.

        Raises:
            ModelError: It was a single row.
        """
        if tried == 1:
            raise ModelError(
                "out of memory with one answer alone", "evaluate", "lower prompt.max_prompt_tokens or max_new_tokens"
            )
        self._most_rows = tried // 2
        self.usage.retries += 1
        logger.warning("out of memory: continuing with %d answers at a time", self._most_rows)
        if self._adapters:
            forget_adapter_names(self.model)
        if self.model.device.type != "cpu":
            torch.accelerator.empty_cache()

    @torch.inference_mode()
    def _decode(self, rows: Sequence[Row], finish: Callable[[Row], None]) -> None:
        """Decode rows, longest first, so that padding is small and a lack of memory shows at once."""
        waiting = deque(sorted(rows, key=lambda row: (-row.size, row.index)))
        while waiting:
            batch = Batch(self, finish, waiting)
            if batch.run():
                break
            self.halve_batch(len(batch.rows))
            again = [self.row(row.index, row.request) for row in batch.rows if not row.reason]
            waiting = deque([*again, *batch.waiting])  # from the start, with new generators

    def fits(self, rows: int, size: int, held: int) -> bool:
        """Return whether rows may be in a batch together.

        Args:
            rows: Their number.
            size: Positions of the longest.
            held: Positions that other batches hold.
        """
        return rows <= 1 or (rows <= self._most_rows and rows * size + held <= self.batch_tokens)

    @property
    def _adapters(self) -> Collection[str]:
        """The names of the model's adapters, which may change while the engine exists."""
        return getattr(self.model, "peft_config", {}).keys()

    def adapters_of(self, rows: Sequence[Row], branch: int) -> dict[str, list[str]]:
        """Return PEFT's argument for the adapters of a branch; none where all rows use the model's active adapter."""
        if not self._adapters:
            return {}
        usual = ADAPTER if ADAPTER in self._adapters else BASE
        names = [row.request.branches[branch][1] or usual for row in rows]
        return {} if set(names) == {self.model.active_adapter} else {"adapter_names": names}

    def _continuously(self, requests: Sequence[Request], finish: Callable[[Row], None]) -> None:
        """Answer by transformers' continuous batching; what it fails to answer is left to the loop."""
        model = self.model.get_base_model() if self._adapters else self.model
        rows = [self.row(index, request) for index, request in enumerate(requests)]
        results = model.generate_batch(
            [row.request.prompt for row in rows],
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max((row.limit for row in rows), default=1),
                eos_token_id=sorted(self.stops) or None,
                pad_token_id=0,
            ),
            continuous_batching_config=ContinuousBatchingConfig(auto_switch_to_flash=False),
            record_timestamps=True,
        )
        for name, result in results.items():  # named req_0, req_1, ... in the order of the prompts
            row = rows[int(name.removeprefix("req_"))]
            if any(row.append(token, self.stops) for token in result.generated_tokens):  # up to the end only
                row.first_token_seconds = result.timestamps[0] - result.lifespan[0]
                finish(row)


def stop_tokens(model: Any, tokenizer: Any, stop: int | None = None) -> frozenset[int]:
    """Return the tokens that end an answer: the template's, the tokenizer's and the model's.

    Args:
        model: Its generation config names end-of-sequence tokens.
        tokenizer: Its end-of-sequence token counts too.
        stop: The template's token, if there is one.
    """
    settings = getattr(model, "generation_config", None)
    configured = getattr(settings, "eos_token_id", None)
    several = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(token for token in (*several, tokenizer.eos_token_id, stop) if token is not None)


def forget_adapter_names(model: Any) -> None:
    """Remove the hooks by which PEFT passes the rows' adapters to its layers.

    PEFT leaves them after a failed pass, and they would apply to later passes with other rows.
    """
    for module in model.modules():
        hooks = module._forward_pre_hooks
        left = [key for key, hook in hooks.items() if getattr(hook, "func", hook).__module__.startswith("peft.")]
        for key in left:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


SHARE = 16  # finished rows leave once they are a sixteenth: at once in small batches, not at every step in large ones


@dataclass(eq=False, slots=True)
class Row:
    """One answer that is being generated.

    Attributes:
        index: Position among the requests.
        request: What is asked.
        limit: Maximum number of tokens.
        draws: Random generator of this row; None for greedy decoding.
        output: Token ids so far.
        reason: Why it ended; empty until then.
        began: When its prefill began, seconds of `time.perf_counter`.
        first_token_seconds: Time from then to the first token.
    """

    index: int
    request: Request
    limit: int
    draws: torch.Generator | None
    output: list[int] = field(default_factory=list)
    reason: str = ""
    began: float = 0.0
    first_token_seconds: float = 0.0

    @property
    def size(self) -> int:
        """Number of positions in the caches."""
        return sum(len(prompt) + len(self.output) for prompt, _ in self.request.branches)

    def append(self, token: int, stops: frozenset[int]) -> bool:
        """Append a token and return whether the answer has ended."""
        if not self.output:
            self.first_token_seconds = time.perf_counter() - self.began
        if token in stops:
            self.reason = STOPPED
        else:
            self.output.append(token)
            if len(self.output) == self.limit:
                self.reason = CUT
        return bool(self.reason)


@dataclass
class _Branch:
    """The cached rows of one prompt of each answer, and the logits of the next token, (B, V)."""

    rows: CachedRows
    logits_BV: Tensor


@dataclass(eq=False)
class Batch:
    """Rows of an engine that are decoded together, and rows that wait to join them.

    Attributes:
        engine: The engine, whose model and settings hold for all rows.
        finish: Receives every finished row.
        waiting: Rows yet to join, in this order; all with the same number of branches.
        joining: When waiting rows join: once a sixteenth of the batch has finished, which copies the cache of the other
            rows least often, or as soon as they fit.
        held: Returns the number of positions that other batches hold of the engine's memory.
        rows: Rows in the batch; after memory ran out, those that were in it.
        branches: The one that is decoded and, where rows have two, the one it is contrasted with.
        seen_BV: Tokens of each row's prompt and output, where repetition is penalised.
    """

    engine: TransformersEngine
    finish: Callable[[Row], None]
    waiting: deque[Row] = field(default_factory=deque)
    joining: Joining = "when rows leave"
    held: Callable[[], int] = lambda: 0
    rows: list[Row] = field(default_factory=list)
    branches: list[_Branch] = field(default_factory=list)
    seen_BV: Tensor | None = None

    def run(self) -> bool:
        """Decode until no row is left; return False if memory ran out first."""
        try:
            while self.step():
                pass
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.branches, self.seen_BV = [], None
            return False
        return True

    @property
    def positions(self) -> int:
        """Number of positions that the rows hold, padding included."""
        return len(self.rows) * self._longest(range(len(self.rows)))

    def clear(self) -> list[Row]:
        """Remove all rows from the batch, and return those that were not finished."""
        left = [row for row in self.rows if not row.reason]
        self.rows, self.branches, self.seen_BV = [], [], None
        return left

    def step(self) -> bool:
        """Decode one token of each row; return False if there is no row."""
        if not self._exchange_rows():
            return False
        tokens_B = self._append_tokens()
        if not all(row.reason for row in self.rows):
            for number, branch in enumerate(self.branches):
                names = self.engine.adapters_of(self.rows, number)
                branch.logits_BV = decode_step(self.engine.model, branch.rows, tokens_B, **names)
        return True

    def _exchange_rows(self) -> bool:
        """Replace finished rows by waiting ones once that is worth copying the rest; return False when none is left."""
        kept = [place for place, row in enumerate(self.rows) if not row.reason]
        few_left = SHARE * (len(self.rows) - len(kept)) < len(self.rows)
        if few_left and not (self.joining == "at once" and self._next_fits(len(kept), self._longest(kept))):
            return True
        if not kept:
            self.branches, self.seen_BV = [], None
        staying = [self.rows[place] for place in kept]
        joining = self._take_waiting(len(kept), self._longest(kept))
        self.rows = staying + joining
        if not self.rows:
            return False
        before: Sequence[_Branch | None] = self.branches or [None] * len(self.rows[0].request.branches)
        self.branches = [self._extended(number, old, kept, joining) for number, old in enumerate(before)]
        if self.engine.decoding.repetition_penalty != 1.0:
            self._mark_seen(kept, joining)
        return True

    def _longest(self, places: Sequence[int]) -> int:
        return max((self.rows[place].size for place in places), default=0)

    def _next_fits(self, count: int, longest: int) -> bool:
        """Return whether the next waiting row may join this number of rows, of up to this size."""
        return bool(self.waiting) and self.engine.fits(count + 1, max(longest, self.waiting[0].size), self.held())

    def _take_waiting(self, count: int, longest: int) -> list[Row]:
        joining: list[Row] = []
        while self._next_fits(count + len(joining), longest):
            joining.append(self.waiting.popleft())
            longest = max(longest, joining[-1].size)
            joining[-1].began = time.perf_counter()
        return joining

    def _extended(self, number: int, old: _Branch | None, kept: Sequence[int], joining: Sequence[Row]) -> _Branch:
        parts: list[tuple[CachedRows, Sequence[int]]] = [(old.rows, kept)] if old else []
        logits = [old.logits_BV[kept]] if old else []
        prompts = [row.request.branches[number][0] for row in joining]
        for rows, next_BV in self.engine.prefiller(
            prompts, lambda group: self.engine.adapters_of(joining[group], number)
        ):
            parts.append((rows, range(len(rows.lengths))))
            logits.append(next_BV)
        return _Branch(joined(parts), torch.cat(logits))

    def _mark_seen(self, kept: Sequence[int], joining: Sequence[Row]) -> None:
        fresh_BV = torch.zeros_like(self.branches[0].logits_BV[len(kept) :], dtype=torch.bool)
        for seen_V, row in zip(fresh_BV, joining, strict=True):
            seen_V[torch.tensor(row.request.prompt, device=seen_V.device)] = True
        self.seen_BV = fresh_BV if self.seen_BV is None else torch.cat([self.seen_BV[kept], fresh_BV])

    def _append_tokens(self) -> Tensor:
        """Choose and append the next token of each row, (B,); rows that finished before draw without effect."""
        logits_BV, decoding = self.branches[0].logits_BV, self.engine.decoding
        if len(self.branches) == 2 and self.engine.contrast is not None:
            logits_BV = self.engine.contrast(logits_BV, self.branches[1].logits_BV)
        if self.seen_BV is not None:
            logits_BV = penalised(logits_BV, self.seen_BV, decoding.repetition_penalty)
        drawn = [torch.rand((), generator=row.draws, dtype=torch.float64) for row in self.rows if row.draws is not None]
        tokens_B = next_tokens(logits_BV, decoding, torch.stack(drawn) if drawn else None)
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, tokens_B[:, None], True)
        for row, token in zip(self.rows, tokens_B.tolist(), strict=True):
            if not row.reason and row.append(token, self.engine.stops):
                self.finish(row)
        return tokens_B
