"""Why a stage makes something and reuses the rest: how everything stood when its run began, in the UI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from prefect.artifacts import create_markdown_artifact

from nextquill_core.pipeline import Freshness, Step, freshness
from nextquill_core.pipeline.run import Run
from storage.garbage import Glance
from tasks.artifacts import data_key

OWN = {
    "stale": "made again",
    "missing": "made",
    "failed": "resumed",
    "interrupted": "resumed",
    "running": "waits for the run that makes it",
}
OTHERS = {"stale": "not made by this stage", "missing": "not made by this stage"}
OUTDATED = "made again, unless its inputs come out the same"


def publish_reasons(run: Run, stage: str, steps: Sequence[Step], force: bool) -> None:
    """Show what a stage is about to make and why, and what it reuses; also where it is ended before it has made it.

    Args:
        run: The configuration and its store.
        stage: The name of the stage.
        steps: What the stage makes, its result first.
        force: Whether it makes what is fresh anew.
    """
    create_markdown_artifact(
        key=data_key(f"why-{stage}", run.config),
        markdown=reasons(run, stage, steps, force),
        description="What is made, what is reused, and why",
    )


def reasons(run: Run, stage: str, steps: Sequence[Step], force: bool) -> str:
    """The same as Markdown: a row for each artifact that the stage makes, and one for each that goes into them."""
    store = Glance(run.store)
    own = {step.fingerprint for step in steps}

    def table(rows: Iterable[Step]) -> str:
        lines = ["| artifact | was | now | why |", "| --- | --- | --- | --- |"]
        for step in rows:
            standing = freshness(store, step)
            done, why = _told(standing, step.fingerprint in own, force)
            name = step.name if step.name.startswith(step.kind) else f"{step.kind} {step.name}"
            lines.append(f"| {name} | {standing.state} | {done} | {_cell(why)} |")
        return "\n".join(lines) + "\n"

    parts = [f"# {stage}: made or reused, and why", "How everything stood when this run began.", table(steps)]
    if others := [step for step in _lineage(steps) if step.fingerprint not in own]:
        parts += ["## What goes into it", table(others)]
    return "\n\n".join(parts)


def _lineage(steps: Sequence[Step]) -> Iterator[Step]:
    """Everything that steps are made from, and they themselves; each once, and after what it is made from."""
    seen: set[str] = set()

    def visit(step: Step) -> Iterator[Step]:
        if step.fingerprint in seen:
            return
        seen.add(step.fingerprint)
        for origin in step.inputs:
            yield from visit(origin)
        yield step

    for step in steps:
        yield from visit(step)


def _told(standing: Freshness, own: bool, force: bool) -> tuple[str, str]:
    """What becomes of an artifact, and why."""
    if standing.state == "fresh":
        if own and force:
            return "made anew", "forced"
        return "reused", f"settings and inputs{_when(standing)}"
    if not own:
        return OTHERS.get(standing.state, standing.state), standing.why
    why = standing.why or ("nothing like it is in the store" if standing.state == "missing" else "")
    return OUTDATED if standing.state == "stale" and standing.artifact else OWN[standing.state], why


def _when(standing: Freshness) -> str:
    ended = standing.artifact.manifest.provenance.get("end") if standing.artifact else None
    return f" as on {datetime.fromisoformat(ended).astimezone(UTC):%Y-%m-%d %H:%M} UTC" if ended else ""


def _cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.replace("|", "\\|").split())
