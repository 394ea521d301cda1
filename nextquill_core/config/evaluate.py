"""Evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nextquill_core.config.base import OPERATIONAL, MethodName, Positive, Section

DecodingName = Literal["paper", "sane"]


class RetrievalConfig(Section):
    """What finds past reviews for the method `contriever`, and what reads texts for BERTScore."""

    encoder: Annotated[
        str, Field(description="a folder or a hub name of safetensors weights; base: θ0's own hidden states, offline")
    ] = "facebook/contriever"
    revision: Annotated[str, Field(description="branch, tag or commit of the encoder on the hub")] = "main"
    bertscore: Annotated[
        str | None, Field(description="a folder or a hub name of an encoder; null: BERTScore is left out")
    ] = None
    bertscore_revision: Annotated[str, Field(description="branch, tag or commit of that encoder on the hub")] = "main"


class SummariesConfig(Section):
    """How `llm-trsr` summarises: block by block, each summary going into the next; the newest reviews stay as they
    are."""

    newest: Annotated[int, Field(ge=0, description="reviews that are shown and not summarised")] = 2
    block: Annotated[int, Field(ge=1, description="reviews a block")] = 4
    max_tokens: Annotated[int, Field(ge=1, description="of one summary")] = 256


class PersonalConfig(Section):
    """One adapter a user (`oppu`) on top of one that was trained on the other users; OPPU, arXiv 2402.04401."""

    folds: Annotated[int, Field(ge=2, description="parts of the users; each is trained without one of them")] = 2
    r: Annotated[Positive, Field(description="rank of a user's adapter")] = 8
    alpha: Annotated[Positive, Field(description="it is scaled by alpha / r")] = 8
    learning_rate: Annotated[float, Field(gt=0, description="AdamW's, for the users' adapters")] = 1e-4
    epochs: Annotated[Positive, Field(description="passes over a user's history")] = 2


class ServerConfig(Section):
    """A server that speaks OpenAI's protocol (vLLM, SGLang, TGI, `transformers serve`), for `engine: openai`."""

    url: Annotated[str, Field(description="up to and with /v1")] = "http://127.0.0.1:8000/v1"
    models: Annotated[
        dict[str, str],
        Field(description="method: name of its model there; base: that of θ0 (vLLM serves each adapter by a name)"),
    ] = {}
    api_key_env: Annotated[str | None, Field(description="the environment variable that holds the key")] = None
    concurrency: Annotated[int, Field(ge=1, description="requests at a time")] = 16
    timeout_s: Annotated[float, Field(gt=0, description="seconds without a byte that fail a request")] = 600.0
    retries: Annotated[int, Field(ge=0, description="of a request that the server fails")] = 6


class EvaluateConfig(Section):
    """Methods, decoding presets and metrics."""

    split: Annotated[Literal["test", "val"], Field(description="whose reviews are written and measured")] = "test"
    methods: Annotated[
        tuple[MethodName, ...], Field(min_length=1, description="rows of the table; see `nextquill methods`")
    ] = ("qwen", "latestk", "contextsft", "nextquill")
    decoding: Annotated[
        tuple[DecodingName, ...],
        Field(min_length=1, description="paper: as published; sane: without penalty, what is better on val"),
    ] = ("paper", "sane")
    engine: Annotated[
        Literal["transformers", "openai"],
        Field(description="transformers: in this process; openai: evaluate.server", json_schema_extra=OPERATIONAL),
    ] = "transformers"
    server: Annotated[ServerConfig, Field(json_schema_extra=OPERATIONAL)] = ServerConfig()
    max_new_tokens: Annotated[int, Field(ge=1, description="longest answer under `sane`")] = 512
    paper_max_new_tokens: Annotated[int, Field(ge=1, description="longest answer under `paper`")] = 2048
    choose_by: Annotated[
        Literal["rouge1", "rougeL", "meteor", "bleu"],
        Field(description="metric on val that decides what `sane` and the strength of `cos` are"),
    ] = "rouge1"
    control: Annotated[
        Literal["stranger", "none"],
        Field(description="stranger: methods that show history also write and read with a stranger's"),
    ] = "stranger"
    retrieval: RetrievalConfig = RetrievalConfig()
    summaries: SummariesConfig = SummariesConfig()
    personal: PersonalConfig = PersonalConfig()
    batch_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="tokens, with padding, of the answers written at once and their prompts; null: as many as half "
            "of the free memory has room for, 262,144 at most",
            json_schema_extra=OPERATIONAL,
        ),
    ] = None
    bootstrap_samples: Annotated[
        int, Field(ge=100, description="resamples of users behind each interval and p-value")
    ] = 10000

    @model_validator(mode="after")
    def _each_once(self) -> EvaluateConfig:
        for name in ("methods", "decoding"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} names one twice")
        return self

    def measuring(self) -> dict[str, Any]:
        """What decides the numbers once the texts are there."""
        return {
            key: value
            for key, value in self.semantic().items()
            if key in ("split", "methods", "decoding", "control", "bootstrap_samples")
        } | {"bertscore": [self.retrieval.bertscore, self.retrieval.bertscore_revision]}
