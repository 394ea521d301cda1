"""A pointer moves in one step, forward and back, one mover at a time."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from storage import Store, UserError
from storage.pointers import Target, move_back, move_pointer, pointer_lock, pointer_names, read_pointer
from tests.storage.helpers import fill


def target(store: Store, name: str) -> Target:
    ref = fill(store, name).ref
    return Target(ref, ref, {"value": 1.5})


def test_forward_and_back_and_no_further(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert read_pointer(store, "p") is None
    assert pointer_names(store) == []
    targets = [target(store, name) for name in ("a", "b", "c")]
    for one in targets:
        with pointer_lock(store, "p"):
            move_pointer(store, "p", one)
    known = read_pointer(store, "p")
    assert known is not None
    assert (known.target, known.before) == (targets[2], (targets[1], targets[0]))
    for expected in (targets[1], targets[0]):
        with pointer_lock(store, "p"):
            assert move_back(store, "p") == expected
        known = read_pointer(store, "p")
        assert known is not None
        assert known.target == expected
    with pytest.raises(UserError, match="`p` pointed at nothing before"), pointer_lock(store, "p"):
        move_back(store, "p")
    past = [json.loads(line) for line in (tmp_path / "accepted" / "p.jsonl").read_text().splitlines()]
    assert [(line["event"], line["ref"]["fingerprint"]) for line in past] == [
        ("accepted", "a"), ("accepted", "b"), ("accepted", "c"), ("moved back", "b"), ("moved back", "a"),
    ]  # fmt: skip
    assert pointer_names(store) == ["p"]


def test_moving_back_to_an_artifact_that_is_gone_or_changed_moves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("a", "b"):
        with pointer_lock(store, "p"):
            move_pointer(store, "p", target(store, name))
    fill(store, "a", rows=7)
    before = (tmp_path / "accepted" / "p.json").read_bytes()
    with pytest.raises(UserError, match="kind a, accepted before, is no longer"), pointer_lock(store, "p"):
        move_back(store, "p")
    assert (tmp_path / "accepted" / "p.json").read_bytes() == before


def test_one_mover_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.pointers.PATIENCE_S", 0.2)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with pointer_lock(Store(tmp_path), "p"):
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(20)
    with pytest.raises(UserError, match="another process is moving `p`"), pointer_lock(Store(tmp_path), "p"):
        pass
    leave.set()
    thread.join()
    with pointer_lock(Store(tmp_path), "p"):
        pass


@pytest.mark.parametrize("name", ["../p", "", ".p", "a/b"])
def test_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not a valid name of a pointer"):
        read_pointer(Store(tmp_path), name)


def test_a_damaged_pointer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "accepted").mkdir()
    (tmp_path / "accepted" / "p.json").write_text("{}")
    with pytest.raises(UserError, match="the stored value has an unexpected form; fix or delete it"):
        read_pointer(Store(tmp_path), "p")
