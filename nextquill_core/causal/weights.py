"""Preference weights: how much each ground-truth token counts in the losses."""

from __future__ import annotations

import torch
from torch import Tensor


def preference_weights(effect: Tensor, *, delta: float, high: float, low: float) -> Tensor:
    """Eq. 3: ω_t = λ where effect_t > δ, else ε; same shape and dtype as `effect`.

    Args:
        effect: Differences of probabilities.
        delta: δ; an effect of exactly δ is not above it.
        high: λ.
        low: ε.
    """
    return torch.where(effect > delta, high, low).to(effect.dtype)
