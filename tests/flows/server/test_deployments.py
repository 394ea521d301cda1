"""Projects that `nextquill up` deploys, and the limits of their work pools."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.server import deployments
from flows.server.deployments import find_project, training_limits
from storage import UserError
from tests.conftest import REPO


def test_the_file_of_another_project_is_ignored(tmp_path: Path) -> None:
    assert find_project(tmp_path).folder == REPO, "without a file, the one beside the package"
    (tmp_path / "prefect.yaml").write_text("name: theirs\ndeployments: []\n")
    assert find_project(tmp_path).folder == REPO


def test_an_invalid_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text("name: [\n")
    with pytest.raises(UserError, match=r"prefect\.yaml: cannot be read \(\w+\); fix the file"):
        find_project(tmp_path)


def test_a_changed_file_or_folder_changes_the_digest(tmp_path: Path) -> None:
    shutil.copy(REPO / "prefect.yaml", tmp_path)
    copied = find_project(tmp_path)
    assert copied.folder == tmp_path
    assert copied.digest not in ("", find_project(REPO).digest), "relative paths begin in the folder"
    assert find_project(tmp_path).digest == copied.digest
    with (tmp_path / "prefect.yaml").open("a") as file:
        file.write("# a comment\n")
    assert find_project(tmp_path).digest != copied.digest


def test_a_deployment_of_the_project_is_missing_whatever_else_the_server_has(monkeypatch: pytest.MonkeyPatch) -> None:
    project = find_project(REPO)
    known = [SimpleNamespace(name=name) for name in (*sorted(project.deployments)[1:], "theirs", "another")]
    client = SimpleNamespace(read_deployments=lambda limit: known)
    monkeypatch.setattr(deployments, "_client", lambda: nullcontext(client))
    assert deployments.missing_deployments(project)
    known.append(SimpleNamespace(name=min(project.deployments)))
    assert not deployments.missing_deployments(project)


def test_trainings_take_turns_only_in_pools_of_gpus() -> None:
    assert training_limits(["cpu", "gpu", "gpu-b"]) == ["training-gpu", "training-gpu-b"]
