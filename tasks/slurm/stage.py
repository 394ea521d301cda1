"""Run a stage as a Slurm job: its resources, its command, and its log shown like that of a local stage."""

from __future__ import annotations

import os
import re
import shlex
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
from tasks.ui import tag_run

SUBMITTED_BY = "NEXTQUILL_SUBMITTED_BY"
"""Environment variable of a job with the page, or else the id, of the flow run that follows it."""
SETTINGS = "config.yaml"
LOOPBACK = {"localhost", "::1"}
MEMORY_DATABASE = "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false"
TIME_OF_DAY = re.compile(r"^\d\d:\d\d:\d\d  ")
PROGRESS = re.compile(
    r"^(?P<title>.+?): (?:(?P<phase>[a-z][^:]*?) )?(?P<done>[\d,]+) of (?P<total>[\d,]+)  (?P<note>.*)$"
)


def stage_job(
    run: Run,
    stage: StageName,
    asked: SlurmJob,
    steps: Sequence[Step],
    settings: Config,
    *,
    program: Sequence[str],
    force: bool,
) -> Job:
    """Return the job that runs a stage.

    Args:
        run: The configuration and its store.
        stage: Name of the stage and of its command.
        asked: Resources that the job asks for.
        steps: Steps that the job makes. Two jobs that make the same steps in the same store have the same name, so the
            second one follows the first, whatever other settings differ.
        settings: Configuration of the job; its section `slurm` is replaced by the defaults.
        program: Command line of `nextquill` on the nodes.
        force: Whether it makes what is up to date again.

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
            *resource_options(asked, stage_nodes(run.config, stage)),
        ),
        command=(*program, stage, "--config", str(folder / SETTINGS), *(["--force"] if force else [])),
        setup=stage_setup(PREFECT_API_URL.value() or "", cpus=asked.cpus is not None),
        files={SETTINGS: yaml.safe_dump(plain.model_dump(mode="json"), sort_keys=False, allow_unicode=True)},
        environment=extra_environment(),
    )


def jobs_folder(run: Run) -> Path:
    """Return the folder with the scripts and logs of this configuration's jobs."""
    if run.config.slurm.folder:
        return Path(run.config.slurm.folder).expanduser().resolve()
    scheme, separator, _ = run.config.store.partition("://")
    return Path.cwd() / ".slurm" if separator and scheme != "file" else run.store.root / ".slurm"


def resource_options(asked: SlurmJob, nodes: int) -> tuple[str, ...]:
    """Return a job's resources as options of sbatch; the user's options are last and take precedence.

    Args:
        asked: Resources that the job asks for.
        nodes: Number of nodes.
    """
    values = {
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "gres": f"gpu:{asked.gpus}" if asked.gpus is not None else None,
        "cpus-per-task": asked.cpus,
        "mem": asked.memory,
        "time": asked.time,
    }
    options = (f"--{name}={value}" for name, value in values.items() if value is not None)
    fixed = (f"--nodes={nodes}", "--ntasks-per-node=1", "--requeue", "--export=ALL")
    return (*fixed, *options, *asked.arguments)


def stage_nodes(config: Config, stage: StageName) -> int:
    """Return the number of nodes of a stage: those of its training if Slurm starts the ranks, otherwise one."""
    trains = stage == "train" or (stage == "score" and config.score.effect_source != "initial")
    launcher = config.train.launcher
    return launcher.slurm.nodes if trains and launcher.kind == "slurm" else 1


def stage_setup(api: str, *, cpus: bool) -> tuple[str, ...]:
    """Return the lines of bash that a node runs before the stage.

    Args:
        api: URL of the flow's Prefect server; empty if the server is a temporary one.
        cpus: Whether the job asks for a number of CPUs; srun and torch need that number.
    """
    here = Path.cwd()
    lines = [
        f"cd {shlex.quote(str(here))} || {{",
        f'  echo "nextquill: $(hostname): this node cannot see the folder" {shlex.quote(str(here))} >&2',
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
            "# The flow's Prefect server listens only on its own machine, which may not be this node.",
            f"if ! (: </dev/tcp/{parts.hostname}/{port}) 2>/dev/null; then",
            f'  echo "$(hostname) cannot reach the Prefect server at {parts.hostname}:{port}; the flow shows it" >&2',
            "  export PREFECT_API_URL=",
            "fi",
        ]
    lines += [
        "# Without a server the run starts a temporary one, in memory because nodes may share the disk.",
        f': "${{PREFECT_SERVER_DATABASE_CONNECTION_URL:={MEMORY_DATABASE}}}"',
        "export PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "",
    ]
    return tuple(lines)


def extra_environment() -> dict[str, str]:
    """Return the variables that a job gets in addition to this process's own: Prefect's settings, and the flow run."""
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    return settings | {SUBMITTED_BY: _page() or str(flow_run.id or "")}


def in_job() -> bool:
    """Return whether this process is a job that another flow run follows."""
    return bool(os.environ.get(SUBMITTED_BY))


def introduce_job() -> None:
    """Link a job's flow run to the one that follows it: both get the same tag, and the log names both pages."""
    if number := os.environ.get("SLURM_JOB_ID"):
        tag_run(job_tag(number))
    if page := _page():
        get_run_logger().info("this job's own flow run: %s, followed by %s", page, os.environ[SUBMITTED_BY])


def job_tag(number: str) -> str:
    """Return the tag of the flow runs that belong to a job."""
    return f"slurm-job-{number}"


@our_task(task_run_name="slurm {stage}", retries=0)
def run_stage_job(run: Run, stage: StageName, job: Job) -> str:
    """Run a stage's job to its end, or follow the one that exists already.

    Args:
        run: The configuration and its store.
        stage: Name of the stage.
        job: The job, as `stage_job` returns it.

    Returns:
        The job's number.
    """
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
    """Make sure that a job can read the key of the pseudonyms.

    Raises:
        UserError: The key is in a Secret block of a temporary Prefect server, which a job cannot reach.
    """
    if config.privacy.pseudonymize and config.privacy.key_secret and not PREFECT_API_URL.value():
        raise UserError(
            "a Slurm job cannot read a Secret block of a temporary Prefect server",
            "privacy.key_secret",
            "set PREFECT_API_URL, or use key_env: a job gets the environment",
        )


class JobLog:
    """Shows a job's log like that of a local stage: messages as messages, progress as a progress bar.

    Args:
        say: Called with each message, without the time of day at its beginning.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._title = ""
        self._progress: ShownProgress | None = None

    def __enter__(self) -> JobLog:
        return self

    def __call__(self, line: str) -> None:
        """Show one line of the log."""
        line = TIME_OF_DAY.sub("", line)
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
    """Return this flow run's page in the UI; empty with a temporary server."""
    return str(flow_run.ui_url or "") if PREFECT_API_URL.value() else ""
