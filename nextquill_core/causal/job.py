"""The order that every scoring worker receives: one JSON file, plain values only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from nextquill_core.model.identity import ModelSpec
from nextquill_core.training.spec import PromptSpec
from storage.documents import read_document
from storage.files import write_json

EXAMPLES_A_SHARD = 256


@dataclass(frozen=True)
class ScoreJob:
    """Everything the effects of one ingest artifact depend on, and where they go.

    Attributes:
        staging: Staging folder of the effects artifact; workers on other machines must see it under the same name.
        sequences: Folder of the ingest artifact.
        batch_tokens: Token positions of one forward pass.
        adapters: LoRA folders, one a fold of the users; empty scores under θ0.
        shard_examples: Examples a shard; says where shards end, whoever scores them.
    """

    staging: str
    sequences: str
    model: ModelSpec
    prompt: PromptSpec
    batch_tokens: int
    adapters: tuple[str, ...] = ()
    shard_examples: int = EXAMPLES_A_SHARD

    def save(self, path: Path) -> None:
        """Write the order."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> ScoreJob:
        """Read an order."""
        values = read_document(path, "run the same command again")
        values["model"] = ModelSpec(**values["model"])
        values["prompt"] = PromptSpec(**values["prompt"])
        values["adapters"] = tuple(values["adapters"])
        return cls(**values)
