"""What some methods need before they can write: relevance of past reviews, summaries, personal adapters."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from nextquill_core.causal.shard_queue import in_shards
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.method_models import PERSONAL, base_model, make_engine, method_encoder, missing_by_fold
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.shown_history import split_examples
from nextquill_core.progress import Progress
from nextquill_core.schemas import RELEVANCE, SUMMARIES
from storage import Staging

SUMMARISER = METHODS["llm-trsr"]


def relevance(run: Run, staging: Staging, progress: Progress) -> dict[str, Any]:
    """How near each past review is to the query, by the configured encoder."""
    from nextquill_core.methods.retrieval import dense_scores
    from nextquill_core.methods.text_encoder import load_encoder

    settings = run.config.evaluate.retrieval
    examples = split_examples(run, run.config.evaluate.split)
    progress(0, 0, phase="loading the encoder")
    encoder = load_encoder(
        settings.encoder,
        settings.revision,
        base=run.model_spec,
        trust_remote_code=run.config.model.trust_remote_code,
        batch_tokens=run.config.score.batch_tokens,
    )
    finished = 0

    def advance(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, len(examples))

    for number, part in in_shards(examples):
        name = f"relevance/{number}.parquet"
        if staging.has(name):
            advance(len(part))
            continue
        scores = dense_scores(part, encoder, advance)
        columns = {"example_id": [example.example_id for example in part], "score": scores}
        staging.write_table(name, pa.table(columns, schema=RELEVANCE))
    return {"examples": len(examples), "texts_cut": encoder.truncated}


def summaries(run: Run, staging: Staging, progress: Progress) -> dict[str, Any]:
    """The running summary of each user's older reviews, by the base model."""
    from nextquill_core.generation.decoding import GREEDY
    from nextquill_core.methods.summaries import blocks, summarize

    settings = run.config.evaluate.summaries
    examples = split_examples(run, run.config.evaluate.split)
    encoder = method_encoder(run, SUMMARISER)
    steps = [len(blocks(example.history, settings.newest, settings.block)) for example in examples]
    finished, counts = 0, dict.fromkeys(("summaries", "empty", "cut", "prompts_clipped"), 0)

    def advance(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, sum(steps))

    progress(0, 0, phase="loading the model")
    for number, part in in_shards(examples):
        name = f"summaries/{number}.parquet"
        if staging.has(name):
            continue
        engine = make_engine(run, SUMMARISER, base_model(run.model_spec), encoder, GREEDY, settings.max_tokens)
        found, told = summarize(
            part,
            engine,
            encoder.tokenizer,
            newest=settings.newest,
            block=settings.block,
            max_tokens=settings.max_tokens,
            max_prompt_tokens=run.config.prompt.max_prompt_tokens,
            template=encoder.template,
            advance=advance,
        )
        counts = {key: counts[key] + told[key] for key in counts}
        columns = {"example_id": [example.example_id for example in part], "summary": found}
        staging.write_table(name, pa.table(columns, schema=SUMMARIES))
    return {"examples": len(examples), "steps": sum(steps), **counts}


def personal(run: Run, staging: Staging, progress: Progress) -> dict[str, Any]:
    """One adapter a user, on the adapter that was trained without that user's fold."""
    from nextquill_core.methods.personal_adapters import (
        PersonalSpec,
        check_stored,
        own_reviews,
        save_adapters,
        train_personal,
    )

    settings = run.config.evaluate.personal
    spec = PersonalSpec(
        r=settings.r,
        alpha=settings.alpha,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        seed=run.config.seed,
    )
    examples = split_examples(run, run.config.evaluate.split)
    encoder = method_encoder(run, METHODS["oppu"])
    reviews = sum(len(example.history) for example in examples)
    finished = 0

    def advance(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, len(examples))

    def path(name: str) -> str:
        return f"{PERSONAL}/{name}.safetensors"

    progress(0, 0, phase="loading the model")
    for base, wanted in missing_by_fold(run, examples, lambda name: not staging.has(path(name))):
        for name, part in wanted:
            pairs = {example.example_id: encoder.encode(own_reviews(example)) for example in part}
            adapters = train_personal(base, pairs, spec, batch_tokens=run.config.train.batch_tokens, advance=advance)
            save_adapters(staging.path(path(name)), adapters, spec)
            check_stored(base, staging.path(path(name)), adapters, pairs, spec)
            staging.finish(path(name), rows=len(part))
    return {"users": len(examples), "reviews": reviews}
