"""The stages `ingest` and `model`: raw files into user sequences, and a base model that is made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextquill_core.ingest.batches import PARTS
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.step import Step
from nextquill_core.progress import Progress
from nextquill_core.prompts import WORDINGS
from storage import Staging, UserError
from storage.stored_json import expect_form


def build_scan(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write a category's raw files as Parquet; the expensive part of `ingest`, independent of every threshold.

    Args:
        run: The run.
        step: One of `Plan.scans`.
        staging: Folder of the new artifact.
        progress: Receives the bytes that have been read.

    Raises:
        UserError: A raw file changed after the plan was made.
    """
    from nextquill_core.ingest.scan import scan_category

    category = next(name for name, scan in run.plan.scans.items() if scan.fingerprint == step.fingerprint)
    raw = next(files for files in run.plan.files if files.category == category)
    digests = run.store.raw_digests(save=True)
    for part in PARTS:
        if [digests(path) for path in raw.of(part)] != step.settings["raw"][part]:
            raise UserError(f"the {part} changed since the run began", category, "run the command again")
    stats = scan_category(run.config.ingest, run.plan.source, raw, run.privacy, staging, progress)
    for part in PARTS:
        for path, whole in zip(raw.of(part), stats[part]["digests"], strict=True):
            digests.confirm(path, whole)
    return stats


def build_sequences(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write sequences, items, examples and quarantine from the scans of all categories.

    Args:
        run: The run; the scans are in its store.
        step: `Plan.ingest`.
        staging: Folder of the new artifact.
        progress: Receives the users that are done.
    """
    from nextquill_core.ingest.selection import Scanned
    from nextquill_core.ingest.sequences import make_sequences

    scans = []
    for category, scan in run.plan.scans.items():
        artifact = run.artifact(scan)
        with expect_form(artifact.location, "run `nextquill ingest --force`"):
            scans.append(Scanned.open(category, artifact.folder, artifact.manifest.stats))
    return make_sequences(run.config.ingest, run.plan.source, scans, staging, progress)


def build_base_model(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Convert the base model from GGUF, or train the offline one on the base profiles of the users.

    Args:
        run: The run; the sequences are in its store if the model is trained on them.
        step: `Plan.model`.
        staging: Folder of the new artifact.
        progress: Receives the training steps that are done.
    """
    if run.config.model.name_or_path == "tiny":
        return _trained(run, staging, progress)
    from nextquill_core.model.gguf_conversion import convert_gguf

    source = Path(run.plan.base.name_or_path).expanduser()
    return convert_gguf(source, staging.path("model"), run.config.model.dtype, progress)


def _trained(run: Run, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Train the tokenizer and the offline base model, and return the facts for the manifest."""
    from nextquill_core.ingest.reader import base_profiles
    from nextquill_core.model.checkpoint import Checkpoint
    from nextquill_core.model.tiny import train_tiny_model

    prompt = run.config.prompt
    sequences = run.artifact(run.plan.ingest)
    cuts = sequences.manifest.stats.get("cuts")  # what trains the model must be older than what is measured
    profiles = base_profiles(sequences.folder, cuts["val_from"] if cuts else None)
    checkpoint = Checkpoint(staging.scratch / "checkpoint.safetensors")
    return train_tiny_model(
        profiles,
        run.config.model.tiny,
        staging.path("model"),
        max_history=prompt.max_history,
        max_tokens=prompt.max_prompt_tokens + prompt.max_target_tokens,
        seed=run.config.seed,
        progress=progress,
        checkpoint=checkpoint,
        wording=WORDINGS[run.plan.writes],
    )
