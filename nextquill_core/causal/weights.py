"""Causal effects (Eq. 4) and preference weights (Eq. 3): how much each ground-truth token counts in the losses.

A weight policy is a function from effects to one weight per token; its settings are keyword-only and have defaults. A
policy with a second positional parameter also gets the answers that the tokens make up (`Answers`): their examples, and
on request their texts and the history that their prompts show. `BUILT_IN` registers a policy by name. Another package
adds one by an entry point of the group `nextquill.weights`: `NAME = "package.module:function"`. torch and Arrow are
imported only where weights are derived, because a plan reads the policies' names and settings without them.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from nextquill_core.causal.grounding import grounded
from nextquill_core.errors import ModelError, UserError
from nextquill_core.plugins import Plugins, suggestion

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from nextquill_core.records import ShownAnswer


def token_effects(logp_factual: Tensor, logp_counterfactual: Tensor) -> Tensor:
    """Return effect_t = p(y_t | x, h, y_<t) − p(y_t | x, ∅, y_<t).

    Args:
        logp_factual: Log-probabilities with history, nats, any shape.
        logp_counterfactual: Log-probabilities without history, nats, same shape.

    Returns:
        A difference of **probabilities** in [−1, 1], same shape.
    """
    return logp_factual.exp() - logp_counterfactual.exp()


Policy: TypeAlias = "Callable[..., Tensor]"
LookUp: TypeAlias = "Callable[[Sequence[str]], Sequence[ShownAnswer]]"
"""Returns the answers of the examples with these ids, in their order."""


@dataclass(frozen=True, eq=False)
class TokenEffects:
    """Effects of N ground-truth tokens of any number of examples; fp32, shape (N,) each.

    Stored effects are on the CPU, those of the model in training on its device.

    Attributes:
        logp_factual: log p(y_t | x, h, y_<t), nats.
        logp_counterfactual: log p(y_t | x, ∅, y_<t), nats.
        effect: The difference of the two **probabilities** (Eq. 4), in [−1, 1].
    """

    logp_factual: Tensor
    logp_counterfactual: Tensor
    effect: Tensor


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers that N tokens make up, one after the other: for policies that read more than effects.

    Only stored effects have them. A policy must give an answer the same weights whichever other answers are beside it,
    because these depend on the shard.

    Attributes:
        example_ids: The examples.
        target_ids: Token ids of each answer.
        look_up: Reads what `shown` returns.
    """

    example_ids: Sequence[str]
    target_ids: Sequence[Sequence[int]]
    look_up: LookUp

    @cached_property
    def shown(self) -> Sequence[ShownAnswer]:
        """The text of each answer, the place of its tokens in it, and the history that its prompt shows.

        Raises:
            ModelError: The stored effects are those of other tokens.
        """
        found = self.look_up(self.example_ids)
        for one, example_id, ids in zip(found, self.example_ids, self.target_ids, strict=True):
            if (one.example_id, list(one.target_ids)) != (example_id, list(ids)):
                raise ModelError(
                    f"the stored effects of {example_id} are of other tokens", remedy="run `nextquill score --force`"
                )
        return found


def preference_weights(effect: Tensor, *, delta: float, high: float, low: float) -> Tensor:
    """Return the weights of Eq. 3: ω_t = λ where effect_t > δ, else ε.

    Args:
        effect: Differences of probabilities, any shape.
        delta: δ, a difference of probabilities; an effect of exactly δ is not above it.
        high: λ, the weight of tokens with an effect above δ.
        low: ε, the weight of the others.

    Returns:
        ω with the shape and dtype of `effect`.
    """
    return effect.new_full(effect.shape, low).masked_fill(effect > delta, high)


def threshold(effects: TokenEffects, *, delta: float = 0.05, high: float = 0.9, low: float = 0.1) -> Tensor:
    """Return the paper's weights (Eq. 3): two values with a step between them.

    Args:
        effects: Effects of N tokens.
        delta: δ, a difference of probabilities.
        high: λ, the weight of tokens with an effect above δ.
        low: ε, the weight of the others.

    Returns:
        ω, shape (N,).
    """
    return preference_weights(effects.effect, delta=delta, high=high, low=low)


def perce(effects: TokenEffects, *, floor: float = 0.8, ceiling: float = 5.0) -> Tensor:
    """Return PerCE's weights: ω_t = clip(log p(y_t | x, h, y_<t) − log p(y_t | x, ∅, y_<t), floor, ceiling).

    Args:
        effects: Effects of N tokens.
        floor: Smallest weight, which tokens have that history makes less likely or hardly more likely.
        ceiling: Largest weight.

    Returns:
        ω, shape (N,).

    Raises:
        UserError: The floor is above the ceiling.
    """
    if floor > ceiling:
        raise UserError(f"floor {floor:g} is above ceiling {ceiling:g}", "weights.options", "exchange them")
    return (effects.logp_factual - effects.logp_counterfactual).clamp(floor, ceiling)


def soft(
    effects: TokenEffects, *, delta: float = 0.05, high: float = 0.9, low: float = 0.1, temperature: float = 0.02
) -> Tensor:
    """Return smooth weights: ω_t = ε + (λ − ε) · sigmoid((effect_t − δ) / temperature), Eq. 3 without the step.

    Two tokens whose effects hardly differ have nearly the same weight. The default temperature keeps the meaning of
    Eq. 3: with δ = 0.05, a token without effect is 8 % of the way from ε to λ, one with an effect of 2δ is 92 %.

    Args:
        effects: Effects of N tokens.
        delta: δ, the effect at which ω is halfway between ε and λ.
        high: λ, the limit of ω far above δ.
        low: ε, the limit of ω far below δ.
        temperature: Width of the transition, a difference of probabilities; towards 0 it becomes Eq. 3.

    Returns:
        ω, shape (N,).

    Raises:
        UserError: The temperature is not positive.
    """
    if temperature <= 0:
        raise UserError(f"temperature {temperature:g} is not positive", "weights.options", "0.02 is the default")
    # In double precision, so that rounding to fp32 at the end cannot exceed `low` and `high`.
    share = ((effects.effect.double() - delta) / temperature).sigmoid()
    return (low + (high - low) * share).float()


def at_random_places(
    effects: TokenEffects,
    answers: Answers,
    *,
    delta: float = 0.05,
    high: float = 0.9,
    low: float = 0.1,
    seed: float = 0.0,
) -> Tensor:
    """Return the weights of `threshold`, at random places within each example: a control for where they stand.

    Every example keeps its share of λ, and with it Σω and every normalisation.

    Args:
        effects: Effects of N tokens.
        answers: The examples that the tokens belong to.
        delta: δ, a difference of probabilities.
        high: λ, the weight of as many tokens as have an effect above δ.
        low: ε, the weight of the others.
        seed: A whole number; another one gives other places.

    Returns:
        ω, shape (N,).

    Raises:
        UserError: The seed is not a whole number.
    """
    if not float(seed).is_integer():
        raise UserError(f"seed {seed:g} is not a whole number", "weights.options", "set one such as 1")
    places: list[int] = []
    for example_id, ids in zip(answers.example_ids, answers.target_ids, strict=True):
        start = len(places)
        places += [start + place for place in random_order(example_id, len(ids), int(seed))]
    weight = preference_weights(effects.effect, delta=delta, high=high, low=low)
    return weight[weight.new_tensor(places).long()]


def random_order(example_id: str, count: int, seed: int) -> list[int]:
    """Return the numbers below `count` in a random order, the same with every version of every library.

    Args:
        example_id: The example whose tokens are ordered; it decides the order together with the seed.
        count: Number of tokens.
        seed: Seed of the policy.
    """
    drawn = hashlib.shake_256(f"{seed}:{example_id}".encode()).digest(8 * count)
    return sorted(range(count), key=lambda place: drawn[8 * place : 8 * place + 8])


BUILT_IN: dict[str, Policy] = {
    "threshold": threshold,
    "perce": perce,
    "soft": soft,
    "random": at_random_places,
    "grounded": grounded,
}


POLICY, OPTIONS = "weights.policy", "weights.options"
POLICIES = Plugins[Policy]("weight policy", "nextquill.weights", POLICY, BUILT_IN)


def parameters(name: str) -> dict[str, float]:
    """Return the settings of a policy with their defaults, from its signature.

    Raises:
        UserError: There is no such policy, or it is not a function of effects and settings with numeric defaults.
    """
    return _signature(name)[1]


def asks_for_answers(name: str) -> bool:
    """Return whether a policy reads the answers beside the effects, so that it works on stored effects alone.

    Raises:
        UserError: As for `parameters`.
    """
    return _signature(name)[0] > 1


def _signature(name: str) -> tuple[int, dict[str, float]]:
    """Return how many positional parameters a policy has, and its settings with their defaults."""
    policy = POLICIES.load(name)
    try:
        found = list(inspect.signature(policy).parameters.values())
    except (TypeError, ValueError):  # not a function, or no known signature
        raise _misshapen(name) from None
    settings = [one for one in found if one.kind is one.KEYWORD_ONLY]
    read = [one for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if (
        len(read) + len(settings) < len(found)
        or len(read) not in (1, 2)
        or any(one.default is not one.empty for one in read[1:])
        or not all(isinstance(one.default, int | float) for one in settings)
    ):
        raise _misshapen(name)
    return len(read), {setting.name: float(setting.default) for setting in settings}


def weight_settings(policy: str, options: Mapping[str, float], **shared: float) -> dict[str, Any]:
    """Return what decides the weights: the policy's name and its settings, as arguments of `weights_table`.

    Args:
        policy: Name of the policy.
        options: `weights.options`: settings that only some policies have. Missing ones keep the policy's defaults.
        shared: Settings that the configuration always has (delta, high, low). A policy gets those that are among its
            parameters; a change of the others makes no artifact stale.

    Raises:
        UserError: The policy is unknown or cannot be used, it does not know an option, or a value is not finite.
    """
    defaults = parameters(policy)
    known = [name for name in defaults if name not in shared]
    for name in options:
        if name in shared:
            raise UserError(f"`{name}` is not an option", OPTIONS, f"set `weights.{name}`")
        if name not in known:
            remedy = suggestion(name, known) if known else f"`{policy}` takes none"
            raise UserError(f"unknown option `{name}`", OPTIONS, remedy)
    settings = {name: float({**shared, **options}.get(name, default)) for name, default in defaults.items()}
    for name, value in settings.items():
        if not math.isfinite(value):
            where = f"weights.{name}" if name in shared else f"{OPTIONS}.{name}"
            raise UserError("not a finite number", where, f"got {value!r}")
    return {"policy": policy, **settings}


def token_weights(
    effects: TokenEffects, answers: Answers | None = None, /, *, policy: str, **settings: float
) -> Tensor:
    """Return the weights of N tokens under a policy, in fp32, shape (N,).

    Args:
        effects: Effects of the tokens, stored ones or those of the model in training.
        answers: The answers that the tokens make up, for a policy that asks for them; None for a model in training.
        policy: Name of the policy.
        settings: Settings of the policy; missing ones have its defaults.

    Raises:
        UserError: The policy is unknown, or does not give every token a finite weight of 0 or more.
    """
    read = (effects, answers) if asks_for_answers(policy) else (effects,)
    return _checked(policy, POLICIES.load(policy)(*read, **settings), len(effects.effect))


def weights_table(
    effects: pa.Table, look_up: LookUp | None = None, /, *, policy: str = "threshold", **settings: float
) -> pa.Table:
    """Return a table of schema WEIGHTS from one of schema EFFECTS; no model is needed.

    Args:
        effects: Effects of any number of examples, also a slice of a table.
        look_up: Reads the answers for a policy that asks for their texts or history; None where they are not at hand.
        policy: Name of the policy.
        settings: Settings of the policy; missing ones have its defaults.

    Raises:
        UserError: The policy is unknown, or does not give every token a finite weight of 0 or more.
    """
    import pyarrow as pa
    import torch

    from nextquill_core.schemas import WEIGHTS

    def flat(name: str) -> Tensor:
        return torch.tensor(effects[name].combine_chunks().flatten().to_numpy())

    stored = TokenEffects(flat("logp_factual"), flat("logp_counterfactual"), flat("effect"))
    answers = None
    if asks_for_answers(policy):
        ids, targets = (effects[name].to_pylist() for name in ("example_id", "target_ids"))
        answers = Answers(ids, targets, look_up or _no_texts)
    weight = token_weights(stored, answers, policy=policy, **settings)
    lengths = effects["effect"].combine_chunks().value_lengths().to_numpy()
    offsets = pa.array([0, *lengths.cumsum()], type=pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(weight.numpy()))
    return pa.table({"example_id": effects["example_id"], "weight": lists}, schema=WEIGHTS)


def _checked(name: str, weight: Any, tokens: int) -> Tensor:
    """Return the weights in fp32 if they are valid, since another package's policy may return anything."""
    from torch import Tensor

    if not isinstance(weight, Tensor) or weight.shape != (tokens,):
        given = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        remedy = "return a tensor with one weight per token"
        raise UserError(f"policy `{name}` gave {given} for {tokens} tokens", POLICY, remedy)
    checked = weight.float()
    bad = checked[~(checked.isfinite() & (checked >= 0))]
    if len(bad):
        remedy = "weights must be finite and not negative: check the settings of the policy"
        raise UserError(f"policy `{name}` gave {len(bad)} of {tokens} tokens a weight like {bad[0]:g}", POLICY, remedy)
    return checked


def _no_texts(example_ids: Sequence[str]) -> Sequence[ShownAnswer]:
    raise ValueError(f"the policy reads the texts of {len(example_ids)} answers, and nothing was given to look them up")


def _misshapen(name: str) -> UserError:
    remedy = (
        "give a function of effects, or of effects and answers, whose settings are keyword-only and have numbers as "
        "defaults"
    )
    return UserError(f"`{name}` is not a weight policy", POLICY, remedy)
