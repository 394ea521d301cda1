"""The way of a review through the code stays short enough to be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.journey import journey

LONGEST = 49
"""Files on the way; lower it when the way gets shorter."""


@pytest.mark.ranks
@pytest.mark.slow
def test_a_review_passes_few_files_on_its_way_to_the_table(tmp_path: Path) -> None:
    found = journey(tmp_path)
    assert list(found) == ["ingest", "score", "train", "evaluate"]
    assert {"ingest/scan.py", "ingest/sequences.py"} <= found["ingest"]
    assert {"prompts.py", "tokens.py", "causal/scorer.py"} <= found["score"]
    assert {"training/losses.py", "training/trainer.py"} <= found["train"]
    assert {"pipeline/predict.py", "evaluation/tables.py"} <= found["evaluate"]
    assert len(set().union(*found.values())) <= LONGEST
