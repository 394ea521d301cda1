"""The page of studies: which sentence stands for which numbers, and that all numbers come from the document."""

from __future__ import annotations

from typing import Any

import pytest

from nextquill_core.analysis.results_page import aim, figures, pair_sentence, pairs_of, render
from tests.nextquill_core.analysis.rows import compared as compared_row

LIKELIHOOD, PREFERENCE, ROUGE = "log_likelihood", "preference_log_likelihood", "rouge1"
WINS, LOSES, NONE = (0.05, 0.002), (-0.05, 0.0001), (0.05, 0.4)
"""A difference with its corrected p-value."""


def compared(method: str, metric: str, found: tuple[float, float], *, reference: str = "contextsft") -> dict[str, Any]:
    difference, p_value = found
    changes = {"candidate": "base", "reference_candidate": "base", "win_rate": 0.75}
    return compared_row(metric, difference, reference=reference, method=method, p_adjusted=p_value, **changes)


def valued(method: str, metric: str, value: float, candidate: str = "base") -> dict[str, Any]:
    return {
        "method": method, "candidate": candidate, "metric": metric, "value": value, "ci_low": value - 0.1,
        "ci_high": value + 0.1, "n": 20, "seeds": 3,
    }  # fmt: skip


def table(split: str, rows: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    return {"split": split, "examples": 20, "users": 10, "rows": rows, "comparisons": comparisons}


def study(**changes: Any) -> dict[str, Any]:
    """A study of three rows, whose table is changed by the tests."""
    methods = ("contextsft", "random-weights", "nextquill")
    rows = [
        valued(method, key, -3.5 + place) for place, method in enumerate(methods) for key in (LIKELIHOOD, PREFERENCE)
    ]
    pairs = [compared("nextquill", LIKELIHOOD, WINS), compared("nextquill", PREFERENCE, NONE)]
    parts = table("test", rows, [*pairs, compared("nextquill", LIKELIHOOD, NONE, reference="random-weights")])
    return {
        "name": "made-up", "title": "Made-up numbers", "questions": [2, 3, 4, 5], "method": "nextquill",
        "reference": "contextsft", "decoding_methods": ["cos"], "decoding": "sane", "seeds": [1, 2, 3],
        "val_seeds": {"parts": 1, "variants": 1}, "settings": {"base model": "tiny"},
        "data": [{"category": "Books", "users": 10, "examples": {"train": 80, "val": 10, "test": 10}}],
        "steps": {"contextsft": [12], "nextquill": [12]}, "choices": [],
        "candidates": {
            "effects": {"longer": {"model.tiny.steps": 7}},
            "parts": {"base": {}}, "variants": {"base": {}, "ε = 0.5": {"weights.low": 0.5}},
        },
        "tables": {"parts": parts}, "effects": [], "notes": [], "missing": [], "evaluations": {},
    } | changes  # fmt: skip


def page(**changes: Any) -> str:
    return render({"studies": [study(**changes)]}, "images")


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            {LIKELIHOOD: WINS},
            "`nextquill` is better than `contextsft` in Log-likelihood (+0.0500 [+0.0400, +0.0600] nats a token, "
            "p = 0.002).",
        ),
        (
            {LIKELIHOOD: LOSES},
            "`nextquill` is worse than `contextsft` in Log-likelihood (−0.0500 [−0.0600, −0.0400] nats a token, "
            "p < 0.001).",
        ),
        (
            {LIKELIHOOD: NONE},
            "`nextquill`: no difference from `contextsft` was found in Log-likelihood (+0.0500 [+0.0400, +0.0600] nats "
            "a token, p = 0.400).",
        ),
        (
            {LIKELIHOOD: LOSES, ROUGE: WINS, PREFERENCE: NONE},
            "`nextquill` is better than `contextsft` in ROUGE-1 (+0.0500 [+0.0400, +0.0600], p = 0.002); is worse than "
            "`contextsft` in Log-likelihood (−0.0500 [−0.0600, −0.0400] nats a token, p < 0.001); no difference was "
            "found in Preference log-likelihood (+0.0500 [+0.0400, +0.0600] nats a token, p = 0.400).",
        ),
    ],
)
def test_a_sentence_says_what_the_numbers_say(found: dict[str, tuple[float, float]], sentence: str) -> None:
    assert pair_sentence([compared("nextquill", key, values) for key, values in found.items()]) == sentence


def test_a_pair_reads_the_same_from_both_sides() -> None:
    written = table("test", [], [compared("nextquill", LIKELIHOOD, WINS, reference="cos")])
    [turned] = pairs_of(written, "cos", "nextquill")
    assert (turned["difference"], turned["ci_low"], turned["ci_high"]) == pytest.approx((-0.05, -0.06, -0.04))
    assert turned["win_rate"] == 0.25
    assert pair_sentence([turned]).startswith("`cos` is worse than `nextquill` in Log-likelihood (−0.0500")


def section(text: str, heading: str) -> str:
    return text.partition(f"### {heading}")[2].partition("\n### ")[0]


def test_question_1_names_the_setting_of_every_model() -> None:
    row = {"model": "θ0", "note": "words", "words": 12, "pearson": 0.41, "auc": 0.79}
    found = page(questions=[1], effects=[row | {"setting": "base"}, row | {"setting": "longer", "pearson": 0.93}])
    assert "| longer | θ0 | 12 | 0.93 | 0.79 | words |" in section(found, "1. Are the effects right?")
    assert "- longer: `model.tiny.steps: 7`" in found
    best, base = "r = 0.93 and AUC = 0.79 under `longer`", "r = 0.41 and AUC = 0.79 under `base`"
    assert f"Over words, the best agreement is {best} against {base}." in found
    assert "| 1. Are the effects right? | Pearson r 0.93 with the exact effects (longer; θ0; words) |" in found


def test_question_2_in_short_names_every_row_that_was_compared() -> None:
    random = compared("random-weights", LIKELIHOOD, NONE)
    parts = study()["tables"]["parts"]
    found = page(tables={"parts": parts | {"comparisons": [*parts["comparisons"], random]}})
    words = "`random-weights` no difference in Log-likelihood. `nextquill` wins in Log-likelihood"
    assert f"| 2. Which part does the work? | against `contextsft`: {words} |" in found


def test_question_2_names_the_method_its_controls_and_every_value() -> None:
    found = section(page(), "2. Which part does the work?")
    assert "**Table.** Test, 20 examples of 10 users." in found
    assert "| `random-weights` | base | −2.5000 [−2.6000, −2.4000] | −2.5000 [−2.6000, −2.4000] |" in found
    assert "| `nextquill` | base | **−1.5000** [−1.6000, −1.4000] |" in found
    assert "- `nextquill` is better than `contextsft` in Log-likelihood (+0.0500" in found
    assert "- `nextquill`: no difference from `random-weights` was found in Log-likelihood (+0.0500" in found


def test_question_3_says_beside_the_numbers_that_a_measure_is_circular() -> None:
    found = section(page(), "3. Where is the gain?")
    assert "Preference log-likelihood (circular)" in found
    assert "is no independent evidence" in " ".join(found.split())
    assert "**Answer.** `nextquill`: no difference from `contextsft` was found in Preference log-likelihood" in found


def tuned(*comparisons: dict[str, Any]) -> dict[str, Any]:
    """A study whose recommended setting was measured on test."""
    choice = {
        "choice": "variants", "by": "personal_gain", "not_below": ["log_likelihood"], "seeds": 1,
        "methods": {"nextquill": {"candidate": "ε = 0.5", "why": "highest personal_gain over contextsft",
                                  "differences": {}}},
    }  # fmt: skip
    rows = [valued(method, LIKELIHOOD, -3.5, "ε = 0.5") for method in ("contextsft", "nextquill")]
    return {"choices": [choice], "tables": {"tuned": table("test", rows, list(comparisons))}}


def test_the_aim_is_reached_only_by_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from nextquill_core.analysis import results_page

    monkeypatch.setattr(results_page, "HEADLINES", (LIKELIHOOD,))
    both = tuned(compared("nextquill", LIKELIHOOD, WINS), compared("nextquill", ROUGE, NONE))
    assert aim(study(**both))["reached"] is True
    assert (
        "Yes. The setting `ε = 0.5` reaches the aim: `nextquill` is better in Log-likelihood (+0.0500 [+0.0400, "
        "+0.0600] nats a token, p = 0.002) and not worse in any metric of texts (ROUGE-1)."
    ) in page(**both)
    worse = tuned(compared("nextquill", LIKELIHOOD, WINS), compared("nextquill", ROUGE, LOSES))
    assert aim(study(**worse))["reached"] is False
    assert (
        "No. Under the setting `ε = 0.5`, `nextquill` is worse in ROUGE-1 (−0.0500 [−0.0600, −0.0400], p < 0.001). "
        "What holds: better in Log-likelihood (+0.0500 [+0.0400, +0.0600] nats a token, p = 0.002)."
    ) in page(**worse)
    missed = page(**tuned(compared("nextquill", LIKELIHOOD, NONE), compared("nextquill", ROUGE, NONE)))
    assert "`nextquill` is not shown to be better in Log-likelihood (+0.0500" in missed
    lost = page(**tuned(compared("nextquill", LIKELIHOOD, LOSES), compared("nextquill", ROUGE, NONE)))
    assert "`nextquill` is worse in Log-likelihood (−0.0500" in lost
    silent = page(**tuned(compared("nextquill", LIKELIHOOD, WINS)))
    assert "This cannot be decided, because not everything was measured: metrics of texts." in silent


def test_without_the_headline_metric_the_page_does_not_claim_the_aim() -> None:
    found = aim(study(**tuned(compared("nextquill", LIKELIHOOD, WINS), compared("nextquill", ROUGE, NONE))))
    assert found["reached"] is None
    assert [name.lower() for name in found["unknown"]] == ["personal gain"]


def test_settings_that_raise_the_gain_on_val_are_named_with_their_price() -> None:
    found = tuned(compared("nextquill", LIKELIHOOD, NONE), compared("nextquill", ROUGE, NONE))
    pairs = [compared("nextquill", "personal_gain", WINS), compared("nextquill", LIKELIHOOD, LOSES)]
    found["tables"]["variants_val"] = table("val", [valued("nextquill", LIKELIHOOD, -3.5)], pairs)
    assert (
        "On val these settings raise the personal gain over `contextsft`: `base`: Personal gain (+0.0500 [+0.0400, "
        "+0.0600] nats a token, p = 0.002) and Log-likelihood (−0.0500 [−0.0600, −0.0400] nats a token, p < 0.001) |"
    ) in page(**found)
    found["tables"]["variants_val"]["comparisons"] = [compared("nextquill", "personal_gain", NONE), pairs[1]]
    assert "On val these settings" not in page(**found)


def test_threats_follow_from_what_was_measured() -> None:
    found = section(page(missing=["made-up: parts, base, test, seed 3"]), "Threats to validity")
    for part in ("With 3 seeds", "2/3 of their variance", "Books with 10 test users", "nothing about large models",
                 "1 cells have not run", "- made-up: parts, base, test, seed 3", "circular"):  # fmt: skip
        assert part in found, part
    assert "different numbers of optimizer steps" not in found
    uneven = section(page(steps={"contextsft": [12], "nextquill": [11]}), "Threats to validity")
    assert "different numbers of optimizer steps: 11 and 12" in uneven
    assert "one seed" in section(page(seeds=[1]), "Threats to validity")


def test_what_was_not_run_is_said_and_nothing_is_invented() -> None:
    text = page(tables={})
    assert text.count("Its cells have not run.") == 3
    assert "not measured" in text.partition("## Made-up numbers")[0]


def test_figures_are_named_on_the_page_and_the_same_numbers_give_the_same_bytes() -> None:
    document = {"studies": [study()]}
    drawn = figures(document)
    assert list(drawn) == ["results-made-up-parts.png"]
    assert drawn == figures(document)
    assert "](images/results-made-up-parts.png)" in page()


def test_the_page_is_a_page_of_the_docs() -> None:
    text = page()
    assert text.startswith("# Results\n\nLook up ")
    assert text.count("\n# ") == 0
    assert "None" not in text
    assert "\n\n\n\n" not in text
