"""Alerts and the chain of stages on a real Prefect server, with a receiver on loopback.

All runs are started at once, because Prefect waits at least 10 s for an event that does not come.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import Popen
from typing import Any
from uuid import UUID

import pytest
from typer.main import get_command

from flows.cli.main import app
from flows.server.alerting import BLOCK
from flows.server.events import stage_finished
from nextquill_core.errors import UserError
from nextquill_core.registry.promote import decide
from tests.conftest import REPO
from tests.nextquill_core.registry.test_promote import METHOD, ingested, world  # noqa: F401 (fixtures)
from tests.nextquill_core.registry.test_quality_alarm import OTHER, measured, settings, trained
from tests.prefect_server import Server
from tests.waiting import wait_for
from tests.world import small_settings

pytestmark = [pytest.mark.flow, pytest.mark.timeout(600)]

STAGES = ("ingest", "model", "score", "train", "evaluate")
QUICK = ("--allow-private-urls", "--late", "0.2", "--long", "0.2")
"""Alerts after 0.2 minutes, to a loopback address."""
PATIENCE_S = 90.0
AWKWARD = 'Movies & "TV" <b>'


@dataclass
class Setup:
    """What this module has started, and what the receiver has got."""

    server: Server
    hook: str
    printed: list[str]
    got: list[dict[str, Any]]
    deployments: dict[str, str]
    config: dict[str, Any]
    runs: dict[str, str] = field(default_factory=dict)
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat())  # the server has runs of other tests too
    processes: list[Popen[str]] = field(default_factory=list)

    def start(self, deployment: str, config: dict[str, Any]) -> str:
        """Start a run of a deployment, and return its id."""
        run = begin(self.server, self.deployments[deployment], config)
        self.processes.append(execute(self.server, run))
        return run

    def alert(self, what: str, run: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for the alert of a kind about a run.

        Args:
            what: Kind of the alert.
            run: Id of the run.
            patience_s: Seconds to wait.
        """

        def look() -> dict[str, Any] | None:
            return next((one for one in self.got if one["what"] == what and run in one["url"]), None)

        return dict(wait_for(f"the alert {what}", look, patience_s))

    def alerts(self, *options: str) -> list[str]:
        return alerts(self.server, *options)

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        return self.server.runs(deployments={"id": {"any_": [self.deployments[deployment]]}})

    def automations(self) -> dict[str, tuple[str, str, bool]]:
        found = self.server.post("/automations/filter")
        return {one["name"]: (one["id"], one["updated"], one["enabled"]) for one in found}


def alerts(server: Server, *options: str) -> list[str]:
    """Run `nextquill alerts` in this process, and return the lines that it prints."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    printed = io.StringIO()
    with temporary_settings({PREFECT_API_URL: server.api}), redirect_stdout(printed):
        get_command(app)(["alerts", *options], standalone_mode=False)
    return printed.getvalue().splitlines()


def deploy(server: Server, flow: str, entrypoint: str) -> str:
    """Create a deployment as `prefect deploy` does, and return its id.

    Args:
        server: The server.
        flow: Name of the flow and the deployment.
        entrypoint: File and name of the flow's function.
    """
    there = server.post("/flows/", name=flow)
    deployment = {
        "name": flow,
        "flow_id": there["id"],
        "entrypoint": entrypoint,
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(REPO)}}],
        "tags": ["nextquill"],
        "enforce_parameter_schema": False,
    }
    return str(server.post("/deployments/", **deployment)["id"])


def forget(server: Server, deployments: Iterable[str]) -> None:
    """Remove deployments together with their waiting runs."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.api}), get_client(sync_client=True) as client:
        for deployment in deployments:
            client.delete_deployment(UUID(deployment))


def begin(server: Server, deployment: str, config: Any = None, late_s: float = 0) -> str:
    """Schedule a run of a deployment, and return its id.

    Args:
        server: The server.
        deployment: Id of the deployment.
        config: Configuration of the run.
        late_s: Seconds for which the run has been due.
    """
    due = datetime.now(UTC) - timedelta(seconds=late_s)
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
    parameters = {"config": config} if config else {}
    asked = server.post(f"/deployments/{deployment}/create_flow_run", state=state, parameters=parameters)
    return str(asked["id"])


def move(server: Server, run: str, state: str) -> None:
    server.post(f"/flow_runs/{run}/set_state", state={"type": state.upper(), "name": state}, force=True)


def execute(server: Server, run: str) -> Popen[str]:
    """Execute a run as a worker does."""
    move(server, run, "Pending")
    return replace(server, environment=server.environment | {"PREFECT__FLOW_RUN_ID": run}).start("prefect.engine")


def absent(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with raw files that do not exist."""
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
def setup(
    server: Server,
    receiver: tuple[str, list[dict[str, Any]]],
    small_world: Path,
    world: Path,  # noqa: F811
    ingested: Path,  # noqa: F811
    tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Setup]:
    hook, got = receiver
    decide(measured(trained(settings(world, ingested, tiny_folder), 2.0), lambda _: -2.0), METHOD, METHOD)
    fallen = settings(world, ingested, tiny_folder, **OTHER)
    trained(fallen, 2.5)
    folder = tmp_path_factory.mktemp("chained")
    good = small_settings(small_world, folder / "store")

    deployments = {stage: deploy(server, stage, f"flows/{stage}.py:{stage}") for stage in STAGES}
    deployments["outer"] = deploy(server, "outer", "tests/flows/watched.py:outer")
    alerts(server, "--remove")  # a test that failed may have left some
    printed = alerts(server, "--webhook", hook, *QUICK, "--chain")
    setup = Setup(server, hook, printed, got, deployments, good)
    try:
        setup.runs["late"] = begin(server, deployments["evaluate"], late_s=60)
        setup.runs["long"] = begin(server, deployments["evaluate"])
        setup.runs["in time"] = begin(server, deployments["evaluate"])
        for run, states in {"long": ["Running"], "in time": ["Pending", "Running", "Completed"]}.items():
            for state in states:
                move(server, setup.runs[run], state)
        setup.runs["good"] = setup.start("ingest", good)
        setup.runs["bad"] = setup.start("ingest", absent(good))
        setup.runs["outer"] = setup.start("outer", fallen.model_dump(mode="json"))
        yield setup
    finally:
        for process in setup.processes:
            process.kill()
            process.wait()
        alerts(server, "--remove")
        forget(server, deployments.values())


def test_setting_the_same_twice_changes_nothing(setup: Setup) -> None:
    lines = {line.split("  ")[0]: line for line in setup.printed}
    assert set(lines) == {"created"}
    assert len(setup.printed) == 1 + 5 + 4, "the webhook, five alerts, and four links of the chain"
    assert setup.printed[0].split() == ["created", "set", "webhook", "127.0.0.1"]
    assert "still running 0.2 minutes after it started" in "\n".join(setup.printed)
    before = setup.automations()
    again = setup.alerts("--webhook", setup.hook, *QUICK, "--chain")
    assert {line.split("  ")[0] for line in again} == {"unchanged"}
    assert setup.automations() == before


def test_another_address_changes_only_the_block(setup: Setup) -> None:
    before = setup.automations()
    moved = setup.alerts("--webhook", f"{setup.hook}-too", *QUICK)
    assert moved[0].split() == ["updated", "set", "webhook", "127.0.0.1"]
    assert not any(line.startswith("updated") for line in moved[1:])
    assert setup.automations() == before
    blocks = setup.server.post("/block_documents/filter")
    (kept,) = [block for block in blocks if block["name"] == BLOCK]
    assert "s3cret" not in json.dumps(kept) + "".join(moved), "the address is a secret"


def test_a_failed_run_is_reported(setup: Setup) -> None:
    # When SQLite is busy, Prefect may lose the event before it, for which it waits (docs/how-to/alerts.md).
    for patience_s in (15, 60, 60, PATIENCE_S):
        run = setup.runs.pop("bad", None) or setup.start("ingest", absent(setup.config))
        with suppress(AssertionError):
            got = setup.alert("failed", run, patience_s)
            break
    else:
        pytest.fail("no failed run was reported")
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


def test_a_fall_of_quality_is_reported(setup: Setup) -> None:
    got = setup.alert("quality", setup.runs["outer"])
    assert (got["method"], got["value"], got["against"], got["low"]) == (METHOD, -2.5, -2.0, -2.0)
    assert "log_likelihood of nextquill" in got["text"]

    def warned() -> list[int]:  # the log comes in batches
        wanted = {"level": {"ge_": 30}, "timestamp": {"after_": setup.since}}
        logs = setup.server.post("/logs/filter", logs=wanted, limit=200)
        return [one["level"] for one in logs if one["message"].startswith("quality fell: ")]

    assert wait_for("the warning", warned, PATIENCE_S) == [30]


def test_a_finished_stage_starts_the_next_with_its_parameters(setup: Setup) -> None:
    (started,) = wait_for("the next stage", lambda: setup.runs_of("model"), PATIENCE_S)
    assert started["parameters"] == {"config": setup.config, "force": False}
    assert started["created_by"]["type"] == "AUTOMATION"

    def finished() -> dict[str, Any]:
        wanted = {"event": {"name": ["nextquill.stage.finished"]}, "occurred": {"since": setup.since}}
        events = setup.server.post("/events/filter", filter=wanted)["events"]
        found = {}
        for one in events:
            for other in one["related"]:
                if other["prefect.resource.role"] == "flow-run":
                    found[other["prefect.resource.id"].rpartition(".")[2]] = one
        return found if len(found) > 1 else {}

    by_run = wait_for("the events", finished, PATIENCE_S)
    alone = by_run.pop(setup.runs["good"])
    assert alone["resource"]["prefect.resource.id"].startswith("nextquill.artifact.ingest.")
    assert alone["resource"]["nextquill.whole"] == "true"
    assert (alone["payload"]["stage"], alone["payload"]["reused"]) == ("ingest", False)
    assert alone["payload"]["rows"] > 0
    (inside,) = by_run.values()
    assert inside["payload"]["reused"] is True
    roles = [{other["prefect.resource.role"] for other in one["related"]} for one in (alone, inside)]
    assert ["deployment" in found for found in roles] == [True, False], "a stage inside a run has no deployment"
    assert len(setup.runs_of("model")) == 1


def test_late_and_long_runs_are_reported_and_others_are_not(setup: Setup) -> None:
    late = setup.alert("late", setup.runs["late"])
    assert late["text"].startswith("NextQuill: evaluate (")
    assert "it should have started 0.2 minutes ago" in late["text"]
    assert "is still running after 0.2 minutes" in setup.alert("long", setup.runs["long"])["text"]
    false = [one for one in setup.got if setup.runs["in time"] in one["url"]]
    assert all("meanwhile" in one["text"] for one in false), "Prefect may lose an event when SQLite is busy"


def test_another_number_changes_only_its_alert(setup: Setup) -> None:
    changed = setup.alerts("--webhook", setup.hook, *QUICK, "--late", "5")
    (late,) = [line for line in changed[1:] if line.startswith("updated")]
    assert "has not started 5 minutes after it was due" in late


def test_the_chain_is_switched_off_and_everything_is_removed(setup: Setup) -> None:
    stopped = setup.alerts("--no-chain")
    assert [line.split()[:2] for line in stopped if "starts" in line] == [["updated", "off"]] * 4
    listed = setup.alerts()
    assert [line.split()[0] for line in listed] == ["set", *["on"] * 5, *["off"] * 4]
    setup.alerts("--remove")
    assert not setup.automations()
    assert {line.split("  ")[0] for line in setup.alerts()} == {"not set"}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--webhook", "http://127.0.0.1:9/secret"], "127.0.0.1 is private, loopback or unknown here"),
        *(
            (["--webhook", address], "no http or https address")
            for address in ("hooks.example.org/secret", "https://[::1/secret", "https://hooks.example.org:99999/secret")
        ),
        (["--late", "5"], "--late needs a webhook"),
        (["--body", "xml", "--webhook", "http://127.0.0.1:9/secret", "--allow-private-urls"], "no body `xml`"),
        (["--remove", "--chain"], "--remove removes everything"),
    ],
)
def test_invalid_options_are_one_line(server: Server, options: list[str], fault: str) -> None:
    with pytest.raises(UserError, match=fault) as raised:
        alerts(server, *options)
    assert "secret" not in str(raised.value)


def test_a_missing_server_is_one_line(server: Server) -> None:
    nowhere = server.environment | {"PREFECT_API_URL": ""}
    none = Server("", nowhere).run("flows", "alerts")
    assert none.returncode == 2
    assert none.stderr.startswith("nextquill: PREFECT_API_URL: no Prefect server is named; start one")
    with pytest.raises(UserError, match="does not answer"):
        alerts(replace(server, api="http://127.0.0.1:9/api"))


def test_an_event_that_cannot_be_sent_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    from prefect.events import emit_event
    from prefect.exceptions import EventTooLarge
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.api, PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES: 1}):
        with pytest.raises(EventTooLarge):
            emit_event("any", {"prefect.resource.id": "any"})
        stage_finished("model", None)
    assert "event nextquill.stage.finished was not sent" in caplog.text
