from pathlib import Path

import psutil
import pytest
import torch

from nextquill_core import memory

CPU = torch.device("cpu")
MB = 2**20


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process in the group `job/step`, on a machine without other limits."""
    own = tmp_path / "own"
    own.write_text("4:memory:/elsewhere\n0::/job/step\n")
    monkeypatch.setattr(memory, "OWN_CGROUP", own)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    step = tmp_path / "groups" / "job" / "step"
    step.mkdir(parents=True)
    return step


def limit(group: Path, most: int | str, used: int, files: int) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon {used - files}\ninactive_file {files}\n")


def test_a_batch_job_has_what_its_limits_leave(cgroup: Path) -> None:
    limit(cgroup, "max", 7 * MB, 0)
    limit(cgroup.parent, 10 * MB, 8 * MB, 3 * MB)
    assert memory.free_memory(CPU) == 5 * MB  # 10 - 8, and the 3 that only mirror files
    limit(cgroup, 4 * MB, 3 * MB, 0)
    assert memory.free_memory(CPU) == MB
    limit(cgroup, 4 * MB, 5 * MB, 0)
    assert memory.free_memory(CPU) == 0


def test_without_limits_it_is_what_the_machine_has(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = psutil.virtual_memory().total
    assert 0 < memory.free_memory(CPU) < whole
    limit(cgroup, 100 * whole, 0, 0)
    assert memory.free_memory(CPU) < whole
    monkeypatch.setattr(memory, "OWN_CGROUP", cgroup / "missing")  # another system
    assert 0 < memory.free_memory(CPU) < whole


def test_the_whole_memory_is_the_machines_within_its_limits(cgroup: Path) -> None:
    whole = psutil.virtual_memory().total
    assert memory.total_memory(CPU) == whole
    limit(cgroup, "max", 7 * MB, 0)
    limit(cgroup.parent, 10 * MB, 9 * MB, 0)
    assert memory.total_memory(CPU) == 10 * MB, "whatever is in use"
    limit(cgroup, 4 * MB, 0, 0)
    assert memory.total_memory(CPU) == 4 * MB


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert memory.is_out_of_memory(error) is expected
