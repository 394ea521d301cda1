"""Names and tags of flow runs, without Prefect."""

from __future__ import annotations

from typing import Any

import pytest

from flows.names import differences, picked, run_name, run_tags, typed_by_a_person
from nextquill_core.config import Config, load_config, parse_config
from tests.conftest import REPO


def parameters(*categories: str, **more: Any) -> dict[str, Any]:
    inputs = [{"category": name} for name in categories or ("Digital_Music",)]
    config = parse_config({"ingest": {"inputs": inputs}, "evaluate": {"methods": ["qwen"]}}, "the test")
    return {"config": config.model_dump(mode="json"), **more}


def test_a_name_says_stage_method_category_and_what_differs() -> None:
    assert run_name("train", parameters(), {"train.alpha": 0.1}) == "train nextquill Digital_Music α=0.1"
    assert run_name("pipeline", parameters(), {}) == "pipeline Digital_Music"
    assert run_name("promote", parameters(method="sft"), {}) == "promote sft Digital_Music"


@pytest.mark.parametrize(
    ("flow", "shown"),
    [
        ("ingest", "ingest Digital_Music max_bad_share=0.5"),
        ("model", "model Digital_Music seed=7 max_bad_share=0.5"),
        ("score", "score Digital_Music δ=0.1 seed=7 max_bad_share=0.5"),
        ("train", "train nextquill Digital_Music α=0.1 δ=0.1 seed=7 +1"),
        ("evaluate", "evaluate Digital_Music split=val α=0.1 δ=0.1 +2"),
    ],
)
def test_a_stage_shows_what_it_depends_on_its_own_settings_first(flow: str, shown: str) -> None:
    changed = {
        "ingest.max_bad_share": 0.5, "seed": 7, "weights.delta": 0.1, "train.alpha": 0.1, "evaluate.split": "val",
        "store": "elsewhere", "slurm.train.gpus": 1, "ingest.inputs": [],
    }  # fmt: skip
    assert run_name(flow, parameters(), changed) == shown


def test_several_categories_and_methods_are_counted() -> None:
    many = parameters("Books", "CDs", "Games")
    many["config"]["evaluate"]["methods"] = ["qwen", "contextsft", "nextquill", "latestk"]
    assert run_name("train", many, {}) == "train nextquill +1 Books +2"
    assert run_name("train", many | {"method": "contextsft"}, {}) == "train contextsft Books +2"
    many["config"]["evaluate"]["methods"] = ["nextquill-steered", "sft", "cope"]
    assert run_name("train", many, {}) == "train nextquill +1 Books +2", "a shared adapter is trained once"
    both = {"configs": [parameters(name)["config"] for name in ("Books", "CDs")]}
    assert run_name("reproduce", both, {}) == "reproduce Books +1"
    assert run_name("reproduce", {"configs": []}, {}) == "reproduce", "Prefect names a run before it checks parameters"


def test_values_are_short() -> None:
    changed = {"evaluate.decoding": ["paper", "sane"], "train.lora.alpha": 64, "model.name_or_path": "Qwen/Qwen2.5-3B"}
    assert run_name("evaluate", parameters(), changed) == (
        "evaluate Digital_Music decoding=paper,sane train.lora.alpha=64 model=Qwen2.5-3B"
    )
    name = run_name("pipeline", parameters("A" * 70), {"ingest.source": "b" * 40, "train.val_every": None})
    assert len(name) == 80
    assert name.endswith("…")
    assert run_name("train", parameters(), {"train.val_every": None}).endswith("val_every=null")


def test_a_sweep_shows_its_grid() -> None:
    shown = run_name("sweep", parameters(grid={"train.alpha": [0.01, 0.1]}), {})
    assert shown == "sweep Digital_Music α=0.01,0.1"


def test_differences_are_leaves_that_the_usual_settings_do_not_share() -> None:
    usual = parse_config({"train": {"epochs": 1}}, "the test").model_dump(mode="json")
    chosen = parse_config({"train": {"epochs": 1, "lora": {"r": 4}}, "seed": 1}, "the test").model_dump(mode="json")
    assert differences(chosen, usual) == {"seed": 1, "train.lora.r": 4}
    assert differences(usual, usual) == {}


def test_what_the_command_line_lays_over_a_file_is_known() -> None:
    demo = REPO / "configs" / "demo.yaml"
    config = load_config(demo, ["train.alpha=0.1", "train.lora={r: 4}", "train.alpha=0.2"])
    assert config.overridden == ("train.alpha", "train.lora")
    shown = picked(config.model_dump(mode="json"), config.overridden)
    assert shown["train.alpha"] == 0.2
    assert shown["train.lora.r"] == 4
    assert "seed" not in shown
    assert load_config(demo).overridden == Config().overridden == ()


def test_tags_are_for_filters() -> None:
    assert run_tags("train", parameters("Books", "CDs")) == [
        "stage:train", "category:Books", "category:CDs", "method:nextquill",
    ]  # fmt: skip
    assert run_tags("pipeline", parameters()) == ["pipeline", "category:Digital_Music"]
    assert run_tags("sweep", parameters()) == ["comparison", "category:Digital_Music"]


def test_a_name_that_a_person_typed_is_kept() -> None:
    assert not typed_by_a_person("Sleek-Conure")
    assert not typed_by_a_person("")
    assert typed_by_a_person("before the holidays")
    assert typed_by_a_person("alpha-2")
