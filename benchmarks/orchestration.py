"""Cost of orchestration: the pipeline under Prefect, a run without work to do, and the status of a full store.

    python -m benchmarks.orchestration --config configs/demo.yaml

Prints three lines of JSON; with the demo's data this takes about twenty minutes on two cores, nearly
all of it for the first. With `--store DIR` the first is left out, and a store that the pipeline has filled is used.

- `pipeline`: the whole configuration into an empty store, the sides in turns, each a process from start to end.
  `prefect` does what `nextquill run` does, with a temporary server that starts and ends with it; `watched` does the
  same with a running server on the same cores. `direct` calls the same stage functions in the same order with the same
  launchers, without flow or task runs. `same_artifacts` counts those with the same bytes in all stores. `outside` is
  the part of the time in which no artifact is being made; it does not depend on the speed of a shared machine.
  `cost_s` is what Prefect needs around the work, measured in a process whose flows and tasks do nothing: its imports,
  the start of a server (which `nextquill run` does during its own imports), one flow run, one task run. `database` is
  the extra time of the first server on a machine; no other figure includes it.
- `fresh`: `nextquill run` when all stages are fresh: `alone`, and `watched` by a server, where each stage is still a
  flow run.
- `status`: `nextquill status` of a store with many artifacts, for a configuration that is `fresh`, for one that is
  `changed` (every artifact of a kind is read to explain why), and for the list of `all`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nextquill_core.config import Config, load_config
from storage import Artifact, InputRef, Store, fingerprint
from storage.manifest import MANIFEST_NAME

FLOW_RUNS, TASK_RUNS = 5, 20
COMMAND = [sys.executable, "-m", "flows"]
STARTUP_S = 180.0
"""Time limit of a server's start, in seconds."""
Taken = dict[str, float]


def direct(settings: Config) -> None:
    """The stages of `flows.pipeline` and of the flows below it, one after the other, in this process alone."""
    from nextquill_core.pipeline import lineage
    from nextquill_core.pipeline.run import Run
    from tasks.ranks.launch import run_ranks
    from tasks.ranks.placement import placement
    from tasks.ranks.processes import process_count
    from tasks.ranks.scoring_workers import run_workers

    run = Run(settings)
    work = partial(run_workers, workers=process_count(settings.score.workers))

    def launch(order: Path, log: Path) -> None:
        run_ranks(order, log, ranks=placement(settings.train.launcher), on_step=lambda _: None)

    options: dict[str, dict[str, Any]] = {"effects": {"launch": work}, "train": {"launch": launch}}
    for step in lineage(run.plan.evaluate):
        run.make(step, **options.get(step.kind, {}))


def prefect(settings: Config) -> None:
    from flows.cli.runner import run_flow

    run_flow("pipeline", settings)


def nothing(settings: Config) -> None:
    """Flow runs and task runs without work; prints what each takes, in seconds."""
    from flows.cli.runner import no_heartbeats, quiet_prefect

    quiet_prefect()
    started = time.perf_counter()
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    imported = time.perf_counter()

    @task(cache_policy=NO_CACHE, persist_result=False)
    def rest() -> None:
        pass

    @flow(persist_result=False)
    def stage(config: Config) -> None:
        pass

    @flow(persist_result=False)
    def whole(config: Config) -> Taken:
        return {
            "flow_run": mean_seconds(partial(stage, config), FLOW_RUNS),
            "task_run": mean_seconds(rest, TASK_RUNS),
        }

    with no_heartbeats():
        taken = whole(settings)
    within = FLOW_RUNS * taken["flow_run"] + TASK_RUNS * taken["task_run"]
    server = time.perf_counter() - imported - within - taken["flow_run"]
    print(json.dumps({"imports": imported - started, "server_start": server, **taken}), flush=True)


SIDES: dict[str, Callable[[Config], None]] = {"direct": direct, "prefect": prefect, "nothing": nothing}


def mean_seconds(call: Callable[[], Any], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def timed(command: Sequence[str], home: Path, server: str = "") -> tuple[Taken, str]:
    """Run a command; return the seconds and processor seconds of it and its children, and its output.

    Args:
        command: Program and arguments.
        home: Prefect's folder.
        server: API address of a running server; "" for none.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(home)} | ({"PREFECT_API_URL": server} if server else {})
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu}, done.stdout


def artifacts(folder: Path) -> list[Artifact]:
    """Return every artifact of a store in a folder."""
    store = Store(folder)
    return [artifact for kind in sorted(store.kinds()) for artifact in store.newest_first(kind)]


def compare_pipelines(options: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Run all sides in turns, in reverse order in every other round.

    All use the same folder for their store, because an adapter names the folder of its base model; the last store
    stays there.

    Args:
        options: Options of the configuration.
        rounds: Number of runs of each side.
        folder: Folder for stores and Prefect's files.
    """
    home, store = folder / "home", folder / "store"
    first, cost = (json.loads(timed(side_command("nothing", options, folder / "nothing"), home)[1]) for _ in range(2))
    cost["database"] = first["server_start"] - cost["server_start"]
    taken: dict[str, list[Taken]] = {"direct": [], "prefect": [], "watched": []}
    made: dict[str, set[InputRef]] = {}
    for number in range(rounds):
        for side in sorted(taken, reverse=number % 2 == 1):
            shutil.rmtree(store, ignore_errors=True)
            with watching(home) if side == "watched" else nullcontext("") as server:
                command = side_command("direct" if side == "direct" else "prefect", options, store)
                taken[side].append(timed(command, home, server)[0])
            found = artifacts(store)
            worked = sum(artifact.manifest.provenance["seconds"] for artifact in found)
            taken[side][-1]["outside"] = taken[side][-1]["seconds"] - worked
            made[side] = {artifact.ref for artifact in found}

    def over_direct(side: str) -> float:
        runs = zip(taken[side], taken["direct"], strict=True)
        return round(statistics.median(one["seconds"] / other["seconds"] for one, other in runs), 3)

    return {
        "what": "pipeline",
        **{
            key: {side: round(statistics.median(run[key] for run in runs), 1) for side, runs in taken.items()}
            for key in ("seconds", "outside", "cpu_seconds")
        },
        "time_over_direct": {side: over_direct(side) for side in taken if side != "direct"},
        "cost_s": {name: round(value, 3) for name, value in cost.items()},
        "artifacts": len(made["prefect"]),
        "same_artifacts": len(set.intersection(*made.values())),
    }


def side_command(side: str, options: Sequence[str], store: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.orchestration", "--side", side, *options, "--set", f"store={store}"]


def median_seconds(command: Sequence[str], rounds: int, home: Path, server: str = "") -> float:
    return round(statistics.median(timed(command, home, server)[0]["seconds"] for _ in range(rounds)), 2)


def fresh_run(options: Sequence[str], store: Path, rounds: int, home: Path) -> dict[str, Any]:
    command = [*COMMAND, "run", *options, "--store", str(store)]
    alone = median_seconds(command, rounds, home)
    with watching(home) as server:
        watched = median_seconds(command, rounds, home, server)
    return {"what": "fresh", "seconds": {"alone": alone, "watched": watched}}


@contextmanager
def watching(home: Path) -> Iterator[str]:
    """Run a Prefect server with a separate folder, and yield its address."""
    from flows.cli.runner import quiet_prefect
    from flows.server.temporary import TemporaryServer

    os.environ["PREFECT_HOME"] = str(home)  # before Prefect is imported
    quiet_prefect()
    server = TemporaryServer(home, STARTUP_S)
    try:
        server.wait_until_healthy()
        yield f"http://127.0.0.1:{server.port}/api"
    finally:
        server.end()


def status_among(options: Sequence[str], store: Path, rounds: int, home: Path) -> dict[str, Any]:
    status = [*COMMAND, "status", *options, "--store", str(store)]
    commands = {"fresh": status, "changed": [*status, "--set", "seed=1"], "all": [*status, "--all"]}
    return {
        "what": "status",
        "artifacts": len(artifacts(store)),
        "seconds": {name: median_seconds(command, rounds, home) for name, command in commands.items()},
    }


def fill(store: Path, count: int) -> None:
    """Copy artifacts by hard links, under other identities, until there are `count`."""
    originals = artifacts(store)
    for number in range(count - len(originals)):
        original = originals[number % len(originals)]
        identity = {**original.manifest.identity, "copy": number}
        manifest = replace(original.manifest, identity=identity, fingerprint=fingerprint(identity))
        folder = store / manifest.kind / manifest.fingerprint
        link_tree(original.home, folder, MANIFEST_NAME)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def link_tree(source: Path, target: Path, *without: str) -> None:
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns(*without))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `nextquill run`")
    parser.add_argument("--store", type=Path, help="a filled store; nothing is written to it")
    parser.add_argument("--artifacts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1, help="runs of both pipelines")
    parser.add_argument("--looks", type=int, default=5, help="runs of the short commands")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> Iterator[dict[str, Any]]:
    given = arguments()
    if given.side:
        SIDES[given.side](load_config(given.config, given.set))
        return
    options = ["--config", str(given.config), *(part for value in given.set for part in ("--set", value))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if given.store is None:
            yield compare_pipelines(options, given.rounds, folder)
        store = folder / "full"
        link_tree(given.store or folder / "store", store, ".lock-*", ".staging-*")
        yield fresh_run(options, store, given.looks, folder / "home")
        fill(store, given.artifacts)
        yield status_among(options, store, given.looks, folder / "home")


if __name__ == "__main__":
    for line in main():
        print(json.dumps(line), flush=True)
