"""What was found in raw files: how many rows, how many of them bad or suspect, and an example of each reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from nextquill_core.errors import DataError
from nextquill_core.ingest.sources.base import BadRow, Part

QUARANTINE = {"file": pl.String, "line": pl.Int64, "reason": pl.String, "raw": pl.String}


@dataclass
class Tally:
    """What was found in the files of one part (reviews or items).

    Attributes:
        read: Rows read: everything but blank lines.
        bad: Rows that cannot be read, by reason.
        suspect: Rows that can be read but are hardly true, by reason; they are stored like the others.
        forgotten: Rows of users who are to be forgotten; they are not stored.
        examples: The first bad or suspect row of each reason, as `FILE:LINE: TEXT`.
        remedies: What would make the first bad row of a reason readable, for reasons where that is known.
        files: For each file its name and the `row` before its first.
        digests: For each file the digest of all its bytes, as `DigestCache` computes it.
    """

    read: int = 0
    blank: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    suspect: Counter[str] = field(default_factory=Counter)
    forgotten: int = 0
    examples: dict[str, str] = field(default_factory=dict)
    remedies: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, int]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a part's record in."""
        self.read += record["read"]
        self.blank += record["blank"]
        self.bad.update(record["bad"])
        self.suspect.update(record["suspect"])
        self.forgotten += record["forgotten"]
        for reason, example in record["examples"].items():
            self.examples.setdefault(reason, example)
        for reason, remedy in record.get("remedies", {}).items():  # records of earlier versions have none
            self.remedies.setdefault(reason, remedy)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for a manifest's stats."""
        return vars(self) | {"bad": dict(self.bad), "suspect": dict(self.suspect)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Tally:
        """Back from a manifest's stats."""
        own = {**values, "files": [(name, first) for name, first in values["files"]]}
        return cls(**own | {name: Counter(values[name]) for name in ("bad", "suspect")})

    def place(self, row: int) -> tuple[str, int]:
        """The file and the line behind a `row`."""
        name, first = max((entry for entry in self.files if entry[1] < row), key=lambda entry: entry[1])
        return name, row - first


def listed(rows: Iterable[tuple[str, BadRow]]) -> pl.DataFrame:
    """Rows for the quarantine, each given with its file's name: file, line, reason, raw."""
    values = [(file, row.line, row.reason, row.raw) for file, row in rows]
    return pl.DataFrame(values, schema=QUARANTINE, orient="row")


def too_many_bad(tally: Tally, part: Part, allowed: float) -> DataError:
    """More rows are bad than `ingest.max_bad_share` allows: how many, and the commonest reasons with an example."""
    bad = sum(tally.bad.values())
    common = tally.bad.most_common(3)
    commonest = "; ".join(f"{reason} {n:,}× ({tally.examples[reason]})" for reason, n in common)
    known = dict.fromkeys(tally.remedies[reason] for reason, _ in common if reason in tally.remedies)
    return DataError(
        f"{bad:,} of {tally.read:,} rows cannot be read ({bad / tally.read:.2%}, allowed are {allowed:.2%}): "
        f"{commonest}",
        part,
        f"{'; '.join(known) or 'fix the files'}, or raise ingest.max_bad_share",
    )


def described(row: BadRow) -> str:
    """What is wrong with a row, or else its text, for a message."""
    return row.detail or shortened(row.raw)


def remedies(rows: Iterable[BadRow]) -> dict[str, str]:
    """By reason the first remedy that is known."""
    found: dict[str, str] = {}
    for row in rows:
        if row.remedy:
            found.setdefault(row.reason, row.remedy)
    return found


def shortened(raw: str) -> str:
    """A raw text for a message."""
    return raw if len(raw) <= 80 else raw[:77] + "..."
