"""Job scripts, and stages as jobs, without a cluster."""

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
from tasks.slurm.client import job_environment
from tasks.slurm.job import Job, directive, file_options, script
from tasks.slurm.stage import JobLog, jobs_folder, resource_options, stage_job, stage_nodes, stage_setup
from tests.world import small_config


def test_bash_runs_the_words_of_the_command_unchanged(tmp_path: Path) -> None:
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


def test_output_options_of_a_job(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"`slurm\.train\.arguments`: .*'n7' is not an option; write each as one word"):
        load_config(path)
    path.write_text(path.read_text().replace("-x, n7", "--exclude=n7"))
    slurm = load_config(path, ["slurm.evaluate.gpus=1"]).slurm
    asked = {stage: slurm.job(stage) for stage in ("ingest", "model", "score", "train", "evaluate")}  # type: ignore[arg-type]
    assert [stage for stage, job in asked.items() if job] == ["score", "train", "evaluate"]
    assert asked["score"] == slurm.common
    fixed = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--export=ALL")
    assert asked["train"]
    assert resource_options(asked["train"], 2) == (
        *fixed, "--partition=gpu", "--account=lab", "--gres=gpu:a100:4", "--cpus-per-task=16", "--mem=200G",
        "--time=2-0", "--mail-type=FAIL", "--exclude=n7",
    )  # fmt: skip
    assert asked["evaluate"]
    assert resource_options(asked["evaluate"], 1)[4:] == (
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
        ("slurm.train.gpus=0", "must be at least 1"),
        ("slurm.common.arguments=[--job-name=mine]", "'--job-name=mine' is set by nextquill"),
        ("slurm.common.arguments=[-o/tmp/log]", "'-o/tmp/log' is set by nextquill"),
        ("slurm.train.gpu=1", r"unknown config key `slurm\.train\.gpu`; did you mean `slurm\.\w+\.gpus`"),
        ("slurm.resubmit_after=[FAILED]", "unknown value 'FAILED'; did you mean"),
    ],
)
def test_invalid_settings_are_one_line(tmp_path: Path, setting: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "config.yaml", [setting])


def test_slurm_settings_change_no_fingerprint() -> None:
    assert "slurm" not in Config().fingerprint_fields()


def test_a_training_asks_for_the_nodes_of_its_launcher() -> None:
    launcher = {"kind": "slurm", "slurm": {"nodes": 4}}
    config = parse_config({"train": {"launcher": launcher}}, "the test")
    assert {stage: stage_nodes(config, stage) for stage in ("ingest", "score", "train")} == {  # type: ignore[arg-type]
        "ingest": 1, "score": 1, "train": 4,
    }  # fmt: skip
    crossed = parse_config({"train": {"launcher": launcher}, "score": {"effect_source": "adapter"}}, "the test")
    assert stage_nodes(crossed, "score") == 4, "it trains the adapters whose effects it computes"
    assert stage_nodes(parse_config({}, "the test"), "train") == 1


@pytest.fixture
def run(small_world: Path, tmp_path: Path) -> Run:
    slurm = {"score": {"cpus": 2}, "folder": None}
    return Run(small_config(small_world, tmp_path / "a store", slurm=slurm, train={"batch_tokens": 5000}))


def job_of(run: Run, **changes: Any) -> Job:
    asked = run.config.slurm.job("score")
    assert asked
    options: dict[str, Any] = {"force": False, "settings": run.config, **changes}
    return stage_job(
        run, "score", asked, [run.plan.score], options["settings"], program=["nextquill"], force=options["force"]
    )


def test_a_job_runs_the_public_command_on_the_same_settings(run: Run, small_world: Path, tmp_path: Path) -> None:
    job = job_of(run)
    assert job.folder == tmp_path / "a store" / ".slurm" / job.name
    assert job.command[-3:] == ("score", "--config", str(job.folder / "config.yaml"))
    assert job_of(run, force=True).command[-1] == "--force"
    written = parse_config(yaml.safe_load(job.files["config.yaml"]), "the snapshot")
    assert written == run.config.model_copy(update={"slurm": Config().slurm}), "all but the section that made it a job"
    assert Run(written).plan.score.fingerprint == run.plan.score.fingerprint
    (cores,) = (line for line in job.setup if "SRUN_CPUS_PER_TASK" in line)
    assert ran((cores, "echo $OMP_NUM_THREADS"), SLURM_CPUS_PER_TASK="2").stdout.splitlines()[0] == "2"


def test_two_jobs_that_make_the_same_have_the_same_name(run: Run, small_world: Path, tmp_path: Path) -> None:
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


def test_a_node_works_in_the_flow_s_folder_or_says_that_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "it's here"
    here.mkdir()
    monkeypatch.chdir(here)
    setup = stage_setup("", cpus=False)
    assert ran(setup).stdout.splitlines() == [str(here), "api none", slurm_stage.MEMORY_DATABASE]
    own = ran(setup, PREFECT_SERVER_DATABASE_CONNECTION_URL="postgresql+asyncpg://db")
    assert own.stdout.splitlines()[-1] == "postgresql+asyncpg://db", "a database that the user has set stays"
    monkeypatch.chdir(tmp_path)
    here.rmdir()
    lost = ran(setup)
    assert lost.returncode == 2
    last = lost.stderr.splitlines()[-1]
    assert last.startswith("nextquill: ")
    assert last.endswith(f"this node cannot see the folder {here}")


def test_a_server_that_a_node_cannot_reach_is_left_out(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        api = f"http://127.0.0.1:{server.getsockname()[1]}/api"
        seen = ran(stage_setup(api, cpus=False), PREFECT_API_URL=api)
        assert f"api {api}" in seen.stdout
    unseen = ran(stage_setup(api, cpus=False), PREFECT_API_URL=api)
    assert "api \n" in unseen.stdout
    assert "cannot reach the Prefect server at 127.0.0.1" in unseen.stderr
    assert "/dev/tcp" not in "\n".join(stage_setup("https://api.prefect.cloud/api/x", cpus=False))


def test_a_job_s_log_is_shown_like_that_of_a_local_stage(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_progress_lines_are_recognised_as_progress_writes_them(
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
