"""Following files that other processes append to, cut back and put in place of each other."""

from __future__ import annotations

import json
from pathlib import Path

from nextquill_core.training.curves import append, cut
from tasks.ranks.tail import Follower


def test_follower_hands_over_whole_lines_once_and_starts_over_when_the_file_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    seen: list[float] = []
    follow = lambda: follower.follow(lambda line: seen.append(line["step"]))  # noqa: E731
    follow()
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    follow()
    assert seen == [1, 2]
    with path.open("a") as file:
        file.write('ep": 3}\n')
    follow()
    follow()
    assert seen == [1, 2, 3]
    path.write_text(json.dumps({"step": 1}) + "\n")
    follow()
    assert seen == [1, 2, 3, 1]


def test_a_file_that_was_cut_back_and_has_grown_again_unseen_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, {"step": 1})
    append(path, {"step": 2})
    follower = Follower(path)
    seen: list[float] = []
    follower.follow(lambda line: seen.append(line["step"]))
    cut(path, 1)
    append(path, {"step": 2, "loss": 0.5})
    follower.follow(lambda line: seen.append(line["step"]))
    assert seen == [1, 2, 1, 2]
