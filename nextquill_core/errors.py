"""The domain's faults. All are `UserError`s: one line, exit code 2."""

from __future__ import annotations

from storage.errors import UserError

__all__ = ["DataError", "ModelError", "UserError"]


class DataError(UserError):
    """Raw data that cannot be used: a missing or empty file, no matching items, nobody who passes the thresholds."""


class ModelError(UserError):
    """A model, tokenizer or adapter that cannot be found or does not do what is asked of it."""
