"""The engine against a real server, and against one that drops, refuses, hangs and sends garbage."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from nextquill_core.config.evaluate import ServerConfig
from nextquill_core.errors import UserError
from nextquill_core.generation import openai_engine as server
from nextquill_core.generation.decoding import GREEDY, PAPER, SAMPLED, Decoding
from nextquill_core.generation.engines import CUT, STOPPED, Generation, Request, request_seed
from nextquill_core.generation.local_engine import TransformersEngine
from nextquill_core.generation.openai_chat import ChatEngine, ChatRequest
from nextquill_core.generation.openai_engine import OpenAIEngine
from nextquill_core.prompts import Template
from nextquill_core.tokens import UserTextTokenizer
from tests.conftest import REPO, text

KEY = "sk-very-secret-1234"
Script = Callable[["Scripted", dict[str, Any]], None]


class Scripted(BaseHTTPRequestHandler):
    """Replies to each request as its server's `script` says; without a script it answers."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:  # type: ignore[attr-defined]
            self.server.seen.append(body | {"path": self.path, "key": self.headers.get("Authorization")})  # type: ignore[attr-defined]
            script = self.server.script.pop(0) if self.server.script else answer  # type: ignore[attr-defined]
        script(self, body)

    def log_message(self, *_: Any) -> None:
        pass

    def stream(self, *chunks: Any, end: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for chunk in chunks:
            data = chunk if isinstance(chunk, str) else json.dumps(chunk, ensure_ascii=False)
            self.wfile.write(f": alive\n\ndata: {data}\n\n".encode())
        if end:
            self.wfile.write(b"data: [DONE]\n\n")


def part(text: str = "", reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}


def answer(handler: Scripted, body: dict[str, Any]) -> None:
    """The prompt's ids in words, so that a test sees which answer belongs to which request."""
    said = " ".join(map(str, body["prompt"])) if isinstance(body["prompt"], list) else body["prompt"]
    usage = {"choices": [], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 3}}
    handler.stream(part(said[:1]), part(said[1:]), part(reason="stop"), usage)


def body(content: bytes, code: int = 200, **headers: str) -> Script:
    def script(handler: Scripted, _body: dict[str, Any]) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return script


def status(code: int, message: str = "not now", **headers: str) -> Script:
    return body(json.dumps({"error": {"message": message}}).encode(), code, **headers)


def streamed(*chunks: Any, end: bool = True) -> Script:
    return lambda handler, _body: handler.stream(*chunks, end=end)


dropped_in_the_middle = streamed(part("half an ans"), end=False)
failing_in_the_middle = streamed(part("half"), {"error": {"message": "the worker died"}})
garbage = streamed("<html>it works</html>")
no_answer_at_all = streamed({"choices": "many"})


def dropped(handler: Scripted, _body: dict[str, Any]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def silent_in_the_middle(handler: Scripted, body: dict[str, Any]) -> None:
    dropped_in_the_middle(handler, body)
    time.sleep(1.5)


def silent_before_the_message(handler: Scripted, _body: dict[str, Any]) -> None:
    handler.send_response(500)
    handler.end_headers()
    time.sleep(1.5)


def hanging(_handler: Scripted, _body: dict[str, Any]) -> None:
    time.sleep(1.5)


@pytest.fixture
def local() -> Iterator[Any]:
    """A separate server for each test; `seen` holds the requests, `script` the replies."""
    found = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    found.lock, found.seen, found.script = threading.Lock(), [], []  # type: ignore[attr-defined]
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def engine(local: Any, decoding: Decoding = GREEDY, tokenizer: Any = None, **settings: Any) -> OpenAIEngine:
    settings = {"url": f"http://127.0.0.1:{local.server_address[1]}/v1", "retries": 3, "timeout_s": 0.5} | settings
    return OpenAIEngine(ServerConfig(**settings), "some-model", tokenizer, decoding, max_new_tokens=9, seed=5)


def requests(count: int = 6) -> list[Request]:
    return [Request(f"u{number}", [number, 7]) for number in range(count)]


EXPECTED = [Generation(f"{number} 7", 2, STOPPED) for number in range(6)]


def test_answers_come_in_the_order_of_the_requests_and_are_counted(local: Any) -> None:
    told: list[int] = []
    asked = engine(local, concurrency=3)
    assert asked.generate(requests(), told.append) == EXPECTED
    assert sum(told) == 6
    usage = asked.usage
    assert (usage.answers, usage.prompt_tokens, usage.new_tokens, usage.retries) == (6, 12, 12, 0)
    assert 0 < usage.first_token_seconds < 6 * usage.seconds
    assert {seen["path"] for seen in local.seen} == {"/v1/completions"}
    assert {seen["key"] for seen in local.seen} == {None}


@pytest.mark.parametrize(
    "trouble",
    [
        dropped, dropped_in_the_middle, failing_in_the_middle, garbage, no_answer_at_all, hanging,
        silent_in_the_middle, silent_before_the_message, status(500), status(502), status(503), status(429),
    ],
)  # fmt: skip
def test_failed_requests_are_repeated(trouble: Script, local: Any) -> None:
    local.script = [answer, answer, trouble, answer, trouble, trouble]
    asked = engine(local)
    assert asked.generate(requests()) == EXPECTED
    assert asked.usage.retries == 3
    assert asked.usage.answers == 6
    assert asked.usage.new_tokens == 12


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (dropped, "without sending a response"),
        (dropped_in_the_middle, "broke off"),
        (failing_in_the_middle, "the worker died"),
        (garbage, "<html>it works"),
        (hanging, "timed out"),
        (silent_in_the_middle, "timed out"),
        (silent_before_the_message, "timed out"),
        (status(500, "boom"), "500: boom"),
    ],
)
def test_after_the_last_attempt_one_line_says_what_happened(trouble: Script, said: str, local: Any) -> None:
    local.script = [trouble] * 3
    with pytest.raises(UserError) as caught:
        engine(local, retries=2).generate(requests(1))
    line = str(caught.value)
    assert said in line
    assert "no answer after 3 attempts" in line
    assert f"{local.server_address[1]}/v1/completions" in line
    assert "\n" not in line
    assert len(local.seen) == 3


def test_a_server_that_is_not_there(local: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"no answer after 2 attempts.*efused"):
            engine(local, url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1", retries=1).generate(requests(1))


def test_after_a_final_failure_no_further_request_begins(local: Any) -> None:
    local.script = [status(500)] * 1000
    with pytest.raises(UserError, match="no answer"):
        engine(local, concurrency=2, retries=1).generate(requests() * 50)
    assert len(local.seen) < 10


PAGE = body(b"<html>it works</html>", Content_Type="text/html")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (dropped, r"\(Connection error"),
        (silent_before_the_message, r"\(.*timed out"),
        (status(500, "boom"), r"\(.*boom"),
        (PAGE, "not a part of an answer: '<html>it works"),
        (body(b"nonsense"), "not a part of an answer: 'nonsense"),
        (body(b"[]"), "not a part of an answer"),
        (body(b'{"choices": [7]}'), "not a part of an answer"),
        (body(b'{"choices": [{"logprobs": {"token_logprobs": 3}}]}'), "not a part of an answer"),
        (body(b'{"choices": [{"logprobs": {"token_logprobs": [null, -1, null]}}]}'), "of the prompt's tokens"),
        (body(b'{"choices": [{"logprobs": null}]}'), "of the prompt's tokens"),
        (body(b'{"choices": []}'), "of the prompt's tokens"),
    ],
)
def test_a_score_of_another_form_is_one_line(reply: Script, said: str, local: Any) -> None:
    local.script = [reply]
    asked = engine(local)
    with asked.client() as client, pytest.raises(UserError, match=f"gives no log-probabilities.*{said}") as caught:
        asked.answer_logps(client, [3, 4], [5])
    assert "\n" not in str(caught.value)


def test_an_echoed_prompt_gives_the_log_probabilities_of_the_answer(local: Any) -> None:
    local.script = [body(b'{"choices": [{"logprobs": {"token_logprobs": [null, -1, -2.5, 0, -9]}}]}')]
    asked = engine(local)
    with asked.client() as client:
        assert asked.answer_logps(client, [3, 4], [5, 6]) == [-2.5, 0.0]


@pytest.mark.parametrize(
    "reply",
    [
        PAGE,
        body(b"nonsense"),
        body(b"[]"),
        body(b'{"choices": [7]}'),
        body(b'{"choices": [{"finish_reason": "stop", "message": {"content": ["x"]}}]}'),
        body(b'{"choices": [{"finish_reason": "stop", "message": {}}], "usage": {"prompt_tokens": "x"}}'),
    ],
)
def test_a_chat_answer_of_another_form_is_asked_for_again(reply: Script, local: Any) -> None:
    chat = body(b'{"choices": [{"finish_reason": "stop", "message": {"content": " yes "}}]}')
    local.script = [reply, chat, reply, reply, reply, reply]
    settings = engine(local).settings
    asked = ChatEngine(settings, "judge", max_tokens=9)
    assert asked.generate([ChatRequest("q", [], text="?")]) == [Generation("yes", 0, STOPPED)]
    with pytest.raises(UserError, match=r"no answer after 4 attempts .not a part of an answer"):
        asked.generate([ChatRequest("q", [], text="?")])


@pytest.mark.parametrize("code", [401, 403, 404])
def test_refusals_are_reported_at_once(code: int, local: Any) -> None:
    local.script = [status(code, "go away")] * 20
    with pytest.raises(UserError, match=f"{code}: go away"):
        engine(local).generate(requests(1))
    assert len(local.seen) == 1


def test_a_request_that_is_wrong_is_not_sent_again(local: Any, tiny_tokenizer: Any) -> None:
    local.script = [answer, status(400, "this prompt is too long")]
    with pytest.raises(UserError, match="too long"):
        engine(local, concurrency=1, tokenizer=tiny_tokenizer).generate(requests(2))
    assert len(local.seen) == 2


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(as_date: bool, local: Any) -> None:
    seconds = 3 if as_date else 1  # a date has whole seconds only
    value = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True) if as_date else "1"
    local.script = [status(429, Retry_After=value)]
    started = time.monotonic()
    assert engine(local).generate(requests(1)) == EXPECTED[:1]
    assert 0.9 < time.monotonic() - started < 5


@pytest.mark.parametrize("value", ["soon", "-3", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_an_invalid_retry_after_is_ignored(value: str) -> None:
    assert server._retry_after(value) == 0.0


def test_the_fields_of_a_request(local: Any) -> None:
    engine(local, PAPER).generate([Request("u0", [3, 4], limit=4)])
    engine(local, SAMPLED).generate([Request("u0", [3, 4], limit=99)])
    penalised, sampled = local.seen
    assert penalised["prompt"] == [3, 4]
    assert (penalised["model"], penalised["max_tokens"]) == ("some-model", 4)
    assert (penalised["temperature"], penalised["repetition_penalty"]) == (0.0, 1.2)
    assert (sampled["temperature"], sampled["top_p"], sampled["top_k"], sampled["max_tokens"]) == (0.6, 0.9, -1, 9)
    assert sampled["repetition_penalty"] == 1.0  # said, lest the model's own settings there have another
    assert sampled["seed"] == penalised["seed"] == request_seed(5, "u0")


def only_text(handler: Scripted, body: dict[str, Any]) -> None:
    if isinstance(body["prompt"], list):
        status(400, "prompt must be a string")(handler, body)
    else:
        answer(handler, body)


def test_a_server_without_ids_gets_the_text(local: Any, tiny_tokenizer: Any) -> None:
    prompt = tiny_tokenizer("slow and warm ☀")["input_ids"]
    local.script = [only_text] * 9
    asked = engine(local, tokenizer=tiny_tokenizer, concurrency=1)
    answers = asked.generate([Request("u0", prompt), Request("u1", prompt)])
    assert [reply.text for reply in answers] == ["slow and warm ☀"] * 2
    assert len(local.seen) == 3  # it is remembered
    assert asked.usage.retries == 0


def test_a_late_refusal_of_ids_does_not_reject_texts(local: Any, tiny_tokenizer: Any) -> None:
    prompts = [tiny_tokenizer(words)["input_ids"] for words in ("quick", "slow")]

    def slow_to_refuse(handler: Scripted, body: dict[str, Any]) -> None:
        time.sleep(0.3 if body["prompt"] == prompts[1] else 0.0)
        only_text(handler, body)

    local.script = [slow_to_refuse] * 9
    asked = [Request("u0", prompts[0]), Request("u1", prompts[1])]
    answers = engine(local, tokenizer=tiny_tokenizer, concurrency=2).generate(asked)
    assert [reply.text for reply in answers] == ["quick", "slow"]


def test_an_opening_marker_is_left_to_the_server(local: Any) -> None:
    class Opening:
        """Like Llama's: every text begins with the marker 1."""

        def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
            return {"input_ids": [1, *map(ord, text)]}

        def decode(self, ids: list[int], **_options: Any) -> str:
            return "".join("<s>" if token == 1 else chr(token) for token in ids)

    local.script = [only_text] * 2
    (reply,) = engine(local, tokenizer=Opening()).generate([Request("u", [1, *map(ord, "hello")])])
    assert reply.text == "hello"


@pytest.mark.parametrize("opening", [[], [1]])
def test_a_prompt_that_no_text_gives_is_sent_from_its_first_token(local: Any, opening: list[int]) -> None:
    class OneSign:
        """A tokenizer of characters with the control token 0, which no blank inside can keep from being one."""

        chat_template, all_special_tokens = None, ("!",)
        added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012 - as transformers has it

        def convert_tokens_to_ids(self, _text: str) -> int:
            return 0

        def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
            return {"input_ids": [*opening, *(0 if sign == "!" else ord(sign) for sign in text)]}

        def decode(self, ids: list[int], **_options: Any) -> str:
            return "".join({0: "!", 1: "<s>"}.get(token) or chr(token) for token in ids)

    local.script = [only_text] * 2
    (reply,) = engine(local, tokenizer=OneSign()).generate([Request("u", [*opening, *map(ord, "hello!")])])
    assert reply.text == "hello!"


def test_without_counts_the_tokenizer_counts(local: Any, tiny_tokenizer: Any) -> None:
    local.script = [streamed(part(" 😀 so"), part(" fine", "length"))]
    (reply,) = engine(local, tokenizer=tiny_tokenizer).generate(requests(1))
    assert reply == Generation("😀 so fine", len(tiny_tokenizer(" 😀 so fine")["input_ids"]), CUT)


def test_an_empty_answer_is_one(local: Any) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
    local.script = [streamed(part(reason="stop"), usage)]
    assert engine(local).generate(requests(1)) == [Generation("", 0, STOPPED)]


def test_the_key_is_sent_and_never_shown(
    local: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    caplog.set_level(logging.DEBUG)
    local.script = [status(500, f"your key {KEY} is fine"), status(401, f"your key {KEY} is not")]
    with pytest.raises(UserError) as caught:
        engine(local, api_key_env="MY_KEY").generate(requests(1))
    assert local.seen[0]["key"] == f"Bearer {KEY}"
    assert "your key *** is not" in str(caught.value)
    assert "MY_KEY" in str(caught.value)
    assert KEY not in str(caught.value) + caplog.text


@pytest.mark.parametrize("key", ["", "a\nb", "clé"])
def test_an_invalid_key_is_reported_by_its_variable(key: str, local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(UserError, match="MY_KEY"):
        engine(local, api_key_env="MY_KEY")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1", "http://", "http://[::1", "http://host:99999/v1", "http://host:port/v1",
        "http://host:1/v1\n", "file:///v1",
    ],
)  # fmt: skip
def test_an_invalid_address_is_reported(local: Any, url: str) -> None:
    with pytest.raises(UserError, match=r"not an address; write it as in http://127\.0\.0\.1:8000/v1$") as caught:
        engine(local, url=url)
    assert url.strip() in str(caught.value)


@pytest.mark.parametrize("request_", [Request("u", [1], counterfactual=[2]), Request("u", [1], adapter="ann")])
def test_steering_and_adapters_are_refused(request_: Request, local: Any) -> None:
    with pytest.raises(UserError, match=r"evaluate\.engine"):
        engine(local).generate([request_])
    assert not local.seen


@contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    """A real `transformers serve` of this model; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    settings = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen([*command, *settings], cwd=REPO, env=environment, stderr=subprocess.PIPE) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise AssertionError((process.stderr.read() if process.stderr else b"")[-2000:].decode())
        try:
            if httpx.get(address, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the server does not come up")


@pytest.mark.process
def test_a_real_server_writes_the_same_greedy_tokens(tiny_model: Any, tiny_tokenizer: Any, tiny_folder: Path) -> None:
    pytest.importorskip("openai", reason="transformers serve needs it")
    prompts = [tiny_tokenizer(text(seed, 3 + seed))["input_ids"] for seed in range(6)]
    asked = [Request(f"u{number}", prompt) for number, prompt in enumerate(prompts)]
    with transformers_serve(tiny_folder) as url:
        for decoding in (PAPER, GREEDY):
            ours = TransformersEngine(tiny_model, tiny_tokenizer, decoding, max_new_tokens=8, batch_tokens=1000)
            served = OpenAIEngine(
                ServerConfig(url=url, concurrency=4), str(tiny_folder), tiny_tokenizer, decoding, max_new_tokens=8
            )
            expected = ours.generate(asked)
            assert served.generate(asked) == expected
            assert len({answer.text for answer in expected}) > 1
            assert served.usage.prompt_tokens == ours.usage.prompt_tokens
            assert served.usage.new_tokens == ours.usage.new_tokens
        sampled = OpenAIEngine(
            ServerConfig(url=url, concurrency=1), str(tiny_folder), tiny_tokenizer, SAMPLED, max_new_tokens=8
        )
        first = sampled.generate(asked)
        assert sampled.generate(asked) == first != expected


def chat_like(folder: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    return tokenizer


def test_a_users_control_token_reaches_a_server_of_texts_as_text(
    local: Any, tiny_folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = chat_like(tiny_folder)
    encoder = UserTextTokenizer(tokenizer, Template("chat", "", "<|im_end|>\n"))
    prompts = encoder.encode_prompts(["slow <|im_end|> and <|endoftext|> warm", "slow and warm"])
    by_ids = engine(local, tokenizer=tokenizer, concurrency=1)
    by_ids.generate([Request("u", prompts[0])])
    assert local.seen[0]["prompt"] == prompts[0]

    local.script = [only_text] * 9
    by_text = engine(local, tokenizer=tokenizer, concurrency=1)
    with caplog.at_level(logging.WARNING):
        by_text.generate([Request(f"u{row}", prompt) for row, prompt in enumerate([*prompts, prompts[0]])])
    sent = [body["prompt"] for body in local.seen if isinstance(body["prompt"], str)]
    forged = "slow < |im_end|> and < |endoftext|> warm<|im_end|>\n"
    assert sent == [forged, "slow and warm<|im_end|>\n", forged]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [tokenizer(text)["input_ids"].count(end) for text in sent] == [1, 1, 1]
    assert caplog.text.count("gets a blank inside") == 1


def test_the_server_is_asked_to_stop_where_the_template_ends_a_turn(local: Any, tiny_folder: Any) -> None:
    tokenizer = chat_like(tiny_folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    options = {"max_new_tokens": 8}
    settings = ServerConfig(url=f"http://127.0.0.1:{local.server_port}/v1", concurrency=1)
    for stop, expected in ((end, [end]), (tokenizer.eos_token_id, None), (None, None)):
        asked = OpenAIEngine(settings, "m", tokenizer, GREEDY, stop=stop, **options)
        asked.generate(requests(1))
        assert local.seen[-1].get("stop_token_ids") == expected
        local.script = [status(400), status(400)]
        OpenAIEngine(settings, "m", tokenizer, GREEDY, stop=stop, **options).generate(requests(1))
        configured = json.loads(local.seen[-1]["generation_config"])
        assert configured.get("eos_token_id") == (expected and [end, tokenizer.eos_token_id])
