"""The account of a run: rows read = rows kept + the sum over reasons, for reviews and for items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nextquill_core.config import ProtocolConfig
from nextquill_core.errors import DataError

if TYPE_CHECKING:
    from nextquill_core.ingest.cohort import Core, Split


@dataclass
class Account:
    """Where the rows of one kind went.

    Attributes:
        read: Rows read; blank lines are none.
        kept: Rows that are in the artifact, or, for items, described in it.
        dropped: The others, by reason: those of bad rows first, then those of the protocol.
        suspect: Rows that can be read but are hardly true, by reason, whether kept or dropped in the end.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    suspect: Counter[str] = field(default_factory=Counter)

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
        return shown | ({"suspect": dict(sorted(self.suspect.items()))} if self.suspect else {})


@dataclass
class CategoryAccount:
    """The account of one category."""

    reviews: Account
    items: Account
    users: int
    examples: Counter[str]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "reviews": self.reviews.to_json(),
            "items": self.items.to_json(),
            "users": self.users,
            "examples": {split: self.examples[split] for split in ("train", "val", "test")},
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
    )
    return {**total.to_json(), "per_category": {name: category.to_json() for name, category in categories.items()}}


def account_rows(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stats as rows of a table for display.

    Returns:
        Rows with `category`, `what` (reviews, items, users, examples), `outcome` (read, kept, each reason, the
        commonest first, then how many are suspect), `rows`, and `share` (of the rows read, 0 to 1; None for users and
        examples).
    """
    table: list[dict[str, Any]] = []

    def add(category: str, what: str, outcome: str, rows: int, share: float | None) -> None:
        table.append({"category": category, "what": what, "outcome": outcome, "rows": rows, "share": share})

    for name, category in stats["per_category"].items():
        for what in ("reviews", "items"):
            account = category[what]
            outcomes = {"read": account["read"], "kept": account["kept"], **account["dropped"]}
            outcomes |= {f"suspect: {reason}": n for reason, n in account.get("suspect", {}).items()}
            for outcome, n in outcomes.items():
                add(name, what, outcome, n, round(n / account["read"], 6))
        add(name, "users", "kept", category["users"], None)
        for split, n in category["examples"].items():
            add(name, "examples", split, n, None)
    return table


def nobody_left(
    category: str, reviews: Account, items: Account, core: Core | None, split: Split | None, protocol: ProtocolConfig
) -> DataError:
    """Why nobody is left, and which threshold to lower.

    Args:
        category: Its name.
        reviews: What was read, and dropped so far.
        items: The same for items.
        core: The first core, if there was anything to run it on.
        split: The second core, if the first one left anybody.
        protocol: The thresholds.
    """
    key = "ingest.protocol"
    if core is None:
        return _nothing_left(category, reviews, items, protocol)
    alone = core.alone
    facts = [
        f"no user of {category} passes: {reviews.read:,} reviews read, {alone.reviews:,} of {alone.users:,} users "
        f"pass the rules for single reviews",
        f"min_user_reviews {protocol.min_user_reviews} leaves {alone.enough:,} users (the most is "
        f"{alone.most_reviews:,} reviews)",
        f"max_user_reviews {protocol.max_user_reviews} leaves {alone.not_too_many:,}",
        f"min_item_users {protocol.min_item_users} leaves {alone.popular:,} of {alone.items:,} items (the most is "
        f"{alone.most_users:,} users)",
    ]
    if alone.enough == 0:
        lower = f"lower {key}.min_user_reviews"
    elif alone.not_too_many == 0:
        lower = f"raise {key}.max_user_reviews"
    elif alone.popular == 0:
        lower = f"lower {key}.min_item_users"
    elif split is None:
        facts.append("together they leave nobody")
        lower = f"lower {key}.min_item_users or min_user_reviews"
    else:
        facts.append(
            f"the profiles without their {protocol.n_targets} targets hold up to {split.most_profile:,} reviews of "
            f"items with {protocol.min_profile_item_users} users (min_profile_item_users), "
            f"{protocol.min_profile_reviews} are needed (min_profile_reviews)"
        )
        lower = f"lower {key}.min_profile_reviews or min_profile_item_users"
    return DataError("; ".join(facts), remedy=lower)


def _nothing_left(category: str, reviews: Account, items: Account, protocol: ProtocolConfig) -> DataError:
    key = "ingest.protocol"
    commonest, _ = reviews.dropped.most_common(1)[0]
    if items.read == sum(items.dropped.values()):
        what, commonest = f"no item of {category} passes: {items.read:,} read", items.dropped.most_common(1)[0][0]
        reasons = items.dropped
    else:
        what, reasons = f"no review of {category} passes: {reviews.read:,} read", reviews.dropped
    remedies = {
        "short_text": f"lower {key}.min_text_chars (now {protocol.min_text_chars})",
        "short_description": f"lower {key}.min_description_chars (now {protocol.min_description_chars})",
        "long_description": f"raise {key}.max_description_chars (now {protocol.max_description_chars})",
        "item_dropped": f"lower {key}.min_description_chars (now {protocol.min_description_chars})",
        "unknown_item": "give the metadata of the same category in ingest.inputs[].items",
    }
    shown = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common(4) if n)
    return DataError(
        f"{what}; {shown}", remedy=remedies.get(commonest, "check that the files are what ingest.source says")
    )


def _sum(accounts: Iterable[Account]) -> Account:
    total = Account()
    for account in accounts:
        total.read += account.read
        total.kept += account.kept
        total.dropped.update(account.dropped)
        total.suspect.update(account.suspect)
    return total
