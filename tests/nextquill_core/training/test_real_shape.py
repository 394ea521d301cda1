"""Two LoRA steps on Qwen2.5-3B's shape in half precision with gradient checkpointing: they fit, and they learn."""

from __future__ import annotations

import resource
import time

import pytest
import torch

from nextquill_core.config import LoraSettings
from nextquill_core.training.data import TrainExample
from nextquill_core.training.engines import PlainEngine
from nextquill_core.training.losses import Denominators, PreferenceLoss, training_strategy
from nextquill_core.training.worker import with_adapter
from tests.nextquill_core.training.test_losses import ORDER
from tests.orders import changed
from tests.real_shape import full_length, qwen_3b, wanted


@pytest.mark.slow
@pytest.mark.timeout(7200)
@wanted("forty minutes")
def test_two_steps_on_a_pair_of_full_length() -> None:
    order = changed(ORDER, alpha=0.05, lora=LoraSettings().model_dump(), gradient_checkpointing=True)
    model = with_adapter(qwen_3b(), order).train()
    module = PreferenceLoss(model, order, training_strategy(model, order))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    engine = PlainEngine(module, torch.optim.AdamW(trained, lr=1e-4), max_grad_norm=1.0)
    pair = full_length(1)
    example = TrainExample(pair, [0.9 if place % 4 == 0 else 0.1 for place in range(len(pair.target))])
    losses = []
    for step in range(2):
        started = time.perf_counter()
        output = engine([example], Denominators(1.0, 1.0))
        engine.backward(output.loss)
        engine.step()
        losses.append(float(output.loss.detach()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"\nstep {step}: {time.perf_counter() - started:.0f} s, loss {losses[-1]:.4f}, peak {peak:.1f} GB")
    assert losses[1] < losses[0]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in trained)
