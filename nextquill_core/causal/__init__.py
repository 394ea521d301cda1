"""Causal effects of a user's history on each token, and the weights derived from them."""

from nextquill_core.causal.weights import TokenEffects, preference_weights, token_effects

__all__ = ["TokenEffects", "preference_weights", "token_effects"]
