"""Alerts and the chain of stages on a real Prefect server, with a receiver of the test's own.

Everything is started at once, for Prefect waits 10 s at least for what does not come.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from uuid import UUID, uuid4

import pytest

from flows.cli.alerts import BLOCK, alerts
from flows.server.events import stage_finished
from nextquill_core.errors import UserError
from nextquill_core.registry.promote import decide
from tests.conftest import REPO
from tests.flows.conftest import Server
from tests.nextquill_core.registry.test_promote import METHOD, ingested, world  # noqa: F401 (fixtures)
from tests.nextquill_core.registry.test_quality_alarm import OTHER, measured, settings, trained
from tests.world import small_settings

pytestmark = [pytest.mark.flow, pytest.mark.timeout(600)]

STAGES = ("ingest", "model", "score", "train", "evaluate")
WITHIN = "0.2"  # minutes
PATIENCE_S = 90.0
AWKWARD = 'Movies & "TV" <b>'


@dataclass
class Standing:
    """What the module has started, and what the receiver has got."""

    server: Server
    hook: str
    printed: list[str]
    got: list[dict[str, Any]]
    deployments: dict[str, str]
    config: dict[str, Any]
    runs: dict[str, str] = field(default_factory=dict)
    processes: list[Popen[str]] = field(default_factory=list)

    def start(self, deployment: str, config: dict[str, Any]) -> str:
        """A run that is being done; returns its id."""
        run = begin(self.server, self.deployments[deployment], config)
        self.processes.append(execute(self.server, run))
        return run

    def alert(self, what: str, run: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The alert of this kind about a run, once it is there."""

        def look() -> dict[str, Any] | None:
            return next((one for one in self.got if one["what"] == what and run in one["url"]), None)

        return waited(look, patience_s)

    def set(self, **options: Any) -> list[str]:
        return command(self.server, **options)

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        which = {"deployments": {"id": {"any_": [self.deployments[deployment]]}}}
        found: list[dict[str, Any]] = post(self.server, "/flow_runs/filter", json.dumps(which))
        return found

    def automations(self) -> dict[str, tuple[str, str, bool]]:
        found = post(self.server, "/automations/filter")
        return {one["name"]: (one["id"], one["updated"], one["enabled"]) for one in found}


def waited(look: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + patience_s
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return found


def post(server: Server, path: str, body: str = "{}") -> Any:
    """As `Server.post`, asking again where SQLite is busy, as Prefect's own client does."""
    for _ in range(20):
        try:
            return server.post(path, body)
        except HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(0.5)
    return server.post(path, body)


def command(server: Server, **options: Any) -> list[str]:
    """`nextquill alerts` in this process: its lines."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    printed = io.StringIO()
    with temporary_settings({PREFECT_API_URL: server.api}), redirect_stdout(printed):
        alerts(**options)
    return printed.getvalue().splitlines()


def deploy(server: Server, flow: str, entrypoint: str) -> str:
    """What `prefect deploy` does, without its seconds."""
    there = post(server, "/flows/", json.dumps({"name": flow}))
    deployment = {
        "name": flow,
        "flow_id": there["id"],
        "entrypoint": entrypoint,
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(REPO)}}],
        "tags": ["nextquill"],
        "enforce_parameter_schema": False,
    }
    return str(post(server, "/deployments/", json.dumps(deployment))["id"])


def forget(server: Server, deployments: Iterable[str]) -> None:
    """Remove deployments, and with them their runs that wait."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.api}), get_client(sync_client=True) as client:
        for deployment in deployments:
            client.delete_deployment(UUID(deployment))


def begin(server: Server, deployment: str, config: Any = None, late_s: float = 0) -> str:
    """A scheduled run of a deployment."""
    due = datetime.now(UTC) - timedelta(seconds=late_s)
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
    asked = {"state": state, "parameters": {"config": config} if config else {}}
    return str(post(server, f"/deployments/{deployment}/create_flow_run", json.dumps(asked))["id"])


def move(server: Server, run: str, state: str) -> None:
    asked = {"state": {"type": state.upper(), "name": state}, "force": True}
    post(server, f"/flow_runs/{run}/set_state", json.dumps(asked))


def execute(server: Server, run: str) -> Popen[str]:
    """Do what a worker does with a run."""
    move(server, run, "Pending")
    return replace(server, environment=server.environment | {"PREFECT__FLOW_RUN_ID": run}).start("prefect.engine")


def absent(config: dict[str, Any]) -> dict[str, Any]:
    """The same with raw files that are not there."""
    inputs = [{"category": AWKWARD, "reviews": "absent.jsonl", "items": "absent.jsonl"}]
    return config | {"ingest": config["ingest"] | {"inputs": inputs}}


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/s3cret", got
    listening.shutdown()


@pytest.fixture(scope="module")
def standing(
    server: Server,
    receiver: tuple[str, list[dict[str, Any]]],
    small_world: Path,
    world: Path,  # noqa: F811
    ingested: Path,  # noqa: F811
    tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Standing]:
    hook, got = receiver
    decide(measured(trained(settings(world, ingested, tiny_folder), 2.0), lambda _: -2.0), METHOD, METHOD)
    fallen = settings(world, ingested, tiny_folder, **OTHER)
    trained(fallen, 2.5)
    folder = tmp_path_factory.mktemp("chained")
    good = small_settings(small_world, folder / "store")

    deployments = {stage: deploy(server, stage, f"flows/{stage}.py:{stage}") for stage in STAGES}
    deployments["outer"] = deploy(server, "outer", "tests/flows/watched.py:outer")
    printed = command(server, webhook=hook, allow_private=True, late=float(WITHIN), long=float(WITHIN), chain=True)
    told = Standing(server, hook, printed, got, deployments, good)
    try:
        told.runs["late"] = begin(server, deployments["evaluate"], late_s=60)
        told.runs["long"] = begin(server, deployments["evaluate"])
        told.runs["in time"] = begin(server, deployments["evaluate"])
        for run, states in {"long": ["Running"], "in time": ["Pending", "Running", "Completed"]}.items():
            for state in states:
                move(server, told.runs[run], state)
        told.runs["good"] = told.start("ingest", good)
        told.runs["bad"] = told.start("ingest", absent(good))
        told.runs["outer"] = told.start("outer", fallen.model_dump(mode="json"))
        yield told
    finally:
        for process in told.processes:
            process.kill()
            process.wait()
        command(server, remove=True)
        forget(server, deployments.values())


def test_setting_twice_changes_nothing(standing: Standing) -> None:
    lines = {line.split("  ")[0]: line for line in standing.printed}
    assert set(lines) == {"created"}
    assert len(standing.printed) == 1 + 5 + 4, "the webhook, alerts, and links"
    assert standing.printed[0].split() == ["created", "set", "webhook", "127.0.0.1"]
    assert "still running 0.2 minutes after it started" in "\n".join(standing.printed)
    before = standing.automations()
    again = standing.set(webhook=standing.hook, allow_private=True, late=float(WITHIN), long=float(WITHIN), chain=True)
    assert {line.split("  ")[0] for line in again} == {"unchanged"}
    assert standing.automations() == before


def test_another_address_changes_the_block_alone(standing: Standing) -> None:
    before = standing.automations()
    there = f"{standing.hook}-too"
    moved = standing.set(webhook=there, allow_private=True, late=float(WITHIN), long=float(WITHIN))
    assert moved[0].split() == ["updated", "set", "webhook", "127.0.0.1"]
    assert not any(line.startswith("updated") for line in moved[1:])
    assert standing.automations() == before
    blocks = post(standing.server, "/block_documents/filter")
    (kept,) = [block for block in blocks if block["name"] == BLOCK]
    assert "s3cret" not in json.dumps(kept) + "".join(moved), "the address is a secret"


def test_a_failed_run_is_told(standing: Standing) -> None:
    try:
        run = standing.runs["bad"]
        got = standing.alert("failed", run, patience_s=15)
    except AssertionError:  # a busy SQLite lost the event before it, for which the server waits (docs/how-to/alerts.md)
        run = standing.start("ingest", absent(standing.config))
        got = standing.alert("failed", run)
    assert (got["flow"], got["deployment"], got["run"], got["state"]) == (
        "ingest",
        "ingest",
        f"ingest {AWKWARD}",
        "Failed",
    )
    assert got["text"] == f"NextQuill: ingest (ingest {AWKWARD}) failed {got['url']}"
    assert got["url"].endswith(f"/runs/flow-run/{run}")
    assert datetime.fromisoformat(got["at"]) <= datetime.now(UTC)
    assert "message" not in got, "it may quote data"


def test_a_fall_of_quality_is_told(standing: Standing) -> None:
    got = standing.alert("quality", standing.runs["outer"])
    assert (got["method"], got["value"], got["against"], got["low"]) == (METHOD, -2.5, -2.0, -2.0)
    assert "log_likelihood of nextquill" in got["text"]

    def warned() -> list[int]:  # the log comes in batches
        logs = post(standing.server, "/logs/filter", json.dumps({"limit": 200}))
        return [one["level"] for one in logs if one["message"].startswith("quality fell: ")]

    assert waited(warned) == [30]


def test_a_finished_stage_starts_the_next_with_its_parameters(standing: Standing) -> None:
    (started,) = waited(lambda: standing.runs_of("model"))
    assert started["parameters"] == {"config": standing.config, "force": False}
    assert started["created_by"]["type"] == "AUTOMATION"

    def finished() -> dict[str, Any]:
        events = post(
            standing.server, "/events/filter", json.dumps({"filter": {"event": {"name": ["nextquill.stage.finished"]}}})
        )["events"]
        found = {}
        for one in events:
            for other in one["related"]:
                if other["prefect.resource.role"] == "flow-run":
                    found[other["prefect.resource.id"].rpartition(".")[2]] = one
        return found if len(found) > 1 else {}

    by_run = waited(finished)
    alone = by_run.pop(standing.runs["good"])
    assert alone["resource"]["prefect.resource.id"].startswith("nextquill.artifact.ingest.")
    assert alone["resource"]["nextquill.whole"] == "true"
    assert (alone["payload"]["stage"], alone["payload"]["reused"]) == ("ingest", False)
    assert alone["payload"]["rows"] > 0
    (inside,) = by_run.values()
    assert inside["payload"]["reused"] is True
    roles = [{other["prefect.resource.role"] for other in one["related"]} for one in (alone, inside)]
    assert ["deployment" in found for found in roles] == [True, False], "a stage inside a run is no deployment's"
    assert len(standing.runs_of("model")) == 1


def test_late_and_long_runs_are_told_and_others_are_not(standing: Standing) -> None:
    late = standing.alert("late", standing.runs["late"])
    assert late["text"].startswith("NextQuill: evaluate (")
    assert "it should have started 0.2 minutes ago" in late["text"]
    assert "is still running after 0.2 minutes" in standing.alert("long", standing.runs["long"])["text"]
    false = [one for one in standing.got if standing.runs["in time"] in one["url"]]
    assert all("meanwhile" in one["text"] for one in false), "where SQLite made Prefect lose an event"


def test_another_number_changes_its_alert_alone(standing: Standing) -> None:
    changed = standing.set(webhook=standing.hook, allow_private=True, late=5.0, long=float(WITHIN))
    (late,) = [line for line in changed[1:] if line.startswith("updated")]
    assert "has not started 5 minutes after it was due" in late


def test_the_chain_is_switched_off_and_everything_is_taken_away(standing: Standing) -> None:
    stopped = standing.set(chain=False)
    assert [line.split()[:2] for line in stopped if "starts" in line] == [["updated", "off"]] * 4
    listed = standing.set()
    assert [line.split()[0] for line in listed] == ["set", *["on"] * 5, *["off"] * 4]
    standing.set(remove=True)
    assert not standing.automations()
    assert {line.split("  ")[0] for line in standing.set()} == {"not set"}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"webhook": "http://127.0.0.1:9/secret"}, "127.0.0.1 is private, loopback or unknown here"),
        ({"webhook": "hooks.example.org/secret"}, "no http or https address"),
        ({"late": 5.0}, "--late says how alerts go to a webhook"),
        ({"body": "xml", "webhook": "http://127.0.0.1:9/secret", "allow_private": True}, "no body `xml`"),
        ({"remove": True, "chain": True}, "--remove takes everything away"),
    ],
)
def test_what_cannot_be_set(server: Server, options: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault) as raised:
        command(server, **options)
    assert "secret" not in str(raised.value)


def test_without_a_server_or_deployments_it_is_one_line(server: Server) -> None:
    nowhere = server.environment | {"PREFECT_API_URL": ""}
    none = Server("", nowhere).run("flows", "alerts")
    assert none.returncode == 2
    assert none.stderr.startswith("nextquill: PREFECT_API_URL: no Prefect server is named; start one")
    with pytest.raises(UserError, match="does not answer"):
        command(replace(server, api="http://127.0.0.1:9/api"))


def test_an_event_that_cannot_be_sent_harms_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    from prefect.events import emit_event
    from prefect.exceptions import EventTooLarge
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.api, PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES: 1}):
        with pytest.raises(EventTooLarge):
            emit_event("any", {"prefect.resource.id": "any"})
        stage_finished("model", None)
    assert "event nextquill.stage.finished was not sent" in caplog.text


def test_what_alerts_wait_for() -> None:
    """The names of the states are those of the flows: a run that ended under another one would be told as going on."""
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent

    from flows.promote import ACCEPTED, REJECTED
    from flows.results import REUSED
    from flows.server.automations import Alerting, alerts

    def event(name: str, kind: str, tag: str = "nextquill") -> ReceivedEvent:
        resource = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}", "prefect.state-type": kind}
        related = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}]
        return ReceivedEvent(
            occurred=datetime.now(UTC), event=f"prefect.flow-run.{name}", resource=resource, related=related, id=uuid4()
        )

    how = Alerting(late_minutes=7, long_minutes=70)
    failed, late, long, silent, _ = (
        EventTrigger.model_validate(one.trigger.model_dump(mode="json")) for one in alerts(uuid4(), how)
    )
    assert failed.covers(event("TimedOut", "FAILED"))
    assert failed.covers(event("Crashed", "CRASHED"))
    assert not failed.covers(event("Completed", "COMPLETED"))
    assert not failed.covers(event("Failed", "FAILED", tag="other"))
    endings = ["Completed", "Failed", "Crashed", "Cancelled", "TimedOut", REUSED, ACCEPTED, REJECTED]
    for trigger, begins, ends, goes_on in (
        (late, ["Late", "Pending"], [*endings, "Running", "heartbeat", "AwaitingConcurrencySlot"], []),
        (long, ["Running"], endings, ["heartbeat"]),
        (silent, ["heartbeat"], [*endings, "heartbeat"], []),
    ):
        assert all(trigger.starts_after(f"prefect.flow-run.{name}") for name in begins)
        assert all(trigger.expects(f"prefect.flow-run.{name}") for name in ends)
        assert not any(trigger.expects(f"prefect.flow-run.{name}") for name in goes_on)
        assert all(trigger.covers(event(name, "ANY")) for name in begins + ends)
        assert not trigger.covers(event(begins[0], "ANY", tag="other"))
        assert trigger.for_each == {"prefect.resource.id"}, "each run by itself"
    assert [one.within for one in (late, long, silent)] == [timedelta(minutes=of) for of in (7, 70, 10)]


@pytest.mark.parametrize("body", ["json", "slack", "teams"])
def test_bodies_are_json_whatever_stands_in_them(body: str) -> None:
    from prefect.server.events.actions import JinjaTemplateAction
    from prefect.server.utilities.user_templates import render_user_template_sync

    from flows.server.automations import Alerting, Body, alerts

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
