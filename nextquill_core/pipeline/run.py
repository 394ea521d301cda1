"""One configuration against one store: find, reuse or make its artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from nextquill_core.config import Config
from nextquill_core.generation.decoding import PAPER
from nextquill_core.ingest.privacy import Privacy, privacy
from nextquill_core.model.identity import BaseName, ModelSpec, base_name
from nextquill_core.model.limits import check_limits
from nextquill_core.model.template_choice import TemplateChoice
from nextquill_core.pipeline import Freshness, Plan, Step, freshness, make_plan, outdated
from nextquill_core.tokens import prompt_lengths
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
        fetch: Something is to be made: raw files that are to come from the hub are downloaded, and the store has to be
            writable. Commands that only look leave it out.
        secret: The key of the pseudonyms, where it comes from elsewhere than the environment.

    Raises:
        UserError: On construction: raw files, the model folder or the key are missing, the store cannot be used, or
            the model has no room for its tokenizer or the prompts.
    """

    def __init__(self, config: Config, *, fetch: bool = True, secret: str | None = None) -> None:
        self.config = config
        self.store = Store.open(config.store)
        self.privacy: Privacy = privacy(config.privacy, secret)
        self.plan: Plan = make_plan(
            config, self.store.raw_digests(save=fetch), fetch=fetch, privacy=self.privacy.identity
        )
        if fetch and self.plan.model is None:
            check_limits(config.model.name_or_path, config.model.revision, _lengths(config))
        if fetch:
            self.store.require_writable()

    def artifact(self, step: Step) -> Artifact:
        """The artifact of a step that another is made from.

        Raises:
            UserError: It has not been made, or its manifest cannot be read.
        """
        artifact = self.store.find(step.kind, step.fingerprint)
        if artifact is None:
            fault = self.store.manifest_fault(step.kind, step.fingerprint)
            raise UserError(
                f"the {step.name} artifact {f'cannot be used: {fault}' if fault else 'is missing'}",
                self.store.location(step.kind, step.fingerprint),
                f"run `nextquill {self.plan.command(step)}` with the same config first",
            )
        return artifact

    def require_inputs(self, steps: Sequence[Step]) -> None:
        """Make sure that what other stages make for these steps is there.

        Raises:
            UserError: It has not been made; the message names the command that makes it.
        """
        for origin in self.plan.needed_by(steps):
            self.artifact(origin)

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
    def base_name(self) -> BaseName:
        """What the base model is called on any machine."""
        return base_name(self.config.model.name_or_path, self.config.model.revision)

    @property
    def prompt_settings(self) -> dict[str, Any]:
        """The `prompt` section with the template resolved for this model: plain or chat."""
        return self.config.prompt.model_dump() | {"template": self.template.name}

    @property
    def template(self) -> TemplateChoice:
        """The template of this model's prompts, and why it was chosen."""
        return self.plan.template

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
            self.store.sweep(step.kind, step.fingerprint)
            return Outcome(known.artifact, reused=True)
        origins = [self.artifact(source) for source in step.inputs]
        inputs = [origin.ref for origin in origins]
        with self.store.write(step.kind, step.fingerprint, Basis(tuple(inputs), tools), restart=force) as staging:
            found = self.store.find(step.kind, step.fingerprint)
            if found and not force and not outdated(self.store, step, found):  # made while we waited for its writer
                staging.discard()
                return Outcome(found, reused=True)
            if not staging.sealed:
                started = datetime.now(UTC)
                stats = build(staging)
                for origin in origins:
                    self.store.verification.remember(origin.manifest)
                staging.seal(
                    kind=step.kind,
                    fingerprint=step.fingerprint,
                    identity=step.identity,
                    config=self.config.model_dump(mode="json"),
                    inputs=inputs,
                    stats=stats,
                    provenance=provenance(
                        started, LIBRARIES, model=dict(self.plan.model_identity), template=asdict(self.template)
                    ),
                )
            artifact = self.store.commit(step.kind, step.fingerprint)
        return Outcome(artifact, reused=False, why="forced" if force else _why(known))


def _why(known: Freshness) -> str:
    """Say why an artifact had to be made, from how it was found."""
    if known.state == "failed":
        return f"resumed; it had failed: {known.why}"
    if known.state == "interrupted":
        return "resumed; it had been interrupted"
    return known.why or known.state


def _lengths(config: Config) -> dict[str, int]:
    """Tokens of a prompt and what follows it, by the settings that allow them."""
    prompt = config.prompt.max_prompt_tokens
    lengths = prompt_lengths(prompt, config.prompt.max_target_tokens)
    for preset in config.evaluate.decoding:
        key = "paper_max_new_tokens" if preset == PAPER.name else "max_new_tokens"
        new: int = getattr(config.evaluate, key)
        lengths[f"prompt.max_prompt_tokens {prompt} and evaluate.{key} {new}"] = prompt + new
    return lengths
