"""The checkpoint of a small model: a file that is whole, or not resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nextquill_core.errors import UserError
from nextquill_core.model import checkpoint
from nextquill_core.model.checkpoint import Checkpoint


def test_a_checkpoint_that_lacks_weights_is_not_resumed(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    kept = Checkpoint(tmp_path / "c.safetensors", every_s=0)
    assert kept.write_if_due(model, optimizer, [1.0])
    assert kept.restore(model, torch.optim.AdamW(model.parameters())) == [1.0]
    for change in (
        lambda t: t.pop("weight/bias"),
        lambda t: t.__setitem__("weight/bias", torch.ones(1)),  # would be broadcast
        lambda t: t.__setitem__("weight/weight", torch.full((2, 3), float("nan"))),
    ):
        tensors = load_file(kept.path)
        change(tensors)
        save_file(tensors, tmp_path / "changed")
        before = model.bias.clone()
        assert Checkpoint(tmp_path / "changed").restore(model, torch.optim.AdamW(model.parameters())) == []
        assert torch.equal(model.bias, before)


def test_writing_takes_no_more_than_a_hundredth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    model = nn.Linear(2, 2)
    kept = Checkpoint(tmp_path / "it", every_s=5.0)
    written = kept._write

    def slow(*arguments: object) -> None:
        written(*arguments)  # type: ignore[arg-type]
        now[0] += 0.5

    monkeypatch.setattr(kept, "_write", slow)
    times = []
    while now[0] < 120:
        now[0] += 1.0
        started = now[0]
        if kept.write_if_due(model, torch.optim.AdamW(model.parameters()), [1.0]):
            times.append(started)
    assert times == [5.0, 55.5, 106.0], "after 5 s, and then every 50 s, because writing takes half a second"


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = nn.Linear(2, 2)
    kept = Checkpoint(tmp_path / "file" / "it", every_s=0.0)
    with pytest.raises(UserError, match="cannot write a checkpoint of"):
        kept.write_if_due(model, torch.optim.AdamW(model.parameters()), [1.0])
