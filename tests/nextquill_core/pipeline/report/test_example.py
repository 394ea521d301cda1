"""`nextquill explain` reads what a run has stored, and names what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextquill_core.pipeline.report.example import find_examples, gather
from nextquill_core.pipeline.run import Run
from nextquill_core.schemas import column_by_example
from storage import UserError
from tests.world import small_config


@pytest.fixture(scope="module")
def scored(small_world: Path, prepared_store: Path) -> Run:
    return Run(small_config(small_world, prepared_store), fetch=False)


@pytest.mark.pipeline
def test_tokens_have_the_stored_effects_and_weights(scored: Run) -> None:
    user = next(iter(column_by_example(scored.artifact(scored.plan.ingest).folder / "examples", "user_id").values()))
    with pytest.raises(UserError, match="nextquill evaluate"):  # predictions are not made yet
        list(gather(scored, find_examples(scored, user)))
    score = scored.artifact(scored.plan.score).folder
    effects, weights = column_by_example(score / "effects", "effect"), column_by_example(score / "weights", "weight")
    ids = column_by_example(scored.artifact(scored.plan.ingest).folder / "examples", "split")
    example = next(key for key, split in ids.items() if split == "train" and f":{user}:" in f":{key}:")
    (one,) = gather(scored, find_examples(scored, user, example))
    assert [token.effect for token in one.tokens] == effects[example]
    assert [token.weight for token in one.tokens] == weights[example]
    for token in one.tokens:
        assert token.p_with - token.p_without == pytest.approx(token.effect, abs=1e-5)
        assert token.preferred == (token.effect > 0.05)
    assert "".join(token.text for token in one.tokens) == "".join(unit.text for unit in one.units)
    assert one.example.target.text.startswith("".join(unit.text for unit in one.units)[:20])
    assert len(one.history) <= scored.config.prompt.max_history
    assert not one.texts
    assert find_examples(scored, user, one.item_id)[0].user_id == user


@pytest.mark.pipeline
def test_an_unknown_user_or_item_gets_near_names(scored: Run) -> None:
    user = next(iter(column_by_example(scored.artifact(scored.plan.ingest).folder / "examples", "user_id").values()))
    with pytest.raises(UserError, match=user):
        find_examples(scored, f"{user}x")
    with pytest.raises(UserError, match="no example of the item"):
        find_examples(scored, user, "Nothing")
