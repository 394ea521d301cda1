"""One rank of a training run, started by the DeepSpeed launcher.

deepspeed --no_local_rank --module nextquill_core.training.worker ORDER.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from nextquill_core.environment import set_torch_variables
    from nextquill_core.training.ranks import end_with_parent

    set_torch_variables()  # before torch is imported
    end_with_parent()  # before the imports below, which take seconds

import torch

from nextquill_core.environment import share_keys_of_heads
from nextquill_core.errors import UserError
from nextquill_core.model.cpu import keep_freed_memory, make_fast
from nextquill_core.model.loading import best_device, load_model, load_tokenizer
from nextquill_core.orders import TrainOrder
from nextquill_core.progress import PhaseFile, Progress, silent
from nextquill_core.training.budget import loss_within_memory
from nextquill_core.training.curves import check_packages
from nextquill_core.training.data import training_examples, validation_examples
from nextquill_core.training.engines import connect, engine_for
from nextquill_core.training.ranks import PHASE, Writer, mark_failed
from nextquill_core.training.trainer import Trainer
from storage.masked_output import mask_output


def main() -> int:
    """Run the order named on the command line and return the exit code."""
    mask_output()
    keep_freed_memory()
    if best_device().type == "cpu":
        share_keys_of_heads()  # here and not in `train`: it is for the whole process
    path = Path(sys.argv[-1])
    try:
        train(TrainOrder.load(path))
    except UserError as error:
        mark_failed(path)
        print(f"nextquill: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception:
        mark_failed(path)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def train(order: TrainOrder) -> None:
    """Load data and model, train, and save the adapter.

    Raises:
        UserError: The data, the model or the settings cannot be used, or training does not converge.
    """
    check_packages(order.train.report_to)
    device = connect()
    (order.output / PHASE).parent.mkdir(parents=True, exist_ok=True)
    progress: Progress = silent if torch.distributed.get_rank() else PhaseFile(order.output / PHASE)
    progress(0, 0, phase="reading examples")
    tokenizer = load_tokenizer(order.model)
    examples, left_out = training_examples(order, tokenizer)
    val_examples = validation_examples(order, tokenizer)
    progress(0, 0, phase="loading the model")
    model = with_adapter(load_model(order.model, device), order)
    module = loss_within_memory(model, order, [*examples, *val_examples], Writer(order.output, device))
    engine = engine_for(module, module.order, read_outside=model.get_output_embeddings().weight)
    Trainer(module.order, engine, examples, left_out, val_examples, progress).run()


def with_adapter(base: Any, order: TrainOrder) -> Any:
    """Return the base model with a new LoRA adapter, the same on every rank."""
    from peft import LoraConfig, get_peft_model

    base.config.use_cache = False
    torch.manual_seed(order.seed)
    lora = order.train.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    return make_fast(get_peft_model(base, config))


if __name__ == "__main__":
    sys.exit(main())
