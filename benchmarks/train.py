"""Speed of a training step against the official code and plain fine-tuning, on the lengths of real reviews.

    python -m benchmarks.train --reviews reviews.jsonl.gz --items items.jsonl.gz

Prints one line of JSON for each shape of `benchmarks.score`; a round takes ten minutes on two cores. All sides take one
optimizer step of LoRA (r 16 on all linear layers, AdamW) over the same examples, each in a separate process. One step
on the longest example precedes it, because all but the first steps of a run find their memory allocated. A round takes
the sides forwards and then backwards, because the speed of a shared machine drifts from minute to minute; ratios are of
both together.

- `nextquill`: our step on L = L_n + α·L_p.
- `contextsft`: our step without L_p.
- `reference`: both branches padded to the maximum length, full logits of both, and the losses written out, as in the
  official code, with torch's default settings of threads and memory; on few examples, because the time per example
  does not depend on their number.
- `trl`: TRL's SFTTrainer with packing on prompt and answer, if TRL is installed (`pip install trl`).

On the shape `full`, prompts and answers end at 1,400 tokens instead of 2,048: the reference then takes 21 GB instead of
30.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.memory import ExtraMemory
from benchmarks.score import arguments, build, read_pairs, real_pairs, run_side
from nextquill_core.config import DeepSpeedConfig, LoraSettings, ModelConfig, PromptConfig, TrainConfig
from nextquill_core.model.cpu import keep_freed_memory
from nextquill_core.orders import TrainOrder
from nextquill_core.tokens import TokenPair
from nextquill_core.training.data import TrainExample
from nextquill_core.training.losses import PreferenceLoss, denominators, training_strategy
from nextquill_core.training.worker import with_adapter

ALPHA, LEARNING_RATE = 0.05, 1e-4
OURS = ("nextquill", "contextsft")
MEMORY = ("extra_gb", "peak_gb")
LIMIT = {"proportional": 2048, "full": 1400}
"""Maximum number of tokens of a prompt, and of an answer, by shape."""


def with_lora(side: str, name: str) -> Any:
    """Return the model with LoRA: for our sides as our worker makes it, for the others by PEFT alone."""
    from peft import LoraConfig, get_peft_model

    if side in OURS:
        return with_adapter(build(name), order(ALPHA)).train()
    torch.manual_seed(0)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(build(name), lora).train()


def order(alpha: float, **settings: Any) -> TrainOrder:
    """Return an order with the settings that decide a step, and others of `train`; nothing else of it is used."""
    train = TrainConfig(
        alpha=alpha,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        global_batch=1,
        lora=LoraSettings(),
        deepspeed=DeepSpeedConfig(zero_stage=0),
        **settings,
    )
    nowhere = Path("nowhere")
    return TrainOrder(
        output=nowhere,
        sequences=nowhere,
        model=ModelConfig(),
        prompt=PromptConfig(),
        train=train,
        seed=0,
        weighted=True,
    )


def ours(model: Any, pairs: Sequence[TokenPair], alpha: float) -> None:
    spec = order(alpha)
    objective = PreferenceLoss(model, spec, training_strategy(model, spec))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    examples = [TrainExample(pair, [0.5] * len(pair.target)) for pair in pairs]
    for example in examples:
        objective([example], denominators(examples, spec)).loss.backward()
    optimizer.step()


def reference(model: Any, pairs: Sequence[TokenPair], limit: int) -> None:
    """Take a step with both branches padded on the left, the logits of every token, and their difference.

    Args:
        model: The model with LoRA.
        pairs: The examples.
        limit: Maximum number of tokens of a prompt, and of an answer.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    length = 2 * limit + 1
    for pair in pairs:
        ids = torch.zeros(2, length, dtype=torch.long)
        mask = torch.zeros(2, length, dtype=torch.long)
        for row, prompt in enumerate((pair.factual, pair.counterfactual)):
            whole = torch.tensor([*prompt, *pair.target])
            ids[row, -len(whole) :], mask[row, -len(whole) :] = whole, 1
        labels = torch.full((length,), -100)
        labels[-len(pair.target) :] = torch.tensor(pair.target)
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        normal = F.cross_entropy(logits[0, :-1], labels[1:])
        causal = F.cross_entropy((logits[0] - logits[1])[:-1], labels[1:])
        ((normal + ALPHA * causal) / len(pairs)).backward()
    optimizer.step()


def trl(model: Any, pairs: Sequence[TokenPair], limit: int) -> None:
    import datasets
    import transformers
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": [*pair.factual, *pair.target],
            "completion_mask": [0] * len(pair.factual) + [1] * len(pair.target),
        }
        for pair in pairs
    ]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=_words(), eos_token="0", pad_token="1")
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            packing=True,
            max_length=2 * limit,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=10_000,  # one optimizer step
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        trainer = SFTTrainer(
            model, settings, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
        )
        started = time.perf_counter()
        trainer.train()
        trl.seconds = time.perf_counter() - started  # type: ignore[attr-defined]  # the time without packing and set-up


def _words() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"0": 0, "1": 1}, unk_token="1"))


SIDES: dict[str, Callable[[Any, Sequence[TokenPair], int], None]] = {
    "nextquill": lambda model, pairs, limit: ours(model, pairs, ALPHA),
    "contextsft": lambda model, pairs, limit: ours(model, pairs, 0.0),
    "reference": reference,
    "trl": trl,
}


def one_side(side: str, name: str, path: Path) -> dict[str, float]:
    if side in OURS:
        keep_freed_memory()  # as our worker does
    pairs = read_pairs(path)
    model = with_lora(side, name)
    memory = ExtraMemory()
    SIDES[side](model, [max(pairs, key=lambda pair: pair.tokens)], LIMIT[name])
    started = time.perf_counter()
    SIDES[side](model, pairs, LIMIT[name])
    seconds = getattr(SIDES[side], "seconds", time.perf_counter() - started)
    return {"seconds": seconds, "extra_gb": memory.gb(), "peak_gb": memory.peak_gb()}


def compare(name: str, pairs: Sequence[TokenPair], few: int, rounds: int) -> dict[str, Any]:
    sides = [side for side in SIDES if side != "trl" or importlib.util.find_spec("trl")]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for side in rounds * [*sides, *reversed(sides)]:
            some = pairs[:few] if side == "reference" else pairs
            result = run_side("benchmarks.train", side, name, some, Path(folder))
            runs[side].append(result | {"per_example": result["seconds"] / len(some)})
            print(json.dumps({"side": side} | runs[side][-1]), file=sys.stderr, flush=True)
    extra, peak = ({side: max(run[key] for run in taken) for side, taken in runs.items()} for key in MEMORY)
    per_example = {side: [run["per_example"] for run in taken] for side, taken in runs.items()}
    per_example = {  # a run forwards and the next one backwards are one measurement
        side: [(forth + back) / 2 for forth, back in zip(taken[::2], taken[1::2], strict=True)]
        for side, taken in per_example.items()
    }

    def ratios(above: str, below: str) -> list[float]:
        return [one / other for one, other in zip(per_example[above], per_example[below], strict=True)]

    speed = ratios("reference", "nextquill")
    return {
        "shape": name,
        "examples": len(pairs),
        "tokens_an_example": round(sum(pair.tokens for pair in pairs) / len(pairs)),
        "seconds_an_example": {side: round(statistics.median(seconds), 3) for side, seconds in per_example.items()},
        "speed_over_reference": round(statistics.median(speed), 2),
        "in_each_round": [round(ratio, 2) for ratio in speed],
        "memory_under_reference": round(extra["reference"] / extra["nextquill"], 1),
        "time_over_contextsft": round(statistics.median(ratios("nextquill", "contextsft")), 3),
        "peak_over_contextsft": round(peak["nextquill"] / peak["contextsft"], 3),
        "contextsft_over_trl": round(statistics.median(ratios("contextsft", "trl")), 3) if "trl" in sides else None,
        "extra_gb": {side: round(value, 2) for side, value in extra.items()},
        "peak_gb": {side: round(value, 2) for side, value in peak.items()},
    }


def main() -> Iterator[dict[str, Any]]:
    given = arguments(__doc__, list(SIDES), examples=8, few=1, rounds=1)
    if given.side:
        yield one_side(given.side, given.shape, given.pairs)
        return
    for name in given.shapes:
        pairs = real_pairs(given.source, given.reviews, given.items, given.examples, limit=LIMIT[name])
        yield compare(name, pairs, given.reference_examples, given.rounds)


if __name__ == "__main__":
    for line in main():
        print(json.dumps(line), flush=True)
