"""Whether a newly trained adapter has fallen behind the accepted one: on val, below the interval that that one reached.

This is an alarm and decides nothing; `stages.promote` decides, on the difference of the two over all val examples. What
is looked at here is there already: the validation that training ends with, and the log-likelihoods by which an adapter
was accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nextquill_core.errors import UserError
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.method_models import method_encoder
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.shown_history import by_example, split_examples
from nextquill_core.registry.promote import FEWEST_COMMON, FEWEST_USERS, LIKELIHOOD, SPLIT, measurement
from nextquill_core.schemas import Example
from storage.pointers import Target, pointer_names, read_pointer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nextquill_core.evaluation.significance import Interval


@dataclass(frozen=True)
class Fall:
    """An adapter that does worse on val than the accepted one did.

    Attributes:
        method: Whose adapters the two are.
        candidate: Fingerprint of the new one.
        value: Its log-likelihood of the true val reviews, nats a token; not finite where training went wrong.
        name: The pointer that stands for the accepted one.
        accepted: Fingerprint of the accepted one.
        against: Its log-likelihood.
        low: The lower end of the 95 % interval of `against`, over users.
        high: The upper end.
        examples: How many the interval is over.
        users: Whose they are.
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
        """What happened, with both numbers."""
        value = f"{self.value:.4f}" if math.isfinite(self.value) else "not finite"
        return (
            f"quality fell: {LIKELIHOOD} of {self.method} {self.candidate} on {SPLIT} is {value}, below the interval "
            f"of {self.accepted}, accepted as `{self.name}`: {self.against:.4f} [{self.low:.4f}, {self.high:.4f}], "
            f"{self.examples} examples of {self.users} users"
        )


def below(value: float, interval: Interval) -> bool:
    """Whether a value lies below an interval; one that is no number does."""
    return not value >= interval.low


def fall_of(run: Run, method: str) -> Fall | None:
    """Compare a trained adapter's last validation with what was accepted for its method.

    The accepted adapter is the one accepted last among those that were measured on the same examples: half of them, of
    20 users at least, with the same number of tokens each. The interval is over these (`evaluation.significance`).

    Args:
        run: The configuration; the adapter has been trained.
        method: Whose adapter.

    Returns:
        The fall; None where there is none, where training validated nothing, or where nothing accepted compares.

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
    users = {example.example_id: f"{example.category}/{example.user_id}" for example in examples}
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
    """What was accepted for a method, by the names of the pointers, the last accepted first."""
    found = {name: pointer.target for name in pointer_names(run.store) if (pointer := read_pointer(run.store, name))}
    mine = [(name, target) for name, target in found.items() if target.note.get("method") == method]
    return sorted(mine, key=lambda one: str(one[1].note.get("at", "")), reverse=True)


def _validated(run: Run) -> list[Example]:
    """The val examples that training measured."""
    from nextquill_core.training.validation import chosen

    return chosen(split_examples(run, SPLIT), run.config.train.val_examples, run.config.seed)


def _target_tokens(run: Run, method: str, examples: Sequence[Example]) -> dict[str, int]:
    """By example, the number of tokens of the true review; it does not depend on the prompt before it."""
    bare = [replace(example, history=()) for example in examples]
    pairs = method_encoder(run, METHODS[method]).encode(bare)
    return {pair.example_id: len(pair.target) for pair in pairs}


def _sums(run: Run, target: Target) -> Mapping[str, NDArray[Any]]:
    """Log-probability and tokens of each val example under an accepted adapter; empty where nothing measured them."""
    from nextquill_core.evaluation.metrics import likelihood_sums

    try:
        measured = measurement(run, target, LIKELIHOOD)
    except UserError:
        return {}  # it was accepted by another metric
    logps = by_example(measured.folder / "likelihoods", "logp")
    return dict(zip(logps, likelihood_sums(list(logps.values())), strict=True))
