"""Files with one tensor for each example."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextquill_core.errors import ModelError
from nextquill_core.methods.example_tensors import load_tensors, save_tensors


def test_tensors_come_back_from_their_files(tmp_path: Path) -> None:
    parts = [{"C:u/1:7": torch.ones(2, 3).T, "C:u2:3": torch.zeros(2, 0, 4)}, {"C:u3:1": torch.arange(3)}]
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for path, part in zip(paths, parts, strict=True):
        save_tensors(path, part)
    found = load_tensors(paths, "vectors")
    assert found.keys() == {**parts[0], **parts[1]}.keys()
    assert all(torch.equal(found[key], value) for part in parts for key, value in part.items())


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not tensors")
    with pytest.raises(ModelError, match=r"text: holds no vectors \(.+\); run `nextquill evaluate --force`") as error:
        load_tensors([tmp_path / "text"], "vectors")
    assert "\n" not in str(error.value)
