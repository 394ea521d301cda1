"""What every group of settings has: it is frozen, refuses unknown keys, and knows which fields decide a result."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

OPERATIONAL = {"operational": True}
MethodName = Literal[
    "qwen", "contriever", "bm25", "latestk", "llm-trsr", "cos", "sft", "oppu", "contextsft", "perce", "causal-only",
    "norm-only", "nextquill",
]  # fmt: skip
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


def _title(section: type) -> str:
    """What a form calls a group of settings: `TinyModelConfig` is Tiny Model."""
    name = re.sub(r"(Config|Settings)$", "", section.__name__) or section.__name__
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), model_title_generator=_title)

    def semantic(self) -> dict[str, Any]:
        """The fields that decide what a stage produces, as JSON values; operational ones are left out, at any depth."""
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("operational"):
                continue
            value = getattr(self, name)
            values[name] = value.semantic() if isinstance(value, Section) else _plain(value)
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.semantic()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    return value
