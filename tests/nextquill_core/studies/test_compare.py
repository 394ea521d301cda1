"""Two evaluations compared: differences by hand, matching of examples, and what a name means."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from nextquill_core.analysis.comparison_page import Comparison, comparison_html
from nextquill_core.config import Config
from nextquill_core.errors import UserError
from nextquill_core.evaluation.between_runs import OTHER_SETTINGS, OTHER_TOKENS, UNDIRECTED
from nextquill_core.evaluation.metrics import BERTSCORE, LENGTH_RATIO, LIKELIHOOD
from nextquill_core.evaluation.significance import holm
from nextquill_core.evaluation.tables import ALL, NO_TEXTS
from nextquill_core.pipeline.run import Run
from nextquill_core.studies.compare import Evaluation, compare, find_evaluations, setting_differences
from storage import Artifact, Basis, Store
from tests.chaos.hostile import documents
from tests.evaluations import commit_evaluation, commit_ingest, likelihoods

IDS = [f"C:u{number}:0" for number in range(4)]
A = {
    ("nextquill", "sane"): {
        "rouge1": [0.1, 0.2, 0.3, 0.4],
        LENGTH_RATIO: likelihoods([10, 10, 10, 10], [10, 10, 10, 10]),
        LIKELIHOOD: likelihoods([-8, -2, -6, -4], [10, 2, 4, 4]),
    },
    ("qwen", "sane"): {"rouge1": [0.5, 0.5, 0.5, 0.5]},
}
B = {
    ("nextquill", "sane"): {
        "rouge1": [0.2, 0.2, 0.5, 0.3],
        LENGTH_RATIO: likelihoods([20, 20, 20, 20], [10, 10, 10, 10]),
        LIKELIHOOD: likelihoods([-4, -2, -2, -2], [10, 2, 4, 4]),
    },
    ("latestk", "paper"): {"rouge1": [0.5, 0.5, 0.5, 0.5]},
}


def compared(tmp_path: Path, a: Artifact, b: Artifact) -> Comparison:
    store = Store(tmp_path)
    return compare(Evaluation("A", store, a), Evaluation("B", store, b))


def by_metric(found: Comparison) -> dict[str, Any]:
    """Return the rows of the method nextquill."""
    return {row["metric"]: row for row in found.rows if row["method"] == "nextquill"}


def no_config(config: Config) -> Run:
    raise AssertionError(f"{config.store} was opened")


def test_a_user_of_two_categories_is_one_user(tmp_path: Path) -> None:
    ids = ["A:u:0", "A:v:0", "B:u:0", "B:w:x:1"]
    found = compared(tmp_path, commit_evaluation(tmp_path, A, ids), commit_evaluation(tmp_path, B, ids))
    assert (found.overlap.examples, found.overlap.users) == (4, 3)
    assert {row["category"] for row in found.rows} == {"A", "B", ALL}


def test_differences_by_hand(tmp_path: Path) -> None:
    found = compared(tmp_path, commit_evaluation(tmp_path, A, IDS), commit_evaluation(tmp_path, B, IDS))
    rows = by_metric(found)
    assert len(rows) == len(found.rows) == 3
    rouge = rows["rouge1"]
    assert (rouge["method"], rouge["decoding"], rouge["n_a"], rouge["n_b"]) == ("nextquill", "sane", 4, 4)
    assert [rouge[key] for key in ("value_a", "value_b", "difference")] == pytest.approx([0.25, 0.3, 0.05])
    assert rouge["win_rate"] == (1 + 0.5 + 1 + 0) / 4
    assert rouge["ci_low"] < 0.05 < rouge["ci_high"]
    likelihood = rows[LIKELIHOOD]
    assert likelihood["decoding"] == NO_TEXTS
    values = [likelihood[key] for key in ("value_a", "value_b", "difference")]
    assert values == pytest.approx([-1.0, -0.5, 0.5])  # −20 / 20 and −10 / 20 nats a token
    length = rows[LENGTH_RATIO]
    assert (length["difference"], length["p_adjusted"], length["untested"]) == (1.0, None, UNDIRECTED)
    assert (found.overlap.examples, found.overlap.users, found.overlap.only_a, found.overlap.only_b) == (4, 4, 0, 0)
    assert list(found.notes) == [
        "Only A has the method qwen.",
        "Only B has the method latestk.",
        "Only B has the decoding preset paper.",
    ]


def test_the_correction_is_over_the_tests_of_a_table(tmp_path: Path) -> None:
    more = {"rouge1": [0.1, 0.9, 0.2, 0.4], "meteor": [0.3, 0.2, 0.1, 0.3]}
    a = commit_evaluation(tmp_path, A | {("qwen", "sane"): more}, IDS)
    b = commit_evaluation(tmp_path, B | {("qwen", "sane"): {key: [0.2] * 4 for key in more}}, IDS)
    rows = [row for row in compared(tmp_path, a, b).rows if row["decoding"] == "sane"]
    tested = [row for row in rows if row["metric"] != LENGTH_RATIO]
    assert (len(rows), len(tested)) == (4, 3)
    assert [row["p_adjusted"] for row in tested] == holm([row["p_value"] for row in tested])
    assert all(0 < row["p_value"] < 1 for row in tested)


def test_equal_evaluations_have_no_differences(tmp_path: Path) -> None:
    config = Config().model_dump(mode="json")
    a = commit_evaluation(tmp_path, A, IDS, config=config)
    b = commit_evaluation(tmp_path, A, IDS, config=config, name="again")
    found = compared(tmp_path, a, b)
    assert found.setting_groups == []
    assert {(row["difference"], row["ci_low"], row["ci_high"], row["win_rate"]) for row in found.rows} == {
        (0, 0, 0, 0.5)
    }
    assert {row["p_adjusted"] for row in found.rows if not row["untested"]} == {1.0}
    assert "Both have the same content, file by file." in found.notes


def test_swapped_evaluations_have_negated_differences(tmp_path: Path) -> None:
    a, b = commit_evaluation(tmp_path, A, IDS), commit_evaluation(tmp_path, B, IDS)
    there, back = by_metric(compared(tmp_path, a, b)), by_metric(compared(tmp_path, b, a))
    assert there.keys() == back.keys()
    for metric, row in there.items():
        other = back[metric]
        assert other["difference"] == -row["difference"]
        assert (other["ci_low"], other["ci_high"]) == pytest.approx((-row["ci_high"], -row["ci_low"]))
        assert other["win_rate"] == 1 - row["win_rate"]
        assert other["p_adjusted"] == row["p_adjusted"]
        assert (other["value_a"], other["value_b"]) == (row["value_b"], row["value_a"])


def test_the_means_are_of_the_examples_that_match_whatever_their_order(tmp_path: Path) -> None:
    a = commit_evaluation(tmp_path, {("qwen", "sane"): {"rouge1": [0.1, 0.2, 0.9]}}, [*IDS[:2], "C:else:0"])
    b = commit_evaluation(tmp_path, {("qwen", "sane"): {"rouge1": [0.8, 0.4, 0.1]}}, ["C:u1:1", IDS[1], IDS[0]])
    found = compared(tmp_path, a, b)
    (row,) = found.rows
    assert (row["value_a"], row["value_b"]) == pytest.approx((0.15, 0.25))
    assert (found.overlap.examples, found.overlap.only_a, found.overlap.only_b) == (2, 1, 1)


def test_without_a_common_example_there_are_means_and_no_test(tmp_path: Path) -> None:
    a = commit_evaluation(tmp_path, {("qwen", "sane"): {"rouge1": [0.1, 0.2]}}, IDS[:2])
    b = commit_evaluation(tmp_path, {("qwen", "sane"): {"rouge1": [0.6, 0.7, 0.8]}}, [f"D:v{n}:0" for n in range(3)])
    found = compared(tmp_path, a, b)
    (row,) = found.rows
    assert (row["category"], row["n_a"], row["n_b"]) == (ALL, 2, 3)
    assert row["difference"] == pytest.approx(0.7 - 0.15)
    assert row["p_value"] is row["p_adjusted"] is row["ci_low"] is row["win_rate"] is None
    assert "there is no test" in str(found.overlap)


@pytest.mark.parametrize("other", ["tiny", "another"])
def test_likelihoods_of_other_examples_are_subtracted_only_under_the_same_model(tmp_path: Path, other: str) -> None:
    scores = {("qwen", "sane"): {LIKELIHOOD: likelihoods([-4, -8], [4, 4])}}
    a = commit_evaluation(tmp_path, scores, IDS[:2], provenance={"model": "tiny"})
    b = commit_evaluation(tmp_path, scores, IDS[2:], provenance={"model": other})
    (row,) = compared(tmp_path, a, b).rows
    assert (row["value_a"], row["difference"]) == (-1.5, 0.0 if other == "tiny" else None)


def test_each_category_and_their_union_are_compared(tmp_path: Path) -> None:
    ids = ["Books:u:1", "Books:v:1", "Films:u:1", "Films:v:1"]
    a = commit_evaluation(tmp_path, {("qwen", "sane"): {"rouge1": [0.0, 0.0, 0.0, 0.0]}}, ids)
    b = commit_evaluation(tmp_path, {("qwen", "sane"): {"rouge1": [0.4, 0.4, 0.2, 0.2]}}, ids)
    found = {row["category"]: row["difference"] for row in compared(tmp_path, a, b).rows}
    assert found == pytest.approx({"Books": 0.4, "Films": 0.2, ALL: 0.3})


def test_log_likelihoods_of_other_tokens_are_not_subtracted(tmp_path: Path) -> None:
    a = commit_evaluation(tmp_path, {("qwen", NO_TEXTS): {LIKELIHOOD: likelihoods([-4, -4], [4, 4])}}, IDS[:2])
    b = commit_evaluation(tmp_path, {("qwen", NO_TEXTS): {LIKELIHOOD: likelihoods([-4, -4], [4, 2])}}, IDS[:2])
    (row,) = compared(tmp_path, a, b).rows
    assert (row["difference"], row["p_adjusted"], row["untested"]) == (None, None, OTHER_TOKENS)


def test_bertscores_of_other_encoders_are_not_subtracted(tmp_path: Path) -> None:
    scores = {("nextquill", "sane"): {BERTSCORE: [0.1, 0.2, 0.3, 0.4]}}
    a, b, c = (
        commit_evaluation(tmp_path, scores, IDS, settings={BERTSCORE: {"encoder": encoder}}, name=name)
        for name, encoder in (("a", "small"), ("b", "large"), ("c", "small"))
    )
    assert by_metric(compared(tmp_path, a, b))[BERTSCORE]["untested"] == OTHER_SETTINGS
    assert by_metric(compared(tmp_path, a, c))[BERTSCORE]["difference"] == 0
    (one,) = compared(tmp_path, a, b).origin
    assert (one.key, one.a, one.b) == ("metrics.bertscore.encoder", "small", "large")


def test_an_id_with_another_true_review_does_not_match(tmp_path: Path) -> None:
    texts = {f"u{number}": f"text {number}" for number in range(4)}
    refs = [commit_ingest(tmp_path, one) for one in (texts, texts | {"u2": "another"})]
    a, b = (commit_evaluation(tmp_path, A, IDS, ingest=ref, name=ref.fingerprint) for ref in refs)
    found = compared(tmp_path, a, b)
    assert (found.overlap.examples, found.overlap.changed, found.overlap.only_a) == (3, 1, 1)
    assert by_metric(found)["rouge1"]["value_a"] == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    assert [one.key for one in found.origin] == ["data"]
    Store(tmp_path).remove("ingest", refs[1].fingerprint)
    found = compared(tmp_path, a, b)
    assert found.overlap.examples == 4
    assert any("by their ids alone" in note for note in found.notes)


def test_settings_differ_by_dotted_key_operational_ones_apart() -> None:
    config = Config().model_dump(mode="json")
    other = Config(store="elsewhere", seed=7).model_dump(mode="json")
    other["train"] = {**other["train"], "alpha": 0.5}
    other["ingest"] = {**other["ingest"], "inputs": [{"category": "C"}]}
    other["old_key"] = None
    config["weights"] = {**config["weights"], "options": None}
    other["weights"] = {**other["weights"], "options": {"one": [1, 2]}}
    deciding, operational = setting_differences(config, other)
    shown = {one.key: (one.a, one.b) for one in deciding}
    assert shown["seed"] == ("42", "7")
    assert shown["train.alpha"] == (str(config["train"]["alpha"]), "0.5")
    assert shown["ingest.inputs.0.category"][1] == "C"
    assert [key for key in shown if key.startswith("weights")] == ["weights.options.one"]
    assert shown["weights.options.one"] == ("not set", "[1, 2]")
    assert shown["old_key"] == ("not set", "null")
    assert {one.key: (one.a, one.b) for one in operational} == {"store": ("./artifacts", "elsewhere")}


def test_what_a_name_means(tmp_path: Path) -> None:
    first, last = commit_evaluation(tmp_path, A, IDS), commit_evaluation(tmp_path, B, IDS)
    fingerprints = first.manifest.fingerprint, last.manifest.fingerprint
    for names in (
        (fingerprints[0], str(tmp_path)),  # a fingerprint in the store of the other, whose latest evaluation counts
        (str(first.home), fingerprints[1]),
        (fingerprints[0][:6], f"file://{tmp_path}"),
    ):
        found = find_evaluations(*names, None, no_config)
        assert tuple(one.artifact.manifest.fingerprint for one in found) == fingerprints
    found = find_evaluations(*fingerprints, str(tmp_path), no_config)
    assert tuple(one.artifact.manifest.fingerprint for one in found) == fingerprints


def test_names_that_mean_no_evaluation_are_explained(tmp_path: Path) -> None:
    evaluation = commit_evaluation(tmp_path, A, IDS)
    known = evaluation.manifest.fingerprint
    ingested = commit_ingest(tmp_path, {"u": "text"})
    (tmp_path / "empty").mkdir()
    wrong = known[:-1] + ("0" if known[-1] != "0" else "1")
    store = Store(tmp_path)
    with store.write("evaluate", "0123456789abcdef", Basis()) as staging:
        (staging.path("metrics.json")).write_text('{"settings": {}, "rows": [], "comparisons": []}')
        staging.seal(
            kind="evaluate", fingerprint="0123456789abcdef", identity={}, config={}, inputs=[], stats={}, provenance={}
        )
        old = store.commit("evaluate", "0123456789abcdef")
    for name, what in {
        wrong: f"no evaluation {wrong}; did you mean {known}?",
        ingested.fingerprint: "a ingest artifact has no scores of single examples; name a store",
        str(tmp_path / "ingest" / ingested.fingerprint): "a ingest artifact has no scores of single examples",
        str(tmp_path / "empty"): "this store has no evaluation; run `nextquill evaluate`",
        str(tmp_path / "emty"): "no such store, evaluation or config; did you mean " + str(tmp_path / "empty"),
        "dem": "no such store, evaluation or config; did you mean demo?",
        "x" * 5000: "no such store",
        "\0": "no such store",
    }.items():
        with pytest.raises(UserError) as error:
            find_evaluations(known, name, str(tmp_path), no_config)
        assert what.replace("a ingest", "the ingest") in str(error.value), name
    with pytest.raises(UserError, match=r"an earlier version.*evaluate --force"):
        compared(tmp_path, evaluation, old)
    (tmp_path / "evaluate" / known / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="the manifest is damaged"):
        find_evaluations(known, known, str(tmp_path), no_config)


@pytest.mark.parametrize("name", ["manifest.json", "metrics.json"])
def test_changed_documents_end_in_an_answer_or_one_line(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.mktemp("changed")
    config = Config().model_dump(mode="json")
    evaluation = commit_evaluation(root, A, IDS, config=config, settings={BERTSCORE: {"encoder": "small"}})
    file, manifest = evaluation.home / name, evaluation.home / "manifest.json"
    other = commit_evaluation(root / "other", B, IDS, config=config)
    signed = json.loads(manifest.read_text())

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(documents(json.loads(file.read_text())))
    def try_it(data: bytes) -> None:
        file.write_bytes(data)
        if file != manifest:
            (shard,) = (one for one in signed["shards"] if one["path"] == name)
            shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest.write_text(json.dumps(signed))
        with suppress(UserError):
            one, _ = find_evaluations(str(root), str(root), None, no_config)
            found = compare(one, Evaluation("B", Store(root / "other"), other))
            assert comparison_html(found).startswith("<!doctype html>")

    try_it()
