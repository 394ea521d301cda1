"""Speed of scoring against the official code, on the lengths of real reviews.

    python -m benchmarks.score --reviews reviews.jsonl.gz --items items.jsonl.gz

Prints one line of JSON for each shape of model. All sides run on the same examples:

- `ours`: the scorer with both branches.
- `factual`: the scorer with one branch only, which any training on history pays once anyway.
- `products`: a large matrix product alone, for the rate that this machine reaches.
- `reference`: both branches padded to the maximum length, full logits and softmax, as in the official code, with
  torch's default settings of threads and memory instead of ours.

The first three take turns in one process, because the speed of a shared machine drifts from minute to minute. The
reference runs in a separate process, before and after them. Memory is that of a process which does nothing else.

Shapes have Qwen2.5-3B's proportions (feed-forward 5.4 times the width, eight query heads per key head) at a quarter of
its width, and random weights, on which speed does not depend. `proportional` has a vocabulary of 8,192, so that head
and body cost 1 to 9 as in the original; `full` has all 151,936 tokens. The tokenizer is a byte-level BPE of 8,192
tokens, trained on the same reviews. Examples are those of the published protocol without its thresholds on items.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import ExtraMemory
from nextquill_core.causal.scorer import Scorer
from nextquill_core.model.forward import computed_tokens, decoder_of, shared_prefix
from nextquill_core.model.head import head_of
from nextquill_core.tokens import TokenPair

PROMPT, TARGET = 2048, 2048
"""Limits of the published code in tokens; the reference pads to their sum plus one."""
VOCABULARY = {"proportional": 8192, "full": 151_936}
PROTOCOL = {"min_item_users": 1, "min_profile_item_users": 1}  # the published one but for these: the slices are small
TORCHS_OWN = {"THP_MEM_ALLOC_ENABLE": "0", "MKL_CBWR": "AUTO", "GOMP_SPINCOUNT": "300000"}
"""Environment variables that undo what `nextquill_core.environment` sets."""


def shape(name: str) -> Any:
    """Return Qwen2.5-3B's proportions at a quarter of its width: 38 M parameters in the body."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=VOCABULARY[name],
        hidden_size=512,
        intermediate_size=2752,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=1,
        max_position_embeddings=PROMPT + TARGET + 1,
        tie_word_embeddings=True,
        use_cache=False,
    )


def build(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(shape(name)).eval()


def real_pairs(
    source: str, reviews: Path, items: Path, count: int, limit: int = PROMPT, **protocol: int
) -> list[TokenPair]:
    """Return token pairs of real examples, drawn with a fixed seed.

    Args:
        source: Name of the data source.
        reviews: The review file.
        items: The item file.
        count: Maximum number of pairs.
        limit: Maximum number of tokens of a prompt, and of an answer.
        protocol: More changes of the published protocol.
    """
    from nextquill_core.config import parse_config
    from nextquill_core.ingest.reader import read_examples
    from nextquill_core.model.tiny import train_tokenizer
    from nextquill_core.pipeline.run import Run
    from nextquill_core.tokens import PairEncoder

    with tempfile.TemporaryDirectory() as store:
        inputs = [{"category": "Real", "reviews": str(reviews), "items": str(items)}]
        ingest = {"source": source, "inputs": inputs, "protocol": PROTOCOL | protocol}
        run = Run(parse_config({"store": store, "ingest": ingest, "model": {"name_or_path": "tiny"}}, "the benchmark"))
        run.make(run.plan.scans["Real"])
        examples = list(read_examples(run.make(run.plan.ingest).artifact.folder))
    texts = [text for example in examples for text in (example.target.text, example.target.item.description)]
    tokenizer = train_tokenizer(texts, VOCABULARY["proportional"])
    encoder = PairEncoder(tokenizer, max_history=8, max_prompt_tokens=limit, max_target_tokens=limit)
    drawn = random.Random(0).sample(examples, min(count, len(examples)))
    return encoder.encode(drawn)


def ours(model: Any, pairs: Sequence[TokenPair], scorer: Scorer | None = None) -> None:
    (scorer or Scorer(model, 16_384)).score(pairs)


def factual(model: Any, pairs: Sequence[TokenPair], scorer: Scorer | None = None) -> None:
    alone = [TokenPair(pair.example_id, pair.factual, pair.factual, pair.target) for pair in pairs]
    ours(model, alone, scorer)


@torch.inference_mode()
def reference(model: Any, pairs: Sequence[TokenPair]) -> None:
    """Score with both branches padded on the left to the maximum length: logits of every position, and softmax."""
    for pair in pairs:
        length = PROMPT + TARGET + 1
        rows, masks = [], []
        for prompt in (pair.factual, pair.counterfactual):
            whole = [*prompt, *pair.target]
            rows.append([0] * (length - len(whole)) + whole)
            masks.append([0] * (length - len(whole)) + [1] * len(whole))
        ids, mask = (torch.tensor(values, device=model.device) for values in (rows, masks))
        p = model(input_ids=ids, attention_mask=mask).logits.float().softmax(dim=-1)
        target = torch.tensor(pair.target, device=model.device)[:, None]
        answer = p[:, -len(pair.target) - 1 : -1]
        _effect = answer[0].gather(1, target) - answer[1].gather(1, target)


SIDES: dict[str, Callable[[Any, Sequence[TokenPair]], None]] = {
    "ours": ours,
    "factual": factual,
    "reference": reference,
}


def flops(model: Any, pair: TokenPair) -> float:
    """Return the operations of the matrix products that both branches need: body, attention and head."""
    return sum(products(model, pair))


def products(model: Any, pair: TokenPair) -> tuple[float, float]:
    """Return the operations of a forward pass over both branches, with frozen weights and of attention."""
    config = model.config
    frozen = [p for name, p in decoder_of(model).named_parameters() if p.ndim == 2 and "lora_" not in name]
    body = sum(p.numel() for p in frozen) - model.get_input_embeddings().weight.numel()
    head = head_of(model).weight_VD.numel() * 2 * len(pair.target)
    attention = 4.0 * config.hidden_size * config.num_hidden_layers * _seen(pair)
    return 2.0 * (body * computed_tokens(pair) + head), attention


def _seen(pair: TokenPair) -> float:
    """Return the number of pairs of a token and a token that it attends to."""
    whole = len(pair.factual) + len(pair.target) - 1
    other = len(pair.counterfactual) + len(pair.target) - 1
    shared = shared_prefix(pair)
    return whole * (whole + 1) / 2 + other * (other + 1) / 2 - shared * (shared + 1) / 2


def product_rate(seconds: float = 2.0) -> float:
    """Return the operations per second in large single-precision matrix products."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        a @ b
        rates.append(2 * 2048**3 / (time.perf_counter() - started))
    return statistics.median(rates)


def run_side(
    module: str, side: str, name: str, pairs: Sequence[TokenPair], folder: Path, rounds: int = 1
) -> dict[str, Any]:
    """Run one side of a benchmark in a separate process, and return the JSON line that it prints.

    Args:
        module: The benchmark.
        side: The side; all but ours run with torch's default settings.
        name: Shape of the model.
        pairs: The examples.
        folder: Folder for the examples.
        rounds: Number of rounds within the process.
    """
    path = folder / "pairs.json"
    path.write_text(json.dumps([[p.example_id, p.factual, p.counterfactual, p.target] for p in pairs]))
    command = [sys.executable, "-m", module, "--side", side, "--shape", name, "--pairs", str(path)]
    environment = os.environ | (TORCHS_OWN if side in ("reference", "trl") else {})
    done = subprocess.run(
        [*command, "--rounds", str(rounds)], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def read_pairs(path: Path) -> list[TokenPair]:
    """Return the examples that `run_side` wrote for this process."""
    return [TokenPair(*values) for values in json.loads(path.read_text())]


def one_side(side: str, name: str, path: Path, rounds: int) -> dict[str, float]:
    pairs = read_pairs(path)
    model = build(name)
    if side == "turns":
        return turns(model, pairs, rounds)
    memory = ExtraMemory()
    started = time.perf_counter()
    SIDES[side](model, pairs)
    seconds = time.perf_counter() - started
    return {"an_example": seconds / len(pairs), "extra_gb": memory.gb()}


def turns(model: Any, pairs: Sequence[TokenPair], rounds: int) -> dict[str, float]:
    """Measure both branches, one branch and products in turns, and return medians over the rounds.

    Args:
        model: The model.
        pairs: The examples.
        rounds: Number of rounds.
    """
    scorer = Scorer(model, 16_384)
    positions = 0

    def count(_module: Any, _args: Any, options: dict[str, Any]) -> None:
        nonlocal positions
        positions += options["input_ids"].numel()

    scorer.score(pairs[:2])  # warm up
    hook = decoder_of(model).register_forward_pre_hook(count, with_kwargs=True)
    scorer.score(pairs[:4])
    hook.remove()
    rates = [product_rate()]
    taken: list[tuple[float, float]] = []
    for _ in range(rounds):
        started = time.perf_counter()
        ours(model, pairs, scorer)
        half = time.perf_counter()
        factual(model, pairs, scorer)
        taken.append((half - started, time.perf_counter() - half))
        rates.append(product_rate())
    operations = sum(flops(model, pair) for pair in pairs)
    around = [(before + after) / 2 for before, after in itertools.pairwise(rates)]
    return {
        "ours": statistics.median(both for both, _ in taken) / len(pairs),
        "factual": statistics.median(alone for _, alone in taken) / len(pairs),
        "ratio": statistics.median(both / alone for both, alone in taken),
        "share": statistics.median(operations / both / rate for (both, _), rate in zip(taken, around, strict=True)),
        "rate": statistics.median(around),
        "needed": sum(computed_tokens(pair) for pair in pairs[:4]) / positions,
    }


def compare(name: str, pairs: Sequence[TokenPair], few: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        padded = [run_side("benchmarks.score", "reference", name, pairs[:few], folder)]
        ours_s = run_side("benchmarks.score", "turns", name, pairs, folder, rounds)
        padded.append(run_side("benchmarks.score", "reference", name, pairs[:few], folder))
        memory = run_side("benchmarks.score", "ours", name, pairs[:8], folder)
    reference_s = statistics.mean(run["an_example"] for run in padded)
    extra = {"ours": memory["extra_gb"], "reference": max(run["extra_gb"] for run in padded)}
    tokens = sum(computed_tokens(pair) for pair in pairs) / len(pairs)
    return {
        "shape": name,
        "examples": len(pairs),
        "tokens_an_example": round(tokens),
        "seconds_an_example": {
            "ours": round(ours_s["ours"], 3),
            "factual": round(ours_s["factual"], 3),
            "reference": round(reference_s, 2),
        },
        "speed_over_reference": round(reference_s / ours_s["ours"], 2),
        "time_over_factual": round(ours_s["ratio"], 3),
        "tokens_a_second": round(tokens / ours_s["ours"]),
        "needed_share": round(ours_s["needed"], 4),
        "share_of_product_rate": round(ours_s["share"], 3),
        "product_gflops": round(ours_s["rate"] / 1e9, 1),
        "extra_gb": {side: round(value, 3) for side, value in extra.items()},
        "memory_under_reference": round(extra["reference"] / extra["ours"], 1),
    }


def arguments(about: str | None, sides: Sequence[str], *, examples: int, few: int, rounds: int) -> argparse.Namespace:
    """Parse the command line, which for a separate process names its side, shape and examples.

    Args:
        about: Description of the benchmark.
        sides: Names of the sides.
        examples: Default number of examples.
        few: Default number of examples of the reference.
        rounds: Default number of rounds.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="amazon-2023")
    parser.add_argument("--reviews", type=Path)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=list(VOCABULARY), default=list(VOCABULARY))
    parser.add_argument("--examples", type=int, default=examples)
    parser.add_argument("--reference-examples", type=int, default=few)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.side and not (given.reviews and given.items):
        parser.error("name the files of a category with --reviews and --items")
    return given


def main() -> Iterator[dict[str, Any]]:
    given = arguments(__doc__, [*SIDES, "turns"], examples=16, few=2, rounds=3)
    if given.side:
        yield one_side(given.side, given.shape, given.pairs, given.rounds)
        return
    pairs = real_pairs(given.source, given.reviews, given.items, given.examples)
    for name in given.shapes:
        yield compare(name, pairs, given.reference_examples, given.rounds)


if __name__ == "__main__":
    for line in main():
        print(json.dumps(line), flush=True)
