"""Methods beside the exact effects of the world that wrote their data, and one review for a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.cli.narration import NARROW, TasteNarrator
from nextquill_core.pipeline.evaluate import TRUTH_FILE, read_truth
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.pipeline.truths import clearest_example, shown_user
from nextquill_core.synthetic.lexicon import STYLES
from tests.stages import make
from tests.world import small_config

pytestmark = pytest.mark.pipeline


def test_each_method_with_a_history_is_compared_by_word(whole: Run) -> None:
    rows = {row["method"]: row for row in read_truth(whole.artifact(whole.plan.evaluate))}
    assert list(rows) == ["qwen", "contextsft", "nextquill", "a perfect reader", "the users"]
    for method in ("contextsft", "nextquill"):
        assert -1 <= rows[method]["pearson"] <= 1
        assert 0 <= rows[method]["auc"] <= 1
    assert rows["qwen"]["pearson"] is None, "it shows no history"
    reader = rows["a perfect reader"]
    assert reader["pearson"] > 0.95, "two reviews say nearly all in the plain world"
    assert reader["slope"] == pytest.approx(1, abs=0.1)
    page = (whole.artifact(whole.plan.evaluate).folder / "report.html").read_text()
    assert "A perfect reader knows the rules of the world" in page
    (file,) = (one for one in whole.artifact(whole.plan.evaluate).manifest.shards if one.path == TRUTH_FILE)
    assert file.log, "the ground truth is no input of the step, so it decides no digest"


def test_the_users_share_is_counted_from_their_reviews(whole: Run, small_world: Path) -> None:
    truth = [json.loads(line) for line in (small_world / "truth" / "tokens.jsonl").read_text().splitlines()]
    spans = {(row["user_id"], row["timestamp"]): row["spans"] for row in truth}
    words = {style.name: {*style.praise, *style.complaint} for style in STYLES}
    sequences: dict[str, Any] = {}
    for path in sorted((whole.artifact(whole.plan.ingest).folder / "sequences").glob("*.parquet")):
        sequences |= {row["user_id"]: row["reviews"] for row in pq.read_table(path).to_pylist()}
    newest = [spans[user, reviews[-1]["timestamp_ms"]] for user, reviews in sequences.items()]
    own = [span["word"] in words[span["style"]] for review in newest for span in review]
    (row,) = (row for row in read_truth(whole.artifact(whole.plan.evaluate)) if row["method"] == "the users")
    assert row["own_style"] == pytest.approx(sum(own) / len(own), abs=1e-9)


def test_one_review_is_shown_before_training_and_after_scoring(whole: Run, small_world: Path, capsys: Any) -> None:
    narrator, example = TasteNarrator(), clearest_example(whole)
    assert whole.plan.model is not None
    narrator.before(whole, whole.plan.model)
    narrator.after(whole, whole.plan.score, Outcome(whole.artifact(whole.plan.score), reused=True))
    assert capsys.readouterr().err == "", "nothing is made"

    other = small_config(small_world, whole.store.root, model={"tiny": {"steps": 3}})
    untrained = Run(other)
    assert untrained.plan.model is not None
    narrator.before(untrained, untrained.plan.model)
    before = capsys.readouterr().err
    narrator.after(whole, whole.plan.score, Outcome(whole.artifact(whole.plan.score), reused=False))
    after = capsys.readouterr().err
    for text in (before, after):
        assert example.user_id in text
        assert " ".join(example.target.text.split()[:4]) in " ".join(text.split())
        assert max(map(len, text.splitlines())) <= NARROW
    assert "estimated" in after
    assert "estimated" not in before
    assert shown_user(whole) == example.user_id


def test_data_without_a_truth_are_not_shown(whole: Run, small_world: Path, tmp_path: Path, capsys: Any) -> None:
    for part in ("reviews", "items"):
        (tmp_path / f"{part}.jsonl").write_bytes((small_world / f"{part}.jsonl").read_bytes())
    bare = Run(small_config(tmp_path, tmp_path / "store"))
    for step in (*bare.plan.scans.values(), bare.plan.ingest):
        make(bare, step)
    assert bare.plan.model is not None
    TasteNarrator().before(bare, bare.plan.model)
    assert capsys.readouterr().err == ""
    assert shown_user(bare)
