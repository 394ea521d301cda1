"""What is served follows the store: another accepted adapter, forgotten users, artifacts that are gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nextquill_core.pipeline.run import Run
from nextquill_core.serving.catalog import Catalog, ServedMethod
from nextquill_core.serving.deployment import Rollout
from nextquill_core.writing import prompter as notes
from storage import UserError
from storage.pointers import Target, move_back, move_pointer, pointer_lock
from tests.nextquill_core.serving.test_drafts import ask, events
from tests.servers import KETTLE, client_of, deployed, random_weights, rollout_of, served_config

pytestmark = pytest.mark.pipeline


def accept(run: Run, name: str = "nextquill", method: str = "nextquill") -> str:
    """Move a pointer to the adapter of a run, as `promote` does, and return its fingerprint."""
    artifact = run.artifact(run.plan.train[method])
    with pointer_lock(run.store, name):
        move_pointer(run.store, name, Target(artifact.ref, artifact.ref))
    return artifact.manifest.fingerprint


def retrained(world: Path, store: Path, alpha: float, seed: int) -> Run:
    """Return a run with another adapter."""
    run = Run(served_config(world, store, train={"alpha": alpha}))
    run.make(run.plan.train["nextquill"], launch=random_weights(seed))
    return run


def test_another_accepted_adapter_is_taken_over_while_requests_run(small_world: Path, own_store: Path) -> None:
    config = served_config(small_world, own_store)
    first = accept(Run(config))
    with deployed(config) as rollout, client_of(rollout) as client:
        before = rollout.current
        assert before is not None
        backend = before.backend
        assert before.catalog.default.adapter == first
        old = ask(client)
        assert old["adapter"] == first
        rollout.look()
        assert rollout.current is before, "nothing has changed"
        candidate = retrained(small_world, own_store, alpha=0.2, seed=5)
        rollout.look()
        assert rollout.current is before, "trained is not accepted"
        second = accept(candidate)
        with rollout.used() as held:  # as a request that is being answered
            rollout.look()
            assert held is before
            assert set(backend._model.peft_config) >= {first, second}  # type: ignore[attr-defined]
            new = ask(client)
            assert (new["adapter"], new["model"]) == (second, second)
            assert new["text"] != old["text"]
            assert client.post("/v1/drafts", json={"item": KETTLE, "method": first}).status_code == 404
        rollout.look()
        assert first not in backend._model.peft_config, "the last request that used it has ended"  # type: ignore[attr-defined]
        with pointer_lock(candidate.store, "nextquill"):
            move_back(candidate.store, "nextquill")
        rollout.look()
        assert ask(client) == old
        assert rollout.current is not None
        assert rollout.current.backend is backend, "the base model stays loaded"


def test_a_stream_that_began_ends_with_the_adapter_it_began_with(small_world: Path, own_store: Path) -> None:
    config = served_config(small_world, own_store)
    first = accept(Run(config))
    with deployed(config) as rollout, client_of(rollout) as client:
        whole = ask(client)
        accept(retrained(small_world, own_store, alpha=0.2, seed=5))
        with client.stream("POST", "/v1/drafts", json={"item": KETTLE, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            rollout.look()
            *_, last = (line for line in lines if line.startswith("data: "))
        assert json.loads(last.removeprefix("data: ")) == whole
        assert ask(client)["adapter"] != first
        assert events(client, item=KETTLE, stream=True)[-1][1]["adapter"] != first


def test_an_adapter_that_cannot_be_used_is_not_taken_over(small_world: Path, own_store: Path) -> None:
    config = served_config(small_world, own_store)
    with deployed(config) as rollout:
        before = rollout.current
        candidate = retrained(small_world, own_store, alpha=0.2, seed=5)
        accept(candidate)
        weights = candidate.artifact(candidate.plan.train["nextquill"]).folder / "adapter" / "adapter_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-100])
        rollout.look()
        assert rollout.current is before
        assert rollout.problem
        assert rollout.failures == 1
        weights.write_bytes(whole)
        rollout._read_at = 0.0  # a minute later
        rollout.look()
        assert rollout.current is not None
        assert rollout.current.catalog.default.adapter == candidate.plan.train["nextquill"].fingerprint
        assert rollout.problem == ""


def test_a_user_who_is_to_be_forgotten_is_unknown_at_once(
    small_world: Path, own_store: Path, users: list[str], tmp_path: Path
) -> None:
    forget = tmp_path / "forget.txt"
    forget.write_text("")
    config = served_config(small_world, own_store, privacy={"forget": str(forget)})
    accept(Run(served_config(small_world, own_store)))
    with deployed(config) as rollout, client_of(rollout) as client:
        assert ask(client, user=users[0])["history_shown"]
        forget.write_text(f"{users[0]}\n")
        rollout.look()
        found = ask(client, user=users[0])
        assert (found["history_shown"], found["note"]) == ([], notes.UNKNOWN)
        assert ask(client, user=users[1])["history_shown"]
        assert users[0] not in client.get("/v1/users", params={"count": 50}).json()["users"]
        assert client.get(f"/v1/users/{users[0]}/reviews").json()["reviews"] == []
        example = client.post("/v1/drafts", json={"example": f"Small:{users[0]}:8"})
        assert (example.status_code, "there is no example" in example.text) == (422, True)


def test_what_is_gone_from_the_store_is_no_longer_served(small_world: Path, own_store: Path) -> None:
    config = served_config(small_world, own_store)
    run = Run(config)
    accept(run)
    adapter = run.artifact(run.plan.train["nextquill"]).folder
    with deployed(config) as rollout, client_of(rollout) as client:
        before = rollout.current
        assert before is not None
        shutil.move(adapter, own_store / "elsewhere")
        rollout._read_at = 0.0
        rollout.look()
        assert rollout.current is None
        answer = client.post("/v1/drafts", json={"item": KETTLE})
        assert answer.status_code == 503
        assert "is no longer in the store as it was" in answer.json()["error"]["message"]
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "nothing is served")
        assert client.get("/v1/models").json()["data"] == []
        assert not before.backend._thread.is_alive(), "its memory is free"  # type: ignore[attr-defined]
        shutil.move(own_store / "elsewhere", adapter)
        rollout._read_at = 0.0
        rollout.look()
        assert ask(client)["adapter"]


def test_methods_of_the_configuration_that_cannot_be_served_are_left_out(small_world: Path, own_store: Path) -> None:
    methods = {"methods": ["qwen", "contriever", "oppu", "cos", "nextquill"]}
    with deployed(served_config(small_world, own_store, evaluate=methods)) as rollout:
        assert rollout.current is not None
        catalog = rollout.current.catalog
        assert list(catalog.methods) == ["nextquill", "qwen"]
        assert catalog.left_out.keys() == {"contriever", "oppu", "cos"}
        assert "made for the measured users alone" in catalog.left_out["oppu"]


class Loaded:
    """A backend without a model that knows which adapters it has."""

    def __init__(self) -> None:
        self.adapters: set[str] = set()

    def load(self, adapter: Any) -> None:
        self.adapters.add(adapter)

    def unload(self, fingerprint: str) -> None:
        self.adapters.remove(fingerprint)

    def close(self) -> None:
        self.adapters.clear()


def catalog(*methods: tuple[str, str]) -> Any:
    """Return a catalog of methods and their adapters, the default method first."""
    served = {
        name: ServedMethod(
            SimpleNamespace(method=SimpleNamespace(name=name), adapter=adapter),  # type: ignore[arg-type]
            SimpleNamespace(identity=SimpleNamespace(adapter=adapter)),  # type: ignore[arg-type]
        )
        for name, adapter in methods
    }
    selection = SimpleNamespace(default=methods[0][0], base="base", ingest=SimpleNamespace(fingerprint="ingest"))
    return Catalog(selection, served, {}, None, tuple, 0.0)  # type: ignore[arg-type]


def test_a_default_adapter_that_fails_leaves_none_of_the_others_loaded() -> None:
    catalogs = iter([catalog(("a", "A1")), catalog(("a", "A2"), ("b", "B2")), catalog(("a", "A3"), ("b", "A3"))])
    probed: list[str] = []

    def probe(_backend: Any, served: ServedMethod) -> str:
        probed.append(served.model_id)
        if served.model_id == "A2":
            raise UserError("it does not answer as trained")
        return ""

    reader: Any = SimpleNamespace(read=lambda known: next(catalogs), signs=object, gone=lambda catalog: "")
    rollout = Rollout(reader, lambda base: Loaded(), probe)  # type: ignore[arg-type, return-value]
    backend: Any = rollout.start().backend
    rollout.look()
    assert rollout.problem == "it does not answer as trained"
    assert (probed, backend.adapters) == (["A1", "B2", "A2"], {"A1"})
    rollout.look()
    assert (probed[3:], backend.adapters) == (["A3"], {"A3"}), "methods that share an adapter are probed once"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "nextquil"}, "did you mean `nextquill`?"),
        ({"method": "oppu"}, "made for the measured users alone"),
        ({"method": "perce"}, "this config trains no `perce`"),
        ({"pointer": "production"}, ""),
    ],
)
def test_which_method_answers_is_checked_before_a_model_is_loaded(
    small_world: Path, served_store: Path, options: dict[str, Any], words: str
) -> None:
    rollout: Rollout = rollout_of(served_config(small_world, served_store), **options)
    if words:
        with pytest.raises(UserError, match=words):
            rollout.start()
    else:
        assert rollout.start().catalog.default.name == "nextquill", "nothing is accepted under this name"
        rollout.close()
