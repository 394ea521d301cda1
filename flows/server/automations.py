"""Definitions of our automations on a Prefect server: alerts to a webhook, and the chain from stage to stage.

An automation is identified by its name, by which it is found again, changed and removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any, get_args
from uuid import UUID

from prefect.events.actions import RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.promote import ACCEPTED, REJECTED
from flows.results import REUSED
from flows.server.events import COMPLETE, FINISHED, QUALITY_FELL, STAGE
from nextquill_core.config import StageName

TAG = "nextquill"
"""Tag of every deployment in prefect.yaml and of its flow runs; the stages inside a pipeline's run do not have it."""
STAGES: tuple[StageName, ...] = get_args(StageName)
LINKS = tuple(pairwise(STAGES))
ALERTS = tuple(f"nextquill: {what}" for what in ("failed", "late", "long", "silent", "quality fell"))
CHAIN = tuple(f"nextquill: {first} starts {then}" for first, then in LINKS)

ENDED = {"Completed", "Failed", "Crashed", "TimedOut", "Cancelled", REUSED, ACCEPTED, REJECTED}
"""Names of the final states of our flow runs."""
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENT_MINUTES = 10.0
"""Minutes without a heartbeat after which a run is reported; Prefect's default is a heartbeat every 180 seconds."""
RUNS: dict[str, str | list[str]] = {"prefect.resource.id": "prefect.flow-run.*"}
TAGGED: dict[str, str | list[str]] = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}


class Body(StrEnum):
    """Format of the request that the receiver gets."""

    json = "json"
    slack = "slack"
    teams = "teams"


@dataclass(frozen=True)
class Alerting:
    """Settings of the alerts.

    Attributes:
        body: Format of the request.
        late_minutes: Minutes that a run may wait after it was due or was given to a worker.
        long_minutes: Minutes that a run may take.
        details: Whether to send the run's last message too; it may quote data.
    """

    body: Body = Body.json
    late_minutes: float = 10.0
    long_minutes: float = 1440.0
    details: bool = False


def alerts(webhook: UUID, settings: Alerting) -> list[AutomationCore]:
    """Return the alerts.

    With SQLite, Prefect sometimes loses an event under load. Alerts about an absent event may then be false, so they
    say if the run has begun or ended meanwhile. Events that follow a lost one wait for it for fifteen minutes.

    Args:
        webhook: Id of the block that sends the requests.
        settings: When alerts are sent, and in which format.
    """
    failed, late, long, silent, fell = ALERTS
    run = "flow.name ~ ' (' ~ flow_run.name ~ ')'"
    begun = "(' (it has begun meanwhile)' if flow_run.start_time else '')"
    ended = "(' (it has ended meanwhile)' if flow_run.end_time else '')"
    late_for, long_for, silent_for = (
        f"{minutes:,g} minutes" for minutes in (settings.late_minutes, settings.long_minutes, SILENT_MINUTES)
    )
    quality = {key: f"event.payload.{key}" for key in ("method", "value", "against", "low", "high")}
    return [
        _alert(
            failed, f"a flow run tagged {TAG} failed or crashed",
            EventTrigger(
                expect={"prefect.flow-run.*"},
                posture=Posture.Reactive,
                match=RUNS | {"prefect.state-type": ["FAILED", "CRASHED"]},
                match_related=TAGGED,
            ),
            _payload(settings, "failed", f"{run} ~ ' ' ~ (flow_run.state.name | lower)"), webhook,
        ),
        _alert(
            late, f"a flow run tagged {TAG} has not started {late_for} after it was due, or was handed to a worker",
            _absence(
                after={"prefect.flow-run.Late", "prefect.flow-run.Pending"},
                expect=_states({"Running", "AwaitingConcurrencySlot"} | ENDED) | {HEARTBEAT},
                minutes=settings.late_minutes,
            ),
            _payload(settings, "late", f"{run} ~ ' is late: it should have started {late_for} ago' ~ {begun}"), webhook,
        ),
        _alert(
            long, f"a flow run tagged {TAG} is still running {long_for} after it started",
            _absence(after=_states({"Running"}), expect=_states(ENDED), minutes=settings.long_minutes),
            _payload(settings, "long", f"{run} ~ ' is still running after {long_for}' ~ {ended}"), webhook,
        ),
        _alert(
            silent, f"a flow run tagged {TAG} has given no sign of life for {silent_for}",
            _absence(after={HEARTBEAT}, expect={HEARTBEAT} | _states(ENDED), minutes=SILENT_MINUTES),
            _payload(settings, "silent", f"{run} ~ ' has given no sign of life for {silent_for}' ~ {ended}"), webhook,
        ),
        _alert(
            fell, "a trained adapter lies below the accepted one's interval on val",
            EventTrigger(expect={QUALITY_FELL}, posture=Posture.Reactive),
            _payload(settings, "quality", "event.payload.line", quality), webhook,
        ),
    ]  # fmt: skip


def chain(deployments: Mapping[str, UUID]) -> list[AutomationCore]:
    """Return the automations by which a run of one stage's deployment starts the next one's, on the same configuration.

    Args:
        deployments: Ids of the deployments by stage.
    """
    config = "flow_run.parameters.config"
    return [
        _automation(
            name=name,
            description=f"a run of the {first} deployment that finished starts the {then} deployment",
            trigger=EventTrigger(
                expect={FINISHED},
                posture=Posture.Reactive,
                match={STAGE: first, COMPLETE: "true"},
                # Stages inside a pipeline's run or on the command line belong to no deployment.
                match_related={
                    "prefect.resource.role": "deployment",
                    "prefect.resource.id": f"prefect.deployment.{deployments[first]}",
                },
            ),
            actions=[
                RunDeployment(
                    source="selected",
                    job_variables=None,
                    deployment_id=deployments[then],
                    parameters={"config": _value(config), "force": _value("flow_run.parameters.force or false")},
                )
            ],
        )
        for name, (first, then) in zip(CHAIN, LINKS, strict=True)
    ]


def same(one: AutomationCore, other: AutomationCore) -> bool:
    """Return whether two automations are equal apart from their ids."""
    return _automation(**one.model_dump()) == _automation(**other.model_dump())


def switched_off(automation: AutomationCore) -> AutomationCore:
    """Return the automation, switched off."""
    return _automation(**automation.model_dump() | {"enabled": False})


def _automation(**fields: Any) -> AutomationCore:
    """Return an automation with every field that an update must send, in the form in which the server returns it."""
    plain = AutomationCore.model_validate(fields).model_dump(mode="json", exclude={"owner_resource"})
    return AutomationCore.model_validate(plain | {"tags": [TAG]})


def _alert(name: str, description: str, trigger: EventTrigger, payload: str, webhook: UUID) -> AutomationCore:
    # Prefect's call-webhook is not used: all its calls share one connection pool, which the first call to end closes
    # for the others, and it ignores the answer.
    action = SendNotification(block_document_id=webhook, subject="NextQuill", body=payload)
    return _automation(name=name, description=description, trigger=trigger, actions=[action])


def _states(names: set[str]) -> set[str]:
    return {f"prefect.flow-run.{name}" for name in names}


def _absence(*, after: set[str], expect: set[str], minutes: float) -> EventTrigger:
    """Return the trigger that fires if no expected event of a flow run follows another event in time.

    Args:
        after: Events that start the waiting.
        expect: Events of which one must follow.
        minutes: Minutes within which it must follow.
    """
    return EventTrigger(
        after=after,
        expect=expect,
        match=RUNS,
        match_related=TAGGED,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        within=timedelta(minutes=minutes),
    )


def _value(expression: str) -> dict[str, Any]:
    """Return a flow parameter whose value is that of a Jinja expression, of any type."""
    template = f"{{{{ ({expression}) | tojson }}}}"
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}


def _payload(settings: Alerting, what: str, line: str, more: Mapping[str, str] | None = None) -> str:
    """Return the template of a request's body: JSON whose values are Jinja expressions.

    Args:
        settings: Format and details.
        what: Kind of the alert.
        line: Jinja expression of one line of text about it.
        more: Jinja expressions of further values by key, for programs.
    """
    url = "((flow_run | ui_url) or '' if flow_run else '')"
    message = "(flow_run.state.message | default('', true) | truncate(300))"
    line = f"'NextQuill: ' ~ {line}"
    if settings.details:
        line = f"{line} ~ (': ' ~ {message} if {message} else '')"
    if settings.body is Body.slack:  # in which these characters begin links, mentions and entities
        line = f"({line}) | replace('&', '&amp;') | replace('<', '&lt;') | replace('>', '&gt;')"
    text = f"({line}) ~ ' ' ~ {url}"
    if settings.body is Body.slack:
        return _json({"text": _Expression(text)})
    if settings.body is Body.teams:
        block = {"type": "TextBlock", "text": _Expression(text), "wrap": True}
        card = {
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.4",
            "body": [block],
        }
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
        return _json({"type": "message", "attachments": [attachment]})
    fields = {
        "flow": "flow.name",
        "deployment": "deployment.name",
        "run": "flow_run.name",
        "state": "flow_run.state.name",
        "at": "event.occurred.isoformat()",
        "started": "(flow_run.start_time.isoformat() if flow_run.start_time else none)",
        "ended": "(flow_run.end_time.isoformat() if flow_run.end_time else none)",
        "url": url,
        **({"message": message} if settings.details else {}),
        **(more or {}),
    }
    return _json({"what": what, "text": _Expression(text)} | {key: _Expression(of) for key, of in fields.items()})


class _Expression(str):
    """A Jinja expression among the values of a template."""


def _json(value: Any) -> str:
    """Return JSON in which expressions are templates of JSON values; an expression without a value becomes null."""
    if isinstance(value, _Expression):
        return f"{{{{ (({value}) | default(none)) | tojson }}}}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)}: {_json(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value)
