"""Profiles of users in words, which the base model writes before generation, for the methods `pag` and `dpl`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from nextquill_core.causal.shard_queue import split_into_shards
from nextquill_core.generation.decoding import GREEDY
from nextquill_core.ingest.peers import Peers, Place
from nextquill_core.methods.differences import Comparison, compare_reviews, representatives
from nextquill_core.methods.registry import METHODS
from nextquill_core.methods.retrieval import best_places, bm25_scores
from nextquill_core.methods.summaries import summarize
from nextquill_core.methods.text_encoder import TextEncoder
from nextquill_core.model.packaged import encoder_title
from nextquill_core.pipeline.methods import base_model, local_engine, method_encoder, run_encoder, split_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.shard_counts import ShardCounts
from nextquill_core.pipeline.step import Step
from nextquill_core.progress import Progress, advancing
from nextquill_core.records import Example
from nextquill_core.schemas import DIFFERENCES, SUMMARIES
from storage import Staging

PROFILES = "profiles"


def build_profiles(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write what the base model says of each user: from the past reviews alone, or from comparisons with others too.

    Args:
        run: The run; sequences and base model are in its store.
        step: One of `EvaluationPlan.profiles`.
        staging: Folder of the new artifact.
        progress: Receives the texts that are written.
    """
    examples = split_examples(run, run.config.evaluate.split)
    progress(0, 0, phase="loading the model")
    write = _Comparisons(run) if "peers" in step.settings else _Summaries(run)
    advance = advancing(progress, len(examples))
    counts = ShardCounts(staging)
    for number, part in split_into_shards(examples):
        name = f"{PROFILES}/{number}.parquet"
        if staging.has(name) and counts.restore(number):
            advance(len(part))
            continue
        profiles, counted = write(part, staging, number)
        counts.add(number, counted)
        columns = {"example_id": [example.example_id for example in part], "summary": profiles}
        staging.write_table(name, pa.table(columns, schema=SUMMARIES))
        advance(len(part))
    return {"examples": len(examples), **write.described, **counts.total}


class _Summaries:
    """Writes profiles from the newest past reviews alone (PAG): one summary of all of them.

    Args:
        run: The run.
    """

    described: Mapping[str, Any] = {}

    def __init__(self, run: Run) -> None:
        self._settings = run.config.evaluate.profiles
        self._limit = run.config.prompt.max_prompt_tokens
        self._encoder = method_encoder(run, METHODS["pag"])
        self._engine = local_engine(run, base_model(run.model), self._encoder, GREEDY, self._settings.max_tokens)

    def __call__(self, examples: Sequence[Example], staging: Staging, number: str) -> tuple[list[str], Counter[str]]:
        count = self._settings.reviews
        return summarize(
            [replace(example, history=example.history[-count:]) for example in examples],
            self._engine,
            self._encoder.tokenizer,
            newest=0,
            block=count,
            max_tokens=self._settings.max_tokens,
            max_prompt_tokens=self._limit,
            template=self._encoder.template,
            wording=self._encoder.wording,
        )


class _Comparisons:
    """Writes profiles from past reviews and their differences to those of other users (DPL).

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._settings = run.config.evaluate.profiles
        self._encoder = method_encoder(run, METHODS["dpl"])
        limit = max(self._settings.max_tokens, self._settings.difference_tokens)
        self._engine = local_engine(run, base_model(run.model), self._encoder, GREEDY, limit)
        self._peers = Peers(run.artifact(run.plan.ingest).folder, dated=run.plan.source.dated)
        self._vectors = peer_encoder(run)
        self.described = {"encoder": encoder_title(run.config.evaluate.peers.encoder)}

    def __call__(self, examples: Sequence[Example], staging: Staging, number: str) -> tuple[list[str], Counter[str]]:
        compared = self._compared(examples)
        reviews = [self._nearest(example, range(len(example.history)), self._settings.reviews) for example in examples]
        differences, profiles, counts = compare_reviews(
            examples,
            compared,
            [[example.history[place] for place in places] for example, places in zip(examples, reviews, strict=True)],
            self._engine,
            self._encoder.tokenizer,
            max_prompt_tokens=self._run.config.prompt.max_prompt_tokens,
            difference_tokens=self._settings.difference_tokens,
            profile_tokens=self._settings.max_tokens,
            template=self._encoder.template,
            wording=self._encoder.wording,
        )
        counts["without_comparison"] = sum(not one for one in compared)
        rows = [
            (example.example_id, one.position, len(one.others), text)
            for example, comparisons, texts in zip(examples, compared, differences, strict=True)
            for one, text in zip(comparisons, texts, strict=True)
        ]
        columns = dict(zip(DIFFERENCES.names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
        table = pa.table(columns, schema=DIFFERENCES) if rows else DIFFERENCES.empty_table()
        staging.write_table(f"differences/{number}.parquet", table)
        return profiles, counts

    def _nearest(self, example: Example, positions: Sequence[int], count: int) -> list[int]:
        """Return the positions of the past reviews that are nearest to the query by BM25, oldest first."""
        some = replace(example, history=tuple(example.history[position] for position in positions))
        return [positions[place] for place in best_places(bm25_scores(some), count)]

    def _compared(self, examples: Sequence[Example]) -> list[list[Comparison]]:
        """Choose the past reviews that are compared, and the representative reviews of others."""
        chosen = [self._with_peers(example) for example in examples]
        texts = {self._text(place) for found in chosen for own, others in found.values() for place in (own, *others)}
        vectors = dict(zip(ordered := sorted(texts), self._vectors(ordered).double().numpy(), strict=True))

        def comparison(position: int, own: Place, others: Sequence[Place]) -> Comparison:
            found = representatives(
                vectors[self._text(own)],
                np.stack([vectors[self._text(place)] for place in others]),
                self._settings.others,
                seed=self._run.config.seed,
            )
            return Comparison(
                position, self._peers.review(own), tuple(self._peers.review(others[place]) for place in found)
            )

        return [[comparison(position, *places) for position, places in found.items()] for found in chosen]

    def _with_peers(self, example: Example) -> dict[int, tuple[Place, list[Place]]]:
        """Return the past reviews to compare, by position, with each other user's first review of the same item."""
        history = self._peers.history(example)
        others = {position: self._peers.users_before(example, place) for position, place in enumerate(history)}
        able = [position for position in others if len(others[position]) >= self._settings.others]
        nearest = self._nearest(example, able, self._settings.compared)
        return {position: (history[position], others[position]) for position in nearest}

    def _text(self, place: Place) -> str:
        return self._peers.review(place).text


def peer_encoder(run: Run) -> TextEncoder:
    """Return the encoder of reviews that are compared with those of other users; it cuts them only at its own limit."""
    settings = run.config.evaluate.peers
    return run_encoder(run, settings.encoder, settings.revision, own_limit=True)
