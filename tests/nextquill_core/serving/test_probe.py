"""An adapter that is not applied, or is another one, is found before any request gets it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import torch

from nextquill_core.config import Config
from nextquill_core.pipeline.run import Run
from nextquill_core.serving.probe import probe
from storage import UserError
from tests.nextquill_core.serving.test_deployment import accept, retrained
from tests.nextquill_core.serving.test_drafts import ask, events
from tests.servers import KETTLE, client_of, deployed, rollout_of, served_config
from tests.upstream import Models, upstream

pytestmark = pytest.mark.pipeline


def folder(run: Run, method: str) -> Path:
    return run.artifact(run.plan.train[method]).folder / "adapter"


def test_the_stored_log_likelihoods_prove_a_local_adapter(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nextquill_core.serving.deployment")
    with deployed(run.config):
        pass
    lines = {vars(record)["method"]: vars(record)["result"] for record in caplog.records if record.message == "probed"}
    assert "answers as trained: 0.0000 nats a token from the local log-likelihoods" in lines["nextquill"]
    assert "is applied" in lines["contextsft"], "none are stored for it"


@pytest.mark.parametrize(
    ("factor", "words"), [(0.5, "it does not answer as trained"), (0.0, "it answers as the base model does")]
)
def test_other_weights_under_a_right_fingerprint_are_refused(run: Run, factor: float, words: str) -> None:
    with deployed(run.config) as rollout, torch.no_grad():
        assert rollout.current is not None
        backend, served = rollout.current.backend, rollout.current.catalog.default
        for name, tensor in backend._model.named_parameters():  # type: ignore[attr-defined]
            if f"lora_B.{served.adapter}" in name:
                tensor.mul_(factor)
        with pytest.raises(UserError, match=words):
            probe(backend, served, run.store)


@pytest.fixture
def models(run: Run) -> Models:
    """Return the models of another server, with the adapter of nextquill."""
    adapter = run.plan.train["nextquill"].fingerprint
    return Models(run.model.name_or_path, "base", {adapter: folder(run, "nextquill")})


def config_for(world: Path, store: Path, url: str) -> Config:
    server = {"url": url, "models": {"base": "base"}, "retries": 1, "timeout_s": 20}
    return served_config(world, store, evaluate={"engine": "openai", "server": server})


def test_another_server_writes_what_this_process_writes(
    small_world: Path, own_store: Path, models: Models, client: httpx.Client, users: list[str]
) -> None:
    run = Run(served_config(small_world, own_store))
    accept(run)
    first = run.plan.train["nextquill"].fingerprint
    with (
        upstream(models) as url,
        deployed(config_for(small_world, own_store, url)) as rollout,
        client_of(rollout) as other,
    ):
        for method in ("nextquill", "latestk", "contextsft"):
            body = {"user": users[0], "decoding": "greedy", "method": method, "explain": True}
            ours, theirs = ask(client, **body), ask(other, **body)
            logps = []
            for draft in (ours, theirs):
                logps.append([token["logp_with"] for token in draft.pop("tokens")])
                del draft["units"], draft["likelier_words"]
            assert theirs == ours
            assert logps[1] == pytest.approx(logps[0], abs=5e-4)
        assert models.asked == [first, "base", run.plan.train["contextsft"].fingerprint]
        *parts, (_, draft) = events(other, item=KETTLE, decoding="greedy", stream=True)
        assert "".join(data["text"] for _, data in parts) == draft["text"]
        refused = other.post("/v1/drafts", json={"item": KETTLE, "user": users[0], "strength": 1})
        assert (refused.status_code, "cannot be steered" in refused.text) == (422, True)
        second = accept(retrained(small_world, own_store, alpha=0.2, seed=5))
        rollout.look()
        assert ask(other)["adapter"] == second
        rollout.look()
        assert first not in models.names, "it was unloaded"
        models.names.pop(second)
        answer = other.post("/v1/drafts", json={"item": KETTLE})
        assert answer.status_code == 502
        assert "the server refuses (404" in answer.json()["error"]["message"]


def test_a_server_that_does_not_apply_or_have_the_adapter_is_refused(
    small_world: Path, own_store: Path, models: Models, run: Run
) -> None:
    adapter = run.plan.train["nextquill"].fingerprint
    with upstream(models) as url:
        config = config_for(small_world, own_store, url)
        models.ignored = {adapter}
        with pytest.raises(UserError, match=f"adapter {adapter}: it answers as the base model does"):
            rollout_of(config).start()
        models.ignored = set()
        models.load("other", folder(run, "contextsft"))
        models.names[adapter] = models.names.pop("other")
        models.model.delete_adapter(adapter)
        models.load(adapter, folder(run, "contextsft"))
        with pytest.raises(UserError, match="it does not answer as trained"):
            rollout_of(config).start()
        models.names.clear()
        models.loads = False
        with pytest.raises(UserError, match=f"the server has no adapter named {adapter} and does not load one"):
            rollout_of(config).start()
        models.base_name = "elsewhere"
        with pytest.raises(UserError, match="does not serve the base model as 'base', but elsewhere"):
            rollout_of(config).start()
    with pytest.raises(UserError, match="the server does not list its models"):
        rollout_of(config).start()


def test_log_likelihoods_are_computed_here_where_none_are_stored(
    small_world: Path, own_store: Path, models: Models, run: Run
) -> None:
    method = "contextsft"
    models.load(run.plan.train[method].fingerprint, folder(run, method))
    with upstream(models) as url, deployed(config_for(small_world, own_store, url), method=method) as rollout:
        assert rollout.current is not None
        assert rollout.current.catalog.default.name == method
