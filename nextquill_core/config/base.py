"""What every group of settings has: it is frozen, refuses unknown keys, and knows which fields decide a result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError

OPERATIONAL = {"operational": True}
DEFAULTS, CHANGED = "Defaults", "Change"
"""What a form calls the two states of a group of settings."""
MethodName = Literal[
    "qwen", "contriever", "bm25", "latestk", "llm-trsr", "cos", "sft", "oppu", "contextsft", "perce", "causal-only",
    "norm-only", "nextquill", "nextquill-official",
]  # fmt: skip
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


def _title(section: type) -> str:
    """What a form calls a group of settings: `TinyModelConfig` is Tiny Model."""
    name = re.sub(r"(Config|Settings)$", "", section.__name__) or section.__name__
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def section_of(field: FieldInfo) -> type[Section] | None:
    """Return the group of settings that a field holds, or None where it holds a value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def variable_name(name: str | None) -> str | None:
    """Check the name of an environment variable; a key in its place would be stored with the settings.

    The value is not quoted, because it may be the key.
    """
    if name and (not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or re.fullmatch(r"[0-9a-fA-F]{16,}", name)):
        raise PydanticCustomError(
            "secret", "it takes the name of an environment variable", {"remedy": "put the key into the variable"}
        )
    return name


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know.

    Null for a group inside it means that group's defaults. A form shows such a group closed until it is opened.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
        model_title_generator=_title,
    )

    @model_validator(mode="before")
    @classmethod
    def _null_means_the_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        empty = {name for name, field in cls.model_fields.items() if section_of(field) and values.get(name, 0) is None}
        return {name: value for name, value in values.items() if name not in empty}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe each group inside as null or the group, with null as its default."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, field in cls.model_fields.items():
            if (section := section_of(field)) and "$ref" in properties[name]:
                described = dict(properties[name])
                group = {"$ref": described.pop("$ref"), "title": CHANGED}
                properties[name] = described | {
                    "title": _title(section),
                    "anyOf": [{"type": "null", "title": DEFAULTS}, group],
                    "default": None,
                }
        return schema

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
