"""The base class of all sections of the configuration, and types that several sections use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError

from nextquill_core.methods.registry import METHODS

OPERATIONAL: Any = Field(json_schema_extra={"operational": True})
"""Marks a field that says how a stage runs, not what it makes."""
NON_EMPTY: Any = Field(pattern=r"\S")
"""Marks a text that must hold something but white space."""
DEFAULTS, CHANGED = "Defaults", "Change"
"""What a form calls the two states of a group of settings."""
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


def _auto_or_positive(count: int | str) -> int | str:
    if isinstance(count, int) and count < 1:
        raise ValueError("must be `auto` or at least 1")
    return count


AutoCount = Annotated[int | Literal["auto"], AfterValidator(_auto_or_positive)]
"""A number of processes, or `auto` for what this machine has."""


def _title(section: type) -> str:
    """Return the title of a section in a form: `TinyModelConfig` becomes Tiny Model."""
    name = re.sub(r"(Config|Settings)$", "", section.__name__) or section.__name__
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, or the type itself; of a Literal, the types of its values."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        for part in get_args(annotation):
            yield from alternatives(part)
    elif get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    else:
        yield annotation


def section_of(field: FieldInfo) -> type[Section] | None:
    """Return the section that a field holds, or None if it holds a value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def description_of(field: FieldInfo) -> str:
    """Return the description of a field as one line, or "" if it has none."""
    return " ".join((field.description or "").split())


def variable_name(name: str | None) -> str | None:
    """Check the name of an environment variable, because a key in its place would be stored with the settings.

    The message does not quote the value, because it may be the key.
    """
    if name and (not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or re.fullmatch(r"[0-9a-fA-F]{16,}", name)):
        raise PydanticCustomError(
            "secret", "it takes the name of an environment variable", {"remedy": "put the key into the variable"}
        )
    return name


class MethodNames:
    """Marks a value as the name of a method; its JSON schema lists the names, so that forms offer them."""

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": list(METHODS)}


def _method_name(name: str) -> str:
    if name not in METHODS:
        expected = ", ".join(f"'{known}'" for known in METHODS)
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
    return name


MethodName = Annotated[str, AfterValidator(_method_name), MethodNames()]
"""The name of a method, built in or added by another package."""


class Section(BaseModel):
    """A frozen section of the configuration that refuses unknown keys; the docstring of a field is its description.

    Null for a section inside it means that section's defaults. A form shows such a section closed at first.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        model_title_generator=_title,
    )

    @model_validator(mode="before")
    @classmethod
    def _null_means_the_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        empty = {name for name, field in cls.model_fields.items() if section_of(field) and values.get(name, 0) is None}
        return {name: value for name, value in values.items() if name not in empty}

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number, which pydantic reads as 1 and 0: YAML also writes them `yes` and `on`."""
        if isinstance(value, bool) and info.field_name:
            kinds = list(alternatives(cls.model_fields[info.field_name].annotation))
            if int in kinds and bool not in kinds:
                raise PydanticCustomError("int_type", "it takes a whole number")
            if float in kinds and bool not in kinds:
                raise PydanticCustomError("float_type", "it takes a number")
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe each field in one line, and each section inside as null or the section, with null as its default."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, field in cls.model_fields.items():
            if description := description_of(field):
                properties[name]["description"] = description
            if (section := section_of(field)) and "$ref" in properties[name]:
                described = dict(properties[name])
                changed = {"$ref": described.pop("$ref"), "title": CHANGED}
                properties[name] = described | {
                    "title": _title(section),
                    "anyOf": [{"type": "null", "title": DEFAULTS}, changed],
                    "default": None,
                }
        return schema

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the fields that decide what a stage makes, as JSON values, without operational ones at any depth."""
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("operational"):
                continue
            value = getattr(self, name)
            values[name] = value.fingerprint_fields() if isinstance(value, Section) else plain(value)
        return values


def plain(value: Any) -> Any:
    """Return a value of a setting as a JSON value, without the operational fields of sections."""
    if isinstance(value, Section):
        return value.fingerprint_fields()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, date):
        return value.isoformat()
    return value
