"""One line with one object into the values of the mapped keys. What the other keys hold cannot spoil it."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_WORD = re.compile(r"[^\s,\[\]{}\"':]+")
_NESTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_INTEGER = 400  # digits; Python refuses to convert more than 4,300
REFUSALS = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


class NotARowError(Exception):
    """The line is no row; the message is the reason."""


class JsonObject:
    """A JSON object as its pairs, so that a key that is given twice is seen. No column takes one as its value."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        self.pairs = pairs

    def __repr__(self) -> str:
        return f"an object with the keys {', '.join(key for key, _ in self.pairs)}" if self.pairs else "{}"


def _integer(text: str) -> float | int:
    return int(text) if len(text) <= _LONGEST_INTEGER else float(text)


_DECODER = json.JSONDecoder(object_pairs_hook=JsonObject, parse_int=_integer)


def mapped_values(line: bytes, keys: Collection[str], *, literals: bool) -> dict[str, Any]:
    """The values of `keys` in a line that holds one JSON object; keys that it lacks are left out.

    Objects within the object come as values that no column takes.

    Args:
        line: The line.
        keys: The mapped keys.
        literals: Whether the line may be a dict as Python writes it. It is parsed by `ast`, and nothing is run.

    Raises:
        NotARowError: It holds no object, or one that gives a mapped key twice or with text that is no Unicode.
    """
    try:
        text, valid = line.decode(), True
    except UnicodeDecodeError:
        text, valid = line.decode(errors="surrogateescape"), False
    pairs = _pairs(text.strip(" \t\r\n"), keys, literals)
    if pairs is None:
        raise NotARowError("not-json" if valid else "invalid-utf8")
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key not in keys:
            continue
        if key in values:
            raise NotARowError(f"duplicate-{short_name(key)}")
        if _is_broken(value):
            raise NotARowError("lone-surrogate" if valid else "invalid-utf8")
        values[key] = value
    return values


def object_keys(line: bytes, *, literals: bool) -> list[str]:
    """The keys of the object in a line.

    Args:
        line: The line.
        literals: As in `mapped_values`.

    Raises:
        NotARowError: It holds no object.
    """
    text = line.decode(errors="replace").strip(" \t\r\n")
    try:
        found = _DECODER.decode(text)
    except (ValueError, RecursionError):
        try:
            tree = ast.parse(text, mode="eval").body if literals and text.startswith("{") else None
        except REFUSALS:
            tree = None
        if not isinstance(tree, ast.Dict):
            raise NotARowError("not-json") from None
        return [key.value for key in tree.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    if not isinstance(found, JsonObject):
        raise NotARowError("not-an-object")
    return [key for key, _ in found.pairs]


def short_name(key: str) -> str:
    """A key as a part of the name of a reason."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", key)[:40].strip("_") or "column"


def _pairs(text: str, keys: Collection[str], literals: bool) -> Sequence[tuple[str, Any]] | None:
    """The pairs of the object, at least those of `keys`; None for what is no JSON."""
    try:
        found = _DECODER.decode(text)
    except (ValueError, RecursionError):
        pairs = _skimmed(text, keys)
        return _python_pairs(text, keys) if pairs is None and literals else pairs
    if not isinstance(found, JsonObject):
        raise NotARowError("not-an-object")
    return found.pairs


def _skimmed(text: str, keys: Collection[str]) -> list[tuple[str, Any]] | None:
    """The pairs of `keys` in an object whose other values are not looked into; None if it has not this form."""
    if not text.startswith("{"):
        return None
    pairs: list[tuple[str, Any]] = []
    at = _after_space(text, 1)
    try:
        while True:
            name = _STRING.match(text, at)
            if not name:
                return None
            key = json.loads(name.group())
            at = _after_space(text, name.end())
            if text[at] != ":":
                return None
            at = _after_space(text, at + 1)
            if key in keys:
                value, at = _DECODER.raw_decode(text, at)
                pairs.append((key, value))
            else:
                at = _after_value(text, at)
            at = _after_space(text, at)
            if text[at] == "}":
                return pairs if at + 1 == len(text) else None
            if text[at] != ",":
                return None
            at = _after_space(text, at + 1)
    except (ValueError, IndexError, RecursionError):
        return None


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _after_value(text: str, at: int) -> int:
    """Where the value ends that starts here.

    Raises:
        ValueError: None does.
    """
    if text[at] not in "[{":
        match = (_STRING if text[at] == '"' else _WORD).match(text, at)
        if not match:
            raise ValueError
        return match.end()
    depth = 0
    for match in _NESTED.finditer(text, at):
        sign = match.group()
        depth += (sign in "[{") - (sign in "]}")
        if not depth:
            return match.end()
    raise ValueError


def _python_pairs(text: str, keys: Collection[str]) -> list[tuple[str, Any]] | None:
    """The pairs of `keys` in a dict as Python writes it; None for anything else."""
    if not text.startswith("{"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" and the like are common, and mean what they say
            tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.Dict):
            return None
        pairs: list[tuple[str, Any]] = []
        for key, value in zip(tree.keys, tree.values, strict=True):
            name = key.value if isinstance(key, ast.Constant) else None
            if isinstance(name, str) and name in keys:
                pairs.append((name, _python_value(value)))
        return pairs if all(key is not None for key in tree.keys) else None
    except REFUSALS:
        return None


def _python_value(node: ast.expr) -> Any:
    """The value of a literal; `nan` is a missing one.

    Raises:
        ValueError: It is no literal, or one that JSON has no counterpart of.
    """
    if isinstance(node, ast.Name) and node.id in ("nan", "NaN"):
        return None
    value = ast.literal_eval(node)
    if isinstance(value, bytes | complex | set):
        raise ValueError
    return JsonObject([(str(key), None) for key in value]) if isinstance(value, dict) else value


def _is_broken(value: Any) -> bool:
    if isinstance(value, str):
        return not value.isascii() and _SURROGATE.search(value) is not None
    return isinstance(value, list) and any(map(_is_broken, value))
