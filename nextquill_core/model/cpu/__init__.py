"""Faster computation on a CPU with the same results; other modules import from here alone.

| module | what it saves |
|---|---|
| `half` | matrix products in bfloat16 on a CPU without instructions for them |
| `lora_dropout` | memory that LoRA's dropout keeps for the backward pass, on any device |
| `recomputed` | memory that norms and activations keep for the backward pass |
| `feed_forward` | rows of the last layer that no one reads, and cache misses |
| `parallel_passes` | waiting at every matrix product, where threads share one forward pass |
| `allocator` | page faults |

`nextquill_core.environment` sets the variables that torch reads when it is imported. The tests compare each of these
with the plain computation.
"""

from typing import Any

from nextquill_core.model.cpu.allocator import keep_freed_memory
from nextquill_core.model.cpu.feed_forward import fast_feed_forward, feed_forward_parts, gated_forward
from nextquill_core.model.cpu.half import linear, product, use_fast_products
from nextquill_core.model.cpu.lora_dropout import use_lean_dropout
from nextquill_core.model.cpu.parallel_passes import completed, passes_at_once, side_by_side
from nextquill_core.model.cpu.recomputed import norms_of, recomputing

__all__ = [
    "completed",
    "fast_feed_forward",
    "feed_forward_parts",
    "gated_forward",
    "keep_freed_memory",
    "linear",
    "make_fast",
    "norms_of",
    "passes_at_once",
    "product",
    "recomputing",
    "side_by_side",
]


def make_fast(model: Any) -> Any:
    """Make a model's forward and backward passes cheaper in place, and return the model.

    Args:
        model: A base model, whose half-precision products are replaced on a CPU; or a PEFT model, whose LoRA dropout
            is replaced on any device.
    """
    if hasattr(model, "peft_config"):
        use_lean_dropout(model)
    elif next(model.parameters()).device.type == "cpu":
        use_fast_products(model)
    return model
