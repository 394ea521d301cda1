"""Ctrl-C, signals, kills and dead servers: a command ends within seconds, says so in one line, and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from nextquill_core.config import load_config
from nextquill_core.pipeline import ingest as prepare
from nextquill_core.pipeline import score
from nextquill_core.pipeline.run import Run
from nextquill_core.progress import silent
from tasks.ranks.scoring_workers import run_workers
from tests.flows.conftest import Server
from tests.terminal import Terminal, in_terminal, kill
from tests.world import small_settings, write_config

pytestmark = [
    pytest.mark.flow,
    pytest.mark.process,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="a look at the processes of others"),
]

PROMISED_S = 10.0
INTERRUPTED = "nextquill: interrupted; the same command resumes"
STARTS = "starts a temporary server"
ANSWERS = "the temporary server answers"
RANK, WORKER, SERVER = "nextquill_core.training.worker", "nextquill_core.causal.worker", "flows.server.temporary"
LONG = ("--set", "train.epochs=2000", "--set", "train.checkpoint_every=1", "--set", "train.global_batch=4")


@pytest.fixture(scope="module")
def scored(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything that comes before training."""
    folder = tmp_path_factory.mktemp("interruption")
    settings = small_settings(small_world, folder / "store")
    settings["evaluate"] |= {"methods": ["nextquill"], "decoding": ["paper"]}
    write_config(folder / "config.yaml", settings)
    run = Run(load_config(folder / "config.yaml"))
    for category in run.plan.scans:
        prepare.scan(run, category, silent)
    prepare.ingest(run, silent)
    prepare.base_model(run, silent)
    score.effects(run, silent, partial(run_workers, workers=1))
    score.weights(run, None)
    return folder


@pytest.fixture
def folder(scored: Path, tmp_path: Path) -> Path:
    """The same store, of this test alone."""
    folder = tmp_path / "run"
    shutil.copytree(scored, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    write_config(folder / "config.yaml", settings | {"store": str(folder / "store")})
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's folder, with a database once the first command has run."""
    return tmp_path_factory.mktemp("prefect")


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


def ranks_run(terminal: Terminal) -> bool:
    """Whether both ranks and their launcher are there."""
    return len(terminal.named(RANK)) > 2


def steps_done(folder: Path) -> Callable[[], bool]:
    """Whether a training has done a step."""
    return lambda: any((folder / "store" / "train").glob(".staging-*/metrics.jsonl"))


MOMENTS: dict[str, tuple[tuple[str, ...], Any, float]] = {
    "announcing": (("run",), "nextquill run:", 0),
    "server-starts": (("run",), STARTS, 1),
    "importing": (("train", *LONG), STARTS, 4),
    "first-flow": (("train", *LONG), ANSWERS, 0),
    "model": (("model", "--force", "--set", "model.tiny.steps=3000"), "base model: 1 of", 0),
    "scoring": (("score", "--force"), "score: ", 0),
    "scoring-workers": (("score", "--force", "--set", "score.workers=2"), WORKER, 0),
    "ranks-start": (("train", *LONG), RANK, 0),
    "training": (("train", *LONG), "steps", 0),
    "evaluating": (("run",), "train nextquill: made in", 3),
    "sweep": (("sweep", "train.alpha=0.1,0.2", *LONG), RANK, 1),
    "sweep-parallel": (("sweep", "train.alpha=0.1,0.2", "--parallel", "2", *LONG), RANK, 1),
    "reproduce": (("reproduce", *LONG), ANSWERS, 2),
}
QUICK = ("server-starts", "training")


@pytest.mark.parametrize(
    "moment", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS]
)
def test_ctrl_c_ends_a_command_at_every_moment(folder: Path, home: Path, moment: str) -> None:
    (command, *more), until, after_s = MOMENTS[moment]
    with in_terminal(command, *more, "-c", folder / "config.yaml", environment=environment(home)) as terminal:
        if until == "steps":
            terminal.wait_for(steps_done(folder))
        elif until in (RANK, WORKER):
            terminal.wait_for(lambda: bool(terminal.named(until)))
        else:
            terminal.wait_for(until)
        time.sleep(after_s)
        terminal.press_ctrl_c()
        assert_interrupted(terminal)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_a_command_as_ctrl_c_does(folder: Path, home: Path, name: str) -> None:
    with in_terminal("train", *LONG, "-c", folder / "config.yaml", environment=environment(home)) as terminal:
        terminal.wait_for(lambda: ranks_run(terminal))
        os.kill(terminal.pid, getattr(signal, name))
        assert_interrupted(terminal)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_command_at_once(folder: Path, home: Path) -> None:
    with in_terminal("train", *LONG, "-c", folder / "config.yaml", environment=environment(home)) as terminal:
        terminal.wait_for(lambda: ranks_run(terminal))
        terminal.press_ctrl_c()
        time.sleep(0.5)
        terminal.press_ctrl_c()
        started = time.monotonic()
        assert_interrupted(terminal)
        assert time.monotonic() - started < 3


def test_a_command_that_cannot_unwind_is_ended_by_the_watchdog(tmp_path: Path) -> None:
    """The main thread swallows the signal; a child of it has a session and ignores SIGTERM."""
    code = (
        "import signal, subprocess, sys, time\n"
        "from flows import interruption\n"
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
    with in_terminal("train", *LONG, "-c", folder / "config.yaml", environment=environment(home)) as terminal:
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


def runs_of(server: Server) -> set[tuple[str, str]]:
    return {(run["state_type"], run["state_name"]) for run in server.post("/flow_runs/filter", json.dumps({}))}


@pytest.mark.slow
def test_ctrl_c_leaves_interrupted_on_a_server_that_is_set(server: Server, folder: Path) -> None:
    with in_terminal("train", *LONG, "-c", folder / "config.yaml", environment=server.environment) as terminal:
        terminal.wait_for(lambda: ranks_run(terminal))
        assert ("RUNNING", "Running") in runs_of(server)
        terminal.press_ctrl_c()
        assert_interrupted(terminal)
        assert ("CANCELLED", "Interrupted") in runs_of(server)
        assert ("RUNNING", "Running") not in runs_of(server)


@pytest.fixture
def own_server(home: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A server to kill; its process and the URL of its API."""
    from flows.server.temporary import TemporaryServer

    started = TemporaryServer(home, 180.0)
    started.wait_until_healthy()
    started._listener.close()  # so that nothing answers when it is dead
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
