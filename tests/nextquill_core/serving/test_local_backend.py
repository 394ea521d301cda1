"""The model's thread: it answers, scores and exchanges adapters in turn, and ends without leaving a caller waiting."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from nextquill_core.config.model import ModelConfig
from nextquill_core.errors import ModelError
from nextquill_core.evaluation.likelihood import answer_logps
from nextquill_core.generation.decoding import GREEDY, SAMPLED, steering
from nextquill_core.generation.engines import Request
from nextquill_core.generation.local_engine import TransformersEngine
from nextquill_core.model.loading import load_adapter, load_model
from nextquill_core.records import TokenPair
from nextquill_core.serving.backend import Asked, ShuttingDown
from nextquill_core.serving.local_backend import LocalBackend
from nextquill_core.writing.prompter import Preset

PAIR = TokenPair("C:u:0", [5, 6, 7, 8, 9], [5, 9], [20, 30, 2])


class Stored:
    """An adapter as an artifact of a store: a fingerprint and a folder."""

    def __init__(self, fingerprint: str, folder: Path) -> None:
        self.folder, self.manifest = folder, self
        self.fingerprint = fingerprint


@pytest.fixture(scope="module")
def adapters(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return two adapters with random weights."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("f1", "f2")):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(load_model(ModelConfig(name_or_path=str(tiny_folder), dtype="float32")), lora)
        for weight, parameter in model.named_parameters():
            if "lora_B" in weight:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(folder / name / "adapter"))
    return {name: Stored(name, folder / name) for name in ("f1", "f2")}


@pytest.fixture
def backend(tiny_folder: Path) -> Iterator[LocalBackend]:
    config = ModelConfig(name_or_path=str(tiny_folder), dtype="float32")
    found = LocalBackend(config, batch_tokens=4096, score_tokens=4096, seed=7)
    yield found
    found.close()


def asked(adapter: str | None = None, limit: int = 30, prompt: int = 5, **changes: Any) -> Asked:
    request = Request(f"u{prompt}", [prompt, 6, 7], [prompt, 9] if "contrast" in changes else None)
    return Asked(request, adapter, Preset(changes.pop("decoding", GREEDY), limit), stop=2, **changes)


def alone(folder: Path, adapter: Any, request: Asked) -> str:
    """Return the text of a fresh model with this adapter alone."""
    from transformers import AutoTokenizer

    model = load_model(ModelConfig(name_or_path=str(folder), dtype="float32"))
    model = model if adapter is None else load_adapter(model, adapter.folder / "adapter")
    engine = TransformersEngine(
        model, AutoTokenizer.from_pretrained(folder), request.preset.decoding,
        max_new_tokens=request.preset.limit, batch_tokens=4096, stop=2, contrast=request.contrast, seed=7,
    )  # fmt: skip
    (answer,) = engine.generate([request.request])
    return answer.text


def test_requests_of_every_kind_run_side_by_side(
    backend: LocalBackend, adapters: dict[str, Any], tiny_folder: Path
) -> None:
    kinds = [
        asked(name, prompt=prompt, **changes)
        for name in (None, "f1", "f2")
        for prompt, changes in ((5, {}), (8, {"decoding": SAMPLED}), (11, {"contrast": steering(1.0)}), (14, {}))
    ]
    for name in ("f1", "f2"):
        backend.load(adapters[name])
    futures = [backend.generate(request) for request in kinds]
    scored = [backend.score(name, PAIR) for name in (None, "f1", "f2")]
    assert [future.result(60).text for future in futures] == [
        alone(tiny_folder, adapters.get(request.adapter or ""), request) for request in kinds
    ]
    logps = [future.result(60)[0] for future in scored]
    for known, found in zip((None, "f1", "f2"), logps, strict=True):
        model = load_model(ModelConfig(name_or_path=str(tiny_folder), dtype="float32"))
        model = model if known is None else load_adapter(model, adapters[known].folder / "adapter")
        (expected,) = answer_logps(model, [PAIR], 4096)
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert len({tuple(found.tolist()) for found in logps}) == 3


def test_the_first_adapter_waits_for_answers_of_the_base_model(
    backend: LocalBackend, adapters: dict[str, Any], tiny_folder: Path
) -> None:
    begun = threading.Event()
    request = asked(limit=60)
    answer = backend.generate(request, lambda part: begun.set())
    assert begun.wait(60)
    backend.load(adapters["f1"])
    assert answer.done()
    assert answer.result().text == alone(tiny_folder, None, request)
    assert backend.generate(request).result(60).text == answer.result().text, "the base model is still there"
    adapted = asked("f1", limit=60)
    assert backend.generate(adapted).result(60).text == alone(tiny_folder, adapters["f1"], adapted)


def test_a_damaged_adapter_leaves_the_others_as_they_are(
    backend: LocalBackend, adapters: dict[str, Any], tmp_path: Path
) -> None:
    backend.load(adapters["f1"])
    before = backend.generate(asked("f1")).result(60)
    shutil.copytree(adapters["f2"].folder, tmp_path / "f2")
    weights = tmp_path / "f2" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError):
        backend.load(Stored("f2", tmp_path / "f2"))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no adapter 'f2'"):
        backend.generate(asked("f2")).result(60)
    assert backend.generate(asked("f1")).result(60) == before
    backend.load(adapters["f2"])
    assert backend.generate(asked("f2")).result(60).text != before.text
    backend.unload("f1")
    with pytest.raises(ModelError, match="no adapter 'f1'"):
        backend.generate(asked("f1")).result(60)


def test_no_caller_waits_for_a_closed_backend(tiny_folder: Path) -> None:
    config = ModelConfig(name_or_path=str(tiny_folder), dtype="float32")
    backend = LocalBackend(config, batch_tokens=4096, score_tokens=4096, seed=7)
    held, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        held.wait(60)

    backend._do(hold)
    assert begun.wait(60)
    waiting: list[Future[Any]] = [backend.generate(asked()), backend.score(None, PAIR)]
    closing = threading.Thread(target=backend.close)
    closing.start()
    while not backend._closed:
        pass
    late: list[Future[Any]] = [backend.generate(asked()), backend.score(None, PAIR)]
    held.set()
    closing.join(60)
    for future in (*waiting, *late):
        with pytest.raises(ShuttingDown):
            future.result(10)
