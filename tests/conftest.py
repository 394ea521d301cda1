"""Tiny models and texts, built on the fly: nothing is downloaded."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.schemas import Example, Item, Review

REPO = Path(__file__).resolve().parent.parent
REAL = REPO.parent / "shared" / "data" / "amazon-2023"

WORDS = [
    "the",
    "plot",
    "was",
    "slow",
    "and",
    "warm",
    "but",
    "i",
    "loved",
    "this",
    "quiet",
    "book",
    "about",
    "rivers",
    "never",
    "dull",
    "always",
    "bright",
]


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


def text(seed: int, words: int = 12) -> str:
    """A few words, different for each seed."""
    return " ".join(WORDS[(seed * 7 + position * (seed % 5 + 1)) % len(WORDS)] for position in range(words))


def review(seed: int, words: int = 12) -> Review:
    return Review(
        Item(f"Book {seed}", text(seed + 100, 8)), float(seed % 5 + 1), f"title {seed}", text(seed, words), seed
    )


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
    """A Hugging Face folder with a random tiny Qwen2 and a byte-level tokenizer."""
    from nextquill_core.model.tiny import TinySpec, train_tiny_model

    folder = tmp_path_factory.mktemp("tiny")
    spec = TinySpec(
        vocab_size=400, hidden_size=32, layers=2, heads=4, steps=2, batch_tokens=512, learning_rate=1e-3,
        max_history=2, max_tokens=256, seed=0,
    )  # fmt: skip
    train_tiny_model([[review(seed) for seed in range(5)]], spec, folder)
    return folder


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

    folder = tmp_path_factory.mktemp("world")
    write_sample(folder, users=20, seed=1)
    return folder
