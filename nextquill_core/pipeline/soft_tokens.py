"""Soft tokens of a run (DEP): the vectors of users' reviews and their differences, the training, and the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from nextquill_core.causal.shard_queue import split_into_shards
from nextquill_core.errors import DataError
from nextquill_core.ingest.peers import Peers, Place
from nextquill_core.ingest.reader import read_examples
from nextquill_core.methods.example_tensors import load_tensors, save_tensors
from nextquill_core.methods.registry import METHODS
from nextquill_core.methods.soft_tokens import (
    SoftModel,
    SoftTraining,
    difference,
    place_of,
    soft_tokens_of,
    train_soft_tokens,
)
from nextquill_core.methods.stranger_control import with_strangers_history
from nextquill_core.model.checkpoint import Checkpoint
from nextquill_core.model.packaged import encoder_title
from nextquill_core.pipeline.evaluation_plan import OWN, STRANGER
from nextquill_core.pipeline.methods import Shard, base_model, method_encoder, planned, split_examples
from nextquill_core.pipeline.profiles import peer_encoder
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.shard_counts import ShardCounts
from nextquill_core.pipeline.step import Step
from nextquill_core.progress import Progress, advancing
from nextquill_core.records import Example, Review
from nextquill_core.schemas import SOFT_TRAINING
from nextquill_core.tokens import PairEncoder, UserTextTokenizer, opening_ids
from storage import Staging

TRAIN, SOFT = "train", "soft"
"""Folders of the artifacts: vectors of the train examples, beside those of `own` and `stranger`; the trained part."""
WEIGHTS, CURVE = f"{SOFT}/soft_tokens.safetensors", f"{SOFT}/training.parquet"


def build_peer_vectors(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write the vectors of each example's newest reviews that others have reviewed too, and of their differences.

    Args:
        run: The run; sequences and, for the encoder `base`, the base model are in its store.
        step: `EvaluationPlan.peers`.
        staging: Folder of the new artifact.
        progress: Receives the examples that are done.
    """
    folder = run.artifact(run.plan.ingest).folder
    measured = split_examples(run, run.config.evaluate.split)
    groups = {TRAIN: newest_train_examples(folder), OWN: measured}
    if step.settings["control"] != "none":
        groups[STRANGER] = with_strangers_history(measured, run.config.seed)
    progress(0, 0, phase="loading the encoder")
    vectors = _ReviewVectors(run, folder)
    advance = advancing(progress, sum(map(len, groups.values())))
    counts = ShardCounts(staging, "without_peers")
    for group, examples in groups.items():
        for number, part in split_into_shards(examples):
            name = f"{group}/{number}.safetensors"
            if not (staging.has(name) and counts.restore(name)):
                found = vectors.inputs(part)
                counts.add(name, {"without_peers": sum(not tensor.shape[1] for tensor in found.values())})
                save_tensors(staging.path(name), found)
                staging.finish(name, rows=len(found))
            advance(len(part))
    return {
        "examples": {group: len(examples) for group, examples in groups.items()},
        **counts.total,
        "encoder": encoder_title(run.config.evaluate.peers.encoder),
    }


def newest_train_examples(folder: Path) -> list[Example]:
    """Return the train example of each user with the longest history, which is the newest.

    Args:
        folder: Folder of the ingest artifact.
    """
    newest: dict[tuple[str, str], Example] = {}
    for example in read_examples(folder, ("train",)):
        user = example.category, example.user_id
        if user not in newest or len(example.history) >= len(newest[user].history):
            newest[user] = example
    return list(newest.values())


class _ReviewVectors:
    """Vectors of reviews and their differences to other users' reviews of the same item.

    Args:
        run: The run.
        folder: Folder of the ingest artifact.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self._count = run.config.evaluate.dep.reviews
        self._peers = Peers(folder, dated=run.plan.source.dated)
        self._encoder = peer_encoder(run)
        self._known: dict[str, torch.Tensor] = {}

    def inputs(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return the vectors of each example's reviews and their differences, newest review first, (2, K, E)."""
        compared = [self._compared(example) for example in examples]
        self._encode(examples, compared)
        return {
            example.example_id: self._stacked(example, reviews)
            for example, reviews in zip(examples, compared, strict=True)
        }

    def _compared(self, example: Example) -> list[tuple[Review, list[Place]]]:
        """Return the newest past reviews that others have reviewed too, with the others' reviews."""
        found: list[tuple[Review, list[Place]]] = []
        for review in reversed(example.history):
            others = self._peers.known_before(example, self._peers.place(example.category, review))
            if others:
                found.append((review, others))
            if len(found) == self._count:
                break
        return found

    def _encode(self, examples: Sequence[Example], compared: Sequence[list[tuple[Review, list[Place]]]]) -> None:
        """Encode all texts that the examples need and that are not encoded yet."""
        texts: dict[str, None] = {}
        for example, reviews in zip(examples, compared, strict=True):
            texts |= dict.fromkeys(review.text for review in example.history)
            for _, others in reviews:
                for other in others:
                    profile = self._peers.profile_before(example, other)
                    texts |= dict.fromkeys(self._peers.review(place).text for place in (other, *profile))
        missing = [text for text in texts if text not in self._known]
        vectors_NE = torch.nn.functional.normalize(self._encoder(missing), dim=-1)
        self._known |= dict(zip(missing, vectors_NE, strict=True))

    def _stacked(self, example: Example, reviews: Sequence[tuple[Review, list[Place]]]) -> torch.Tensor:
        if not reviews:
            return torch.zeros(2, 0, self._encoder.model.config.hidden_size)
        profile_E = self._mean(review.text for review in example.history)
        own, differences = [], []
        for review, others in reviews:
            profiles = [
                self._mean(self._peers.review(place).text for place in self._peers.profile_before(example, other))
                for other in others
            ]
            theirs = [self._known[self._peers.review(other).text] for other in others]
            own.append(self._known[review.text])
            differences.append(difference(own[-1], torch.stack(theirs), profile_E, torch.stack(profiles)))
        return torch.stack([torch.stack(own), torch.stack(differences)])

    def _mean(self, texts: Iterator[str]) -> torch.Tensor:
        return torch.stack([self._known[text] for text in texts]).mean(dim=0)


def build_soft_tokens(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Train the soft tokens on the newest train example of each user, and write them with the losses of each step.

    Args:
        run: The run; sequences, base model and the vectors of reviews are in its store.
        step: `EvaluationPlan.soft`.
        staging: Folder of the new artifact.
        progress: Receives the examples that are trained on.
    """
    settings = run.config.evaluate.dep
    inputs = _inputs(run, TRAIN)
    examples = newest_train_examples(run.artifact(run.plan.ingest).folder)
    if not examples:
        raise DataError("there is no train example", "method dep", "check ingest.protocol.n_targets, or leave it out")
    encoder = method_encoder(run, METHODS["dep"])
    progress(0, 0, phase="loading the model")
    model = base_model(run.model)
    used = sum(bool(inputs[example.example_id].shape[1]) for example in examples)
    advance = advancing(progress, settings.epochs * used)
    soft, curve = train_soft_tokens(
        model,
        encoder.encode(examples),
        inputs,
        _place(encoder),
        SoftTraining(settings.epochs, settings.learning_rate, run.config.seed),
        advance=advance,
        checkpoint=Checkpoint(staging.scratch / "checkpoint.safetensors"),
    )
    save_tensors(staging.path(WEIGHTS), soft.state_dict())
    staging.finish(WEIGHTS, rows=1)
    staging.write_table(CURVE, pa.Table.from_pylist(curve, schema=SOFT_TRAINING))
    return {"examples": used, "steps": len(curve), "loss": curve[-1]["loss"]}


def _inputs(run: Run, group: str) -> dict[str, torch.Tensor]:
    step = planned(run.plan.evaluation.peers, "vectors of reviews")
    return load_tensors(run.artifact(step).files(f"{group}/"), "vectors of reviews")


def _place(encoder: PairEncoder) -> int:
    """Return where soft tokens stand in the prompts of an encoder: after the markup that opens them."""
    template, tokenizer = encoder.template, encoder.tokenizer
    opening = opening_ids(tokenizer, template)
    text = UserTextTokenizer(tokenizer, template)
    prompts = [[*opening, *ids] for ids in text.encode_prompts(["Write", "12"])]
    return place_of(*prompts)


def soft_shards(run: Run, shards: Iterable[tuple[str, Sequence[Example]]], history: str) -> Iterator[Shard]:
    """Yield shards with a model in whose prompts the soft tokens stand.

    Args:
        run: The run; the trained part and the vectors of reviews are in its store.
        shards: Name and examples of each shard.
        history: Whose history the prompts show, `own` or `stranger`.
    """
    inputs = _inputs(run, history)
    stored = run.artifact(planned(run.plan.evaluation.soft, "soft tokens")).files(WEIGHTS)
    soft = soft_tokens_of(load_tensors(stored, "soft tokens"), str(stored[0]))
    model, place = base_model(run.model), _place(method_encoder(run, METHODS["dep"]))
    for name, part in shards:
        ids = [example.example_id for example in part]
        with torch.inference_mode():
            tokens = {key: soft(inputs[key])[0] if inputs[key].shape[1] else soft.no_tokens() for key in ids}
        yield Shard(name, part, SoftModel(model, tokens, place).eval(), dict(zip(ids, ids, strict=True)))
