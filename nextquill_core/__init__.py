"""The method: data, causal effects, losses, training, evaluation. Never imports Prefect.

`import nextquill_core as nq` gives notebooks and programs a small front, loaded when it is used: `nq.open`, `nq.score`,
`nq.nextquill_loss`, `nq.Writer` and what they return; see docs/reference/api.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextquill_core.api.opened import Opened, StoredTables, open
    from nextquill_core.api.scoring import ScoredReview, score
    from nextquill_core.errors import UserError
    from nextquill_core.records import Item, Review
    from nextquill_core.training.losses import nextquill_loss
    from nextquill_core.writing.draft import Draft, ScoredToken
    from nextquill_core.writing.writer import Writer

__all__ = [
    "Draft",
    "Item",
    "Opened",
    "Review",
    "ScoredReview",
    "ScoredToken",
    "StoredTables",
    "UserError",
    "Writer",
    "nextquill_loss",
    "open",
    "score",
]
_HOMES = {
    "Draft": "nextquill_core.writing.draft",
    "Item": "nextquill_core.records",
    "Opened": "nextquill_core.api.opened",
    "Review": "nextquill_core.records",
    "ScoredReview": "nextquill_core.api.scoring",
    "ScoredToken": "nextquill_core.writing.draft",
    "StoredTables": "nextquill_core.api.opened",
    "UserError": "nextquill_core.errors",
    "Writer": "nextquill_core.writing.writer",
    "nextquill_loss": "nextquill_core.training.losses",
    "open": "nextquill_core.api.opened",
    "score": "nextquill_core.api.scoring",
}
"""The modules that define the names of the front."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
