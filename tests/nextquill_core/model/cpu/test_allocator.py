"""Freed memory stays with a process that asks for it; in a separate process, since this cannot be undone."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from nextquill_core.model.cpu import keep_freed_memory
if {asks} and not keep_freed_memory():
    sys.exit(3)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1_000_000)
before = faults()
for _ in range(20):
    torch.ones(1_000_000)
print(faults() - before)
"""


def page_faults(asks: bool) -> int:
    """Of taking 4 MB twenty times, each given back at once."""
    environment = {"THP_MEM_ALLOC_ENABLE": "0", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(asks=asks)], stdout=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode == 3:
        pytest.skip("this C library's allocator has no such setting")
    assert done.returncode == 0
    return int(done.stdout)


@pytest.mark.process
def test_memory_that_was_given_back_is_not_cleared_again() -> None:
    cleared = page_faults(asks=False)
    assert cleared > 10_000  # 4 kB each
    assert page_faults(asks=True) < cleared / 2
