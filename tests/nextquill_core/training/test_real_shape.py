"""LoRA steps on the shapes of real models: they fit, and they learn."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
import torch

from benchmarks.memory import ExtraMemory
from nextquill_core.config import LoraSettings
from nextquill_core.training.budget import loss_within_memory
from nextquill_core.training.data import TrainExample, micro_batches
from nextquill_core.training.engines import PlainEngine
from nextquill_core.training.losses import Denominators, PreferenceLoss, denominators, training_strategy
from nextquill_core.training.ranks import Writer
from nextquill_core.training.worker import with_adapter
from tests.nextquill_core.training.test_losses import ORDER
from tests.orders import changed
from tests.real_shape import full_length, qwen_3b, reviews_of_real_length, smollm2, wanted


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_step_of_a_small_model_stays_below_six_gigabytes(tmp_path: Path, alone: None) -> None:
    """SmolLM2-135M in single precision, with the default settings: what the step needs, libraries included."""
    lora = LoraSettings().model_dump()
    order = changed(ORDER, output=tmp_path, alpha=0.05, lora=lora, batch_tokens=8192, gradient_checkpointing="auto")
    memory = ExtraMemory()
    examples = [TrainExample(pair, [0.5] * len(pair.target)) for pair in reviews_of_real_length(2)]
    module = loss_within_memory(with_adapter(smollm2(), order).train(), order, examples, Writer(tmp_path, "cpu"))
    assert not module.order.train.checkpoints_activations
    micros = micro_batches(examples, module.order.train.batch_tokens, ranks=1)
    assert len(micros) == len(examples)
    for micro in micros:
        module(micro.examples, denominators(examples, order), 0).loss.backward()
    print(f"\npeak {memory.gb():.2f} GB above the process")
    assert memory.gb() < 4
