"""Promotion: an adapter is accepted only if it beats the last accepted one on val by more than noise.

Both are measured on the val split; the test split stays for what has been chosen. The two are compared by the
difference of a metric over the examples that both were measured on, with the interval of the paired bootstrap over
users (`evaluation.significance`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from nextquill_core.config import Config
from nextquill_core.errors import UserError
from nextquill_core.pipeline import Plan, Step, lineage
from nextquill_core.pipeline.methods import resampled_by_example, split_examples
from nextquill_core.pipeline.run import OpenRun, Run
from nextquill_core.pipeline.writing import trained
from nextquill_core.schemas import column_by_example
from storage import Artifact
from storage.pointers import (
    Pointer,
    Target,
    is_unchanged,
    log_event,
    move_back,
    move_pointer,
    pointer_location,
    pointer_lock,
    read_pointer,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from nextquill_core.evaluation.significance import Interval

    Stats = Mapping[str, np.ndarray[Any, Any]]  # what a metric sums over examples, (K,), by example

SPLIT = "val"
LIKELIHOOD = "log_likelihood"
Metric = Literal["log_likelihood", "rouge1", "rougeL", "rouge1_unicode", "rougeL_unicode", "meteor", "bleu"]
METRICS = get_args(Metric)
"""Metrics that can decide: those of which more is better and that need no further model."""
FEWEST_USERS = 20
"""Number of users below which two adapters are not compared."""
FEWEST_COMMON = 0.5
"""Share of the candidate's examples that the accepted adapter must have been measured on too."""


@dataclass(frozen=True)
class Verdict:
    """The decision about a candidate.

    Attributes:
        name: Name of the pointer.
        metric: The metric that decided.
        accepted: Whether the pointer now points at the candidate.
        reason: One line, with the numbers.
        candidate: Fingerprint of the candidate's adapter.
        against: Fingerprint of the adapter that was accepted before; None where there was none.
        value: The metric of the candidate over all its val examples.
        difference: Candidate minus accepted adapter over the common examples; None where nothing was compared.
        low: Lower end of the 95 % interval of the difference, over users.
        high: Upper end of the interval.
        examples: Number of common examples.
        users: Number of their users.
    """

    name: str
    metric: str
    accepted: bool
    reason: str
    candidate: str
    against: str | None
    value: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    examples: int = 0
    users: int = 0


def val_run(config: Config, method: str, open_run: OpenRun) -> Run:
    """Open a configuration on val with one method alone; its artifacts are shared with the points of sweeps.

    Args:
        config: The settings; they train the method.
        method: Name of the method.
        open_run: Opens a configuration.

    Raises:
        UserError: The method has no up-to-date adapter in this configuration; or as `open_run`.
    """
    trained(open_run(config), method)
    evaluate = {"split": SPLIT, "methods": (method,), "control": "none"}
    return open_run(config.model_copy(update={"evaluate": config.evaluate.model_copy(update=evaluate)}))


def measuring_step(plan: Plan, method: str, metric: str) -> Step:
    """Return the step that measures an adapter: likelihoods of the true reviews, or texts under the last preset.

    Args:
        plan: The plan of a run on val.
        method: The method that trained the adapter.
        metric: The metric that decides.

    Raises:
        UserError: The metric cannot decide.
    """
    if metric not in METRICS:
        raise UserError(f"`{metric}` cannot decide a promotion", "--metric", f"name one of {', '.join(METRICS)}")
    if metric == LIKELIHOOD:
        return plan.evaluation.likelihoods[method]
    if not plan.config.evaluate.decoding:
        raise UserError(f"{metric} judges texts, and this config generates none", "evaluate.decoding", "name a preset")
    return plan.evaluation.predictions[method, plan.config.evaluate.decoding[-1]].step


def missing_steps(run: Run, method: str, metric: str) -> list[Step]:
    """Return the steps that must be made before `decide`, each after its inputs; some may be up to date.

    Args:
        run: A run on val.
        method: The method that trained the adapter.
        metric: The metric that decides.
    """
    wanted = {step.address for step in lineage(measuring_step(run.plan, method, metric))}
    return [step for step in run.plan.evaluation.steps if step.address in wanted]


def decide(run: Run, method: str, name: str, metric: str = LIKELIHOOD) -> Verdict:
    """Compare a candidate with the accepted adapter, and move the pointer if the candidate is better beyond noise.

    Where the metric ignores too many letters of the val reviews, its form for every script decides.

    Args:
        run: As from `val_run`; the `missing_steps` have been made.
        method: The method whose adapter is the candidate.
        name: Name of the pointer.
        metric: One of `METRICS`.

    Raises:
        UserError: The two cannot be compared, or another process is moving the pointer.
        ModelError: The candidate's likelihoods are not finite.
    """
    import numpy as np

    step = measuring_step(run.plan, method, metric)
    measured = run.artifact(step)
    metric, ignored = _deciding(run, metric)
    adapter = run.artifact(run.plan.train[method])
    candidate = _stats(run, measured, metric)
    value = float(_statistic(metric)(np.sum(list(candidate.values()), axis=0))) if candidate else math.nan
    if not math.isfinite(value):
        raise UserError(f"{metric} of the candidate on val is {value}", measured.location, "look at the adapter")
    with pointer_lock(run.store, name):
        known = read_pointer(run.store, name)
        verdict = _verdict(run, name, metric, adapter, candidate, value, known)
        verdict = replace(verdict, reason=verdict.reason + ignored)
        note = {"method": method, "at": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(verdict)}
        target = Target(adapter.ref, measured.ref, note)
        if not verdict.accepted:
            log_event(run.store, name, "rejected", target)
        elif known is None or known.target.ref != adapter.ref:
            move_pointer(run.store, name, target)
    return verdict


def back(run: Run, name: str) -> Target:
    """Move a pointer back to the adapter that was accepted before.

    Raises:
        UserError: There was none before, it is gone, or another process is moving the pointer.
    """
    with pointer_lock(run.store, name):
        return move_back(run.store, name)


def accepted(run: Run, name: str) -> Artifact:
    """Return the accepted adapter.

    Args:
        run: A run on the store.
        name: Name of the pointer.

    Raises:
        UserError: None has been accepted under this name, or it is no longer in the store as it was.
    """
    where = pointer_location(run.store, name)
    known = read_pointer(run.store, name)
    if known is None:
        raise UserError(f"nothing has been accepted as `{name}`", where, "run `nextquill promote` first")
    ref = known.target.ref
    found = run.store.find(ref.kind, ref.fingerprint)
    if found is None or not is_unchanged(run.store, ref):
        raise UserError(
            f"{ref.kind} {ref.fingerprint}, accepted as `{name}`, is no longer in the store as it was",
            where,
            "train it again, or `nextquill promote --back`",
        )
    return found


def _deciding(run: Run, metric: str) -> tuple[str, str]:
    """Return the metric that decides on these val reviews, and why it is not the one that was asked for, or ""."""
    if metric == LIKELIHOOD:
        return metric, ""
    from nextquill_core.evaluation.metrics import choosing_metric
    from nextquill_core.evaluation.text_metrics import count_letters

    letters = count_letters(example.target.text for example in split_examples(run, SPLIT))
    decides = choosing_metric(metric, letters)
    if decides == metric:
        return metric, ""
    return decides, f"; {metric} ignores {letters.ignored_share:.1%} of the letters and digits of the val reviews"


def _verdict(
    run: Run, name: str, metric: str, adapter: Artifact, candidate: Stats, value: float, known: Pointer | None
) -> Verdict:
    made = adapter.manifest.fingerprint
    if known is None:
        reason = f"{made} is the first accepted as `{name}`: {metric} {value:.4f} on val"
        return Verdict(name, metric, True, reason, made, None, value)
    against = known.target.ref
    if against == adapter.ref:
        return Verdict(name, metric, True, f"{made} is accepted as `{name}` already", made, made, value)
    other = _stats(run, measurement(run, known.target, metric), metric)
    ids = [key for key, row in candidate.items() if _comparable(metric, row, other.get(key))]
    owners = resampled_by_example(split_examples(run, SPLIT))
    users = [owners[key] for key in ids]
    if len(set(users)) < FEWEST_USERS or len(ids) < FEWEST_COMMON * len(candidate):
        raise UserError(
            f"{made} and the accepted {against.fingerprint} have {len(ids)} of {len(candidate)} val examples "
            f"in common, of {len(set(users))} users: too few to compare them",
            f"promote {name}",
            f"it takes half of them and {FEWEST_USERS} users; accept it under another name with --as NAME",
        )
    found = compared(
        metric, [candidate[key] for key in ids], [other[key] for key in ids], users,
        samples=run.config.evaluate.bootstrap_samples, seed=run.config.seed,
    )  # fmt: skip
    better = found.low > 0
    reason = (
        f"{metric} on val {'+' if found.value >= 0 else ''}{found.value:.4f} [{found.low:.4f}, {found.high:.4f}] "
        f"against the accepted {against.fingerprint}, {len(ids)} examples of {len(set(users))} users: "
        f"{'better beyond noise' if better else 'not better beyond noise'}"
    )
    return Verdict(
        name, metric, better, reason, made, against.fingerprint, value, found.value, found.low, found.high,
        len(ids), len(set(users)),
    )  # fmt: skip


def compared(
    metric: str,
    mine: ArrayLike,
    theirs: ArrayLike,
    users: Sequence[str],
    *,
    samples: int,
    seed: int,
) -> Interval:
    """Return the difference of a metric between two adapters on the same examples, with its interval over users.

    Args:
        metric: One of `METRICS`.
        mine: What the metric sums over examples, (n, K).
        theirs: The same for the other adapter, (n, K).
        users: The user of each example.
        samples: Number of resamples.
        seed: Seed of the resampling.
    """
    from nextquill_core.evaluation.significance import paired_bootstrap

    return paired_bootstrap(mine, theirs, users, _statistic(metric), samples=samples, seed=seed).difference


def _comparable(metric: str, mine: Any, theirs: Any) -> bool:
    """Return whether both measured the same text; cut or split into other tokens, a true review is another text."""
    return theirs is not None and (metric != LIKELIHOOD or bool(mine[1] == theirs[1]))


def _stats(run: Run, measured: Artifact, metric: str) -> Stats:
    from nextquill_core.evaluation.metrics import score_examples

    if metric == LIKELIHOOD:
        return likelihood_stats(measured)
    texts = column_by_example(measured.folder / "predictions", "text")
    examples = [example for example in split_examples(run, SPLIT) if example.example_id in texts]
    scores = score_examples(
        [texts[example.example_id] for example in examples], [example.target.text for example in examples]
    )
    return dict(zip((example.example_id for example in examples), scores.statistics[metric], strict=True))


def likelihood_stats(measured: Artifact) -> Stats:
    """Return log-probability and number of tokens of each example of a likelihood artifact, (2,) each."""
    from nextquill_core.evaluation.metrics import likelihood_sums

    logps = column_by_example(measured.folder / "likelihoods", "logp")
    return dict(zip(logps, likelihood_sums(list(logps.values())), strict=True))


def _statistic(metric: str) -> Any:
    from nextquill_core.evaluation.metrics import METRICS as KNOWN

    return KNOWN[metric].statistic


def measurement(run: Run, target: Target, metric: str) -> Artifact:
    """Return the artifact that measures an accepted adapter: that of its acceptance, or another in the store.

    Args:
        run: A run on val.
        target: The target of the pointer.
        metric: The metric that decides.

    Raises:
        UserError: The store has no such artifact.
    """
    kind = "likelihood" if metric == LIKELIHOOD else "predictions"
    preset = None if metric == LIKELIHOOD else run.config.evaluate.decoding[-1]
    known = run.store.find(target.measured.kind, target.measured.fingerprint)
    for found in itertools.chain([known] if known else [], run.store.newest_first(kind)):
        identity = found.manifest.identity
        same = found.manifest.kind == kind and identity["split"] == SPLIT and identity["past"] == "own"
        if same and identity.get("decoding") == preset and target.ref in found.manifest.inputs:
            return found
    what = "log-likelihoods" if metric == LIKELIHOOD else f"{preset} texts"
    raise UserError(
        f"the store has no {what} of the accepted {target.ref.fingerprint} on val to compare with",
        f"promote {target.note.get('name', '')}",
        f"decide by {target.note.get('metric', LIKELIHOOD)}, or evaluate its config with evaluate.split=val first",
    )
