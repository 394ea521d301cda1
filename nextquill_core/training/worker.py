"""One rank of a training run, as the DeepSpeed launcher starts it.

deepspeed --no_local_rank --module nextquill_core.training.worker ORDER.json
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from nextquill_core.errors import DataError, ModelError, UserError
from nextquill_core.folds import fold_of
from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.loading import load_model, load_tokenizer
from nextquill_core.schemas import Example
from nextquill_core.tokens import encoder_for
from nextquill_core.training.batches import TrainExample
from nextquill_core.training.spec import TrainSpec
from nextquill_core.training.trainer import PreferenceLoss, Trainer, deepspeed_config


def main() -> int:
    """Run the order named on the command line."""
    end_with_parent()
    spec = TrainSpec.load(Path(sys.argv[-1]))
    try:
        train(spec)
    except UserError as error:
        print(f"nextquill: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def train(spec: TrainSpec) -> None:
    """Load, wrap, train, save.

    Raises:
        ModelError: The model cannot be loaded, the weights do not fit the tokens, or the loss is not finite.
    """
    import deepspeed

    # On a CPU, DeepSpeed would first compile a shared-memory kernel: minutes, and a compiler, to save nothing.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=None if torch.cuda.is_available() else "gloo", verbose=False)
    device = deepspeed.get_accelerator().current_device_name()
    tokenizer = load_tokenizer(spec.model)
    examples, left_out = training_examples(spec, tokenizer)
    model = lora_model(spec, torch.device(device))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    module = PreferenceLoss(model, spec.alpha, spec.normalization, packed=True if spec.zero_stage == 3 else None)
    if spec.zero_stage == 3:  # the head's matrix is read outside its own layer
        deepspeed.zero.register_external_parameter(module, model.get_output_embeddings().weight)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=trainable,
        optimizer=optimizer,
        config=deepspeed_config(spec),
    )
    Trainer(spec, engine, examples, left_out).run()


def training_examples(spec: TrainSpec, tokenizer: Any) -> tuple[list[TrainExample], dict[str, int]]:
    """The examples to train on as token pairs, each with its preference weights, or 1 a token without `effects`.

    Returns:
        The examples, and who was left out, as `train_split` counts them.

    Raises:
        ModelError: The stored weights were derived for other tokens.
        UserError: As `train_split`.
    """
    encoder = encoder_for(spec.model, tokenizer, **asdict(spec.prompt))
    examples, left_out = train_split(spec)
    pairs = encoder.encode(examples)
    if spec.effects is None:
        return [TrainExample(pair, [1.0] * len(pair.target)) for pair in pairs], left_out
    weights = dict(stored_weights(Path(spec.effects)))
    for pair in pairs:
        if len(weights.get(pair.example_id, [])) != len(pair.target):
            raise ModelError(
                f"the weights of {pair.example_id} do not fit its {len(pair.target)} tokens",
                spec.effects,
                "score again with the same model and prompt settings",
            )
    return [TrainExample(pair, weights[pair.example_id]) for pair in pairs], left_out


def train_split(spec: TrainSpec) -> tuple[list[Example], dict[str, int]]:
    """The train examples of all users, or of those outside the fold that the order leaves out.

    Returns:
        The examples, and `left_out_users` and `left_out_examples`; empty where there is no fold.

    Raises:
        DataError: There is no train example at all.
        UserError: A fold holds nobody. Then it would be trained for nothing, and, of two, the other on nothing.
    """
    examples = list(read_examples(Path(spec.sequences), ("train",)))
    if not examples:
        raise DataError("there is no train example", spec.sequences, "ingest again; check ingest.protocol.n_targets")
    if spec.leave_out is None:
        return examples, {}
    fold, folds = spec.leave_out
    fold_by_user = {example.user_id: fold_of(example.user_id, folds) for example in examples}
    if empty := set(range(folds)) - set(fold_by_user.values()):
        raise UserError(
            f"fold {min(empty)} of {folds} holds no user with train examples",
            spec.sequences,
            "set fewer score.folds (2 at least) or ingest more users",
        )
    rest = [example for example in examples if fold_by_user[example.user_id] != fold]
    users = list(fold_by_user.values()).count(fold)
    return rest, {"left_out_users": users, "left_out_examples": len(examples) - len(rest)}


def stored_weights(folder: Path) -> Iterator[tuple[str, list[float]]]:
    """(example_id, ω of each token) from a score artifact."""
    for shard in sorted((folder / "weights").glob("*.parquet")):
        table = pq.read_table(shard)
        yield from zip(table["example_id"].to_pylist(), table["weight"].to_pylist(), strict=True)


def lora_model(spec: TrainSpec, device: torch.device) -> Any:
    """θ0 with a fresh LoRA adapter on it, the same on every rank."""
    from peft import LoraConfig, get_peft_model

    base = load_model(spec.model, device)
    base.config.use_cache = False
    if spec.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    torch.manual_seed(spec.seed)
    lora = spec.lora
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, task_type="CAUSAL_LM"
    )
    return get_peft_model(base, config)


def end_with_parent() -> None:
    """End this process soon after its launcher has ended, however that ended (even by SIGKILL)."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(143)

    threading.Thread(target=watch, name="watch-launcher", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
