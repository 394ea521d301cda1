"""A real Slurm of two nodes on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import REPO


@contextmanager
def two_nodes() -> Iterator[str]:
    """Start the cluster for the duration of a block, and skip the tests if Slurm is not installed.

    Yields:
        The path of its configuration, which SLURM_CONF names meanwhile.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))):
        pytest.skip("starting Slurm needs root and Debian's packages slurm-wlm and munge")
    command = [REPO / "scripts" / "slurm-here", "sh", "-c", "echo $SLURM_CONF; exec cat"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert running.stdin
        assert running.stdout
        path = running.stdout.readline().strip()
        patch.setenv("SLURM_CONF", path)
        yield path
        running.stdin.close()  # `cat` ends, and the script ends the daemons


def slurm(*command: str) -> str:
    """Run one of Slurm's commands and return what it prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
