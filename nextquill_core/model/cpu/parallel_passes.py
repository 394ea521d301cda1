"""Passes through one model side by side on a CPU, each on one thread.

Products and what lies between them then keep all cores busy, where threads that share a pass wait for each other at
every product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Work = TypeVar("Work")
Result = TypeVar("Result")


def passes_at_once(model: Any) -> int:
    """How many passes may go through the model side by side: one a thread on a CPU, else one.

    Some position embeddings change while they are used, so that passes would disturb each other.
    """
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    changing = any("dynamic" in str(value) or "longrope" in str(value) for value in rope.values())
    on_cpu = next(model.parameters()).device.type == "cpu"
    return torch.get_num_threads() if on_cpu and not changing else 1


def side_by_side(do: Callable[[Work], Result], works: Sequence[Work], at_once: int) -> list[Result]:
    """The results of all works in their order.

    Args:
        do: One pass; what it is told in this thread by `torch.inference_mode` it is told in the others.
        works: In the order in which they are begun.
        at_once: Out of `passes_at_once`. Works that are left over when all others are dealt out have all threads.
    """
    inference = torch.is_inference_mode_enabled()

    def alone(work: Work) -> Result:
        with torch.inference_mode(inference):
            return do(work)

    dealt = len(works) - len(works) % at_once if at_once > 1 else 0
    results: list[Result] = []
    if dealt:
        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(at_once, "pass", initializer=lambda: torch.set_num_threads(1)) as pool:
                futures = [pool.submit(alone, work) for work in works[:dealt]]
                try:
                    results = [future.result() for future in futures]
                finally:
                    for future in futures:
                        future.cancel()
        finally:
            torch.set_num_threads(threads)  # later threads begin with what was set last, in whichever thread
    return results + [do(work) for work in works[dealt:]]
