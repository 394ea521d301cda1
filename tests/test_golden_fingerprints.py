"""Moving code must not move artifacts: the fingerprints of known plans are written down in a file.

A change of that file makes the artifacts of every store stale. It is right only together with a raised revision of a
step or a new setting that decides a result, and the commit says which. To write it again:
`python -m tests.test_golden_fingerprints`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from nextquill_core.config import load_config
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline import make_plan
from storage.remote import open_store
from tests.conftest import REPO

GOLDEN = Path(__file__).with_suffix(".json")
ALL_METHODS = f"evaluate.methods=[{', '.join(METHODS)}]"
DEMO = "evaluate.preference_tokens=[initial]"  # the two fixed lines have no ground truth
PLANS = {
    "demo": ("demo", [DEMO]),
    "small": ("small", []),
    "books": ("books", []),
    "every-method": ("demo", [DEMO, ALL_METHODS]),  # the demo's encoders are the base model's states
    "paper-preset": ("books", ["evaluate.engine=openai", "evaluate.server.models={base: theta}"]),
    "cross-fitted": (
        "demo",
        [DEMO, "score.effect_source=adapter", "weights.policy=threshold", "train.weights_from=live"],
    ),
}
"""By name: the configuration and what is laid over it."""


def fingerprints(config: str, settings: list[str], folder: Path) -> dict[str, str]:
    """Return the fingerprint of each step of the plan, by its kind and name; the raw files are two fixed lines."""
    reviews, items = folder / "reviews.jsonl", folder / "items.jsonl"
    reviews.write_text('{"a": 1}\n')
    items.write_text('{"b": 2}\n')
    inputs = f"ingest.inputs=[{{category: Golden, reviews: {reviews}, items: {items}}}]"
    parsed = load_config(REPO / "configs" / f"{config}.yaml", [inputs, f"store={folder / 'store'}", *settings])
    plan = make_plan(parsed, open_store(parsed.store).raw_digests(save=False), fetch=False)
    steps: dict[tuple[str, str], Any] = {}
    waiting = [plan.evaluate, *plan.weights.values(), *plan.folds.values(), *plan.evaluation.tasks.values()]
    while waiting:
        step = waiting.pop()
        steps[step.kind, step.name] = step
        waiting += step.inputs
    return {f"{kind} {name}": step.fingerprint for (kind, name), step in sorted(steps.items())}


@pytest.mark.parametrize("name", PLANS)
def test_the_fingerprints_of_known_plans_stay(name: str, tmp_path: Path) -> None:
    assert fingerprints(*PLANS[name], tmp_path) == json.loads(GOLDEN.read_text())[name]


def main() -> int:
    """Write the file again."""
    found = {}
    for name, plan in PLANS.items():
        with TemporaryDirectory() as folder:
            found[name] = fingerprints(*plan, Path(folder))
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
