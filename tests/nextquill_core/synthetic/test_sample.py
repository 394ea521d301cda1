"""The files of a sample, read by a plain reimplementation of the data protocol."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from nextquill_core.config import ProtocolConfig
from nextquill_core.errors import UserError
from nextquill_core.synthetic import SampleSummary, write_sample
from nextquill_core.synthetic.truth import Truth, WrittenCategory, written_category

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


def description_of(item: Row) -> str:
    parts = item["description"]
    return " ".join(parts[1:] if parts[:1] == ["Product Description"] else parts)


def newest_once(rows: list[Row]) -> list[Row]:
    """Newest first, without a row whose item or text was seen."""
    items, texts, kept = set(), set(), []
    for row in sorted(rows, key=lambda row: -row["timestamp"]):
        if row["parent_asin"] not in items and row["text"] not in texts:
            items.add(row["parent_asin"])
            texts.add(row["text"])
            kept.append(row)
    return kept


def by_user(rows: list[Row]) -> dict[str, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["user_id"]].append(row)
    return groups


def users_of_items(rows: list[Row]) -> dict[str, set[str]]:
    users = defaultdict(set)
    for row in rows:
        users[row["parent_asin"]].add(row["user_id"])
    return users


def survivors(folder: Path) -> dict[str, list[Row]]:
    """User to kept reviews, base profile and targets, under the default thresholds."""
    p = ProtocolConfig()
    items = {
        item["parent_asin"]
        for item in read(folder / "items.jsonl")[0]
        if p.min_description_chars <= len(description_of(item)) <= p.max_description_chars
        and item["title"] and item["categories"] and item["rating_number"]
    }  # fmt: skip
    rows = [
        row
        for row in read(folder / "reviews.jsonl")[0]
        if len(row["text"] or "") >= p.min_text_chars
        and row["rating"] and row["title"] and row["timestamp"] and row["parent_asin"] in items
    ]  # fmt: skip
    before = -1
    while len(rows) != before:
        before = len(rows)
        users = {
            user
            for user, mine in by_user(rows).items()
            if p.min_user_reviews <= len(newest_once(mine)) <= p.max_user_reviews
        }
        reviewers = users_of_items(rows)
        rows = [
            row for row in rows if row["user_id"] in users and len(reviewers[row["parent_asin"]]) >= p.min_item_users
        ]
    cleaned = [row | {"text": " ".join(row["text"].split())} for row in rows]
    kept = {user: newest_once(mine)[::-1] for user, mine in by_user(cleaned).items()}
    profiles = {user: mine[: -p.n_targets] for user, mine in kept.items()}
    before = -1
    while len(profiles) != before:
        before = len(profiles)
        reviewers = users_of_items([row for mine in profiles.values() for row in mine])
        profiles = {
            user: [row for row in mine if len(reviewers[row["parent_asin"]]) >= p.min_profile_item_users]
            for user, mine in profiles.items()
        }
        profiles = {user: mine for user, mine in profiles.items() if len(mine) >= p.min_profile_reviews}
    return {user: [*mine, *kept[user][-p.n_targets :]] for user, mine in profiles.items()}


def test_nearly_all_regular_users_pass_and_spans_hold_after_cleaning(sample: SampleSummary) -> None:
    kinds = {user["user_id"]: user["kind"] for user in read(sample.folder / "truth/users.jsonl")[0]}
    truth = {
        (row["user_id"], row["parent_asin"], row["timestamp"]): row
        for row in read(sample.folder / "truth/tokens.jsonl")[0]
    }
    kept = survivors(sample.folder)
    regular = {user for user in kept if kinds[user] == "regular"}
    assert len(regular) >= 0.9 * sample.users
    assert not set(kept) - regular
    for rows in kept.values():
        for row in rows:
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
