"""What a history changed in a text, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nextquill_core.records import TokenPair
from nextquill_core.tokens import PairEncoder, token_texts
from nextquill_core.writing.draft import ScoredToken

if TYPE_CHECKING:
    from torch import Tensor


def score_pairs(
    model: Any,
    encoder: PairEncoder,
    pairs: Sequence[TokenPair],
    batch_tokens: int,
    weights: Callable[[Any, Any], Sequence[float]] | None = None,
) -> list[tuple[ScoredToken, ...]]:
    """Return the answer tokens of pairs with their log-probabilities in both branches; a stop token has no text.

    Args:
        model: A causal language model in evaluation mode.
        encoder: The encoder of the pairs.
        pairs: The pairs.
        batch_tokens: Token positions of one forward pass.
        weights: Returns ω of a pair's tokens from both log-probabilities, (T,) each; None for no weights.
    """
    from nextquill_core.causal.scorer import Scorer

    scores = Scorer(model, batch_tokens).score(pairs)
    return [
        scored_tokens(encoder, pair, both, weights(*both) if weights else None)
        for pair, both in zip(pairs, scores, strict=True)
    ]


def scored_tokens(
    encoder: PairEncoder, pair: TokenPair, logps: tuple[Tensor, Tensor], weights: Sequence[float] | None = None
) -> tuple[ScoredToken, ...]:
    """Return the answer tokens of a pair with what both branches say of them; a stop token has no text.

    Args:
        encoder: The encoder of the pair.
        pair: The pair, with T answer tokens.
        logps: Log-probabilities with and without history, nats, (T,) each.
        weights: ω of each token; None for no weights.
    """
    from nextquill_core.causal.weights import token_effects

    texts = token_texts(encoder.tokenizer, pair.target)
    if pair.target[-1] == encoder.stop_id:
        texts[-1] = ""
    known: Sequence[float | None] = [None] * len(texts) if weights is None else weights
    columns = (
        texts,
        pair.target,
        logps[0].tolist(),
        logps[1].tolist(),
        token_effects(*logps).tolist(),
        known,
    )
    return tuple(ScoredToken(*values) for values in zip(*columns, strict=True))
