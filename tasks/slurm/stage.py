"""A stage as a Slurm job: what it asks for, what it runs, and its log shown as what runs here would be."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import yaml
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, get_current_settings

from nextquill_core.config import Config, SlurmJob, SlurmJobs, StageName
from nextquill_core.errors import UserError
from nextquill_core.pipeline import Step
from nextquill_core.pipeline.run import Run
from storage import fingerprint
from tasks.definition import our_task
from tasks.progress import ShownProgress
from tasks.slurm.job import Job, Say, file_options, run_job
from tasks.tags import tag_run

SUBMITTED_BY = "NEXTQUILL_SUBMITTED_BY"
"""Environment variable of a job: the page of the flow run that follows it, or its id."""
SETTINGS = "config.yaml"
LOOPBACK = {"localhost", "::1"}
OWN_DATABASE = "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false"
CLOCK = re.compile(r"^\d\d:\d\d:\d\d  ")
PROGRESS = re.compile(
    r"^(?P<title>.+?): (?:(?P<phase>[a-z][^:]*?) )?(?P<done>[\d,]+) of (?P<total>[\d,]+)  (?P<note>.*)$"
)


def stage_job(
    run: Run, stage: StageName, asked: SlurmJob, steps: Sequence[Step], settings: Config, *, force: bool
) -> Job:
    """The job that a stage is to be.

    Args:
        run: The configuration and its store.
        stage: Its command.
        asked: What the job asks for.
        steps: What it makes; a job that makes the same for the same store is the same job, whatever else is set.
        settings: What the job runs on, but for the section that made it a job.
        force: Whether it makes what is fresh anew.

    Raises:
        UserError: Slurm cannot write to the folder for jobs.
    """
    made = [run.store.location(step.kind, step.fingerprint) for step in steps]
    name = f"nextquill-{stage}-{fingerprint({'made': made, 'force': force})[:10]}"
    folder = jobs_folder(run) / name
    plain = settings.model_copy(update={"slurm": SlurmJobs()})
    return Job(
        name=name,
        folder=folder,
        key=f"slurm.{stage}",
        options=(
            f"--job-name={name}",
            *file_options(folder),
            *asked_options(asked, stage_nodes(run.config, stage)),
        ),
        command=(*program(), stage, "--config", str(folder / SETTINGS), *(["--force"] if force else [])),
        setup=stage_setup(PREFECT_API_URL.value() or "", cpus=asked.cpus is not None),
        files={SETTINGS: yaml.safe_dump(plain.model_dump(mode="json"), sort_keys=False, allow_unicode=True)},
        environment=handed_on(),
    )


def jobs_folder(run: Run) -> Path:
    """Where scripts and logs of this configuration's jobs are."""
    if run.config.slurm.folder:
        return Path(run.config.slurm.folder).expanduser().resolve()
    scheme, separator, _ = run.config.store.partition("://")
    return Path.cwd() / ".slurm" if separator and scheme != "file" else run.store.root / ".slurm"


def asked_options(asked: SlurmJob, nodes: int) -> tuple[str, ...]:
    """What a job asks for, as options of sbatch; the user's own come last and so go over the others."""
    values = {
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "gres": f"gpu:{asked.gpus}" if asked.gpus is not None else None,
        "cpus-per-task": asked.cpus,
        "mem": asked.memory,
        "time": asked.time,
    }
    said = (f"--{name}={value}" for name, value in values.items() if value is not None)
    fixed = (f"--nodes={nodes}", "--ntasks-per-node=1", "--requeue", "--export=ALL")
    return (*fixed, *said, *asked.arguments)


def stage_nodes(config: Config, stage: StageName) -> int:
    """Nodes that a stage needs: as many as the training in it, where Slurm starts its ranks, else one."""
    trains = stage == "train" or (stage == "score" and config.score.effect_source == "adapter")
    launcher = config.train.launcher
    return launcher.slurm.nodes if trains and launcher.kind == "slurm" else 1


def program() -> tuple[str, ...]:
    """This environment's `nextquill`."""
    command = Path(sys.executable).with_name("nextquill")
    return (str(command),) if command.is_file() else (sys.executable, "-m", "flows")


def stage_setup(api: str, *, cpus: bool) -> tuple[str, ...]:
    """What a node does before the stage.

    Args:
        api: URL of the flow's Prefect server; empty where it has none that lasts.
        cpus: Whether the job asks for a number of them, which neither srun nor torch takes over by itself.
    """
    here = Path.cwd()
    lines = [
        f"cd {shlex.quote(str(here))} || {{",
        f'  echo "nextquill: $(hostname): this node does not see the folder" {shlex.quote(str(here))} >&2',
        "  exit 2",
        "}",
    ]
    if cpus:
        count = '"${SLURM_CPUS_PER_TASK:-1}"'
        lines.append(f"export SRUN_CPUS_PER_TASK={count} OMP_NUM_THREADS={count}")
    parts = urlsplit(api)
    if parts.hostname in LOOPBACK or str(parts.hostname).startswith("127."):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        lines += [
            "# The flow's Prefect server listens on its own machine alone, which may be another one.",
            f"if ! (: </dev/tcp/{parts.hostname}/{port}) 2>/dev/null; then",
            f'  echo "$(hostname) does not see the Prefect server at {parts.hostname}:{port}; the flow shows it" >&2',
            "  export PREFECT_API_URL=",
            "fi",
        ]
    lines += [
        "# Without a server the run has one of its own, with nothing on a disk that another node may be writing to.",
        f': "${{PREFECT_SERVER_DATABASE_CONNECTION_URL:={OWN_DATABASE}}}"',
        "export PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "",
    ]
    return tuple(lines)


def handed_on() -> dict[str, str]:
    """What a job's environment gets besides this process's: Prefect's settings, wherever they are, and who asked."""
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    return settings | {SUBMITTED_BY: _page() or str(flow_run.id or "")}


def in_job() -> bool:
    """Whether this process is the job that another flow run follows, which tells the world about it."""
    return bool(os.environ.get(SUBMITTED_BY))


def introduce_job() -> None:
    """In a job: tie this flow run to the one that follows it, by a tag that both have and by their pages in the log."""
    if number := os.environ.get("SLURM_JOB_ID"):
        tag_run(job_tag(number))
    if page := _page():
        get_run_logger().info("this job's own flow run: %s, followed by %s", page, os.environ[SUBMITTED_BY])


def job_tag(number: str) -> str:
    """The tag of the flow runs that belong to a job."""
    return f"slurm-job-{number}"


@our_task(task_run_name="slurm {stage}", retries=0)
def run_stage_job(run: Run, stage: StageName, job: Job) -> str:
    """Run a stage's job to its end, or follow the one that is at it; returns its number."""
    slurm, logger = run.config.slurm, get_run_logger()
    numbers: list[str] = []

    def number_known(number: str) -> None:
        numbers.append(job_tag(number))
        tag_run(*numbers)

    with JobLog(lambda line: logger.info("%s", line)) as log:
        return run_job(
            job,
            resubmit=slurm.resubmit,
            resubmit_after=slurm.resubmit_after,
            poll_s=slurm.poll_s,
            say=lambda line: logger.info("%s: %s", stage, line),
            on_line=log,
            on_number=number_known,
        )


def refuse_hidden_secret(config: Config) -> None:
    """Refuse a key of the pseudonyms that only this process's own Prefect server knows.

    Raises:
        UserError: It is in a Secret block, and there is no server that a job could ask for it.
    """
    if config.privacy.pseudonymize and config.privacy.key_secret and not PREFECT_API_URL.value():
        raise UserError(
            "a job sees no Secret block of a server that lives as long as this process",
            "privacy.key_secret",
            "set PREFECT_API_URL, or use key_env: the environment goes along",
        )


class JobLog:
    """Shows the lines of a job's log as they would be shown here: messages as messages, progress as progress.

    Args:
        say: Told the messages, without the time that stands before them.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._title = ""
        self._progress: ShownProgress | None = None

    def __enter__(self) -> JobLog:
        return self

    def __call__(self, line: str) -> None:
        """Show a line."""
        line = CLOCK.sub("", line)
        if found := PROGRESS.match(line):
            if self._progress is None or found["title"] != self._title:
                self._close()
                self._title, self._progress = found["title"], ShownProgress(found["title"]).__enter__()
            done, total = _number(found["done"]), _number(found["total"])
            self._progress(done, total, found["note"], phase=found["phase"] or "")
        elif line.strip():
            self._say(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._progress:
            self._progress.__exit__(None, None, None)
        self._progress = None


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _page() -> str:
    """This flow run's page in the UI; empty where there is no server that lasts."""
    return str(flow_run.ui_url or "") if PREFECT_API_URL.value() else ""
