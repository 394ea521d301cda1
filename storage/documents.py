"""Reading of JSON that an earlier run wrote: it has the form that its readers rely on, or one line says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.files import read_json, read_text

_FOREIGN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What code raises on values that are not of the form that it wrote."""


def read_checked(path: Path, form: Any, remedy: str) -> Any:
    """Return the value in a JSON file, checked against a type.

    Args:
        path: The file.
        form: A dataclass, `dict[str, int]` or another type that pydantic can check.
        remedy: What to do where the file cannot be used.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    return _checked(read_document(path, remedy), form, str(path), remedy)


def read_document(path: Path, remedy: str) -> Any:
    """Return the JSON value in a file whose form the caller checks; `remedy` says what to do if it cannot be read.

    Raises:
        UserError: The file cannot be read, or it is not JSON.
    """
    with _readable(path, remedy):
        return read_json(path)


def read_lines(path: Path, form: Any, remedy: str) -> list[Any]:
    """Return the values of a file of JSON lines, each checked against a type; an unfinished last line does not count.

    Raises:
        UserError: The file cannot be read, or a line holds something else.
    """
    with _readable(path, remedy):
        *lines, _ = read_text(path).split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"line {number} is not JSON", str(path), remedy) from None
        found.append(_checked(value, form, f"{path}, line {number}", remedy))
    return found


@contextmanager
def form_expected(where: str, remedy: str) -> Iterator[None]:
    """Turn what the block raises on stored values of another form into the user's one line.

    It belongs around code that takes apart what an earlier run wrote without a declared type, such as the stats of a
    manifest; not around anything that computes.

    Raises:
        UserError: The block raised such an error.
    """
    try:
        yield
    except UserError:
        raise
    except _FOREIGN as error:
        raise UserError(f"what is stored there has another form ({type(error).__name__})", where, remedy) from error


@contextmanager
def _readable(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror or error})", str(path), remedy) from None
    except ValueError:
        raise UserError("the file is damaged", str(path), remedy) from None


def _checked(value: Any, form: Any, where: str, remedy: str) -> Any:
    try:
        return _checker(form).validate_python(value)
    except (ValueError, RecursionError):  # pydantic's error is a ValueError
        raise UserError("what is stored there has another form", where, remedy) from None


@cache
def _checker(form: Any) -> Any:
    from pydantic import TypeAdapter  # late: most commands read nothing of this kind

    return TypeAdapter(form)
