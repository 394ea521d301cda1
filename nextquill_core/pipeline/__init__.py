"""Which artifacts a configuration asks for, and what each of them depends on.

Everything here follows from the configuration and the digests of the raw files, without running a stage: so `status`,
`path` and reuse agree, and a changed field moves exactly the artifacts that it can change.
"""

from nextquill_core.pipeline.evaluation_plan import EvaluationPlan, Writing
from nextquill_core.pipeline.freshness import Freshness, State, freshness, outdated
from nextquill_core.pipeline.plan import FOLD_METHOD, Plan, make_plan, method_weights
from nextquill_core.pipeline.step import COMMANDS, REVISIONS, Step

__all__ = [
    "COMMANDS",
    "FOLD_METHOD",
    "REVISIONS",
    "EvaluationPlan",
    "Freshness",
    "Plan",
    "State",
    "Step",
    "Writing",
    "freshness",
    "make_plan",
    "method_weights",
    "outdated",
]
