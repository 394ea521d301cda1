"""The first stages: raw files into user sequences, and the offline base model."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from nextquill_core.ingest.sources.base import PARTS
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.progress import Progress
from storage import Staging, UserError
from storage.documents import form_expected


def scan(run: Run, category: str, progress: Progress, *, force: bool = False) -> Outcome:
    """A category's raw files as Parquet; the expensive part, independent of every threshold."""
    import polars as pl

    from nextquill_core.ingest.scan import scan_category

    raw = next(files for files in run.plan.files if files.category == category)
    step, digests = run.plan.scans[category], run.store.digests

    def build(staging: Staging) -> dict[str, Any]:
        for part in PARTS:
            if [digests(path) for path in raw.of(part)] != step.settings["raw"][part]:
                raise UserError(f"the {part} changed since the run began", category, "run the command again")
        stats = scan_category(run.config.ingest, run.plan.source, raw, run.privacy, staging, progress)
        for part in PARTS:
            for path, whole in zip(raw.of(part), stats[part]["digests"], strict=True):
                digests.confirm(path, whole)
        return stats

    # the parts hold hashes that are compared with each other, and they may differ between versions of Polars
    return run.make(step, build, force=force, tools=f"polars {pl.__version__}")


def ingest(run: Run, progress: Progress, *, force: bool = False) -> Outcome:
    """Sequences, items, examples and quarantine from the scans."""
    from nextquill_core.ingest.selection import Scanned
    from nextquill_core.ingest.stage import make_sequences

    def build(staging: Staging) -> dict[str, Any]:
        scans = []
        for category, step in run.plan.scans.items():
            artifact = run.artifact(step)
            with form_expected(artifact.location, "run `nextquill ingest --force`"):
                scans.append(Scanned.open(category, artifact.folder, artifact.manifest.stats))
        return make_sequences(run.config.ingest, run.plan.source, scans, staging, progress)

    return run.make(run.plan.ingest, build, force=force)


def base_model(run: Run, progress: Progress, *, force: bool = False) -> Outcome | None:
    """The offline base model, or None where the model comes from outside."""
    step = run.plan.model
    if step is None:
        return None

    def build(staging: Staging) -> dict[str, Any]:
        from nextquill_core.ingest.reader import base_profiles
        from nextquill_core.model.checkpoint import Checkpoint
        from nextquill_core.model.tiny import TinySpec, train_tiny_model

        prompt = run.config.prompt
        spec = TinySpec(
            **run.config.model.tiny.model_dump(),
            max_history=prompt.max_history,
            max_tokens=prompt.max_prompt_tokens + prompt.max_target_tokens,
            seed=run.config.seed,
        )
        sequences = run.artifact(run.plan.ingest)
        cuts = sequences.manifest.stats.get("cuts")  # nothing trains that is younger than what is tested
        profiles = base_profiles(sequences.folder, cuts["val_from"] if cuts else None)
        checkpoint = Checkpoint(staging.scratch / "checkpoint.safetensors")
        return dict(train_tiny_model(profiles, spec, staging.path("model"), progress, checkpoint))

    # A checkpoint of another torch or transformers would end in other bytes.
    tools = ", ".join(f"{library} {version(library)}" for library in ("torch", "transformers", "tokenizers"))
    return run.make(step, build, force=force, tools=tools)
