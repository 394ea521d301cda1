"""Settings of the score stage: causal effects, and the weights derived from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nextquill_core.config.base import OPERATIONAL, AutoCount, Positive, Section


class ScoreConfig(Section):
    """Causal effects of every ground-truth token, under θ0 or under adapters that were trained without the user."""

    effect_source: Literal["initial", "adapter", "trained"] = "initial"
    """model that scores: initial: θ0; adapter: θ0 with an adapter that was trained as `contextsft` on the users of the
    other folds (cross-fitting); trained: the same adapter of all users, which has seen the examples that it scores; see
    docs/explanation/scoring.md"""
    # All trainings together pass over the data folds - 1 times, so two folds cost as much as training one method.
    folds: Annotated[int, Field(ge=2)] = 2
    """number of folds of the users, with one adapter each, under effect_source adapter and for crossfit in
    evaluate.preference_tokens"""
    batch_tokens: Annotated[Positive, OPERATIONAL] = 16384
    """token budget of one forward pass, also for the likelihoods and text vectors of evaluate"""
    launcher: Annotated[Literal["local", "ray"], OPERATIONAL] = "local"
    """where workers run: local: processes of this machine; ray: Prefect tasks on Ray"""
    workers: Annotated[AutoCount, OPERATIONAL] = "auto"
    """number of scoring workers; auto: one per accelerator, or one"""
    ray_address: Annotated[str | None, OPERATIONAL] = None
    """address of a running Ray, ray://HOST:PORT; null: start one here"""

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the settings that decide the effects; the number of folds only if there are folds."""
        values = super().fingerprint_fields()
        if self.effect_source != "adapter":
            del values["folds"]
        return values


class WeightsConfig(Section):
    """Eq. 3: ω = high where the effect exceeds delta, else low; or another policy, see docs/how-to/extend.md."""

    policy: str = "threshold"
    """weight policy: threshold: Eq. 3; soft: Eq. 3 with a smooth step; perce: clipped log-ratio; random: those of
    threshold at random places within each example; grounded: high where the token's word occurs in the shown history;
    or the name of one that another package adds"""
    options: dict[str, float] = {}
    """settings of the policy besides delta, high and low: soft: temperature; perce: floor, ceiling; random: seed;
    grounded: function_words, names, item"""
    delta: Annotated[float, Field(ge=-1, le=1)] = 0.05
    """threshold δ of the effect, a difference of probabilities"""
    high: Annotated[float, Field(ge=0)] = 0.9
    """weight λ of preference tokens"""
    low: Annotated[float, Field(ge=0)] = 0.1
    """weight ε of the other tokens"""
