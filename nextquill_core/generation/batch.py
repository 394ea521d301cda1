"""The decoding loop: rows read, chosen for, and gone as soon as they are finished."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nextquill_core.causal.scorer import is_out_of_memory
from nextquill_core.generation.cache import Rows, advance, joined
from nextquill_core.generation.decoding import Decoding
from nextquill_core.generation.engines import CUT, STOPPED, Request
from nextquill_core.generation.prefill import Reader
from nextquill_core.generation.sampling import next_tokens, penalised, steered

SHARE = 16  # finished rows leave when they are a sixteenth: at once in small batches, not at every step in large ones


@dataclass(eq=False, slots=True)
class Row:
    """One answer in the making.

    Attributes:
        index: Its place among the requests.
        limit: Most tokens that it may have.
        draws: Its own source of chance; None for greedy decoding.
        reason: Why it ended; empty until then.
        began: When the prompts of its batch began to be read.
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
        """Positions that it holds in the caches."""
        prompts = [prompt for prompt in (self.request.prompt, self.request.without) if prompt is not None]
        return sum(len(prompt) + len(self.output) for prompt in prompts)

    def take(self, token: int, stops: frozenset[int]) -> bool:
        """Go on by one token; whether that was the end."""
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
    """What the model has read of one prompt of each row, and the logits of the token that comes next, (B, V)."""

    rows: Rows
    logits_BV: Tensor


@dataclass(eq=False)
class Batch:
    """Rows that decode together; takes what it can from the waiting ones whenever a sixteenth of it has finished.

    Attributes:
        reader: Of the model, for prompts.
        steering: CoS's λ; read for rows that have a prompt without history.
        fits: Whether so many rows of so many positions each may be in the batch.
        adapters: What the model is to be told of these rows' adapters.
        waiting: Rows yet to come, longest first; all steered or none.
        finish: Told of every row that has finished.
        rows: Those in the batch; when memory runs out, those that were.
        branches: With history, and where rows are steered, without.
        seen_BV: Tokens of each row's prompt and output, where repetition is penalised.
    """

    model: Any
    reader: Reader
    decoding: Decoding
    steering: float | None
    stops: frozenset[int]
    fits: Callable[[int, int], bool]
    adapters: Callable[[Sequence[Row]], dict[str, list[str]]]
    waiting: deque[Row]
    finish: Callable[[Row], None]
    rows: list[Row] = field(default_factory=list)
    branches: list[_Branch] = field(default_factory=list)
    seen_BV: Tensor | None = None

    def run(self) -> bool:
        """Decode until nobody waits; False where memory ran out before."""
        try:
            while self._renew():
                tokens_B = self._choose()
                if not all(row.reason for row in self.rows):
                    names = self.adapters(self.rows)
                    for branch in self.branches:
                        branch.logits_BV = advance(self.model, branch.rows, tokens_B, **names)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.branches, self.seen_BV = [], None
            return False
        return True

    def _renew(self) -> bool:
        """Let the finished rows go and others in, once that is worth copying the rest; False when no row is left."""
        kept = [place for place, row in enumerate(self.rows) if not row.reason]
        if SHARE * (len(self.rows) - len(kept)) < len(self.rows):
            return True
        if not kept:
            self.branches, self.seen_BV = [], None
        staying = [self.rows[place] for place in kept]
        coming = self._coming(staying)
        self.rows = staying + coming
        if not self.rows:
            return False
        prompts = [[row.request.prompt for row in coming]]
        if self.rows[0].request.without is not None:
            prompts.append([row.request.without or [] for row in coming])
        before: Sequence[_Branch | None] = self.branches or [None] * len(prompts)
        self.branches = [self._branch(old, kept, coming, texts) for old, texts in zip(before, prompts, strict=True)]
        if self.decoding.repetition_penalty != 1.0:
            self._remember(kept, coming)
        return True

    def _coming(self, staying: Sequence[Row]) -> list[Row]:
        coming: list[Row] = []
        longest = max((row.size for row in staying), default=0)
        while self.waiting:
            longest = max(longest, self.waiting[0].size)
            if not self.fits(len(staying) + len(coming) + 1, longest):
                break
            coming.append(self.waiting.popleft())
            coming[-1].began = time.perf_counter()
        return coming

    def _branch(
        self, old: _Branch | None, kept: Sequence[int], coming: Sequence[Row], prompts: Sequence[list[int]]
    ) -> _Branch:
        parts: list[tuple[Rows, Sequence[int]]] = [(old.rows, kept)] if old else []
        logits = [old.logits_BV[kept]] if old else []
        for rows, behind_BV in self.reader.read(prompts, lambda group: self.adapters(coming[group])):
            parts.append((rows, range(len(rows.lengths))))
            logits.append(behind_BV)
        return _Branch(joined(parts), torch.cat(logits))

    def _remember(self, kept: Sequence[int], coming: Sequence[Row]) -> None:
        fresh_BV = torch.zeros_like(self.branches[0].logits_BV[len(kept) :], dtype=torch.bool)
        for seen_V, row in zip(fresh_BV, coming, strict=True):
            seen_V[torch.tensor(row.request.prompt, device=seen_V.device)] = True
        self.seen_BV = fresh_BV if self.seen_BV is None else torch.cat([self.seen_BV[kept], fresh_BV])

    def _choose(self) -> Tensor:
        """The next token of each row, (B,), noted in the rows; those that finished before draw on without effect."""
        logits_BV = self.branches[0].logits_BV
        if len(self.branches) == 2 and self.steering is not None:
            logits_BV = steered(logits_BV, self.branches[1].logits_BV, self.steering)
        if self.seen_BV is not None:
            logits_BV = penalised(logits_BV, self.seen_BV, self.decoding.repetition_penalty)
        drawn = [torch.rand((), generator=row.draws, dtype=torch.float64) for row in self.rows if row.draws is not None]
        tokens_B = next_tokens(logits_BV, self.decoding, torch.stack(drawn) if drawn else None)
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, tokens_B[:, None], True)
        for row, token in zip(self.rows, tokens_B.tolist(), strict=True):
            if not row.reason and row.take(token, self.stops):
                self.finish(row)
        return tokens_B
