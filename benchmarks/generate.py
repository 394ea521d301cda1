"""Speed of generation against the official evaluation code, on the prompts and answer lengths of real reviews.

    python -m benchmarks.generate --reviews reviews.jsonl.gz --items items.jsonl.gz

Prints one line of JSON for each shape of `benchmarks.score`; `--shapes proportional` takes twenty minutes on two cores.
Both sides decode greedily with the paper's repetition penalty, each in a separate process:

- `ours`: the engine, on all prompts at once.
- `reference`: transformers' `generate` on prompts padded on the left to 2,048 tokens, in batches of 8 in the order of
  the examples, with torch's default settings of threads and memory. A batch is computed until its last row is finished,
  as in the official loop. It gets the attention mask that the official code forgets, because the tokens would differ
  without it. The time per batch does not depend on the number of batches, so the reference answers only the first
  `--reference-examples`, half of them before ours and half after. Examples are in random order.

A model with random weights never writes its stop token, so each answer is as long as the review that the user really
wrote, up to the 2,048 tokens that the official loop allows: for ours by the request's limit, for the reference by a
stopping criterion with a length per row. The tokens of both sides up to this length are compared, and counted as tokens
per second; what a side computes beyond it does not count.
"""

from __future__ import annotations

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.score import PROMPT, TARGET, arguments, build, read_pairs, real_pairs, run_side
from nextquill_core.generation.decoding import PAPER
from nextquill_core.tokens import TokenPair

BATCH = 8
MORE = {"min_user_reviews": 10, "n_targets": 8, "min_profile_reviews": 2}
"""Thresholds that leave 200 examples of the same lengths. The published ones leave 40, and then the last few answers,
alone in their batch, would take most of the steps. Real evaluations have thousands of examples."""
Answers = list[list[int]]


class Numbers:
    """A tokenizer whose texts are the ids themselves, without a stop token."""

    eos_token_id = None

    def decode(self, ids: Sequence[int], **_options: Any) -> str:
        return " ".join(map(str, ids))


def length(pair: TokenPair) -> int:
    return min(len(pair.target), TARGET)


def ours(model: Any, pairs: Sequence[TokenPair]) -> Answers:
    from nextquill_core.generation.engines import Request
    from nextquill_core.generation.local_engine import TransformersEngine

    engine = TransformersEngine(model, Numbers(), PAPER, max_new_tokens=TARGET, batch_tokens=None)
    answers = engine.generate([Request(pair.example_id, pair.factual, limit=length(pair)) for pair in pairs])
    return [[int(token) for token in answer.text.split()] for answer in answers]


@torch.inference_mode()
def reference(model: Any, pairs: Sequence[TokenPair]) -> Answers:
    """Generate with prompts padded to the maximum, in batches that are computed until the last row is finished."""
    from transformers import StoppingCriteria

    class Lengths(StoppingCriteria):
        def __init__(self, lengths: Sequence[int]) -> None:
            self.ends_B = PROMPT + torch.tensor(lengths)

        def __call__(self, input_ids: Any, scores: Any, **_options: Any) -> Any:
            return input_ids.shape[1] >= self.ends_B

    answers = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        rows = [[0] * (PROMPT - len(pair.factual)) + pair.factual for pair in batch]
        masks = [[0] * (PROMPT - len(pair.factual)) + [1] * len(pair.factual) for pair in batch]
        output = model.generate(
            input_ids=torch.tensor(rows),
            attention_mask=torch.tensor(masks),
            stopping_criteria=[Lengths([length(pair) for pair in batch])],
            do_sample=False,
            repetition_penalty=PAPER.repetition_penalty,
            max_new_tokens=TARGET,
            pad_token_id=0,
            use_cache=True,
        )
        new = output[:, PROMPT:].tolist()
        answers += [row[: length(pair)] for row, pair in zip(new, batch, strict=True)]
    return answers


SIDES: dict[str, Callable[[Any, Sequence[TokenPair]], Answers]] = {"ours": ours, "reference": reference}


def one_side(side: str, name: str, path: Path) -> dict[str, Any]:
    pairs = read_pairs(path)
    model = build(name)
    model.generation_config.eos_token_id = None
    SIDES[side](model, [TokenPair("warm", [1, 2], [1, 2], [1, 2])])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    answers = SIDES[side](model, pairs)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "extra_gb": (peak - before) / 1e6, "answers": answers}


def compare(name: str, pairs: Sequence[TokenPair], reference_examples: int, rounds: int) -> dict[str, Any]:
    batches = max(2, min(reference_examples, len(pairs)) // BATCH)
    half, end = batches // 2 * BATCH, batches * BATCH
    turns = [("reference", pairs[:half]), ("ours", pairs), ("reference", pairs[half:end])]
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    extra = dict.fromkeys(SIDES, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            tokens, seconds = dict.fromkeys(SIDES, 0), dict.fromkeys(SIDES, 0.0)
            answers: dict[str, Answers] = {side: [] for side in SIDES}
            for side, asked in turns:
                run = run_side("benchmarks.generate", side, name, asked, Path(folder))
                tokens[side] += sum(map(length, asked))
                seconds[side] += run["seconds"]
                answers[side] += run["answers"]
                extra[side] = max(extra[side], run["extra_gb"])
            for side, found in rates.items():
                found.append(tokens[side] / seconds[side])
    return {
        "shape": name,
        "examples": {"ours": len(pairs), "reference": len(answers["reference"])},
        "prompt_tokens_an_example": round(statistics.mean(len(pair.factual) for pair in pairs)),
        "answer_tokens_an_example": round(statistics.mean(map(length, pairs))),
        "tokens_a_second": {side: round(statistics.median(found), 1) for side, found in rates.items()},
        "speed_over_reference": round(
            statistics.median(one / other for one, other in zip(rates["ours"], rates["reference"], strict=True)), 2
        ),
        "same_answers": sum(one == other for one, other in zip(answers["ours"], answers["reference"], strict=False)),
        "extra_gb": {side: round(value, 2) for side, value in extra.items()},
    }


def main() -> Iterator[dict[str, Any]]:
    given = arguments(__doc__, list(SIDES), examples=200, few=64, rounds=1)
    if given.side:
        yield one_side(given.side, given.shape, given.pairs)
        return
    for name in given.shapes:
        pairs = real_pairs(given.source, given.reviews, given.items, given.examples, **MORE)
        yield compare(name, pairs, given.reference_examples, given.rounds)


if __name__ == "__main__":
    for line in main():
        print(json.dumps(line), flush=True)
