"""The name and the tags of a flow run in Prefect (flows/names.py says what they are)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from prefect.client.orchestration import get_client
from prefect.runtime import deployment, flow_run

from flows import names
from nextquill_core.config import Config, parse_config
from tasks.tags import tag_run


def run_name(module: str) -> str:
    """Return the name of the flow run that is about to begin; one that a person typed into a form stays.

    Args:
        module: The flow's module in `flows`.
    """
    given = flow_run.name or ""
    if names.typed_by_a_person(given):
        return given
    return names.run_name(module, plain(flow_run.parameters), _changed(flow_run.parameters))


def tag_at_start(module: str) -> None:
    """Tag the current flow run with what it is about.

    Args:
        module: The flow's module in `flows`.
    """
    tag_run(*names.run_tags(module, plain(flow_run.parameters)))


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flow's parameters with each configuration as plain values, defaults included."""
    values = dict(parameters)
    if "config" in values:
        values["config"] = _config(values["config"]).model_dump(mode="json")
    if "configs" in values:
        values["configs"] = [_config(one).model_dump(mode="json") for one in values["configs"]]
    return values


def _config(values: Any) -> Config:
    return values if isinstance(values, Config) else parse_config(values, "the flow's parameters")


def _changed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that are unusual: other than its deployment's, or laid over a configuration file."""
    if "config" not in parameters:
        return {}
    config = _config(parameters["config"])
    values = config.model_dump(mode="json")
    if config.laid_over:
        return names.picked(values, config.laid_over)
    usual = _deployed(str(deployment.id)) if deployment.id else None
    return names.differences(values, usual) if usual else {}


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
