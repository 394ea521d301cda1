"""A run's writer writes what its evaluation generates, with the history that evaluation shows."""

from __future__ import annotations

import pytest

from nextquill_core.ingest.reader import read_examples
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.methods import method_encoder, shown_examples
from nextquill_core.pipeline.report.example import item_ids
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.writing import run_writer
from nextquill_core.schemas import column_by_example
from storage import UserError

KETTLE = {"title": "A kettle", "description": "of steel"}


@pytest.mark.pipeline
def test_drafts_are_the_texts_of_the_evaluation(predicted: Run) -> None:
    for name in ("nextquill", "qwen"):
        writer = run_writer(predicted, name)
        examples = shown_examples(predicted, METHODS[name], "test", "own")
        answers = method_encoder(predicted, METHODS[name]).shown_answers(examples)
        for decoding in ("paper", "sane"):
            step = predicted.plan.evaluation.predictions[name, decoding].step
            expected = column_by_example(predicted.artifact(step).folder / "predictions", "text")
            drafts = list(writer.write_many([{"example": key} for key in expected], decoding=decoding))
            assert [draft.text for draft in drafts] == list(expected.values())
            assert [draft.history_shown for draft in drafts] == [answer.history for answer in answers]
            assert {draft.note for draft in drafts} == {""}


@pytest.mark.pipeline
def test_the_history_of_an_example_s_user_and_item_is_that_of_the_evaluation(predicted: Run) -> None:
    writer, items = run_writer(predicted, "nextquill"), item_ids(predicted)
    examples = list(read_examples(predicted.artifact(predicted.plan.ingest).folder, ["test"]))
    answers = method_encoder(predicted, METHODS["nextquill"]).shown_answers(examples)
    step = predicted.plan.evaluation.predictions["nextquill", "paper"].step
    expected = column_by_example(predicted.artifact(step).folder / "predictions", "text")
    for example, answer in list(zip(examples, answers, strict=True))[:4]:
        draft = writer.write(
            user=example.user_id,
            item=items[example.example_id],
            rating=example.target.rating,
            title=example.target.title,
            decoding="paper",
        )
        assert draft.history_shown == answer.history
        assert draft.text == expected[example.example_id]
        assert draft.adapter == predicted.plan.train["nextquill"].fingerprint


@pytest.mark.pipeline
def test_what_cannot_write_for_anybody_is_refused(predicted: Run) -> None:
    for name, words in (
        ("oppu", "made for the measured users alone"),
        ("contriever", "made for the measured users alone"),
        ("sft", "this config trains no `sft`"),
        ("nextquil", "did you mean `nextquill`?"),
    ):
        with pytest.raises(UserError, match=words):
            run_writer(predicted, name)
    assert [run_writer(predicted, name).write(item=KETTLE).method for name in ("bm25", "latestk")] == [
        "bm25",
        "latestk",
    ]
