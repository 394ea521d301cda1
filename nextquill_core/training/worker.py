"""One rank of a training run, as the DeepSpeed launcher starts it.

deepspeed --no_local_rank --module nextquill_core.training.worker ORDER.json
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nextquill_core.errors import DataError, ModelError, UserError
from nextquill_core.folds import fold_of
from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.cpu.allocator import keep_freed_memory
from nextquill_core.model.cpu.lora_dropout import spare_dropout
from nextquill_core.model.loading import load_model, load_tokenizer
from nextquill_core.progress import PhaseFile
from nextquill_core.schemas import Example
from nextquill_core.tokens import TokenPair, encoder_for
from nextquill_core.training.batches import TrainExample
from nextquill_core.training.engine import connect, engine_for
from nextquill_core.training.failures import mark_failed
from nextquill_core.training.lora_targets import peft_targets
from nextquill_core.training.objective import PreferenceLoss, training_way
from nextquill_core.training.spec import PHASE, STARTED_BY, TrainSpec
from nextquill_core.training.trackers import check_packages
from nextquill_core.training.trainer import Trainer
from nextquill_core.training.validation import Phase, chosen, no_phase
from storage.masked_output import mask_output
from storage.tables import read_table


def main() -> int:
    """Run the order named on the command line."""
    mask_output()
    end_with_parent()
    keep_freed_memory()
    order = Path(sys.argv[-1])
    try:
        train(TrainSpec.load(order))
    except UserError as error:
        mark_failed(order)
        print(f"nextquill: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception:
        mark_failed(order)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def train(spec: TrainSpec) -> None:
    """Load, wrap, train, save.

    Raises:
        ModelError: The model cannot be loaded, the weights do not fit the tokens, or training does not go well.
    """
    check_packages(spec.report_to)
    device = connect()
    phase = phase_of(spec)
    phase("reading examples")
    tokenizer = load_tokenizer(spec.model)
    examples, left_out = training_examples(spec, tokenizer)
    val_examples = validation_examples(spec, tokenizer)
    phase("loading the model")
    model = with_adapter(load_model(spec.model, device), spec)
    module = PreferenceLoss(model, spec, training_way(model, spec))
    engine = engine_for(module, spec, read_outside=model.get_output_embeddings().weight)
    Trainer(spec, engine, examples, left_out, val_examples, phase).run()


def phase_of(spec: TrainSpec) -> Phase:
    """What tells the parent process what is done besides steps: a file on rank 0, nothing on the others."""
    if torch.distributed.get_rank():
        return no_phase
    file = PhaseFile(Path(spec.output) / PHASE)
    file.path.parent.mkdir(parents=True, exist_ok=True)

    def show(phase: str, done: float = 0, total: float = 0) -> None:
        file.write(phase, done, total) if phase else file.clear()

    return show


def training_examples(spec: TrainSpec, tokenizer: Any) -> tuple[list[TrainExample], dict[str, int]]:
    """The examples to train on as token pairs, each with its preference weights, or 1 a token without `effects`.

    Returns:
        The examples, and who was left out, as `train_split` counts them.

    Raises:
        ModelError: The stored weights were derived for other tokens.
        UserError: As `train_split`.
    """
    examples, left_out = train_split(spec)
    return _weighted(spec, tokenizer, examples), left_out


def validation_examples(spec: TrainSpec, tokenizer: Any) -> list[TrainExample]:
    """The val examples to measure, with their weights; those of users whom a fold leaves out are left out here too.

    Raises:
        DataError: There is none, and the best adapter on them is asked for.
        ModelError: As `training_examples`.
    """
    if spec.val_every == 0:
        return []
    examples = list(read_examples(Path(spec.sequences), ("val",)))
    if spec.leave_out is not None:
        fold, folds = spec.leave_out
        examples = [example for example in examples if fold_of(example.user_id, folds) != fold]
    if not examples and spec.keep == "best":
        raise DataError("there is no val example to choose the best adapter by", spec.sequences, "set train.keep last")
    return _weighted(spec, tokenizer, chosen(examples, spec.val_examples, spec.seed))


def _weighted(spec: TrainSpec, tokenizer: Any, examples: Sequence[Example]) -> list[TrainExample]:
    pairs = encoder_for(spec.model, tokenizer, **asdict(spec.prompt)).encode(examples)
    stored = spec.weighted and spec.live_weights is None
    weights = _stored(spec, "weights", "weight", pairs) if stored else {}
    effects = _stored(spec, "effects", "effect", pairs) if spec.alpha and spec.causal_target == "effect" else {}
    return [
        TrainExample(pair, weights.get(pair.example_id, [1.0] * len(pair.target)), effects.get(pair.example_id, []))
        for pair in pairs
    ]


def _stored(spec: TrainSpec, table: str, column: str, pairs: Sequence[TokenPair]) -> dict[str, list[float]]:
    """A number a token of every example, from the score artifact."""
    if spec.effects is None:
        raise ValueError(f"the order asks for stored {table} and names no score artifact")
    found: dict[str, list[float]] = {}
    for shard in sorted((Path(spec.effects) / table).glob("*.parquet")):
        rows = read_table(shard, columns=["example_id", column])
        found.update(zip(rows["example_id"].to_pylist(), rows[column].to_pylist(), strict=True))
    for pair in pairs:
        if len(found.get(pair.example_id, [])) != len(pair.target):
            raise ModelError(
                f"the {table} of {pair.example_id} do not fit its {len(pair.target)} tokens",
                spec.effects,
                "score again with the same model and prompt settings",
            )
    return found


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


def with_adapter(base: Any, spec: TrainSpec) -> Any:
    """θ0 with a fresh LoRA adapter on it, the same on every rank."""
    from peft import LoraConfig, get_peft_model

    base.config.use_cache = False
    if spec.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    torch.manual_seed(spec.seed)
    lora = spec.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=peft_targets(lora.targets),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    spare_dropout(model)
    return model


def end_with_parent() -> None:
    """End this process soon after its launcher, or what started that, has ended, however they ended (even by SIGKILL).

    The launcher may have ended while this process imported its libraries, so its own parent is watched too.
    """
    launcher, run = os.getppid(), int(os.environ.get(STARTED_BY, "0"))

    def watch() -> None:
        while os.getppid() == launcher and (not run or _exists(run)):
            time.sleep(0.5)
        os._exit(143)

    threading.Thread(target=watch, name="watch-launcher", daemon=True).start()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # there is none, or it is another user's
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
