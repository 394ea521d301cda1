"""Answers that were kept are not asked for again, and half a line counts for nothing."""

from __future__ import annotations

from pathlib import Path

from nextquill_core.generation.engines import Generation, Journal, Request

REQUESTS = [Request(key, [1]) for key in "abc"]
ODD = Generation("שלום 👩‍🚀\u2028\n\tend", 3, "stop")


def test_half_of_the_first_line_does_not_spoil_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "c", "ans')
    Journal(path).keep(REQUESTS[0], ODD)
    assert Journal(path).answers(REQUESTS[:1]) == [ODD]


def test_what_was_kept_stands_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    journal = Journal(path)
    assert journal.missing(REQUESTS) == REQUESTS
    journal.keep(REQUESTS[1], ODD)
    journal.keep(REQUESTS[0], Generation("", 0, "length"))
    with path.open("a") as file:
        file.write('{"key": "c", "ans')
    again = Journal(path)
    assert again.missing(REQUESTS) == [REQUESTS[2]]
    again.keep(REQUESTS[2], Generation("last", 1, "stop"))
    for found in (again, Journal(path)):
        assert found.missing(REQUESTS) == []
        assert found.answers(REQUESTS) == [Generation("", 0, "length"), ODD, Generation("last", 1, "stop")]
