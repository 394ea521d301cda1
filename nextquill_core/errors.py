"""Errors caused by the user's data or models; they end a command with one line and exit code 2."""

from __future__ import annotations

from storage.errors import UserError

__all__ = ["DataError", "HubUnreachableError", "ModelError", "UserError", "first_line"]


class DataError(UserError):
    """Raw data cannot be used: a file is missing or empty, no item matches, or no user passes the thresholds."""


class ModelError(UserError):
    """A model, tokenizer or adapter is missing, invalid or unsupported."""


class HubUnreachableError(DataError, ModelError):
    """The Hugging Face hub cannot be reached and there is no local copy; such an error is not retried."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
