"""Explain why the protocol leaves nothing: which rule removed how much, and which settings leave something.

The settings are tried out before they are named. Each threshold of the two cores is first set to its loosest value;
then one after the other is brought back as close to the configured value as it can be with at least one user left.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from nextquill_core.config import ProtocolConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest.account import ITEM_DROPPED, Account, shorten
from nextquill_core.ingest.batches import Part
from nextquill_core.ingest.cohort import (
    DPL_REVIEWS,
    KEY,
    TARGET,
    FirstCore,
    SecondCore,
    find_cuts,
    first_core,
    second_core,
)

OF_LENGTH: Mapping[str, Part] = {"short_text": "reviews", "short_description": "items", "long_description": "items"}
SEARCH_S = 30.0
# From the threshold that is least likely to be too strict to the one that is changed first.
LOOSEST: Mapping[str, int] = {
    "max_user_reviews": 1 << 31,
    "min_profile_item_users": 0,
    "min_profile_reviews": 0,
    "min_item_users": 1,
    "n_targets": 3,
    "min_user_reviews": 1,
}
SHOWN_IDS = 3  # of each side, in a message
# Ways in which two systems write the same id, each with a function that undoes it.
ALIKE: Mapping[str, Callable[[str], str]] = {
    "without the `.0` at the end": lambda value: re.sub(r"\.0+$", "", value),
    "without the blanks around them": str.strip,
    "without leading zeros": lambda value: value.lstrip("0"),
    "in the same case": str.casefold,
    "without hyphens": lambda value: value.replace("-", ""),
    "without quotes": lambda value: value.strip("'\""),
    "as the last part of a path or address": lambda value: re.split(r"[/:#=]", value)[-1],
}


@dataclass
class Trial:
    """The two cores on a category's reviews under other thresholds.

    Attributes:
        rows: The reviews that pass the rules for single rows, as `cohort.first_core` takes them.
        texts: Returns `row` and the hash of the cleaned `text` of these reviews.
        protocol: The configured thresholds.
    """

    rows: pl.DataFrame
    texts: Callable[[], pl.DataFrame]
    protocol: ProtocolConfig
    _tried: dict[tuple[int, ...], int] = field(default_factory=dict)

    def users(self, values: Mapping[str, int]) -> int:
        """Return how many users pass under these thresholds; 0 also where a split would have no target."""
        key = tuple(values[name] for name in LOOSEST)
        if key not in self._tried:
            self._tried[key] = self._users(self.protocol.model_copy(update=dict(values)))
        return self._tried[key]

    @cached_property
    def suggested(self) -> dict[str, int] | None:
        """Values, for thresholds that have to change, under which at least one user passes.

        None where no user passes even under the loosest thresholds. With many millions of reviews not every value is
        tried: after `SEARCH_S` seconds the remaining thresholds keep their loosest values, which work too.
        """
        values, changed, until = dict(LOOSEST), {}, time.monotonic() + SEARCH_S
        values["max_user_reviews"] = max(self.protocol.max_user_reviews, self.rows.height)
        if not self.users(values):
            return None
        for name in LOOSEST:
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
        """Return the change that leaves a user, in words."""
        changed = self.suggested
        if changed is None:
            return (
                f"no thresholds help: give reviews of users with {DPL_REVIEWS} reviews or more"
                f" (then {KEY}.min_user_reviews of {DPL_REVIEWS} is enough)"
            )
        values = {name: getattr(self.protocol, name) for name in LOOSEST} | changed
        n = self.users(values)
        named = " and ".join(f"{KEY}.{name} to {value}" for name, value in changed.items())
        return f"set {named}, which leaves {n:,} user{'' if n == 1 else 's'}"

    @cached_property
    def _hashes(self) -> pl.DataFrame:
        return self.texts()

    def _users(self, protocol: ProtocolConfig) -> int:
        first = first_core(self.rows, protocol).rows
        if first.is_empty():
            return 0
        rows = second_core(first.drop("text").join(self._hashes, on="row"), protocol).rows
        if rows.is_empty():
            return 0
        if protocol.name == "dpl":
            enough = int(rows.group_by("user").len()["len"].cast(pl.Int64).to_numpy().max()) >= DPL_REVIEWS
        else:
            try:
                enough = find_cuts([rows.filter(TARGET)["time"]], protocol) is not None
            except DataError:
                enough = False
        return rows["user"].n_unique() if enough else 0


def no_row_passes(category: str, reviews: Account, items: Account, lengths: Callable[[Part], pl.Series]) -> DataError:
    """Return the error for no review that passes the rules for single rows, with the first row that breaks one.

    Args:
        category: The category's name.
        reviews: The account of reviews so far.
        items: The account of items so far.
        lengths: Returns the number of characters of all texts of reviews, or of all descriptions of items.
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
    category: str, reviews: Account, first: FirstCore, second: SecondCore | None, trial: Trial
) -> DataError:
    """Return the error for no user who passes, with what each threshold leaves and values that leave a user.

    Args:
        category: The category's name.
        reviews: The account of reviews so far.
        first: The first core.
        second: The second core, if the first one left a user.
        trial: The same reviews under other thresholds.
    """
    effects, protocol = first.effects, trial.protocol
    facts = [
        f"no user of {category} passes: {reviews.read:,} reviews read, {effects.reviews:,} of {effects.users:,} users "
        f"pass the rules for single reviews"
    ]
    before = {reason: n for reason, n in reviews.dropped.most_common(3) if n and reason in reviews.examples}
    if before and effects.reviews < reviews.read / 2:
        facts += [f"{reason} {n:,} ({reviews.examples[reason]})" for reason, n in before.items()]
    most = f"the most is {effects.most_reviews:,} reviews"
    changed = trial.suggested or {}
    if changed.get("min_user_reviews", effects.most_reviews) != effects.most_reviews:
        most += " before the other thresholds act"
    facts += [
        f"min_user_reviews {protocol.min_user_reviews} leaves {effects.enough:,} users ({most})",
        f"max_user_reviews {protocol.max_user_reviews} leaves {effects.not_too_many:,}",
        f"min_item_users {protocol.min_item_users} leaves {effects.popular:,} of {effects.items:,} items (the most is "
        f"{effects.most_users:,} users)",
    ]
    if second is not None:
        facts.append(
            f"the profiles without their {protocol.n_targets} targets hold up to {second.most_profile:,} reviews of "
            f"items with {protocol.min_profile_item_users} users (min_profile_item_users), "
            f"{protocol.min_profile_reviews} are needed (min_profile_reviews)"
        )
    elif effects.enough and effects.not_too_many and effects.popular:
        facts.append("together they leave no user")
    return DataError("; ".join(facts), remedy=trial.remedy())


def nothing_to_train(users: int, trials: Mapping[str, Trial]) -> DataError:
    """Return the error for no target that trains, with values that leave one.

    Args:
        users: Number of users in all categories.
        trials: The reviews of each category under other thresholds.
    """
    found = next((trial for trial in trials.values() if trial.suggested), next(iter(trials.values())))
    return DataError(
        f"no target is for train: none of {users:,} users has {DPL_REVIEWS} reviews left (the newest is for test, "
        "the one before it for val, and the targets before these train)",
        ", ".join(trials),
        found.remedy(),
    )


def no_item_matches(reviews: int, ours: Sequence[str], theirs: Sequence[str], files: str, category: str) -> DataError:
    """Return the error for no review of a known item, with ids of both sides.

    Args:
        reviews: Number of reviews.
        ours: Item ids of the reviews.
        theirs: Ids of the items.
        files: The files with the items.
        category: The category's name.
    """
    remedy = "give the metadata of the same category in ingest.inputs[].items"
    if way := same_if(ours, theirs):
        remedy = f"the ids are the same {way}: write them in the same way in both files"
    return DataError(
        f"the metadata matches no review: none of the items of {reviews:,} reviews is in {files}; the reviews have "
        f"{some_ids(ours)}, the items have {some_ids(theirs)}",
        category,
        remedy,
    )


def same_if(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """Return what makes ids of both sides the same, in words; None where nothing known does."""
    for words, change in ALIKE.items():
        if ({change(each) for each in ours} - {""}) & {change(each) for each in theirs}:
            return words
    return None


def some_ids(ids: Sequence[str]) -> str:
    """Return some of the ids, for a message."""
    return ", ".join(f"`{shorten(each)}`" for each in ids[:SHOWN_IDS]) + (", …" if len(ids) > SHOWN_IDS else "")
