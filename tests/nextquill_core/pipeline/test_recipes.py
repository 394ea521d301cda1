"""Rows of the ablation and controls through the steps `score` and `train`: their weights, their losses, their steps.

Before the first step a LoRA adapter changes nothing, so the first line of a training's metrics follows from the stored
effects and weights of θ0.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.loading import encoder_for, load_tokenizer
from nextquill_core.pipeline import Step
from nextquill_core.pipeline.run import Run
from nextquill_core.prompts import REVIEW
from nextquill_core.records import Item, Review
from nextquill_core.tokens import token_texts
from nextquill_core.training.data import epoch_order
from tests.conftest import made_once
from tests.nextquill_core.causal.test_grounding import slow_marks
from tests.stages import make, ranks
from tests.world import small_config

METHODS = ("nextquill", "mce-dce", "perce-live", "random-weights", "grounded-weights")
DELTA = 0.0005  # the small model hardly listens to the history: a tenth of its tokens have such an effect
LOW, HIGH = 0.25, 2.0  # exact in fp32


def run_on(world: Path, store: Path) -> Run:
    """All recipes, with weights for the effects of the small model."""
    weights = {"delta": DELTA, "low": LOW, "high": HIGH}
    return Run(small_config(world, store, weights=weights, evaluate={"methods": list(METHODS)}))


def derive_weights(world: Path, prepared: Path, store: Path) -> None:
    shutil.copytree(prepared, store, dirs_exist_ok=True)
    run = run_on(world, store)
    make(run, run.plan.score, *run.plan.weights.values())


def train_all(world: Path, scored: Path, store: Path) -> None:
    shutil.copytree(scored, store, dirs_exist_ok=True)
    run = run_on(world, store)
    make(run, *run.plan.train.values(), launch=ranks(1))


@pytest.fixture(scope="module")
def run(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run in whose store all weights are derived; tests only read it."""
    return run_on(
        small_world, made_once(tmp_path_factory, "weighted", partial(derive_weights, small_world, prepared_store))
    )


@pytest.fixture(scope="module")
def trained(run: Run, small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run in whose store all adapters are trained; tests only read it."""
    scored = Path(run.config.store)
    return run_on(small_world, made_once(tmp_path_factory, "recipes", partial(train_all, small_world, scored)))


def stored(run: Run, step: Step, table: str) -> dict[str, Any]:
    """Return the rows of a table of a score artifact by example."""
    files = sorted((run.artifact(step).folder / table).glob("*.parquet"))
    return {row["example_id"]: row for path in files for row in pq.read_table(path).to_pylist()}


def weights(run: Run, step: Step) -> dict[str, list[float]]:
    return {example_id: row["weight"] for example_id, row in stored(run, step, "weights").items()}


def test_random_weights_are_those_of_threshold_in_the_order_of_a_hash(run: Run) -> None:
    ours, threshold = weights(run, run.plan.weights["random"]), weights(run, run.plan.score)
    assert list(ours) == list(threshold)
    moved = 0
    for example_id, row in threshold.items():
        drawn = hashlib.shake_256(f"0:{example_id}".encode()).digest(8 * len(row))
        keys = [int.from_bytes(drawn[8 * place : 8 * place + 8], "big") for place in range(len(row))]
        assert ours[example_id] == [weight for _, weight in sorted(zip(keys, row, strict=True))]
        assert sum(ours[example_id]) == sum(row), "every normalisation divides by the same"
        moved += ours[example_id] != row
    assert moved > len(threshold) / 2
    share = sum(row.count(HIGH) for row in threshold.values()) / sum(map(len, threshold.values()))
    assert 0.02 < share < 0.9, "both weights occur"


def shown_in(prompt: str) -> list[Review]:
    """Return the past reviews that a prompt shows, read from its text."""
    _, heading, rest = prompt.partition(f"{REVIEW.history_heading}\n\n")
    found = []
    for section in rest.split("\n\n")[:-1] if heading else ():
        labels, _, text = section.partition(REVIEW.text_label)
        titles = [line.removeprefix("Title: ") for line in labels.splitlines() if line.startswith("Title: ")]
        found.append(Review(Item("", ""), None, " ".join(titles), text))
    return found


def test_grounded_weights_follow_from_the_texts_of_prompts_and_tokens(run: Run) -> None:
    tokenizer = load_tokenizer(run.model)
    examples = list(read_examples(run.artifact(run.plan.ingest).folder))
    ours, effects = weights(run, run.plan.weights["grounded"]), stored(run, run.plan.effects, "effects")
    assert list(ours) == [example.example_id for example in examples]
    chosen = examples[::3]
    marked = shown = 0
    for example, pair in zip(chosen, encoder_for(run.model, run.prompt, tokenizer).encode(chosen), strict=True):
        history = shown_in(tokenizer.decode(pair.factual))
        *pieces, stop = token_texts(tokenizer, effects[example.example_id]["target_ids"])
        ends = [stop] if stop == tokenizer.eos_token else []
        pieces = pieces if ends else [*pieces, stop]
        expected = [*slow_marks("".join(pieces), pieces, history), *(False for _ in ends)]
        assert ours[example.example_id] == [HIGH if mark else LOW for mark in expected]
        marked += sum(expected)
        shown += len(history)
    assert marked > len(chosen)
    assert shown > len(chosen), "histories of more than one review"


def curve(run: Run, name: str) -> list[dict[str, float]]:
    lines = (run.artifact(run.plan.train[name]).folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.ranks
@pytest.mark.slow
def test_the_first_losses_follow_from_stored_effects_and_weights(trained: Run) -> None:
    """L_n = 1/|B| Σ ω_t · (−log p_θ0(y_t | h)) over the first step's examples, with the ω of each recipe.

    `perce-live` divides each example by its number of tokens.
    """
    run = trained
    ids = [example.example_id for example in read_examples(run.artifact(run.plan.ingest).folder, ("train",))]
    batch = [ids[place] for place in epoch_order(len(ids), run.config.seed, 0)[: run.config.train.global_batch]]
    effects = stored(run, run.plan.effects, "effects")

    def normal(omega: dict[str, list[float]]) -> float:
        losses = (
            -weight * logp
            for example_id in batch
            for weight, logp in zip(omega[example_id], effects[example_id]["logp_factual"], strict=True)
        )
        return sum(losses) / len(batch)

    ratios = {
        example_id: [min(max(with_h - without, 0.8), 5.0)
                     for with_h, without in zip(row["logp_factual"], row["logp_counterfactual"], strict=True)]
        for example_id, row in effects.items()
    }  # fmt: skip
    expected = {
        "nextquill": normal(weights(run, run.plan.score)),
        "mce-dce": normal({example_id: [1.0] * len(row["effect"]) for example_id, row in effects.items()}),
        "perce-live": normal({example_id: [ratio / len(row) for ratio in row] for example_id, row in ratios.items()}),
        "random-weights": normal(weights(run, run.plan.weights["random"])),
        "grounded-weights": normal(weights(run, run.plan.weights["grounded"])),
    }
    first = {name: curve(run, name)[0] for name in METHODS}
    assert {name: line["normal"] for name, line in first.items()} == pytest.approx(expected, rel=1e-4)
    assert len({round(value, 3) for value in expected.values()}) == len(METHODS), "no two recipes are the same"
    assert first["mce-dce"]["causal"] == pytest.approx(first["nextquill"]["causal"], rel=1e-5), "both have ω in L_p"
    assert first["random-weights"]["causal"] != pytest.approx(first["nextquill"]["causal"], rel=1e-3)
    assert first["perce-live"]["causal"] == 0


@pytest.mark.ranks
@pytest.mark.slow
def test_all_methods_take_the_same_steps(trained: Run) -> None:
    run = trained
    count = sum(1 for _ in read_examples(run.artifact(run.plan.ingest).folder, ("train",)))
    expected = run.config.train.epochs * -(-count // run.config.train.global_batch)
    found = {
        name: (len(curve(run, name)), run.artifact(run.plan.train[name]).manifest.stats["steps"]) for name in METHODS
    }
    assert found == dict.fromkeys(METHODS, (expected, expected))
    rates = {name: [line["learning_rate"] for line in curve(run, name)] for name in METHODS}
    assert all(rate == rates["nextquill"] for rate in rates.values())
    adapters = {
        (run.artifact(step).folder / "adapter" / "adapter_model.safetensors").read_bytes()
        for step in run.plan.train.values()
    }
    assert len(adapters) == len(METHODS)
    cards = {
        name: (run.artifact(run.plan.train[name]).folder / "adapter" / "README.md").read_text() for name in METHODS
    }
    assert [name for name, card in cards.items() if "| weights in L_n | every token 1 |" in card] == ["mce-dce"]
    assert "| weights.policy | random |" in cards["random-weights"]
