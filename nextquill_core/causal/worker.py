"""One scoring worker: a model on one device that scores the shards it claims.

python -m nextquill_core.causal.worker ORDER.json --device cuda:1 --name 1
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from nextquill_core.environment import set_torch_variables

    set_torch_variables()  # before torch is imported

import torch
from torch import Tensor

from nextquill_core.causal.scorer import Scorer, effects_table
from nextquill_core.causal.shard_queue import Report, ScoringProgress, ShardQueue, score_shards, split_into_shards
from nextquill_core.errors import UserError
from nextquill_core.folds import fold_of
from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.forward import computed_tokens
from nextquill_core.model.loading import best_device, encoder_for, load_adapter, load_model, load_tokenizer
from nextquill_core.orders import ScoreOrder
from nextquill_core.progress import Progress
from nextquill_core.schemas import Example
from nextquill_core.tokens import TokenPair
from storage.masked_output import mask_output

INVALID_INPUT, DEVICE_LOST = 2, 3
"""Exit codes of a worker; its parent reads them, they are not those of `nextquill`."""
REPORT_EVERY_S = 0.5


class DeviceLost(RuntimeError):  # noqa: N818 - says what happened
    """The device no longer computes, so every further shard would fail here; other workers can continue."""


def main() -> int:
    """Work on the order named on the command line and return the exit code."""
    mask_output()
    parser = argparse.ArgumentParser(prog="nextquill_core.causal.worker")
    parser.add_argument("order", type=Path)
    parser.add_argument("--device", default=None, help="such as cuda:1; default: the accelerator if there is one")
    parser.add_argument("--name", default="0", help="name of this worker, unique among the workers of an order")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    try:
        work(ScoreOrder.load(arguments.order), arguments.name, arguments.device)
    except UserError as error:
        print(f"nextquill: {error}", file=sys.stderr, flush=True)
        return INVALID_INPUT
    except DeviceLost as error:
        print(error, file=sys.stderr, flush=True)
        return DEVICE_LOST
    return 0


def work(order: ScoreOrder, name: str, device: str | None = None) -> None:
    """Score as one of several workers until every shard is settled; the parent reads the reports.

    Args:
        order: What to score; its staging folder is open.
        name: Name of this worker, unique among the workers of an order.
        device: A torch device; None for the accelerator if there is one.

    Raises:
        UserError: The model, an adapter or the examples cannot be used.
        DeviceLost: The device no longer computes.
    """
    queue = ShardQueue.of(order)
    last_report = 0.0

    def report(state: Report) -> None:
        nonlocal last_report
        if state.share in (0, 1) or time.monotonic() - last_report > REPORT_EVERY_S:
            last_report = time.monotonic()
            queue.report(name, state)

    _work(order, queue, device, report)


def work_alone(path: Path, progress: Progress) -> None:
    """Score an order as its only worker, in the calling process.

    Args:
        path: File of the order.
        progress: Receives the examples that are done.
    """
    order = ScoreOrder.load(path)
    queue = ShardQueue.of(order)
    shown = ScoringProgress(queue, progress)
    _work(order, queue, None, lambda report: shown.show([report]))


def _work(order: ScoreOrder, queue: ShardQueue, device: str | None, report: Callable[[Report], None]) -> None:
    if queue.all_settled():
        return  # without loading a model
    chosen = torch.device(device) if device else best_device()
    if chosen.type != "cpu":
        torch.accelerator.set_device_index(chosen)
    scorer = _ShardScorer(order, queue, chosen, report)
    score_shards(queue, scorer.score, partial(check_device, chosen))


def check_device(device: torch.device) -> None:
    """Check that a device still computes: after some faults a GPU refuses all work until its process ends.

    Raises:
        DeviceLost: It does not.
    """
    try:
        torch.ones(1, device=device).add_(1).item()
    except Exception as error:
        raise DeviceLost(f"{device} no longer computes ({type(error).__name__})") from error


class _ShardScorer:
    """Everything that scoring a shard needs, loaded once."""

    def __init__(
        self, order: ScoreOrder, queue: ShardQueue, device: torch.device, report: Callable[[Report], None]
    ) -> None:
        self._queue = queue
        self._send = report
        examples = list(read_examples(order.sequences, order.splits))
        self._parts = dict(split_into_shards(examples, order.shard_examples))
        self._encoder = encoder_for(order.model, order.prompt, load_tokenizer(order.model))
        self._folds = len(order.adapters)
        model = with_adapters(load_model(order.model, device), order.adapters)
        self._scorer = Scorer(model, order.score.batch_tokens, self._count)
        self._number = ""
        self._tokens = self._before = self._expected = 0
        self._report(0.0)

    def score(self, number: str) -> None:
        """Score and finish one shard; for a shard that is finished, only its truncation is counted."""
        examples = self._parts[number]
        self._encoder.truncation.clear()
        pairs = self._encoder.encode(examples)
        self._queue.keep_truncation(number, self._encoder.truncation)
        if self._queue.finished(number):
            return
        self._number, self._before = number, self._tokens
        self._expected = sum(computed_tokens(pair, self._scorer.strategy) for pair in pairs)
        self._report(0.0)
        table = effects_table(pairs, self._logps(examples, pairs))
        self._queue.staging.write_table(self._queue.file(number), table)
        self._report(1.0)

    def _logps(self, examples: Sequence[Example], pairs: Sequence[TokenPair]) -> list[tuple[Tensor, Tensor]]:
        if not self._folds:
            return self._scorer.score(pairs)
        folds = [fold_of(example.user_id, self._folds) for example in examples]
        found: list[Any] = [None] * len(pairs)
        for fold in sorted(set(folds)):
            chosen = [index for index, of in enumerate(folds) if of == fold]
            self._scorer.model.set_adapter(_adapter_name(fold))
            for index, both in zip(chosen, self._scorer.score([pairs[index] for index in chosen]), strict=True):
                found[index] = both
        return found

    def _count(self, _: int, tokens: int) -> None:
        self._tokens += tokens
        self._report(min(1.0, (self._tokens - self._before) / max(1, self._expected)))

    def _report(self, share: float) -> None:
        self._send(Report(self._tokens, self._number, share))


def with_adapters(model: Any, folders: Sequence[Path]) -> Any:
    """Return one model with all adapters, of which `set_adapter` selects one; the model itself for no adapter.

    Raises:
        ModelError: A folder holds no complete adapter for this model in safetensors.
    """
    for fold, folder in enumerate(folders):
        model = load_adapter(model, folder, name=_adapter_name(fold), remedy="train the adapters again")
    return model


def _adapter_name(fold: int) -> str:
    return f"fold-{fold}"


if __name__ == "__main__":
    sys.exit(main())
