"""Stores that the user may not read or write, or that are not folders: real commands end with an answer or one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nextquill_core.config import load_config
from nextquill_core.pipeline import Plan
from nextquill_core.pipeline.run import Run
from tests.conftest import REPO
from tests.nextquill_core.pipeline.test_plan import make_all
from tests.world import small_settings, write_config

CAPABILITIES = "-dac_override,-dac_read_search"
"""Capabilities with which root may read and write regardless of permissions."""
LOOKS = ("status", "status --json", "status --all", "path evaluate", "report", "gc", "verify")
DRIVER = """
import contextlib, io, json, shlex, sys
from flows.cli.main import exit_code
config, *commands = sys.argv[1:]
ended = []
for command in commands:
    said, errors = io.StringIO(), io.StringIO()
    sys.argv = ["nextquill", *shlex.split(command), "--config", config]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        code = exit_code()
    ended.append([command, code, said.getvalue(), errors.getvalue()])
json.dump(ended, sys.stdout)
"""
"""Program that runs each command as `nextquill` does; an error that `nextquill` does not catch ends in a traceback."""
pytestmark = pytest.mark.process


def unprivileged() -> list[str]:
    """What to put before a command so that permissions count for it.

    Returns:
        Nothing for an ordinary user; for root `setpriv`, which takes the right to ignore them away.
    """
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root ignores permissions, and there is no setpriv to change that")
    return ["setpriv", f"--bounding-set={CAPABILITIES}"]


class Done(NamedTuple):
    """The result of a command."""

    command: str
    code: int
    said: str
    errors: str


def run(config: Path, *commands: str) -> list[Done]:
    """Run commands of `nextquill` one after the other, in one process that must respect permissions."""
    done = subprocess.run(
        [*unprivileged(), sys.executable, "-c", DRIVER, str(config), *commands],
        cwd=REPO, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Done(*values) for values in json.loads(done.stdout)]


def assert_one_line(done: Done, *parts: str) -> None:
    """Assert that a command ended with exit code 2 and one line with these parts."""
    assert done.code == 2, done
    [line] = done.errors.splitlines()
    assert line.startswith("nextquill: ")
    assert all(part in line for part in parts), line


@pytest.fixture
def stored(small_world: Path, tmp_path: Path) -> Iterator[tuple[Path, Path, Plan]]:
    """A configuration, its complete store, and its plan; permissions are restored at the end."""
    store = tmp_path / "store"
    config = write_config(tmp_path / "config.yaml", small_settings(small_world, store))
    made = Run(load_config(config))
    make_all(made)
    yield config, store, made.plan
    if store.is_dir():
        for folder, folders, files in os.walk(store):
            for name in (*folders, *files):
                Path(folder, name).chmod(0o700)


UNREADABLE = {
    "the store": "",
    "a kind": "evaluate",
    "an artifact": "evaluate/{fingerprint}",
    "a manifest": "evaluate/{fingerprint}/manifest.json",
    "a data file": "evaluate/{fingerprint}/0.parquet",
}
DENIED = "Permission denied"


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_store_with_something_unreadable(stored: tuple[Path, Path, Plan], what: str) -> None:
    config, store, plan = stored
    shutil.rmtree(store / ".verified")
    (store / UNREADABLE[what].format(fingerprint=plan.evaluate.fingerprint)).chmod(0)
    found = {done.command: done for done in run(config, *LOOKS)}
    for done in found.values():
        if done.code == 2:
            assert_one_line(done)
        else:
            assert done.code == (1 if done.command == "verify" else 0), done
    if what == "the store":
        assert_one_line(found["status"], str(store), DENIED)
        return
    verified = found["verify"]
    assert verified.code in (1, 2), verified
    assert DENIED in verified.said + verified.errors
    assert_one_line(found["report"], DENIED)
    if what != "a data file":  # of a data file only the size is compared
        [row] = [row for row in json.loads(found["status --json"].said) if row["stage"] == "evaluate"]
        assert row["state"] == "stale", row
        assert DENIED in row["why"], row


def test_a_store_that_may_only_be_read(stored: tuple[Path, Path, Plan]) -> None:
    config, store, _ = stored
    for path in (*store.rglob("*"), store):
        path.chmod(0o555 if path.is_dir() else 0o444)
    *looks, ingest, collected = run(config, *LOOKS, "ingest --force", "gc --apply --set seed=7")
    assert [done for done in looks if done.code] == []
    by_command = {done.command: done for done in looks}
    assert {row["state"] for row in json.loads(by_command["status --json"].said)} == {"fresh"}
    assert_one_line(ingest, str(store))
    assert_one_line(collected, str(store))


def test_a_store_that_is_a_file(small_world: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.write_text("")
    for named in (store, store / "below"):
        config = write_config(tmp_path / f"{named.name}.yaml", small_settings(small_world, named))
        for done in run(config, *LOOKS, "run", "ingest"):
            assert_one_line(done, str(store), "--store")
