"""Tests for how rows of results are arranged for a reader."""

from __future__ import annotations

from functools import partial

import pytest

from nextquill_core.analysis.result_tables import (
    bucket_tables,
    control_tables,
    likelihood_blocks,
    pivot,
    result_blocks,
)
from nextquill_core.evaluation.slices import DIFFERENCE, OWN, STRANGER
from tests.nextquill_core.analysis import rows

row = partial(rows.row, n=20)


def compared(method: str, reference: str, p_adjusted: float) -> dict[str, object]:
    return rows.compared("rouge1", 0.02, reference=reference, method=method, p_adjusted=p_adjusted, win_rate=0.6)


def sliced(
    bucket: str, found: dict[str, object], name: str = "gap", p_adjusted: float | None = None
) -> dict[str, object]:
    return {"slice": name, "bucket": bucket, **found, "p_value": p_adjusted, "p_adjusted": p_adjusted}


METHODS = ("a", "b", "c", "d", "e")


def test_a_matrix_has_two_sides() -> None:
    """Method b is 0.02 better than a, significantly, for 60 % of the users; so a is as much worse, for 40 %."""
    pairs = [(later, earlier) for place, later in enumerate(METHODS) for earlier in METHODS[:place]]
    comparisons = [compared(*pair, 0.01 if pair == ("b", "a") else 0.5) for pair in pairs if pair != ("e", "d")]
    ((decoding, (block,)),) = result_blocks([row(name, "rouge1", 0.2) for name in METHODS], comparisons)
    assert decoding == "paper"
    assert block.pairs == ()
    (matrix,) = block.matrices
    cells = {(line, column): duel for line, duels in matrix.lines for column, duel in zip(METHODS, duels, strict=True)}
    better, worse = cells["b", "a"], cells["a", "b"]
    assert (better.wins, better.difference, better.verdict) == ("60 %", "+0.0200", 1)
    assert (worse.wins, worse.difference, worse.verdict) == ("40 %", "−0.0200", -1)
    assert cells["c", "a"].verdict == 0
    assert {cells["a", "a"].wins, cells["e", "d"].wins} == {""}
    assert (matrix.pairs, matrix.significant) == (9, 1)


def test_few_pairs_are_listed() -> None:
    pairs = [(later, earlier) for place, later in enumerate(METHODS[:4]) for earlier in METHODS[:place]]
    comparisons = [compared(*pair, 0.2) for pair in pairs]
    ((_, (block,)),) = result_blocks([row(name, "rouge1", 0.2) for name in METHODS[:4]], comparisons)
    assert [(pair.method, pair.reference) for pair in block.pairs] == pairs
    assert block.matrices == ()


def test_likelihoods_come_from_the_first_preset_that_has_them() -> None:
    rows = [
        row("a", "rouge1", 0.2),
        row("a", "log_likelihood", -2.0, decoding="sane"),
        row("a", "preference_log_likelihood", -1.0, decoding="sane"),
        row("a", "log_likelihood", -2.0, decoding="third"),
    ]
    assert [decoding for decoding, _ in result_blocks(rows, [])] == ["paper"]
    (block,) = likelihood_blocks(rows, [])
    assert [metric.key for metric in block.table.metrics] == ["log_likelihood", "preference_log_likelihood"]
    assert [cell.value for _, cells in block.table.lines for cell in cells] == ["−2.0000", "−1.0000"]
    assert likelihood_blocks(rows[:1], []) == []


def test_buckets_stand_in_their_order_and_the_best_is_a_buckets_own() -> None:
    slices = [
        sliced("2 years or more", row("a", "rouge1", 0.3)),
        sliced("under a week", row("a", "rouge1", 0.1)),
        sliced("under a week", row("b", "rouge1", 0.2)),
        sliced("under a week", row("b", "log_likelihood", -2.0)),
        sliced("under a week", row("b", "log_likelihood", -2.0, decoding="sane")),
        sliced("8–15", row("a", "rouge1", 0.4), "history_length"),
    ]
    (_, (lengths,)), (title, tables) = bucket_tables(slices)
    assert lengths.buckets == (("8–15", 20),)
    assert title == "By the time since the last review"
    assert [(table.metric.key, table.decoding) for table in tables] == [
        ("rouge1", "paper"),
        ("log_likelihood", "paper"),
    ]
    assert [name for name, _ in tables[0].buckets] == ["under a week", "2 years or more"]
    cells = dict(tables[0].lines)
    assert [(cell.value, cell.best) for cell in cells["a"]] == [("0.1000", False), ("0.3000", True)]
    assert [(cell.value, cell.best) for cell in cells["b"]] == [("0.2000", True), ("–", False)]


def test_slices_show_the_union_of_categories() -> None:
    slices = [
        sliced("under a week", row("a", "rouge1", value, name))
        for name, value in (("Books", 0.1), ("Movies", 0.3), ("all", 0.2))
    ]
    ((_, (table,)),) = bucket_tables(slices)
    assert table.category == "all"
    assert dict(table.lines)["a"][0].value == "0.2000"


def test_control() -> None:
    slices = [
        sliced(OWN, row("a", "rouge1", 0.5), "control"),
        sliced(STRANGER, row("a", "rouge1", 0.3), "control"),
        sliced(OWN, row("a", "length_ratio", 1.0), "control"),
        sliced(STRANGER, row("a", "length_ratio", 1.0), "control"),
        sliced(DIFFERENCE, row("a", "rouge1", 0.2), "control", 0.0004),
    ]
    (table,) = control_tables(slices)
    assert [metric.key for metric in table.metrics] == ["rouge1"]  # of a length no direction is better: no test
    ((method, (cell,)),) = table.lines
    assert method == "a"
    assert (cell.difference.value, cell.difference.best) == ("+0.2000", True)
    assert (cell.detail, cell.own, cell.stranger) == ("p < 0.001", "0.5000", "0.3000")
    assert bucket_tables(slices) == control_tables([]) == []


@pytest.mark.parametrize("rows", [[], [row("a", "unknown", 1.0)]])
def test_nothing_to_show(rows: list[dict[str, object]]) -> None:
    assert likelihood_blocks(rows, []) == []
    assert bucket_tables([sliced("under a week", found) for found in rows]) == []


def test_markdown() -> None:
    rows = [row("latestk", "rouge1", 0.0520), row("nextquill", "rouge1", 0.2318), row("nextquill", "bleu", 3.5718)]
    assert pivot(rows, "paper", "Books").markdown == (
        "| method | ROUGE-1 | BLEU |\n"
        "| --- | ---: | ---: |\n"
        "| latestk | 0.0520 [0.0420, 0.0620] | – |\n"
        "| nextquill | **0.2318** [0.2218, 0.2418] | **3.57** [3.56, 3.58] |\n"
    )


def test_what_looks_equal_is_equally_best() -> None:
    rows = [
        row("a", "rouge1", 0.12341),
        row("b", "rouge1", 0.12339),
        row("c", "rouge1", 0.12),
        row("a", "length_ratio", 2),
    ]
    table = pivot(rows, "paper", "Books")
    assert [cells[0].best for _, cells in table.lines] == [True, True, False]
    assert not table.lines[0][1][1].best  # neither direction of a length is better
    assert table.n == 20
    assert pivot(rows, "sane", "Books").lines == ()
