"""A request is checked before any work; what is wrong is one line with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.records import Item, Review
from nextquill_core.writing.requests import PastReview, WriteRequest, checked, read_forms
from storage import UserError

ITEM = {"title": "A kettle", "description": "Made of steel"}


def test_a_past_review_takes_a_record_a_form_or_a_row_of_examples() -> None:
    record = Review(Item("A kettle", "Made of steel"), 4.0, "good", "boils fast", 7)
    row = {"item_id": "B1", "item_title": "A kettle", "item_description": "Made of steel", "rating": 4.0}
    row |= {"title": "good", "text": "boils \n fast ", "timestamp_ms": 7}
    form = {"item": ITEM, "rating": 4, "title": "good", "text": "boils fast", "timestamp_ms": 7}
    for values in (record, row, form):
        past = checked(PastReview, values, "here")
        assert past.review(record.item) == record
        assert past.item == checked(WriteRequest, {"item": record.item}, "here").item
    assert checked(PastReview, {"item_id": "B1", "text": "x"}, "here").item == "B1"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"user": "U"}, "item is missing"),
        ({"item": ITEM, "user": "U", "history": []}, "user and history are two histories"),
        ({"item": ITEM, "before": 5}, "before needs a user"),
        ({"example": "C:u:1", "user": "U"}, "leave out user"),
        ({"example": "C:u:1", "rating": 0.0}, "leave out rating"),
        ({"item": ITEM, "rating": "five"}, "`rating`"),
        ({"item": ITEM, "starz": 5}, "`starz`"),
        ({"item": {"name": "x"}}, "`item.name`: there is no such field"),
        ({"item": 5}, "`item`: Input should be a valid string"),
        ({"item": ITEM, "user": "\ud800"}, "`user`: Input should be a valid string"),
        ({"item": {"title": "\udcff"}}, "`item.title`: Input should be a valid string"),
        ({"item": ITEM, "history": [{"item": ITEM, "text": ""}]}, "`history.0.text`"),
        ({"item": ITEM, "rating": float("nan")}, "`rating`"),
        (["no mapping"], "valid dictionary"),
    ],
)
def test_what_is_wrong_is_one_line(values: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(WriteRequest, values, "somewhere")
    assert words in str(caught.value)
    assert str(caught.value).startswith("somewhere: ")
    assert "\n" not in str(caught.value)


def test_a_file_of_requests_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    lines = [json.dumps({"item": ITEM, "id": str(number)}) for number in range(3)]
    path.write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    assert [one.id for one in read_forms(path, WriteRequest)] == ["0", "1", "2"]
    for bad, words in (('{"item": ', "line 4: the text is not JSON"), ('{"user": "u"}', "line 4: item is missing")):
        path.write_text(f"{lines[0]}\n{lines[1]}\n\n{bad}\n{lines[2]}")
        with pytest.raises(UserError, match=words):
            read_forms(path, WriteRequest)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_forms(path, WriteRequest)
    with pytest.raises(UserError, match="cannot be read"):
        read_forms(tmp_path / "nowhere.jsonl", WriteRequest)
