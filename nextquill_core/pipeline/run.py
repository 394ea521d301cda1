"""A run: one configuration, the store it names and the plan of its artifacts, which it finds, reuses or makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nextquill_core.config import Config, ModelConfig, PromptConfig
from nextquill_core.generation.decoding import PAPER
from nextquill_core.ingest.privacy import Privacy, privacy
from nextquill_core.model.identity import BaseName, base_name, check_limits
from nextquill_core.model.template_choice import TemplateChoice
from nextquill_core.pipeline.freshness import Freshness, FreshnessCache, freshness, outdated
from nextquill_core.pipeline.plan import Plan, make_plan
from nextquill_core.pipeline.step import KINDS, Step
from nextquill_core.progress import Progress, silent
from nextquill_core.tokens import prompt_lengths
from storage import Artifact, Basis, Staging, UserError, provenance
from storage.read_through import open_stores
from storage.remote import open_store

LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "polars", "pyarrow", "prefect", "sacrebleu", "nltk")


Build = Callable[[Staging], Mapping[str, Any]]
"""Fills the staging folder of a new artifact and returns the stats for its manifest."""


@dataclass(frozen=True)
class Outcome:
    """The artifact of a step.

    Attributes:
        artifact: The artifact in the store.
        reused: Whether it was up to date and nothing was made.
        why: What made it necessary to make the artifact; "" where it was reused.
    """

    artifact: Artifact
    reused: bool
    why: str = ""


class Run:
    """A configuration with its store and its plan.

    Args:
        config: The settings.
        fetch: Whether artifacts are to be made: raw files are then downloaded from the hub where the configuration
            names none, and the store has to be writable. Commands that only read leave it out.
        secret: The key of the pseudonyms, if it does not come from the environment.

    Raises:
        UserError: On construction: raw files, the model folder or the key are missing, the store cannot be used, or
            the model's context is too short for its tokenizer or the prompts.
    """

    cache: FreshnessCache | None = None
    """Remembered states of steps, which the runs of one command share; None looks each step up again."""

    def __init__(self, config: Config, *, fetch: bool = True, secret: str | None = None) -> None:
        self.config = config
        self.store = open_stores(config.store, config.read_store) if config.read_store else open_store(config.store)
        self._secret = secret
        self.privacy: Privacy = privacy(config.privacy, secret)
        self.plan: Plan = make_plan(
            config, self.store.raw_digests(save=fetch), fetch=fetch, privacy=self.privacy.identity
        )
        if fetch and config.model.name_or_path != "tiny":  # whose limits follow from the settings
            check_limits(self.plan.base.name_or_path, self.plan.base.revision, _lengths(config))
        if fetch:
            self.store.require_writable()

    def artifact(self, step: Step) -> Artifact:
        """Return the artifact of a step.

        Raises:
            UserError: It has not been made, or its manifest is damaged; the message names the command that makes it.
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

    def reader(self, config: Config) -> Run:
        """Return a run of another configuration that is only read, with the same key of the pseudonyms."""
        return Run(config, fetch=False, secret=self._secret)

    def require_inputs(self, steps: Sequence[Step]) -> None:
        """Make sure that the artifacts exist which other stages make for these steps.

        Raises:
            UserError: One is missing; the message names the command that makes it.
        """
        for origin in self.plan.needed_by(steps):
            self.artifact(origin)

    def freshness(self, step: Step) -> Freshness:
        """Return the state of a step's artifact; one command looks each step up once, see `FreshnessCache`."""
        return self.cache(step) if self.cache else freshness(self.store, step)

    def look_again(self) -> None:
        """Forget remembered states, after another process or a removal changed the store."""
        if self.cache:
            self.cache.clear()

    def make(
        self,
        step: Step,
        build: Build | None = None,
        *,
        progress: Progress = silent,
        force: bool = False,
        **options: Any,
    ) -> Outcome:
        """Reuse the artifact of a step, or build and commit it.

        Args:
            step: The step to make.
            build: Fills the staging folder and returns the stats for the manifest; by default the function that
                `KINDS` names for this kind of step.
            progress: Receives the progress of the work.
            force: Build the artifact even if it is up to date.
            options: Further arguments of the function of `KINDS`.

        Raises:
            UserError: An input is missing, or another process is making this artifact.
        """
        known = self._checked(step)
        if known.state == "fresh" and known.artifact and not force:
            self.store.remove_leftovers(step.kind, step.fingerprint)
            return Outcome(known.artifact, reused=True)
        if self.cache:
            self.cache.discard(step)
        artifact, reused = self._built(step, build, progress, force, options)
        if self.cache:
            self.cache.committed(step, artifact)
        if step.kind == "model":
            self.__dict__.pop("model", None)  # a model that was made again may lie in another folder
        return Outcome(artifact, reused, "" if reused else "forced" if force else _why(known))

    def _checked(self, step: Step) -> Freshness:
        """Return the state of a step's artifact; a remembered one that is no longer in the store is looked up again."""
        known = self.freshness(step)
        if self.cache and known.state == "fresh" and known.artifact:
            found = self.store.find(step.kind, step.fingerprint)
            if found is None or found.manifest != known.artifact.manifest:
                self.cache.clear()
                return self.freshness(step)
        return known

    def _built(
        self,
        step: Step,
        build: Build | None,
        progress: Progress,
        force: bool,
        options: Mapping[str, Any],
    ) -> tuple[Artifact, bool]:
        """Build and commit an artifact; the second value says whether another process finished it meanwhile."""
        origins = [self.artifact(source) for source in step.inputs]
        inputs = [origin.ref for origin in origins]
        tools = "" if build else ", ".join(f"{name} {version(name)}" for name in KINDS[step.kind].libraries)
        with self.store.write(step.kind, step.fingerprint, Basis(tuple(inputs), tools), restart=force) as staging:
            found = self.store.find(step.kind, step.fingerprint)
            if found and not force and not outdated(self.store, step, found):
                staging.discard()
                return found, True
            if not staging.sealed:
                started = datetime.now(UTC)
                stats = build(staging) if build else KINDS[step.kind].load()(self, step, staging, progress, **options)
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
            return self.store.commit(step.kind, step.fingerprint), False

    @cached_property
    def model(self) -> ModelConfig:
        """The section `model` with a hub name or the absolute path of a folder, which may be an artifact, as name."""
        model = self.plan.base
        name = model.name_or_path
        if self.plan.model:
            name = str(self.artifact(self.plan.model).folder / "model")
        elif Path(name).expanduser().is_dir():
            name = str(Path(name).expanduser().resolve())
        return model.model_copy(update={"name_or_path": name})

    @property
    def base_name(self) -> BaseName:
        """The name of the base model on any machine."""
        return base_name(self.plan.base.name_or_path, self.plan.base.revision)

    @property
    def prompt(self) -> PromptConfig:
        """The section `prompt` with the template that was chosen for this model, and the kind of text of the source."""
        return self.config.prompt.model_copy(update={"template": self.template.name, "writes": self.plan.writes})

    @property
    def template(self) -> TemplateChoice:
        """The template of the prompts, and why it was chosen."""
        return self.plan.template


OpenRun = Callable[[Config], Run]
"""How a configuration is opened; within a flow or command each is opened once."""


def _why(known: Freshness) -> str:
    """Return why an artifact had to be made, from the state it was found in."""
    if known.state == "failed":
        return f"resumed; it had failed: {known.why}"
    if known.state == "interrupted":
        return "resumed; it had been interrupted"
    return known.why or known.state


def _lengths(config: Config) -> dict[str, int]:
    """Return the numbers of tokens that a prompt and its answer may have, by the settings that allow them."""
    prompt = config.prompt.max_prompt_tokens
    lengths = prompt_lengths(prompt, config.prompt.max_target_tokens)
    for preset in config.evaluate.decoding:
        key = "paper_max_new_tokens" if preset == PAPER.name else "max_new_tokens"
        new: int = getattr(config.evaluate, key)
        lengths[f"prompt.max_prompt_tokens {prompt} and evaluate.{key} {new}"] = prompt + new
    return lengths
