"""Steps, each of which is one artifact to make, and the table of their kinds: where each is made, by which command.

The table names functions by their path and imports none, so that a plan can be made without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from storage import fingerprint


@dataclass(frozen=True)
class StepKind:
    """How the steps of one kind are made.

    Attributes:
        revision: Part of the fingerprint. Raise it when the code makes another result from the same settings.
        command: The command of `nextquill` that makes such a step.
        path: `module:function` of the function that builds the artifact. It takes the run, the step, the staging folder
            and a progress listener, fills the folder, and returns the stats for the manifest. Some take options too.
        libraries: Libraries whose versions must be the same for unfinished work to be resumed.
    """

    revision: int
    command: str
    path: str
    libraries: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import the function that builds an artifact of this kind."""
        module, _, function = self.path.partition(":")
        return getattr(import_module(module), function)


KINDS: Mapping[str, StepKind] = {
    # The parts hold hashes that are compared with each other, and Polars may hash differently in another version.
    "scan": StepKind(2, "ingest", "nextquill_core.pipeline.ingest:build_scan", ("polars",)),
    "ingest": StepKind(3, "ingest", "nextquill_core.pipeline.ingest:build_sequences"),
    # A checkpoint of another torch or transformers would end in other bytes.
    "model": StepKind(
        4, "model", "nextquill_core.pipeline.ingest:build_base_model", ("torch", "transformers", "tokenizers")
    ),
    "effects": StepKind(2, "score", "nextquill_core.pipeline.score:build_effects"),
    "score": StepKind(1, "score", "nextquill_core.pipeline.score:build_weights"),
    "train": StepKind(3, "train", "nextquill_core.pipeline.train:build_adapter"),
    "relevance": StepKind(2, "evaluate", "nextquill_core.pipeline.methods:build_relevance"),
    "summaries": StepKind(2, "evaluate", "nextquill_core.pipeline.methods:build_summaries"),
    "personal": StepKind(2, "evaluate", "nextquill_core.pipeline.methods:build_personal_adapters"),
    "profiles": StepKind(1, "evaluate", "nextquill_core.pipeline.profiles:build_profiles"),
    "peers": StepKind(2, "evaluate", "nextquill_core.pipeline.soft_tokens:build_peer_vectors"),
    "soft": StepKind(2, "evaluate", "nextquill_core.pipeline.soft_tokens:build_soft_tokens", ("torch", "transformers")),
    "style": StepKind(1, "evaluate", "nextquill_core.pipeline.style:build_style_vectors"),
    "predictions": StepKind(3, "evaluate", "nextquill_core.pipeline.predict:build_predictions"),
    "rubrics": StepKind(1, "evaluate", "nextquill_core.pipeline.judge:build_rubrics"),
    "judged": StepKind(1, "evaluate", "nextquill_core.pipeline.judge:build_judged"),
    "choice": StepKind(2, "evaluate", "nextquill_core.pipeline.predict:build_choice"),
    "likelihood": StepKind(2, "evaluate", "nextquill_core.pipeline.predict:build_likelihoods"),
    "clusters": StepKind(1, "evaluate", "nextquill_core.pipeline.clusters:build_clusters"),
    "evaluate": StepKind(5, "evaluate", "nextquill_core.pipeline.evaluate:build_evaluation"),
    "sweep": StepKind(2, "sweep", "nextquill_core.studies.sweep:build_sweep"),
    "reproduction": StepKind(3, "reproduce", "nextquill_core.studies.reproduce:build_reproduction"),
    "study": StepKind(1, "study", "nextquill_core.studies.study.collect:build_study"),
}


@dataclass(frozen=True)
class Step:
    """One artifact to make: its kind, a name for people, the settings that decide it, and its inputs."""

    kind: str
    name: str
    settings: Mapping[str, Any]
    inputs: tuple[Step, ...] = ()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The fields behind the fingerprint."""
        return {
            "stage": self.kind,
            "revision": KINDS[self.kind].revision,
            **self.settings,
            "inputs": {step.name: step.fingerprint for step in self.inputs},
        }

    @cached_property
    def fingerprint(self) -> str:
        """The artifact's address below its kind."""
        return fingerprint(self.identity)

    @property
    def address(self) -> tuple[str, str]:
        """Kind and fingerprint, by which a store finds the artifact."""
        return self.kind, self.fingerprint


def lineage(*steps: Step) -> list[Step]:
    """Return the steps and everything that they are made from, each once and after its own inputs."""
    found: dict[tuple[str, str], Step] = {}

    def visit(step: Step) -> None:
        if step.address not in found:
            for origin in step.inputs:
                visit(origin)
            found[step.address] = step

    for step in steps:
        visit(step)
    return list(found.values())
