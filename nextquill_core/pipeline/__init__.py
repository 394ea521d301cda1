"""The pipeline: which artifacts a configuration asks for, what each depends on, and how each is made.

The plan follows from the configuration and the digests of the raw files, without running a stage. So `status`, `path`
and reuse agree, and a changed setting changes exactly the artifacts that it can change.

- `step`: one artifact to make, and the table that says where and by which command each kind of it is made
- `plan`, `evaluation_plan`: the steps of a configuration
- `freshness`: whether the artifact of a step can be reused
- `run`: a configuration with its store and plan; finds, reuses and makes artifacts
- `ingest`, `score`, `train`, `evaluate`: what each stage does
- `methods`, `predict`: what methods show, need and generate with, and what they generate
- `report`, `model_card`: results as people read them; no number is made there
"""

from nextquill_core.pipeline.freshness import Freshness, FreshnessCache, freshness, outdated
from nextquill_core.pipeline.plan import Plan, make_plan, method_weights
from nextquill_core.pipeline.step import KINDS, Step, lineage

__all__ = [
    "KINDS",
    "Freshness",
    "FreshnessCache",
    "Plan",
    "Step",
    "freshness",
    "lineage",
    "make_plan",
    "method_weights",
    "outdated",
]
