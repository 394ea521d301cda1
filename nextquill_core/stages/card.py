"""What the model card of a trained adapter says, gathered from its plan, its inputs and its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nextquill_core.evaluation.methods import METHODS
from nextquill_core.plan import Step
from nextquill_core.stages.run import Run
from nextquill_core.training.card import Card


def adapter_card(run: Run, name: str, stats: Mapping[str, Any], *, merged: bool = False) -> str:
    """The card's text; only what decides the adapter's bytes is in it, and what training reported.

    Args:
        run: The configuration and its store.
        name: A key of `Plan.adapters`.
        stats: Of the adapter's manifest.
        merged: The card is that of the whole model with the adapter merged into it.
    """
    step = run.plan.adapters[name]
    method = METHODS[run.plan.recipe(name)]
    base, base_id = _base(run)
    return Card(
        method=method.name,
        summary=method.summary,
        base=base,
        base_id=base_id,
        revision=run.config.model.revision,
        rank=step.settings["train"]["lora"]["r"],
        history=method.history,
        template=step.settings["prompt"]["template"],
        fingerprint=step.fingerprint,
        data=list(_data(run, stats)),
        settings=list(_settings(run, step)),
        training=[("step", str(stats["steps"])), *_flat(stats["final"])],
        validation=list(_flat(stats.get("validation") or {})),
        merged=merged,
    ).render()


def _base(run: Run) -> tuple[str, str | None]:
    """The base model's name for people, and its name on the hub if it has one."""
    name = run.config.model.name_or_path
    if run.plan.model:
        return "the offline base model", None
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser().resolve().name, None
    return name, name


def _data(run: Run, stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    cohort = run.artifact(run.plan.ingest).manifest.stats
    left_out = stats.get("left_out_users", 0), stats.get("left_out_examples", 0)
    yield "categories", ", ".join(cohort["per_category"])
    yield "users", f"{cohort['users'] - left_out[0]:,}"
    yield "train examples", f"{cohort['examples']['train'] - left_out[1]:,}"
    if left_out[0]:
        yield "left out, to be scored", f"{left_out[0]:,} users, {left_out[1]:,} examples"
    for name, value in _flat(run.plan.ingest.settings["ingest"]["protocol"]):
        yield ("protocol" if name == "name" else f"protocol.{name}"), value


def _settings(run: Run, step: Step) -> Iterator[tuple[str, str]]:
    recipe = step.settings["recipe"]
    yield "base model", f"{_base(run)[0]} ({run.config.model.dtype})"
    if run.plan.model is None and _base(run)[1]:
        yield "revision", run.config.model.revision
    yield "history in the prompt", "yes" if recipe["history"] else "no"
    yield "causal loss L_p", "yes" if recipe["causal"] else "no"
    weights = run.plan.score.settings["weights"] if recipe["weighted"] else {"policy": "every token 1"}
    for section, values in (("weights", weights), ("train", step.settings["train"]), ("prompt", _prompt(step))):
        yield from ((f"{section}.{name}", value) for name, value in _flat(values))
    yield "seed", str(step.settings["seed"])


def _prompt(step: Step) -> dict[str, Any]:
    return {name: value for name, value in step.settings["prompt"].items() if name != "revision"}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of every leaf that has a value; numbers with six digits that count."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else str(value)
