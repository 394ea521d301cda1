"""Reading of YAML from users within limits: size, nesting, number of values, and each key once and a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

LARGEST_BYTES = 1 << 20
DEEPEST = 32
"""Maximum number of nested levels; the settings have five."""
MOST_VALUES = 100_000
"""Maximum number of values, counted with every alias written out."""
LONGEST_TEXT = 10_000
SMALLEST_INT, LARGEST_INT = -(1 << 63), (1 << 63) - 1
LARGEST_SEED = LARGEST_INT
TEXT_TAG, MERGE_TAG = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class InvalidYaml(ValueError):  # noqa: N818  it is always turned into a UserError
    """A text is not YAML, or YAML beyond a limit; the message is one sentence with the line."""


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        InvalidYaml: It is not YAML, or beyond a limit.
    """
    if len(text) > LARGEST_BYTES:
        raise InvalidYaml(f"it is longer than {LARGEST_BYTES:,} characters")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {}, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise InvalidYaml(f"{error.problem or 'not valid YAML'}{_line(error.problem_mark)}") from None
    except yaml.YAMLError as error:
        raise InvalidYaml(str(error)) from None
    except RecursionError:
        raise InvalidYaml("it is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _line(mark: Any) -> str:
    return f", line {mark.line + 1}" if mark is not None else ""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with every error raised as a `MarkedYAMLError`."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        try:
            if self._depth > DEEPEST:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.MarkedYAMLError(problem=f"it is nested more than {DEEPEST} levels deep", problem_mark=mark)
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, AttributeError, OverflowError) as error:  # 2020-13-45, !!int abc, 5,000 digits
            shown = shortened(node.value) if isinstance(node.value, str) else node.tag
            problem = f"`{shown}` is not a value ({error})"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        if type(value) is int and not SMALLEST_INT <= value <= LARGEST_INT:
            problem = "a whole number does not fit 64 bits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value


def _check(node: Any, sizes: dict[int, int], open_nodes: set[int]) -> int:
    """Check a node and all nodes below; return the number of their values with aliases written out."""
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in open_nodes:
        raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=node.start_mark)
    open_nodes.add(id(node))
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_check(item, sizes, open_nodes) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.tag not in (TEXT_TAG, MERGE_TAG):
                shown = shortened(key.value) if isinstance(key.value, str) else "a list or mapping"
                problem = f"the key {shown} is not a text; put it in quotes"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"the key `{shortened(key.value)}` is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
            size += _check(value, sizes, open_nodes)
    if size > MOST_VALUES:
        raise yaml.MarkedYAMLError(problem=f"it holds more than {MOST_VALUES:,} values", problem_mark=node.start_mark)
    open_nodes.discard(id(node))
    sizes[id(node)] = size
    return size


def shortened(text: str, limit: int = 200) -> str:
    """Return a text of at most `limit` characters for a message."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def first_odd_value(value: Any, key: str = "", depth: int = 0) -> tuple[str, str] | None:
    """Return the key of the first value that cannot be stored as JSON or used as a path, and what is wrong with it.

    Args:
        value: A section, or a value in one.
        key: Its dotted key.
        depth: Number of levels above it.
    """
    if depth > DEEPEST:
        return key, f"it is nested more than {DEEPEST} levels deep"
    if isinstance(value, BaseModel):
        items = [(f"{key}.{name}" if key else name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        items = [(f"{key}.{shortened(str(name), 40)}", inner) for name, inner in value.items()]
        if odd_name := next((found for name in value if (found := _odd(name, key))), None):
            return key, f"one of its names {odd_name}"
        if not all(isinstance(name, str) for name in value):
            return key, "its names must be texts"
    elif isinstance(value, list | tuple):
        items = [(key, inner) for inner in value]
    else:
        odd = _odd(value, key)
        return (key, odd) if odd else None
    below = (first_odd_value(inner, name, depth + 1) for name, inner in items)
    return next((found for found in below if found), None)


def _odd(value: Any, key: str) -> str:
    if isinstance(value, str):
        if "\0" in value:
            return "has a NUL character"
        if len(value) > LONGEST_TEXT:
            return f"is longer than {LONGEST_TEXT:,} characters"
        if any("\ud800" <= sign <= "\udfff" for sign in value):
            return "has half of a surrogate pair, which is not a character"
        if value.startswith("~") and not key.startswith("ingest.options"):
            try:
                Path(value).expanduser()
            except RuntimeError:
                return f"names a user that this machine does not have: {shortened(value)}"
    elif isinstance(value, bool | None):
        return ""
    elif isinstance(value, int):
        if not SMALLEST_INT <= value <= LARGEST_INT:
            return "does not fit 64 bits"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return f"is not finite: {value}"
    elif not isinstance(value, date) or key.startswith("ingest.options"):
        return f"is of type {type(value).__name__}; write a text, a number, true, false or null"
    return ""
