"""Ctrl-C, signals, kills and dead servers: a command ends within seconds, says so in one line, and leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.cli.interruption import PATIENCE_S
from nextquill_core.config import load_config
from nextquill_core.pipeline.run import Run
from tasks.gpu_lock import LIMIT
from tests.conftest import REPO
from tests.prefect_server import Server
from tests.stages import make, ranks
from tests.terminal import Terminal, in_terminal, kill
from tests.world import small_settings, write_config

pytestmark = [
    pytest.mark.flow,
    pytest.mark.process,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at other processes"),
]

PROMISED_S = 10.0
INTERRUPTED = "nextquill: interrupted; the same command resumes"
ANSWERS = "the temporary server answers"
RANK, WORKER, SERVER = "nextquill_core.training.worker", "nextquill_core.causal.worker", "flows.server.temporary"
LONG = tuple(
    word
    for setting in ("epochs=2000", "checkpoint_every=1", "global_batch=4")
    for word in ("--set", f"train.{setting}")
)
TWO_RANKS = (*LONG, "--set", "train.launcher.processes=2")


@pytest.fixture(scope="module")
def scored(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything that comes before training."""
    folder = tmp_path_factory.mktemp("interruption")
    shutil.copytree(prepared_store, folder / "store")
    settings = small_settings(small_world, folder / "store")
    settings["evaluate"] |= {"methods": ["nextquill"], "decoding": ["paper"]}
    write_config(folder / "config.yaml", settings)
    return folder


@pytest.fixture(scope="module")
def trained(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scored store with the trained adapter."""
    folder = copy_of(scored, tmp_path_factory.mktemp("trained"))
    run = Run(load_config(folder / "config.yaml"))
    make(run, run.plan.train[run.config.train.method], launch=ranks(1))
    return folder


@pytest.fixture
def folder(scored: Path, tmp_path: Path) -> Path:
    """A copy of the scored store for one test."""
    return copy_of(scored, tmp_path)


def copy_of(made: Path, to: Path) -> Path:
    """Copy a store and its configuration into a folder, and return where they are."""
    folder = to / "run"
    shutil.copytree(made, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    write_config(folder / "config.yaml", settings | {"store": str(folder / "store")})
    return folder


@pytest.fixture(scope="module")
def home(prefect_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's folder."""
    return shutil.copytree(prefect_tables, tmp_path_factory.mktemp("interruption") / "prefect")


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return {**kept, "PREFECT_HOME": str(home), **more}


def assert_interrupted(terminal: Terminal) -> None:
    code, seconds = terminal.end(PROMISED_S + 5)
    print(f"ended after {seconds:.1f} s")
    assert code == 130, terminal.text
    assert seconds < PROMISED_S
    assert terminal.none_left(), terminal.left()
    assert terminal.text.count(INTERRUPTED) == 1
    assert "Traceback" not in terminal.text


Moment = Callable[[Terminal, Path], bool]
"""Returns whether a command, whose store is in the folder, has reached a moment."""


def shows(text: str) -> Moment:
    return lambda terminal, folder: text in terminal.text


def runs(module: str) -> Moment:
    """Return the moment at which a process of a module runs."""
    return lambda terminal, folder: bool(terminal.named(module))


def imports_torch(terminal: Terminal, folder: Path) -> bool:
    return any("libtorch_cpu" in one.path for one in terminal.process.memory_maps())


def trains(terminal: Terminal, folder: Path) -> bool:
    """Return whether a training has done a step."""
    return any((folder / "store" / "train").glob(".staging-*/metrics.jsonl"))


def ranks_run(terminal: Terminal) -> bool:
    """Return whether both ranks and their launcher run."""
    return len(terminal.named(RANK)) > 2


def many(moments: Mapping[str, Any], quick: Sequence[str]) -> pytest.MarkDecorator:
    """Parametrise a test by the names of moments; those that are not quick are slow tests."""
    names = [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in moments]
    return pytest.mark.parametrize("moment", names)


WITH_TEMPORARY_SERVER: dict[str, tuple[tuple[str, ...], Moment]] = {
    "announcing": (("run",), shows("nextquill run:")),
    "server-starts": (("run",), runs(SERVER)),
    "importing": (("train", *LONG), imports_torch),
    "first-flow": (("train", *LONG), shows(ANSWERS)),
    "ranks-start": (("train", *LONG), runs(RANK)),
    "training": (("train", *LONG), trains),
    "sweep-parallel": (("sweep", "train.alpha=0.1,0.2", "--parallel", "2", *LONG), trains),
}
WITH_A_SERVER: dict[str, tuple[tuple[str, ...], Moment]] = {
    "model": (("model", "--force", "--set", "model.tiny.steps=3000"), shows("model ━")),
    "scoring": (("score", "--force"), shows("effects: loading the model")),
    "scoring-workers": (("score", "--force", "--set", "score.workers=2"), runs(WORKER)),
    "training": (("train", *LONG), trains),
    "sweep": (("sweep", "train.alpha=0.1,0.2", *LONG), trains),
    "reproduce": (("reproduce", *LONG), trains),
}


@many(WITH_TEMPORARY_SERVER, quick=["server-starts", "training"])
def test_ctrl_c_ends_a_command_at_every_moment(folder: Path, home: Path, moment: str) -> None:
    arguments, reached = WITH_TEMPORARY_SERVER[moment]
    with in_terminal(*arguments, "-c", folder / "config.yaml", environment=environment(home)) as terminal:
        terminal.wait_for(lambda: reached(terminal, folder))
        terminal.press_ctrl_c()
        assert_interrupted(terminal)


@many(WITH_A_SERVER, quick=[])
def test_ctrl_c_leaves_interrupted_on_a_server_that_is_set(server: Server, folder: Path, moment: str) -> None:
    arguments, reached = WITH_A_SERVER[moment]
    before = {run["id"] for run in server.runs()}
    with in_terminal(*arguments, "-c", folder / "config.yaml", environment=server.environment) as terminal:
        terminal.wait_for(lambda: reached(terminal, folder))
        terminal.press_ctrl_c()
        assert_interrupted(terminal)
        ends = [(run["state_type"], run["state_name"]) for run in server.runs() if run["id"] not in before]
        assert ("CANCELLED", "Interrupted") in ends
        assert {kind for kind, _ in ends} <= {"CANCELLED", "COMPLETED"}


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["likelihood qwen: loading the model", "evaluate: drawing the report"])
def test_ctrl_c_ends_an_evaluation(server: Server, trained: Path, tmp_path: Path, phase: str) -> None:
    folder = copy_of(trained, tmp_path)
    command = ("evaluate", "-c", folder / "config.yaml", "--set", "evaluate.methods=[qwen]")
    with in_terminal(*command, environment=server.environment) as terminal:
        terminal.wait_for(phase)
        terminal.press_ctrl_c()
        assert_interrupted(terminal)


@pytest.mark.slow
def test_ctrl_c_ends_a_command_that_waits_for_another_training(server: Server, folder: Path) -> None:
    limit = "training-interrupted"
    server.post("/v2/concurrency_limits/", name=limit, limit=1)
    taken = {"names": [limit], "slots": 1, "mode": "concurrency"}
    server.post("/v2/concurrency_limits/increment", **taken)
    with in_terminal(
        "train", "-c", folder / "config.yaml", environment=server.environment | {LIMIT: limit}
    ) as terminal:
        terminal.wait_for(f"waits, another training is running (limit {limit})")
        pressed = time.monotonic()
        terminal.press_ctrl_c()
        assert_interrupted(terminal)
        assert time.monotonic() - pressed < PATIENCE_S, "it ends before the watchdog ends it"
    server.post("/v2/concurrency_limits/decrement", **taken)
    assert server.ask("GET", f"/v2/concurrency_limits/{limit}")["active_slots"] == 0


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_at_its_second_point_reuses_the_first(server: Server, folder: Path) -> None:
    command = ("sweep", "train.alpha=0.1,0.2", "-c", folder / "config.yaml")
    with in_terminal(*command, environment=server.environment) as terminal:
        terminal.wait_for("train.alpha=0.2: started")
        terminal.press_ctrl_c()
        assert_interrupted(terminal)
    with in_terminal(*command, environment=server.environment) as terminal:
        code, _ = terminal.end(240)
        assert code == 0, terminal.text
        assert "train.alpha=0.1: reused" in terminal.text
        assert "train.alpha=0.2: started" in terminal.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_a_command_as_ctrl_c_does(folder: Path, home: Path, name: str) -> None:
    with in_terminal("train", *TWO_RANKS, "-c", folder / "config.yaml", environment=environment(home)) as terminal:
        terminal.wait_for(lambda: ranks_run(terminal))
        os.kill(terminal.pid, getattr(signal, name))
        assert_interrupted(terminal)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_command_at_once(folder: Path, home: Path) -> None:
    with in_terminal("train", *TWO_RANKS, "-c", folder / "config.yaml", environment=environment(home)) as terminal:
        terminal.wait_for(lambda: ranks_run(terminal))
        terminal.press_ctrl_c()
        time.sleep(0.5)
        terminal.press_ctrl_c()
        started = time.monotonic()
        assert_interrupted(terminal)
        assert time.monotonic() - started < 3


def test_a_command_that_cannot_unwind_is_ended_by_the_watchdog(tmp_path: Path) -> None:
    # The main thread swallows the signal, and a child with its own session ignores SIGTERM.
    code = (
        "import signal, subprocess, sys, time\n"
        "from flows.cli import interruption\n"
        "deaf = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'\n"
        "def command():\n"
        "    subprocess.Popen([sys.executable, '-c', deaf], start_new_session=True)\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        try: time.sleep(60)\n"
        "        except KeyboardInterrupt: pass\n"
        "interruption.run(command)\n"
    )
    with in_terminal(code, environment=dict(os.environ), as_code=True) as terminal:
        terminal.wait_for("ready")
        terminal.wait_for(lambda: bool(terminal.left()))
        terminal.press_ctrl_c()
        assert_interrupted(terminal)


def test_kill_of_the_command_leaves_no_process(folder: Path, home: Path) -> None:
    with in_terminal("train", *TWO_RANKS, "-c", folder / "config.yaml", environment=environment(home)) as terminal:
        terminal.wait_for(lambda: ranks_run(terminal))
        assert terminal.named(SERVER)
        kill(terminal.process)
        assert terminal.end(5)[0] == -signal.SIGKILL
        assert terminal.none_left(5), terminal.left()


def test_a_server_that_is_killed_is_replaced_and_the_run_finishes(folder: Path, home: Path) -> None:
    with in_terminal("train", "-c", folder / "config.yaml", environment=environment(home)) as terminal:
        terminal.wait_for(lambda: bool(terminal.named(RANK)))
        kill(terminal.named(SERVER)[0])
        terminal.wait_for("Prefect's temporary server ended (exit code -9)", 5)
        code, _ = terminal.end(240)
        assert code == 0, terminal.text
        assert "made in" in terminal.text
        assert terminal.none_left()


@pytest.mark.slow
def test_a_server_that_cannot_be_replaced_ends_the_command_in_one_line(folder: Path, home: Path) -> None:
    with in_terminal("train", *LONG, "-c", folder / "config.yaml", environment=environment(home)) as terminal:
        terminal.wait_for(lambda: bool(terminal.named(RANK)))
        kill(terminal.named(SERVER)[0])
        terminal.wait_for("a new one starts", 5)
        terminal.wait_for(lambda: bool(terminal.named(SERVER)), 5)
        started = time.monotonic()
        kill(terminal.named(SERVER)[0])
        code, _ = terminal.end(15)
        assert code == 1
        assert time.monotonic() - started < PROMISED_S
        last = terminal.text.splitlines()[-1]
        assert last.startswith("nextquill: Prefect's temporary server ended (exit code -9); its log is ")
        assert last.endswith("temporary-server.log; the same command resumes")
        assert terminal.none_left()


def test_a_server_that_dies_while_it_starts_ends_the_command_in_one_line(folder: Path, home: Path) -> None:
    with in_terminal("train", *LONG, "-c", folder / "config.yaml", environment=environment(home)) as terminal:
        terminal.wait_for(lambda: bool(terminal.named(SERVER)))
        kill(terminal.named(SERVER)[0])
        code, _ = terminal.end(60)
        assert code == 1
        assert "nextquill: Prefect's temporary server ended (exit code -9); its log is " in terminal.text
        assert "Traceback" not in terminal.text
        assert terminal.none_left()


@pytest.fixture
def own_server(home: Path) -> Iterator[tuple[psutil.Process, str]]:
    """The process and the API's URL of a server that the test may kill."""
    from flows.server.temporary import TemporaryServer

    started = TemporaryServer(home, 180.0)
    started.wait_until_healthy()
    started._listener.close()  # so that connections are refused after its end
    yield psutil.Process(started.process.pid), f"http://127.0.0.1:{started.port}/api"
    started.process.kill()
    started.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_set_server_that_dies_or_hangs_ends_the_command_in_one_line(
    folder: Path, home: Path, own_server: tuple[psutil.Process, str], how: str
) -> None:
    process, url = own_server
    with in_terminal("train", "-c", folder / "config.yaml", environment=environment(home, PREFECT_API_URL=url)) as run:
        run.wait_for(lambda: bool(run.named(RANK)))
        process.send_signal(getattr(signal, how))
        code, seconds = run.end(150)
        print(f"ended after {seconds:.1f} s")
        assert code == 1
        assert f"nextquill: the Prefect server at {url} " in run.text
        assert "Traceback" not in run.text
        assert run.none_left()


@pytest.mark.slow
def test_a_parallel_sweep_whose_server_dies_starts_no_more_points_and_ends_in_one_line(
    folder: Path, home: Path, own_server: tuple[psutil.Process, str]
) -> None:
    process, url = own_server
    command = ("sweep", "train.alpha=0.1,0.2,0.3", "--parallel", "2", *LONG)
    environ = environment(home, PREFECT_API_URL=url)
    with in_terminal(*command, "-c", folder / "config.yaml", environment=environ) as run:
        run.wait_for(lambda: len(list((folder / "store" / "train").glob(".staging-*/metrics.jsonl"))) == 2)
        process.kill()
        code, seconds = run.end(150)
        print(f"ended after {seconds:.1f} s")
        assert code == 1, run.text
        assert run.text.count(": started, log") == 2
        assert run.text.splitlines()[-1].startswith(f"nextquill: the Prefect server at {url} ")
        assert "Traceback" not in run.text
        assert run.none_left()


TURNED = """
import os, signal
from flows.cli import interruption

def command():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except KeyboardInterrupt:
        raise ValueError("a serializer failed") from None

interruption.run(command)
"""


def test_a_signal_that_a_library_turned_into_another_error_is_an_interruption() -> None:
    ended = subprocess.run([sys.executable, "-c", TURNED], capture_output=True, text=True, timeout=60, cwd=REPO)
    assert (ended.returncode, ended.stderr.strip()) == (130, INTERRUPTED)
