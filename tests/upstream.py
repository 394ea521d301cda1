"""A server of a base model and its adapters that answers OpenAI's `/completions`, as far as ours asks for it.

vLLM cannot run here. This one computes for real: token ids in, greedy decoding one token at a time, log-probabilities
of echoed prompts, adapters that are loaded and unloaded while it runs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Models:
    """A base model with adapters, for one request at a time.

    Attributes:
        names: The folder of each served adapter by its name.
        ignored: Names that are answered by the base model.
        asked: The names that were asked for texts.
    """

    def __init__(self, base: str, base_name: str, adapters: dict[str, Path]) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(base).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.base_name, self.names, self.ignored, self.asked = base_name, dict[str, Path](), set[str](), list[str]()
        self.lock = threading.Lock()
        self.loads = True
        for name, folder in adapters.items():
            self.load(name, folder)

    def load(self, name: str, folder: Path) -> None:
        from peft import PeftModel

        if hasattr(self.model, "peft_config"):
            self.model.load_adapter(str(folder), name)
        else:
            self.model = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name)
        self.model.eval()
        self.names[name] = folder

    def logits(self, name: str, ids: list[int]) -> Any:
        import torch

        plain = name == self.base_name or name in self.ignored
        if not plain:
            self.model.set_adapter(name)
        without = self.model.disable_adapter() if plain and hasattr(self.model, "disable_adapter") else nullcontext()
        with torch.no_grad(), without:
            return self.model(torch.tensor([ids])).logits[0].float()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        models = self.server.models  # type: ignore[attr-defined]
        self.reply(200, {"object": "list", "data": [{"id": name} for name in (models.base_name, *models.names)]})

    def do_POST(self) -> None:
        models: Models = self.server.models  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with models.lock:
            if self.path == "/v1/load_lora_adapter":
                if not models.loads:
                    return self.reply(404, {"error": {"message": "Not Found"}})
                models.load(body["lora_name"], Path(body["lora_path"]))
                return self.reply(200, "loaded")
            if self.path == "/v1/unload_lora_adapter":
                models.names.pop(body["lora_name"])
                return self.reply(200, "unloaded")
            if body["model"] not in (models.base_name, *models.names):
                return self.reply(404, {"error": {"message": f"no model {body['model']}"}})
            return self.echo(models, body) if body.get("echo") else self.stream(models, body)

    def echo(self, models: Models, body: dict[str, Any]) -> None:
        ids = body["prompt"]
        rows = models.logits(body["model"], ids).log_softmax(-1)
        logps = [None, *(rows[place, token].item() for place, token in enumerate(ids[1:]))]
        choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": {"token_logprobs": [*logps, -1.0]}}
        self.reply(200, {"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]})

    def stream(self, models: Models, body: dict[str, Any]) -> None:
        models.asked.append(body["model"])
        stops = {models.tokenizer.eos_token_id, *body.get("stop_token_ids", ())}
        ids, reason = list(body["prompt"]), "length"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        text = ""
        for _ in range(body["max_tokens"]):
            token = int(models.logits(body["model"], ids)[-1].argmax())
            if token in stops:
                reason = "stop"
                break
            ids.append(token)
            whole = models.tokenizer.decode(ids[len(body["prompt"]) :], skip_special_tokens=True)
            if not whole.endswith("\ufffd"):
                self.event({"choices": [{"index": 0, "text": whole[len(text) :], "finish_reason": None}]})
                text = whole
        self.event({"choices": [{"index": 0, "text": "", "finish_reason": reason}]})
        count = len(ids) - len(body["prompt"]) + (reason == "stop")
        self.event({"choices": [], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data: Any) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def reply(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def upstream(models: Models) -> Iterator[str]:
    """Serve models for the duration of a block, and yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.models = models  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
