"""The writer of a run: the model, prompts, decoding and store of a method, as its evaluation uses them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nextquill_core.config import Config, ModelConfig, PromptConfig
from nextquill_core.errors import UserError
from nextquill_core.generation.decoding import DECODINGS, GREEDY, PAPER, SAMPLED, steering
from nextquill_core.generation.engines import Engine
from nextquill_core.methods.registry import METHODS, Method
from nextquill_core.methods.retrieval import with_selected
from nextquill_core.model.packaged import located_model
from nextquill_core.pipeline.freshness import outdated
from nextquill_core.pipeline.methods import local_engine, prompt_encoder, server_engine
from nextquill_core.pipeline.model_card import base_files
from nextquill_core.pipeline.plan import method_weights
from nextquill_core.pipeline.predict import chosen, chosen_strength
from nextquill_core.pipeline.run import Run
from nextquill_core.writing.exported import AdapterDescription
from nextquill_core.writing.histories import Histories
from nextquill_core.writing.prompter import SANE, Identity, People, Preset, Prompter
from nextquill_core.writing.writer import Writer
from storage import Artifact, InputRef, Store

WRITES = ("nothing", "newest", "bm25")
"""Values of `Method.shown` that can be worked out for anybody at once."""


@dataclass(frozen=True)
class Origin:
    """What a method writes with.

    Attributes:
        method: The method.
        model: The base model, with a hub name or the absolute path of a folder.
        prompt: Settings of the prompts, with the template resolved to plain or chat.
        model_identity: Name and revision, or digests, of the base model.
        adapter: The adapter; None for a method that trains none.
    """

    method: Method
    model: ModelConfig
    prompt: PromptConfig
    model_identity: Mapping[str, Any]
    adapter: Artifact | None = None

    @property
    def ref(self) -> InputRef | None:
        """The adapter's kind, fingerprint and content."""
        return self.adapter.ref if self.adapter else None


def run_writer(run: Run, name: str | None = None) -> Writer:
    """Return the writer of a method.

    Args:
        run: The run; sequences, base model and the method's adapter are in its store.
        name: Name of the method; None for `train.method`.

    Raises:
        UserError: There is no such method, it cannot write for anybody, or its adapter is missing or stale.
    """
    origin = run_origin(run, name or run.config.train.method)
    method, adapter = origin.method, origin.adapter
    prompter = method_prompter(run, origin, run.artifact(run.plan.ingest))

    @functools.cache
    def model() -> Any:
        from nextquill_core.model.loading import load_adapter, load_model

        base = load_model(origin.model)
        return load_adapter(base, adapter.folder / "adapter") if adapter else base

    def engine(preset: Preset) -> Engine:
        encoder = prompter.encoder
        if run.config.evaluate.engine == "openai":
            return server_engine(run, method, encoder, preset.decoding, preset.limit)
        return local_engine(run, model(), encoder, preset.decoding, preset.limit, prompter.contrast)

    return Writer(
        prompter.encoder,
        prompter.identity,
        prompter.presets,
        engine,
        model,
        contrast=prompter.contrast,
        people=prompter.people,
        score_tokens=run.config.score.batch_tokens,
    )


def run_origin(run: Run, name: str) -> Origin:
    """Return what a method writes with in a run.

    Args:
        run: The run; base model and the method's adapter are in its store.
        name: Name of the method.

    Raises:
        UserError: As for `run_writer`.
    """
    method = writing_method(name)
    adapter = trained(run, method.trained_as) if method.training or method.adapter else None
    return Origin(method, run.model, run.prompt, run.plan.model_identity, adapter)


def trained(run: Run, name: str) -> Artifact:
    """Return the adapter of a method, which must be up to date.

    Args:
        run: The run.
        name: Name of the method.

    Raises:
        UserError: The method trains nothing, is not trained by this configuration, not trained yet, or stale.
    """
    step = run.plan.adapter(METHODS[name].name)
    artifact = run.artifact(step)
    if why := outdated(run.store, step, artifact):
        raise UserError(f"the adapter is stale: {why}", artifact.location, "run `nextquill train` first")
    return artifact


def writing_method(name: str) -> Method:
    """Return a method that can write for anybody.

    Raises:
        UserError: There is no such method, or it needs inputs that are made for the measured users alone.
    """
    method = METHODS[name]
    if method.individual or not (method.select or method.shown in WRITES):
        able = [known.name for known in METHODS.built_in.values() if not known.individual and known.shown in WRITES]
        what = f"`{method.name}` needs inputs that are made for the measured users alone"
        raise UserError(what, "--method", f"use one of {', '.join(able)}")
    return method


def adapter_origin(store: Store, method: Method, adapter: Artifact) -> Origin:
    """Return what a method writes with when its adapter was trained by another configuration, or on other data.

    Args:
        store: The store, with the base model if that was made there.
        method: The method.
        adapter: The adapter.

    Raises:
        UserError: The base model is no longer in the store, or another version trained the adapter.
    """
    again = "train it again"
    try:
        config = Config.model_validate(adapter.manifest.config)
        template = adapter.manifest.provenance["template"]["name"]
    except (ValueError, KeyError, TypeError):
        raise UserError("another version trained this adapter", adapter.location, again) from None
    model = located_model(config.model)
    folder = Path(model.name_or_path).expanduser()
    if ref := next((ref for ref in adapter.manifest.inputs if ref.kind == "model"), None):
        made = store.find(ref.kind, ref.fingerprint)
        if made is None or made.manifest.content != ref.content:
            raise UserError(f"its base model {ref.fingerprint} is no longer in the store", adapter.location, again)
        folder = made.folder / "model"
    if folder.is_dir():
        model = model.model_copy(update={"name_or_path": str(folder.resolve())})
    prompt = config.prompt.model_copy(update={"template": template})
    return Origin(method, model, prompt, adapter.manifest.identity.get("model", {}), adapter)


def method_prompter(run: Run, origin: Origin, ingest: Artifact, histories: Histories | None = None) -> Prompter:
    """Return what makes the prompts and drafts of a method.

    Args:
        run: The run; its settings decide decoding, privacy and seed.
        origin: What the method writes with.
        ingest: The artifact with users and items.
        histories: The tables of that artifact, if several methods share them.

    Raises:
        UserError: The method is steered, and its strength has not been chosen yet.
    """
    method, adapter = origin.method, origin.adapter
    strength = chosen_strength(run, method) if method.steered else None
    settings = {
        "model": dict(origin.model_identity),
        "prompt": origin.prompt.model_dump(mode="json"),
        "ingest": ingest.manifest.content,
        "strength": strength,
        "seed": run.config.seed,
    }
    selects = method.select is not None or method.shown == "bm25"
    return Prompter(
        prompt_encoder(origin.model, origin.prompt, method),
        Identity(method.name, method.history, adapter.manifest.fingerprint if adapter else None, settings),
        _presets(run, method),
        contrast=None if strength is None else steering(strength),
        people=People(
            histories or Histories(ingest.folder),
            run.privacy.stored_ids,
            partial(with_selected, method) if selects else None,
            run.plan.source.ratings,
        ),
    )


def describe_adapter(run: Run, name: str, *, merged: bool) -> AdapterDescription:
    """Return what an exported adapter says of itself.

    Args:
        run: The run; the adapter is in its store.
        name: Name of the method.
        merged: Whether the whole model is exported, with the adapter merged into it.
    """
    method, settings = METHODS[name], run.config.evaluate
    weighted = method.training is not None and method.training.weighted
    base = run.base_name
    return AdapterDescription(
        method=name,
        history=method.history,
        adapter=run.plan.adapter(name).fingerprint,
        merged=merged,
        base=base,
        base_files={} if base.on_hub else dict(base_files(run)),
        dtype=run.config.model.dtype,
        trust_remote_code=run.config.model.trust_remote_code,
        prompt=run.prompt if method.history else run.prompt.model_copy(update={"max_history": 0}),
        weights=method_weights(run.config, method.training) if weighted and method.training else None,
        sane=sane_decoding(run),
        max_new_tokens=settings.max_new_tokens,
        paper_max_new_tokens=settings.paper_max_new_tokens,
        seed=run.config.seed,
    )


def _presets(run: Run, method: Method) -> dict[str, Preset]:
    """Return the decoding presets by name, each as evaluation decodes under it."""
    settings = run.config.evaluate
    found = {one.name: Preset(one, settings.max_new_tokens) for one in (GREEDY, SAMPLED)}
    paper = Preset(SAMPLED if method.samples else PAPER, settings.paper_max_new_tokens)
    return {SANE: Preset(DECODINGS[sane_decoding(run)], settings.max_new_tokens), PAPER.name: paper, **found}


def sane_decoding(run: Run) -> str:
    """Return how the preset `sane` decodes: as val chose, or greedily where no choice was made."""
    step = run.plan.evaluation.choices.get(SANE)
    made = step is not None and run.store.find(step.kind, step.fingerprint) is not None
    return str(chosen(run, SANE)["chosen"]) if made else GREEDY.name
