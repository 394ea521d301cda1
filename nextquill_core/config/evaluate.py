"""Evaluation."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from nextquill_core.config.base import OPERATIONAL, MethodName, Positive, Section, variable_name

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

    url: Annotated[
        str, Field(description="address of the server, up to and with /v1", json_schema_extra=OPERATIONAL)
    ] = "http://127.0.0.1:8000/v1"
    models: Annotated[
        dict[str, str],
        Field(
            description="name of the server's model for each method, and under `base` for all methods that do not "
            "train (vLLM serves each adapter under a name); a changed name generates this method's texts again"
        ),
    ] = {}
    api_key_env: Annotated[
        str | None, Field(description="environment variable that holds the key", json_schema_extra=OPERATIONAL)
    ] = None
    concurrency: Annotated[
        int, Field(ge=1, description="requests under way at a time", json_schema_extra=OPERATIONAL)
    ] = 16
    timeout_s: Annotated[
        float, Field(gt=0, description="seconds without a byte that fail a request", json_schema_extra=OPERATIONAL)
    ] = 600.0
    retries: Annotated[
        int,
        Field(
            ge=0, description="times that a request which the server fails is repeated", json_schema_extra=OPERATIONAL
        ),
    ] = 6

    _named_as_variables_are = field_validator("api_key_env")(variable_name)

    @field_validator("models")
    @classmethod
    def _of_known_methods(cls, models: dict[str, str]) -> dict[str, str]:
        known = ("base", *get_args(MethodName))
        for name in models:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(
                    f"`{name}` is no method; "
                    + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}")
                )
        return models


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
        Field(description="what generates the texts: transformers in this process, or openai, the evaluate.server"),
    ] = "transformers"
    server: ServerConfig = ServerConfig()
    max_new_tokens: Annotated[int, Field(ge=1, description="longest answer under `sane`")] = 512
    paper_max_new_tokens: Annotated[int, Field(ge=1, description="longest answer under `paper`")] = 2048
    choose_by: Annotated[
        Literal["rouge1", "rougeL", "rouge1_unicode", "rougeL_unicode", "meteor", "bleu"],
        Field(
            description="metric on val that decides what `sane` and the strength of `cos` are; rouge1 and rougeL give "
            "way to their Unicode forms where they ignore more than 5 % of the letters of the reviews"
        ),
    ] = "rouge1"
    control: Annotated[
        Literal["stranger", "none"],
        Field(description="stranger: methods that show history also write and read with a stranger's"),
    ] = "stranger"
    repeated_targets: Annotated[
        Literal["keep", "leave_out"],
        Field(
            description="target reviews whose text stands in an earlier review of the same user: keep, as the "
            "published procedure does, or leave_out of the metrics (their texts are generated in any case)"
        ),
    ] = "keep"
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
        """Return the settings that decide the numbers once the texts are there, without the encoder of BERTScore."""
        return {
            key: value
            for key, value in self.semantic().items()
            if key in ("split", "methods", "decoding", "control", "bootstrap_samples", "repeated_targets")
        }
