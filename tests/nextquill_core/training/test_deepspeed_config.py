"""DeepSpeed's configuration: what is ordered, over what the user's own JSON says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.errors import UserError
from nextquill_core.model.identity import ModelSpec
from nextquill_core.training.deepspeed_config import deepspeed_config, own_settings
from nextquill_core.training.spec import TrainSpec
from tests.tasks.ranks.test_launch import order


def read(path: Path, document: Any, **changes: Any) -> dict[str, Any]:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    ordered = {"zero_stage": 2, "offload": "none", "dtype": "bfloat16", "max_grad_norm": 1.0, "global_batch": 16}
    return own_settings(path, **{**ordered, **changes})


def test_the_micro_batches_are_ours_and_so_is_clipping(tmp_path: Path) -> None:
    spec = replace(TrainSpec.load(order(tmp_path)), max_grad_norm=0.3, model=ModelSpec("m", dtype="bfloat16"))
    config = deepspeed_config(spec)
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (1, 1)
    assert config["gradient_clipping"] == 0.3
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (True, False)
    assert config["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize(
    ("offload", "sections"),
    [("none", set()), ("optimizer", {"offload_optimizer"}), ("parameters", {"offload_optimizer", "offload_param"})],
)
def test_offloading_is_to_the_host_unless_the_file_names_another_place(
    tmp_path: Path, offload: str, sections: set[str]
) -> None:
    spec = replace(TrainSpec.load(order(tmp_path)), zero_stage=3, offload=offload)
    zero = deepspeed_config(spec)["zero_optimization"]
    assert zero == {"stage": 3, **{section: {"device": "cpu"} for section in sections}}
    own = {"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "/disk"}}}
    zero = deepspeed_config(replace(spec, deepspeed=own))["zero_optimization"]
    assert zero["offload_param"] == {"device": "nvme", "nvme_path": "/disk"}


def test_a_file_as_transformers_users_have_it_is_laid_under_ours(tmp_path: Path) -> None:
    own = read(
        tmp_path / "ds.json",
        {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": 1.0,
            "bf16": {"enabled": "auto"},
            "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": True},
            "wall_clock_breakdown": True,
        },
    )
    assert own == {"zero_optimization": {"stage": 2, "overlap_comm": True}, "wall_clock_breakdown": True}
    config = deepspeed_config(replace(TrainSpec.load(order(tmp_path)), deepspeed=own, zero_stage=2))
    assert config["zero_optimization"] == own["zero_optimization"]
    assert config["wall_clock_breakdown"] is True
    assert config["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    ("document", "changes", "named"),
    [
        ({"optimizer": {"type": "Lamb"}, "scheduler": {}}, {}, "optimizer, scheduler"),
        ({"gradient_accumulation_steps": 4}, {}, "gradient_accumulation_steps"),
        ({"train_batch_size": 32}, {}, "train_batch_size"),
        ({"gradient_clipping": 0.5}, {}, "gradient_clipping"),
        ({"fp16": {"enabled": True}}, {}, "fp16.enabled"),
        ({"zero_optimization": {"stage": 3}}, {}, "zero_optimization.stage"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, {}, "zero_optimization.zero_quantized_weights"),
        ({"zero_optimization": True}, {}, "zero_optimization"),
        ({"zero_optimisation": {}}, {}, "zero_optimisation"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "none"}}},
            {"offload": "optimizer"},
            "zero_optimization.offload_optimizer.device",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, document: Any, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "ds.json", document, **changes)
    assert str(caught.value).startswith(f"{tmp_path}/ds.json: cannot honour {named}; ")


@pytest.mark.parametrize(("document", "fault"), [("{", "cannot read it: "), ("[]", "it is no JSON object")])
def test_a_file_that_is_no_json_object(tmp_path: Path, document: str, fault: str) -> None:
    with pytest.raises(UserError, match=rf"ds\.json: {fault}.*; check train\.deepspeed\.config"):
        read(tmp_path / "ds.json", document)
