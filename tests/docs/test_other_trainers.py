"""The trainers of docs/how-to/other-trainers.md run, and compute the product's loss."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import cross_entropy

from nextquill_core.registry.export import WEIGHTED
from tests.conftest import REPO

PAGE = (REPO / "docs" / "how-to" / "other-trainers.md").read_text(encoding="utf-8")
ROWS = [
    {
        "example_id": f"C:u:{number}",
        "prompt_ids": list(range(40 + number, 60)),
        "counterfactual_ids": list(range(50 + number, 60)),
        "target_ids": list(range(70, 76 + number)),
        "weights": [0.9 if place % 2 else 0.1 for place in range(6 + number)],
    }
    for number in range(3)
]


def page_functions(number: int) -> dict[str, Any]:
    """Return what a Python block of the page defines, by name."""
    found: dict[str, Any] = {"__name__": "page"}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[number], found)  # noqa: S102 - a page of this repository
    return found


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS, schema=WEIGHTED), tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


def plain_loss(model: Any, rows: list[dict[str, Any]], alpha: float) -> float:
    """Return L_n + α·L_p from full logits, each normalised by the number of samples."""
    total = 0.0
    for row in rows:
        target, weights = torch.tensor(row["target_ids"]), torch.tensor(row["weights"])
        both = []
        for name in ("prompt_ids", "counterfactual_ids"):
            ids = torch.tensor([row[name] + row["target_ids"]])
            both.append(model(ids).logits[0, len(row[name]) - 1 : -1].float())
        for factor, logits in ((1.0, both[0]), (alpha, both[0] - both[1])):
            total += factor * float((weights * cross_entropy(logits, target, reduction="none")).sum())
    return total / len(rows)


def test_the_transformers_trainer_minimises_the_loss(tiny_folder: Path, exported: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    page = page_functions(0)
    rows = page["read_rows"](exported)
    before = plain_loss(AutoModelForCausalLM.from_pretrained(tiny_folder).eval(), rows, 0.05)
    trainer = page["train"](
        tiny_folder, rows, str(tmp_path / "out"), max_steps=8, learning_rate=3e-3, logging_steps=1, use_cpu=True,
        save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    model = trainer.model.eval()
    after = plain_loss(model, rows, 0.05)
    assert after < before
    with torch.no_grad():
        found = float(trainer.compute_loss(model, page["collate"](rows)))
    assert found == pytest.approx(after, rel=1e-4)


def test_a_datum_has_the_weights_at_the_tokens_of_the_answer(exported: Path) -> None:
    data = list(page_functions(1)["read_data"](exported))
    for datum, row in zip(data, ROWS, strict=True):
        assert len(datum["input_ids"]) == len(datum["target_ids"]) == len(datum["weights"])
        pairs = zip(datum["target_ids"], datum["weights"], strict=True)
        answered = [(token, weight) for token, weight in pairs if weight]
        assert [token for token, _ in answered] == row["target_ids"]
        assert [weight for _, weight in answered] == pytest.approx(row["weights"])
        assert datum["input_ids"] == (row["prompt_ids"] + row["target_ids"])[:-1]
