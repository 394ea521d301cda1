"""The page in the UI that says what a stage makes, what it reuses, and why, as it was when its run began."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from prefect.artifacts import create_markdown_artifact

from nextquill_core.pipeline import Freshness, Step, lineage
from nextquill_core.pipeline.run import Run
from tasks.ui import data_key

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
    """Publish what a stage is about to make, what it reuses, and why.

    Args:
        run: The run.
        stage: Name of the stage.
        steps: The steps that the stage makes, its result first.
        force: Whether it makes them even if they are up to date.
    """
    create_markdown_artifact(
        key=data_key(f"why-{stage}", run.config),
        markdown=reasons(run, stage, steps, force),
        description="What is made, what is reused, and why",
    )


def reasons(run: Run, stage: str, steps: Sequence[Step], force: bool) -> str:
    """Return the page as Markdown: a row for each artifact that the stage makes, and for each that goes into them.

    Args:
        run: The run.
        stage: Name of the stage.
        steps: The steps that the stage makes, its result first.
        force: Whether it makes them even if they are up to date.
    """
    own = {step.fingerprint for step in steps}

    def table(rows: Iterable[Step]) -> str:
        lines = ["| artifact | was | now | why |", "| --- | --- | --- | --- |"]
        for step in rows:
            known = run.freshness(step)
            done, why = _outcome(known, step.fingerprint in own, force)
            name = step.name if step.name.startswith(step.kind) else f"{step.kind} {step.name}"
            lines.append(f"| {name} | {known.state} | {done} | {_cell(why)} |")
        return "\n".join(lines) + "\n"

    parts = [f"# {stage}: made or reused, and why", "How everything stood when this run began.", table(steps)]
    if others := [step for step in lineage(*steps) if step.fingerprint not in own]:
        parts += ["## What goes into it", table(others)]
    return "\n\n".join(parts)


def _outcome(known: Freshness, own: bool, force: bool) -> tuple[str, str]:
    """Return what happens to an artifact, and why."""
    if known.state == "fresh":
        if own and force:
            return "made again", "forced"
        return "reused", f"settings and inputs{_when(known)}"
    if not own:
        return OTHERS.get(known.state, known.state), known.why
    why = known.why or ("nothing like it is in the store" if known.state == "missing" else "")
    return OUTDATED if known.state == "stale" and known.artifact else OWN[known.state], why


def _when(known: Freshness) -> str:
    ended = known.artifact.manifest.provenance.get("end") if known.artifact else None
    return f" as on {datetime.fromisoformat(ended).astimezone(UTC):%Y-%m-%d %H:%M} UTC" if ended else ""


def _cell(text: str) -> str:
    """Return a text that stays within its cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
