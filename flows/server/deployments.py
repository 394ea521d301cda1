"""What a local Prefect server is given: work pools, limits and deployments; and its runs ended before it is.

The server is the one that PREFECT_API_URL names. What is there already stays as people have set it.
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

from flows.server.processes import wait_until
from storage.errors import UserError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

FILE = "prefect.yaml"
POOLS = ("cpu", "gpu")
GPU = "gpu"
"""With what the name of a pool begins whose machines train: its trainings take turns."""
ENDED = "ended by `nextquill down`; run it again, and it goes on where it stopped"


@dataclass(frozen=True)
class Project:
    """A prefect.yaml of ours.

    Attributes:
        folder: Where it is; the relative paths of its flow runs start there.
        pools: The work pools that it names.
        deployments: How many there are.
        digest: Of the file and of the code that its forms are made from.
    """

    folder: Path
    pools: tuple[str, ...]
    deployments: int
    digest: str


def find_project(here: Path) -> Project:
    """The prefect.yaml in a folder, or else the one beside this package.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    beside = Path(__file__).resolve().parents[2]
    for folder in (here, beside):
        if (known := _read(folder / FILE)) is not None:
            break
    else:
        raise UserError(
            f"there is no {FILE} of NextQuill here, nor beside the installed package",
            str(here),
            "run this in a copy of the repository, or with --no-deploy for a server, pools and workers alone",
        )
    deployments = known["deployments"]
    pools = dict.fromkeys(deployment["work_pool"]["name"] for deployment in deployments)
    sources = [folder / FILE, *sorted(beside.glob("flows/*.py")), *sorted(beside.glob("nextquill_core/config/*.py"))]
    digest = hashlib.sha256(str(folder).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return Project(folder, tuple(pools), len(deployments), digest.hexdigest())


def _read(path: Path) -> dict[str, Any] | None:
    """The file, if it is one of ours: another project's prefect.yaml is none of our business."""
    import yaml

    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
        ours = known["name"] == "nextquill" and all(one["work_pool"]["name"] for one in known["deployments"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot be read ({type(error).__name__})", str(path), "mend the file") from None
    except (KeyError, TypeError):
        return None
    return known if ours else None


def training_limits(pools: Sequence[str]) -> list[str]:
    """The concurrency limits for the trainings of these pools: `training-POOL` for each pool of GPUs."""
    return [f"training-{pool}" for pool in pools if pool.startswith(GPU)]


def set_up(pools: Sequence[str]) -> list[str]:
    """Create the work pools and limits that are missing; returns what was created, in words."""
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
    """Deploy everything in a project; schedules that somebody has set running or paused since stay so.

    Args:
        project: What to deploy.
        log: Gets what Prefect says.
        environment: Names the server.

    Returns:
        Whether Prefect took it.
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
    """Whether the server has fewer deployments than the project."""
    with _client() as client:
        return len(client.read_deployments(limit=200)) < project.deployments


def active_schedules() -> list[str]:
    """The deployments that run on a schedule, and are not paused."""
    return sorted({key[0] for key, (_, _, active) in _schedules().items() if active})


def polling(pool: str, worker: str, since: datetime) -> bool:
    """Whether a worker has reported to the server since then."""
    with _client() as client:
        known = next((one for one in client.read_workers_for_work_pool(pool) if one.name == worker), None)
    return bool(known and known.last_heartbeat_time and known.last_heartbeat_time >= since)


def cancel_runs(patience_s: float) -> int:
    """Ask for the end of all runs that workers have begun, and wait for it; returns how many there were."""
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
    """Mark runs whose processes have been ended as cancelled."""
    from prefect.states import Cancelled

    with _client() as client:
        for run in _begun(client):
            client.set_flow_run_state(run.id, Cancelled(message=ENDED), force=True)


def _begun(client: SyncPrefectClient) -> list[FlowRun]:
    """Runs that a worker has begun and that have not ended; a stage inside another's run is ended with that."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    active = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=active)), limit=200)
    return [run for run in runs if run.work_pool_name]


def _schedules() -> dict[tuple[str, str], tuple[Any, Any, bool]]:
    """Ids of deployment and schedule and whether it is active, by the deployment's name and the schedule's slug."""
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
