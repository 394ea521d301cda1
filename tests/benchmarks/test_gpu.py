"""The benchmark for GPU images runs, at a size too small for speed, with the libraries of such an image alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPO

# Without deepspeed, which transformers imports by itself wherever its metadata say that it is installed.
ABSENT = ("prefect", "polars", "datasets", "orjson", "xxhash", "typer", "matplotlib")


@pytest.mark.process
def test_the_gpu_benchmark_needs_torch_transformers_peft_pyarrow_and_pydantic_only() -> None:
    """Run small on the CPU, in a process where everything else that the project depends on cannot be imported."""
    code = f"""
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv = "gpu --shape small --examples 4 --reference-examples 1 --rounds 1".split()
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    scoring, training, decoding = map(json.loads, done.stdout.splitlines())
    assert scoring["shape"] == training["shape"] == decoding["shape"] == "small"
    assert scoring["examples_a_second"]["ours"] > 0
    assert training["seconds_an_example"]["nextquill"] > 0
    assert training["hours_of_the_papers_data"] > 0
    assert min(decoding["step_seconds"].values()) > 0  # which is longer is not said of a model this small
    assert decoding["share_of_bandwidth"] is None, "a CPU has no data sheet here"
    for line in (scoring, training):
        assert 0 < line["share_of_product_rate"] < 1
