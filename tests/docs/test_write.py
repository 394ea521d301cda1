"""The Python of docs/how-to/write.md and docs/how-to/adapters.md, run on a small store and on exported adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextquill_core.pipeline.run import Run
from nextquill_core.registry.export import export
from nextquill_core.writing.histories import Histories
from tests.docs.test_blocks import blocks
from tests.servers import served_config, write_served_store
from tests.world import write_config

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def run(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = tmp_path_factory.mktemp("written") / "store"
    write_served_store(small_world, prepared_store, store)
    return Run(served_config(small_world, store))


def examples(page: str) -> list[str]:
    return [block.text for block in blocks("python") if block.page.name == page]


def execute(text: str, names: dict[str, str]) -> None:
    """Run the code of a page with its placeholders, in quotes, replaced by these names."""
    for placeholder, name in names.items():
        assert f'"{placeholder}"' in text
        text = text.replace(f'"{placeholder}"', json.dumps(name))
    exec(compile(text, "the page", "exec"), {})  # noqa: S102 - a page of this repository


def test_a_run_writes_as_the_page_says(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    histories = Histories(run.artifact(run.plan.ingest).folder)
    user, other = histories.user_ids("", 2)
    (sequence,) = histories.sequences([user])
    file = write_config(tmp_path / "run.yaml", run.config.model_dump(mode="json"))
    (code,) = examples("write.md")
    execute(code, {"FILE": str(file), "U": user, "V": other, "I": sequence.reviews[-1]["item_id"]})
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_an_exported_adapter_is_used_as_the_page_says(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(run.model.name_or_path)
    export(run, "nextquill", tmp_path / "adapter")
    export(run, "nextquill", tmp_path / "merged", merge=True)
    with_writer, from_hub, from_folder = examples("adapters.md")

    with_writer = with_writer.replace('"DIR"', json.dumps(str(tmp_path / "merged")), 1)
    execute(with_writer, {"DIR": str(tmp_path / "adapter"), "BASE_FOLDER": base})
    assert capsys.readouterr().out.strip()

    (tmp_path / "nextquill-tiny").symlink_to(base)  # stands for a hub model of this name
    monkeypatch.chdir(tmp_path)
    execute(from_hub, {"DIR": str(tmp_path / "adapter")})
    execute(from_folder, {"DIR": str(tmp_path / "adapter"), "BASE_MODEL_FOLDER": base})
