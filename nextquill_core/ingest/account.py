"""The account of every row: rows read = rows kept + the sum over reasons, for reviews and for items.

A scan counts what it finds in raw files (`RowCounts`). The ingest stage adds what the protocol drops (`Account`), and
the artifact's manifest holds the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import BadRow, Part
from nextquill_core.records import SPLITS

if TYPE_CHECKING:
    import polars as pl

REASON = "reason"
UNKNOWN_ITEM, ITEM_DROPPED, DUPLICATE = "unknown_item", "item_dropped", "duplicate_row"
SHOWN_CHARS = 80  # of a raw text, in a message
SHOWN_FILES = 10


class RowCounts(BaseModel):
    """How many rows the files of one part (reviews or items) hold, and an example of each fault.

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
    bad: Counter[str] = Counter()
    suspect: Counter[str] = Counter()
    forgotten: int = 0
    examples: dict[str, str] = {}
    remedies: dict[str, str] = {}
    files: list[tuple[str, int]] = []
    digests: list[str] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the counts of a part of a scan."""
        self.read += record["read"]
        self.blank += record["blank"]
        self.bad.update(record["bad"])
        self.suspect.update(record["suspect"])
        self.forgotten += record["forgotten"]
        # in the order of first occurrence; records of earlier versions have no remedies
        self.examples = self.examples | record["examples"] | self.examples
        self.remedies = self.remedies | record.get("remedies", {}) | self.remedies

    def place(self, row: int) -> tuple[str, int]:
        """Return the file and the line of a `row`."""
        name, first = max((entry for entry in self.files if entry[1] < row), key=lambda entry: entry[1])
        return name, row - first


def count_reasons(reasons: pl.Series) -> dict[str, int]:
    """Return how often each reason occurs, sorted by reason; nulls are not counted."""
    return dict(sorted(reasons.drop_nulls().value_counts().iter_rows()))


def first_by_reason(rows: Iterable[BadRow]) -> dict[str, BadRow]:
    """Return the first row of each reason."""
    first: dict[str, BadRow] = {}
    for row in rows:
        first.setdefault(row.reason, row)
    return first


def describe(row: BadRow) -> str:
    """Return what is wrong with a row, or else its text, for a message."""
    return row.detail or shorten(row.raw)


def shorten(raw: str) -> str:
    """Return a raw text at a length that fits into a message."""
    return raw if len(raw) <= SHOWN_CHARS else raw[: SHOWN_CHARS - 3] + "..."


def too_many_bad_rows(counts: RowCounts, part: Part, allowed: float) -> DataError:
    """Return the error for more bad rows than allowed, with the commonest reasons and an example of each.

    Args:
        counts: What was found.
        part: Reviews or items.
        allowed: `ingest.max_bad_share`.
    """
    bad = counts.bad.total()
    common = counts.bad.most_common(3)
    commonest = "; ".join(f"{reason} {n:,}× ({counts.examples[reason]})" for reason, n in common)
    known = dict.fromkeys(counts.remedies[reason] for reason, _ in common if reason in counts.remedies)
    return DataError(
        f"{bad:,} of {counts.read:,} rows cannot be read ({bad / counts.read:.2%}, allowed are {allowed:.2%}): "
        f"{commonest}",
        part,
        f"{'; '.join(known) or 'fix the files'}, or raise ingest.max_bad_share",
    )


@dataclass
class Account:
    """Where the rows of one kind went.

    Attributes:
        read: Rows read; blank lines are none.
        kept: Rows that are in the artifact, or, for items, described in it.
        dropped: The other rows, by reason: bad rows first, then those that the protocol drops.
        suspect: Rows that can be read but are hardly true, by reason, whether kept or dropped in the end.
        examples: For reasons among `dropped`, the first row with the value that it was dropped for, and the setting
            that would accept it.
        empty_files: Names of files that hold no row; others of the same part do.
        cleaned: For each text column, in how many of the rows that can be read cleaning changed the text, whether the
            row is kept or dropped in the end. Empty if nothing is cleaned.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    suspect: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    empty_files: list[str] = field(default_factory=list)
    cleaned: Counter[str] = field(default_factory=Counter)

    def check(self, what: str) -> None:
        """Check that every row is accounted for.

        Raises:
            RuntimeError: The sums do not agree: an error of the program, not of the data.
        """
        dropped = self.dropped.total()
        if self.read != self.kept + dropped:
            raise RuntimeError(f"{what}: {self.read:,} rows read, but {self.kept:,} kept and {dropped:,} dropped")

    def to_json(self) -> dict[str, Any]:
        """Return the account as JSON values, the commonest reason first."""
        reasons = sorted(self.dropped.items(), key=lambda entry: (-entry[1], entry[0]))
        values: dict[str, Any] = {
            "read": self.read,
            "kept": self.kept,
            "dropped": {name: n for name, n in reasons if n},
        }
        values |= {"suspect": dict(sorted(self.suspect.items()))} if self.suspect else {}
        values |= {"cleaned": dict(self.cleaned)} if self.cleaned else {}
        examples = {name: self.examples[name] for name in values["dropped"] if name in self.examples}
        values |= {"examples": examples} if examples else {}
        return values | ({"empty_files": self.empty_files} if self.empty_files else {})


@dataclass
class CategoryAccount:
    """The account of one category.

    Attributes:
        users: Number of users.
        examples: Number of examples, by split.
        repeated: By split, the examples whose target text is also in an earlier review of the same user.
    """

    reviews: Account
    items: Account
    users: int
    examples: Counter[str]
    repeated: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return the account as JSON values."""
        return {
            "reviews": self.reviews.to_json(),
            "items": self.items.to_json(),
            "users": self.users,
            "examples": {split: self.examples[split] for split in SPLITS},
            "repeated_targets": {split: self.repeated[split] for split in SPLITS},
        }


def stats(categories: Mapping[str, CategoryAccount]) -> dict[str, Any]:
    """Return the stats of a run: the sums over all categories, and each one under `per_category`.

    Raises:
        RuntimeError: Some row is unaccounted for.
    """
    for name, category in categories.items():
        category.reviews.check(f"reviews of {name}")
        category.items.check(f"items of {name}")
    every = list(categories.values())
    total = CategoryAccount(
        _sum(category.reviews for category in every),
        _sum(category.items for category in every),
        sum(category.users for category in every),
        sum((category.examples for category in every), Counter()),
        sum((category.repeated for category in every), Counter()),
    )
    return {**total.to_json(), "per_category": {name: category.to_json() for name, category in categories.items()}}


def account_rows(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the stats as rows of a table for display.

    Returns:
        Rows with `category`, `what` (reviews, items, users, examples), `outcome` (read, kept, each reason, the
        commonest first, then how many are suspect and in how many a text was cleaned), `rows`, `share` (of the rows
        read, 0 to 1; None for users and examples), and `example` (the first row of the reason with its value, and the
        setting that would accept it).
    """
    table: list[dict[str, Any]] = []

    def add(category: str, what: str, outcome: str, rows: int, share: float | None, example: str = "") -> None:
        row = {"category": category, "what": what, "outcome": outcome, "rows": rows, "share": share}
        table.append(row | {"example": example})

    for name, category in stats["per_category"].items():
        for what in ("reviews", "items"):
            account = category[what]
            outcomes = {"read": account["read"], "kept": account["kept"], **account["dropped"]}
            outcomes |= {f"suspect: {reason}": n for reason, n in account.get("suspect", {}).items()}
            outcomes |= {f"HTML in the {name}": n for name, n in account.get("cleaned", {}).items()}
            for outcome, n in outcomes.items():
                add(name, what, outcome, n, round(n / account["read"], 6), account.get("examples", {}).get(outcome, ""))
            if empty := account.get("empty_files"):
                add(name, what, "empty files", len(empty), None, ", ".join(empty[:SHOWN_FILES]))
        add(name, "users", "kept", category["users"], None)
        for split, n in category["examples"].items():
            add(name, "examples", split, n, None)
        for split, n in category.get("repeated_targets", {}).items():
            if n:
                add(name, "examples", f"{split}: text in an earlier review of the user", n, None)
    return table


def cleaning_summary(stats: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each category whose texts were cleaned: how many of which kind changed."""
    found = []
    for name, category in stats["per_category"].items():
        counts = [
            f"{rows:,} of {category[part]['read']:,} {part} in the {column}"
            for part in ("reviews", "items")
            for column, rows in category[part].get("cleaned", {}).items()
        ]
        if counts:
            found.append(f"{name}: cleaning HTML changed {', '.join(counts)}")
    return found


def _sum(accounts: Iterable[Account]) -> Account:
    total = Account()
    for account in accounts:
        total.read += account.read
        total.kept += account.kept
        total.dropped.update(account.dropped)
        total.suspect.update(account.suspect)
        total.cleaned.update(account.cleaned)
    return total
