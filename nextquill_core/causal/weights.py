"""Preference weights: how much each ground-truth token counts in the losses.

A policy is one plain function: stored effects in, a weight a token out, its settings keyword-only and with defaults.
torch is not imported here: a plan reads the policies' names and settings, and tensors bring their own methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from nextquill_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Policy: TypeAlias = "Callable[..., Tensor]"


@dataclass(frozen=True, eq=False)
class TokenEffects:
    """Effects of N ground-truth tokens, those of many examples one after another; fp32, shape (N,).

    They are stored ones on the CPU, or, where weights come from the model in training, on its device.

    Attributes:
        logp_factual: log p(y_t | x, h, y_<t), nats.
        logp_counterfactual: log p(y_t | x, ∅, y_<t), nats.
        effect: The difference of the two **probabilities** (Eq. 4), in [−1, 1].
    """

    logp_factual: Tensor
    logp_counterfactual: Tensor
    effect: Tensor


def preference_weights(effect: Tensor, *, delta: float, high: float, low: float) -> Tensor:
    """Eq. 3: ω_t = λ where effect_t > δ, else ε; same shape and dtype as `effect`.

    Args:
        effect: Differences of probabilities.
        delta: δ; an effect of exactly δ is not above it.
        high: λ.
        low: ε.
    """
    return effect.new_full(effect.shape, low).masked_fill(effect > delta, high)


def threshold(effects: TokenEffects, *, delta: float = 0.05, high: float = 0.9, low: float = 0.1) -> Tensor:
    """The paper's (Eq. 3): two weights, and a step between them.

    Args:
        effects: Of N tokens.
        delta: δ, a difference of probabilities.
        high: λ, the weight of tokens with an effect above δ.
        low: ε, the weight of the others.

    Returns:
        ω, shape (N,).
    """
    return preference_weights(effects.effect, delta=delta, high=high, low=low)


def perce(effects: TokenEffects, *, floor: float = 0.8, ceiling: float = 5.0) -> Tensor:
    """PerCE: ω_t = clip(log p(y_t | x, h, y_<t) − log p(y_t | x, ∅, y_<t), floor, ceiling).

    Args:
        effects: Of N tokens.
        floor: The least weight; that of every token which history makes less likely, or hardly more.
        ceiling: The greatest weight.

    Returns:
        ω, shape (N,).

    Raises:
        UserError: The floor lies above the ceiling.
    """
    if floor > ceiling:
        raise UserError(f"floor {floor:g} is above ceiling {ceiling:g}", "weights.options", "exchange them")
    return (effects.logp_factual - effects.logp_counterfactual).clamp(floor, ceiling)


def soft(
    effects: TokenEffects, *, delta: float = 0.05, high: float = 0.9, low: float = 0.1, temperature: float = 0.02
) -> Tensor:
    """Eq. 3 without the step: ω_t = ε + (λ − ε) · sigmoid((effect_t − δ) / temperature).

    Two tokens whose effects hardly differ then weigh nearly the same. The default temperature keeps what Eq. 3 means:
    with δ = 0.05 a token without effect has gone 8 % of the way from ε to λ, one with an effect of 2δ 92 %.

    Args:
        effects: Of N tokens.
        delta: δ, the effect at which ω lies halfway.
        high: λ, which ω nears far above δ.
        low: ε, which ω nears far below δ.
        temperature: The width of the transition, a difference of probabilities; towards 0 it becomes Eq. 3.

    Returns:
        ω, shape (N,).

    Raises:
        UserError: The temperature is not positive.
    """
    if temperature <= 0:
        raise UserError(f"temperature {temperature:g} is not positive", "weights.options", "0.02 is the default")
    # In double precision, so that rounding to fp32 at the end cannot lead beyond `low` and `high`.
    share = ((effects.effect.double() - delta) / temperature).sigmoid()
    return (low + (high - low) * share).float()


BUILT_IN: dict[str, Policy] = {"threshold": threshold, "perce": perce, "soft": soft}
