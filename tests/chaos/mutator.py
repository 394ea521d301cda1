"""Changes the files of a finished store and its configuration, and runs the real commands on the result.

Every command must end with an answer, or with one line and exit code 2. The size and SHA-256 of a changed file are
updated in its manifest, because the readers would reject the file otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings

from flows.cli.main import exit_code
from storage.integrity import VERIFIED
from tests.chaos.hostile import documents

AT_ONCE = 10
"""Number of documents that are tried for a file before the next file."""


@dataclass(frozen=True)
class Target:
    """A file to change, and the commands that read it.

    Attributes:
        path: The file: JSON, JSON lines or YAML.
        manifest: The manifest with its SHA-256, if there is one.
        commands: The arguments of each command.
    """

    path: Path
    manifest: Path | None
    commands: tuple[tuple[str, ...], ...]


def targets(store: Path, config: Path, sweep: str) -> Iterator[Target]:
    """Yield every small file of a store in which all stages are done.

    Args:
        store: The store.
        config: Its configuration.
        sweep: The grid of the sweep, `KEY=VALUE,VALUE`; "" for none.
    """
    with_config = ("--config", str(config))
    looks = tuple(
        (*command, *with_config)
        for command in (
            ("status",), ("status", "--json"), ("status", "--all"), ("gc",), ("verify", "--json"), ("report",),
            ("path", "accepted"),
        )
    )  # fmt: skip
    compare = (("compare", str(store), str(config)),)
    results = (("run", *with_config), ("sweep", sweep, *with_config)) if sweep else (("run", *with_config),)
    for manifest in sorted(store.glob("*/*/manifest.json")):
        more = compare if manifest.parent.parent.name == "evaluate" else ()
        yield Target(manifest, None, (*looks, *more))  # `run` and `sweep` would start to make the damaged artifact
    for path in sorted(store.glob("*/*/*.json*")):
        if path.name != "manifest.json":
            needed = results if path.parent.parent.name in ("sweep", "evaluate") else looks[:1]
            yield Target(path, path.parent / "manifest.json", needed)
    for path in sorted((*store.glob("accepted/*.json"), *store.glob(f"{VERIFIED}/*.json"), store / ".digests.json")):
        yield Target(path, None, looks)
    yield Target(config, None, looks)


@dataclass
class Mutator:
    """Changes one file after the other.

    Attributes:
        targets: The files.
        documents: Number of documents that were tried.
        made: Number of commands that were run.
    """

    targets: Sequence[Target]
    documents: int = 0
    made: int = 0

    def run(self, seconds: float, first: int) -> None:
        """Change files for a number of seconds, with seeds from `first` on.

        Raises:
            AssertionError: A command ended in a forbidden way; Hypothesis shows the smallest such document.
        """
        end, number = time.monotonic() + seconds, first
        while time.monotonic() < end:
            for target in self.targets:
                if time.monotonic() > end:
                    return
                number += 1
                self.change(target, number)

    def change(self, target: Target, number: int) -> None:
        """Try a few documents in place of one file, and restore the file."""
        kept = target.path.read_bytes()
        manifest = target.manifest.read_bytes() if target.manifest else b""

        @seed(number)
        @settings(
            max_examples=AT_ONCE, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(documents(_parsed(target.path)))
        def try_it(data: bytes) -> None:
            self.documents += 1
            target.path.write_bytes(_written(target.path, data))
            if target.manifest:
                target.manifest.write_bytes(_signed(target, manifest))
            for command in target.commands:
                self.made += 1
                check(command)

        try:
            try_it()
        finally:
            target.path.write_bytes(kept)
            if target.manifest:
                target.manifest.write_bytes(manifest)


def check(command: Sequence[str]) -> None:
    """Run a command in this process; it may end with an answer, with damage found, or with one line.

    Raises:
        AssertionError: It ended in another way.
    """
    said, errors = io.StringIO(), io.StringIO()
    kept, sys.argv = sys.argv, ["nextquill", *command]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code = exit_code()
    finally:
        sys.argv = kept
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("nextquill: ")]
    assert code in (0, 1, 2), (command, code)
    assert code != 1 or command[0] == "verify", (command, errors.getvalue())
    assert code != 2 or len(lines) == 1, (command, errors.getvalue())
    assert "Traceback" not in errors.getvalue(), (command, errors.getvalue())


def _parsed(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)


def _written(path: Path, data: bytes) -> bytes:
    """Return a drawn document in the file's format: JSON lines for a list; JSON is valid YAML."""
    if path.suffix != ".jsonl":
        return data
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(values, list):
        return data
    return "".join(json.dumps(value) + "\n" for value in values).encode("utf-8", errors="surrogatepass")


def _signed(target: Target, manifest: bytes) -> bytes:
    """Return the manifest with the present size and SHA-256 of the file."""
    assert target.manifest
    values, data = json.loads(manifest), target.path.read_bytes()
    name = os.path.relpath(target.path, target.manifest.parent)
    for shard in values["shards"]:
        if shard["path"] == name:
            shard.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return json.dumps(values).encode()
