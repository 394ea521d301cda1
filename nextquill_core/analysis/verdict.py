"""The verdict of an evaluation: at most three sentences on what its numbers show, what they do not, and what got worse.

The sentences are made from paired differences alone, by fixed rules, so that the same numbers give the same words:

- A difference is *shown* if its 95 % interval over users excludes zero, its test holds after Holm's correction, and
  there are at least `LEAST_USERS` users. Everything else is not shown, whatever its sign.
- The first sentence says what is shown to be better, against each reference; the second what is not shown; the third
  what is shown to be worse, in any metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nextquill_core.analysis.result_tables import SIGNIFICANT, preset_order, signed, widest
from nextquill_core.evaluation.metrics import (
    GAIN,
    LENGTH,
    LIKELIHOOD,
    METRICS,
    PERSONAL_GAIN,
    Metric,
)
from nextquill_core.evaluation.tables import Row

BETTER, WORSE, UNCLEAR = "better", "worse", "unclear"
LEAST_USERS = 20
"""With fewer users, an interval over users says too little about other users."""
REFERENCES = {
    "contextsft": "the same training data without preference weights and causal loss",
    "sft": "training without history",
    "latestk": "the base model with history",
    "qwen": "the base model without history",
}
"""The references of the verdict, the fairest first, with what each of them is."""
EXPECTED = ("contextsft",)
"""References without which the verdict says that something is missing."""
GAINS, LIKELIHOODS, PREFERRED, TEXTS, CUT = range(5)
"""Groups of metrics in the order in which they are shown; `PREFERRED`: gains and likelihoods on preference tokens."""
_LISTED = 4
_PLACES = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """A method minus a reference in one metric, on the same examples.

    Attributes:
        method: The method.
        reference: What it is compared with.
        metric: The metric.
        decoding: The decoding preset.
        value: The difference in the metric's unit, with its 95 % interval over users, `low` to `high`.
        p_adjusted: p-value of the paired test after Holm's correction.
        users: Number of users.
    """

    method: str
    reference: str
    metric: Metric
    decoding: str
    value: float
    low: float
    high: float
    p_adjusted: float
    users: int

    @property
    def outcome(self) -> str:
        """`better`, `worse`, or `unclear` where neither is shown."""
        if self.users < LEAST_USERS or self.low <= 0 <= self.high or self.p_adjusted >= SIGNIFICANT:
            return UNCLEAR
        return BETTER if (self.value > 0) == bool(self.metric.higher_is_better) else WORSE

    @property
    def numbers(self) -> str:
        """The difference and its interval, as text."""
        unit = "" if self.metric.judges_text else " nats a token"
        return f"{_number(self.value)}{unit}, {_number(self.low)} to {_number(self.high)}"


def metric_order(metric: Metric) -> tuple[int, bool, int]:
    """Return the place of a metric in lists of differences: its group, gains first, then its place in `METRICS`."""
    if not metric.judges_text:
        group = PREFERRED if metric.key.startswith("preference_") else GAINS if metric.table == GAIN else LIKELIHOODS
    else:
        group = CUT if metric.table == LENGTH else TEXTS
    return group, metric.table != GAIN, list(METRICS).index(metric.key)


def differences(comparisons: Sequence[Row], method: str, users: int) -> list[Difference]:
    """Return the differences of a method to every other one, whichever of the two a comparison names first.

    They are those of the union of all categories, or of the only one.

    Args:
        comparisons: Rows of `tables.comparison_rows`.
        method: The method.
        users: Number of users behind them.

    Returns:
        Presets as `preset_order`, then metrics as `metric_order`, then references, those of `REFERENCES` first.
    """
    category = widest(comparisons)
    found = []
    for row in comparisons:
        if row["category"] != category or method not in (row["method"], row["reference"]):
            continue
        if row["metric"] not in METRICS:
            continue
        side = 1 if row["method"] == method else -1
        low, high = sorted((side * row["ci_low"], side * row["ci_high"]))
        other = row["reference"] if side > 0 else row["method"]
        found.append(
            Difference(
                method, other, METRICS[row["metric"]], row["decoding"], side * row["difference"], low, high,
                row["p_adjusted"], users,
            )
        )  # fmt: skip
    presets = preset_order(one.decoding for one in found)
    references = reference_order(one.reference for one in found)
    return sorted(
        found,
        key=lambda one: (presets.index(one.decoding), metric_order(one.metric), references.index(one.reference)),
    )


def reference_order(names: Iterable[str]) -> list[str]:
    """Return references, each once: those of `REFERENCES` first, then the others as they come."""
    known = list(REFERENCES)
    return sorted(dict.fromkeys(names), key=lambda name: known.index(name) if name in known else len(known))


def verdict(found: Sequence[Difference], method: str, users: int, evaluated: Sequence[str]) -> tuple[str, ...]:
    """Return at most three sentences: what is shown to be better, what is not shown, what is shown to be worse.

    Args:
        found: The method's differences, as `differences` returns them.
        method: The method.
        users: Number of users that were measured.
        evaluated: The methods that were evaluated.
    """
    named = [one for one in found if one.reference in REFERENCES] or list(found)
    first = next(iter(one.decoding for one in named), "")
    shown = [one for one in named if one.decoding == first]
    if not shown:
        return (f"There is nothing to compare {method} with: no other method was evaluated on the same reviews.",)
    if users < LEAST_USERS:
        return _too_few(shown, method, users)
    keys = _headlines(shown)
    headlines = [one for one in shown if one.metric.key in keys]
    return tuple(
        sentence
        for sentence in (
            _better(headlines, method, users),
            _not_shown(headlines, _missing(method, evaluated)),
            _worse([one for one in named if one.metric.judges_text or one.decoding == first]),
        )
        if sentence
    )


def _headlines(shown: Sequence[Difference]) -> list[str]:
    """Return the metrics that the first two sentences are about: personal gain, log-likelihood and one text metric."""
    measured = {one.metric.key for one in shown}
    texts = next((key for key in ("rouge1_unicode", "rouge1", "rougeL", "meteor") if key in measured), "")
    return [key for key in (PERSONAL_GAIN, LIKELIHOOD, texts) if key]


def _too_few(shown: Sequence[Difference], method: str, users: int) -> tuple[str, ...]:
    counted = (
        "Only one user was measured, and one user is" if users == 1 else f"Only {users} users were measured, which is"
    )
    first = shown[0]
    return (
        f"{counted} too few to show anything about other users (at least {LEAST_USERS} are needed).",
        f"On what was measured, the {_name(first.metric)} of {method} minus that of {first.reference} is "
        f"{_number(first.value)}, which shows neither an advantage nor a harm.",
    )


def _better(headlines: Sequence[Difference], method: str, users: int) -> str:
    clauses = []
    for reference in dict.fromkeys(one.reference for one in headlines):
        better = [one for one in headlines if one.reference == reference and one.outcome == BETTER]
        if better:
            clauses.append(f"than {reference} in {listed(map(_measure, better[:2]))}")
    if not clauses:
        references = listed(dict.fromkeys(one.reference for one in headlines), last="or")
        return f"For these {users:,} users, no advantage of {method} over {references} is shown."
    first, *others = clauses
    marked = first.replace(", ", ", 95 % interval ", 1)
    return f"For these {users:,} users, {method} is better {listed([marked, *others], '; ', last='and')}."


def _not_shown(headlines: Sequence[Difference], missing: str) -> str:
    unclear = [one for one in headlines if one.outcome == UNCLEAR]
    parts = []
    for key in dict.fromkeys(one.metric.key for one in unclear):
        of_metric = [one for one in unclear if one.metric.key == key]
        against = [
            f"{one.reference} ({_number(one.value)}, {_number(one.low)} to {_number(one.high)})" for one in of_metric
        ]
        parts.append(f"in {_name(of_metric[0].metric)} against {listed(against)}")
    sentence = ""
    if parts:
        why = (
            "the interval includes zero"
            if all(one.low <= 0 <= one.high for one in unclear)
            else "the interval includes zero or the test does not hold after correction"
        )
        sentence = f"Not shown is a difference {listed(parts, '; ')}, because {why}"
    if missing:
        sentence = f"{sentence}; {missing}" if sentence else missing[0].upper() + missing[1:]
    return f"{sentence}." if sentence else ""


def _worse(shown: Sequence[Difference]) -> str:
    worse = [one for one in shown if one.outcome == WORSE]
    if not worse:
        return "Nothing that was measured is shown to be worse."
    named = worse[:_LISTED]
    clauses = [
        f"than {reference} in {listed([_measure(one) for one in named if one.reference == reference])}"
        for reference in reference_order(one.reference for one in named)
    ]
    more = [f"in {len(worse) - _LISTED} more comparisons"] if len(worse) > _LISTED else []
    return f"It is worse {listed([*clauses, *more], '; ')}."


def _missing(method: str, evaluated: Sequence[str]) -> str:
    absent = [name for name in EXPECTED if name not in evaluated and name != method]
    return f"the reference {listed(absent)} was not evaluated, so what {method} adds to it is unknown" if absent else ""


def _measure(one: Difference) -> str:
    preset = f", {one.decoding} decoding" if one.metric.judges_text else ""
    return f"{_name(one.metric)} ({one.numbers}{preset})"


def _name(metric: Metric) -> str:
    """Return the name of a metric inside a sentence: only abbreviations have capital letters."""
    return metric.name if metric.name[1:2].isupper() else metric.name[:1].lower() + metric.name[1:]


def _number(value: float) -> str:
    """Return a signed number with three digits after the point, or with as many as show that it is not 0."""
    places = next((n for n in range(_PLACES, 7) if round(value, n)), _PLACES)
    return signed(value, places) if round(value, places) else f"{0:.{_PLACES}f}"


def listed(parts: Iterable[str], between: str = ", ", *, last: str = "and") -> str:
    """Return parts as a list in words, such as `a, b and c`.

    Args:
        parts: The parts; none are `nothing`.
        between: What stands between two of them.
        last: The word before the last one.
    """
    *others, end = [*parts] or ["nothing"]
    return f"{between.join(others)} {last} {end}" if others else end


def shown_differences(found: Iterable[Difference]) -> Iterator[dict[str, object]]:
    """Yield differences as rows of plain values, for a table in a file."""
    for one in found:
        yield {
            "method": one.method,
            "reference": one.reference,
            "decoding": one.decoding,
            "metric": one.metric.key,
            "difference": one.value,
            "ci_low": one.low,
            "ci_high": one.high,
            "p_adjusted": one.p_adjusted,
            "outcome": one.outcome,
            "users": one.users,
        }
