"""Scoring, training and decoding on an accelerator: Qwen2.5-3B's shape, random weights, bf16, the fastest attention.

    python -m benchmarks.gpu

Needs only torch, transformers, peft and pyarrow, and runs from the root of a checkout. The line of JSON for scoring has
examples and tokens per second of the scorer, of the factual branch alone, and of the padded dense computation of the
published code; the share of the chip's rate in dense matrix products that useful work reaches, both of the rate
measured here and of the one in its data sheet; and peak memory. The line for training has an optimizer step of LoRA
(r 16 on all linear layers) with L_p, without it, and as the published code does it, and from it the hours that the
paper's three data sets would take. The useful work of a step is what a frozen model needs without recomputation: every
product with frozen weights twice (forward, and gradients of its input), attention three times. The line for generating
has the time of a decode step of one row and of 64, and the share of the data sheet's bandwidth at which weights and
cache are read. `nextquill plan --rates FILE` reads these lines. Lengths are drawn from
the distribution of real ones (`benchmarks/score.py` on Digital Music: prompts of 1,790 tokens, of which 177 open both
branches, answers of 365).

Use `--shape small` to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import train
from benchmarks.score import factual, flops, products, reference
from nextquill_core.causal.scorer import Scorer
from nextquill_core.costs.cards import CARDS, Card
from nextquill_core.costs.random_model import decode_seconds, random_model, synchronize
from nextquill_core.costs.shape import KNOWN, ModelShape
from nextquill_core.model.forward import computed_tokens
from nextquill_core.tokens import TokenPair
from nextquill_core.training.data import TrainExample, micro_batches
from nextquill_core.training.losses import PreferenceLoss, denominators, training_strategy
from nextquill_core.training.worker import with_adapter

PAPERS_EXAMPLES, PAPERS_EPOCHS = 2_536 + 15_400 + 14_032, 5
SHAPES = {
    "qwen2.5-3b": KNOWN["Qwen/Qwen2.5-3B"],
    "small": ModelShape(1000, hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, head_size=16),
}
LIMIT = 2048
"""Maximum number of tokens of a prompt, and of an answer, as in the published settings."""
STAGES = ("score", "train", "generate")
ROWS = 64
"""Rows of a batch in the trial of decoding."""


def build(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    return random_model(SHAPES[name], dtype, device)


def drawn_pairs(count: int, vocabulary: int, scale: float = 1.0) -> list[TokenPair]:
    """Return pairs of random ids with lengths like those of real examples (log-normal), from a fixed seed.

    Args:
        count: Number of pairs.
        vocabulary: Number of ids to draw from.
        scale: Factor of all lengths.
    """
    draw = random.Random(0)

    def length(median: float, spread: float, most: int) -> int:
        return max(2, min(int(most * scale), round(scale * median * math.exp(draw.gauss(0, spread)))))

    def ids(size: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(size)]

    pairs = []
    for number in range(count):
        opening, rest = ids(length(177, 0.3, 300)), ids(length(21, 0.2, 40))
        history = ids(length(1650, 0.35, LIMIT - 340))
        pairs.append(TokenPair(str(number), opening + history + rest, opening + rest, ids(length(311, 0.6, LIMIT))))
    return pairs


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """Return the shortest time of several rounds, after one round to warm up and compile."""
    taken = []
    for _ in range(rounds + 1):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def product_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second in large matrix products.

    Args:
        size: Rows and columns of the matrices.
        dtype: Their data type.
        device: Where they are multiplied.
    """
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 10 * 2 * size**3 / seconds(lambda: [a @ b for _ in range(10)], rounds=3)


def peak_gb(device: torch.device, work: Callable[[], Any]) -> float | None:
    """Return the peak memory of `work` in GB beyond what was allocated before; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return round((torch.cuda.max_memory_allocated() - before) / 1e9, 2)


def measure(name: str, pairs: Sequence[TokenPair], few: int, rounds: int, batch_tokens: int) -> dict[str, Any]:
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = build(name, dtype, device)
    padded = seconds(lambda: reference(model, pairs[:few]), rounds=1) / few
    padded_gb = peak_gb(device, lambda: reference(model, pairs[:1]))
    scorer = Scorer(model, batch_tokens)
    both = seconds(lambda: scorer.score(pairs), rounds) / len(pairs)
    both_gb = peak_gb(device, lambda: scorer.score(pairs))
    alone = seconds(lambda: factual(model, pairs, scorer), rounds) / len(pairs)
    rate = product_rate(8192 if device.type != "cpu" else 512, dtype, device)
    useful = sum(flops(model, pair) for pair in pairs) / len(pairs)
    peak = data_sheet_rate(device)
    return {
        "stage": "score",
        "chip": chip_name(device),
        "torch": torch.__version__,
        "shape": name,
        "dtype": str(dtype).removeprefix("torch."),
        "strategy": scorer.strategy,
        "attention": model.config._attn_implementation,
        "batch_tokens": scorer.batch_tokens,
        "examples_a_second": {"ours": 1 / both, "factual": 1 / alone, "reference": 1 / padded},
        "tokens_a_second": round(sum(computed_tokens(pair, scorer.strategy) for pair in pairs) / len(pairs) / both),
        "speed_over_reference": round(padded / both, 2),
        "time_over_factual": round(both / alone, 3),
        "share_of_product_rate": round(useful / both / rate, 3),
        "share_of_data_sheet": round(useful / both / peak, 3) if peak else None,
        "product_tflops": round(rate / 1e12, 3),
        "peak_gb": {"ours": both_gb, "reference": padded_gb},
    }


def measure_training(
    name: str, pairs: Sequence[TokenPair], few: int, rounds: int, batch_tokens: int, checkpointing: bool
) -> dict[str, Any]:
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    settings: dict[str, Any] = {"batch_tokens": batch_tokens, "gradient_checkpointing": checkpointing}
    order = train.order(train.ALPHA, **settings)
    model = with_adapter(build(name, dtype, device), order).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=order.train.learning_rate)
    examples = [TrainExample(pair, [0.5] * len(pair.target)) for pair in pairs]
    micros = micro_batches(examples, batch_tokens, ranks=1)
    sides = {"nextquill": order, "contextsft": train.order(0.0, **settings)}
    steps = {side: PreferenceLoss(model, one, training_strategy(model, one)) for side, one in sides.items()}

    def step(objective: PreferenceLoss) -> None:
        for micro in micros:
            objective(micro.examples, denominators(examples, objective.order)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    taken = {side: seconds(partial(step, objective), rounds) / len(pairs) for side, objective in steps.items()}
    peaks = {side: peak_gb(device, partial(step, objective)) for side, objective in steps.items()}
    limit = max(len(pair.factual) for pair in pairs) if name == "small" else LIMIT
    taken["reference"] = seconds(lambda: train.reference(model, pairs[:few], limit), rounds=1) / few
    peaks["reference"] = peak_gb(device, lambda: train.reference(model, pairs[:1], limit))
    rate = product_rate(8192 if device.type != "cpu" else 512, dtype, device)
    parts = [products(model, pair) for pair in pairs]
    useful = sum(2 * frozen + 3 * attention for frozen, attention in parts) / len(pairs)
    peak = data_sheet_rate(device)
    share = useful / taken["nextquill"]
    strategy = steps["nextquill"].strategy
    return {
        "stage": "train",
        "chip": chip_name(device),
        "shape": name,
        "dtype": str(dtype).removeprefix("torch."),
        "strategy": strategy,
        "gradient_checkpointing": checkpointing,
        "batch_tokens": batch_tokens,
        "seconds_an_example": {side: round(value, 5) for side, value in taken.items()},
        "tokens_a_second": round(
            sum(computed_tokens(pair, strategy) for pair in pairs) / len(pairs) / taken["nextquill"]
        ),
        "speed_over_reference": round(taken["reference"] / taken["nextquill"], 2),
        "time_over_contextsft": round(taken["nextquill"] / taken["contextsft"], 3),
        "share_of_product_rate": round(share / rate, 3),
        "share_of_data_sheet": round(share / peak, 3) if peak else None,
        "peak_gb": peaks,
        "hours_of_the_papers_data": round(PAPERS_EXAMPLES * PAPERS_EPOCHS * taken["nextquill"] / 3600, 2),
    }


def measure_decoding(name: str, pairs: Sequence[TokenPair]) -> dict[str, Any]:
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    shape, model = SHAPES[name], build(name, dtype, device)
    rows = (list(pairs) * ROWS)[:ROWS]
    single, several = decode_seconds(model, rows, 1), decode_seconds(model, rows, ROWS)
    width = max(len(pair.factual) for pair in rows)
    read = (shape.parameters + ROWS * width * shape.cached) * dtype.itemsize
    card = card_of(device)
    return {
        "stage": "generate",
        "chip": chip_name(device),
        "shape": name,
        "dtype": str(dtype).removeprefix("torch."),
        "rows": ROWS,
        "positions": width,
        "step_seconds": {"one row": round(single, 5), "all rows": round(several, 5)},
        "tokens_a_second": round(ROWS / several),
        "share_of_bandwidth": round(read / several / card.bandwidth, 3) if card else None,
    }


def chip_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


def card_of(device: torch.device) -> Card | None:
    return next((card for name, card in CARDS.items() if name in chip_name(device)), None)


def data_sheet_rate(device: torch.device) -> float | None:
    card = card_of(device)
    return card.products if card else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2.5-3b")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--reference-examples", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--only", choices=STAGES, help="measure only one of the three")
    parser.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="recompute activations in training: less memory, more time",
    )
    given = parser.parse_args()
    scale = 1.0 if given.shape != "small" else 0.05
    pairs = drawn_pairs(given.examples, SHAPES[given.shape].vocabulary, scale)
    few, rounds = given.reference_examples, given.rounds
    if given.only in (None, "score"):
        print(json.dumps(measure(given.shape, pairs, few, rounds, given.batch_tokens)), flush=True)
    if given.only in (None, "train"):
        checkpointing = given.gradient_checkpointing
        print(
            json.dumps(measure_training(given.shape, pairs, few, rounds, given.batch_tokens, checkpointing)), flush=True
        )
    if given.only in (None, "generate"):
        print(json.dumps(measure_decoding(given.shape, pairs)))


if __name__ == "__main__":
    main()
