"""Which files a review passes on its way from a raw line to a number in the table: `python -m tests.journey`.

All steps of a small configuration with one method and one decoding preset are built for real, under a profiler. A file
counts if it is in a room that carries data and one of its functions ran during the build. Not counted are planning,
stores and manifests, configuration, progress, speed-ups and memory limits that change no number (`model/cpu`,
`training/budget.py`), the offline base model, pages and figures (`analysis`, `pipeline/report`), and model
cards.
"""

from __future__ import annotations

import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REPO = Path(__file__).resolve().parent.parent
ROOMS = ("ingest", "model", "causal", "training", "generation", "methods", "evaluation", "pipeline")
ROOT_FILES = ("prompts.py", "tokens.py", "folds.py")
APART = (
    "model/cpu/", "model/tiny.py", "pipeline/model_card.py", "pipeline/report/", "pipeline/sweep_points.py",
    "training/budget.py", "training/model_card.py",
)  # fmt: skip
PLANNING = tuple(f"pipeline/{name}.py" for name in ("plan", "evaluation_plan", "freshness", "step", "run"))
STAGES = {"scan": "ingest", "effects": "score", "predictions": "evaluate", "likelihood": "evaluate"}


@contextmanager
def functions_recorded(files: set[str]) -> Iterator[None]:
    """Add to `files` those of `nextquill_core` in which a function runs within the block, in any thread."""
    root = str(REPO / "nextquill_core") + os.sep

    def record(frame: Any, event: str, _: object) -> None:
        code = frame.f_code
        function = code.co_flags & inspect.CO_OPTIMIZED  # not the body of a module or a class
        if event == "call" and function and code.co_filename.startswith(root):
            files.add(code.co_filename[len(root) :])

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def on_the_way(files: set[str]) -> set[str]:
    """Return those of the files that count."""
    rooms = {file for file in files if file.split("/")[0] in ROOMS or file in ROOT_FILES}
    return {file for file in rooms if file.endswith(".py") and not file.startswith((*APART, *PLANNING))}


def journey(folder: Path) -> dict[str, set[str]]:
    """Return the files on the way, by stage.

    Args:
        folder: Receives a synthetic category and a store.
    """
    from nextquill_core.pipeline import lineage
    from nextquill_core.pipeline.run import Run
    from nextquill_core.synthetic.sample import write_sample
    from tests.world import small_config

    write_sample(folder / "world", users=20, seed=1)
    evaluation = {"methods": ["nextquill"], "decoding": ["paper"]}
    run = Run(small_config(folder / "world", folder / "store", evaluate=evaluation))
    found: dict[str, set[str]] = {}
    for step in lineage(run.plan.evaluate):
        files: set[str] = set()
        with functions_recorded(files):
            run.make(step, **({"launch": traced_rank(folder, files)} if step.kind == "train" else {}))
        if step.kind != "model":
            found.setdefault(STAGES.get(step.kind, step.kind), set()).update(on_the_way(files))
    return found


def traced_rank(folder: Path, files: set[str]) -> Callable[[Path, Path], None]:
    """Return a launch that trains with one rank, in a process that records its files too."""

    def launch(order: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "tests.journey", str(order), str(folder / "files.json")]
        with log.open("w") as output:
            subprocess.run(
                command, check=True, cwd=REPO, env=os.environ | rank | {"DS_ACCELERATOR": "cpu"},
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        files.update(json.loads((folder / "files.json").read_text()))

    return launch


def main(arguments: list[str]) -> int:
    """Print the files by stage and their number; with an order and a path, train by the order and record there."""
    if arguments:
        files: set[str] = set()
        sys.argv = ["worker", arguments[0]]
        with functions_recorded(files), suppress(SystemExit):
            runpy.run_module("nextquill_core.training.worker", run_name="__main__")
        Path(arguments[1]).write_text(json.dumps(sorted(files)))
        return 0
    with TemporaryDirectory() as folder:
        found = journey(Path(folder))
    for stage, files in found.items():
        print(f"{stage}: {len(files)}", *sorted(files), sep="\n  ")
    print(f"on the way: {len(set().union(*found.values()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
