"""Tests for the rows of metrics.json and the tables made of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nextquill_core.analysis.result_tables import pivot
from nextquill_core.errors import UserError
from nextquill_core.evaluation.forms import EvaluationDocument
from nextquill_core.evaluation.metrics import METRICS, ExampleScores, score_examples
from nextquill_core.evaluation.tables import (
    NO_TEXTS,
    answer_rows,
    comparison_rows,
    cost_rows,
    example_table,
    metric_rows,
    scores_of_statistics,
    statistics_table,
)
from nextquill_core.evaluation.text_metrics import bleu_of_sums
from nextquill_core.generation.engines import Usage
from nextquill_core.pipeline.methods import resampled_users
from nextquill_core.schemas import EXAMPLE_SCORES, Example
from nextquill_core.schemas import METRICS as METRICS_SCHEMA
from storage import write_json
from storage.stored_json import read_checked
from tests.conftest import review

REFERENCES = [f"a very good book about the number {number} and its many friends" for number in range(12)]
USERS = [f"user{number // 2}" for number in range(12)]
TEXTS = {"rouge1", "rougeL", "meteor", "bleu"}
CUT = {"rouge1_cut", "rougeL_cut", "meteor_cut"}
CATEGORIES = ["Books"] * 8 + ["Movies"] * 4


def test_a_user_of_two_categories_is_drawn_as_one() -> None:
    """The users have the same scores in both categories, so the second one says nothing more about other users."""
    examples = [
        Example(f"{category}:u{number}:0", f"u{number}", category, "test", review(0), ())
        for category in "AB"
        for number in range(8)
    ]
    scores = ExampleScores({}).plus({"rouge1": [number / 8 for _ in "AB" for number in range(8)]})
    categories = [example.category for example in examples]
    rows = metric_rows({("qwen", "sane"): scores}, resampled_users(examples), categories, samples=500)
    one, _, both = [(row["value"], row["ci_low"], row["ci_high"]) for row in rows]
    assert one == both


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str], ExampleScores]:
    good = [text.replace("very", "rather") for text in REFERENCES]
    middling = [text.replace("very good book", "bad film") for text in REFERENCES]
    return {
        ("qwen", "paper"): score_examples(["nothing to see"] * 12, REFERENCES),
        ("nextquill", "paper"): score_examples(good, REFERENCES),
        ("latestk", "paper"): score_examples(middling, REFERENCES),
        ("nextquill", "sane"): score_examples(good, REFERENCES),
    }


def test_rows_have_the_schema_and_cover_everything(scores: dict[tuple[str, str], ExampleScores]) -> None:
    rows = metric_rows(scores, USERS, CATEGORIES, samples=100)
    table = pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)
    measured = {*TEXTS, *CUT, "length_ratio"}
    assert {row["metric"] for row in rows} == measured < set(METRICS)
    assert len(table) == 4 * len(measured) * 3
    assert all(set(row) == set(METRICS_SCHEMA.names) for row in rows)
    counts = {row["category"]: row["n"] for row in rows}
    assert counts == {"Books": 8, "Movies": 4, "all": 12}
    assert all(row["ci_low"] <= row["value"] + 1e-9 and row["value"] <= row["ci_high"] + 1e-9 for row in rows)


def test_values_are_the_scores_own(scores: dict[tuple[str, str], ExampleScores]) -> None:
    rows = metric_rows(scores, USERS, CATEGORIES, samples=100)
    found = {(row["method"], row["decoding"], row["category"], row["metric"]): row["value"] for row in rows}
    result = scores["nextquill", "paper"]
    assert found["nextquill", "paper", "all", "bleu"] == result.value("bleu")
    assert found["nextquill", "paper", "Movies", "rouge1"] == result.take(np.arange(8, 12)).value("rouge1")


def test_rows_do_not_depend_on_the_order(scores: dict[tuple[str, str], ExampleScores]) -> None:
    order = np.random.default_rng(0).permutation(12)
    turned = {key: result.take(order) for key, result in scores.items()}
    users, categories = [USERS[row] for row in order], [CATEGORIES[row] for row in order]
    assert metric_rows(turned, users, categories, samples=100) == metric_rows(scores, USERS, CATEGORIES, samples=100)
    assert comparison_rows(turned, users, categories, samples=100) == comparison_rows(
        scores, USERS, CATEGORIES, samples=100
    )


def test_comparisons_against_a_reference(scores: dict[tuple[str, str], ExampleScores]) -> None:
    rows = comparison_rows(scores, USERS, CATEGORIES, reference="qwen", samples=999)
    assert {(row["method"], row["reference"], row["decoding"]) for row in rows} == {
        ("nextquill", "qwen", "paper"),
        ("latestk", "qwen", "paper"),
    }
    assert {row["metric"] for row in rows} == TEXTS | CUT
    best = next(row for row in rows if row["method"] == "nextquill" and row["category"] == "all")
    assert best["difference"] > 0.5
    assert best["win_rate"] == 1
    assert best["p_value"] == 0.001
    assert best["metric"] == "rouge1"
    assert best["p_adjusted"] == pytest.approx(0.008)  # eight comparisons in the table: two methods, four metrics
    cut = next(row for row in rows if row["method"] == "nextquill" and row["metric"] == "rouge1_cut")
    assert cut["p_adjusted"] == pytest.approx(0.006)  # three metrics in the other table


def test_every_pair_and_no_union_of_one_category(scores: dict[tuple[str, str], ExampleScores]) -> None:
    rows = comparison_rows(scores, USERS, ["Books"] * 12, samples=100)
    assert {row["category"] for row in (*rows, *metric_rows(scores, USERS, ["Books"] * 12, samples=100))} == {"Books"}
    assert [(row["method"], row["reference"]) for row in rows if row["metric"] == "bleu"] == [
        ("nextquill", "qwen"),
        ("latestk", "qwen"),
        ("latestk", "nextquill"),
    ]


def test_a_reference_that_did_not_run(scores: dict[tuple[str, str], ExampleScores]) -> None:
    assert comparison_rows(scores, USERS, CATEGORIES, reference="oppu", samples=100) == []


def test_numbers_must_agree(scores: dict[tuple[str, str], ExampleScores]) -> None:
    with pytest.raises(ValueError, match=r"\[11, 12\] examples"):
        metric_rows(scores, USERS[:-1], CATEGORIES)
    with pytest.raises(ValueError, match="at least 1"):
        metric_rows({}, [], [])


def with_preferences(scores: ExampleScores, shift: float) -> ExampleScores:
    """Two users, "user0" and "user5", have a preference token each; the others have none."""
    sums = np.zeros((12, 2))
    sums[0], sums[11] = (-1 + shift, 1), (-3 + shift, 1)
    return scores.plus({"preference_log_likelihood": sums})


def test_a_metric_that_few_users_have(scores: dict[tuple[str, str], ExampleScores]) -> None:
    """A resample without a preference token says nothing and is left out. The others lie between the two users'
    values, and often enough on either end for the interval to reach from the one to the other.
    """
    some = {
        ("qwen", "paper"): with_preferences(scores["qwen", "paper"], 0.0),
        ("nextquill", "paper"): with_preferences(scores["nextquill", "paper"], 0.5),
    }
    rows = [row for row in metric_rows(some, USERS, ["Books"] * 12, samples=500) if "preference" in row["metric"]]
    assert [(row["value"], row["ci_low"], row["ci_high"], row["n"]) for row in rows] == [
        (-2.0, -3.0, -1.0, 12),
        (-1.5, -2.5, -0.5, 12),
    ]
    tests = [row for row in comparison_rows(some, USERS, ["Books"] * 12) if "preference" in row["metric"]]
    assert len(tests) == 1
    assert tests[0]["difference"] == pytest.approx(0.5)
    assert tests[0]["win_rate"] == 1  # of the two users who have such a token
    assert json.dumps(rows + tests, allow_nan=False)


def test_a_metric_that_a_category_has_not(scores: dict[tuple[str, str], ExampleScores]) -> None:
    sums = np.zeros((12, 2))
    sums[0] = -1, 2  # in Books alone
    some = {("qwen", "paper"): scores["qwen", "paper"].plus({"preference_log_likelihood": sums})}
    rows = [row for row in metric_rows(some, USERS, CATEGORIES, samples=100) if "preference" in row["metric"]]
    assert [(row["category"], row["value"]) for row in rows] == [("Books", -0.5), ("all", -0.5)]


def test_a_metric_that_one_method_lacks(scores: dict[tuple[str, str], ExampleScores]) -> None:
    """What a server wrote has no likelihood: a dash in the table, and no comparison."""
    some = {
        ("qwen", "paper"): scores["qwen", "paper"],
        ("nextquill", "paper"): with_preferences(scores["nextquill", "paper"], 0.0),
    }
    rows = metric_rows(some, USERS, ["Books"] * 12, samples=100)
    table = pivot(rows, "paper", "Books")
    place = [metric.key for metric in table.metrics].index("preference_log_likelihood")
    assert [cells[place].value for _, cells in table.lines] == ["–", "−2.0000"]
    compared = {row["metric"] for row in comparison_rows(some, USERS, ["Books"] * 12, samples=100)}
    assert compared == TEXTS | CUT


def test_many_comparisons_get_the_samples_that_they_need() -> None:
    """78 pairs of 13 methods in 4 metrics are 312 tests: with 1,000 samples no corrected p-value could lie below
    312 / 1,001. The draws are as many as make 312 / (1 + 40 · 312) = 0.025 the least.
    """
    rng = np.random.default_rng(0)
    counts = {"length_ratio": np.ones((40, 2)), "bleu": np.ones((40, 10))}
    scores = {
        (f"method{number}", "paper"): ExampleScores(counts).plus(
            {key: number + rng.normal(scale=0.01, size=40) for key in ("rouge1", "rougeL", "meteor")}
        )
        for number in range(13)
    }
    rows = comparison_rows(scores, [f"u{number}" for number in range(40)], ["Books"] * 40, samples=1000)
    assert len(rows) == 312
    assert min(row["p_adjusted"] for row in rows) == pytest.approx(312 / 12_481)
    assert all(row["p_adjusted"] < 0.05 for row in rows if row["metric"] == "rouge1")


def test_example_table(scores: dict[tuple[str, str], ExampleScores]) -> None:
    """What is averaged and summed from the table is what the metrics say."""
    key = ("nextquill", "paper")
    measured = with_preferences(scores[key], 0.0).plus({"bertscore": [0.5] * 12})
    table = example_table({("qwen", "paper"): scores["qwen", "paper"], key: measured}, [f"e{row}" for row in range(12)])
    assert table.schema.equals(EXAMPLE_SCORES)
    rows = table.to_pylist()
    assert [(row["example_id"], row["method"]) for row in rows[11:13]] == [("e11", "qwen"), ("e0", "nextquill")]
    assert rows[0]["bertscore"] is rows[0]["log_likelihood"] is rows[0]["preference_tokens"] is None
    mine = rows[12:]
    assert np.mean([row["rouge1"] for row in mine]) == pytest.approx(measured.value("rouge1"))
    counts = np.array([row["bleu_counts"] for row in mine]).sum(axis=0)
    assert bleu_of_sums(counts) == pytest.approx(measured.value("bleu"))
    assert sum(row["words"] for row in mine) / sum(row["reference_words"] for row in mine) == 1
    assert sum(row["preference_log_likelihood"] for row in mine) == -4
    assert [row["preference_tokens"] for row in mine] == [1, *[0] * 10, 1]
    assert example_table({}, []).schema.equals(EXAMPLE_SCORES)
    with pytest.raises(ValueError, match="12 scores of nextquill for 1 examples"):
        example_table({key: measured}, ["e0"])


def test_document_round_trip(scores: dict[tuple[str, str], ExampleScores], tmp_path: Path) -> None:
    rows = metric_rows(scores, USERS, CATEGORIES, samples=100)
    comparisons = comparison_rows(scores, USERS, CATEGORIES, samples=100)
    document = {"settings": {"bleu": {"signature": "s"}}, "rows": rows, "comparisons": comparisons}
    write_json(tmp_path / "metrics.json", document)
    assert read_checked(tmp_path / "metrics.json", EvaluationDocument, "evaluate again") == document


def test_a_damaged_metrics_file_is_one_line(tmp_path: Path) -> None:
    row = {"method": "m", "category": "c", "decoding": "d", "metric": "x", "value": "x", "ci_low": 0, "ci_high": 0}
    for text in (
        "",
        "[" * 100_000,
        "[]",
        "{}",
        '{"settings": {}, "rows": []}',
        '{"settings": 1, "rows": [], "comparisons": []}',
        '{"settings": {}, "rows": [1], "comparisons": []}',
        '{"settings": {}, "rows": [], "comparisons": [], "cautions": "one"}',
        json.dumps({"settings": {}, "rows": [row | {"n": 1}], "comparisons": []}),
    ):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(UserError, match="metrics"):
            read_checked(tmp_path / "metrics.json", EvaluationDocument, "evaluate again")


def test_costs_by_hand() -> None:
    """Four answers of 50 tokens each in 20 s are 10 tokens a second; 6 s to the four first tokens are 1,500 ms each."""
    usage = Usage(4, prompt_tokens=4000, new_tokens=200, seconds=20, first_token_seconds=6, peak_bytes=3_500_000_000)
    (row,) = cost_rows({("llm-trsr", "paper"): asdict(usage)}, {"nextquill": 60.0}, {"llm-trsr": {"summaries": 12.5}})
    assert row == {
        "method": "llm-trsr",
        "decoding": "paper",
        "answers": 4,
        "training_seconds": None,
        "preparation": {"summaries": 12.5},
        "prompt_tokens": 1000,
        "new_tokens": 50,
        "tokens_per_second": 10,
        "first_token_ms": 1500,
        "peak_gb": 3.5,
        "retries": 0,
    }
    assert json.loads(json.dumps(row)) == row


def test_missing_measurements_stay_unknown() -> None:
    usages = {
        ("nextquill", "paper"): None,
        ("nextquill", "sane"): asdict(Usage()),  # nothing was generated: everything was there already
        ("oppu", "paper"): {"answers": 2, "new_tokens": 9},
        ("sft", "paper"): {"answers": 2, "new_tokens": 9, "seconds": 3.0, "prompt_tokens": None},
    }
    rows = cost_rows(usages, {"nextquill": 60.0, "sft": None})
    measured = ("prompt_tokens", "new_tokens", "tokens_per_second", "first_token_ms", "peak_gb")
    assert [[row[name] for name in measured] for row in rows] == [
        [None, None, None, None, None],
        [None, None, None, None, None],
        [None, 4.5, None, None, None],
        [None, 4.5, 3.0, None, None],
    ]
    assert [row["training_seconds"] for row in rows] == [60.0, 60.0, None, None]
    assert all(row["preparation"] == {} for row in rows)


def test_counts_by_hand() -> None:
    answers = [
        ("qwen", "good " * 100, 100, "length"),
        ("nextquill", "A fine book.", 5, "stop"),
        ("qwen", " \n\u00a0", 1, "stop"),
        ("qwen", "", 0, "stop"),
        ("qwen", "ספר נפלא 😀", 7, "content_filter"),
    ]
    columns = ("method", "text", "n_tokens", "finish_reason")
    rows = answer_rows({"decoding": "paper", **dict(zip(columns, one, strict=True))} for one in answers)
    counts = ("answers", "empty", "cut", "other", "stopped_share", "mean_tokens", "longest_tokens")
    assert rows == [
        {"method": method, "decoding": "paper", **dict(zip(counts, numbers, strict=True))}
        for method, numbers in (("qwen", (4, 2, 1, 1, 0.5, 27, 100)), ("nextquill", (1, 0, 0, 0, 1.0, 5, 5)))
    ]
    assert answer_rows([]) == []


def test_statistics_come_back_exactly(scores: dict[tuple[str, str], ExampleScores]) -> None:
    ids = [f"e{row}" for row in range(12)]
    likely = ExampleScores({}).plus({"log_likelihood": np.array([[-1.5 * row, row] for row in range(12)])})
    measured = scores | {("contextsft", NO_TEXTS): likely}
    found_ids, found = scores_of_statistics(statistics_table(measured, ids))
    assert found_ids == ids
    assert list(found) == list(measured)
    for key, result in measured.items():
        assert found[key].statistics.keys() == result.statistics.keys()
        for metric, values in result.statistics.items():
            np.testing.assert_array_equal(found[key].statistics[metric], values)
    assert found["nextquill", "sane"].value("bleu") == scores["nextquill", "sane"].value("bleu")
    assert len(found["contextsft", NO_TEXTS]) == 12


def test_examples_without_texts_have_only_what_was_measured() -> None:
    likely = ExampleScores({}).plus({"log_likelihood": np.array([[-3.0, 2.0], [-1.0, 4.0]])})
    rows = example_table({("nextquill", NO_TEXTS): likely}, ["a", "b"]).to_pylist()
    assert [(row["log_likelihood"], row["tokens"]) for row in rows] == [(-3.0, 2), (-1.0, 4)]
    assert {row[name] for row in rows for name in ("rouge1", "bleu", "bleu_counts", "words")} == {None}
    assert {row["metric"] for row in metric_rows({("nextquill", NO_TEXTS): likely}, ["u", "v"], ["B", "B"])} == {
        "log_likelihood"
    }
