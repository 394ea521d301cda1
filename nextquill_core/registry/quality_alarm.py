"""Quality alarm: a new adapter is reported if it does worse on val than the interval of the accepted one.

The alarm decides nothing; `registry.promote` decides, by the difference of the two over all val examples. The alarm
needs no further measurement: it compares the last validation of a training with the log-likelihoods by which an adapter
was accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nextquill_core.errors import UserError
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.methods import method_encoder, resampled_by_example, split_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.registry.promote import (
    FEWEST_COMMON,
    FEWEST_USERS,
    LIKELIHOOD,
    SPLIT,
    likelihood_stats,
    measurement,
)
from nextquill_core.schemas import Example
from storage.pointers import Target, pointer_names, read_pointer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nextquill_core.evaluation.significance import Interval


@dataclass(frozen=True)
class Fall:
    """An adapter that does worse on val than the accepted one.

    Attributes:
        method: The method of both adapters.
        candidate: Fingerprint of the new adapter.
        value: Its log-likelihood of the true val reviews, nats a token; not finite where training diverged.
        name: The pointer of the accepted adapter.
        accepted: Fingerprint of the accepted adapter.
        against: Its log-likelihood, nats a token.
        low: Lower end of the 95 % interval of `against`, over users.
        high: Upper end of the interval.
        examples: Number of examples in the interval.
        users: Number of their users.
    """

    method: str
    candidate: str
    value: float
    name: str
    accepted: str
    against: float
    low: float
    high: float
    examples: int
    users: int

    @property
    def line(self) -> str:
        """The alarm as one line, with both numbers."""
        value = f"{self.value:.4f}" if math.isfinite(self.value) else "not finite"
        return (
            f"quality fell: {LIKELIHOOD} of {self.method} {self.candidate} on {SPLIT} is {value}, below the interval "
            f"of {self.accepted}, accepted as `{self.name}`: {self.against:.4f} [{self.low:.4f}, {self.high:.4f}], "
            f"{self.examples} examples of {self.users} users"
        )


def below(value: float, interval: Interval) -> bool:
    """Return whether a value lies below an interval, or is not a number."""
    return not value >= interval.low


def fall_of(run: Run, method: str) -> Fall | None:
    """Compare the last validation of a trained adapter with the adapter that was accepted for its method.

    Of several accepted adapters the last one counts that was measured on the same examples: at least half of them, of
    at least 20 users, with the same number of tokens each. The interval is over these (`evaluation.significance`).

    Args:
        run: The run; the adapter is in its store.
        method: The method that trained it.

    Returns:
        The fall; None where there is none, where training did not validate, or where no accepted adapter compares.

    Raises:
        UserError: The adapter is missing, or a pointer is damaged.
    """
    import numpy as np

    from nextquill_core.evaluation.significance import bootstrap_interval

    adapter = run.artifact(run.plan.train[method])
    validation = adapter.manifest.stats.get("validation")
    known = _accepted(run, method)
    if validation is None or not known:
        return None
    value = -float(validation["nll"])
    examples = _validated(run)
    tokens = _target_tokens(run, method, examples)
    users = resampled_by_example(examples)
    for name, target in known:
        sums = _sums(run, target)
        ids = [key for key, count in tokens.items() if key in sums and sums[key][1] == count]
        owners = [users[key] for key in ids]
        if len(set(owners)) < FEWEST_USERS or len(ids) < FEWEST_COMMON * len(tokens):
            continue  # of another category or another tokenizer, for instance
        reached = bootstrap_interval(
            np.array([sums[key] for key in ids]), owners,
            samples=run.config.evaluate.bootstrap_samples, seed=run.config.seed,
        )  # fmt: skip
        if not below(value, reached):
            return None
        return Fall(
            method, adapter.manifest.fingerprint, value, name, target.ref.fingerprint,
            reached.value, reached.low, reached.high, len(ids), len(set(owners)),
        )  # fmt: skip
    return None


def _accepted(run: Run, method: str) -> list[tuple[str, Target]]:
    """Return the pointers of a method with their targets, the last accepted first."""
    found = {name: pointer.target for name in pointer_names(run.store) if (pointer := read_pointer(run.store, name))}
    mine = [(name, target) for name, target in found.items() if target.note.get("method") == method]
    return sorted(mine, key=lambda one: str(one[1].note.get("at", "")), reverse=True)


def _validated(run: Run) -> list[Example]:
    """Return the val examples that training measured."""
    from nextquill_core.training.data import validation_subset

    return validation_subset(split_examples(run, SPLIT), run.config.train.val_examples, run.config.seed)


def _target_tokens(run: Run, method: str, examples: Sequence[Example]) -> dict[str, int]:
    """Return the number of tokens of each true review, which does not depend on the prompt before it."""
    bare = [replace(example, history=()) for example in examples]
    pairs = method_encoder(run, METHODS[method]).encode(bare)
    return {pair.example_id: len(pair.target) for pair in pairs}


def _sums(run: Run, target: Target) -> Mapping[str, NDArray[Any]]:
    """Return `likelihood_stats` of an accepted adapter; empty where it was accepted by another metric."""
    try:
        return likelihood_stats(measurement(run, target, LIKELIHOOD))
    except UserError:
        return {}
