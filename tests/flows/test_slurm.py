"""Stages that submit themselves as jobs of a real Slurm of two nodes, under a real Prefect server and without one."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.exceptions import MissingContextError

from flows.server.events import watch_quality
from flows.slurm import _job_config, made_by_job
from nextquill_core.config import load_config
from nextquill_core.pipeline.run import Run
from storage import UserError
from tasks.slurm.stage import SUBMITTED_BY
from tests.prefect_server import Server
from tests.slurm import slurm, two_nodes
from tests.waiting import wait_for
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.slurm, pytest.mark.flow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(server: Server) -> Iterator[Server]:
    """The Prefect server, with a cluster in the environment of what runs against it."""
    with two_nodes() as conf:
        yield Server(server.api, server.environment | {"SLURM_CONF": conf})


@pytest.fixture(scope="module")
def config(small_world: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingest and score as jobs, in a folder whose name wants quoting."""
    folder = tmp_path_factory.mktemp("it's a cluster")
    settings = small_settings(small_world, folder / "store")
    settings["model"]["name_or_path"] = str(tiny_folder)
    settings["slurm"] = {"common": {"time": "10", "partition": "here"}, "ingest": {}, "score": {"cpus": 1}}
    settings["slurm"]["poll_s"] = 0.5
    return write_config(folder / "config.yaml", settings)


def jobs(config: Path) -> list[str]:
    """The jobs that ran, by the logs that they left, in their order."""
    return sorted((path.stem for path in (config.parent / "store" / ".slurm").glob("*/*.log")), key=int)


def runs_of(server: Server, job: str) -> list[tuple[str, str]]:
    """(flow, state) of the flow runs that belong to a job, in the order in which they began."""
    found = server.runs(flow_runs={"tags": {"all_": [f"slurm-job-{job}"]}})
    return [(run["flow"], run["state"]["name"]) for run in found]


def test_ingest_runs_as_a_job_as_if_it_had_run_here(cluster: Server, config: Path) -> None:
    done = cluster.check("flows", "ingest", "--config", str(config))
    (job,) = jobs(config)
    assert f"ingest: Slurm job {job} is submitted" in done.stderr
    assert "scan Small: made in" in done.stderr, "what the job says is said here"
    assert re.search(
        rf"ingest: made in .* s \(Slurm job {job}\) at {re.escape(str(config.parent / 'store'))}", done.stderr
    )
    assert "rows" in done.stdout
    assert done.stdout.count("outcome") == 1, "the table is shown once"
    assert runs_of(cluster, job) == [("ingest", "Completed")] * 2, "the flow's run and the job's, tied by a tag"
    again = cluster.run("flows", "ingest", "--config", str(config))
    assert "ingest: reused, fresh at" in again.stderr
    assert jobs(config) == [job], "nothing was to be made"


def test_a_flow_killed_outright_leaves_a_job_that_the_same_command_follows(cluster: Server, config: Path) -> None:
    asked = ("flows", "score", "--config", str(config), "--set", "slurm.score.arguments=[--hold]")
    first = cluster.start(*asked)
    queued = lambda: slurm("squeue", "--noheader", "--format=%i")  # noqa: E731
    wait_for("submitting", queued)
    job = queued()
    first.kill()
    first.wait()
    second = cluster.start(*asked)
    wait_for("following", lambda: "exists already" in second.stderr)
    slurm("scontrol", "release", job)
    assert second.wait(300) == 0, second.stderr
    said = second.stderr
    assert f"score: Slurm job {job} exists already and is followed" in said
    assert "effects: made in" in said
    assert f"(Slurm job {job})" in said
    assert jobs(config)[-1] == job
    assert len(jobs(config)) == 2, "ingest's and one for score"


def test_what_a_stage_needs_is_looked_for_before_it_waits_in_a_queue(config: Path, tmp_path: Path) -> None:
    run = Run(load_config(config, [f"store={tmp_path}"]))
    with pytest.raises(UserError, match=r"the ingest artifact is missing; run `nextquill ingest` with the same config"):
        made_by_job(run, "score", [run.plan.score], force=False)
    assert not (tmp_path / ".slurm").exists()


def test_a_training_of_one_method_is_a_job_for_that_alone(config: Path) -> None:
    run = Run(load_config(config))
    assert set(run.plan.train) == {"nextquill", "contextsft"}
    alone = Run(_job_config(run.config, "contextsft"))
    assert list(alone.plan.adapters) == ["contextsft"]
    assert alone.plan.train["contextsft"].fingerprint == run.plan.train["contextsft"].fingerprint


def test_in_a_job_quality_is_left_to_the_flow_that_follows(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(load_config(config))
    with pytest.raises(MissingContextError):
        watch_quality(run, "nextquill")  # it would say something
    monkeypatch.setenv(SUBMITTED_BY, "a flow run")
    watch_quality(run, "nextquill")


def test_a_flow_that_is_told_to_end_cancels_its_job(cluster: Server, config: Path) -> None:
    held = ("--set", "slurm.ingest.arguments=[--hold]", "--set", "ingest.protocol.min_user_reviews=19")
    process = cluster.start("flows", "ingest", "--config", str(config), *held)
    waiting = lambda: slurm("squeue", "--noheader", "--states=PENDING")  # noqa: E731
    wait_for("submitting", waiting)
    process.send_signal(signal.SIGTERM)
    wait_for("cancelling", lambda: not waiting(), 30)
    assert process.wait(timeout=60) != 0


@pytest.mark.slow
def test_bad_input_found_in_a_job_is_one_line_and_no_server_is_needed(cluster: Server, config: Path) -> None:
    alone = Server("", cluster.environment | {"PREFECT_API_URL": ""})
    done = alone.run("flows", "ingest", "--config", str(config), "--set", "ingest.protocol.min_user_reviews=400")
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("nextquill: ")
    assert "min_user_reviews" in line
    assert "Traceback" not in done.stderr


@pytest.mark.ranks
@pytest.mark.slow
def test_a_training_on_two_nodes_is_one_job(cluster: Server, config: Path) -> None:
    """After the tests above, which make what it needs; its launcher takes the nodes from the job's allocation."""
    launcher = "train.launcher={kind: slurm, slurm: {nodes: 2}}"
    train = ("train", "--config", str(config), "--set", launcher, "--set", "slurm.train={}")
    done = cluster.check("flows", *train, "--set", "evaluate.methods=[nextquill]")
    assert "a rank an accelerator on each of 2 Slurm nodes" in done.stderr
    assert re.search(r"train: Slurm job \d+ runs on n\[1-2\]", done.stderr)
    (log,) = (config.parent / "store" / "train").glob("*/train.log")
    assert {"node_rank=0", "node_rank=1"} <= set(re.findall(r"node_rank=\d", log.read_text()))
