"""From stored effects to stored weights, by the policy that the configuration names.

Another package adds a policy by an entry point of the group `nextquill.weights`: `NAME = "package.module:function"`.
torch and Arrow are imported where weights are derived and no earlier, because a plan resolves the policy's settings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nextquill_core.causal.weights import BUILT_IN, Policy, TokenEffects
from nextquill_core.errors import UserError
from nextquill_core.plugins import Plugins, suggestion

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

POLICY, OPTIONS = "weights.policy", "weights.options"
POLICIES = Plugins[Policy]("weight policy", "nextquill.weights", POLICY, BUILT_IN)


def parameters(name: str) -> dict[str, float]:
    """The settings of a policy with their defaults, as its signature has them.

    Raises:
        UserError: There is no such policy, or it is not a function of effects and settings with numeric defaults.
    """
    policy = POLICIES.load(name)
    try:
        first, *settings = inspect.signature(policy).parameters.values()
    except (TypeError, ValueError):  # not a function, one whose signature nobody knows, or one without parameters
        raise _misshapen(name) from None
    if first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD) or not all(
        setting.kind is setting.KEYWORD_ONLY and isinstance(setting.default, int | float) for setting in settings
    ):
        raise _misshapen(name)
    return {setting.name: float(setting.default) for setting in settings}


def weight_settings(policy: str, options: Mapping[str, float], **shared: float) -> dict[str, Any]:
    """What decides the weights, and nothing else: the policy's name and its settings, as `weights_table` takes them.

    Args:
        policy: Its name.
        options: `weights.options`: settings that only some policies have. Those not given keep the policy's defaults.
        shared: The keys that the configuration always has (delta, high, low). A policy gets those that are among its
            parameters; the others have no say, so that a change of them makes no artifact stale.

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


def token_weights(effects: TokenEffects, *, policy: str, **settings: float) -> Tensor:
    """The weights that a policy gives to tokens, in fp32, shape (N,).

    Args:
        effects: Of N tokens, stored or of the model in training.
        policy: Its name.
        settings: Those of the policy; its defaults hold for the others.

    Raises:
        UserError: The policy is unknown, or does not give every token a finite weight of 0 or more.
    """
    return _checked(policy, POLICIES.load(policy)(effects, **settings), len(effects.effect))


def weights_table(effects: pa.Table, *, policy: str = "threshold", **settings: float) -> pa.Table:
    """A table of schema WEIGHTS from one of schema EFFECTS; the model is not needed.

    Args:
        effects: Any number of examples, also a slice of a table.
        policy: Its name.
        settings: Those of the policy; its defaults hold for the others.

    Raises:
        UserError: The policy is unknown, or does not give every token a finite weight of 0 or more.
    """
    import pyarrow as pa
    import torch

    from nextquill_core.schemas import WEIGHTS

    def flat(name: str) -> Tensor:
        return torch.tensor(effects[name].combine_chunks().flatten().to_numpy())

    stored = TokenEffects(flat("logp_factual"), flat("logp_counterfactual"), flat("effect"))
    weight = token_weights(stored, policy=policy, **settings)
    lengths = effects["effect"].combine_chunks().value_lengths().to_numpy()
    offsets = pa.array([0, *lengths.cumsum()], type=pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(weight.numpy()))
    return pa.table({"example_id": effects["example_id"], "weight": lists}, schema=WEIGHTS)


def _checked(name: str, weight: Any, tokens: int) -> Tensor:
    """The weights in fp32, if they can be used: another package's policy may return anything."""
    from torch import Tensor

    if not isinstance(weight, Tensor) or weight.shape != (tokens,):
        given = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        remedy = "it must return a tensor with a weight a token"
        raise UserError(f"policy `{name}` gave {given} for {tokens} tokens", POLICY, remedy)
    checked = weight.float()
    bad = checked[~(checked.isfinite() & (checked >= 0))]
    if len(bad):
        remedy = "weights are finite and not negative; look at its settings"
        raise UserError(f"policy `{name}` gave {len(bad)} of {tokens} tokens a weight like {bad[0]:g}", POLICY, remedy)
    return checked


def _misshapen(name: str) -> UserError:
    remedy = "give a function of stored effects whose settings are keyword-only and have numbers as defaults"
    return UserError(f"`{name}` is not a weight policy", POLICY, remedy)
