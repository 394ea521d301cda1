"""Sizes of data that are published, synthetic, stored or unknown."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from nextquill_core.config import parse_config
from nextquill_core.costs.estimate import estimate
from nextquill_core.costs.sizes import ASSUMED, Lengths, lengths, stored_sizes
from nextquill_core.errors import UserError
from nextquill_core.ingest.reader import read_examples
from nextquill_core.pipeline.run import Run
from tests.conftest import REPO
from tests.nextquill_core.conftest import Configured
from tests.stages import make


def no_run(_config: Any) -> Run:
    raise AssertionError("nothing is here that a run could read")


def sizes_of(settings: dict[str, Any], **options: Any) -> Any:
    settings = {"store": "nowhere"} | settings
    return estimate(parse_config(settings, "the test"), no_run, **options).sizes


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("books", 2_536, 317),
        ("movies_tv", 15_400, 1_925),
        ("cds_vinyl", 14_032, 1_754),
        ("topic_writing", 11_442, 2_452),
    ],
)
def test_the_papers_data_sets_have_their_published_sizes(
    monkeypatch: Any, tmp_path: Path, name: str, train: int, test: int
) -> None:
    from nextquill_core.config import load_config

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    found = estimate(load_config(REPO / "configs" / f"{name}.yaml"), no_run).sizes
    assert (found.examples["train"], found.examples["test"]) == (train, test)
    assert found.lengths == ASSUMED
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_a_synthetic_category_has_the_users_that_it_is_asked_for(tmp_path: Path) -> None:
    raw = {"category": "S", "synthetic": {"folder": str(tmp_path / "new"), "users": 30}}
    found = sizes_of({"ingest": {"inputs": [raw], "protocol": {"n_targets": 5}}, "model": {"name_or_path": "tiny"}})
    assert found.examples == {"train": 90, "val": 30, "test": 30}
    assert not (tmp_path / "new").exists()


def test_other_settings_of_the_protocol_have_no_published_size(monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = {"ingest": {"inputs": [{"category": "Books"}], "protocol": {"n_targets": 4}}}
    with pytest.raises(UserError, match=r"number of users of Books is not known .* give a guess: --users N"):
        sizes_of(settings)
    found = sizes_of(settings, users=100)
    assert (found.examples, found.counted) == ({"train": 200, "val": 100, "test": 100}, "--users")


def test_lengths_are_cut_to_the_limits_of_the_prompts() -> None:
    prompt = parse_config({"store": "s", "prompt": {"max_history": 4, "max_prompt_tokens": 600}}, "t").prompt
    found = Lengths(1000, 200, 150, 300).within(prompt)
    assert (found.prompt, found.bare, found.answer) == (600, 200, 300), "4 of 8 reviews of 100 tokens each"
    prompt = prompt.model_copy(update={"max_prompt_tokens": 300, "max_target_tokens": 50})
    assert Lengths(1000, 200, 170, 300).within(prompt) == Lengths(300, 150, 150, 50)


def test_stored_sequences_give_exact_sizes(small_world: Path, configured: Configured) -> None:
    run = Run(configured())
    artifact = make(run, run.plan.ingest).artifact
    found = stored_sizes(run.plan, artifact)
    examples = list(read_examples(artifact.folder))
    tests = [example for example in examples if example.split == "test"]
    assert {split: sum(one.split == split for one in examples) for split in found.examples} == found.examples
    assert found.users == len({example.user_id for example in examples})
    assert found.history == pytest.approx(mean(len(example.history) for example in tests))
    assert found.raw_bytes["Small"] == sum(path.stat().st_size for path in small_world.glob("*s.jsonl"))


def test_without_a_tokenizer_characters_are_counted(configured: Configured) -> None:
    run = Run(configured())
    some = list(read_examples(make(run, run.plan.ingest).artifact.folder))[:6]
    found = lengths(run.plan, some)
    assert found.answer == pytest.approx(mean(min(len(one.target.text) / 4.2 + 1, 96) for one in some))
    assert found.opening < found.bare < found.prompt <= 512
