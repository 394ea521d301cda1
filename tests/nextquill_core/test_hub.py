"""An unreachable hub is noticed at once; what is in the cache is used without it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from nextquill_core import hub
from nextquill_core.config import ModelConfig
from nextquill_core.errors import HubUnreachableError, ModelError
from nextquill_core.model.loading import load_model, load_tokenizer
from tasks.retries import passing_fault

NOWHERE = "http://127.0.0.1:9"
COMMIT = "a" * 40


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache, and a hub that refuses connections."""
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_checked", {})
    return tmp_path


def test_a_model_that_is_nowhere_is_one_line_at_once(no_hub: Path) -> None:
    started = time.monotonic()
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError) as caught:
            load(ModelConfig(name_or_path="org/name", dtype="float32"))
        assert str(caught.value).startswith(f"org/name: not in the cache, and the hub at {NOWHERE} cannot be reached (")
        assert "HF_ENDPOINT" in str(caught.value)
        assert "model.name_or_path" in str(caught.value)
        assert passing_fault(caught.value) is None, "the tasks would try it again for 21 minutes"
    assert time.monotonic() - started < 10, "the hub's client alone retries for 23 s a file"


def test_a_cached_model_is_read_without_the_hub(no_hub: Path, tiny_folder: Path) -> None:
    repository = no_hub / "models--org--name"
    shutil.copytree(tiny_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    started = time.monotonic()
    hub.require_model("org/name", "main", "")
    assert load_model(ModelConfig(name_or_path="org/name", dtype="float32")).name_or_path == "org/name"
    assert len(load_tokenizer(ModelConfig(name_or_path="org/name", dtype="float32"))) > 100
    assert time.monotonic() - started < 10
    assert not constants.HF_HUB_OFFLINE, "the client is put back"
    with pytest.raises(HubUnreachableError):
        hub.require_model("org/name", "another-revision", "")


def test_folders_never_ask_the_hub(no_hub: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_reason", lambda url: pytest.fail(f"{url} was asked"))
    load_tokenizer(ModelConfig(name_or_path=str(tiny_folder), dtype="float32"))
    monkeypatch.chdir(tiny_folder.parent.parent)
    assert not hub.is_hub_name(f"{tiny_folder.parent.name}/{tiny_folder.name}")
    assert [hub.is_hub_name(name) for name in ("org/name", "./org/name", "~/name", "/a/b", "a/b/c", "name")] == [
        True, False, False, False, False, False,
    ]  # fmt: skip


def test_the_answer_is_remembered_for_a_minute(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "_reason", lambda url: asked.append(url) or "")
    assert [hub.unreachable(), hub.unreachable()] == ["", ""]
    assert asked == [NOWHERE]
    monkeypatch.setattr(hub, "CACHED_S", 0.0)
    hub.unreachable()
    assert asked == [NOWHERE, NOWHERE]
