"""Orders for worker processes: config sections and paths, as one JSON file.

A parent writes the order and starts any number of workers with its path; on other machines the same path must lead to
the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from nextquill_core.config.base import Section
from nextquill_core.config.data import PromptConfig
from nextquill_core.config.model import ModelConfig
from nextquill_core.config.score import ScoreConfig
from nextquill_core.config.train import TrainConfig
from nextquill_core.model.identity import BaseName
from storage.files import write_text
from storage.stored_json import read_checked

EXAMPLES_PER_SHARD = 256


class Order(Section):
    """Everything that a worker has to know, readable from a file."""

    def save(self, path: Path) -> None:
        """Write the order to a JSON file, whole or not at all."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an order from its JSON file.

        Raises:
            UserError: The file cannot be read, or is not an order.
        """
        order: Self = read_checked(path, cls, "run the same command again")
        return order


class ScoreOrder(Order):
    """Order to score the examples of one ingest artifact.

    Attributes:
        staging: Staging folder of the effects artifact.
        sequences: Folder of the ingest artifact.
        model: The base model; its name is a hub name or a folder.
        prompt: Settings of the prompts, with `template` resolved to plain or chat.
        score: The `score` section.
        adapters: PEFT folders by fold of the users; empty scores under the base model.
        splits: The splits to score; None for all.
        shard_examples: Examples in a shard. Shard boundaries depend on it and never on the number of workers.
    """

    staging: Path
    sequences: Path
    model: ModelConfig
    prompt: PromptConfig
    score: ScoreConfig
    adapters: tuple[Path, ...] = ()
    splits: tuple[str, ...] | None = None
    shard_examples: int = EXAMPLES_PER_SHARD


class TrainOrder(Order):
    """Order to train one adapter.

    Attributes:
        output: Staging folder of the train artifact; gets `adapter/`, `metrics.jsonl`, `val.jsonl`, `checkpoints/`.
        sequences: Folder of the ingest artifact.
        effects: Folder of the score artifact (`effects/`, `weights/`), or None where nothing of it is read.
        model: The base model; its name is a hub name or a folder.
        prompt: Settings of the prompts, with `template` resolved to plain or chat.
        train: The `train` section with the values that belong to the method: α is 0 for a method without L_p.
        seed: Seed of the run.
        weighted: Whether tokens have preference weights; otherwise each has weight 1.
        live_weights: The weight policy and its settings (`weight_settings`) where the model in training decides the
            weights; None for stored weights.
        leave_out: (fold, folds): train without the users of this fold; None trains on all users.
        deepspeed_json: What the user's own DeepSpeed JSON adds (`engines.configured`), or None.
        base: The base model's name in the adapter's files, valid on any machine.
    """

    output: Path
    sequences: Path
    effects: Path | None = None
    model: ModelConfig
    prompt: PromptConfig
    train: TrainConfig
    seed: int
    weighted: bool
    live_weights: dict[str, Any] | None = None
    leave_out: tuple[int, int] | None = None
    deepspeed_json: dict[str, Any] | None = None
    base: BaseName = BaseName("base")

    @property
    def both_branches(self) -> bool:
        """Whether the branch without history is computed: for L_p, or for weights that the trained model decides."""
        return bool(self.train.alpha) or self.live_weights is not None

    def for_likelihood(self) -> TrainOrder:
        """Return the order with a loss that is the summed negative log-likelihood under weights of 1."""
        train = self.train.model_copy(update={"alpha": 0.0, "normalization": "sequence"})
        return self.model_copy(update={"live_weights": None, "train": train})
