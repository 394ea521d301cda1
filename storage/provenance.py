"""Provenance of an artifact: code version, machine, command and library versions."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.redaction import redact

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def code_version() -> tuple[str, bool | None]:
    """Return the commit of this code, and whether it has uncommitted changes; without git the version, and None.

    An installed package may lie inside a repository of the user's, whose commit says nothing about this code.
    """
    try:
        top, commit = _git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() == ROOT:
            return commit, bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, ValueError, subprocess.CalledProcessError):
        pass
    return _installed("nextquill") or "unknown", None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def provenance(started: datetime, libraries: Sequence[str], **facts: Any) -> dict[str, Any]:
    """Return the provenance record of work that began at `started` and ends now.

    Args:
        started: Start of this run, in UTC.
        libraries: Distributions whose versions matter to the result.
        facts: More fields of the record.
    """
    ended = datetime.now(UTC)
    version, dirty = code_version()
    return {
        "code_version": version,
        "dirty": dirty,
        "command": redact(shlex.join(sys.argv)),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "start": started.isoformat(timespec="milliseconds"),
        "end": ended.isoformat(timespec="milliseconds"),
        "seconds": round((ended - started).total_seconds(), 3),
        "libraries": {name: _installed(name) for name in libraries},
        **facts,
    }


@functools.cache
def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
