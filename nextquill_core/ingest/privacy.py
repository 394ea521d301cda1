"""Replace user ids by pseudonyms and leave out users who are to be forgotten, before anything is written.

Both happen where raw rows come in, so no artifact, not even a part of one, ever holds what is to be hidden. Raw texts
of lines that cannot be read may hold anything; under either setting they are withheld.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextquill_core.config import PrivacyConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import Batch
from storage.fingerprint import fingerprint
from storage.redaction import register_secret

if TYPE_CHECKING:
    import polars as pl

WITHHELD = "(withheld: privacy)"
MIN_KEY_BYTES = 16
HEX_DIGITS = 32


@dataclass(frozen=True)
class Privacy:
    """What is hidden.

    Attributes:
        key: The key of the pseudonyms; None where there is none. It is never shown and never written.
        pseudonymize: Whether ids are replaced.
        forget: Users who must not appear, by their id or their pseudonym.
    """

    key: bytes | None = None
    pseudonymize: bool = False
    forget: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Privacy(pseudonymize={self.pseudonymize}, forget={len(self.forget)} users)"

    @property
    def active(self) -> bool:
        """Whether anything is hidden."""
        return self.pseudonymize or bool(self.forget)

    @property
    def identity(self) -> dict[str, Any]:
        """Digests of the key and the list, for an artifact's fingerprint."""
        return {
            "key": self.pseudonym("nextquill: which key is this") if self.pseudonymize else None,
            "forget": fingerprint(sorted(self.forget)) if self.forget else None,
        }

    def pseudonym(self, user_id: str) -> str:
        """Return a user's pseudonym: BLAKE2b with the key, 128 bits in hexadecimal.

        Raises:
            ValueError: There is no key.
        """
        if self.key is None:
            raise ValueError("no key")
        return hashlib.blake2b(user_id.encode(), key=self.key[:64], digest_size=HEX_DIGITS // 2).hexdigest()

    def stored_ids(self, user_id: str) -> tuple[str, ...]:
        """Return the ids that a user may have in artifacts; none for a user who is to be forgotten."""
        if self.key is None:
            return () if user_id in self.forget else (user_id,)
        ids = user_id, self.pseudonym(user_id)
        listed = self.forget | {self.pseudonym(name) for name in self.forget}
        return () if listed.intersection(ids) else ids

    def forgotten(self, user_ids: pl.Series) -> pl.Series:
        """Return which of these ids (raw, or pseudonyms under the same key) belong to users who are to be forgotten."""
        import polars as pl

        listed = pl.Series(sorted(self.forget), dtype=pl.String)
        found = user_ids.is_in(listed.implode())
        if self.key is None or listed.is_empty():
            return found
        return (
            found
            | user_ids.is_in(self._pseudonyms(listed).implode())
            | self._pseudonyms(user_ids).is_in(listed.implode())
        )

    def apply(self, batch: Batch) -> tuple[Batch, int]:
        """Return the batch without what is hidden, and the number of rows of users who are to be forgotten."""
        if not self.active:
            return batch, 0
        rows = batch.rows
        if "user_id" in rows:
            rows = rows.filter(~self.forgotten(rows["user_id"]))
            if self.pseudonymize:
                rows = rows.with_columns(self._pseudonyms(rows["user_id"]))
        bad = [replace(row, raw=WITHHELD, detail="", remedy="") for row in batch.bad]  # both may show values
        return replace(batch, rows=rows, bad=bad, raw=lambda _: WITHHELD), batch.rows.height - rows.height

    def _pseudonyms(self, user_ids: pl.Series) -> pl.Series:
        each = user_ids.unique()
        return user_ids.replace(each, [self.pseudonym(name) for name in each])


def privacy(config: PrivacyConfig, secret: str | None = None) -> Privacy:
    """Return the privacy settings with their key and list.

    Args:
        config: The settings.
        secret: The key, where it does not come from the environment.

    Raises:
        DataError: There is no key or it is too short, or the list cannot be read.
    """
    text = secret if secret is not None else os.environ.get(config.key_env)
    register_secret(value=text)
    key = hashlib.blake2b(text.encode()).digest() if text else None
    if config.pseudonymize:
        if not text:
            raise DataError("no key for pseudonyms", f"environment variable {config.key_env}", "set it to a secret")
        if len(text.encode()) < MIN_KEY_BYTES:
            raise DataError(
                f"the key for pseudonyms is shorter than {MIN_KEY_BYTES} bytes",
                f"environment variable {config.key_env}" if secret is None else "the Prefect secret",
                'make one with `python -c "import secrets; print(secrets.token_hex(32))"`',
            )
    return Privacy(key, config.pseudonymize, _user_list(config.forget))


def _user_list(path: str | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        lines: Iterable[str] = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(
            f"cannot be read ({reason})", path, "privacy.forget names a text file, one user id a line"
        ) from None
    return frozenset(line.strip() for line in lines if line.strip())
