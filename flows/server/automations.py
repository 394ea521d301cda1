"""The automations that a Prefect server is given: alerts to a webhook, and the chain from stage to stage.

Each is told by its name, so that it can be found again, changed and taken away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any
from uuid import UUID

from prefect.events.actions import RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.promote import ACCEPTED, REJECTED
from flows.results import REUSED
from flows.server.events import FELL, FINISHED, STAGE, WHOLE

TAG = "nextquill"
"""Of every deployment in prefect.yaml, and so of their flow runs; those of the stages inside a pipeline have none."""
STAGES = ("ingest", "model", "score", "train", "evaluate")
LINKS = tuple(pairwise(STAGES))
ALERTS = tuple(f"nextquill: {what}" for what in ("failed", "late", "long", "silent", "quality fell"))
CHAIN = tuple(f"nextquill: {first} starts {then}" for first, then in LINKS)

ENDED = {"Completed", "Failed", "Crashed", "TimedOut", "Cancelled", REUSED, ACCEPTED, REJECTED}
"""Names of the states in which a flow run of ours is over."""
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENT_MINUTES = 10.0  # of a run whose heart beats every three, unless Prefect is told otherwise
RUNS: dict[str, str | list[str]] = {"prefect.resource.id": "prefect.flow-run.*"}
TAGGED: dict[str, str | list[str]] = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}


class Body(StrEnum):
    """What the receiver understands."""

    json = "json"
    slack = "slack"
    teams = "teams"


@dataclass(frozen=True)
class Alerting:
    """How alerts are to be.

    Attributes:
        body: In whose words.
        late_minutes: How long a run may wait after it was due, or was handed to a worker.
        long_minutes: How long one may run.
        details: Whether the run's last message goes along; it may quote data.
    """

    body: Body = Body.json
    late_minutes: float = 10.0
    long_minutes: float = 1440.0
    details: bool = False


def alerts(webhook: UUID, how: Alerting) -> list[AutomationCore]:
    """The alerts, to the webhook of a block.

    SQLite makes Prefect lose an event now and then when there is much to write. What has come then counts as absent, so
    an alert about what did not come says if it has come meanwhile; and what follows a lost event waits for it, for
    fifteen minutes.
    """
    failed, late, long, silent, fell = ALERTS
    run = "flow.name ~ ' (' ~ flow_run.name ~ ')'"
    begun = "(' (it has begun meanwhile)' if flow_run.start_time else '')"
    ended = "(' (it has ended meanwhile)' if flow_run.end_time else '')"
    late_for, long_for, silent_for = (
        f"{minutes:,g} minutes" for minutes in (how.late_minutes, how.long_minutes, SILENT_MINUTES)
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
            _payload(how, "failed", f"{run} ~ ' ' ~ (flow_run.state.name | lower)"), webhook,
        ),
        _alert(
            late, f"a flow run tagged {TAG} has not started {late_for} after it was due, or was handed to a worker",
            _absence(
                after={"prefect.flow-run.Late", "prefect.flow-run.Pending"},
                expect=_states({"Running", "AwaitingConcurrencySlot"} | ENDED) | {HEARTBEAT},
                minutes=how.late_minutes,
            ),
            _payload(how, "late", f"{run} ~ ' is late: it should have started {late_for} ago' ~ {begun}"), webhook,
        ),
        _alert(
            long, f"a flow run tagged {TAG} is still running {long_for} after it started",
            _absence(after=_states({"Running"}), expect=_states(ENDED), minutes=how.long_minutes),
            _payload(how, "long", f"{run} ~ ' is still running after {long_for}' ~ {ended}"), webhook,
        ),
        _alert(
            silent, f"a flow run tagged {TAG} has given no sign of life for {silent_for}",
            _absence(after={HEARTBEAT}, expect={HEARTBEAT} | _states(ENDED), minutes=SILENT_MINUTES),
            _payload(how, "silent", f"{run} ~ ' has given no sign of life for {silent_for}' ~ {ended}"), webhook,
        ),
        _alert(
            fell, "a trained adapter lies below the accepted one's interval on val",
            EventTrigger(expect={FELL}, posture=Posture.Reactive),
            _payload(how, "quality", "event.payload.line", quality), webhook,
        ),
    ]  # fmt: skip


def chain(deployments: Mapping[str, UUID]) -> list[AutomationCore]:
    """A run of each stage's own deployment starts the next stage's, with the same configuration.

    Args:
        deployments: By stage.
    """
    config = "flow_run.parameters.config"
    return [
        _whole(
            name=name,
            description=f"a run of the {first} deployment that finished starts the {then} deployment",
            trigger=EventTrigger(
                expect={FINISHED},
                posture=Posture.Reactive,
                match={STAGE: first, WHOLE: "true"},
                # A stage inside a pipeline's run, or of the command line, is nobody's deployment.
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
    """Whether two automations are the same but for their ids."""
    return _whole(**one.model_dump()) == _whole(**other.model_dump())


def stopped(automation: AutomationCore) -> AutomationCore:
    """The same automation, switched off."""
    return _whole(**automation.model_dump() | {"enabled": False})


def _whole(**fields: Any) -> AutomationCore:
    """An automation with every field set that an update has to send, as it comes back from the server."""
    plain = AutomationCore.model_validate(fields).model_dump(mode="json", exclude={"owner_resource"})
    return AutomationCore.model_validate(plain | {"tags": [TAG]})


def _alert(name: str, description: str, trigger: EventTrigger, payload: str, webhook: UUID) -> AutomationCore:
    # Not Prefect's call-webhook: all its calls share one pool of connections, and the call that ends first closes those
    # of the others. Nor does it look at the answer.
    action = SendNotification(block_document_id=webhook, subject="NextQuill", body=payload)
    return _whole(name=name, description=description, trigger=trigger, actions=[action])


def _states(names: set[str]) -> set[str]:
    return {f"prefect.flow-run.{name}" for name in names}


def _absence(*, after: set[str], expect: set[str], minutes: float) -> EventTrigger:
    """That none of some events of a flow run came within so long after another."""
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
    """A parameter that is what a Jinja expression gives, of whatever type."""
    template = f"{{{{ ({expression}) | tojson }}}}"
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}


def _payload(how: Alerting, what: str, says: str, more: Mapping[str, str] | None = None) -> str:
    """The template of a request's body: JSON with Jinja expressions for values, whatever they hold.

    Args:
        how: The words and the details.
        what: Happened.
        says: The expression of one line about it.
        more: Further expressions by key, for programs.
    """
    url = "((flow_run | ui_url) or '' if flow_run else '')"
    message = "(flow_run.state.message | default('', true) | truncate(300))"
    line = f"'NextQuill: ' ~ {says}"
    if how.details:
        line = f"{line} ~ (': ' ~ {message} if {message} else '')"
    if how.body is Body.slack:  # where these three signs begin links, mentions and entities
        line = f"({line}) | replace('&', '&amp;') | replace('<', '&lt;') | replace('>', '&gt;')"
    text = f"({line}) ~ ' ' ~ {url}"
    if how.body is Body.slack:
        return _json({"text": _Expression(text)})
    if how.body is Body.teams:
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
        **({"message": message} if how.details else {}),
        **(more or {}),
    }
    return _json({"what": what, "text": _Expression(text)} | {key: _Expression(of) for key, of in fields.items()})


class _Expression(str):
    """A Jinja expression among the values of a template."""


def _json(value: Any) -> str:
    """JSON in which expressions stand as templates of JSON; what an expression does not find becomes null."""
    if isinstance(value, _Expression):
        return f"{{{{ (({value}) | default(none)) | tojson }}}}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)}: {_json(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value)
