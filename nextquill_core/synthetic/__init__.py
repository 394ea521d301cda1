"""A seeded world of reviewers with known tastes, in the Amazon Reviews 2023 layout, with exact causal effects."""

from nextquill_core.synthetic.sample import SampleSummary, write_sample

__all__ = ["SampleSummary", "write_sample"]
