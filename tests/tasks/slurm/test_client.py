"""Slurm's answers and a stage's job script, without a cluster."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nextquill_core.config import Config, load_config, parse_config
from nextquill_core.pipeline.run import Run
from storage import UserError
from tasks.slurm import stage as slurm_stage
from tasks.slurm.client import FORGOTTEN, Standing, job_environment, parse_account, parse_standing, require_slurm
from tasks.slurm.job import Job, directive, file_options, script
from tasks.slurm.stage import JobLog, asked_options, jobs_folder, stage_job, stage_nodes, stage_setup
from tests.world import small_config

RUNNING = (
    "JobId=12 JobName=nextquill-score-0123456789 UserId=ann(1000) GroupId=ann(1000) MCS_label=N/A Priority=429 "
    "Nice=0 Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 "
    "Reboot=0 ExitCode=0:0 RunTime=00:00:03 ReqNodeList=(null) ExcNodeList=(null) NodeList=n[1-2] BatchHost=n1 "
    "Command=/a folder/JobState=FAILED/job.sh WorkDir=/home/ann\n"
)


def test_what_scontrol_says_is_read() -> None:
    assert parse_standing(RUNNING) == Standing("RUNNING", "", "n[1-2]", 0)
    assert str(parse_standing(RUNNING)) == "runs on n[1-2]"
    waiting = RUNNING.replace("JobState=RUNNING Reason=None", "JobState=PENDING Reason=Priority").replace(
        "NodeList=n[1-2]", "NodeList=(null)"
    )
    assert parse_standing(waiting) == Standing("PENDING", "Priority", "", 0)
    assert str(parse_standing(waiting)) == "waits (Priority)"
    killed = RUNNING.replace("JobState=RUNNING Reason=None", "JobState=FAILED Reason=NonZeroExitCode")
    assert parse_standing(killed.replace("ExitCode=0:0", "ExitCode=1:0")).code == 1
    assert parse_standing(killed.replace("ExitCode=0:0", "ExitCode=0:9")).code == 128 + 9
    assert parse_standing(killed).ended
    assert not parse_standing(RUNNING.replace("JobState=RUNNING", "JobState=COMPLETING")).ended


def test_accounting_counts_only_for_a_job_of_this_name() -> None:
    rows = "other|FAILED|1:0|n1\nmine|CANCELLED by 1000|0:15|n[1-2]\n"
    assert parse_account(rows, "mine") == Standing("CANCELLED", "", "n[1-2]", 143)
    assert parse_account("mine|CANCELLED|0:0|None assigned\n", "mine") == Standing("CANCELLED")
    assert parse_account(rows, "its number was given out again") == Standing(FORGOTTEN)
    assert parse_account("", "mine").ended, "there is no accounting here"


@pytest.mark.parametrize(
    ("standing", "why"),
    [
        (Standing("FAILED", "NonZeroExitCode", "n1", 1), "FAILED"),
        (
            Standing("OUT_OF_MEMORY", "OutOfMemory", "n1"),
            "OUT_OF_MEMORY, it used more memory than it had asked for, see slurm.train.memory, Slurm says OutOfMemory",
        ),
        (
            Standing("TIMEOUT", "TimeLimit", "n1"),
            "TIMEOUT, it reached its time limit, see slurm.train.time; the same command goes on where it stopped, "
            "Slurm says TimeLimit",
        ),
        (Standing("PREEMPTED", "", "n1"), "PREEMPTED, another job took its place"),
    ],
)
def test_what_ended_a_job_is_said_in_words(standing: Standing, why: str) -> None:
    assert standing.why("slurm.train") == why


def test_without_slurm_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^slurm\.score: there is no `sbatch` on this machine; run it on a login node"):
        require_slurm("slurm.score")


def test_a_job_does_not_inherit_another_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "CUDA_VISIBLE_DEVICES", "PREFECT__FLOW_RUN_ID", "SQUEUE_FORMAT"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("SLURM_CONF", "/etc/other/slurm.conf")
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    found = job_environment({"PREFECT_API_KEY": "hush"})
    assert set(os.environ) - set(found) >= {"SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "CUDA_VISIBLE_DEVICES"}
    assert not set(found) & {"PREFECT__FLOW_RUN_ID", "SQUEUE_FORMAT"}
    assert (found["SLURM_CONF"], found["SBATCH_ACCOUNT"]) == ("/etc/other/slurm.conf", "lab")
    assert found["PREFECT_API_KEY"] == "hush"


def test_the_script_is_what_bash_runs(tmp_path: Path) -> None:
    """Whatever is in the words, bash hands them to the program as they are."""
    words = ("a b", "it's", '"x"', "$HOME", "`id`", "#", "ü\\n", "*")
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    job = Job("name", folder, "slurm.score", ("--nodes=1",), ("printf", "%s\\n", *words), setup=("here=there",))
    text = script(job)
    assert text.startswith("#!/bin/bash\n#SBATCH --nodes=1\n")
    assert f"sbatch {shlex.quote(str(folder / 'job.sh'))}\n" in text
    ran = subprocess.run(["bash", "-eu"], input=text, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == list(words)


def test_directives_are_quoted_only_where_they_must_be() -> None:
    assert directive("--gres=gpu:a100:4") == "--gres=gpu:a100:4"
    assert directive("--exclude=n[1-3,7]") == "--exclude=n[1-3,7]"
    assert directive("--output=/a b/%j") == '--output="/a b/%j"'
    assert directive('--comment=say "a\\b" # $x') == '--comment="say \\"a\\\\b\\" # $x"'


def test_where_a_log_goes(tmp_path: Path) -> None:
    assert file_options(Path("/100%/j")) == (
        "--output=/100%%/j/%j.out",
        "--error=/100%%/j/%j.log",
        "--open-mode=append",
    )
    with pytest.raises(UserError, match=r"Slurm cannot write to a folder of this name; set slurm\.folder"):
        file_options(tmp_path / "a\\b")


def test_stages_are_jobs_where_they_have_a_section(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "slurm:\n  common: {partition: cpu, account: lab, arguments: [--mail-type=FAIL]}\n  score: {}\n"
        "  train: {partition: gpu, gpus: 'a100:4', cpus: 16, memory: 200G, time: '2-0', arguments: [-x, n7]}\n"
    )
    with pytest.raises(UserError, match=r"`slurm\.train\.arguments`: .*'n7' is no option; write each as one word"):
        load_config(path)
    path.write_text(path.read_text().replace("-x, n7", "--exclude=n7"))
    slurm = load_config(path, ["slurm.evaluate.gpus=1"]).slurm
    asked = {stage: slurm.job(stage) for stage in ("ingest", "model", "score", "train", "evaluate")}  # type: ignore[arg-type]
    assert [stage for stage, job in asked.items() if job] == ["score", "train", "evaluate"]
    assert asked["score"] == slurm.common
    fixed = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--export=ALL")
    assert asked["train"]
    assert asked_options(asked["train"], 2) == (
        *fixed, "--partition=gpu", "--account=lab", "--gres=gpu:a100:4", "--cpus-per-task=16", "--mem=200G",
        "--time=2-0", "--mail-type=FAIL", "--exclude=n7",
    )  # fmt: skip
    assert asked["evaluate"]
    assert asked_options(asked["evaluate"], 1)[4:] == (
        "--partition=cpu", "--account=lab", "--gres=gpu:1", "--mail-type=FAIL",
    )  # fmt: skip
    assert parse_config(Config(slurm=slurm).model_dump(mode="json"), "a form").slurm == slurm


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("slurm.train.time=12:00:00", r"`slurm\.train\.time`: .*put it in quotes; YAML reads 12:00:00 as .* 43200"),
        ("slurm.train.memory=64", r"`slurm\.train\.memory`: .*a plain number has no unit"),
        ("slurm.train.memory=64GB", r"`slurm\.train\.memory`: String should match"),
        ("slurm.train.partition=a b", "must be one word"),
        ("slurm.train.gpus=0", "must be 1 at least"),
        ("slurm.common.arguments=[--job-name=mine]", "'--job-name=mine' is set by nextquill"),
        ("slurm.common.arguments=[-o/tmp/log]", "'-o/tmp/log' is set by nextquill"),
        ("slurm.train.gpu=1", r"unknown config key `slurm\.train\.gpu`; did you mean `slurm\.\w+\.gpus`"),
        ("slurm.resubmit_after=[FAILED]", "unknown value 'FAILED'; did you mean"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, setting: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "config.yaml", [setting])


def test_how_a_stage_runs_decides_no_result() -> None:
    assert "slurm" not in Config().semantic()


def test_a_training_asks_for_its_launcher_s_nodes() -> None:
    launcher = {"kind": "slurm", "slurm": {"nodes": 4}}
    config = parse_config({"train": {"launcher": launcher}}, "the test")
    assert {stage: stage_nodes(config, stage) for stage in ("ingest", "score", "train")} == {  # type: ignore[arg-type]
        "ingest": 1, "score": 1, "train": 4,
    }  # fmt: skip
    crossed = parse_config({"train": {"launcher": launcher}, "score": {"effect_source": "adapter"}}, "the test")
    assert stage_nodes(crossed, "score") == 4, "it trains the adapters that score"
    assert stage_nodes(parse_config({}, "the test"), "train") == 1


@pytest.fixture
def run(small_world: Path, tmp_path: Path) -> Run:
    slurm = {"score": {"cpus": 2}, "folder": None}
    return Run(small_config(small_world, tmp_path / "a store", slurm=slurm, train={"batch_tokens": 5000}))


def job_of(run: Run, **changes: Any) -> Job:
    asked = run.config.slurm.job("score")
    assert asked
    options: dict[str, Any] = {"force": False, "settings": run.config, **changes}
    return stage_job(run, "score", asked, [run.plan.score], options["settings"], force=options["force"])


def test_a_job_runs_the_public_command_on_the_same_settings(run: Run, small_world: Path, tmp_path: Path) -> None:
    job = job_of(run)
    assert job.folder == tmp_path / "a store" / ".slurm" / job.name
    assert job.command[-3:] == ("score", "--config", str(job.folder / "config.yaml"))
    assert job_of(run, force=True).command[-1] == "--force"
    written = parse_config(yaml.safe_load(job.files["config.yaml"]), "the snapshot")
    assert written == run.config.model_copy(update={"slurm": Config().slurm}), "but for what made it a job"
    assert Run(written).plan.score.fingerprint == run.plan.score.fingerprint
    (cores,) = (line for line in job.setup if "SRUN_CPUS_PER_TASK" in line)
    assert ran((cores, "echo $OMP_NUM_THREADS"), SLURM_CPUS_PER_TASK="2").stdout.splitlines()[0] == "2"


def test_the_same_work_is_the_same_job_whatever_else_is_set(run: Run, small_world: Path, tmp_path: Path) -> None:
    job = job_of(run)
    slurm = {"score": {"memory": "1G"}}
    other = small_config(small_world, tmp_path / "a store", slurm=slurm, score={"batch_tokens": 100})
    assert job_of(Run(other)).name == job.name
    assert job_of(run, force=True).name != job.name
    weighted = small_config(small_world, tmp_path / "a store", slurm=slurm, weights={"delta": 0.1})
    assert job_of(Run(weighted)).name != job.name
    elsewhere = small_config(small_world, tmp_path / "another", slurm=slurm)
    assert job_of(Run(elsewhere)).name != job.name


def test_no_secret_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTQUILL_PSEUDONYM_KEY", "hush hush hush hush")
    job = job_of(run)
    written = script(job) + "".join(job.files.values()) + repr(job)
    assert "hush" not in written
    assert job_environment(job.environment)["NEXTQUILL_PSEUDONYM_KEY"] == "hush hush hush hush"


def test_jobs_of_a_remote_store_are_in_a_folder(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run.config = run.config.model_copy(update={"store": "s3://bucket/prefix"})
    assert jobs_folder(run) == tmp_path / ".slurm"
    chosen = run.config.slurm.model_copy(update={"folder": "jobs"})
    run.config = run.config.model_copy(update={"slurm": chosen})
    assert jobs_folder(run) == tmp_path / "jobs"


def ran(setup: tuple[str, ...], **environment: str) -> subprocess.CompletedProcess[str]:
    text = "\n".join(
        [*setup, "pwd", 'echo "api ${PREFECT_API_URL-none}"', "echo $PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    )
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return subprocess.run(["bash"], input=text, capture_output=True, text=True, env=plain | environment, check=False)


def test_a_node_stands_where_the_flow_does_or_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "it's here"
    here.mkdir()
    monkeypatch.chdir(here)
    setup = stage_setup("", cpus=False)
    assert ran(setup).stdout.splitlines() == [str(here), "api none", slurm_stage.OWN_DATABASE]
    own = ran(setup, PREFECT_SERVER_DATABASE_CONNECTION_URL="postgresql+asyncpg://db")
    assert own.stdout.splitlines()[-1] == "postgresql+asyncpg://db", "a server of the user's own choice stays"
    monkeypatch.chdir(tmp_path)
    here.rmdir()
    lost = ran(setup)
    assert lost.returncode == 2
    last = lost.stderr.splitlines()[-1]
    assert last.startswith("nextquill: ")
    assert last.endswith(f"this node does not see the folder {here}")


def test_a_server_on_the_flow_s_own_machine_is_left_out_where_it_is_not_seen(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        api = f"http://127.0.0.1:{server.getsockname()[1]}/api"
        seen = ran(stage_setup(api, cpus=False), PREFECT_API_URL=api)
        assert f"api {api}" in seen.stdout
    unseen = ran(stage_setup(api, cpus=False), PREFECT_API_URL=api)
    assert "api \n" in unseen.stdout
    assert "does not see the Prefect server at 127.0.0.1" in unseen.stderr
    assert "/dev/tcp" not in "\n".join(stage_setup("https://api.prefect.cloud/api/x", cpus=False))


def test_a_job_s_log_is_shown_as_if_it_had_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    shown: list[tuple[str, float, float, str]] = []

    class Shown(slurm_stage.ShownProgress):
        def __init__(self, title: str) -> None:
            super().__init__(title)
            self.title = title

        def __call__(self, done: float, total: float, note: str = "", *, phase: str = "") -> None:
            shown.append((self.title, done, total, " ".join([phase, note]).strip()))

    monkeypatch.setattr(slurm_stage, "ShownProgress", Shown)
    with JobLog(said.append) as log:
        for line in (
            "12:30:01  effects: made in 10.0 s (missing) at /store",
            "12:30:16  likelihood:qwen: 1,500 of 20,000  12 a second",
            "12:30:31  score: 3 of 4  ",
            "12:30:46  train nextquill: validating 40 of 1,200  ",
            "",
            "Traceback (most recent call last):",
        ):
            log(line)
    assert said == ["effects: made in 10.0 s (missing) at /store", "Traceback (most recent call last):"]
    assert shown == [
        ("likelihood:qwen", 1500, 20000, "12 a second"),
        ("score", 3, 4, ""),
        ("train nextquill", 40, 1200, "validating"),
    ]


def test_progress_lines_are_those_that_our_own_progress_writes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    from tasks import progress

    monkeypatch.setattr(progress, "SHOW_AFTER_S", -1.0)
    monkeypatch.setattr(progress, "LOG_EVERY_S", -1.0)
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("a flow run"))
    with caplog.at_level(logging.INFO, "a flow run"), progress.ShownProgress("train nextquill") as shown:
        shown(1234, 5678, "loss 1.5")
    found = slurm_stage.PROGRESS.match(caplog.messages[0])
    assert found
    line = {"title": "train nextquill", "phase": None, "done": "1,234", "total": "5,678", "note": "loss 1.5"}
    assert found.groupdict() == line
