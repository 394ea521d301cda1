"""The choice among candidates on val: how far a method is above the reference under each, and which is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nextquill_core.errors import UserError
from nextquill_core.studies.study.spec import Choice

Differences = Mapping[str, float]
"""By metric, the value of a method minus that of the reference method under the same candidate, mean over seeds."""


@dataclass(frozen=True)
class Chosen:
    """What was chosen on val for one method.

    Attributes:
        candidate: The candidate.
        why: The reason in words.
        differences: By candidate, what was measured.
    """

    candidate: str
    why: str
    differences: Mapping[str, Differences]


def choose(differences: Mapping[str, Differences], choice: Choice, reference: str) -> Chosen:
    """Return the candidate that a choice's rule takes; of equal ones, the first.

    Of the candidates that are not below the reference in any metric of `not_below`, the one with the highest difference
    in `by`. Where all are below it, the one whose largest shortfall in these metrics is smallest.

    Args:
        differences: By candidate, what was measured on val.
        choice: The rule.
        reference: Name of the reference method, for the reason.

    Raises:
        UserError: A metric of the rule was not measured.
    """
    for candidate, found in differences.items():
        if absent := [metric for metric in (choice.by, *choice.not_below) if metric not in found]:
            raise UserError(
                f"`{absent[0]}` was not measured for the candidate {candidate}", "study", "choose by another metric"
            )
    limits = " and ".join(choice.not_below)
    allowed = [name for name, found in differences.items() if all(found[key] >= 0 for key in choice.not_below)]
    if allowed:
        best = max(allowed, key=lambda name: differences[name][choice.by])
        among = f" among the {len(allowed)} of {len(differences)} candidates that are not below {reference} in {limits}"
        return Chosen(best, f"highest {choice.by} over {reference}{among if limits else ''}", differences)
    best = max(differences, key=lambda name: min(differences[name][key] for key in choice.not_below))
    return Chosen(best, f"every candidate is below {reference} in {limits}, and this one least", differences)


def mean_differences(by_seed: Sequence[Mapping[str, float]], reference: Sequence[Mapping[str, float]]) -> Differences:
    """Return the mean over seeds of the differences of a method's metrics to the reference's.

    Args:
        by_seed: Values of the method by metric, for each seed.
        reference: The same of the reference method, for the same seeds.
    """
    shared = [key for key in by_seed[0] if all(key in values for values in (*by_seed, *reference))]
    pairs = list(zip(by_seed, reference, strict=True))
    return {key: sum(mine[key] - theirs[key] for mine, theirs in pairs) / len(pairs) for key in shared}
