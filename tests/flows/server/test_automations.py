"""Definitions of alerts: which events they wait for, and the requests that they send; no server is needed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.server.events.actions import JinjaTemplateAction
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.utilities.user_templates import render_user_template_sync

from flows.promote import ACCEPTED, REJECTED
from flows.results import REUSED
from flows.server.automations import Alerting, Body, alerts

AWKWARD = 'Movies & "TV" <b>'


def test_alerts_wait_for_the_states_of_our_flows() -> None:
    """A run that ended in a state with another name would be reported as still running."""

    def event(name: str, kind: str, tag: str = "nextquill") -> ReceivedEvent:
        resource = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}", "prefect.state-type": kind}
        related = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}]
        return ReceivedEvent(
            occurred=datetime.now(UTC), event=f"prefect.flow-run.{name}", resource=resource, related=related, id=uuid4()
        )

    settings = Alerting(late_minutes=7, long_minutes=70)
    failed, late, long, silent, _ = (
        EventTrigger.model_validate(one.trigger.model_dump(mode="json")) for one in alerts(uuid4(), settings)
    )
    assert failed.covers(event("TimedOut", "FAILED"))
    assert failed.covers(event("Crashed", "CRASHED"))
    assert not failed.covers(event("Completed", "COMPLETED"))
    assert not failed.covers(event("Failed", "FAILED", tag="other"))
    endings = ["Completed", "Failed", "Crashed", "Cancelled", "TimedOut", REUSED, ACCEPTED, REJECTED]
    for trigger, begins, ends, continues in (
        (late, ["Late", "Pending"], [*endings, "Running", "heartbeat", "AwaitingConcurrencySlot"], []),
        (long, ["Running"], endings, ["heartbeat"]),
        (silent, ["heartbeat"], [*endings, "heartbeat"], []),
    ):
        assert all(trigger.starts_after(f"prefect.flow-run.{name}") for name in begins)
        assert all(trigger.expects(f"prefect.flow-run.{name}") for name in ends)
        assert not any(trigger.expects(f"prefect.flow-run.{name}") for name in continues)
        assert all(trigger.covers(event(name, "ANY")) for name in begins + ends)
        assert not trigger.covers(event(begins[0], "ANY", tag="other"))
        assert trigger.for_each == {"prefect.resource.id"}, "each run by itself"
    assert [one.within for one in (late, long, silent)] == [timedelta(minutes=of) for of in (7, 70, 10)]


@pytest.mark.parametrize("body", ["json", "slack", "teams"])
def test_bodies_are_json_whatever_values_they_hold(body: str) -> None:
    JinjaTemplateAction._register_filters_if_needed()
    state = SimpleNamespace(name="Failed", message='two\nlines "quoted" {{ x }}')
    run = SimpleNamespace(name=AWKWARD, state=state, start_time=datetime(2030, 1, 1, tzinfo=UTC), end_time=None)
    event = SimpleNamespace(occurred=datetime(2030, 1, 2, tzinfo=UTC), payload={"line": "quality fell", "value": None})
    context = {"flow": SimpleNamespace(name="train"), "flow_run": run, "deployment": None, "event": event}
    for one in alerts(uuid4(), Alerting(body=Body(body), details=True)):
        for flow_run in (run, None):
            rendered = json.loads(render_user_template_sync(one.actions[0].body, context | {"flow_run": flow_run}))
            if body == "teams":
                card = rendered["attachments"][0]["content"]
                text = card["body"][0]["text"]
                assert (rendered["type"], card["type"]) == ("message", "AdaptiveCard")
            else:
                text = rendered["text"]
            assert text.startswith("NextQuill: ")
            if flow_run and "failed" in one.name:
                shown = 'Movies &amp; "TV" &lt;b&gt;' if body == "slack" else AWKWARD
                assert text.rstrip() == f'NextQuill: train ({shown}) failed: two\nlines "quoted" {{{{ x }}}}'
            if body == "slack":
                assert set(rendered) == {"text"}
            if flow_run and "late" in one.name:
                assert "it has begun meanwhile" in text
            assert "it has ended meanwhile" not in text
