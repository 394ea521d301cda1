"""Names and tags of flow runs: which stage, of which data, and which settings differ from the usual ones.

`run_name` and `run_tags` make them from plain values; `flow_run_name` and `tag_at_start` ask Prefect for these values.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from prefect.client.orchestration import get_client
from prefect.runtime import deployment
from prefect.runtime import flow_run as current

from nextquill_core.config import Config, known_keys, parse_config
from nextquill_core.config.packaged import leaves
from nextquill_core.methods.registry import METHODS
from tasks.ui import tag_run

LONGEST, LONGEST_VALUE, MOST_CHANGES = 80, 24, 3
SYMBOLS = {
    "train.alpha": "α", "weights.delta": "δ", "weights.high": "λ", "weights.low": "ε", "train.learning_rate": "lr",
    "model.name_or_path": "model",
}  # fmt: skip
NEVER_SHOWN = ("store", "read_store", "slurm", "ingest.inputs", "train.method")
"""Where a run is stored and queued does not distinguish runs; categories and the method are in the name already."""
DATA = ("ingest", "privacy")
MODEL = ("model", "prompt", "seed", *DATA)
SCORE = ("score", "weights", *MODEL)
TRAIN = ("train", *SCORE)
EVALUATE = ("evaluate", *TRAIN)
READS = {"ingest": DATA, "model": MODEL, "score": SCORE, "train": TRAIN, "evaluate": EVALUATE}
"""Sections that a stage depends on, its own first; other flows depend on all."""
PIPELINE, COMPARISON = "pipeline", "comparison"
REUSED, MADE = "reused", "made"
GENERATED = re.compile(r"[a-zA-Z]+-[a-zA-Z]+")
"""A name that Prefect generates, such as `sleek-conure`; what a person writes usually has a space or a digit."""


def flow_run_name(module: str) -> str:
    """Return the name of the flow run that is about to begin; a name that a person typed into a form stays.

    Args:
        module: The flow's module in `flows`.
    """
    given = current.name or ""
    if typed_by_a_person(given):
        return given
    return run_name(module, _plain(current.parameters), _changed(current.parameters))


def tag_at_start(module: str) -> None:
    """Tag the current flow run with what it is about.

    Args:
        module: The flow's module in `flows`.
    """
    tag_run(*run_tags(module, _plain(current.parameters)))


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a flow with each configuration as plain values, defaults included."""
    values = dict(parameters)
    if "config" in values:
        values["config"] = _config(values["config"]).model_dump(mode="json")
    if "configs" in values:
        values["configs"] = [_config(one).model_dump(mode="json") for one in values["configs"]]
    if "studies" in values:
        values["configs"] = [_base(one).model_dump(mode="json") for one in values.pop("studies")]
    return values


def _base(study: Any) -> Config:
    """Return the base configuration of a study, which is the parameter of a flow."""
    from nextquill_core.studies.study.spec import StudyConfig

    spec = study if isinstance(study, StudyConfig) else StudyConfig.model_validate(study)
    return spec.config({}, methods=spec.rows, split="test", seed=spec.seeds[0], decoding=spec.decoding)


def _config(values: Any) -> Config:
    return values if isinstance(values, Config) else parse_config(values, "the flow's parameters")


def _changed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were laid over a configuration file, or differ from those of the deployment."""
    if "config" not in parameters:
        return {}
    config = _config(parameters["config"])
    values = config.model_dump(mode="json")
    if config.overridden:
        return picked(values, config.overridden)
    usual = _deployed(str(deployment.id)) if deployment.id else None
    return differences(values, usual) if usual else {}


@cache
def _deployed(identity: str) -> dict[str, Any] | None:
    """Return the configuration among a deployment's own parameters, or None where it cannot be read."""
    try:
        with get_client(sync_client=True) as client:
            found = client.read_deployment(identity).parameters.get("config")
        return _config(found).model_dump(mode="json") if found is not None else None
    except Exception as error:
        logging.getLogger(__name__).warning("deployment %s was not read: %s", identity, error)
        return None


def run_name(flow: str, parameters: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """Return the name of a flow run, such as `train nextquill Digital_Music α=0.1`.

    Args:
        flow: The flow's module in `flows`.
        parameters: The flow's parameters as plain values.
        changed: Values by dotted key that differ from the usual ones; those that the flow does not depend on are left
            out.
    """
    words = [flow, counted(_trained(flow, parameters)), counted(categories(parameters))]
    shown = [f"{_short(key)}={_value(value)}" for key, value in _relevant(flow, changed)]
    shown += [f"{_short(key)}={_value(values)}" for key, values in (parameters.get("grid") or {}).items()]
    words += shown[:MOST_CHANGES] + ([f"+{len(shown) - MOST_CHANGES}"] if len(shown) > MOST_CHANGES else [])
    name = " ".join(filter(None, words))
    return name if len(name) <= LONGEST else name[: LONGEST - 1].rstrip() + "…"


def run_tags(flow: str, parameters: Mapping[str, Any]) -> list[str]:
    """Return the tags by which the UI filters runs: what kind of run it is, its categories and its method."""
    kinds = {PIPELINE: PIPELINE} | {stage: f"stage:{stage}" for stage in READS}
    tags = [kinds.get(flow, COMPARISON), *(f"category:{category}" for category in categories(parameters))]
    return tags + [f"method:{method}" for method in _trained(flow, parameters)]


def differences(config: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `config` by dotted key that are different in `usual`, in the order of `config`."""
    before = dict(leaves(usual))
    return {key: value for key, value in leaves(config) if key not in before or before[key] != value}


def picked(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the values of `config` at and below these dotted keys."""
    return {key: value for key, value in leaves(config) if _below(key, keys)}


def categories(parameters: Mapping[str, Any]) -> list[str]:
    """Return the categories of a flow run's data, each once."""
    configs = parameters["configs"] if "configs" in parameters else [parameters["config"]]
    return list(dict.fromkeys(raw["category"] for config in configs for raw in config["ingest"]["inputs"]))


def counted(names: Sequence[str]) -> str:
    """Return the first of several names and how many more there are: `Books +2`."""
    return names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "") if names else ""


def typed_by_a_person(name: str) -> bool:
    """Return whether a flow run has a name that Prefect did not generate."""
    return bool(name) and not GENERATED.fullmatch(name)


def _trained(flow: str, parameters: Mapping[str, Any]) -> list[str]:
    """Return the methods that a run trains or promotes, the main one first."""
    if flow not in ("train", "promote"):
        return []
    if parameters.get("method"):
        return [parameters["method"]]
    config = parameters["config"]
    others = config["evaluate"]["methods"] if flow == "train" else ()
    adapters = [METHODS[name].trained_as for name in others if name in METHODS]
    trains = [name for name in adapters if METHODS[name].training]
    return list(dict.fromkeys([config["train"]["method"], *trains]))


def _relevant(flow: str, changed: Mapping[str, Any]) -> list[tuple[str, Any]]:
    reads = READS.get(flow)
    found = [(key, value) for key, value in changed.items() if not _below(key, NEVER_SHOWN)]
    if reads is None:
        return found
    found = [(key, value) for key, value in found if _below(key, reads)]
    return sorted(found, key=lambda change: reads.index(change[0].partition(".")[0]))


def _below(key: str, tops: Sequence[str]) -> bool:
    return any(key == top or key.startswith(f"{top}.") for top in tops)


@cache
def _ambiguous() -> frozenset[str]:
    """Return the last parts that several keys share, such as `alpha`."""
    counts = Counter(key.rpartition(".")[2] for key in known_keys())
    return frozenset(last for last, count in counts.items() if count > 1)


def _short(key: str) -> str:
    last = key.rpartition(".")[2]
    return SYMBOLS.get(key) or (key if last in _ambiguous() else last)


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = ",".join(map(_value, value))
    text = str(value).rstrip("/").rpartition("/")[2]
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
