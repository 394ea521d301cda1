"""The domain's faults. All are `UserError`s: one line, exit code 2."""

from __future__ import annotations

from storage.errors import UserError

__all__ = ["DataError", "HubUnreachableError", "ModelError", "UserError", "first_line"]


class DataError(UserError):
    """Raw data that cannot be used: a missing or empty file, no matching items, nobody who passes the thresholds."""


class ModelError(UserError):
    """A model, tokenizer or adapter that cannot be found or does not do what is asked of it."""


class HubUnreachableError(DataError, ModelError):
    """The Hugging Face hub cannot be reached and there is no local copy. It is not retried."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, as part of one line; its type's name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
