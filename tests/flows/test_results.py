"""How flow runs end: a user's error is one line and no traceback, and an interruption is no failure."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.results import log_errors_plainly
from storage import UserError
from tests.prefect_server import Server


@pytest.fixture(scope="module")
def ended(server: Server) -> dict[str, Any]:
    """What the caller of the flows got, by how they ended; and the server's runs and logs of each."""
    done = server.check("tests.flows.early_ends", "wrong", "SIGINT", "SIGTERM")
    caught = dict(line.split() for line in done.stdout.splitlines())
    runs = server.runs(flows={"name": {"any_": ["whole", "stage"]}})
    logs = server.post("/logs/filter", logs={"flow_run_id": {"any_": [run["id"] for run in runs]}}, limit=200)
    found: dict[str, Any] = {how: {"caught": kind, "runs": [], "tasks": [], "log": ""} for how, kind in caught.items()}
    for run in runs:
        one_end = found[run["parameters"]["how"]]
        one_end["tasks"] += ends_of_tasks(server, run["id"])
        one_end["runs"].append((run["state_type"], run["state_name"], run["state"]["message"]))
        one_end["log"] += "\n".join(one["message"] for one in logs if one["flow_run_id"] == run["id"])
    return found


def ends_of_tasks(server: Server, run: str) -> list[tuple[str, str]]:
    """Type and name of the last states of a flow run's tasks; the server learns of them by events, a little later."""
    deadline = time.monotonic() + 20
    while True:
        found = server.post("/task_runs/filter", flow_runs={"id": {"any_": [run]}})
        tasks = [(task["state_type"], task["state_name"]) for task in found]
        if not {"PENDING", "RUNNING"}.intersection(kind for kind, _ in tasks) or time.monotonic() > deadline:
            return tasks
        time.sleep(0.2)


@pytest.mark.flow
def test_a_user_s_error_is_one_line_at_every_level_and_no_traceback(ended: dict[str, Any]) -> None:
    wrong = ended["wrong"]
    assert wrong["caught"] == "DataError", "the command line makes exit code 2 of it"
    assert wrong["tasks"] == 2 * [("FAILED", "Failed")]
    assert wrong["runs"] == 2 * [("FAILED", "Failed", "reviews.jsonl: no such file; name another")]
    assert "reviews.jsonl: no such file; name another" in wrong["log"]
    assert "Traceback" not in wrong["log"]


@pytest.mark.flow
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_interrupted_and_not_failed(ended: dict[str, Any], signal: str) -> None:
    found = ended[signal]
    assert found["caught"] == "Interrupted"
    assert {(kind, name) for kind, name, _ in found["runs"]} == {("CANCELLED", "Interrupted")}
    assert all("it resumes" in message for _, _, message in found["runs"])
    assert found["tasks"] == 2 * [("CANCELLED", "Interrupted")], "the stage within the whole, and its own task"


@pytest.mark.flow
def test_wrong_input_in_a_deployment_s_form_is_one_line_in_its_run_and_in_the_worker_s_log(
    server: Server, tmp_path: Path
) -> None:
    server.create_pool("ends")
    server.check("prefect", "--no-prompt", "deploy", "flows/ingest.py:ingest", "--name", "ends", "--pool", "ends")
    deployment = server.deployment("ends")
    twice = [{"category": "A", "reviews": "nowhere.jsonl", "items": "nowhere.jsonl"}] * 2
    for inputs, message in (
        (twice[:1], "nowhere.jsonl: no such file; check ingest.inputs[].reviews of category A"),
        (twice, "each category may be named once"),  # a rule that the form does not know
    ):
        run = server.schedule(deployment, config={"store": str(tmp_path), "ingest": {"inputs": inputs}})
        done = server.run("prefect", "flow-run", "execute", run)
        shown = server.flow_run(run)["state"]
        assert shown["type"] == "FAILED"
        assert message in shown["message"]
        logs = server.post("/logs/filter", logs={"flow_run_id": {"any_": [run]}})
        text = "\n".join(one["message"] for one in logs) + done.stdout + done.stderr
        assert message in text
        assert "Traceback" not in text, text


def test_the_filter_keeps_the_tracebacks_of_all_other_errors() -> None:
    def record(error: Exception) -> logging.LogRecord:
        try:
            raise error
        except Exception:
            found = logging.LogRecord("x", logging.ERROR, "", 0, "failed: %r", (error,), sys.exc_info())
        assert log_errors_plainly(found)
        return found

    plain, full = record(UserError("wrong", "key", "fix it")), record(KeyError("x"))
    assert (plain.getMessage(), plain.exc_info) == ("key: wrong; fix it", None)
    assert full.exc_info is not None
