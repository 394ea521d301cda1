"""Work pools, limits, deployments and flow runs on the Prefect server that PREFECT_API_URL names.

Objects that exist already keep the settings that users have given them.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import UserError
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

FILE = "prefect.yaml"
POOLS = ("cpu", "gpu")
GPU = "gpu"
"""Prefix of the names of work pools whose machines train; the trainings of such a pool take turns."""
ENDED = "ended by `nextquill down`; run it again to resume"


@dataclass(frozen=True)
class Project:
    """A prefect.yaml of NextQuill.

    Attributes:
        folder: Folder of the file; relative paths of its flow runs begin there.
        pools: Work pools that it names.
        deployments: Names of its deployments.
        digest: Hash of the file and of the code from which the UI's forms are made.
    """

    folder: Path
    pools: tuple[str, ...]
    deployments: frozenset[str]
    digest: str


def find_project(folder: Path) -> Project:
    """Return the prefect.yaml in a folder, or else the one beside this package.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    beside = Path(__file__).resolve().parents[2]
    for place in (folder, beside):
        if (known := _read(place / FILE)) is not None:
            break
    else:
        raise UserError(
            f"there is no {FILE} of NextQuill here or beside the installed package",
            str(folder),
            "run this in a copy of the repository, or add --no-deploy to start only a server, pools and workers",
        )
    deployments = known["deployments"]
    pools = dict.fromkeys(deployment["work_pool"]["name"] for deployment in deployments)
    sources = [place / FILE, *sorted(beside.glob("flows/*.py")), *sorted(beside.glob("nextquill_core/config/*.py"))]
    digest = hashlib.sha256(str(place).encode())
    for path in sources:
        digest.update(path.read_bytes())
    names = frozenset(deployment["name"] for deployment in deployments)
    return Project(place, tuple(pools), names, digest.hexdigest())


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of the file; None if it does not exist or belongs to another project."""
    import yaml

    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
        ours = known["name"] == "nextquill" and all(
            one["name"] and one["work_pool"]["name"] for one in known["deployments"]
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot be read ({type(error).__name__})", str(path), "fix the file") from None
    except (KeyError, TypeError):
        return None
    return known if ours else None


def training_limits(pools: Sequence[str]) -> list[str]:
    """Return the names of the concurrency limits for trainings: `training-POOL` for each pool of GPUs."""
    return [f"training-{pool}" for pool in pools if pool.startswith(GPU)]


def create_missing(pools: Sequence[str]) -> list[str]:
    """Create the work pools and limits that do not exist yet, and return a description of each."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    created = []
    with _client() as client:
        known = {pool.name for pool in client.read_work_pools(limit=200)}
        for name in pools:
            if name not in known:
                template = ProcessWorker.get_default_base_job_template()
                client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
                created.append(f"work pool {name}")
        for name in training_limits(pools):
            try:
                client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
                created.append(f"limit {name}, one training at a time")
    return created


def deploy(project: Project, log: Path, environment: Mapping[str, str]) -> bool:
    """Deploy all deployments of a project; schedules that users have started or paused stay so.

    Args:
        project: The project.
        log: File to which Prefect's output is written.
        environment: Environment variables, which name the server.

    Returns:
        Whether Prefect accepted the deployments.
    """
    before = _schedules()
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            cwd=project.folder,
            env={**environment, "PWD": str(project.folder)},  # prefect.yaml sets the runs' folder from it
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        return False
    with _client() as client:
        for key, (deployment, schedule, active) in _schedules().items():
            if key in before and before[key][2] != active:
                client.update_deployment_schedule(deployment, schedule, active=before[key][2])
    return True


def missing_deployments(project: Project) -> bool:
    """Return whether the server lacks a deployment of the project."""
    with _client() as client:
        return not project.deployments <= {deployment.name for deployment in client.read_deployments(limit=200)}


def active_schedules() -> list[str]:
    """Return the names of the deployments with a schedule that is not paused."""
    return sorted({key[0] for key, (_, _, active) in _schedules().items() if active})


def polling(pool: str, worker: str, since: datetime) -> bool:
    """Return whether a worker has polled the server.

    Args:
        pool: Work pool that the worker serves.
        worker: Name of the worker.
        since: Time from which on a heartbeat counts.
    """
    with _client() as client:
        known = next((one for one in client.read_workers_for_work_pool(pool) if one.name == worker), None)
    return bool(known and known.last_heartbeat_time and known.last_heartbeat_time >= since)


def cancel_runs(patience_s: float) -> int:
    """Cancel all runs that workers have begun, and wait until they have ended.

    Args:
        patience_s: Seconds to wait.

    Returns:
        The number of runs.
    """
    from prefect.states import Cancelling

    asked = set()

    def none_left() -> bool:
        with _client() as client:
            runs = _begun(client)
            for run in runs:
                if run.id not in asked:
                    asked.add(run.id)
                    client.set_flow_run_state(run.id, Cancelling(message=ENDED))
        return not runs

    wait_until(none_left, patience_s)
    return len(asked)


def close_runs() -> None:
    """Set the state of runs whose processes have been ended to Cancelled."""
    from prefect.states import Cancelled

    with _client() as client:
        for run in _begun(client):
            client.set_flow_run_state(run.id, Cancelled(message=ENDED), force=True)


def _begun(client: SyncPrefectClient) -> list[FlowRun]:
    """Return the runs that workers have begun and that have not ended, without the stages inside a pipeline's run."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    active = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=active)), limit=200)
    return [run for run in runs if run.work_pool_name]


def _schedules() -> dict[tuple[str, str], tuple[Any, Any, bool]]:
    """Return deployment id, schedule id and whether it is active, by the deployment's name and the schedule's slug."""
    with _client() as client:
        return {
            (deployment.name, schedule.slug): (deployment.id, schedule.id, schedule.active)
            for deployment in client.read_deployments(limit=200)
            for schedule in deployment.schedules or ()
            if schedule.slug
        }


def _client() -> SyncPrefectClient:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)
