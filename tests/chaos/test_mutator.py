"""A finished store whose files are changed again and again, for CHAOS_SECONDS, against the commands that read them.

It needs a store in which `nextquill run` has finished: CHAOS_STORE is its configuration file. The store is copied.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nextquill_core.config import load_config
from tests.chaos.mutator import Mutator, targets
from tests.chaos.trials import SEED
from tests.world import write_config

SECONDS = float(os.environ.get("CHAOS_SECONDS", "0"))
FINISHED = os.environ.get("CHAOS_STORE", "")


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(not (SECONDS and FINISHED), reason="set CHAOS_SECONDS and CHAOS_STORE")
def test_commands_beside_a_mutator_end_with_an_answer_or_one_line(tmp_path: Path) -> None:
    settings = load_config(FINISHED)
    store = Path(shutil.copytree(settings.store, tmp_path / "store"))
    config = write_config(tmp_path / "config.yaml", settings.model_dump(mode="json") | {"store": str(store)})
    mutator = Mutator(list(targets(store, config, "")))
    mutator.run(SECONDS, first=SEED * 10_000)
    assert mutator.made > 0
