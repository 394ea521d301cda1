"""Tiny models and texts, built on the fly: nothing is downloaded."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from nextquill_core.environment import set_torch_variables
from nextquill_core.schemas import Example, Item, Review
from tests.effort import trials
from tests.forked import REPO as REPO
from tests.longest_first import pytest_collection_modifyitems as pytest_collection_modifyitems
from tests.longest_first import pytest_runtest_logreport as pytest_runtest_logreport
from tests.longest_first import pytest_sessionfinish as pytest_sessionfinish
from tests.prefect_server import make_tables
from tests.prefect_server import server as server

set_torch_variables()  # before torch is imported, so that tests compute as the command line and the workers do
# The models of the tests are so small that threads which share a matrix product mostly wait for each other, and OpenMP
# waits by spinning: with one thread a test takes less than half of the CPU time. torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REAL = REPO.parent / "shared" / "data"

WORDS = [
    "the", "plot", "was", "slow", "and", "warm", "but", "i", "loved", "this", "quiet", "book", "about", "rivers",
    "never", "dull", "always", "bright",
]  # fmt: skip

# How long a trial takes says nothing on a loaded machine; a test that hangs is ended by pytest's own limit.
settings.register_profile(
    "effort",
    max_examples=trials(settings.default.max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("effort")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Exempt the imported libraries from garbage collection: they live to the end, and a walk over them takes long."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Undo what a command that is run within the tests' own process does to signals."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, and an accelerator where there is one."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no accelerator that torch can use")
    return str(request.param)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Give torch two threads, where a test is about them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def text(seed: int, words: int = 12) -> str:
    """A few words, different for each seed."""
    return " ".join(WORDS[(seed * 7 + position * (seed % 5 + 1)) % len(WORDS)] for position in range(words))


def review(seed: int, words: int = 12) -> Review:
    return Review(
        Item(f"Book {seed}", text(seed + 100, 8)), float(seed % 5 + 1), f"title {seed}", text(seed, words), seed
    )


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that is made once in a test run, by the first of pytest's worker processes that needs it.

    Args:
        factory: Knows the folder of the test run.
        name: The folder's name, different for each content.
        make: Fills the folder. Tests must not change what it leaves; those that do work on a copy.
    """
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    with FileLock(f"{folder}.lock"):
        if not Path(f"{folder}.made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            Path(f"{folder}.made").touch()
    return folder


@pytest.fixture(scope="session")
def prefect_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return Prefect's folder with a database in which nothing has run; servers work on copies of it."""
    return made_once(tmp_path_factory, "prefect", make_tables)


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Nine examples of three users, histories of 0 to 5 reviews."""
    found = []
    for number in range(9):
        history = tuple(review(number * 10 + past) for past in range(number % 6))
        found.append(
            Example(f"C:u{number % 3}:{number}", f"u{number % 3}", "C", "train", review(number, 6 + number), history)
        )
    return found


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a random tiny Qwen3 and a byte-level tokenizer."""
    from nextquill_core.config import TinyModelConfig
    from nextquill_core.model.tiny import train_tiny_model

    config = TinyModelConfig(
        vocab_size=400, hidden_size=32, layers=2, heads=4, steps=2, batch_tokens=512, learning_rate=1e-3
    )
    profiles = [[review(seed) for seed in range(5)]]

    def train(folder: Path) -> None:
        train_tiny_model(profiles, config, folder, max_history=2, max_tokens=256, seed=0)

    return made_once(tmp_path_factory, "tiny", train)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic category of 20 users."""
    from nextquill_core.synthetic.sample import write_sample

    return made_once(tmp_path_factory, "world", lambda folder: write_sample(folder, users=20, seed=1))


@pytest.fixture(scope="session")
def prepared_store(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with all that comes before training, for `small_settings`; work on a copy of it."""
    return made_once(tmp_path_factory, "prepared", partial(_prepare, small_world))


def _prepare(world: Path, store: Path) -> None:
    from nextquill_core.pipeline.run import Run
    from tests.stages import make
    from tests.world import small_config

    run = Run(small_config(world, store))
    make(run, run.plan.score)
