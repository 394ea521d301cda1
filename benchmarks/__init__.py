"""Benchmarks; each prints JSON with ratios to the plain reference that it is compared with."""

from nextquill_core.environment import set_torch_variables

set_torch_variables()  # before a benchmark imports torch
