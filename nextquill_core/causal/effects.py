"""The data-side causal effect of history on a ground-truth token (Eq. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def token_effects(logp_factual: Tensor, logp_counterfactual: Tensor) -> Tensor:
    """Effect_t = p(y_t | x, h, y_<t) − p(y_t | x, ∅, y_<t), a difference of **probabilities** in [−1, 1].

    Args:
        logp_factual: Log-probabilities with history, nats, any shape.
        logp_counterfactual: The same without history, same shape.
    """
    return logp_factual.exp() - logp_counterfactual.exp()
