"""What is said where the protocol leaves nothing: which rule removed how much, and values that leave something.

The values are tried out before they are named. Each threshold of the two cores is first set to its loosest value; then
one after the other is brought back as close to the configured value as it can be with at least one user left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from nextquill_core.config import ProtocolConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest import cohort
from nextquill_core.ingest.report import ITEM_DROPPED, Account
from nextquill_core.ingest.rules import KEY
from nextquill_core.ingest.sources.base import Part
from nextquill_core.ingest.splits import NEEDED, cuts

# From the threshold that is least likely to be at fault to the one that is changed first.
ORDER = (
    "max_user_reviews", "min_profile_item_users", "min_profile_reviews", "min_item_users", "n_targets",
    "min_user_reviews",
)  # fmt: skip
OF_LENGTH: Mapping[str, Part] = {"short_text": "reviews", "short_description": "items", "long_description": "items"}
SEARCH_S = 30.0
LOOSEST: Mapping[str, int] = {
    "max_user_reviews": 1 << 31,
    "min_profile_item_users": 0,
    "min_profile_reviews": 0,
    "min_item_users": 1,
    "n_targets": 3,
    "min_user_reviews": 1,
}


@dataclass
class Trial:
    """The two cores on a category's reviews under other thresholds.

    Attributes:
        rows: The reviews that pass the rules for single rows, as `cohort.core` takes them.
        texts: Reads `row` and the hash of the cleaned `text` of these reviews.
        protocol: The configured thresholds.
    """

    rows: pl.DataFrame
    texts: Callable[[], pl.DataFrame]
    protocol: ProtocolConfig
    _tried: dict[tuple[int, ...], int] = field(default_factory=dict)

    @cached_property
    def suggested(self) -> dict[str, int] | None:
        """What `workable` found, searched once."""
        return self.workable()

    def users(self, values: Mapping[str, int]) -> int:
        """How many users pass under these thresholds; 0 also where a split would have no target."""
        key = tuple(values[name] for name in ORDER)
        if key not in self._tried:
            self._tried[key] = self._users(self.protocol.model_copy(update=dict(values)))
        return self._tried[key]

    def workable(self) -> dict[str, int] | None:
        """Values, for thresholds that have to change, under which at least one user passes.

        None where no user passes even under the loosest thresholds. Of many millions of reviews not every value is
        tried: after `SEARCH_S` seconds the thresholds that are left keep their loosest values, which hold too.
        """
        values, changed, until = dict(LOOSEST), {}, time.monotonic() + SEARCH_S
        values["max_user_reviews"] = max(self.protocol.max_user_reviews, self.rows.height)
        if not self.users(values):
            return None
        for name in ORDER:
            configured, works = getattr(self.protocol, name), values[name]
            if time.monotonic() > until and configured != works:
                changed[name] = works
                continue
            if self.users(values | {name: configured}):
                values[name] = configured
                continue
            fails = configured
            while abs(works - fails) > 1 and time.monotonic() < until:
                middle = (works + fails) // 2
                if self.users(values | {name: middle}):
                    works = middle
                else:
                    fails = middle
            values[name] = changed[name] = works
        return changed

    def remedy(self) -> str:
        """The change that leaves a user, in words."""
        changed = self.suggested
        if changed is None:
            return (
                f"no thresholds help: give reviews of users with {NEEDED} reviews or more"
                f" (then {KEY}.min_user_reviews of {NEEDED} is enough)"
            )
        values = {name: getattr(self.protocol, name) for name in ORDER} | changed
        n = self.users(values)
        named = " and ".join(f"{KEY}.{name} to {value}" for name, value in changed.items())
        return f"set {named}, which leaves {n:,} user{'' if n == 1 else 's'}"

    @cached_property
    def _hashes(self) -> pl.DataFrame:
        return self.texts()

    def _users(self, protocol: ProtocolConfig) -> int:
        first = cohort.core(self.rows, protocol).rows
        if first.is_empty():
            return 0
        rows = cohort.split(first.drop("text").join(self._hashes, on="row"), protocol).rows
        if rows.is_empty():
            return 0
        if protocol.name == "dpl":
            enough = int(rows.group_by("user").len()["len"].cast(pl.Int64).to_numpy().max()) >= NEEDED
        else:
            try:
                enough = cuts([rows.filter(cohort.TARGET)["time"]], protocol) is not None
            except DataError:
                enough = False
        return rows["user"].n_unique() if enough else 0


def no_row_passes(category: str, reviews: Account, items: Account, lengths: Callable[[Part], pl.Series]) -> DataError:
    """Say why no review passes the rules for single rows, with the first row that breaks the commonest one.

    Args:
        category: Its name.
        reviews: What was read, and dropped so far.
        items: The same for items.
        lengths: The number of characters of all texts of reviews, or of all descriptions of items.
    """
    no_item = items.read == sum(items.dropped.values())
    what, account = ("item", items) if no_item else ("review", reviews)
    commonest = next((reason for reason, n in account.dropped.most_common() if n), "")
    example, cause = account.examples.get(commonest, ""), commonest
    if commonest == ITEM_DROPPED:
        cause = next((reason for reason, n in items.dropped.most_common() if n), "")
        example += f"; items go as {cause} ({items.examples.get(cause, '')})"
    if part := OF_LENGTH.get(cause):
        chars = lengths(part)
        middle = int(chars.quantile(0.5, "higher") or 0)
        example += (
            f"; half of them have {middle:,} characters or more, the longest has {int(chars.quantile(1.0) or 0):,}"
        )
    shown = ", ".join(f"{reason} {n:,}" for reason, n in account.dropped.most_common(4) if n)
    return DataError(
        f"no {what} of {category} passes: {account.read:,} read; {shown}",
        remedy=f"for example {example}" if example else "check that the files are what ingest.source says",
    )


def no_user_passes(
    category: str, reviews: Account, core: cohort.Core, split: cohort.Split | None, trial: Trial
) -> DataError:
    """Say what each threshold leaves by itself, and which values leave at least one user.

    Args:
        category: Its name.
        reviews: What was read, and dropped so far.
        core: The first core.
        split: The second core, if the first one left anybody.
        trial: The same reviews under other thresholds.
    """
    alone, protocol = core.alone, trial.protocol
    facts = [
        f"no user of {category} passes: {reviews.read:,} reviews read, {alone.reviews:,} of {alone.users:,} users "
        f"pass the rules for single reviews"
    ]
    before = {reason: n for reason, n in reviews.dropped.most_common(3) if n and reason in reviews.examples}
    if before and alone.reviews < reviews.read / 2:
        facts += [f"{reason} {n:,} ({reviews.examples[reason]})" for reason, n in before.items()]
    most = f"the most is {alone.most_reviews:,} reviews"
    changed = trial.suggested or {}
    if changed.get("min_user_reviews", alone.most_reviews) != alone.most_reviews:
        most += " before the other thresholds act"
    facts += [
        f"min_user_reviews {protocol.min_user_reviews} leaves {alone.enough:,} users ({most})",
        f"max_user_reviews {protocol.max_user_reviews} leaves {alone.not_too_many:,}",
        f"min_item_users {protocol.min_item_users} leaves {alone.popular:,} of {alone.items:,} items (the most is "
        f"{alone.most_users:,} users)",
    ]
    if split is not None:
        facts.append(
            f"the profiles without their {protocol.n_targets} targets hold up to {split.most_profile:,} reviews of "
            f"items with {protocol.min_profile_item_users} users (min_profile_item_users), "
            f"{protocol.min_profile_reviews} are needed (min_profile_reviews)"
        )
    elif alone.enough and alone.not_too_many and alone.popular:
        facts.append("together they leave no user")
    return DataError("; ".join(facts), remedy=trial.remedy())


def nothing_to_train(users: int, trials: Mapping[str, Trial]) -> DataError:
    """Say that no target is for training, and which values leave one.

    Args:
        users: How many users there are in all categories.
        trials: The reviews of each category under other thresholds.
    """
    found = next((trial for trial in trials.values() if trial.suggested), next(iter(trials.values())))
    return DataError(
        f"no target is for train: none of {users:,} users has {NEEDED} reviews left (the newest is for test, the one "
        "before it for val, and the targets before these train)",
        ", ".join(trials),
        found.remedy(),
    )
