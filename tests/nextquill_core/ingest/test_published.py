"""Published examples: raw rows merged into one sequence a user, and every example as it was published."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from nextquill_core.ingest.published import RawExample, merged, published_examples


def raw(split: str, keys: str, first_row: int = 0) -> RawExample:
    """A raw row whose reviews have these letters as keys and their place as time, the target last."""
    return RawExample(split, tuple((first_row + place, ord(key), place) for place, key in enumerate(keys, 1)))


def shown(*examples: RawExample, dated: bool = False) -> tuple[str, list[tuple[str, str, str]]]:
    """The sequence as letters, and of each example its split, target and history."""
    letters = {row: chr(key) for example in examples for row, key, _ in example.reviews}
    order, found = merged(examples, dated=dated)
    text = "".join(letters[row] for row, _ in order)
    return text, [(split, text[target], "".join(text[place] for place in past)) for split, target, past in found]


def test_a_single_row_is_its_profile_and_its_target() -> None:
    assert shown(raw("test", "abcd")) == ("abcd", [("test", "d", "abc")])
    assert shown(raw("test", "d")) == ("d", [("test", "d", "")])


def test_later_rows_add_only_what_is_new() -> None:
    rows = [raw("train", "abc"), raw("val", "abcd", 10), raw("test", "abcde", 20)]
    expected = [("train", "c", "ab"), ("val", "d", "abc"), ("test", "e", "abcd")]
    assert shown(*rows) == ("abcde", expected)
    assert shown(*reversed(rows)) == ("abcde", expected[::-1]), "the order of files changes nothing"
    assert len(merged(rows, dated=False)[0]) == 5


def test_profiles_that_only_overlap_keep_their_orders() -> None:
    assert shown(raw("train", "acx"), raw("test", "abcy", 10)) == (
        "abcxy",
        [("train", "x", "ac"), ("test", "y", "abc")],
    )


def test_a_text_that_is_there_twice_stays_twice() -> None:
    """The target is not in its own history even where the published history holds it."""
    order, found = merged([raw("test", "aba")], dated=False)
    assert [row for row, _ in order] == [1, 2, 3]
    assert found == [("test", 2, [0, 1])]


def test_two_examples_with_the_same_target_have_one_each() -> None:
    order, found = merged([raw("train", "ab"), raw("train", "cb", 10)], dated=False)
    targets = [target for _, target, _ in found]
    assert len(order) == 4
    assert len(set(targets)) == 2, "an example is identified by its target"


def test_profiles_that_contradict_each_other_keep_their_own_order_in_the_history() -> None:
    text, found = shown(raw("train", "abx"), raw("test", "bay", 10))
    assert sorted(text) == ["a", "b", "x", "y"]
    assert found == [("train", "x", "ab"), ("test", "y", "ba")]


def test_times_decide_where_profiles_do_not() -> None:
    first = RawExample("train", ((1, ord("a"), 10), (2, ord("d"), 40)))
    second = RawExample("test", ((3, ord("b"), 20), (4, ord("e"), 50)))
    assert shown(first, second, dated=True)[0] == "abde"
    assert [time for _, time in merged([first, second], dated=True)[0]] == [10, 20, 40, 50]


def table(*rows: tuple[Any, ...]) -> pl.DataFrame:
    names = ("row", "user", "item", "key", "time", "split", "example", "own")
    kinds = dict.fromkeys(names, pl.Int64) | {"split": pl.String, "own": pl.Boolean, "key": pl.UInt64}
    return pl.DataFrame(list(rows), {name: kinds[name] for name in names}, orient="row")


def test_every_row_is_accounted_for_and_undated_reviews_get_their_places() -> None:
    rows = table(
        (1, 1, 11, 101, 1, "train", 1, False),
        (2, 1, 12, 102, 2, "train", 1, True),
        (3, 0, 11, 101, 1, "test", 3, False),  # without a target
        (4, 1, 11, 101, 1, "test", 4, False),
        (5, 1, 12, 102, 2, "test", 4, False),
        (6, 1, 13, 103, 3, "test", 4, True),
    )
    found = published_examples(rows, dated=False)
    assert found.dropped == {"example_without_target": 1, "in_another_example": 2}
    assert found.rows.select("row", "user", "item", "time").rows() == [(1, 1, 11, 1), (2, 1, 12, 2), (6, 1, 13, 3)]
    assert not found.rows["target"].any()
    assert found.examples.rows() == [(1, "train", 1, [0]), (1, "test", 2, [0, 1])]
    assert published_examples(rows, dated=True).rows["time"].to_list() == [1, 2, 3]


@pytest.mark.parametrize("dated", [True, False])
def test_no_example_at_all(dated: bool) -> None:
    found = published_examples(table((1, 0, 1, 1, 1, "test", 1, False)), dated=dated)
    assert found.examples.is_empty()
    assert found.dropped == {"example_without_target": 1, "in_another_example": 0}
