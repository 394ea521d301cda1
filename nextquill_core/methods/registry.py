"""The methods of the comparison, in one table: what goes in × how it is trained × how it is decoded.

Adding a method is adding a row; docs/how-to/extend.md says what a new way of choosing history takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nextquill_core.errors import UserError
from nextquill_core.plugins import suggestion

if TYPE_CHECKING:
    from nextquill_core.config import TrainConfig

Shown = Literal["nothing", "newest", "contriever", "bm25", "summary"]
"""What of a user's past reviews goes in: none, the newest, those most like the query by a dense or a sparse measure
(all up to `prompt.max_history`), or a summary of the older ones and the newest as they are."""


BASE_ENCODER = "base"
"""As the name of an encoder: the mean of θ0's own final hidden states."""


@dataclass(frozen=True)
class Training:
    """How an adapter is trained: the settings of one loss.

    Attributes:
        weighted: Use preference weights ω; otherwise ω = 1.
        causal: Add α·L_p.
        policy: The weight policy that makes ω; None for the configured one.
        fixed: Settings of `train` that belong to the method, whatever the configuration says.
    """

    weighted: bool
    causal: bool
    policy: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, configured: TrainConfig) -> TrainConfig:
        """The `train` section that this method is trained by."""
        return type(configured).model_validate({**configured.model_dump(), **self.fixed})


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        training: None for the base model as it is.
        personal: One more adapter a user, on that user's own past reviews; the task adapter was trained on others.
        steered: Decoding goes away from what the model would write without history.
    """

    name: str
    summary: str
    shown: Shown
    training: Training | None = None
    personal: bool = False
    steered: bool = False

    @property
    def history(self) -> bool:
        """Whether anything of the past goes into the prompt."""
        return self.shown != "nothing"


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

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("qwen", "the base model, no history", "nothing"),
        Method("contriever", "the base model with the past reviews nearest to the query by Contriever", "contriever"),
        Method("bm25", "the base model with the past reviews nearest to the query by BM25", "bm25"),
        Method("latestk", "the base model with the newest past reviews", "newest"),
        Method("llm-trsr", "the base model with a running summary and the newest past reviews", "summary"),
        Method("cos", "latestk, decoded away from the base model without history (CoS)", "newest", steered=True),
        Method("sft", "LoRA on query → review, no history", "nothing", PLAIN),
        Method("oppu", "sft on other users, then one LoRA a user on the user's own reviews", "nothing", personal=True),
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
}


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        UserError: There is none; the nearest name is told.
    """
    if name not in METHODS:
        raise UserError(f"no method {name!r}", remedy=suggestion(name, METHODS) or "see `nextquill methods`")
    return METHODS[name]


BASE_MODEL = "base"
"""Key of `evaluate.server.models` for the initial model, which answers for every method that does not train."""


def served_key(method: Method, models: Mapping[str, str]) -> str:
    """Return the key of `evaluate.server.models` that names the server's model of this method."""
    return method.name if method.training or method.name in models else BASE_MODEL


def served_model(method: Method, models: Mapping[str, str]) -> str | None:
    """Return the name of the server's model that writes for a method, or None where the settings name none.

    Args:
        method: A row of the table.
        models: `evaluate.server.models`.
    """
    return models.get(served_key(method, models))
