"""One scoring worker: a model on one device, and its share of the shards.

python -m nextquill_core.causal.worker JOB.json --device cuda:1 --name 1
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextquill_core.causal.job import ScoreJob
from nextquill_core.causal.scorer import Scorer, effects_table
from nextquill_core.causal.shard_queue import Board, Report, in_shards, take_shares
from nextquill_core.causal.tally import Tally
from nextquill_core.errors import UserError
from nextquill_core.folds import fold_of
from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.branches import computed_tokens
from nextquill_core.model.loading import best_device, load_adapter, load_model, load_tokenizer
from nextquill_core.progress import Progress
from nextquill_core.schemas import Example
from nextquill_core.tokens import TokenPair, encoder_for
from storage.masked_output import mask_output

WRONG_INPUT, DEVICE_LOST = 2, 3
REPORT_EVERY_S = 0.5


class DeviceLost(RuntimeError):  # noqa: N818 - says what happened
    """The device answers no more, so that every further shard would fail here; other workers can go on."""


def main() -> int:
    """Work on the job named on the command line."""
    mask_output()
    parser = argparse.ArgumentParser(prog="nextquill_core.causal.worker")
    parser.add_argument("job", type=Path)
    parser.add_argument("--device", default=None, help="such as cuda:1; default: the accelerator if there is one")
    parser.add_argument("--name", default="0", help="tells the workers of a job apart")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    try:
        work(ScoreJob.load(arguments.job), arguments.name, arguments.device)
    except UserError as error:
        print(f"nextquill: {error}", file=sys.stderr, flush=True)
        return WRONG_INPUT
    except DeviceLost as error:
        print(error, file=sys.stderr, flush=True)
        return DEVICE_LOST
    return 0


def work(job: ScoreJob, name: str, device: str | None = None) -> None:
    """Score until every shard is settled, as one of several workers; the parent reads how far this one is.

    Args:
        job: What to score; its staging folder is open.
        name: Tells the workers of a job apart.
        device: A torch device; None for the accelerator if there is one.

    Raises:
        UserError: The model, an adapter or the examples cannot be used.
        DeviceLost: The device failed for good.
    """
    board = Board.of(job)
    told = 0.0

    def tell(report: Report) -> None:
        nonlocal told
        if report.share in (0, 1) or time.monotonic() - told > REPORT_EVERY_S:
            told = time.monotonic()
            board.report(name, report)

    _work(job, board, device, tell)


def work_alone(path: Path, progress: Progress) -> None:
    """The only worker of the job in this file, in the calling process."""
    job = ScoreJob.load(path)
    board = Board.of(job)
    tally = Tally(board, progress)
    _work(job, board, None, lambda report: tally.show([report]))


def _work(job: ScoreJob, board: Board, device: str | None, tell: Callable[[Report], None]) -> None:
    if all(board.settled(number) for number in board.shards):
        return  # without loading a model
    place = torch.device(device) if device else best_device()
    if place.type != "cpu":
        torch.accelerator.set_device_index(place)
    shards = _Shards(job, board, place, tell)

    take_shares(board, shards.score, partial(check_device, place))


def check_device(device: torch.device) -> None:
    """See that a device still computes: after some faults a GPU refuses everything until its process ends.

    Raises:
        DeviceLost: It does not.
    """
    try:
        torch.ones(1, device=device).add_(1).item()
    except Exception as error:
        raise DeviceLost(f"{device} answers no more ({type(error).__name__})") from error


class _Shards:
    """Everything that scoring a shard needs, loaded once."""

    def __init__(self, job: ScoreJob, board: Board, device: torch.device, tell: Callable[[Report], None]) -> None:
        self._board = board
        self._tell = tell
        self._parts = dict(in_shards(list(read_examples(Path(job.sequences))), job.shard_examples))
        self._encoder = encoder_for(job.model, load_tokenizer(job.model), **asdict(job.prompt))
        self._adapters = job.adapters
        model = with_adapters(load_model(job.model, device), job.adapters)
        self._scorer = Scorer(model, job.batch_tokens, self._count)
        self._number = ""
        self._tokens = self._before = self._expected = 0
        self._report(0.0)

    def score(self, number: str) -> None:
        """Score and finish one shard; one that is finished only has its truncation counted."""
        examples = self._parts[number]
        self._encoder.truncation.clear()
        pairs = self._encoder.encode(examples)
        self._board.keep_truncation(number, self._encoder.truncation)
        if self._board.finished(number):
            return
        self._number, self._before = number, self._tokens
        self._expected = sum(computed_tokens(pair, self._scorer.way) for pair in pairs)
        self._report(0.0)
        table = effects_table(pairs, self._logps(examples, pairs))
        self._board.staging.write_table(self._board.file(number), table)
        self._report(1.0)

    def _logps(self, examples: Sequence[Example], pairs: Sequence[TokenPair]) -> list[tuple[Tensor, Tensor]]:
        if not self._adapters:
            return self._scorer.score(pairs)
        folds = [fold_of(example.user_id, len(self._adapters)) for example in examples]
        found: list[Any] = [None] * len(pairs)
        for fold in sorted(set(folds)):
            chosen = [index for index, of in enumerate(folds) if of == fold]
            self._scorer.model.set_adapter(_adapter_name(fold))
            for index, both in zip(chosen, self._scorer.score([pairs[index] for index in chosen]), strict=True):
                found[index] = both
        return found

    def _count(self, tokens: int) -> None:
        self._tokens += tokens
        self._report(min(1.0, (self._tokens - self._before) / max(1, self._expected)))

    def _report(self, share: float) -> None:
        self._tell(Report(self._tokens, self._number, share))


def with_adapters(model: Any, folders: Sequence[str]) -> Any:
    """One model with all adapters on it, of which `set_adapter` chooses; the model itself where there are none.

    Raises:
        ModelError: A folder holds no whole adapter for this model in safetensors.
    """
    if not folders:
        return model
    for fold, folder in enumerate(folders):
        model = load_adapter(model, Path(folder), name=_adapter_name(fold), remedy="train the adapters again")
    return model


def _adapter_name(fold: int) -> str:
    return f"fold-{fold}"


if __name__ == "__main__":
    sys.exit(main())
