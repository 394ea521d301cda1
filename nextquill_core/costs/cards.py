"""Accelerators by their data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """An accelerator by its data sheet.

    Attributes:
        name: Its name, as it occurs in the name that the driver gives.
        products: Operations per second in dense bf16 products.
        bandwidth: Bytes per second from its memory.
        memory: Bytes of its memory.
    """

    name: str
    products: float
    bandwidth: float
    memory: float


CARDS = {
    card.name: card
    for card in (
        Card("A100", 312e12, 2.04e12, 80e9),
        Card("H100", 989e12, 3.35e12, 80e9),
        Card("H200", 989e12, 4.8e12, 141e9),
        Card("L40S", 362e12, 0.864e12, 48e9),
        Card("B200", 2250e12, 8.0e12, 180e9),
    )
}
"""Cards by name; of the A100 and the H100 the ones with 80 GB."""
PLANNED = ("A100", "H100", "H200")
"""The cards that `nextquill plan` shows."""
