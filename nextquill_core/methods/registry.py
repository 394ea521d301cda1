"""The table of methods: what of the history each shows, how it is trained, and how it is decoded.

A new method is one row here, or an entry point of the group `nextquill.methods` in another package; see
docs/how-to/extend.md. The configuration reads this table to check names, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from nextquill_core.plugins import Plugins

if TYPE_CHECKING:
    from nextquill_core.records import Example, Review

Settings = TypeVar("Settings", bound=BaseModel)

BASE_ENCODER = "base"
"""Name of an encoder: the mean of θ0's own final hidden states."""

BASE_MODEL = "base"
"""Key of `evaluate.server.models` for the initial model, which generates for every method that does not train."""


@dataclass(frozen=True)
class Training:
    """How an adapter is trained: the terms of the loss.

    Attributes:
        weighted: Use preference weights ω; otherwise ω = 1.
        causal: Add α·L_p.
        policy: Weight policy that computes ω; None for the configured one.
        fixed: Settings of `train` that belong to the method and override the configuration.
    """

    weighted: bool
    causal: bool
    policy: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, configured: Settings) -> Settings:
        """Return the `train` section that this method is trained with."""
        return type(configured).model_validate({**configured.model_dump(), **self.fixed})


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: Name in `evaluate.methods`.
        summary: One line for people.
        shown: What of the user's history the prompt shows: `nothing`, the `newest` reviews, those nearest to the query
            by `contriever` or `bm25` (all up to `prompt.max_history`), or a `summary` of the older reviews beside the
            newest. A method with `select` names its own way; the name enters fingerprints.
        training: None for the base model without an adapter.
        personal: One more adapter per user, trained on the user's own history on top of an adapter of other users.
        steered: Decoding is steered away from the distribution without history (CoS).
        select: Chooses the reviews to show: (example, number) to at most that many reviews of the example's history,
            oldest first. Only for methods that do not train.
    """

    name: str
    summary: str
    shown: str
    training: Training | None = None
    personal: bool = False
    steered: bool = False
    select: Callable[[Example, int], Sequence[Review]] | None = None

    @property
    def history(self) -> bool:
        """Whether the prompt shows anything of the history."""
        return self.shown != "nothing"


SHOWN = ("nothing", "newest", "contriever", "bm25", "summary")
"""Values of `Method.shown` that need no `select`."""

PLAIN = Training(weighted=False, causal=False)
OFFICIAL = Training(
    weighted=True,
    causal=True,
    fixed={
        "alpha": 0.1,
        "normalization": "sample_weight",
        "weights_from": "live",
        "causal_loss": {"weighted": False, "target": "label", "counterfactual_grad": "through"},
    },
)
"""The definition in the official code (juntaoyou/NextQuill, May 2025), which is not the paper's in these settings."""


def _wrong(name: str, found: Any) -> str:
    """Return what is wrong with a method of another package, or ""."""
    if not isinstance(found, Method):
        return "is not a Method"
    if found.name != name:
        return f"is registered under this name but named `{found.name}`"
    if (found.select is None) != (found.shown in SHOWN):
        return f"shows `{found.shown}`: give it `select`, or one of {', '.join(SHOWN)}"
    if found.training and found.shown not in ("nothing", "newest"):
        return "trains, which needs shown=`nothing` or `newest`"
    return ""


METHODS = Plugins[Method](
    "method",
    "nextquill.methods",
    "evaluate.methods",
    {
        method.name: method
        for method in (
            Method("qwen", "the base model, no history", "nothing"),
            Method(
                "contriever", "the base model with the past reviews nearest to the query by Contriever", "contriever"
            ),
            Method("bm25", "the base model with the past reviews nearest to the query by BM25", "bm25"),
            Method("latestk", "the base model with the newest past reviews", "newest"),
            Method("llm-trsr", "the base model with a running summary and the newest past reviews", "summary"),
            Method("cos", "latestk, decoded away from the base model without history (CoS)", "newest", steered=True),
            Method("sft", "LoRA on query → review, no history", "nothing", PLAIN),
            Method(
                "oppu", "sft on other users, then one LoRA a user on the user's own reviews", "nothing", personal=True
            ),
            Method("contextsft", "LoRA on query and history → review", "newest", PLAIN),
            Method(
                "perce",
                "contextsft, tokens weighted by their clipped log-ratio with and without history",
                "newest",
                Training(weighted=True, causal=False, policy="perce"),
            ),
            Method("causal-only", "contextsft + α·L_p, every token weighted 1", "newest", Training(False, causal=True)),
            Method("norm-only", "preference-weighted L_n alone (α = 0)", "newest", Training(True, causal=False)),
            Method("nextquill", "preference-weighted L_n + α·L_p", "newest", Training(True, causal=True)),
            Method(
                "nextquill-official",
                "as the official code: weights from the model in training, L_p unweighted, α 0.1",
                "newest",
                OFFICIAL,
            ),
        )
    },
    check=_wrong,
)


def served_key(method: Method, models: Mapping[str, str]) -> str:
    """Return the key of `evaluate.server.models` that names the server's model of this method."""
    return method.name if method.training or method.name in models else BASE_MODEL


def served_model(method: Method, models: Mapping[str, str]) -> str | None:
    """Return the name of the server's model that generates for a method, or None where the settings name none.

    Args:
        method: A row of the table.
        models: `evaluate.server.models`.
    """
    return models.get(served_key(method, models))
