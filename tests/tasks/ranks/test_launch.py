"""Real ranks on one machine, on several hosts and on Slurm nodes: same results, full errors, no rank left behind."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from nextquill_core.orders import TrainOrder
from storage import UserError
from storage.tables import read_table, write_table
from tasks.ranks.launch import RanksFailed, run_ranks
from tasks.ranks.placement import Hosts, Placement, Slurm
from tasks.waiting import wait_until
from tests.nextquill_core.ingest.world import World, plain_category
from tests.orders import train_order
from tests.slurm import two_nodes
from tests.stages import plain
from tests.tasks.processes import workers_of


def order(folder: Path, model: str | Path = "./nowhere", sequences: Path = Path("nowhere"), **changes: Any) -> Path:
    """Write an order of training to its output folder, and return its file; the arguments are those of `train_order`.

    Args:
        folder: Output folder of the run.
        model: Folder of the base model.
        sequences: Ingest artifact.
        changes: Settings of the order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = train_order(folder, str(model), sequences, **changes)
    path = folder / "order.json"
    written.save(path)
    assert TrainOrder.load(path) == written
    return path


@pytest.mark.ranks
def test_invalid_input_of_a_rank_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^\./nowhere: cannot load it"):
        run_ranks(order(tmp_path), tmp_path / "log", ranks=1, on_step=lambda metrics: None)


def test_training_on_nothing_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(UserError, match="there is no train example"):
        plain(order(tmp_path, tiny_folder), tmp_path / "log")


# Four examples give one step per epoch, of several micro-batches. Dropout is off, because it depends on how a step is
# cut into micro-batches.
STEPS = 3
SETTINGS: dict[str, Any] = {"epochs": STEPS, "batch_tokens": 300, "max_grad_norm": 0.05, "learning_rate": 1e-2}


@pytest.fixture(scope="session")
def four_users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = World(tmp_path_factory.mktemp("four"))
    world.ingest(*plain_category())
    return world.out


@pytest.mark.ranks
def test_a_rank_that_fails_is_reported_with_its_last_lines(tmp_path: Path, tiny_folder: Path, four_users: Path) -> None:
    sequences = shutil.copytree(four_users, tmp_path / "sequences")
    for path in (sequences / "examples").glob("*.parquet"):
        table = read_table(path)  # of which every target is beyond the reviews of its user
        beyond = pa.array([99] * len(table), table.schema.field("target").type)
        write_table(path, table.set_column(table.schema.get_field_index("target"), "target", beyond))
    with pytest.raises(RanksFailed, match=r"(?s)exit code 1; the log is .*IndexError"):
        run_ranks(order(tmp_path, tiny_folder, sequences), tmp_path / "log", ranks=1, on_step=lambda metrics: None)


def write_order(folder: Path, model: Path, sequences: Path, **changes: Any) -> Path:
    """Write an order as `order` does, with these changes of `SETTINGS`."""
    return order(folder, model, sequences, **{**SETTINGS, **changes})


def curve(
    folder: Path,
    ranks: Placement,
    model: Path,
    sequences: Path,
    look: Callable[[], object] | None = None,
    **changes: Any,
) -> list[tuple[float, float]]:
    """Train for real, and return loss and gradient norm of each step.

    Args:
        folder: Output of the training.
        ranks: Where the ranks run.
        model: Folder of the base model.
        sequences: Artifact of the sequences.
        look: Called after each step, while the ranks run.
        changes: Settings of the order that differ from `SETTINGS`.
    """
    seen: list[float] = []

    def on_step(metrics: dict[str, float]) -> None:
        seen.append(metrics["step"])
        if look:
            look()

    run_ranks(write_order(folder, model, sequences, **changes), folder / "log", ranks=ranks, on_step=on_step)
    assert seen == list(range(1, STEPS + 1))
    return steps_of(folder)


def plain_curve(folder: Path, model: Path, sequences: Path, **changes: Any) -> list[tuple[float, float]]:
    """Train in this process and without DeepSpeed, and return loss and gradient norm of each step; see `curve`."""
    plain(write_order(folder, model, sequences, **changes), folder / "log")
    return steps_of(folder)


def steps_of(folder: Path) -> list[tuple[float, float]]:
    """Return loss and gradient norm of each step of a training."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def same(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> bool:
    pairs = [(a, b) for steps in zip(one, other, strict=True) for a, b in zip(*steps, strict=True)]
    assert len(pairs) == 2 * STEPS
    return all(a == pytest.approx(b, rel=2e-4) for a, b in pairs)


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def one_rank(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, four_users: Path
) -> list[tuple[float, float]]:
    # The curve of a single process, which all placements of ranks must reproduce.
    steps = plain_curve(tmp_path_factory.mktemp("one"), tiny_folder, four_users)
    assert len({loss for loss, _ in steps}) == STEPS, "the model learns"
    assert steps[0][1] > SETTINGS["max_grad_norm"], "the gradient is clipped"
    return steps


SPEAKING = "import os\nif 'RANK' in os.environ: print('this is', os.environ['RANK'], flush=True)\n"
"""Python runs this file at its start where it is named sitecustomize.py: each rank says a line."""


@pytest.fixture(scope="session")
def two_ranks(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, four_users: Path
) -> tuple[Path, list[tuple[float, float]], set[str]]:
    """Folder and curve of two ranks of this machine, and the addresses at which they listened."""
    folder = tmp_path_factory.mktemp("two")
    addresses = set[str]()

    def look() -> None:
        found = [one for pid in workers_of(folder) for one in psutil.Process(pid).net_connections(kind="inet")]
        addresses.update(str(one.laddr.ip) for one in found if one.status == psutil.CONN_LISTEN)

    (folder / "sitecustomize.py").write_text(SPEAKING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        steps = curve(folder, 2, tiny_folder, four_users, look, deepspeed={"zero_stage": 0})
    return folder, steps, addresses


@pytest.mark.ranks
def test_two_ranks_change_nothing(
    two_ranks: tuple[Path, list[tuple[float, float]], set[str]], one_rank: list[tuple[float, float]]
) -> None:
    folder, steps, _ = two_ranks
    assert same(steps, one_rank)
    log = (folder / "log").read_text()
    assert "[rank 0] this is 0\n" in log
    assert "[rank 1] this is 1\n" in log


@pytest.mark.ranks
@pytest.mark.skipif(sys.platform != "linux", reason="sockets of other processes")
def test_ranks_on_one_machine_listen_only_on_the_loopback_address(
    two_ranks: tuple[Path, list[tuple[float, float]], set[str]],
) -> None:
    assert two_ranks[2] == {"127.0.0.1"}, "the ranks listen, and on no other address"


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("zero_stage", "offload", "own"),
    [
        pytest.param(1, "optimizer", None, marks=pytest.mark.slow),
        pytest.param(2, "none", None, marks=pytest.mark.slow),
        (3, "parameters", {"zero_optimization": {"stage3_param_persistence_threshold": 0}}),
    ],
)
def test_two_ranks_zero_and_offloading_change_nothing(
    tmp_path: Path, tiny_folder: Path, four_users: Path, one_rank: list[tuple[float, float]],
    zero_stage: int, offload: str, own: dict[str, Any] | None,
) -> None:  # fmt: skip
    zero = {"zero_stage": zero_stage, "offload": offload}
    assert same(curve(tmp_path, 2, tiny_folder, four_users, deepspeed=zero, deepspeed_json=own), one_rank)


@pytest.mark.ranks
def test_two_ranks_change_nothing_in_the_official_objective(
    tmp_path: Path, tiny_folder: Path, four_users: Path
) -> None:
    # Each sample is divided by its own Σω, weights come from the model in training, and L_p is unweighted.
    live = {"policy": "threshold", "delta": 0.0, "high": 0.9, "low": 0.1}
    official: dict[str, Any] = {"normalization": "sample_weight", "weighted": True, "live_weights": live}
    official |= {"deepspeed": {"zero_stage": 1, "offload": "optimizer"}, "causal_loss": {"weighted": False}}
    one = plain_curve(tmp_path / "one", tiny_folder, four_users, batch_tokens=10_000, **official)
    two = curve(tmp_path / "two", 2, tiny_folder, four_users, **official)
    assert same(two, one)


@pytest.mark.ranks
def test_settings_that_deepspeed_refuses_are_one_line(tmp_path: Path, tiny_folder: Path, four_users: Path) -> None:
    with pytest.raises(UserError, match=r"train\.deepspeed\.config: DeepSpeed refuses it: .*reduce_bucket_size"):
        curve(
            tmp_path, 1, tiny_folder, four_users, deepspeed_json={"zero_optimization": {"reduce_bucket_size": "large"}}
        )  # fmt: skip


@pytest.fixture
def shell(tmp_path: Path) -> str:
    """A remote shell for hosts that are all this machine: it runs the command line and notes the host."""
    path = tmp_path / "shell"
    path.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/hosts\nshift\nexec sh -c "$*"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.ranks
@pytest.mark.slow
def test_two_hosts_give_the_result_of_one(
    tmp_path: Path, tiny_folder: Path, four_users: Path, one_rank: list[tuple[float, float]], shell: str
) -> None:  # fmt: skip
    # One host is reached by the shell, the other is a name of this machine and needs none.
    hosts = Hosts({"127.0.0.2": 1, "beta": 1}, (shell,), "127.0.0.1", None)
    assert same(curve(tmp_path / "run", hosts, tiny_folder, four_users), one_rank)
    log = (tmp_path / "run" / "log").read_text()
    assert "node_rank=0" in log
    assert "node_rank=1" in log
    assert (tmp_path / "hosts").read_text() == "beta\n"


@pytest.mark.ranks
@pytest.mark.slow
def test_the_rank_that_failed_first_is_reported(tmp_path: Path, tiny_folder: Path, four_users: Path) -> None:
    # The second host's rank lacks a library; the first host's rank waits for it until its connection breaks.
    path = tmp_path / "shell"
    path.write_text('#!/bin/sh\nhost=$1; shift\n[ $host = beta ] && export BROKEN_RANK=1\nexec sh -c "$*"\n')
    path.chmod(0o755)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('BROKEN_RANK') and os.environ.get('RANK'): sys.modules['peft'] = None\n"
    )
    hosts = Hosts({"alpha": 1, "beta": 1}, ("env", f"PYTHONPATH={site}", str(path)), "127.0.0.1", None)
    with pytest.raises(RanksFailed, match=r"(?s)failed first on rank 1 and ended .*import of peft halted"):
        curve(tmp_path / "run", hosts, tiny_folder, four_users)


def endless(order: Path, ranks: Placement) -> None:
    run_ranks(order, order.parent / "log", ranks=ranks, on_step=lambda metrics: None)


def assert_no_rank_outlives_a_killed_run(folder: Path, ranks: Placement, model: Path, sequences: Path) -> None:
    """Kill the process that started the ranks after their first step, and wait until no rank is left.

    Args:
        folder: Output of the training.
        ranks: Where the ranks run.
        model: Folder of the base model.
        sequences: Artifact of the sequences.
    """
    path = write_order(folder, model, sequences, epochs=100_000)
    process = multiprocessing.get_context("spawn").Process(target=endless, args=(path, ranks))
    process.start()
    try:
        wait_until(lambda: (folder / "metrics.jsonl").exists() or not process.is_alive(), 120)
        assert len(workers_of(folder)) >= 2
    finally:
        process.kill()
        process.join()
    assert wait_until(lambda: not workers_of(folder), 30), "ranks outlived the process that started them"


@pytest.mark.ranks
@pytest.mark.slow
def test_no_rank_on_a_host_outlives_the_run(tmp_path: Path, tiny_folder: Path, four_users: Path, shell: str) -> None:
    # As on another host, the kernel's signal does not reach the children of the remote shell; only the pipe does.
    script = Path(shell)
    script.write_text(script.read_text().replace('exec sh -c "$*"', 'setsid sh -c "$*"'))
    hosts = Hosts({"alpha": 1, "beta": 1}, (shell,), "127.0.0.1", None)
    assert_no_rank_outlives_a_killed_run(tmp_path / "run", hosts, tiny_folder, four_users)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Two nodes of a real Slurm, for the tests of this module."""
    with two_nodes():
        yield Slurm(2, 1, (), None, None)


@pytest.mark.slurm
@pytest.mark.ranks
@pytest.mark.slow
def test_two_slurm_nodes_give_the_result_of_one_rank(
    tmp_path: Path, tiny_folder: Path, four_users: Path, one_rank: list[tuple[float, float]], slurm: Slurm
) -> None:
    assert same(curve(tmp_path / "run", slurm, tiny_folder, four_users), one_rank)
    log = (tmp_path / "run" / "log").read_text()
    assert "node_rank=0" in log
    assert "node_rank=1" in log


@pytest.mark.slurm
@pytest.mark.ranks
@pytest.mark.slow
def test_no_rank_on_a_slurm_node_outlives_the_run(
    tmp_path: Path, tiny_folder: Path, four_users: Path, slurm: Slurm
) -> None:
    assert_no_rank_outlives_a_killed_run(tmp_path / "run", slurm, tiny_folder, four_users)


@pytest.mark.slurm
@pytest.mark.ranks
@pytest.mark.slow
def test_invalid_input_on_a_slurm_node_is_one_line(tmp_path: Path, slurm: Slurm) -> None:
    with pytest.raises(UserError, match=r"^\./nowhere: cannot load it"):
        run_ranks(order(tmp_path), tmp_path / "log", ranks=slurm, on_step=lambda metrics: None)
