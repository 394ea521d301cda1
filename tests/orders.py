"""Small training orders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextquill_core.config import LoraSettings, ModelConfig, PromptConfig, TrainConfig
from nextquill_core.orders import TrainOrder

TRAIN = TrainConfig(
    alpha=0.05, epochs=1, learning_rate=1e-3, weight_decay=0.0, warmup_ratio=0.0, global_batch=4, batch_tokens=1000,
    checkpoint_every=10, checkpoint_minutes=None, keep_checkpoints=1, max_loss_ratio=None, val_every=0,
    lora=LoraSettings(r=4, alpha=8, dropout=0.0),
)  # fmt: skip


def train_order(
    folder: Path, model: str = "./nowhere", sequences: Path = Path("nowhere"), **changes: Any
) -> TrainOrder:
    """Return an order of one epoch in steps of four examples, without dropout, weights or validation.

    Args:
        folder: Output folder of the run.
        model: Folder of the base model.
        sequences: Ingest artifact.
        changes: As for `changed`.
    """
    order = TrainOrder(
        output=folder,
        sequences=sequences,
        model=ModelConfig(name_or_path=model, dtype="float32"),
        prompt=PromptConfig(max_history=2, max_prompt_tokens=512, max_target_tokens=96, template="plain"),
        train=TRAIN,
        seed=0,
        weighted=False,
    )
    return changed(order, **changes)


def changed(order: TrainOrder, **changes: Any) -> TrainOrder:
    """Return an order with other values.

    Args:
        order: The order to change.
        changes: Values of the order or of its `train` section by key; a dict changes single keys of a section.
    """
    values = order.model_dump()
    for key, value in changes.items():
        section = values["train"] if key in TrainConfig.model_fields else values
        merges = isinstance(value, dict) and isinstance(section[key], dict)
        section[key] = section[key] | value if merges else value
    return TrainOrder.model_validate(values)
