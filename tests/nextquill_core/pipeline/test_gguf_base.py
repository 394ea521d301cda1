"""A base model in a GGUF file: its step in the plan, its artifact, and what is said of it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.config import Config
from nextquill_core.errors import ModelError
from nextquill_core.pipeline.model_card import base_source
from nextquill_core.pipeline.run import Run
from tests.conftest import REPO
from tests.gguf_files import write_gguf
from tests.world import small_config, small_settings, write_config


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "Some-Instruct.Q8_0.gguf"
    write_gguf(path, quantized=True)
    return path


def configured(world: Path, store: Path, source: Path, **changes: Any) -> Config:
    model = {"name_or_path": str(source), **changes.pop("model", {})}
    return small_config(world, store, model=model, **changes)


def model_step(config: Config) -> str:
    step = Run(config).plan.model
    assert step is not None
    return step.fingerprint


def test_content_and_data_type_alone_identify_the_model(small_world: Path, source: Path, tmp_path: Path) -> None:
    before = model_step(configured(small_world, tmp_path, source))
    elsewhere = tmp_path / "other" / "renamed.gguf"
    elsewhere.parent.mkdir()
    shutil.copy(source, elsewhere)
    assert model_step(configured(small_world, tmp_path, elsewhere)) == before
    other_data = {"ingest": {"protocol": {"name": "dpl", "min_text_chars": 7}}, "prompt": {"max_history": 1}}
    assert model_step(configured(small_world, tmp_path, source, **other_data)) == before
    assert model_step(configured(small_world, tmp_path, source, model={"dtype": "bfloat16"})) != before
    write_gguf(elsewhere, quantized=True, metadata={"general.name": "Another"})
    assert model_step(configured(small_world, tmp_path, elsewhere)) != before


def test_the_artifact_is_made_without_any_data_and_says_where_it_comes_from(
    small_world: Path, source: Path, tmp_path: Path
) -> None:
    run = Run(configured(small_world, tmp_path / "store", source))
    assert run.plan.model is not None
    assert run.plan.needed_by([run.plan.model]) == []
    outcome = run.make(run.plan.model)
    manifest = outcome.artifact.manifest
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest.stats["source"]["sha256"] == digest
    assert manifest.provenance["template"] == {"name": "chat", "reason": "the model is called Some-Instruct.Q8_0"}
    assert Path(run.model.name_or_path) == outcome.artifact.folder / "model"
    assert (run.base_name.name, run.base_name.on_hub) == ("Some-Instruct.Q8_0", False)
    assert list(base_source(run)) == [
        ("base model's file", "Some-Instruct.Q8_0.gguf, dequantised"),
        ("SHA-256 of that file", digest),
        ("licence of the base model", "mit"),
    ]
    assert Run(configured(small_world, tmp_path / "store", source)).make(run.plan.model).reused


def test_prompts_longer_than_the_file_allows_are_refused_before_anything_is_made(
    small_world: Path, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="the model has 2,048 positions"):
        Run(configured(small_world, tmp_path, source, prompt={"max_prompt_tokens": 2000, "max_target_tokens": 2000}))


@pytest.mark.process
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); name a .gguf file"),
        (b"PK something", "not a GGUF file: it does not begin with GGUF; name a .gguf file"),
        (b"GGUF\x03\0\0\0", "the GGUF file is damaged or cut off; copy or download the file again"),
    ],
)
def test_a_bad_file_ends_a_command_with_one_line(
    content: bytes | None, message: str, small_world: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.gguf"
    if content:
        path.write_bytes(content)
    settings = small_settings(small_world, tmp_path / "store")
    settings["model"]["name_or_path"] = str(path)
    config = write_config(tmp_path / "run.yaml", settings)
    command = [sys.executable, "-m", "flows", "model", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"nextquill: {path}: {message}")
    assert len(done.stderr.splitlines()) == 1
