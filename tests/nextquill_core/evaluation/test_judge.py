"""The judge metric: its questions word for word, what is read of its answers, and a judge behind a real server."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nextquill_core.config.evaluate import JudgeConfig
from nextquill_core.errors import UserError
from nextquill_core.evaluation.judge import (
    Aspect,
    ask_rubrics,
    ask_scores,
    judge_revision,
    judged_statistics,
    read_rubric,
    read_score,
    rubric_prompt,
    score_prompt,
)
from nextquill_core.evaluation.metrics import JUDGE
from nextquill_core.generation import openai_engine
from nextquill_core.generation.engines import Generation
from nextquill_core.generation.openai_chat import ChatEngine, ChatRequest
from nextquill_core.pipeline.evaluate import read_results
from nextquill_core.pipeline.methods import split_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.prompts import REVIEW, WORDINGS, Wording
from nextquill_core.records import Example, Item, Review
from tests.conftest import review
from tests.nextquill_core.generation import test_openai_engine as openai_tests
from tests.stages import make
from tests.world import small_config

EMMA = Review(Item("Emma", "A novel."), 4.0, "Late love", "I wept.")
PLOT = Aspect("the plot", "It wants to be led.", "I wept.")


def test_the_question_for_a_rubric_word_for_word() -> None:
    assert rubric_prompt((EMMA,), 3) == (
        "Below are reviews by one user, oldest first.\n\n"
        "Item: Emma\nDescription: A novel.\nRating: 4\nTitle: Late love\nReview:\nI wept.\n\n"
        "Name the 3 aspects that matter most in how this user reviews things, whatever the item: what the user looks "
        "for, and how the user writes. Answer with a JSON list of 3 objects and nothing else. Each has `aspect` (a few "
        "words), `reason` (one sentence on why it matters to this user) and `evidence` (a short quotation from a "
        "review)."
    )


def test_the_question_for_a_score_word_for_word() -> None:
    assert score_prompt(EMMA, "A fine book.", PLOT) == (
        "Below are an item, a review of it, and one aspect that matters to the user for whom the review was written."
        "\n\nItem: Emma\nDescription: A novel.\nRating: 4\nTitle: Late love\n\n"
        "Review:\nA fine book.\n\n"
        "Aspect: the plot\nWhy it matters to this user: It wants to be led.\nIn the user's own words: I wept.\n\n"
        "How well does the review cover this aspect? 0: it does not. 1: somewhat. 2: very well. Answer with a JSON "
        'object such as {"score": 1} and nothing else.'
    )


def test_the_questions_on_a_post_word_for_word() -> None:
    post = Review(Item("", ""), None, "My cat", "She sleeps.")
    assert rubric_prompt((post,), 2, WORDINGS["post"]) == (
        "Below are posts by one user, oldest first.\n\n"
        "Topic: My cat\nPost:\nShe sleeps.\n\n"
        "Name the 2 aspects that matter most in posts by this user, whatever they are about: what the user looks for, "
        "and how the user writes. Answer with a JSON list of 2 objects and nothing else. Each has `aspect` (a few "
        "words), `reason` (one sentence on why it matters to this user) and `evidence` (a short quotation from a post)."
    )
    assert score_prompt(post, "Cats sleep.", PLOT, WORDINGS["post"]) == (
        "Below are what a post had to be about, the post, and one aspect that matters to the user for whom the post "
        "was written.\n\nTopic: My cat\n\nPost:\nCats sleep.\n\n"
        "Aspect: the plot\nWhy it matters to this user: It wants to be led.\nIn the user's own words: I wept.\n\n"
        "How well does the post cover this aspect? 0: it does not. 1: somewhat. 2: very well. Answer with a JSON "
        'object such as {"score": 1} and nothing else.'
    )


@pytest.mark.parametrize("wording", WORDINGS.values(), ids=lambda wording: wording.name)
def test_every_kind_of_text_has_its_own_questions_and_revision(wording: Wording) -> None:
    asked: list[str] = []

    def ask(questions: Sequence[ChatRequest]) -> list[Generation]:
        asked.extend(question.text for question in questions)
        return [Generation("", 0, "stop") for _ in questions]

    example = Example("C:u:0", "u", "C", "test", EMMA, (EMMA,))
    ask_rubrics([example], ask, reviews=1, count=1, wording=wording)
    ask_scores([example], ["Some words."], [[PLOT]], ask, wording)
    assert all(("review" in question.lower()) == (wording is REVIEW) for question in asked)
    assert all(wording.label.lower() in question.lower() for question in asked)
    same = [other.name for other in WORDINGS.values() if judge_revision(other) == judge_revision(wording)]
    assert same == [wording.name]


def bare(name: str) -> Aspect:
    return Aspect(name, "", "")


@pytest.mark.parametrize(
    ("answer", "aspects"),
    [
        ('[{"aspect": "the  plot", "reason": "r", "evidence": "e"}]', [Aspect("the plot", "r", "e")]),
        ('Here:\n```json\n[{"aspect": "a"}, {"aspect": "b", "reason": 3}]\n```', [bare("a"), bare("b")]),
        ('[{"aspect": "a"}, {"aspect": ""}, "b", {"aspect": "c"}, {"aspect": "d"}]', [bare("a"), bare("c")]),
        ("[]", None),
        ('{"aspect": "a"}', None),
        ("I cannot.", None),
        ("[{", None),
        ('<think>[the aspects] {1}, [0]</think>\n[{"aspect": "a"}] as in [1]', [bare("a")]),
        ('First [{"aspect": "a"}], or better: [{"aspect": "b"}]', [bare("b")]),
    ],
)  # fmt: skip
def test_what_is_read_of_a_rubric(answer: str, aspects: list[Aspect] | None) -> None:
    assert read_rubric(answer, 2) == aspects


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"score": 2}', 2), ('```json\n{"score": 0}\n```', 0), ('{"score": "1"}', 1), ('{"score": 1.0}', 1),
        ('{"score": 1.5}', None), ('{"score": 3}', None), ('{"score": -1}', None), ('{"score": true}', None),
        ('{"score": NaN}', None), ('{"score": Infinity}', None), ("2", None), ("{}", None), ('{"score": null}', None),
        ('{"score": "²"}', None), ('{"score": 1%s}' % ("0" * 400), None), ('{"score": "%s"}' % ("9" * 5000), None),
        ('<think>[the aspect] {x}, {"score": 0}?</think> {"score": 2}, see {}', 2), ("[" * 100_000, None),
    ],
)  # fmt: skip
def test_what_is_read_of_a_score(answer: str, score: int | None) -> None:
    assert read_score(answer) == score


def test_the_statistics_by_hand() -> None:
    scores = [("a", 2), ("b", 0), ("a", 1), ("a", None), ("c", None), ("b", 0)]
    assert judged_statistics(["a", "b", "c", "d"], scores).tolist() == [[0.75, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert judged_statistics([], []).shape == (0, 2)


def judge_says(rule: Callable[[dict[str, Any]], str]) -> type[BaseHTTPRequestHandler]:
    """A server of `/chat/completions` that answers by a rule on the request."""

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with self.server.lock:  # type: ignore[attr-defined]
                self.server.seen.append(body | {"path": self.path})  # type: ignore[attr-defined]
            message = {"role": "assistant", "content": rule(body)}
            reply = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
            reply["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
            reply["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            data = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Judge


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Start servers that answer by a rule; `seen` holds the requests."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(openai_engine, "FIRST_WAIT_S", 0.01)
    started: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(handler: type[BaseHTTPRequestHandler]) -> Any:
        found: Any = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        found.lock, found.seen, found.script = threading.Lock(), [], []
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        started.append((found, thread))
        return found

    yield start
    for found, thread in started:
        found.shutdown()
        thread.join()
        found.server_close()


def address(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


def engine(server: Any, **settings: Any) -> ChatEngine:
    config = JudgeConfig(url=address(server), retries=2, timeout_s=5.0, model="judge-model", **settings)
    return ChatEngine(config, "judge-model", max_tokens=50, seed=5)


def question(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"]
    return text


def of(name: str, past: int) -> Example:
    return Example(f"C:{name}:0", name, "C", "test", review(99), tuple(review(number) for number in range(past)))


def rubric_of(body: dict[str, Any]) -> str:
    """Two aspects: the number of reviews that are shown, and one more."""
    count = question(body).count("\nReview:\n")
    return json.dumps([{"aspect": f"{count} reviews", "reason": "r", "evidence": "e"}, {"aspect": "tone"}])


def test_rubrics_of_users_with_reviews(serve: Any) -> None:
    server = serve(judge_says(rubric_of))
    examples = [of("a", 5), of("b", 0), of("c", 1)]
    asked, rubrics = ask_rubrics(examples, engine(server).generate, reviews=3, count=2)
    assert [[aspect.aspect for aspect in rubric] for rubric in rubrics] == [
        ["3 reviews", "tone"],
        [],
        ["1 reviews", "tone"],
    ]
    assert [(one.example_id, one.aspect) for one in asked] == [("C:a:0", -1), ("C:c:0", -1)]
    assert asked[0].prompt == rubric_prompt(examples[0].history[-3:], 2)
    assert {(body["path"], body["model"], body["temperature"]) for body in server.seen} == {
        ("/v1/chat/completions", "judge-model", 0.0)
    }
    assert {body["max_tokens"] for body in server.seen} == {50}


def test_scores_of_texts_with_repeats_of_what_cannot_be_read(serve: Any) -> None:
    """The first aspect is read at once, the second at the third attempt, and the third never."""

    def rule(body: dict[str, Any]) -> str:
        if "Aspect: second" in question(body) and body["temperature"] == 1.0:
            return '{"score": 1}'
        return '{"score": 2}' if "Aspect: first" in question(body) else "Well ..."

    server = serve(judge_says(rule))
    rubric = [Aspect(name, "r", "e") for name in ("first", "second", "third")]
    asked = ask_scores(
        [of("a", 1), of("b", 1), of("c", 1)],
        ["A text.", " ", "Another."],
        [rubric, rubric[:1], []],
        engine(server).generate,
    )
    assert [(one.example_id, one.aspect, one.score) for one in asked] == [
        ("C:a:0", 0, 2), ("C:a:0", 1, 1), ("C:a:0", 2, None), ("C:b:0", 0, 0),
    ]  # fmt: skip
    assert sorted(body["temperature"] for body in server.seen) == [0.0] * 3 + [0.5] * 2 + [1.0] * 2
    assert asked[2].answer == "Well ..."


def test_failures_are_repeated_and_refusals_are_one_line(serve: Any) -> None:
    server = serve(openai_tests.Scripted)
    status = openai_tests.status
    server.script += [status(503), status(429, Retry_After="0"), status(400, "no such field")]
    with pytest.raises(UserError, match=r"chat/completions: the server rejects the request \(400: no such field\)"):
        engine(server).generate([ChatRequest("a", [], text="How?")])
    assert len(server.seen) == 3
    server.script += [status(404, "no such model")]
    with pytest.raises(UserError, match=r"the server refuses \(404: no such model\); check that it has this address"):
        engine(server).generate([ChatRequest("a", [], text="How?")])


@pytest.mark.pipeline
def test_an_evaluation_stores_questions_and_scores(
    small_world: Path, prepared_store: Path, tmp_path: Path, serve: Any
) -> None:
    """The judge's score is the length of the question, modulo 3."""

    def rule(body: dict[str, Any]) -> str:
        if question(body).startswith("Below are reviews by one user"):
            return rubric_of(body)
        return json.dumps({"score": len(question(body)) % 3})

    server = serve(judge_says(rule))
    store = shutil.copytree(prepared_store, tmp_path / "store")
    judge = {"model": "judge-model", "url": address(server), "reviews": 2, "aspects": 2}
    evaluation = {"methods": ["qwen", "latestk"], "decoding": ["sane"], "judge": judge}
    changes: dict[str, Any] = {"evaluate": evaluation, "train": {"method": "contextsft"}}
    run = Run(small_config(small_world, store, **changes))
    make(run, run.plan.evaluate)
    plan = run.plan.evaluation
    assert list(plan.judged) == [("true review", ""), ("qwen", "sane"), ("latestk", "sane")]
    results = read_results(run.artifact(run.plan.evaluate))
    examples = {example.example_id: example for example in split_examples(run, "test")}
    for key, step in plan.judged.items():
        rows = tables(run.artifact(step).folder / "judged")
        assert {row["example_id"] for row in rows} == set(examples)
        shares = [row["score"] / 2 for row in rows]
        assert all(row["prompt"] == "" or row["score"] == len(row["prompt"]) % 3 for row in rows)
        mean = sum(shares) / len(shares)
        if key[0] == "true review":
            assert results.settings[JUDGE]["ceiling"]["Small"]["value"] == pytest.approx(mean)
            assert all(examples[row["example_id"]].target.text in row["prompt"] for row in rows)
        else:
            (found,) = [row for row in results.rows if (row["method"], row["metric"]) == (key[0], JUDGE)]
            assert found["value"] == pytest.approx(mean)
    rubrics = tables(run.artifact(plan.rubrics).folder / "rubrics") if plan.rubrics else []
    assert [aspect["aspect"] for aspect in rubrics[0]["aspects"]] == ["2 reviews", "tone"]
    assert rubrics[0]["prompt"] == rubric_prompt(examples[rubrics[0]["example_id"]].history[-2:], 2)
    assert any(caution.startswith("Judge by judge-model: the true reviews reach") for caution in results.cautions)
    asked = len(server.seen)
    again = Run(small_config(small_world, store, **{**changes, "evaluate": evaluation | {"bootstrap_samples": 150}}))
    make(again, again.plan.evaluate)
    assert len(server.seen) == asked, "stored scores are not asked for again"
    off = Run(small_config(small_world, store, **{**changes, "evaluate": evaluation | {"judge": {}}}))
    assert off.plan.evaluation.rubrics is None
    assert not any("judged" in step.kind for step in off.plan.evaluation.steps)


def tables(folder: Path) -> list[dict[str, Any]]:
    paths: Sequence[Path] = sorted(folder.glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]
