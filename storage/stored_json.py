"""Reading of JSON that an earlier run stored: its form is checked, and an unexpected form is one line for the user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.files import read_json, read_text

_FORM_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors that code raises on values of an unexpected form."""


def read_checked(path: Path, form: Any, remedy: str) -> Any:
    """Return the value in a JSON file, checked against a type.

    Args:
        path: The file.
        form: A dataclass, `dict[str, int]` or any other type that pydantic can check.
        remedy: What the user does if the file cannot be used.

    Raises:
        UserError: The file cannot be read, or its value has another form.
    """
    return _validated(read_document(path, remedy), form, str(path), remedy)


def read_document(path: Path, remedy: str) -> Any:
    """Return the JSON value in a file whose form the caller checks; `remedy` says what to do if it cannot be read.

    Raises:
        UserError: The file cannot be read, or it is not JSON.
    """
    with _readable(path, remedy):
        return read_json(path)


def read_lines(path: Path, form: Any, remedy: str) -> list[Any]:
    """Return the values of a file of JSON lines, each checked against a type; an unfinished last line is ignored.

    Args:
        path: The file.
        form: As for `read_checked`.
        remedy: What the user does if the file cannot be used.

    Raises:
        UserError: The file cannot be read, or a line has another form.
    """
    with _readable(path, remedy):
        *lines, _ = read_text(path).split("\n")
    return [check_form(line, form, f"{path}, line {number}", remedy) for number, line in enumerate(lines, 1)]


def check_form(text: str, form: Any, where: str, remedy: str) -> Any:
    """Return the value of a JSON text, checked against a type.

    Args:
        text: The JSON text.
        form: As for `read_checked`.
        where: Where the text comes from, for the message.
        remedy: What the user does if it cannot be used.

    Raises:
        UserError: It is not JSON, or its value has another form.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("the text is not JSON", where, remedy) from None
    return _validated(value, form, where, remedy)


@contextmanager
def expect_form(where: str, remedy: str) -> Iterator[None]:
    """Turn errors that the block raises on stored values of an unexpected form into one line for the user.

    Use it around code that takes apart stored values without a declared type, such as the stats of a manifest, and
    not around code that computes.

    Args:
        where: Where the values come from, for the message.
        remedy: What the user does about it.

    Raises:
        UserError: The block raised such an error.
    """
    try:
        yield
    except UserError:
        raise
    except _FORM_ERRORS as error:
        raise UserError(f"the stored value has an unexpected form ({type(error).__name__})", where, remedy) from error


@contextmanager
def _readable(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror or error})", str(path), remedy) from None
    except ValueError:
        raise UserError("the file is damaged", str(path), remedy) from None


def _validated(value: Any, form: Any, where: str, remedy: str) -> Any:
    try:
        return type_adapter(form).validate_python(value)
    except (ValueError, RecursionError):  # pydantic's error is a ValueError
        raise UserError("the stored value has an unexpected form", where, remedy) from None


@cache
def type_adapter(form: Any) -> Any:
    """Return pydantic's checker of a type, made once per process."""
    from pydantic import TypeAdapter  # late: most commands, and workers on a GPU, check no stored values

    return TypeAdapter(form)
