"""The files of a sample, read by the plain reimplementation of the data protocol."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest

from nextquill_core.config import ProtocolConfig
from nextquill_core.errors import UserError
from nextquill_core.synthetic import SampleSummary, write_sample
from nextquill_core.synthetic.truth import Truth, WrittenCategory, written_category
from tests.nextquill_core.ingest.reference import procedure

Row = dict[str, Any]
PLAIN_BYTES = "b6210c1211dc8db9e2fd93abf13358d62bb86e3de2715e5e576e97a8a43feac5"
FILES = ("reviews.jsonl", "items.jsonl", "truth/users.jsonl", "truth/tokens.jsonl", "truth/world.json")


def read(path: Path) -> tuple[list[Row], int]:
    """The rows of a file, and how many lines are not JSON."""
    rows, bad = [], 0
    for line in path.read_bytes().splitlines():
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            bad += 1
    return rows, bad


def test_nearly_all_regular_users_pass_and_spans_hold_after_cleaning(sample: SampleSummary) -> None:
    kinds = {user["user_id"]: user["kind"] for user in read(sample.folder / "truth/users.jsonl")[0]}
    truth = {
        (row["user_id"], row["parent_asin"], row["timestamp"]): row
        for row in read(sample.folder / "truth/tokens.jsonl")[0]
    }
    reviews, items = (read(sample.folder / name)[0] for name in ("reviews.jsonl", "items.jsonl"))
    kept = procedure(reviews, items, ProtocolConfig()).sequences
    regular = {user for user in kept if kinds[user] == "regular"}
    assert len(regular) >= 0.9 * sample.users
    assert not set(kept) - regular
    for profile, targets in kept.values():
        for row in profile + targets:
            of_row = truth[row["user_id"], row["parent_asin"], row["timestamp"]]
            for span in of_row["spans"] + of_row["controls"]:
                assert row["text"][span["start"] : span["end"]] == span["word"]
            for span in of_row["spans"]:
                assert span["effect"] == pytest.approx(span["p_factual"] - span["p_counterfactual"])


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_sample(tmp_path / name, users=8, seed=seed)
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()


def test_a_category_that_was_not_written_to_its_end_has_no_reviews(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextquill_core.synthetic import sample

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    write_sample(tmp_path, users=8, seed=1)
    for name in ("_world_truth", "_review_truth", "_user_truth"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(sample, name, killed)
            write_sample(tmp_path, users=8, seed=2)
        assert not (tmp_path / "reviews.jsonl").exists(), "the truth beside them could be that of others"


def test_the_bytes_of_the_plain_world_stay(tmp_path: Path) -> None:
    """Fingerprints of artifacts, and results that were published, depend on them."""
    write_sample(tmp_path, users=8, seed=1)
    digest = hashlib.sha256(b"".join((tmp_path / file).read_bytes() for file in FILES)).hexdigest()
    assert digest == PLAIN_BYTES


def test_the_mixed_world_names_second_styles_and_reviews_that_are_off_style(tmp_path: Path) -> None:
    write_sample(tmp_path, users=30, seed=1, world="mixed")
    users = read(tmp_path / "truth/users.jsonl")[0]
    assert all(user["style"] != user["second"] for user in users)
    assert len({(user["style"], user["second"]) for user in users}) == 12
    reviews = read(tmp_path / "truth/tokens.jsonl")[0]
    assert 0.1 < sum(review["off"] for review in reviews) / len(reviews) < 0.2
    assert written_category(tmp_path) == WrittenCategory(30, 1, "mixed")
    assert Truth(tmp_path / "truth/tokens.jsonl").world == "mixed"
    write_sample(tmp_path / "plain", users=8, seed=2)
    assert written_category(tmp_path / "plain") == WrittenCategory(8, 2, "plain")
    assert written_category(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("users", "seed", "world"), [(0, 42, "plain"), (5, -1, "plain"), (5, 1, "other")])
def test_impossible_arguments_are_refused(tmp_path: Path, users: int, seed: int, world: str) -> None:
    with pytest.raises(UserError):
        write_sample(tmp_path, users=users, seed=seed, world=world)
