"""Prices of accelerators, for the money that `nextquill plan` shows."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nextquill_core.config.base import Section

Price = Annotated[float, Field(ge=0)]


class PricesConfig(Section):
    """What an hour of one accelerator costs, in US dollars. The defaults are round figures of ours and no offer."""

    a100: Price = 2.0
    """dollars an hour for an A100 with 80 GB"""
    h100: Price = 3.0
    """dollars an hour for an H100 with 80 GB"""
    h200: Price = 4.0
    """dollars an hour for an H200"""
