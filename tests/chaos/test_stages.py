"""The real stages from raw files to weights, killed before a file operation or by a loss of power."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.crash import killed_in_new_process, operations_of
from tests.chaos.disk import Disk
from tests.chaos.operations import Operation, watched
from tests.chaos.pipeline import run_stages
from tests.chaos.trials import SEED, chosen, hold
from tests.chaos.work import contents, faults, leftovers

pytestmark = pytest.mark.pipeline


@dataclass(frozen=True)
class Reference:
    """The stages run once without interruption."""

    world: Path
    operations: int
    contents: dict[str, str]

    def check_rerun(self, root: Path) -> None:
        """Run the stages in a store that an interrupted run has left."""
        run_stages(self.world, root)
        assert contents(root) == self.contents
        assert leftovers(root) == []
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def reference(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    root = tmp_path_factory.mktemp("reference") / "store"
    root.mkdir()
    operations = operations_of(root, lambda: run_stages(small_world, root))
    assert leftovers(root) == []
    return Reference(small_world, len(operations), contents(root))


def test_the_stages_killed_before_an_operation(reference: Reference, tmp_path: Path) -> None:
    def trial(number: int) -> None:
        root = tmp_path / f"killed-{number}"
        root.mkdir()
        killed_in_new_process(number, root, run_stages, reference.world, root)
        reference.check_rerun(root)

    hold("stages killed before a file operation", chosen(range(1, reference.operations), few=2), trial)


def test_the_stages_after_a_loss_of_power(reference: Reference, tmp_path: Path) -> None:
    numbers = chosen(range(1, reference.operations), few=2)
    root = tmp_path / "store"
    root.mkdir()
    disk = Disk(root)

    def before(operation: Operation) -> None:
        disk.before(operation)
        if operation.number in numbers:
            choice = random.Random(f"{SEED} {operation.number}") if operation.number % 2 else None
            disk.lose_power(tmp_path / f"disk-{operation.number}", choice)

    with watched(root, before):
        run_stages(reference.world, root)
    disk.close()

    def trial(number: int) -> None:
        outage = tmp_path / f"disk-{number}"
        assert not faults(outage)
        reference.check_rerun(outage)

    hold("stages cut off from power", numbers, trial)
