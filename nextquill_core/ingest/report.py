"""The account of a run: rows read = rows kept + the sum over reasons, for reviews and for items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nextquill_core.records import SPLITS

UNKNOWN_ITEM, ITEM_DROPPED, DUPLICATE = "unknown_item", "item_dropped", "duplicate_row"


@dataclass
class Account:
    """Where the rows of one kind went.

    Attributes:
        read: Rows read; blank lines are none.
        kept: Rows that are in the artifact, or, for items, described in it.
        dropped: The others, by reason: those of bad rows first, then those of the protocol.
        suspect: Rows that can be read but are hardly true, by reason, whether kept or dropped in the end.
        examples: For reasons among `dropped`, the first row with the value that it was dropped for, and the setting
            that would accept it.
        empty_files: Names of files that hold no row; others of the same part do.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    suspect: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    empty_files: list[str] = field(default_factory=list)

    def check(self, what: str) -> None:
        """Stop where a row is unaccounted for.

        Raises:
            RuntimeError: The sums do not agree; the program is wrong, not the data.
        """
        gone = sum(self.dropped.values())
        if self.read != self.kept + gone:
            raise RuntimeError(f"{what}: {self.read:,} rows read, but {self.kept:,} kept and {gone:,} dropped")

    def to_json(self) -> dict[str, Any]:
        """As JSON values, the commonest reason first."""
        reasons = sorted(self.dropped.items(), key=lambda entry: (-entry[1], entry[0]))
        shown: dict[str, Any] = {"read": self.read, "kept": self.kept, "dropped": {name: n for name, n in reasons if n}}
        shown |= {"suspect": dict(sorted(self.suspect.items()))} if self.suspect else {}
        examples = {name: self.examples[name] for name in shown["dropped"] if name in self.examples}
        shown |= {"examples": examples} if examples else {}
        return shown | ({"empty_files": self.empty_files} if self.empty_files else {})


@dataclass
class CategoryAccount:
    """The account of one category.

    Attributes:
        reviews: Of its reviews.
        items: Of its items.
        users: How many there are.
        examples: How many there are, by split.
        repeated: By split, the examples whose target text stands in an earlier review of the same user.
    """

    reviews: Account
    items: Account
    users: int
    examples: Counter[str]
    repeated: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "reviews": self.reviews.to_json(),
            "items": self.items.to_json(),
            "users": self.users,
            "examples": {split: self.examples[split] for split in SPLITS},
            "repeated_targets": {split: self.repeated[split] for split in SPLITS},
        }


def stats(categories: Mapping[str, CategoryAccount]) -> dict[str, Any]:
    """The stats of a run: the sums over all categories, and each one under `per_category`.

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
    """The stats as rows of a table for display.

    Returns:
        Rows with `category`, `what` (reviews, items, users, examples), `outcome` (read, kept, each reason, the
        commonest first, then how many are suspect), `rows`, `share` (of the rows read, 0 to 1; None for users and
        examples), and `example` (the first row of the reason with what it has, and the setting that would accept it).
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
            for outcome, n in outcomes.items():
                add(name, what, outcome, n, round(n / account["read"], 6), account.get("examples", {}).get(outcome, ""))
            if empty := account.get("empty_files"):
                add(name, what, "empty files", len(empty), None, ", ".join(empty[:10]))
        add(name, "users", "kept", category["users"], None)
        for split, n in category["examples"].items():
            add(name, "examples", split, n, None)
        for split, n in category.get("repeated_targets", {}).items():
            if n:
                add(name, "examples", f"{split}: text in an earlier review of the user", n, None)
    return table


def _sum(accounts: Iterable[Account]) -> Account:
    total = Account()
    for account in accounts:
        total.read += account.read
        total.kept += account.kept
        total.dropped.update(account.dropped)
        total.suspect.update(account.suspect)
    return total
