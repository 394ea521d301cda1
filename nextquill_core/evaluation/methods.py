"""The methods of the comparison, in one table: what goes in × how it is trained × how it is decoded.

Adding a method is adding a row; docs/extending.md says what a new way of choosing history takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nextquill_core.errors import UserError
from nextquill_core.plugins import suggestion

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
    """

    weighted: bool
    causal: bool
    policy: str | None = None


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
