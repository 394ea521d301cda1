"""An adapter made usable: its card in the store, and the folders that leave the store."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nextquill_core.model.identity import BaseName, base_name
from nextquill_core.pipeline.run import Run
from nextquill_core.registry.export import export
from storage import UserError
from tests.models import adapted_model
from tests.stages import make, untrained
from tests.world import small_config

METHOD = "contextsft"


def trained(small_world: Path, store: Path) -> Run:
    run = Run(small_config(small_world, store, evaluate={"methods": ["qwen", METHOD]}))
    make(run, run.plan.model)
    run.make(run.plan.train[METHOD], launch=untrained)
    return run


@pytest.fixture(scope="module")
def run(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(small_world, tmp_path_factory.mktemp("store"))


def adapter_of(run: Run) -> Path:
    return run.artifact(run.plan.train[METHOD]).folder / "adapter"


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.arange(5, 45).reshape(2, 20)).logits


def test_the_card_is_part_of_the_artifact_and_tells_of_data_settings_and_training(run: Run) -> None:
    artifact = run.artifact(run.plan.train[METHOD])
    [card] = artifact.shards("adapter/README.md")
    assert card.log, "what it tells of the training makes nothing stale"
    assert artifact.manifest.stats["validation"]["step"] == 3
    text = (artifact.folder / "adapter" / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "peft"
    for row in (
        "| categories | Small |",
        "| users | 20 |",
        "| protocol | dpl |",
        "| train examples | 40 |",
        "| train.learning_rate | 0.001 |",
        "| train.lora.r | 4 |",
        "| weights.policy | every token 1 |",
        "| normal | 2.25 |",
        "| loss | 2.75 |",
        f"`{artifact.manifest.fingerprint}`",
    ):
        assert row in text
    assert str(run.store.root) not in text
    assert "train.alpha" not in text, "a method without L_p has no α"


def test_another_store_gives_the_same_card(run: Run, small_world: Path, tmp_path: Path) -> None:
    other = trained(small_world, tmp_path)
    assert (adapter_of(run) / "README.md").read_bytes() == (adapter_of(other) / "README.md").read_bytes()


def test_an_exported_adapter_opens_with_its_tokenizer(run: Run, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export(run, METHOD, tmp_path / "out" / "adapter")
    folder = tmp_path / "out" / "adapter"
    assert (folder / "README.md").read_bytes() == (adapter_of(run) / "README.md").read_bytes()
    exported, stored = (adapted_model(run.model.name_or_path, one) for one in (folder, adapter_of(run)))
    assert torch.equal(logits(exported), logits(stored))
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"]
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"], "nothing unfinished stays behind"


def test_nothing_that_leaves_names_a_path_of_this_machine(run: Run, tmp_path: Path) -> None:
    """An adapter of the offline base model: its configuration has a name, its card the files that are needed."""
    for merge in (False, True):
        folder = tmp_path / str(merge)
        export(run, METHOD, folder, merge=merge)
        for path in folder.iterdir():
            assert str(run.store.root).encode() not in path.read_bytes(), path.name
    for folder in (tmp_path / "False", adapter_of(run)):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("nextquill-tiny", None)
    card = (tmp_path / "False" / "README.md").read_text()
    weights = Path(run.model.name_or_path, "model.safetensors")
    assert f"| model.safetensors | `{hashlib.sha256(weights.read_bytes()).hexdigest()}` |" in card
    assert "## Base model" not in (tmp_path / "True" / "README.md").read_text()


def test_a_base_model_is_called_by_a_name_that_others_know(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--Qwen--Qwen2.5-3B" / "snapshots" / "3aab1f1"
    plain = tmp_path / "models" / "my-base"
    link = tmp_path / "current"
    for folder in (snapshot, plain):
        folder.mkdir(parents=True)
    link.symlink_to(plain)
    assert base_name("Qwen/Qwen2.5-3B", "v2") == BaseName("Qwen/Qwen2.5-3B", "v2")
    assert base_name(str(snapshot), "main") == BaseName("Qwen/Qwen2.5-3B", "3aab1f1")
    assert base_name(str(plain), "main") == base_name(str(link), "main") == BaseName("my-base")
    assert base_name("tiny", "main") == BaseName("nextquill-tiny")
    assert not base_name(str(plain), "main").on_hub


def test_the_merged_model_computes_what_base_and_adapter_compute(run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "merged"
    folder.mkdir()
    export(run, METHOD, folder, merge=True)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    with_adapter = adapted_model(run.model.name_or_path, adapter_of(run))
    base = AutoModelForCausalLM.from_pretrained(run.model.name_or_path)
    expected = logits(with_adapter)
    torch.testing.assert_close(logits(merged.eval()), expected, rtol=1e-4, atol=1e-4)
    assert (logits(base.eval()) - expected).abs().max() > 0.01, "the adapter does something"
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"]
    assert not list(folder.glob("adapter*"))
    assert not list(folder.glob("*.bin"))
    assert str(run.store.root) not in (folder / "config.json").read_text()
    assert "merged into its weights" in (folder / "README.md").read_text()


@pytest.mark.parametrize("fault", ["missing", "not finite", "torn"])
def test_a_merged_model_that_does_not_come_back_whole_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The disk gives back other bytes than were written."""
    from safetensors.torch import load_file, save_file
    from transformers import PreTrainedModel

    write = PreTrainedModel.save_pretrained

    def write_damaged(model: Any, folder: str, **options: Any) -> None:
        write(model, folder, **options)
        path = Path(folder, "model.safetensors")
        tensors = load_file(path)
        name = next(name for name in tensors if name.endswith("q_proj.weight"))
        if fault == "missing":
            del tensors[name]
        else:
            tensors[name][0, 0] = float("nan")
        save_file(tensors, path, metadata={"format": "pt"})
        if fault == "torn":
            path.write_bytes(path.read_bytes()[:-100])

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", write_damaged)
    with pytest.raises(UserError, match=r"the merged model does not come back whole .*export again"):
        export(run, METHOD, tmp_path / "out", merge=True)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    def refused(name: str, folder: Path) -> str:
        with pytest.raises(UserError) as caught:
            export(run, name, folder)
        return str(caught.value)

    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    assert "there is something already" in refused(METHOD, taken)
    assert "there is something already" in refused(METHOD, taken / "file")
    assert "there is something already" in refused(METHOD, Path("/"))
    assert "`qwen` trains no adapter" in refused("qwen", tmp_path / "new")
    assert "this config trains no `sft`" in refused("sft", tmp_path / "new")
    assert "did you mean `nextquill`?" in refused("nextquil", tmp_path / "new")
    assert "the train artifact is missing" in refused("nextquill", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_adapter_of_a_base_model_that_is_gone_is_stale(small_world: Path, tmp_path: Path) -> None:
    run = trained(small_world, tmp_path / "store")
    assert run.plan.model is not None
    shutil.rmtree(run.artifact(run.plan.model).folder)
    with pytest.raises(UserError, match="the adapter is stale: its input model is missing"):
        export(run, METHOD, tmp_path / "out")
    assert not (tmp_path / "out").exists()
