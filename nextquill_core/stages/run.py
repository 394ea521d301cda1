"""One configuration against one store: find, reuse or make its artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from nextquill_core.config import Config
from nextquill_core.ingest.privacy import Privacy, privacy
from nextquill_core.model.identity import ModelSpec
from nextquill_core.plan import Plan, Step, freshness, make_plan, outdated
from nextquill_core.prompts import resolve_template
from storage import Artifact, Basis, Staging, Store, UserError, provenance

LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "polars", "pyarrow", "prefect", "sacrebleu", "nltk")


@dataclass(frozen=True)
class Outcome:
    """An artifact and whether it was there already.

    Attributes:
        why: Where it was made: what made that necessary.
    """

    artifact: Artifact
    reused: bool
    why: str = ""


class Run:
    """A configuration and its store.

    Args:
        config: The run's settings.
        fetch: Download raw files that are to come from the hub; commands that only look do not.
        secret: The key of the pseudonyms, where it comes from elsewhere than the environment.

    Raises:
        UserError: On construction: raw files, the model folder or the key are missing, or the store cannot be used.
    """

    def __init__(self, config: Config, *, fetch: bool = True, secret: str | None = None) -> None:
        self.config = config
        self.store = Store.open(config.store)
        self.privacy: Privacy = privacy(config.privacy, secret)
        self.plan: Plan = make_plan(config, self.store.digests, fetch=fetch, privacy=self.privacy.identity)

    def artifact(self, step: Step) -> Artifact:
        """The artifact of a step that another is made from.

        Raises:
            UserError: It has not been made.
        """
        artifact = self.store.find(step.kind, step.fingerprint)
        if artifact is None:
            command = step.name.partition(":")[0]
            command = {"scan": "ingest", "effects": "score", "model": "run"}.get(command, command)
            if step in self.plan.folds.values():  # trained by the stage that they score for
                command = "score"
            raise UserError(
                f"the {step.name} artifact is missing",
                self.store.location(step.kind, step.fingerprint),
                f"run `nextquill {command}` with the same config first",
            )
        return artifact

    @cached_property
    def model_spec(self) -> ModelSpec:
        """θ0: the model that was named, or the folder of the offline base model."""
        model = self.config.model
        name = model.name_or_path
        if self.plan.model:
            name = str(self.artifact(self.plan.model).folder / "model")
        elif Path(name).expanduser().is_dir():
            name = str(Path(name).expanduser().resolve())
        return ModelSpec(name, model.revision, model.dtype, model.attention, model.trust_remote_code)

    @property
    def prompt_settings(self) -> dict[str, Any]:
        """The `prompt` section with the template resolved for this model: plain or chat."""
        template = resolve_template(self.config.prompt.template, self.config.model.name_or_path)
        return self.config.prompt.model_dump() | {"template": template}

    def make(
        self, step: Step, build: Callable[[Staging], Mapping[str, Any]], *, force: bool = False, tools: str = ""
    ) -> Outcome:
        """Reuse the step's artifact, or build and commit it.

        Args:
            step: What to make.
            build: Fills the staging folder and returns the stats for the manifest.
            force: Make it anew even if it is fresh.
            tools: What else has to be the same for unfinished work to be taken up, such as a library's version.

        Raises:
            UserError: An input is missing, or another process is making this artifact.
        """
        known = freshness(self.store, step)
        if known.state == "fresh" and known.artifact and not force:
            return Outcome(known.artifact, reused=True)
        inputs = [self.artifact(source).ref for source in step.inputs]
        with self.store.write(step.kind, step.fingerprint, Basis(tuple(inputs), tools), restart=force) as staging:
            found = self.store.find(step.kind, step.fingerprint)
            if found and not force and not outdated(self.store, step, found):  # made while we waited for its writer
                staging.discard()
                return Outcome(found, reused=True)
            if not staging.sealed:
                started = datetime.now(UTC)
                stats = build(staging)
                staging.seal(
                    kind=step.kind,
                    fingerprint=step.fingerprint,
                    identity=step.identity,
                    config=self.config.model_dump(mode="json"),
                    inputs=inputs,
                    stats=stats,
                    provenance=provenance(started, LIBRARIES, model=dict(self.plan.model_identity)),
                )
            artifact = self.store.commit(step.kind, step.fingerprint)
        why = f"resumed; it had stopped: {known.why}" if known.state == "failed" else known.why or known.state
        return Outcome(artifact, reused=False, why="forced" if force else why)
