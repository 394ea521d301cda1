"""Evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nextquill_core.config.base import OPERATIONAL, MethodName, Positive, Section


class EvaluateConfig(Section):
    """Methods, decoding presets and metrics."""

    split: Literal["test", "val"] = "test"
    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] = ("qwen", "latestk", "contextsft", "nextquill")
    decoding: Annotated[tuple[Literal["paper", "sane"], ...], Field(min_length=1)] = ("paper", "sane")
    engine: Annotated[Literal["transformers"], Field(json_schema_extra=OPERATIONAL)] = "transformers"
    max_new_tokens: Positive = 512
    batch_tokens: Annotated[
        int, Field(ge=1, description="prompt tokens of one batch, with padding", json_schema_extra=OPERATIONAL)
    ] = 16384
    bootstrap_samples: Annotated[
        int, Field(ge=100, description="resamples of users behind each interval and p-value")
    ] = 10000
