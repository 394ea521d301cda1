"""Effects and the weights made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nextquill_core.config.base import OPERATIONAL, Section


class ScoreConfig(Section):
    """Causal effects of every ground-truth token, under θ0 or under models that have seen the data but not the user."""

    effect_source: Annotated[
        Literal["initial", "adapter"],
        Field(
            description="initial: θ0 scores; adapter: cross-fitted by user, θ0 with an adapter that was trained as "
            "`contextsft` on the users of the other folds; see docs/explanation/scoring.md"
        ),
    ] = "initial"
    # All trainings together pass over the data folds - 1 times, so two cost what one ordinary method costs.
    folds: Annotated[int, Field(ge=2, description="effect_source adapter: parts of the users, an adapter for each")] = 2
    batch_tokens: Annotated[
        int,
        Field(
            ge=1,
            description="token budget of one forward pass, in evaluate's likelihoods and vectors too",
            json_schema_extra=OPERATIONAL,
        ),
    ] = 16384
    launcher: Annotated[
        Literal["local", "ray"],
        Field(description="local: processes of this machine; ray: Prefect tasks on Ray", json_schema_extra=OPERATIONAL),
    ] = "local"
    workers: Annotated[
        int | Literal["auto"],
        Field(description="they share the work; auto: one an accelerator, or one", json_schema_extra=OPERATIONAL),
    ] = "auto"
    ray_address: Annotated[
        str | None, Field(description="ray://HOST:PORT; null: a Ray of its own here", json_schema_extra=OPERATIONAL)
    ] = None

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, workers: int | str) -> int | str:
        if isinstance(workers, int) and workers < 1:
            raise ValueError("must be `auto`, or 1 at least")
        return workers

    def semantic(self) -> dict[str, Any]:
        """The fields that decide the effects; the number of folds only where there are folds."""
        values = super().semantic()
        if self.effect_source == "initial":
            del values["folds"]
        return values


class WeightsConfig(Section):
    """Eq. 3: ω = high where the effect exceeds delta, else low; or another policy, see docs/how-to/extend.md."""

    policy: Annotated[
        str,
        Field(
            description="threshold: Eq. 3; soft: Eq. 3 with a smooth step; perce: clipped log-ratio; or one that "
            "another package adds"
        ),
    ] = "threshold"
    options: Annotated[
        dict[str, float],
        Field(description="settings of the policy beyond the keys below: soft: temperature; perce: floor, ceiling"),
    ] = {}
    delta: Annotated[float, Field(ge=-1, le=1, description="δ, a difference of probabilities")] = 0.05
    high: Annotated[float, Field(ge=0, description="λ, the weight of preference tokens")] = 0.9
    low: Annotated[float, Field(ge=0, description="ε, the weight of the other tokens")] = 0.1
