"""A finished store whose files are changed again and again, for CHAOS_MINUTES, against the commands that read them.

The store is a small one, or a copy of that of the configuration file CHAOS_STORE, in which `nextquill run` must have
finished.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nextquill_core.config import load_config
from nextquill_core.pipeline.run import Run
from tests.chaos.mutator import Mutator, targets
from tests.chaos.trials import MINUTES, SEED, note
from tests.stages import make
from tests.world import small_settings, write_config

FINISHED = os.environ.get("CHAOS_STORE", "")


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(not MINUTES, reason="set CHAOS_MINUTES, or use `make chaos MINUTES=60`")
def test_commands_beside_a_mutator_end_with_an_answer_or_one_line(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store, config = tmp_path / "store", tmp_path / "config.yaml"
    if FINISHED:
        kept = load_config(FINISHED)
        shutil.copytree(kept.store, store)
        write_config(config, kept.model_dump(mode="json") | {"store": str(store)})
    else:
        shutil.copytree(request.getfixturevalue("prepared_store"), store)
        write_config(config, small_settings(request.getfixturevalue("small_world"), store))
        run = Run(load_config(str(config)))
        make(run, run.plan.evaluate)
    mutator = Mutator(list(targets(store, config, "")))
    mutator.run(60 * MINUTES, first=SEED * 10_000)
    assert mutator.documents > 0
    note(
        f"mutator: {MINUTES:g} minutes, {mutator.documents:,} documents in place of {len(mutator.targets)} files, "
        f"{mutator.made:,} commands, no traceback"
    )
