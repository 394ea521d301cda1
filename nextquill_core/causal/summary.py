"""Summary of the stored effects: by category, by token, and in ten answers; no model is needed.

Shards are read one batch of rows at a time, so memory grows with the vocabulary and the categories only. Sums are added
token by token, so they do not depend on shard boundaries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nextquill_core.errors import DataError
from nextquill_core.schemas import EFFECTS
from storage.tables import read_batches

ROWS_AT_ONCE = 1024
ANSWERS = 10
TOP_TOKENS = 30
MIN_COUNT = 20
# Six edges in a factor of ten: most effects are tiny, and bins of equal width would put nearly all into one.
MAGNITUDES = (0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
EDGES = (-1.0, -0.7, *(-edge for edge in reversed(MAGNITUDES)), *MAGNITUDES, 0.7, 1.0)


@dataclass(frozen=True, slots=True)
class CategoryEffects:
    """Effects of one category's tokens; means are 0 if there is no token.

    Attributes:
        category: Name of the category, or `all`.
        tokens: Number of tokens.
        preference_tokens: Number of tokens with an effect above δ.
        mean_effect: Mean difference of probabilities.
        mean_logp_gain: Mean of log p with history − log p without, nats per token.
        histogram: Number of tokens by bin; bin i holds edges[i] < effect ≤ edges[i + 1], and the first bin also −1.
    """

    category: str
    tokens: int
    preference_tokens: int
    mean_effect: float
    mean_logp_gain: float
    histogram: tuple[int, ...]

    @property
    def preference_share(self) -> float:
        """Share of preference tokens, in [0, 1]."""
        return self.preference_tokens / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True)
class TopToken:
    """A token of the vocabulary with the number of times it was scored and its mean effect."""

    token_id: int
    count: int
    mean_effect: float


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One answer with the stored values of each of its T tokens; log-probabilities in nats."""

    example_id: str
    category: str
    target_ids: tuple[int, ...]
    logp_factual: tuple[float, ...]
    logp_counterfactual: tuple[float, ...]
    effect: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EffectsSummary:
    """Summary of all effects.

    Attributes:
        delta: δ of Eq. 3, which is one of the edges.
        edges: Edges of the histograms' bins, ascending, from −1 to 1.
        overall: All categories together.
        categories: Categories with tokens, in the order of the mapping passed to `summarise`.
        min_count: Number of times a token must be scored to be one of `top_tokens`.
        top_tokens: Tokens with the highest mean effect above 0, highest first.
        answers: Ten answers with strong effects, by the rule of `summarise`; not a fair sample.
    """

    delta: float
    edges: tuple[float, ...]
    overall: CategoryEffects
    categories: tuple[CategoryEffects, ...]
    min_count: int
    top_tokens: tuple[TopToken, ...]
    answers: tuple[ScoredAnswer, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        plain = asdict(self)
        for part, row in zip((self.overall, *self.categories), (plain["overall"], *plain["categories"]), strict=True):
            row["preference_share"] = part.preference_share
        return plain


def summarise(
    effects_paths: Iterable[Path],
    categories: Mapping[str, str],
    *,
    delta: float,
    min_count: int | None = None,
    answers: int = ANSWERS,
) -> EffectsSummary:
    """Read the shards once and return their summary.

    The shown answers are those with the strongest effect of history. An answer's score is the sum of its positive
    effects divided by the square root of its number of tokens: the sum would choose the longest answers, the mean the
    shortest. An answer without a positive effect is never shown. The categories choose in turn, each the highest score
    among the users with the fewest shown answers; of equal scores the smaller example id comes first. So two answers of
    one user are shown only if there are too few users.

    Args:
        effects_paths: Parquet files of schema `EFFECTS`, in the order of their numbers.
        categories: Category of each example by its id, which is `CATEGORY:USER:NUMBER`.
        delta: δ of Eq. 3, in [−1, 1]; compared in single precision, as for the weights.
        min_count: Number of times a token must be scored to be a top token; None for 20, or for one token in 500 in
            small data, but at least 2.
        answers: Number of shown answers.

    Raises:
        DataError: A shard has an example without a category, or lists of different lengths.
    """
    sums = _Sums(list(dict.fromkeys(categories.values())), delta)
    shown: dict[str, _Candidates] = {name: _Candidates(answers) for name in sums.names}
    for path in effects_paths:
        for batch in read_batches(path, ROWS_AT_ONCE, EFFECTS.names):
            _add(batch, path, categories, sums, shown)
    if min_count is None:
        min_count = max(2, min(MIN_COUNT, int(sums.tokens.sum()) // 500))
    return EffectsSummary(
        delta=delta,
        edges=tuple(sums.edges.tolist()),
        overall=sums.part("all", slice(None)),
        categories=tuple(
            sums.part(name, slice(row, row + 1)) for row, name in enumerate(sums.names) if sums.tokens[row]
        ),
        min_count=min_count,
        top_tokens=sums.top_tokens(min_count),
        answers=_in_turn(shown.values(), answers),
    )


def _add(
    batch: pa.RecordBatch, path: Path, categories: Mapping[str, str], sums: _Sums, shown: Mapping[str, _Candidates]
) -> None:
    """Add one batch of rows of a shard."""
    lengths_N = [batch[name].value_lengths().to_numpy(zero_copy_only=False) for name in EFFECTS.names[1:]]
    if any(not np.array_equal(lengths_N[0], other) for other in lengths_N[1:]):
        raise DataError("lists of different lengths in one row", str(path), "score again")
    ids_T, factual_T, counterfactual_T, effect_T = (batch[name].flatten().to_numpy() for name in EFFECTS.names[1:])
    example_ids = batch["example_id"].to_pylist()
    lost = next((example_id for example_id in example_ids if example_id not in categories), None)
    if lost is not None:
        raise DataError(f"example {lost} has no category", str(path), "score again on the present examples")
    names = [categories[example_id] for example_id in example_ids]
    row_of = {name: row for row, name in enumerate(sums.names)}
    lengths = lengths_N[0]
    rows_T = np.repeat(np.array([row_of[name] for name in names], dtype=np.int64), lengths)
    sums.add(rows_T, ids_T, factual_T, counterfactual_T, effect_T)

    scores = np.zeros(len(names))
    np.add.at(scores, np.repeat(np.arange(len(names)), lengths), np.maximum(effect_T, 0).astype(np.float64))
    scores /= np.sqrt(np.maximum(lengths, 1))
    ends = np.cumsum(lengths)
    for index in np.flatnonzero(scores > 0).tolist():
        key = (-float(scores[index]), example_ids[index])
        if shown[names[index]].accepts(key):
            part = slice(int(ends[index] - lengths[index]), int(ends[index]))
            columns = [tuple(column[part].tolist()) for column in (ids_T, factual_T, counterfactual_T, effect_T)]
            shown[names[index]].add(key, ScoredAnswer(example_ids[index], names[index], *columns))


class _Sums:
    """Running sums by category (C), bin (B) and token of the vocabulary (V)."""

    def __init__(self, names: list[str], delta: float) -> None:
        self.names = names
        self.edges = np.unique([*EDGES, delta])
        # Weights compare stored effects with δ in single precision. The bins do so too, so the same tokens are above δ.
        # δ is an edge, and a bin holds its upper edge, because an effect of exactly δ is not above it.
        self.delta = np.float32(delta)
        self._inner = self.edges[1:-1].astype(np.float32)
        self.tokens = np.zeros(len(names), dtype=np.int64)
        self._above = np.zeros(len(names), dtype=np.int64)
        self._effect = np.zeros(len(names))
        self._gain = np.zeros(len(names))
        self._histogram_CB = np.zeros((len(names), len(self.edges) - 1), dtype=np.int64)
        self._count_V = np.zeros(0, dtype=np.int64)
        self._effect_V = np.zeros(0)

    def add(
        self,
        rows_T: NDArray[np.int64],
        ids_T: NDArray[np.int32],
        factual_T: NDArray[np.float32],
        counterfactual_T: NDArray[np.float32],
        effect_T: NDArray[np.float32],
    ) -> None:
        if not len(ids_T):
            return
        effect64_T = effect_T.astype(np.float64)
        self.tokens += np.bincount(rows_T, minlength=len(self.names))
        self._above += np.bincount(rows_T[effect_T > self.delta], minlength=len(self.names))
        # `add.at` adds to the running sum one value at a time; `bincount` would start from 0 in each batch, so its
        # result would depend on the batch boundaries.
        np.add.at(self._effect, rows_T, effect64_T)
        np.add.at(self._gain, rows_T, factual_T.astype(np.float64) - counterfactual_T)
        bins_T = np.searchsorted(self._inner, effect_T, side="left")
        flat = np.bincount(rows_T * self._histogram_CB.shape[1] + bins_T, minlength=self._histogram_CB.size)
        self._histogram_CB += flat.reshape(self._histogram_CB.shape)
        missing = int(ids_T.max()) + 1 - len(self._count_V)
        if missing > 0:
            self._count_V = np.pad(self._count_V, (0, missing))
            self._effect_V = np.pad(self._effect_V, (0, missing))
        np.add.at(self._count_V, ids_T, 1)
        np.add.at(self._effect_V, ids_T, effect64_T)

    def part(self, name: str, rows: slice) -> CategoryEffects:
        """Return the effects of the categories at these positions, under a name."""
        tokens = int(self.tokens[rows].sum())
        return CategoryEffects(
            category=name,
            tokens=tokens,
            preference_tokens=int(self._above[rows].sum()),
            mean_effect=float(self._effect[rows].sum()) / max(1, tokens),
            mean_logp_gain=float(self._gain[rows].sum()) / max(1, tokens),
            histogram=tuple(self._histogram_CB[rows].sum(axis=0).tolist()),
        )

    def top_tokens(self, min_count: int) -> tuple[TopToken, ...]:
        """Return the tokens with the highest mean effect, the lowest id first among equals."""
        mean_V = self._effect_V / np.maximum(1, self._count_V)
        ids = np.flatnonzero((self._count_V >= min_count) & (mean_V > 0))
        best = ids[np.argsort(-mean_V[ids], kind="stable")][:TOP_TOKENS].tolist()
        return tuple(TopToken(token, int(self._count_V[token]), float(mean_V[token])) for token in best)


Key = tuple[float, str]
"""(−score, example id): the smallest comes first."""


class _Candidates:
    """Answers of one category that may be shown.

    As many users as shown answers are enough, because until the last answer is chosen, one of them has none.
    """

    def __init__(self, size: int) -> None:
        self.of_user: dict[str, list[tuple[Key, ScoredAnswer]]] = {}
        self._size = size
        self._worst: Key | None = None  # of the users' best answers, once there are enough users

    def accepts(self, key: Key) -> bool:
        """Return whether an answer may be shown, before its tokens are copied."""
        return self._size > 0 and (self._worst is None or key < self._worst)

    def add(self, key: Key, answer: ScoredAnswer) -> None:
        """Add an answer, and remove answers that can no longer be shown."""
        own = self.of_user.setdefault(user_of(answer.example_id), [])
        own.append((key, answer))
        own.sort(key=lambda candidate: candidate[0])
        del own[self._size :]
        if len(self.of_user) > self._size:
            del self.of_user[max(self.of_user, key=lambda user: self.of_user[user][0][0])]
        if len(self.of_user) == self._size:
            self._worst = max(own[0][0] for own in self.of_user.values())


def user_of(example_id: str) -> str:
    """Return the category and user in an example's id, which is `CATEGORY:USER:NUMBER`."""
    return example_id.rpartition(":")[0]


def _in_turn(candidates: Iterable[_Candidates], answers: int) -> tuple[ScoredAnswer, ...]:
    """Return the answers to show, which the categories choose in turn by the rule of `summarise`."""
    left = [{user: list(own) for user, own in category.of_user.items()} for category in candidates]
    times = Counter[str]()
    chosen: list[ScoredAnswer] = []
    while any(left):
        for users in left:
            if not users or len(chosen) == answers:
                continue
            user = min(users, key=lambda user: (times[user], users[user][0][0]))
            chosen.append(users[user].pop(0)[1])
            times[user] += 1
            if not users[user]:
                del users[user]
        if len(chosen) == answers:
            break
    return tuple(chosen)
