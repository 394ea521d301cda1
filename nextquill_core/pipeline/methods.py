"""What methods show, need and generate with: their histories, their inputs and their models.

- The history that a method's prompts show: the examples of a split, as the prompts are made from them.
- What some methods need before they can generate: relevance of past reviews, summaries, personal adapters.
- The model that generates each shard of examples: adapters on one base model, or a server.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nextquill_core.causal.shard_queue import split_into_shards
from nextquill_core.config import ModelConfig, PromptConfig
from nextquill_core.errors import DataError, UserError
from nextquill_core.folds import fold_of
from nextquill_core.generation.decoding import Contrast, Decoding
from nextquill_core.generation.engines import Engine
from nextquill_core.ingest.reader import is_repeated, read_examples
from nextquill_core.methods.registry import METHODS, Method, Style, served_key, served_model
from nextquill_core.model.loading import encoder_for
from nextquill_core.model.packaged import encoder_title
from nextquill_core.pipeline.evaluation_plan import NONE, OWN, PROFILED, STRANGER
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.shard_counts import ShardCounts
from nextquill_core.pipeline.step import Step
from nextquill_core.progress import Progress, advancing
from nextquill_core.prompts import WORDINGS
from nextquill_core.schemas import RELEVANCE, SUMMARIES, Example, column_by_example
from nextquill_core.tokens import PairEncoder
from storage import Staging

if TYPE_CHECKING:
    from nextquill_core.methods.text_encoder import TextEncoder

PERSONAL = "personal"
SUMMARISER = METHODS["llm-trsr"]


def split_examples(run: Run, split: str) -> list[Example]:
    """Return the examples of a split with their whole histories.

    Args:
        run: The run; the sequences are in its store.
        split: `train`, `val` or `test`.

    Raises:
        DataError: The split has no example.
    """
    folder = run.artifact(run.plan.ingest).folder
    examples = list(read_examples(folder, (split,)))
    if not examples:
        raise DataError(f"there is no {split} example", str(folder), "check ingest.protocol.n_targets")
    return examples


def measured_examples(run: Run) -> tuple[list[Example], int]:
    """Return the examples that are measured, and how many of the split repeat an earlier text of their user.

    Raises:
        DataError: All of them do, and `evaluate.repeated_targets` leaves such examples out.
    """
    settings = run.config.evaluate
    examples = split_examples(run, settings.split)
    repeated = {
        example.example_id
        for example in examples
        if is_repeated(example.target.text, (review.text for review in example.history))
    }
    if settings.repeated_targets == "keep":
        return examples, len(repeated)
    kept = [example for example in examples if example.example_id not in repeated]
    if not kept:
        raise DataError(
            f"the text of every {settings.split} target stands in an earlier review of its user",
            "evaluate.repeated_targets",
            "set it to keep",
        )
    return kept, len(repeated)


def resampled_users(examples: Sequence[Example]) -> list[str]:
    """Return the user of each example, by whom intervals and tests resample.

    A user with reviews in several categories is one user: the reviews are not independent of each other.
    """
    return [example.user_id for example in examples]


def resampled_by_example(examples: Sequence[Example]) -> dict[str, str]:
    """Return `resampled_users` by the id of their example."""
    return dict(zip((example.example_id for example in examples), resampled_users(examples), strict=True))


def shown_examples(run: Run, method: Method, split: str, history: str) -> list[Example]:
    """Return the examples of a split with the history that a method shows, before it is cut to the prompt's limits.

    Args:
        run: The run; the relevance or the summaries that the method needs are in its store.
        method: The method.
        split: `val` or `test`.
        history: `own` for the user's history, `stranger` for another user's, `none` for an empty one.
    """
    from nextquill_core.methods.retrieval import bm25_scores, with_best, with_selected
    from nextquill_core.methods.stranger_control import with_strangers_history
    from nextquill_core.methods.summaries import with_summary

    examples = split_examples(run, split)
    if history == NONE:
        return [replace(example, history=()) for example in examples]
    if history == STRANGER:
        examples = with_strangers_history(examples, run.config.seed)
    count = run.config.prompt.max_history
    if method.select or method.shown == "bm25":
        return [with_selected(method, example, count) for example in examples]
    if method.shown == "contriever":
        scores = _method_input(run, run.plan.evaluation.relevance, "relevance", "score")
        return [with_best(example, scores[example.example_id], count) for example in examples]
    if method.shown == "summary":
        summaries = _method_input(run, run.plan.evaluation.summaries, "summaries", "summary")
        newest = run.config.evaluate.summaries.newest
        return [with_summary(example, summaries[example.example_id], newest) for example in examples]
    if method.shown in PROFILED:
        profiles = _method_input(run, run.plan.evaluation.profiles.get(method.shown), "profiles", "summary")
        nearest = (with_best(example, bm25_scores(example), count) for example in examples)
        return [replace(example, summary=profiles[example.example_id]) for example in nearest]
    return examples


def _method_input(run: Run, step: Step | None, table: str, column: str) -> Mapping[str, Any]:
    return column_by_example(run.artifact(planned(step, table)).folder / table, column)


def planned(step: Step | None, what: str) -> Step:
    """Return a step of the plan; a method that asks for one that the plan does not have is a bug."""
    if step is None:
        raise ValueError(f"the plan has no {what}")
    return step


def build_relevance(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write the relevance of each past review to the query, by the configured text encoder.

    Args:
        run: The run; the sequences are in its store.
        step: `EvaluationPlan.relevance`.
        staging: Folder of the new artifact.
        progress: Receives the examples that are done.
    """
    from nextquill_core.methods.retrieval import dense_scores

    settings = run.config.evaluate.retrieval
    examples = split_examples(run, run.config.evaluate.split)
    progress(0, 0, phase="loading the encoder")
    encoder = run_encoder(run, settings.encoder, settings.revision)
    advance = advancing(progress, len(examples))
    counts = ShardCounts(staging, "texts_cut")
    for number, part in split_into_shards(examples):
        name = f"relevance/{number}.parquet"
        if staging.has(name) and counts.restore(number):
            advance(len(part))
            continue
        before = encoder.truncated
        scores = dense_scores(part, encoder, advance, WORDINGS[run.plan.writes])
        counts.add(number, {"texts_cut": encoder.truncated - before})
        columns = {"example_id": [example.example_id for example in part], "score": scores}
        staging.write_table(name, pa.table(columns, schema=RELEVANCE))
    used = {"encoder": encoder_title(settings.encoder), "max_tokens": encoder.max_tokens, **encoder.pooling.described}
    return {"examples": len(examples), **counts.total, "retrieval": used}


def build_summaries(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write the running summary of each user's older reviews, generated by the base model.

    Args:
        run: The run; sequences and base model are in its store.
        step: `EvaluationPlan.summaries`.
        staging: Folder of the new artifact.
        progress: Receives the blocks of reviews that are summarised.
    """
    from nextquill_core.generation.decoding import GREEDY
    from nextquill_core.methods.summaries import blocks, summarize

    settings = run.config.evaluate.summaries
    examples = split_examples(run, run.config.evaluate.split)
    encoder = method_encoder(run, SUMMARISER)
    steps = [len(blocks(example.history, settings.newest, settings.block)) for example in examples]
    counts = ShardCounts(staging, "summaries", "empty", "cut", "prompts_clipped")
    progress(0, 0, phase="loading the model")
    advance = advancing(progress, sum(steps))
    for (number, part), (_, steps_of_part) in zip(split_into_shards(examples), split_into_shards(steps), strict=True):
        name = f"summaries/{number}.parquet"
        if staging.has(name) and counts.restore(number):
            advance(sum(steps_of_part))
            continue
        engine = local_engine(run, base_model(run.model), encoder, GREEDY, settings.max_tokens)
        found, counted = summarize(
            part,
            engine,
            encoder.tokenizer,
            newest=settings.newest,
            block=settings.block,
            max_tokens=settings.max_tokens,
            max_prompt_tokens=run.config.prompt.max_prompt_tokens,
            template=encoder.template,
            wording=encoder.wording,
            advance=advance,
        )
        counts.add(number, counted)
        columns = {"example_id": [example.example_id for example in part], "summary": found}
        staging.write_table(name, pa.table(columns, schema=SUMMARIES))
    return {"examples": len(examples), "steps": sum(steps), **counts.total}


def build_personal_adapters(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write an adapter for each user, trained on the adapter that was trained without the user's fold.

    Args:
        run: The run; sequences, base model and task adapters are in its store.
        step: `EvaluationPlan.personal`.
        staging: Folder of the new artifact.
        progress: Receives the users that are done.
    """
    from nextquill_core.methods.personal_adapters import (
        PersonalTraining,
        check_stored,
        review_examples,
        save_adapters,
        train_personal,
    )

    spec = PersonalTraining(**run.config.evaluate.personal.model_dump(), seed=run.config.seed)
    examples = split_examples(run, run.config.evaluate.split)
    encoder = method_encoder(run, METHODS["oppu"])
    advance = advancing(progress, len(examples))

    def path(name: str) -> str:
        return f"{PERSONAL}/{name}.safetensors"

    progress(0, 0, phase="loading the model")
    for base, shards in missing_by_fold(run, examples, lambda name: not staging.has(path(name))):
        for name, part in shards:
            pairs = {example.example_id: encoder.encode(review_examples(example)) for example in part}
            adapters = train_personal(base, pairs, spec, batch_tokens=run.config.train.batch_tokens, advance=advance)
            save_adapters(staging.path(path(name)), adapters, spec)
            check_stored(base, staging.path(path(name)), adapters, pairs, spec)
            staging.finish(path(name), rows=len(part))
    return {"users": len(examples), "reviews": sum(len(example.history) for example in examples)}


@dataclass(frozen=True)
class Shard:
    """Some examples and the model that generates for them.

    Attributes:
        name: Name of the shard.
        examples: The examples.
        model: The model; None where a server generates.
        adapters: The name of each example's part of the model (a personal adapter, a style vector, soft tokens), by
            its id; empty where all use the same model.
    """

    name: str
    examples: Sequence[Example]
    model: Any
    adapters: Mapping[str, str] = field(default_factory=dict)


def shard_names(run: Run, method: Method, examples: Sequence[Example]) -> list[str]:
    """Return the names of the shards that `missing_shards` splits the examples into.

    Args:
        run: The run.
        method: The method.
        examples: All examples of the split.
    """
    if not method.personal:
        return [number for number, _ in split_into_shards(examples)]
    return [name for name, _, _ in _personal_shards(run, examples)]


def missing_shards(
    run: Run,
    method: Method,
    examples: Sequence[Example],
    missing: Callable[[str], bool],
    *,
    served: bool = False,
    style: Style | None = None,
    history: str = OWN,
) -> Iterator[Shard]:
    """Yield the shards that have not been made; a shard's model may be used until the next one is asked for.

    Args:
        run: The run; the method's adapters are in its store.
        method: The method whose model is used.
        examples: All examples of the split.
        missing: Says whether the shard of a name has not been made.
        served: Whether a server generates, so that no model is loaded here.
        style: Where and how strongly a method of style vectors adds them.
        history: Whose history the prompts show, which soft tokens are made from too.
    """
    if method.personal:
        yield from _missing_personal_shards(run, examples, missing)
        return
    wanted = [(name, part) for name, part in split_into_shards(examples) if missing(name)]
    if served or not wanted:
        yield from (Shard(name, part, None) for name, part in wanted)
        return
    if style is not None:
        from nextquill_core.pipeline.style import styled_shards

        yield from styled_shards(run, wanted, style)
        return
    if method.soft:
        from nextquill_core.pipeline.soft_tokens import soft_shards

        yield from soft_shards(run, wanted, history)
        return
    train = run.plan.train.get(method.trained_as)
    adapter = run.artifact(train).folder / "adapter" if train else None
    with adapted(base_model(run.model), adapter) as model:
        for name, part in wanted:
            yield Shard(name, part, model)


@functools.lru_cache(maxsize=1)
def base_model(config: ModelConfig) -> Any:
    """Load the base model θ0, once for all methods of a process."""
    from nextquill_core.model.loading import load_model

    return load_model(config)


@contextmanager
def adapted(base: Any, adapter: Path | None) -> Iterator[Any]:
    """Put an adapter on the base model within the block; None leaves the model as it is."""
    if adapter is None:
        yield base
        return
    from nextquill_core.model.loading import load_adapter

    model = load_adapter(base, adapter)
    try:
        yield model
    finally:
        model.unload()


def task_model(run: Run, fold: int) -> Any:
    """Load another copy of the base model and merge in the adapter that was trained without this fold's users."""
    from nextquill_core.methods.personal_adapters import merge_adapter
    from nextquill_core.model.loading import load_model

    step = run.plan.evaluation.tasks[f"task-{fold}"]
    return merge_adapter(load_model(run.model), run.artifact(step).folder / "adapter")


def _personal_shards(run: Run, examples: Sequence[Example]) -> Iterator[tuple[str, int, Sequence[Example]]]:
    """Yield (name, fold, examples) of each shard; users of one fold share a merged model."""
    folds = run.config.evaluate.personal.folds
    for fold in range(folds):
        members = [example for example in examples if fold_of(example.user_id, folds) == fold]
        for number, part in split_into_shards(members):
            yield f"{fold}-{number}", fold, part


def missing_by_fold(
    run: Run, examples: Sequence[Example], missing: Callable[[str], bool]
) -> Iterator[tuple[Any, list[tuple[str, Sequence[Example]]]]]:
    """Yield for each fold its merged model and the shards that have not been made; a complete fold loads no model.

    Args:
        run: The run; the task adapters are in its store.
        examples: All examples of the split.
        missing: Says whether the shard of a name has not been made.
    """
    shards = list(_personal_shards(run, examples))
    for fold in range(run.config.evaluate.personal.folds):
        wanted = [(name, part) for name, of, part in shards if of == fold and missing(name)]
        if wanted:
            yield task_model(run, fold), wanted


def _missing_personal_shards(run: Run, examples: Sequence[Example], missing: Callable[[str], bool]) -> Iterator[Shard]:
    from nextquill_core.methods.personal_adapters import adapter_name, load_adapters, with_personal_adapters

    folder = run.artifact(planned(run.plan.evaluation.personal, "personal adapters")).folder / PERSONAL
    for base, wanted in missing_by_fold(run, examples, missing):
        for name, part in wanted:
            adapters, spec = load_adapters(folder / f"{name}.safetensors")
            with with_personal_adapters(base, adapters, spec) as model:
                names = {example.example_id: adapter_name(example.example_id) for example in part}
                yield Shard(name, part, model, names)


def method_encoder(run: Run, method: Method) -> PairEncoder:
    """Return the encoder of a method's prompts; that of a method without history leaves the history out."""
    return prompt_encoder(run.model, run.prompt, method)


def prompt_encoder(model: ModelConfig, prompt: PromptConfig, method: Method) -> PairEncoder:
    """Return the encoder of a method's prompts for a base model.

    Args:
        model: The base model.
        prompt: Settings with `template` resolved to plain or chat.
        method: The method; one without history leaves the history out.
    """
    from nextquill_core.model.loading import load_tokenizer

    shown = prompt if method.history else prompt.model_copy(update={"max_history": 0})
    return encoder_for(model, shown, load_tokenizer(model))


def run_encoder(run: Run, name: str, revision: str, *, own_limit: bool = False) -> TextEncoder:
    """Return a text encoder that a setting names; `base` is the base model's own decoder.

    Args:
        run: The run.
        name: As for `load_encoder`, as are the others.
        revision: Branch, tag or commit on the hub.
        own_limit: Whether texts may have as many tokens as the encoder's files say.
    """
    from nextquill_core.methods.text_encoder import load_encoder

    return load_encoder(
        name,
        revision,
        base=run.model,
        trust_remote_code=run.config.model.trust_remote_code,
        batch_tokens=run.config.score.batch_tokens,
        own_limit=own_limit,
    )


def local_engine(
    run: Run, model: Any, encoder: PairEncoder, decoding: Decoding, limit: int, contrast: Contrast | None = None
) -> Engine:
    """Return the engine that generates with a model of this process.

    Args:
        run: The run.
        model: The loaded model.
        encoder: The encoder of the method's prompts.
        decoding: How tokens are chosen.
        limit: Maximum number of tokens in an answer.
        contrast: How the two branches of a method that has two become one.
    """
    from nextquill_core.generation.local_engine import TransformersEngine

    return TransformersEngine(
        model,
        encoder.tokenizer,
        decoding,
        max_new_tokens=limit,
        stop=encoder.stop_id,
        batch_tokens=run.config.evaluate.batch_tokens,
        contrast=contrast,
        seed=run.config.seed,
    )


def server_engine(run: Run, method: Method, encoder: PairEncoder, decoding: Decoding, limit: int) -> Engine:
    """Return the engine that asks the server of `evaluate.server`.

    Args:
        run: The run.
        method: The method.
        encoder: The encoder of the method's prompts.
        decoding: How tokens are chosen.
        limit: Maximum number of tokens in an answer.

    Raises:
        UserError: The method cannot be served, or `evaluate.server.models` does not name its model.
    """
    from nextquill_core.generation.openai_engine import OpenAIEngine

    if method.steered or method.individual:
        raise UserError(
            f"{method.name} decodes as no server does", "evaluate.engine", "set it to transformers for this method"
        )
    settings = run.config.evaluate.server
    name = served_model(method, settings.models)
    if name is None:
        key = served_key(method, settings.models)
        raise UserError(f"no model of the server is named for {method.name}", f"evaluate.server.models.{key}", "add it")
    return OpenAIEngine(
        settings,
        name,
        encoder.tokenizer,
        decoding,
        max_new_tokens=limit,
        stop=encoder.stop_id,
        seed=run.config.seed,
    )
