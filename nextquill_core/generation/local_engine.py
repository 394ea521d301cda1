"""The engine on a model in this process: prompts in, texts out, by our own loop or by continuous batching."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from nextquill_core.errors import ModelError
from nextquill_core.generation.batch import Batch, Row
from nextquill_core.generation.cache import check_cache, room_in_memory
from nextquill_core.generation.decoding import Decoding
from nextquill_core.generation.engines import (
    BASE,
    Generation,
    Request,
    Usage,
    finished_text,
    request_seed,
    unheard,
    unkept,
)
from nextquill_core.generation.prefill import Reader

logger = logging.getLogger(__name__)

ADAPTER = "default"  # PEFT's name for the adapter of a model that has one


class TransformersEngine:
    """Decodes with a Hugging Face model in this process.

    Every row of a batch is masked and placed for itself, so an answer does not depend on what else is in its batch, but
    for ties within rounding. Rows that have finished leave, and waiting requests take their places. On a GPU, greedy
    decoding without penalty, steering and adapters goes through transformers' continuous batching instead, which keeps
    no padding at all; the tokens are the same.

    Args:
        model: A causal language model in evaluation mode, with or without PEFT adapters.
        tokenizer: Its tokenizer. Answers stop at its end-of-sequence token and at those of the model's generation
            config.
        stop: The token with which the prompts' template ends an answer; answers stop at it too. None for no other.
        decoding: The preset.
        max_new_tokens: Longest answer.
        batch_tokens: Positions of a batch, padding included, when rows join it; one row may have more. None for as many
            as half of the free memory has room for.
        steering: CoS's λ; None to steer nothing.
        seed: Of the run; see `Request.key`.
        continuous: Whether to use continuous batching where it can be; None for what is faster on the model's device.

    Raises:
        ModelError: The model keeps something else than keys and values of what it has read.
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
        steering: float | None = None,
        seed: int = 0,
        continuous: bool | None = None,
    ) -> None:
        check_cache(model)
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding
        self.max_new_tokens, self.steering, self.seed = max_new_tokens, steering, seed
        self.batch_tokens = batch_tokens if batch_tokens is not None else room_in_memory(model)
        self.usage = Usage()
        self.stops = stop_tokens(model, tokenizer, stop)
        self._held = frozenset(getattr(model, "peft_config", ()))
        plain = decoding.greedy and decoding.repetition_penalty == 1.0 and steering is None
        wanted = continuous if continuous is not None else model.device.type != "cpu"
        self._continuous = plain and wanted and hasattr(model, "generate_batch")
        self._most_rows = sys.maxsize
        self._reader = Reader(model)

    def generate(
        self,
        requests: Sequence[Request],
        advance: Callable[[int], None] = unheard,
        *,
        keep: Callable[[Request, Generation], None] = unkept,
    ) -> list[Generation]:
        """Answer every request; see `Engine.generate`.

        Raises:
            ModelError: The model holds no adapter of a request's name, or memory does not suffice for one row.
            ValueError: A request is to be steered and the engine was told no strength.
        """
        self._check(requests)
        started = time.perf_counter()
        answers: dict[int, Generation] = {}

        def finish(row: Row) -> None:
            text = self.tokenizer.decode(row.output, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            answers[row.index] = Generation(finished_text(text), len(row.output), row.reason)
            self._count(row)
            keep(requests[row.index], answers[row.index])
            advance(1)

        try:
            if self._continuous and all(request.adapter is None for request in requests):
                self._continuously(requests, finish)
            rows = [self._row(index, request) for index, request in enumerate(requests) if index not in answers]
            for steered in (True, False):
                self._decode([row for row in rows if (row.request.without is not None) == steered], finish)
        finally:
            self.usage.seconds += time.perf_counter() - started
            self.usage.peak_bytes = max(self.usage.peak_bytes, _peak_bytes(self.model.device))
        return [answers[index] for index in range(len(requests))]

    def _check(self, requests: Sequence[Request]) -> None:
        if self.steering is None and any(request.without is not None for request in requests):
            raise ValueError("a request is to be steered, and the engine has no steering strength")
        unknown = {request.adapter for request in requests} - self._held - {None, BASE}
        if unknown:
            raise ModelError(f"the model holds no adapter {min(map(str, unknown))!r}", "Request.adapter")

    def _row(self, index: int, request: Request) -> Row:
        if request.without == request.prompt:  # nothing to steer away from
            request = Request(request.key, request.prompt, None, request.adapter, request.limit)
        draws = None
        if not self.decoding.greedy:
            draws = torch.Generator().manual_seed(request_seed(self.seed, request.key))
        return Row(index, request, min(request.limit or self.max_new_tokens, self.max_new_tokens), draws)

    def _count(self, row: Row) -> None:
        self.usage.answers += 1
        self.usage.prompt_tokens += len(row.request.prompt) + len(row.request.without or ())
        self.usage.new_tokens += len(row.output)
        self.usage.first_token_seconds += row.first_token_seconds

    @torch.inference_mode()
    def _decode(self, rows: Sequence[Row], finish: Callable[[Row], None]) -> None:
        """Longest first, so that padding is small and memory trouble comes at once."""
        waiting = deque(sorted(rows, key=lambda row: (-row.size, row.index)))
        while waiting:
            batch = Batch(
                model=self.model,
                reader=self._reader,
                decoding=self.decoding,
                steering=self.steering,
                stops=self.stops,
                fits=self._fits,
                adapters=self._adapters_of,
                waiting=waiting,
                finish=finish,
            )
            if batch.run():
                break
            self._make_do_with_less(len(batch.rows))
            again = [self._row(row.index, row.request) for row in batch.rows if not row.reason]
            waiting.extendleft(reversed(again))  # from their beginnings, with fresh generators

    def _make_do_with_less(self, tried: int) -> None:
        if tried == 1:
            raise ModelError(
                "out of memory with one answer alone", "evaluate", "lower prompt.max_prompt_tokens or max_new_tokens"
            )
        self._most_rows = tried // 2
        self.usage.retries += 1
        logger.warning("out of memory: going on with %d answers at a time", self._most_rows)
        if self._held:
            forget_adapter_names(self.model)
        if self.model.device.type != "cpu":
            torch.accelerator.empty_cache()

    def _fits(self, rows: int, size: int) -> bool:
        """Whether so many rows of this size each may be in a batch."""
        return rows <= 1 or (rows <= self._most_rows and rows * size <= self.batch_tokens)

    def _adapters_of(self, rows: Sequence[Row]) -> dict[str, list[str]]:
        """What PEFT is to be told of the rows' adapters: nothing where the model as it is serves all of them."""
        usual = ADAPTER if ADAPTER in self._held else BASE
        names = [row.request.adapter or usual for row in rows]
        return {"adapter_names": names} if self._held and set(names) != {ADAPTER} else {}

    def _continuously(self, requests: Sequence[Request], finish: Callable[[Row], None]) -> None:
        """What transformers' continuous batching fails to answer is left to the loop."""
        model = self.model.get_base_model() if self._held else self.model
        rows = [self._row(index, request) for index, request in enumerate(requests)]
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
            if any(row.take(token, self.stops) for token in result.generated_tokens):  # up to the end, and no further
                row.first_token_seconds = result.timestamps[0] - result.lifespan[0]
                finish(row)


def stop_tokens(model: Any, tokenizer: Any, stop: int | None = None) -> frozenset[int]:
    """Every token that ends an answer: the template's, the tokenizer's, and those of the model's generation config."""
    settings = getattr(model, "generation_config", None)
    configured = getattr(settings, "eos_token_id", None)
    several = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(token for token in (*several, tokenizer.eos_token_id, stop) if token is not None)


def forget_adapter_names(model: Any) -> None:
    """Take away the hooks by which PEFT tells its layers the rows' adapters.

    It leaves them where a pass has failed, and later passes, of other rows, would hear them.
    """
    for module in model.modules():
        hooks = module._forward_pre_hooks
        left = [key for key, hook in hooks.items() if getattr(hook, "func", hook).__module__.startswith("peft.")]
        for key in left:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _peak_bytes(device: torch.device) -> int:
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
