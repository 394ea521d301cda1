"""Who answers: for each shard of examples the model of a method, adapters put on and taken off one loaded base."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextquill_core.causal.shard_queue import in_shards
from nextquill_core.errors import UserError
from nextquill_core.folds import fold_of
from nextquill_core.generation.decoding import Decoding
from nextquill_core.generation.engines import Engine
from nextquill_core.methods.registry import Method, served_key, served_model
from nextquill_core.model.identity import ModelSpec
from nextquill_core.pipeline.run import Run
from nextquill_core.schemas import Example
from nextquill_core.tokens import PairEncoder, encoder_for

PERSONAL = "personal"


@dataclass(frozen=True)
class Part:
    """Some examples and the model that answers them.

    Attributes:
        name: Of the shard.
        adapters: By example, the PEFT adapter that answers it; empty where all have the same.
    """

    name: str
    examples: Sequence[Example]
    model: Any
    adapters: Mapping[str, str] = field(default_factory=dict)


def shard_names(run: Run, method: Method, examples: Sequence[Example]) -> list[str]:
    """The shards that `parts` cuts the examples into."""
    if not method.personal:
        return [number for number, _ in in_shards(examples)]
    return [name for name, _, _ in _personal_shards(run, examples)]


def parts(run: Run, method: Method, examples: Sequence[Example], missing: Callable[[str], bool]) -> Iterator[Part]:
    """The shards that are still missing, one after the other; a model serves while its shard is worked on.

    Args:
        run: The configuration.
        method: Whose model.
        examples: All of the split.
        missing: Whether a shard of this name is to be made.
    """
    if method.personal:
        yield from _personal_parts(run, examples, missing)
        return
    wanted = [(name, part) for name, part in in_shards(examples) if missing(name)]
    if not wanted:
        return
    train = run.plan.train.get(method.name)
    adapter = run.artifact(train).folder / "adapter" if train else None
    with adapted(base_model(run.model_spec), adapter) as model:
        for name, part in wanted:
            yield Part(name, part, model)


@functools.lru_cache(maxsize=1)
def base_model(spec: ModelSpec) -> Any:
    """θ0, loaded once for all methods of a process."""
    from nextquill_core.model.loading import load_model

    return load_model(spec)


@contextmanager
def adapted(base: Any, adapter: Path | None) -> Iterator[Any]:
    """The base model with an adapter on it for the length of the block."""
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
    """A model of its own, with the adapter merged in that was trained without this fold's users."""
    from nextquill_core.methods.personal_adapters import merged
    from nextquill_core.model.loading import load_model

    step = run.plan.evaluation.tasks[f"task-{fold}"]
    return merged(load_model(run.model_spec), run.artifact(step).folder / "adapter")


def _personal_shards(run: Run, examples: Sequence[Example]) -> Iterator[tuple[str, int, Sequence[Example]]]:
    """(name, fold, examples): users of one fold stand on the same merged model."""
    folds = run.config.evaluate.personal.folds
    for fold in range(folds):
        members = [example for example in examples if fold_of(example.user_id, folds) == fold]
        for number, part in in_shards(members):
            yield f"{fold}-{number}", fold, part


def missing_by_fold(
    run: Run, examples: Sequence[Example], missing: Callable[[str], bool]
) -> Iterator[tuple[Any, list[tuple[str, Sequence[Example]]]]]:
    """The missing shards of each fold with the model they stand on; folds without any load none."""
    shards = list(_personal_shards(run, examples))
    for fold in range(run.config.evaluate.personal.folds):
        wanted = [(name, part) for name, of, part in shards if of == fold and missing(name)]
        if wanted:
            yield task_model(run, fold), wanted


def _personal_parts(run: Run, examples: Sequence[Example], missing: Callable[[str], bool]) -> Iterator[Part]:
    from nextquill_core.methods.personal_adapters import adapter_name, load_adapters, personalised

    if run.plan.evaluation.personal is None:
        raise ValueError("the plan has no personal adapters")
    folder = run.artifact(run.plan.evaluation.personal).folder / PERSONAL
    for base, wanted in missing_by_fold(run, examples, missing):
        for name, part in wanted:
            adapters, spec = load_adapters(folder / f"{name}.safetensors")
            with personalised(base, adapters, spec) as model:
                names = {example.example_id: adapter_name(example.example_id) for example in part}
                yield Part(name, part, model, names)


def method_encoder(run: Run, method: Method) -> PairEncoder:
    """Prompts as a method has them; one without history shows none, whatever an example brings."""
    from nextquill_core.model.loading import load_tokenizer

    limits = run.prompt_settings | ({} if method.history else {"max_history": 0})
    return encoder_for(run.model_spec, load_tokenizer(run.model_spec), **limits)


def make_engine(
    run: Run,
    method: Method,
    model: Any,
    encoder: PairEncoder,
    decoding: Decoding,
    limit: int,
    strength: float | None = None,
) -> Engine:
    """The engine on a model of this process; see `server_engine` for the other."""
    from nextquill_core.generation.local_engine import TransformersEngine

    return TransformersEngine(
        model,
        encoder.tokenizer,
        decoding,
        max_new_tokens=limit,
        stop=encoder.stop_id,
        batch_tokens=run.config.evaluate.batch_tokens,
        steering=strength if method.steered else None,
        seed=run.config.seed,
    )


def server_engine(run: Run, method: Method, encoder: PairEncoder, decoding: Decoding, limit: int) -> Engine:
    """The engine that asks a server.

    Raises:
        UserError: The method cannot be served, or `evaluate.server.models` does not name its model.
    """
    from nextquill_core.generation.openai_engine import OpenAIEngine, ServerSettings

    if method.steered or method.personal:
        raise UserError(
            f"{method.name} decodes as no server does", "evaluate.engine", "set it to transformers for this method"
        )
    settings = run.config.evaluate.server
    name = served_model(method, settings.models)
    if name is None:
        key = served_key(method, settings.models)
        raise UserError(f"no model of the server is named for {method.name}", f"evaluate.server.models.{key}", "add it")
    values = settings.model_dump(exclude={"models"})
    return OpenAIEngine(
        ServerSettings(**values | {"api_key_env": settings.api_key_env or ""}),
        name,
        encoder.tokenizer,
        decoding,
        max_new_tokens=limit,
        stop=encoder.stop_id,
        seed=run.config.seed,
    )
