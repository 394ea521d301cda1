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
        files: For each file its name and the `row` before its first.
        digests: For each file the digest of all its bytes, as `DigestCache` computes it.
    """

    read: int = 0
    blank: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    suspect: Counter[str] = field(default_factory=Counter)
    forgotten: int = 0
    examples: dict[str, str] = field(default_factory=dict)
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
    commonest = "; ".join(f"{reason} {n:,}× ({tally.examples[reason]})" for reason, n in tally.bad.most_common(3))
    return DataError(
        f"{bad:,} of {tally.read:,} rows cannot be read ({bad / tally.read:.2%}, allowed are {allowed:.2%}): "
        f"{commonest}",
        part,
        "mend the files, or raise ingest.max_bad_share",
    )


def shortened(raw: str) -> str:
    """A raw text for a message."""
    return raw if len(raw) <= 80 else raw[:77] + "..."
