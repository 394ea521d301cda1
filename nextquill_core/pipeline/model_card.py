"""The model card of a trained adapter, from its plan, its inputs and its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.plan import method_weights
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.step import Step
from nextquill_core.training.model_card import Card


def adapter_card(run: Run, name: str, stats: Mapping[str, Any], *, merged: bool = False) -> str:
    """Return the text of the card: what decides the adapter's bytes, and what training reported.

    Args:
        run: The run; the inputs of the training are in its store.
        name: A key of `Plan.adapters`.
        stats: The stats in the adapter's manifest.
        merged: Whether the card is for the whole model with the adapter merged into it.
    """
    step = run.plan.adapters[name]
    method = METHODS[run.plan.recipe(name)]
    base = run.base_name
    return Card(
        method=method.name,
        summary=method.summary,
        base=_base_title(run),
        base_id=base.name if base.on_hub else None,
        revision=base.revision or "",
        rank=step.settings["train"]["lora"]["r"],
        history=method.history,
        template=step.settings["prompt"]["template"],
        fingerprint=step.fingerprint,
        data=list(_data(run, stats)),
        settings=list(_settings(run, name)),
        training=[("step", str(stats["steps"])), *_flat(stats["final"]), *_clipped(stats)],
        validation=list(_flat(stats.get("validation") or {})),
        base_files=[] if base.on_hub else sorted(base_files(run)),
        merged=merged,
        writes=run.plan.writes,
    ).render()


def _base_title(run: Run) -> str:
    """Return the base model's name for readers."""
    return "the offline base model" if run.config.model.name_or_path == "tiny" else run.base_name.name


def base_source(run: Run) -> Iterator[tuple[str, str]]:
    """Yield where a base model that was converted from a file comes from, for readers."""
    source = run.artifact(run.plan.model).manifest.stats.get("source") if run.plan.model else None
    if source:
        package = f" in the package {source['package']}" if source["package"] else ""
        yield "base model's file", f"{source['file']}{package}, dequantised"
        yield "SHA-256 of that file", source["sha256"]
        yield "licence of the base model", source["license"] or "not stated in the file"


def _clipped(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "clipped_share" in stats:
        yield "steps whose gradient was clipped", f"{stats['clipped_share']:.1%}"


def base_files(run: Run) -> Iterator[tuple[str, str]]:
    """Yield name and SHA-256 digest of each file of a base model that is a folder."""
    if run.plan.model:
        for shard in run.artifact(run.plan.model).manifest.shards:
            folder, _, name = shard.path.partition("/")
            if folder == "model" and not shard.log:
                yield name, shard.sha256
    else:
        yield from run.plan.model_identity["files"].items()


def _data(run: Run, stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    cohort = run.artifact(run.plan.ingest).manifest.stats
    left_out = stats.get("left_out_users", 0), stats.get("left_out_examples", 0)
    yield "categories", ", ".join(cohort["per_category"])
    yield "users", f"{cohort['users'] - left_out[0]:,}"
    yield "train examples", f"{cohort['examples']['train'] - left_out[1]:,}"
    if left_out[0]:
        yield "left out, to be scored", f"{left_out[0]:,} users, {left_out[1]:,} examples"
    yield "HTML in texts", run.config.ingest.clean.html
    for name, value in _flat(run.plan.ingest.settings["ingest"]["protocol"]):
        yield ("protocol" if name == "name" else f"protocol.{name}"), value


def _settings(run: Run, name: str) -> Iterator[tuple[str, str]]:
    step = run.plan.adapters[name]
    recipe = step.settings["recipe"]
    yield "base model", f"{_base_title(run)} ({run.config.model.dtype})"
    yield from base_source(run)
    if run.base_name.revision:
        yield "revision", run.base_name.revision
    yield "history in the prompt", "yes" if recipe["history"] else "no"
    yield "causal loss L_p", "yes" if recipe["causal"] else "no"
    if not recipe.get("normal_weighted", True):
        yield "weights in L_n", "every token 1"
    training = METHODS[run.plan.recipe(name)].training
    weights = method_weights(run.config, training) if training and training.weighted else {"policy": "every token 1"}
    for section, values in (("weights", weights), ("train", step.settings["train"]), ("prompt", _prompt(step))):
        yield from ((f"{section}.{name}", value) for name, value in _flat(values))
    yield "seed", str(step.settings["seed"])


def _prompt(step: Step) -> dict[str, Any]:
    return {name: value for name, value in step.settings["prompt"].items() if name != "revision"}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted name and value of every leaf that has a value; numbers with six significant digits."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else str(value)
