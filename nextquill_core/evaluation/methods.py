"""The methods of the comparison, in one table: what history goes in × how it is trained.

Decoding is the same for all and comes from the preset. Adding a method is adding a row.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from nextquill_core.errors import UserError


@dataclass(frozen=True)
class Training:
    """How an adapter is trained: the four settings of one loss.

    Attributes:
        weighted: Use the stored preference weights ω; otherwise ω = 1.
        causal: Add α·L_p.
    """

    weighted: bool
    causal: bool


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        history: Whether past reviews are shown (the newest, up to `prompt.max_history`).
        training: None for the base model as it is.
    """

    name: str
    summary: str
    history: bool
    training: Training | None = None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("qwen", "the base model, no history", history=False),
        Method("latestk", "the base model with the newest past reviews", history=True),
        Method("sft", "LoRA on query → review, no history", False, Training(weighted=False, causal=False)),
        Method("contextsft", "LoRA on query and history → review", True, Training(weighted=False, causal=False)),
        Method(
            "causal-only", "contextsft + α·L_p, every token weighted 1", True, Training(weighted=False, causal=True)
        ),
        Method("norm-only", "preference-weighted L_n alone (α = 0)", True, Training(weighted=True, causal=False)),
        Method("nextquill", "preference-weighted L_n + α·L_p", True, Training(weighted=True, causal=True)),
    )
}


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        UserError: There is none; the nearest names are told.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        raise UserError(
            f"no method {name!r}", remedy=f"did you mean {near[0]!r}?" if near else "see `nextquill methods`"
        )
    return METHODS[name]
