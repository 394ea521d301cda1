"""Forward passes of one model side by side on a CPU, each on one thread.

Matrix products and element-wise operations then keep all cores busy, whereas threads that share one pass wait for each
other at every product.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import Any, TypeVar

import torch

Work = TypeVar("Work")
Result = TypeVar("Result")


def passes_at_once(model: Any) -> int:
    """Return how many passes may run through the model side by side: one per thread on a CPU, else one.

    Some position embeddings change while they are used, so that such passes would disturb each other.
    """
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    changing = any("dynamic" in str(value) or "longrope" in str(value) for value in rope.values())
    on_cpu = next(model.parameters()).device.type == "cpu"
    return torch.get_num_threads() if on_cpu and not changing else 1


def completed(
    do: Callable[[Work], Result], works: Sequence[Work], at_once: int
) -> Generator[tuple[int, Result], None, None]:
    """Yield the index and the result of each pass as it is completed.

    Passes that have not begun are cancelled when one raises or the iterator is closed.

    Args:
        do: Runs one pass; inference mode of the calling thread holds in the threads of the passes too.
        works: Inputs of the passes, in the order in which they begin.
        at_once: Number of passes side by side, each on one thread.
    """
    inference, threads = torch.is_inference_mode_enabled(), torch.get_num_threads()

    def one_pass(work: Work) -> Result:
        with torch.inference_mode(inference):
            return do(work)

    try:
        with ThreadPoolExecutor(at_once, "pass", initializer=lambda: torch.set_num_threads(1)) as pool:
            futures = {pool.submit(one_pass, work): index for index, work in enumerate(works)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                for future in futures:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)  # threads that begin later take over the number that any thread set last


def side_by_side(do: Callable[[Work], Result], works: Sequence[Work], at_once: int) -> list[Result]:
    """Return the results of all passes in the order of their inputs.

    Args:
        do: Runs one pass; inference mode of the calling thread holds in the threads of the passes too.
        works: Inputs of the passes, in the order in which they begin.
        at_once: Number of passes side by side, see `passes_at_once`. Passes that remain after the last full round run
            one after the other with all threads.
    """
    parallel = len(works) - len(works) % at_once if at_once > 1 else 0
    results: dict[int, Result] = {}
    if parallel:
        with closing(completed(do, works[:parallel], at_once)) as passes:
            results = dict(passes)
    return [results[index] for index in range(parallel)] + [do(work) for work in works[parallel:]]
