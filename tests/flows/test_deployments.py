"""What prefect.yaml deploys, without a server, and the forms that the UI makes of the parameters."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from prefect import Flow
from prefect.utilities.schema_tools.validation import validate

from flows.server.deployments import POOLS, find_project, training_limits
from flows.stage import timeout_s
from flows.stage import timeout_variable as variable
from nextquill_core.config import Config, Section
from nextquill_core.registry.promote import METRICS
from storage import UserError
from tasks.gpu_lock import DEFAULT_LIMIT, LIMIT
from tests.conftest import REPO

DEPLOYMENTS = {one["name"]: one for one in yaml.safe_load((REPO / "prefect.yaml").read_text())["deployments"]}
FLOWS = {"pipeline", "ingest", "model", "score", "train", "evaluate", "sweep", "reproduce", "promote"}


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    path, name = deployment["entrypoint"].split(":")
    found = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(found, Flow)
    return found


def form(name: str) -> dict[str, Any]:
    """The parameters' schema, as it goes to the server."""
    return flow_of(DEPLOYMENTS[name]).parameters.model_dump()


def resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a property is, itself, in a list, beside null, or as JSON; None for a value."""
    parts = (
        schema,
        *schema.get("allOf", ()),
        *schema.get("anyOf", ()),
        schema.get("items", {}),
        schema.get("then", {}),
    )
    for part in parts:
        section = definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        if "properties" in section:
            return dict(section)
    return None


def leaves(section: dict[str, Any], definitions: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and schema of every value, those that have no field included."""
    hidden = {name.strip("^$"): schema for name, schema in section.get("patternProperties", {}).items()}
    for name, schema in (section["properties"] | hidden).items():
        inner = resolved(schema, definitions)
        if inner is None:
            yield path + name, schema
        else:
            yield from leaves(inner, definitions, f"{path}{name}.")


def fields(section: type[Section], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every value of the configuration."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if inner:
            yield from fields(inner[0], f"{path}{name}.")
        else:
            yield path + name, field.annotation


def choices(annotation: Any) -> set[Any]:
    """The values of every Literal in a type."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return set[Any]().union(*map(choices, get_args(annotation)))


def enums(schema: Any) -> set[Any]:
    if isinstance(schema, list):
        return set[Any]().union(*map(enums, schema))
    if not isinstance(schema, dict):
        return set()
    own = schema.get("enum", []) + ([schema["const"]] if "const" in schema else [])
    return set(own).union(*(enums(value) for key, value in schema.items() if key not in ("enum", "default")))


def test_every_flow_is_deployed() -> None:
    assert set(DEPLOYMENTS) == FLOWS
    assert {flow_of(one).fn.__module__ for one in DEPLOYMENTS.values()} == {f"flows.{name}" for name in FLOWS}


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_the_parameters_fit_the_flow(name: str) -> None:
    flow_of(DEPLOYMENTS[name]).validate_parameters(DEPLOYMENTS[name]["parameters"])


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_every_field_of_the_form_says_what_it_is(name: str) -> None:
    schema = form(name)
    found = dict(leaves(schema, schema["definitions"]))
    assert len(found) > 50, "the form has the configuration's fields"
    assert [path for path, leaf in found.items() if not leaf.get("description", "").strip()] == []


def test_choices_become_drop_downs() -> None:
    schema = form("pipeline")
    shown = dict(leaves(schema, schema["definitions"]))
    wanted = {path: choices(kind) for path, kind in fields(Config)}
    assert {path for path, values in wanted.items() if len(values) > 1}, "there are choices"
    assert {path for path, values in wanted.items() if not values <= enums(shown[f"config.{path}"])} == set()
    assert enums(form("promote")["properties"]["metric"]) == set(METRICS)


def shown_first(name: str) -> list[str]:
    """The parameters of a flow, then the sections of its configuration, in the order in which the UI shows them."""

    def ordered(properties: dict[str, Any]) -> list[str]:
        return sorted(properties, key=lambda key: properties[key]["position"])

    properties = form(name)["properties"]
    *above, last = ordered(properties)
    assert last in ("config", "configs"), "the short parameters come first"
    config = properties[last].get("items", properties[last])
    return [*above, *ordered(config["properties"])]


def test_a_stage_s_own_settings_come_first() -> None:
    assert shown_first("ingest")[:3] == ["force", "ingest", "privacy"]
    assert shown_first("train")[:3] == ["method", "force", "train"]
    assert shown_first("score")[:3] == ["force", "score", "weights"]
    assert shown_first("sweep")[:3] == ["grid", "parallel", "force"]
    assert shown_first("pipeline") == [
        "force", "ingest", "train", "evaluate",
        "store", "read_store", "seed", "model", "privacy", "prompt", "score", "weights", "slurm", "prices",
    ]  # fmt: skip


def test_other_stages_settings_are_json_and_rare_groups_are_closed() -> None:
    config = form("train")["properties"]["config"]["properties"]
    assert "properties" not in config["ingest"], "the UI then shows JSON"
    assert config["ingest"]["then"] == {"$ref": "#/definitions/IngestConfig"}
    lora = form("train")["definitions"]["TrainConfig"]["properties"]["lora"]
    assert [part.get("type", part.get("$ref")) for part in lora["anyOf"]] == ["null", "#/definitions/LoraSettings"]
    assert lora["default"] is None, "closed until it is opened"
    brief = form("pipeline")["properties"]["config"]["properties"]["train"]
    assert "alpha" in brief["properties"]
    assert "checkpoint_every" not in brief["properties"]


WRONG = {
    "train.alpha": -1, "train.checkpoint_every": 0, "train.launcher": {"kind": "nope"}, "train.lora": {"rank": 4},
    "model.dtype": "int8", "model.tiny": {"steps": 0}, "evaluate.methods": ["nextquil"], "prompt.histories": 3,
    "privacy": {"key_env": ""}, "trian": {},
}  # fmt: skip


@pytest.mark.parametrize("name", ["pipeline", "train", "ingest", "reproduce"])
def test_invalid_parameters_are_refused_whatever_the_form_shows(name: str) -> None:
    schema = form(name)
    for key, value in {"": None, **WRONG}.items():
        parameters = copy.deepcopy(DEPLOYMENTS[name]["parameters"])
        config = parameters["configs"][0] if "configs" in parameters else parameters["config"]
        *sections, last = key.split(".")
        for section in sections:
            config = config.setdefault(section, {})
        config |= {last: value} if key else {}
        errors = validate(parameters, schema)
        assert bool(errors) == bool(key), key


def test_numbers_have_bounds() -> None:
    schema = form("pipeline")
    bounds = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "enum"}
    open_ended = []
    for path, leaf in leaves(schema, schema["definitions"]):
        parts = [part for part in (leaf, *leaf.get("anyOf", ())) if part.get("type") in ("integer", "number")]
        words = any(part.get("type") == "string" for part in leaf.get("anyOf", ()))  # a number or `auto`
        open_ended += [path for part in parts if not words and not bounds & set(part)]
    assert open_ended == []
    assert form("sweep")["properties"]["parallel"]["anyOf"][0]["minimum"] == 1


def test_only_the_pipeline_has_a_schedule_and_it_is_paused() -> None:
    schedules = {name: one["schedules"] for name, one in DEPLOYMENTS.items() if "schedules" in one}
    assert list(schedules) == ["pipeline"]
    (weekly,) = schedules["pipeline"]
    assert (weekly["slug"], weekly["active"], weekly["timezone"]) == ("weekly", False, "Etc/UTC")
    assert weekly["cron"].split()[2:] == ["*", "*", "0"], "once a week"


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_limits_and_tags(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert "nextquill" in deployment["tags"]
    assert deployment["description"]


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_every_flow_has_a_time_limit_where_it_is_deployed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = DEPLOYMENTS[name]["work_pool"]["job_variables"]["env"]
    for stage in FLOWS:  # a pipeline's stages have theirs as well
        monkeypatch.setenv(variable(stage), environment[variable(stage)])
        assert (timeout_s(stage) or 0) >= 24 * 3600


def test_pools_and_the_limit_of_trainings() -> None:
    project = find_project(REPO)
    assert (set(project.pools), project.deployments) == (set(POOLS), FLOWS)
    assert training_limits(project.pools) == [DEFAULT_LIMIT]
    for deployment in DEPLOYMENTS.values():
        pool = deployment["work_pool"]
        named = pool["job_variables"]["env"].get(LIMIT)
        assert ([named] if named else []) == training_limits([pool["name"]])


def test_without_a_word_there_is_no_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(variable("train"), raising=False)
    assert timeout_s("train") is None
    monkeypatch.setenv(variable("train"), "0.5")
    assert timeout_s("train") == 1800.0


@pytest.mark.parametrize("hours", ["soon", "0", "-1", "inf", "nan"])
def test_a_time_limit_is_a_number_of_hours(hours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable("train"), hours)
    with pytest.raises(UserError, match="NEXTQUILL_TRAIN_TIMEOUT_HOURS"):
        timeout_s("train")
