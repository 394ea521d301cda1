"""The writer of a run: the model, prompts, decoding and store of a method, as its evaluation uses them."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

from nextquill_core.errors import UserError
from nextquill_core.generation.decoding import DECODINGS, GREEDY, PAPER, SAMPLED, steering
from nextquill_core.generation.engines import Engine
from nextquill_core.methods.registry import METHODS, Method
from nextquill_core.methods.retrieval import with_selected
from nextquill_core.pipeline.freshness import outdated
from nextquill_core.pipeline.methods import local_engine, method_encoder, server_engine
from nextquill_core.pipeline.model_card import base_files
from nextquill_core.pipeline.plan import method_weights
from nextquill_core.pipeline.predict import chosen, chosen_strength
from nextquill_core.pipeline.run import Run
from nextquill_core.writing.exported import AdapterDescription
from nextquill_core.writing.histories import Histories
from nextquill_core.writing.writer import SANE, Identity, People, Preset, Writer
from storage import Artifact

WRITES = ("nothing", "newest", "bm25")
"""Values of `Method.shown` that can be worked out for anybody at once."""


def run_writer(run: Run, name: str | None = None) -> Writer:
    """Return the writer of a method.

    Args:
        run: The run; sequences, base model and the method's adapter are in its store.
        name: Name of the method; None for `train.method`.

    Raises:
        UserError: There is no such method, it cannot write for anybody, or its adapter is missing or stale.
    """
    method = METHODS[name or run.config.train.method]
    if method.individual or not (method.select or method.shown in WRITES):
        able = [known.name for known in METHODS.built_in.values() if not known.individual and known.shown in WRITES]
        what = f"`{method.name}` needs inputs that are made for the measured users alone"
        raise UserError(what, "--method", f"use one of {', '.join(able)}")
    adapter = _adapter(run, method)
    ingest = run.artifact(run.plan.ingest)
    strength = chosen_strength(run, method) if method.steered else None
    contrast = None if strength is None else steering(strength)
    encoder = method_encoder(run, method)

    @functools.cache
    def model() -> Any:
        from nextquill_core.model.loading import load_adapter, load_model

        base = load_model(run.model)
        return load_adapter(base, adapter.folder / "adapter") if adapter else base

    def engine(preset: Preset) -> Engine:
        if run.config.evaluate.engine == "openai":
            return server_engine(run, method, encoder, preset.decoding, preset.limit)
        return local_engine(run, model(), encoder, preset.decoding, preset.limit, contrast)

    settings = {
        "model": dict(run.plan.model_identity),
        "prompt": run.prompt.model_dump(mode="json"),
        "ingest": ingest.manifest.content,
        "strength": strength,
        "seed": run.config.seed,
    }
    selects = method.select is not None or method.shown == "bm25"
    return Writer(
        encoder,
        Identity(method.name, method.history, adapter.manifest.fingerprint if adapter else None, settings),
        _presets(run, method),
        engine,
        model,
        contrast=contrast,
        people=People(
            Histories(ingest.folder), run.privacy.stored_ids, partial(with_selected, method) if selects else None
        ),
        score_tokens=run.config.score.batch_tokens,
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
        sane=_sane(run),
        max_new_tokens=settings.max_new_tokens,
        paper_max_new_tokens=settings.paper_max_new_tokens,
        seed=run.config.seed,
    )


def _adapter(run: Run, method: Method) -> Artifact | None:
    """Return the adapter that a method uses, which must be up to date; None for a method that trains none."""
    if method.training is None and method.adapter is None:
        return None
    step = run.plan.adapter(method.trained_as)
    artifact = run.artifact(step)
    if why := outdated(run.store, step, artifact):
        raise UserError(f"the adapter is stale: {why}", artifact.location, "run `nextquill train` first")
    return artifact


def _presets(run: Run, method: Method) -> dict[str, Preset]:
    """Return the decoding presets by name, each as evaluation decodes under it."""
    settings = run.config.evaluate
    found = {one.name: Preset(one, settings.max_new_tokens) for one in (GREEDY, SAMPLED)}
    paper = Preset(SAMPLED if method.samples else PAPER, settings.paper_max_new_tokens)
    return {SANE: Preset(DECODINGS[_sane(run)], settings.max_new_tokens), PAPER.name: paper, **found}


def _sane(run: Run) -> str:
    """Return how the preset `sane` decodes: as val chose, or greedily where no choice was made."""
    step = run.plan.evaluation.choices.get(SANE)
    made = step is not None and run.store.find(step.kind, step.fingerprint) is not None
    return str(chosen(run, SANE)["chosen"]) if made else GREEDY.name
