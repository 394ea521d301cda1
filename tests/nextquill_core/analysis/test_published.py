"""Tests for the paper's numbers and for ours beside them."""

from __future__ import annotations

import json
from itertools import product

import pytest

from nextquill_core.analysis.published import (
    CATEGORIES,
    PUBLISHED,
    REPORTED,
    TOPIC_WRITING,
    beside_published,
    published_cells,
    published_markdown,
    published_tables,
)
from tests.nextquill_core.analysis.rows import row

METHODS = (
    "qwen", "contriever", "latestk", "llm-trsr", "cos", "sft", "oppu", "contextsft", "causal-only", "norm-only",
    "nextquill",
)  # fmt: skip
ADDED = {
    **{("mce-dce", name, "rouge1"): value for name, value in zip(CATEGORIES, (0.1876, 0.1671, 0.1672), strict=True)},
    **{(name, "Books", "bertscore"): value for name, value in (("qwen", 0.7385), ("contextsft", 0.8013))},
    ("nextquill", "Books", "bertscore"): 0.8182,
    ("qwen", TOPIC_WRITING, "rouge1"): 0.0684,
    ("contextsft", TOPIC_WRITING, "rouge1"): 0.0934,
    ("nextquill", TOPIC_WRITING, "rouge1"): 0.1510,
}
"""What the paper's second version adds, as far as we know it."""


def numbers(*versions: str) -> dict[tuple[str, str, str], float]:
    """Return the numbers of these versions, of all by default."""
    chosen = [number for number in PUBLISHED if not versions or number.version in versions]
    return {(number.method, number.category, number.metric): number.value for number in chosen}


def test_the_official_objective_stands_beside_nextquill_s_published_numbers() -> None:
    row = {"category": "Books", "metric": "rouge1", "decoding": "paper", "value": 0.3, "ci_low": 0.2, "ci_high": 0.4}
    rows = [row | {"method": name, "n": 9} for name in ("nextquill", "nextquill-official")]
    found = {one["method"]: one for one in beside_published(rows) if one["ours"] is not None}
    assert found["nextquill"]["published"] == found["nextquill-official"]["published"] == 0.2318
    assert "most likely measured by its official code" in found["nextquill-official"]["source"]
    assert not [one for one in beside_published(rows[:1]) if one["method"] == "nextquill-official"]


def test_the_papers_table_is_whole() -> None:
    assert sorted(numbers("v1")) == sorted(product(METHODS, CATEGORIES, REPORTED))
    assert len(numbers("v1")) == 11 * 3 * 4
    assert len(PUBLISHED) == 2 * 11 * 3 * 4 + len(ADDED) + 3 + 9, "each number once a version"
    assert all("arXiv" in number.source for number in PUBLISHED)
    limits = {"bleu": 20, "bertscore": 1}
    assert all(0 < number.value < limits.get(number.metric, 0.5) for number in PUBLISHED)


def test_the_second_version_repeats_the_first_and_adds_to_it_second_hand() -> None:
    assert numbers("v2") == numbers("v1") | ADDED
    assert {number.version for number in PUBLISHED if number.second_hand} == {"v2"}
    assert all("second-hand" in number.source for number in PUBLISHED if number.version == "v2")
    assert not [number for number in PUBLISHED if number.ours and not number.version]


@pytest.mark.parametrize(
    ("method", "category", "metric", "value"),
    [
        ("qwen", "Books", "rouge1", 0.0519),
        ("contriever", "CDs_and_Vinyl", "bleu", 0.2386),
        ("llm-trsr", "Movies_and_TV", "meteor", 0.0756),
        ("cos", "CDs_and_Vinyl", "rouge1", 0.1727),
        ("oppu", "Movies_and_TV", "rougeL", 0.0648),
        ("mce-dce", "Books", "rouge1", 0.1876),
        ("mce-dce", "Movies_and_TV", "rouge1", 0.1671),
        ("mce-dce", "CDs_and_Vinyl", "rouge1", 0.1672),
        ("norm-only", "Books", "meteor", 0.2786),
        ("nextquill", "Books", "bleu", 3.5718),
        ("nextquill", "CDs_and_Vinyl", "meteor", 0.1805),
        ("DEP-7B", "Movies_and_TV", "bleu", 6.68),
        ("7B, no history", "CDs_and_Vinyl", "rouge1", 0.2396),
    ],
)
def test_numbers_as_published(method: str, category: str, metric: str, value: float) -> None:
    assert numbers()[method, category, metric] == value


def test_the_gains_that_the_numbers_tell() -> None:
    """Against ContextSFT the gain in ROUGE-1 is 40, 28 and 31 %: a slip in a column would show."""
    found = numbers()
    gains = [found["nextquill", name, "rouge1"] / found["contextsft", name, "rouge1"] for name in CATEGORIES]
    assert [round(100 * gain - 100) for gain in gains] == [40, 28, 31]


def test_ours_beside_theirs() -> None:
    rows = [
        row("nextquill", "rouge1", 0.25),
        row("nextquill", "rouge1", 0.99, decoding="sane"),
        row("nextquill", "log_likelihood", -2.0),
        row("percE", "rouge1", 0.3),
    ]
    joined = beside_published(rows)
    assert {found["category"] for found in joined} == {"Books"}
    assert len(joined) == 11 * 4 + 1 + 3 + 1 + 3
    mine = [found for found in joined if found["ours"] is not None]
    assert len(mine) == 1
    assert (mine[0]["method"], mine[0]["published"], mine[0]["ours"], mine[0]["n"]) == ("nextquill", 0.2318, 0.25, 317)
    assert mine[0]["difference"] == pytest.approx(0.0182)
    assert json.loads(json.dumps(joined, allow_nan=False)) == joined


def test_what_the_paper_does_not_have() -> None:
    assert beside_published([row("nextquill", "rouge1", 0.25, category="Demo")]) == []
    assert beside_published([row("nextquill", "rouge1", 0.25, decoding="sane")]) == []
    assert beside_published([row("nextquill", "rouge1", 0.25, category="all")]) == []
    assert published_markdown([]) == ""


def test_the_fourth_data_set_has_the_second_version_s_numbers_alone() -> None:
    rows = [row("nextquill", "rouge1", 0.2, category="topic_writing_user", n=40), row("nextquill", "rouge1", 0.25)]
    joined = beside_published(rows)
    topics = [found for found in joined if found["category"] == "topic_writing_user"]
    assert [found["category"] for found in joined[-3:]] == ["topic_writing_user"] * 3, "it comes after the others"
    assert [(found["method"], found["v1"], found["v2"], found["second_hand"]) for found in topics] == [
        ("qwen", None, 0.0684, ["v2"]), ("contextsft", None, 0.0934, ["v2"]), ("nextquill", None, 0.1510, ["v2"]),
    ]  # fmt: skip
    _, table = published_tables(joined)
    assert (table.metrics, table.published_n) == (("ROUGE-1",), None)
    assert table.title == "topic_writing_user, paper decoding, ours / v2 (difference), n = 40 / not known"
    assert [str(cells[0]) for _, cells in table.lines] == ["– / 0.0684°", "– / 0.0934°", "0.2000 / 0.1510° (+0.0490)"]


def test_tables_for_people() -> None:
    joined = beside_published([row("nextquill", "rouge1", 0.25), row("qwen", "bleu", 0.05)])
    (table,) = published_tables(joined)
    assert (table.category, table.n, table.published_n) == ("Books", 317, 317)
    ((title, rows),) = published_cells(joined)
    assert title == "Books, paper decoding, ours / v1 / v2 (difference), n = 317 / 317"
    assert rows[0] == {
        "method": "qwen",
        "ROUGE-1": "– / 0.0519 / 0.0519°",
        "ROUGE-L": "– / 0.0267 / 0.0267°",
        "METEOR": "– / 0.0639 / 0.0639°",
        "BLEU": "0.05 / 0.06 / 0.06° (−0.01)",
        "BERTScore": "– / 0.7385°",
    }
    markdown = published_markdown(joined, ["The base model is another."])
    assert "| nextquill | 0.2500 / 0.2318 / 0.2318° (+0.0182) | – / 0.1270 / 0.1270° |" in markdown
    assert "| mce-dce | – / 0.1876° | – | – | – | – |\n| norm-only |" in markdown
    assert "| DEP-7B | – / 0.3745 | – | – / 0.3156 | – / 13.53 | – |" in markdown
    assert "Sources: NextQuill, arXiv 2506.02368 v1" in markdown
    assert "° known second-hand: read in a public summary" in markdown
    assert markdown.endswith("- The base model is another.\n")
