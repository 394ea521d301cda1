"""Every key of the configuration either decides a result, and then it moves a fingerprint, or cannot change one."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from nextquill_core.config import Config
from nextquill_core.config.base import Section
from nextquill_core.methods.registry import METHODS
from tests.conftest import REPO
from tests.nextquill_core.pipeline.test_plan import fingerprints
from tests.plugins import add_package
from tests.world import small_config

PLACE, SPEED, DISPLAY, GUARD = "place", "speed", "display", "guard"
# Each operational key, by class and field: what kind it is, and why it cannot change a result beyond rounding.
# Micro-batches and ranks add up to the same step. Under `train.lora.dropout` they also decide which of the equally
# likely masks are drawn; by contract neither batch sizes nor numbers of processes are part of an identity.
OPERATIONAL_KEYS: dict[str, tuple[str, str]] = {
    "Config.store": (PLACE, "where artifacts lie"),
    "Config.read_store": (PLACE, "where more artifacts lie"),
    "ModelConfig.attention": (SPEED, "kernels compute the same sums in another order"),
    "PrivacyConfig.key_env": (PLACE, "names the variable; the key itself counts"),
    "PrivacyConfig.key_secret": (PLACE, "names the block; the key itself counts"),
    "ScoreConfig.batch_tokens": (SPEED, "bytes are equal"),
    "ScoreConfig.launcher": (PLACE, "shards depend on the rows alone"),
    "ScoreConfig.workers": (SPEED, "bytes are equal"),
    "ScoreConfig.ray_address": (PLACE, "where a Ray cluster answers"),
    "TrainConfig.batch_tokens": (SPEED, "micro-batches add up to the step"),
    "TrainConfig.gradient_checkpointing": (SPEED, "activations are computed twice"),
    "TrainConfig.checkpoint_every": (GUARD, "resumed bytes are equal"),
    "TrainConfig.checkpoint_minutes": (GUARD, "resumed bytes are equal"),
    "TrainConfig.keep_checkpoints": (PLACE, "old checkpoints are removed"),
    "TrainConfig.max_loss_ratio": (GUARD, "it fails the stage, which then has no artifact"),
    "TrainConfig.report_to": (DISPLAY, "curves are shown elsewhere too"),
    "DeepSpeedConfig.zero_stage": (SPEED, "curves are equal"),
    "DeepSpeedConfig.offload": (PLACE, "curves are equal"),
    "LauncherConfig.kind": (PLACE, "where ranks run"),
    "LauncherConfig.processes": (SPEED, "curves are equal"),
    "LauncherConfig.hostfile": (PLACE, "names hosts"),
    "LauncherConfig.remote_shell": (PLACE, "how hosts are reached"),
    "LauncherConfig.address": (PLACE, "how hosts are reached"),
    "LauncherConfig.port": (PLACE, "how hosts are reached"),
    "SlurmConfig.nodes": (SPEED, "a number of ranks"),
    "SlurmConfig.ranks_per_node": (SPEED, "a number of ranks"),
    "SlurmConfig.partition": (PLACE, "which machines"),
    "SlurmConfig.arguments": (PLACE, "which machines"),
    "ServerConfig.url": (PLACE, "the served model counts by its name"),
    "ServerConfig.api_key_env": (PLACE, "names the variable of a key that grants access"),
    "ServerConfig.concurrency": (SPEED, "requests are independent"),
    "ServerConfig.timeout_s": (GUARD, "a request is repeated or fails"),
    "ServerConfig.retries": (GUARD, "a request is repeated or fails"),
    "JudgeConfig.url": (PLACE, "the judge counts by its name"),
    "JudgeConfig.api_key_env": (PLACE, "names the variable of a key that grants access"),
    "JudgeConfig.concurrency": (SPEED, "questions are independent"),
    "JudgeConfig.timeout_s": (GUARD, "a question is repeated or fails"),
    "JudgeConfig.retries": (GUARD, "a question is repeated or fails"),
    "EvaluateConfig.batch_tokens": (SPEED, "answers are equal"),
    **{
        f"SlurmJob.{name}": (PLACE, "what a job asks of the cluster")
        for name in ("partition", "account", "qos", "gpus", "cpus", "memory", "time", "arguments")
    },
    "SlurmJobs.resubmit": (GUARD, "a job that ended is submitted again"),
    "SlurmJobs.resubmit_after": (GUARD, "a job that ended is submitted again"),
    "SlurmJobs.poll_s": (SPEED, "how often Slurm is asked"),
    "SlurmJobs.folder": (PLACE, "scripts and logs of jobs"),
    **{f"PricesConfig.{card}": (DISPLAY, "the money that `nextquill plan` shows") for card in ("a100", "h100", "h200")},
}
# The tests that show it by running both, where a small model can.
CORE = "tests/nextquill_core"
RANKS = "tests/tasks/ranks/test_launch.py::test_two_ranks_zero_and_offloading_change_nothing"
HOSTS = "tests/tasks/ranks/test_launch.py::test_two_hosts_give_the_result_of_one"
SHOWN_BY: dict[str, str] = {
    "Config.store": f"{CORE}/pipeline/test_plan.py::test_the_place_of_the_store_moves_nothing",
    "Config.read_store": (
        f"{CORE}/pipeline/test_two_stores.py::test_what_production_has_is_reused_and_only_what_differs_is_made"
    ),
    "ModelConfig.attention": f"{CORE}/evaluation/test_likelihood.py::test_attention_kernels_agree_to_rounding",
    "PrivacyConfig.key_env": (
        f"{CORE}/ingest/test_privacy.py::test_pseudonyms_are_the_same_for_one_key_and_others_for_another"
    ),
    "ScoreConfig.batch_tokens": f"{CORE}/causal/test_scorer.py::test_bytes_do_not_depend_on_batches",
    "ScoreConfig.launcher": f"{CORE}/causal/test_shard_queue.py::test_boundaries_depend_on_the_rows_alone",
    "ScoreConfig.workers": f"{CORE}/causal/test_shard_queue.py::test_three_workers_make_the_same_bytes_as_one",
    "TrainConfig.batch_tokens": (
        f"{CORE}/training/test_budget.py::test_any_budget_gives_the_same_gradients_with_dropout_too"
    ),
    "TrainConfig.gradient_checkpointing": (
        f"{CORE}/training/test_losses.py::test_gradient_checkpointing_changes_nothing_but_rounding"
    ),
    "TrainConfig.checkpoint_every": (
        f"{CORE}/training/test_checkpoints.py::test_killed_and_resumed_is_as_if_never_stopped"
    ),
    "TrainConfig.max_loss_ratio": (
        f"{CORE}/training/test_trainer.py::test_a_loss_that_runs_away_ends_the_run_and_the_last_good_checkpoint_stays"
    ),
    **dict.fromkeys(("DeepSpeedConfig.zero_stage", "DeepSpeedConfig.offload", "LauncherConfig.processes"), RANKS),
    **dict.fromkeys(("LauncherConfig.kind", "SlurmConfig.nodes"), HOSTS),
    "EvaluateConfig.batch_tokens": (
        f"{CORE}/generation/test_local_engine.py::test_an_answer_is_what_the_definition_says_in_batches_of_any_size"
    ),
}

# Another value of a key, where it does not follow from the type.
VALUES: dict[str, Any] = {
    "store": "elsewhere",
    "read_store": "../another",
    "model.name_or_path": "org/other-base",
    "model.tiny.hidden_size": 64,
    "model.tiny.heads": 1,
    "ingest.source": "amazon-2018",
    "ingest.protocol.name": "global-time",
    "ingest.protocol.val_from": "2020-01-01",
    "ingest.protocol.test_from": "2020-01-01",
    "ingest.protocol.max_description_chars": 1000,
    "privacy.key_env": "OTHER_KEY",
    "prompt.template": "chat",
    "score.ray_address": "ray://host:1",
    "weights.policy": "soft",
    "weights.options": {"temperature": 0.5},
    "train.method": "contextsft",
    "train.report_to": ["tensorboard"],
    "train.launcher.kind": "slurm",
    "train.launcher.slurm.arguments": ["--time=1"],
    "train.val_every": 3,
    "evaluate.methods": ["qwen"],
    "evaluate.decoding": ["sane"],
    "evaluate.metrics": ["another"],
    "evaluate.preference_tokens": ["initial", "crossfit"],
    "evaluate.retrieval.encoder": "org/encoder",
    "evaluate.retrieval.bertscore": "org/bert",
    "evaluate.retrieval.author": "org/encoder",
    "evaluate.peers.encoder": "org/encoder",
    "evaluate.server.models": {"nextquill": "other"},
    "evaluate.server.url": "http://elsewhere/v1",
    "evaluate.judge.url": "http://elsewhere/v1",
    "slurm.resubmit_after": ["TIMEOUT"],
}
JOB = {"gpus": 2, "memory": "4G", "time": "1-0", "arguments": ["--exclusive"]}
# Other settings without which a key has no effect.
CONTEXT: dict[str, dict[str, Any]] = {
    "model.tiny": {"model": {"name_or_path": "tiny"}},
    "ingest.options": {"ingest": {"source": "table"}},
    "ingest.protocol.val": {"ingest": {"protocol": {"name": "global-time"}}},
    "ingest.protocol.test": {"ingest": {"protocol": {"name": "global-time"}}},
    "score.folds": {"score": {"effect_source": "adapter"}},
    "weights.options": {"weights": {"policy": "soft"}},
    "train.val_": {"train": {"keep": "best"}},
    "train.deepspeed.offload": {"train": {"deepspeed": {"zero_stage": 2}}},
    "evaluate.server": {"evaluate": {"engine": "openai"}},
    "evaluate.judge": {"evaluate": {"judge": {"model": "judge"}}},
    "evaluate.retrieval.bertscore_revision": {"evaluate": {"retrieval": {"bertscore": "org/bert"}}},
    "evaluate.retrieval.author_revision": {"evaluate": {"retrieval": {"author": "org/encoder"}}},
    "evaluate.peers.revision": {"evaluate": {"peers": {"encoder": "org/encoder"}}},
}


def keys(section: type[Section] = Config, prefix: str = "", inherited: bool = False) -> Iterator[tuple[str, str, bool]]:
    """Yield the path of each key, its class and name, and whether it is operational.

    Args:
        section: The class.
        prefix: Path of the section.
        inherited: Whether the section is operational.
    """
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra
        operational = inherited or (isinstance(extra, dict) and bool(extra.get("operational")))
        inner = _sections(field.annotation)
        if inner:
            yield from keys(inner[0], f"{prefix}{name}.", operational)
        else:
            yield prefix + name, f"{section.__name__}.{name}", operational


def _sections(annotation: Any) -> list[type[Section]]:
    """Return the section that a field is, or may be; a list of sections is a value."""
    options = () if get_origin(annotation) is tuple else (annotation, *get_args(annotation))
    return [kind for kind in options if isinstance(kind, type) and issubclass(kind, Section)]


KEYS = list(keys())


def field_of(path: str) -> FieldInfo:
    section: Any = Config
    *parents, last = path.split(".")
    for name in parents:
        annotation = section.model_fields[name].annotation
        section = _sections(annotation)[0]
    field: FieldInfo = section.model_fields[last]
    return field


def another(annotation: Any, default: Any) -> Any:
    """Return a value of a simple type that is not the default."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return another(get_args(annotation)[0], default)
    if origin is Literal:
        return next(value for value in get_args(annotation) if value != default)
    if annotation is bool:
        return not default
    if annotation is int:
        return (default if isinstance(default, int) else 7) + 1
    if annotation is float:
        return default * 0.75 if default else 0.5
    if annotation is str:
        return "another"
    options = [kind for kind in get_args(annotation) if kind is not type(None)]
    return another(options[0], default)


def value_for(path: str) -> Any:
    if path in VALUES:
        return VALUES[path]
    if path.startswith("slurm.") and path.count(".") == 2:
        return JOB.get(path.rpartition(".")[2], "another" if not path.endswith("cpus") else 3)
    field = field_of(path)
    return another(field.annotation, field.default)


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value  # type: ignore[no-any-return]


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in above.items():
        whole = key in ("models", "options", "inputs")  # values and no sections
        deeper = isinstance(value, dict) and isinstance(found.get(key), dict) and not whole
        found[key] = merged(found[key], value) if deeper else value
    return found


@pytest.fixture(scope="module")
def base(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Settings under which as many keys as possible have an effect."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)  # relative paths are made here
        for name in ("NEXTQUILL_PSEUDONYM_KEY", "OTHER_KEY"):
            monkeypatch.setenv(name, "a secret of more than sixteen bytes")
        settings = small_config(small_world, folder).model_dump(mode="json")
        add_package(folder / "added", monkeypatch, "added", "", "nextquill.metrics", {"another": "added:another"})
        changes = {
            "model": {"name_or_path": "org/name-base"},
            "evaluate": {"methods": list(METHODS), "control": "stranger"},
        }
        yield merged(settings, changes)


@functools.cache
def fingerprints_of_base(settings: str) -> dict[str, str]:
    """Return the fingerprints of settings in JSON; most tests change one key of the same settings."""
    return fingerprints(Config.model_validate(json.loads(settings)))


def moved(base: dict[str, Any], path: str, value: Any) -> set[str]:
    """Return the steps whose fingerprints change with a value of a key.

    Args:
        base: The other settings.
        path: The dotted key.
        value: Its value.
    """
    for prefix, further in CONTEXT.items():
        if path.startswith(prefix):
            base = merged(base, further)
    changed = Config.model_validate(merged(base, nested(path, value)))
    before, after = fingerprints_of_base(json.dumps(base)), fingerprints(changed)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_every_operational_key_is_in_the_table_with_a_reason() -> None:
    named = {owner for _, owner, operational in KEYS if operational}
    assert named == set(OPERATIONAL_KEYS), "say in the table why the key cannot change a result, or let it count"
    assert set(SHOWN_BY) <= named


@pytest.mark.parametrize("test", sorted(set(SHOWN_BY.values())))
def test_the_tests_of_the_table_exist(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((REPO / file).read_text(encoding="utf-8"))
    assert name in {part.name for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)}


# The options of a job are the same class for all stages.
@pytest.mark.parametrize("path", list({owner: path for path, owner, operational in KEYS if operational}.values()))
def test_an_operational_key_moves_nothing(base: dict[str, Any], path: str) -> None:
    assert moved(base, path, value_for(path)) == set()


@pytest.mark.parametrize("path", [path for path, _, operational in KEYS if not operational])
def test_every_other_key_moves_something(base: dict[str, Any], path: str, tmp_path: Path) -> None:
    if path == "train.deepspeed.config":
        file = tmp_path / "ds.json"
        file.write_text(json.dumps({"fp16": {"loss_scale": 128}}))
        value: Any = str(file)
    elif path == "privacy.forget":
        file = tmp_path / "forget.txt"
        file.write_text("someone\n")
        value = str(file)
    elif path == "ingest.inputs":
        value = [{**base["ingest"]["inputs"][0], "category": "Another"}]
    elif path == "ingest.options":
        columns = {"user_id": "u", "item_id": "i", "text": "t", "timestamp": "s", "rating": "r", "title": "h"}
        items = {"item_id": "i", "title": "t", "description": "d"}
        base = merged(base, {"ingest": {"options": {"reviews": columns, "items": items}}})
        value = {"reviews": {**columns, "text": "other"}, "items": items}
    else:
        value = value_for(path)
    assert moved(base, path, value), "let the key count where it decides, or mark it operational"


@pytest.mark.parametrize(
    ("document", "counts"),
    [
        ({"fp16": {"loss_scale": 128}}, True),
        ({"communication_data_type": "fp16"}, True),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 0.5}}}, True),
        ({"bf16": {"check_grad_overflow": False}}, True),
        ({"zero_optimization": {"reduce_bucket_size": 1000, "overlap_comm": True}}, False),
        ({"wall_clock_breakdown": True, "zero_optimization": {"stage": 2}}, False),
        ({"gradient_clipping": "auto"}, False),
    ],
)
def test_a_deepspeed_file_counts_by_what_in_it_decides(
    base: dict[str, Any], tmp_path: Path, document: dict[str, Any], counts: bool
) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(document))
    changed = moved(base, "train.deepspeed.config", str(file))
    assert bool(changed) == counts
    assert not counts or {"train", "train:contextsft", "nextquill-paper", "evaluate"} <= changed
    other = tmp_path / "moved.json"
    file.rename(other)
    assert (
        moved(merged(base, nested("train.deepspeed.config", str(other))), "train.deepspeed.config", str(other)) == set()
    )
