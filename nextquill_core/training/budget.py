"""How many tokens a micro-batch may have, and whether gradient checkpointing is needed: decided once for each run.

What a token keeps for the backward pass is counted in forward passes over a few tokens, so it holds for any model,
adapter and data type and depends on no state of the machine. On a CPU examples go through the model one by one, and a
micro-batch of more of them is not faster; it may keep 1 GB. On an accelerator it may keep what the device's memory
leaves. Gradient checkpointing is switched on if the longest example would not fit without it.

The decision is stored in the run's scratch folder. A run that is resumed, on whatever machine, cuts its steps as before
and therefore ends in the same bytes. A budget that was too large for an accelerator is halved, in a trial before the
first step or when a step fails.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from nextquill_core.errors import ModelError
from nextquill_core.memory import is_out_of_memory, total_memory
from nextquill_core.model.forward import computed_tokens, device_of, token_budget_batches
from nextquill_core.orders import TrainOrder
from nextquill_core.tokens import TokenPair
from nextquill_core.training.data import TrainExample
from nextquill_core.training.losses import CHUNK, Denominators, PreferenceLoss, training_strategy
from nextquill_core.training.ranks import Budget, Writer, store_budget, stored_budget

CPU_BYTES = 10**9
"""What a micro-batch may keep on a CPU, unless a single example keeps more."""
USABLE = 0.85
"""Share of a device's memory that training plans with; the rest is for libraries, the allocator and other processes."""
BACKWARD = 1.25
"""Memory of the passes relative to what is kept, because gradients of states exist beside it."""
PROBE = {"cpu": (64, 96, 128), "accelerator": (256, 512, 1024)}
"""Lengths of the prompts with which the kept bytes are counted."""
LIBRARIES = 10**9
"""Memory of a process before it has a model."""


@dataclass(frozen=True)
class Cost:
    """Bytes that an example keeps, c₀ + c₁·t + c₂·t² for t computed tokens; c₂ is 0 unless attention keeps a square."""

    fixed: float
    linear: float
    square: float

    @classmethod
    def through(cls, points: Sequence[tuple[int, int]]) -> Self:
        """Return the cost that fits three pairs of tokens and bytes."""
        tokens, kept = (torch.tensor(values, dtype=torch.float64) for values in zip(*points, strict=True))
        fixed, linear, square = torch.linalg.solve(torch.stack([tokens**0, tokens, tokens**2], dim=1), kept).tolist()
        return cls(fixed, max(linear, 1.0), max(square, 0.0))

    def of(self, tokens: int) -> float:
        """Return the bytes that an example of so many computed tokens keeps."""
        return max(self.fixed, 0.0) + self.linear * tokens + self.square * tokens**2

    def tokens_within(self, room: float) -> int:
        """Return how many tokens keep at most `room` bytes, 0 if none does."""
        room -= max(self.fixed, 0.0)
        if room <= 0:
            return 0
        return int(2 * room / (self.linear + (self.linear**2 + 4 * self.square * room) ** 0.5))

    def checkpointed(self, model: Any) -> Cost:
        """Return the cost under gradient checkpointing: each layer's input, and one layer at a time in full."""
        layers = model.config.get_text_config().num_hidden_layers
        states = model.get_input_embeddings()
        inputs = layers * states.embedding_dim * states.weight.element_size()
        return Cost(self.fixed / layers, inputs + self.linear / layers, self.square / layers)


def loss_within_memory(
    model: Any, order: TrainOrder, examples: Sequence[TrainExample], writer: Writer
) -> PreferenceLoss:
    """Return the module to train, with an order whose micro-batches and gradient checkpointing fit the memory.

    All ranks have to call this, and get the same decision.

    Args:
        model: The PEFT model on this rank's device, before an engine shards it.
        order: The order of the run.
        examples: All examples of the run.
        writer: Writer of the run's folder.

    Raises:
        ModelError: A single example does not fit into an accelerator's memory.
        UserError: The disk is full or cannot be written.
    """
    budget = stored_budget(order.output)
    if budget is None:
        module = _module(model, order, checkpointing=False)
        budget = found = _planned(module, order, examples)
        if found.gradient_checkpointing:
            module = _module(model, order, checkpointing=True)
        if not _on_host(model) and order.train.deepspeed.zero_stage != 3:
            budget = found = _tried(module, examples, found)
        writer(lambda: store_budget(order.output, found), "the size of micro-batches")
    else:
        chosen = order.train.gradient_checkpointing
        module = _module(model, order, checkpointing=budget.gradient_checkpointing if chosen == "auto" else chosen)
    module.order = _changed(module.order, batch_tokens=min(order.train.batch_tokens, budget.tokens))
    return module


def out_of_memory(order: TrainOrder, examples: Sequence[TrainExample], where: str) -> ModelError:
    """Return the error of a micro-batch for which memory ran out; the stored budget is halved for the next attempt.

    Args:
        order: The order of the run.
        examples: The micro-batch.
        where: When it happened, such as "in step 3".
    """
    tokens = _tokens(examples)
    what = f"out of memory {where} with a micro-batch of {tokens:,} tokens"
    if len(examples) == 1:
        remedy = "lower prompt.max_prompt_tokens or prompt.max_target_tokens, or use a larger device"
        if not order.train.checkpoints_activations:
            remedy = f"set train.gradient_checkpointing true; or {remedy}"
        return ModelError(what, examples[0].pair.example_id, remedy)
    if (budget := stored_budget(order.output)) is not None:
        store_budget(order.output, budget.model_copy(update={"tokens": tokens // 2}))
    return ModelError(
        what, "train.batch_tokens", f"run the same command again, which then takes {tokens // 2:,} tokens"
    )


def measured_cost(module: PreferenceLoss) -> Cost:
    """Return what an example keeps for the backward pass, counted in three short forward passes without checkpointing.

    Args:
        module: The module to train; it stays in its mode, and no random state changes.
    """
    model, points = module.model, []
    lengths = PROBE["cpu" if _on_host(model) else "accelerator"]
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or max(lengths) * 2
    unit = max(4, min(lengths[0], longest // 6 // 4 * 4))
    training = module.training
    with torch.random.fork_rng(devices=[]):
        module.train()
        for length in (round(unit * length / lengths[0]) // 4 * 4 for length in lengths):
            pair = _probe(length, model.get_input_embeddings().num_embeddings)
            points.append((_computed(pair, module), module.kept_bytes(TrainExample(pair, [1.0] * len(pair.target)))))
        module.train(training)
    return Cost.through(points)


def _probe(length: int, vocabulary: int) -> TokenPair:
    """Return a pair whose parts grow with the length: shared prefix, rest and answer a quarter each, history a half."""
    ids = [index % vocabulary for index in range(length)]
    quarter = length // 4
    return TokenPair("probe", ids, ids[:quarter] + ids[-quarter:], ids[:quarter])


def _planned(module: PreferenceLoss, order: TrainOrder, examples: Sequence[TrainExample]) -> Budget:
    """Return the budget by the counted cost, of a module without checkpointing, and the memory of this rank."""
    model, settings = module.model, order.train
    if settings.deepspeed.zero_stage == 3 and not _on_host(model):
        return Budget(
            tokens=settings.batch_tokens,
            gradient_checkpointing=settings.checkpoints_activations,
            account=f"micro-batches of up to {settings.batch_tokens:,} tokens; under ZeRO 3 on accelerators, memory is "
            "not counted: the model may fit only once it is sharded",
        )
    cost = measured_cost(module)
    room = (_usable(model) - _held(model)) / BACKWARD
    needed = cost.of(max(_computed(example.pair, module) for example in examples))
    asked = settings.gradient_checkpointing
    switched = _agreed(needed > room, torch.distributed.ReduceOp.MAX) if asked == "auto" else asked
    if switched:
        cost = cost.checkpointed(model)
    allowed = min(room, CPU_BYTES) if _on_host(model) else room
    tokens = int(_agreed(max(1, cost.tokens_within(allowed)), torch.distributed.ReduceOp.MIN))
    size = min(tokens, settings.batch_tokens)
    alone = size < 2 * min(example.pair.tokens for example in examples)
    account = (
        f"micro-batches of {'one example' if alone else f'up to {size:,} tokens'}; a token keeps "
        f"{cost.linear / 1e6:.2g} MB for the backward pass"
    )
    if switched:
        account += " with gradient checkpointing"
        if asked == "auto":
            account += (
                f", without which one example needs {needed / 1e9:.1f} GB of the {max(room, 0) / 1e9:.1f} GB there"
            )
    return Budget(tokens=tokens, gradient_checkpointing=bool(switched), account=account)


def _tried(module: PreferenceLoss, examples: Sequence[TrainExample], budget: Budget) -> Budget:
    """Return the budget with which the largest possible micro-batch fits, halved as often as that takes.

    Raises:
        ModelError: A single example does not fit.
    """
    tokens = budget.tokens
    settings = module.order.train
    largest = sorted(examples, key=lambda example: -example.pair.tokens)[: settings.global_batch]
    sizes = [example.pair.tokens for example in largest]
    while True:
        batch = [largest[index] for index in next(token_budget_batches(sizes, min(tokens, settings.batch_tokens)))]
        if _fits(module, batch):
            break
        if len(batch) == 1:
            raise out_of_memory(module.order, batch, "in a trial before the first step")
        tokens = max(1, min(tokens, _tokens(batch)) // 2)
    tokens = int(_agreed(tokens, torch.distributed.ReduceOp.MIN))
    if tokens == budget.tokens:
        return budget
    account = f"{budget.account}; after a trial, micro-batches of up to {tokens:,} tokens"
    return budget.model_copy(update={"tokens": tokens, "account": account})


def _fits(module: PreferenceLoss, batch: Sequence[TrainExample]) -> bool:
    """Return whether a micro-batch can be computed with its gradients, of which nothing stays."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        torch.autograd.grad(module(batch, Denominators(1.0, 1.0), 0).loss, trained, allow_unused=True)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return False


def _module(model: Any, order: TrainOrder, *, checkpointing: bool) -> PreferenceLoss:
    order = _changed(order, gradient_checkpointing=checkpointing)
    return PreferenceLoss(model, order, training_strategy(model, order))


def _changed(order: TrainOrder, **values: Any) -> TrainOrder:
    return order.model_copy(update={"train": order.train.model_copy(update=values)})


def _usable(model: Any) -> float:
    """Return the bytes that this rank may use: a share of its device, or of the machine divided by its ranks."""
    ranks = _ranks_here() if _on_host(model) else 1
    return USABLE * total_memory(device_of(model)) / ranks


def _held(model: Any) -> int:
    """Return the bytes that a step needs besides activations: weights, gradients, AdamW's state, logits, libraries."""
    parameters = list(model.parameters())
    trained: int = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    logits = 3 * 4 * CHUNK["cpu" if _on_host(model) else "accelerator"]
    weights: int = sum(parameter.nbytes for parameter in parameters)
    held: int = weights + 16 * trained + logits + LIBRARIES
    return held


def _ranks_here() -> int:
    """Return the number of ranks on this machine."""
    ranks = torch.distributed.get_world_size()
    if ranks == 1:
        return 1
    host = torch.tensor([zlib.crc32(socket.gethostname().encode())])
    hosts = [torch.empty_like(host) for _ in range(ranks)]
    torch.distributed.all_gather(hosts, host)
    return sum(bool(other == host) for other in hosts)


def _agreed(value: float, reduce: Any) -> float:
    """Return the largest or smallest of the ranks' values."""
    if torch.distributed.get_world_size() == 1:
        return value
    device = "cpu" if torch.distributed.get_backend() == "gloo" else torch.accelerator.current_accelerator()
    shared = torch.tensor([float(value)], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(shared, reduce)
    return float(shared)


def _computed(pair: TokenPair, module: PreferenceLoss) -> int:
    if module.order.both_branches:
        return computed_tokens(pair, module.strategy)
    return len(pair.factual) + len(pair.target) - 1


def _tokens(examples: Sequence[TrainExample]) -> int:
    return sum(example.pair.tokens for example in examples)


def _on_host(model: Any) -> bool:
    """Return whether the model is in the machine's own memory."""
    return device_of(model).type in ("cpu", "mps")
