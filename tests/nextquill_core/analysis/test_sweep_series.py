"""Series of a sweep: which values are joined, in which order, and what does not depend on the key."""

from __future__ import annotations

from itertools import product
from typing import Any

from nextquill_core.analysis.sweep_series import sweep_series
from tests.nextquill_core.analysis.rows import row

METRICS = ("history_gain", "personal_gain", "log_likelihood", "rouge1", "rougeL", "meteor", "bleu")


def document(grid: dict[str, list[Any]], metrics: tuple[str, ...] = ("rouge1",)) -> dict[str, Any]:
    """Return the results of a sweep in which `qwen` is the same at every point; the value of point n is n / 10."""
    points, rows = [], []
    for number, values in enumerate(product(*grid.values())):
        made = {"nextquill/sane": f"p{number}", "nextquill/paper": f"q{number}", "qwen/sane": "same", "qwen/paper": "x"}
        points.append({"point": number, "values": dict(zip(grid, values, strict=True)), "predictions": made})
        for method, decoding, metric in product(("qwen", "nextquill"), ("paper", "sane"), metrics):
            rows.append({"point": number, **row(method, metric, number / 10, decoding=decoding)})
    return {"split": "val", "points": points, "rows": rows}


def test_one_key_is_one_series_in_ascending_order_of_the_methods_that_depend_on_it() -> None:
    found = sweep_series(document({"train.alpha": [0.1, 0.01, 0.05]}), "train.alpha")
    assert found is not None
    assert (found.values, found.decoding, found.category) == (("0.01", "0.05", "0.1"), "sane", "Books")
    assert found.symbol == "α (train.alpha)"
    assert [(one["series"], one["at"], one["value"]) for one in found.rows] == [
        ("nextquill", "0.01", 0.1), ("nextquill", "0.05", 0.2), ("nextquill", "0.1", 0.0)
    ]  # fmt: skip
    assert "point" not in found.rows[0]


def test_a_second_key_makes_a_series_for_each_of_its_values() -> None:
    both = document({"train.alpha": [0.01, 0.1], "weights.high": [0.7, 0.9]})
    alpha, high = sweep_series(both, "train.alpha"), sweep_series(both, "weights.high")
    assert alpha is not None
    assert high is not None
    assert [(one["series"], one["at"], one["value"]) for one in alpha.rows] == [
        ("nextquill, λ = 0.7", "0.01", 0.0), ("nextquill, λ = 0.7", "0.1", 0.2),
        ("nextquill, λ = 0.9", "0.01", 0.1), ("nextquill, λ = 0.9", "0.1", 0.3),
    ]  # fmt: skip
    assert [one["value"] for one in high.rows] == [0.0, 0.1, 0.2, 0.3]


def test_four_metrics_at_most_the_most_telling_ones() -> None:
    found = sweep_series(document({"train.alpha": [1, 2]}, METRICS), "train.alpha")
    assert found is not None
    assert found.metrics == ("personal_gain", "log_likelihood", "rouge1", "meteor")
    assert {one["metric"] for one in found.rows} == set(found.metrics)


def test_what_changes_nothing_has_no_series() -> None:
    assert sweep_series(document({"train.alpha": [0.1]}), "train.alpha") is None
    assert sweep_series(document({"train.alpha": [0.1, 0.2]}), "train.alpha", ["qwen"]) is None
    assert sweep_series({"points": [], "rows": []}, "train.alpha") is None


def test_values_that_are_no_numbers_stay_in_their_order() -> None:
    found = sweep_series(document({"train.normalization": ["weight", "sequence"]}), "train.normalization")
    assert found is not None
    assert found.values == ("weight", "sequence")
    assert found.symbol == "train.normalization"
