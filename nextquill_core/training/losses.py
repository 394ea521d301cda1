"""The preference-weighted losses, computed at answer positions without vocabulary-sized tensors.

    L_n = 1/|D| Σ_samples Σ_t ω_t · CE(f(x, h, y_<t), y_t)                      (Eq. 5)
    L_p = 1/|D| Σ_samples Σ_t ω_t · CE(f(x, h, y_<t) − f(x, ∅, y_<t), y_t)      (Eq. 6, f as logits)
    L   = L_n + α · L_p                                                          (Eq. 7)

With a linear head, f(x, h, ·) − f(x, ∅, ·) = W(h − h_∅): L_p is a second linear cross-entropy, on the difference of
hidden states. Neither needs a vocabulary-sized tensor: logits exist for one chunk of rows at a time, and the gradient
of the hidden states is computed from them at once.

The factor 1/|D| is one of four normalisations, here for one optimizer step with the samples B, of T tokens each:

    sequence       1/|B| Σ_samples Σ_t ω_t · CE_t                          (the paper, Eq. 5)
    weight         Σ_samples Σ_t ω_t · CE_t / Σ_samples Σ_t ω_t            (MIRROR's re-implementation)
    sample_weight  1/|B| Σ_samples (Σ_t ω_t · CE_t / Σ_t ω_t)              (the official code)
    sample_tokens  1/|B| Σ_samples (Σ_t ω_t · CE_t / T)                    (PerCE)

`nextquill_loss` is the equations on hidden states; `PreferenceLoss` is the module that is trained, a PEFT model with
these losses on both of its branches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nextquill_core.causal.weights import TokenEffects, token_effects, token_weights
from nextquill_core.config.train import Normalization
from nextquill_core.model.cpu import (
    fast_feed_forward,
    feed_forward_parts,
    gated_forward,
    linear,
    norms_of,
    product,
    recomputing,
)
from nextquill_core.model.forward import Strategy, answer_hidden_states, best_strategy, branch_states, device_of
from nextquill_core.model.head import Head, head_of, target_logprobs
from nextquill_core.orders import TrainOrder
from nextquill_core.tokens import TokenPair
from nextquill_core.training.data import TrainExample

Implementation = Literal["auto", "chunked", "dense"]
CHUNK = {"cpu": 2**25, "accelerator": 2**27}
"""Logits that exist at a time: 128 and 512 MB in fp32."""


class LossOutput(NamedTuple):
    """L, L_n and L_p (before the factor α), scalars in nats."""

    loss: Tensor
    normal: Tensor
    causal: Tensor


def nextquill_loss(
    hidden_ND: Tensor,
    hidden_null_ND: Tensor | None,
    head_VD: Tensor | Head,
    target_N: Tensor,
    weight_N: Tensor,
    sequence_N: Tensor,
    *,
    alpha: float,
    normalization: Normalization = "sequence",
    impl: Implementation = "auto",
    denominator: float | None = None,
    causal_weight_N: Tensor | None = None,
    causal_denominator: float | None = None,
    effect_N: Tensor | None = None,
) -> LossOutput:
    """Return L = L_n + α·L_p over the N answer tokens of a batch.

    α = 0 is NormOnly, ω = 1 is CausalOnly, and both together are plain fine-tuning.

    Args:
        hidden_ND: Final hidden states of the factual branch at the positions that predict each answer token, (N, D).
        hidden_null_ND: The same without history, (N, D); may be None where α = 0, and is not read then.
        head_VD: Matrix of the LM head, (V, D), or a `Head`; one with bias, scale or soft cap is differentiated by
            autograd.
        target_N: Answer token ids, int64.
        weight_N: Preference weights ω, not negative; ones for an unweighted L_n.
        sequence_N: Index of the sample that each token belongs to, int64.
        alpha: α, the factor of L_p.
        normalization: `sequence` divides by the number of samples (Eq. 5), `weight` by Σω of all samples (MIRROR),
            `sample_weight` each sample by its own Σω and then by the number of samples (official code),
            `sample_tokens` each sample by its number of tokens and then by the number of samples (PerCE).
        impl: `dense` computes all logits at once, `chunked` never does; `auto` is `chunked`.
        denominator: Number of samples of the whole optimizer step, or its Σω under `weight`, so that the losses of
            micro-batches add up to the loss of the step; None takes that of these tokens.
        causal_weight_N: Weights of L_p where they are not those of L_n: ones for the official code's unweighted L_p, ω
            beside an unweighted L_n. L_p is normalised as L_n is, with these weights.
        causal_denominator: As `denominator`, for L_p; read only where `causal_weight_N` is given.
        effect_N: Stored causal effects in [−1, 1]. Where they are given, L_p is the weighted squared distance of the
            model's effect on each token's probability from them, Σ_t ω_t · (p(y_t | x, h) − p(y_t | x, ∅) − effect_t)²,
            instead of Eq. 6.

    Returns:
        The losses in fp32; L carries the gradient.

    Raises:
        ValueError: α > 0 without `hidden_null_ND`.
    """
    coefficient_N = _coefficients(weight_N.float(), sequence_N, normalization, denominator)
    head = head_VD if isinstance(head_VD, Head) else Head(head_VD)
    at_once = CHUNK["cpu" if hidden_ND.device.type == "cpu" else "accelerator"] // len(head.weight_VD)
    rows = max(len(target_N) if impl == "dense" else at_once, 1)
    fast = head.is_linear and impl != "dense"
    if fast:
        normal = _chunked_cross_entropy(hidden_ND, head.weight_VD, target_N, coefficient_N, rows)
    else:
        normal = _plain_cross_entropy(head, hidden_ND, None, target_N, coefficient_N, rows)
    if not alpha:
        return LossOutput(normal, normal, hidden_ND.new_zeros((), dtype=torch.float32))
    if hidden_null_ND is None:
        raise ValueError("alpha > 0 needs the hidden states without history (hidden_null_ND)")
    if causal_weight_N is not None:
        coefficient_N = _coefficients(causal_weight_N.float(), sequence_N, normalization, causal_denominator)
    if effect_N is not None:
        causal = _effect_distance(head, hidden_ND, hidden_null_ND, target_N, coefficient_N, effect_N, rows)
    elif fast:
        causal = _chunked_cross_entropy(hidden_ND - hidden_null_ND, head.weight_VD, target_N, coefficient_N, rows)
    else:
        causal = _plain_cross_entropy(head, hidden_ND, hidden_null_ND, target_N, coefficient_N, rows)
    return LossOutput(normal + alpha * causal, normal, causal)


def _coefficients(
    weight_N: Tensor, sequence_N: Tensor, normalization: Normalization, denominator: float | None
) -> Tensor:
    """Return the factor of each token's cross-entropy in a loss, (N,); a sample whose weights are all 0 counts 0."""
    if denominator is None:
        denominator = float(weight_N.sum() if normalization == "weight" else sequence_N.unique().numel()) or 1.0
    if normalization in ("sample_weight", "sample_tokens"):
        _, sample_N = sequence_N.unique(return_inverse=True)
        counted_N = weight_N if normalization == "sample_weight" else torch.ones_like(weight_N)
        sum_S = weight_N.new_zeros(len(weight_N)).index_add_(0, sample_N, counted_N)
        weight_N = weight_N / sum_S.masked_fill(sum_S == 0, 1.0)[sample_N]
    return weight_N / denominator


def _chunked_cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, coefficient_N: Tensor, rows: int
) -> Tensor:
    total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, target_N, coefficient_N, rows
    )
    return total


def _cross_entropy(logits_NV: Tensor, target_N1: Tensor, coefficient_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ_t c_t · CE(z_t, y_t), and its gradient by z, which overwrites z."""
    of_target_N1 = logits_NV.gather(1, target_N1)
    largest_N1 = logits_NV.amax(dim=1, keepdim=True)
    exponentials_NV = logits_NV.sub_(largest_N1).exp_()
    sums_N1 = exponentials_NV.sum(dim=1, keepdim=True)
    loss = (coefficient_N1 * (largest_N1 + sums_N1.log() - of_target_N1)).sum()
    return loss, exponentials_NV.mul_(coefficient_N1 / sums_N1).scatter_add_(1, target_N1, -coefficient_N1)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Σ_t c_t · CE(W·h_t, y_t) with ∂/∂h_t = c_t · Wᵀ(softmax(W·h_t) − onehot(y_t)), computed chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, coefficient_N: Tensor, rows: int
    ) -> Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32) if wants_head else None
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        for start in range(0, len(target_N), rows):
            part = slice(start, start + rows)
            hidden, target, coefficient = hidden_ND[part], target_N[part, None], coefficient_N[part, None]
            loss, grad_logits = _cross_entropy(linear(hidden.to(head_VD.dtype), head_VD).float(), target, coefficient)
            total += loss
            if grad_hidden_ND is not None:
                grad_hidden_ND[part] = product(grad_logits.to(head_VD.dtype), head_VD).to(hidden_ND.dtype)
            if grad_head_VD is not None:
                grad_head_VD += grad_logits.T @ hidden.float()
            del grad_logits  # before the next chunk's are made
        ctx.save_for_backward(grad_hidden_ND, None if grad_head_VD is None else grad_head_VD.to(head_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        grad_output = grads[0]
        return (
            None if grad_hidden_ND is None else grad_hidden_ND * grad_output.to(grad_hidden_ND.dtype),
            None if grad_head_VD is None else grad_head_VD * grad_output.to(grad_head_VD.dtype),
            None,
            None,
            None,
        )


def _plain_cross_entropy(
    head: Head, hidden_ND: Tensor, null_ND: Tensor | None, target_N: Tensor, coefficient_N: Tensor, rows: int
) -> Tensor:
    """Σ_t c_t · CE(f(h_t) − f(h_∅t), y_t) through autograd, for heads where the difference is not linear."""

    def of_chunk(part: slice) -> Tensor:
        logits = head.logits(hidden_ND[part])
        if null_ND is not None:
            logits = logits - head.logits(null_ND[part])
        return (F.cross_entropy(logits, target_N[part], reduction="none") * coefficient_N[part]).sum()

    return _summed(of_chunk, target_N, rows)


def _effect_distance(
    head: Head, hidden_ND: Tensor, null_ND: Tensor, target_N: Tensor, coefficient_N: Tensor, effect_N: Tensor, rows: int
) -> Tensor:
    """Σ_t c_t · (p(y_t | h_t) − p(y_t | h_∅t) − effect_t)² through autograd."""

    def of_chunk(part: slice) -> Tensor:
        p, p_null = (
            torch.exp(-F.cross_entropy(head.logits(states[part]), target_N[part], reduction="none"))
            for states in (hidden_ND, null_ND)
        )
        return ((p - p_null - effect_N[part]) ** 2 * coefficient_N[part]).sum()

    return _summed(of_chunk, target_N, rows)


def _summed(of_chunk: Callable[[slice], Tensor], target_N: Tensor, rows: int) -> Tensor:
    """Return the sum of a loss over chunks of rows; of several chunks, the backward pass computes each again."""
    total = target_N.new_zeros((), dtype=torch.float32)
    for start in range(0, len(target_N), rows):
        part = slice(start, start + rows)
        whole = rows >= len(target_N)
        total = total + (of_chunk(part) if whole else checkpoint(of_chunk, part, use_reentrant=False))
    return total


def plain_loss(head: Head, hidden_ND: Tensor, targets: Sequence[int], tokens: int) -> Tensor:
    """Return the summed cross-entropy of answer tokens divided by `tokens`: Eq. 7 with ω = 1 and α = 0.

    Args:
        head: LM head.
        hidden_ND: Final hidden states at the positions that predict each answer token.
        targets: N answer token ids.
        tokens: Number of answer tokens in the whole step.
    """
    target_N = torch.tensor(targets, device=hidden_ND.device)
    ones_N, zeros_N = torch.ones_like(target_N), torch.zeros_like(target_N)
    return nextquill_loss(
        hidden_ND, None, head, target_N, ones_N, zeros_N,
        alpha=0.0, normalization="weight", denominator=float(tokens),
    ).loss  # fmt: skip


class Denominators(NamedTuple):
    """Divisors of L_n and L_p in one step: its number of samples, or the sum of its weights."""

    normal: float
    causal: float


def denominators(examples: Sequence[TrainExample], order: TrainOrder) -> Denominators:
    """Return the denominators of one optimizer step over `examples`; they do not depend on how the step is cut."""
    if order.train.normalization != "weight":
        return Denominators(float(len(examples)), float(len(examples)))
    weight = float(sum(sum(example.weights) for example in examples)) or 1.0
    tokens = float(sum(len(example.pair.target) for example in examples))
    return Denominators(
        weight if order.train.normal_loss.weighted else tokens, weight if order.train.causal_loss.weighted else tokens
    )


class PreferenceLoss(nn.Module):
    """A PEFT model with the loss on top: the module that DeepSpeed wraps.

    Args:
        model: A PEFT model; gradient checkpointing is switched on in it if the order says so.
        order: Settings of the losses.
        strategy: How both branches are computed; see `training_strategy`.
    """

    def __init__(self, model: Any, order: TrainOrder, strategy: Strategy) -> None:
        super().__init__()
        self.model = model
        self.order = order
        self.strategy = strategy
        if order.train.checkpoints_activations:
            base = model.get_base_model()
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            base.enable_input_require_grads()
        self._one_by_one = strategy in ("reuse", "plain")
        # A layer that gradient checkpointing computes again does not know the rows that are read.
        self._lean = self._one_by_one and not order.train.checkpoints_activations and device_of(model).type == "cpu"
        self._feed_forward = _feed_forward_parts(model) if self._lean else []
        self._norms = norms_of(model) if self._lean else []

    def forward(self, examples: Sequence[TrainExample], step: Denominators, seed: int | None = None) -> LossOutput:
        """Return the contribution of these examples to the step's loss.

        The branch without history is computed where L_p or live weights need it.

        Args:
            examples: A micro-batch of the step.
            step: Denominators of the whole step.
            seed: Seed of the dropout, the same for all micro-batches of the step. Where examples are computed one by
                one, masks follow from it and the example; in a row, from it and the first example. None draws from the
                state of torch's generator.
        """
        settings = self.order.train
        pairs = [example.pair for example in examples]
        keeping_less = recomputing(self._norms) if self._lean and torch.is_grad_enabled() else nullcontext()
        with keeping_less, fast_feed_forward(self._feed_forward, gated_forward):
            hidden, null = self._states(pairs, seed)
        head = head_of(self.model)
        target = _flat([pair.target for pair in pairs], hidden, torch.long)
        if self.order.live_weights is not None and null is not None:
            weight = live_weights(head, hidden, null, target, self.order.live_weights)
        else:
            weight = _flat([example.weights for example in examples], hidden, torch.float32)
        ones = torch.ones_like(weight)
        return nextquill_loss(
            hidden,
            null,
            head,
            target,
            weight if settings.normal_loss.weighted else ones,
            torch.repeat_interleave(torch.tensor([len(pair.target) for pair in pairs], device=hidden.device)),
            alpha=settings.alpha,
            normalization=settings.normalization,
            denominator=step.normal,
            causal_weight_N=weight if settings.causal_loss.weighted else ones,
            causal_denominator=step.causal,
            effect_N=_flat([example.effects for example in examples], hidden, torch.float32)
            if settings.causal_loss.target == "effect"
            else None,
        )

    @contextmanager
    def plain_likelihood(self) -> Iterator[None]:
        """Make L_n the summed negative log-likelihood in nats, for examples with weights of 1 and denominators (1, 1).

        Within the block, only the branch with history is computed.
        """
        order = self.order
        self.order = order.for_likelihood()
        try:
            yield
        finally:
            self.order = order

    def kept_bytes(self, example: TrainExample) -> int:
        """Return how many bytes a forward pass of one example keeps for the backward pass, without parameters."""
        with recomputing(self._norms) as kept, fast_feed_forward(self._feed_forward, gated_forward):
            states = self._states([example.pair], seed=0)
        parameters = {value.untyped_storage().data_ptr() for value in (*self.parameters(), *self.buffers())}
        del states  # not before here, so that no address was used twice
        return sum(size for address, size in kept.kept_bytes.items() if address not in parameters)

    def _states(self, pairs: Sequence[TokenPair], seed: int | None) -> tuple[Tensor, Tensor | None]:
        """Return the states of both branches, (N, D) each; the second is None where it is not computed."""
        together = [[pair] for pair in pairs] if self._one_by_one else [pairs]
        found: list[tuple[Tensor, Tensor | None]] = []
        for part in together:
            if seed is not None:
                torch.manual_seed(_mask_seed(seed, part[0].example_id))
            found += self._states_of(part)
        hidden = torch.cat([states for states, _ in found])
        null = [other for _, other in found if other is not None]
        return hidden, torch.cat(null) if null else None

    def _states_of(self, pairs: Sequence[TokenPair]) -> Sequence[tuple[Tensor, Tensor | None]]:
        settings = self.order.train
        if self.order.both_branches:
            through = settings.alpha > 0 and settings.causal_loss.counterfactual_grad == "through"
            return branch_states(self.model, pairs, self.strategy, through=through)
        prompts, targets = [pair.factual for pair in pairs], [pair.target for pair in pairs]
        return [(answer_hidden_states(self.model, prompts, targets, packed=not self._one_by_one), None)]


def _mask_seed(seed: int, example_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{example_id}".encode()).digest()[:8])


@torch.no_grad()
def live_weights(
    head: Head, hidden_ND: Tensor, hidden_null_ND: Tensor, target_N: Tensor, settings: Mapping[str, Any]
) -> Tensor:
    """Return preference weights under the model as it is in this step, as the official code and PerCE derive them.

    The log-probabilities of each branch cost one more pass over the head, without gradient and in blocks, so no tensor
    of the vocabulary's size is kept.

    Args:
        head: LM head.
        hidden_ND: Final hidden states with history at the positions that predict each answer token.
        hidden_null_ND: The same without history.
        target_N: Answer token ids.
        settings: The weight policy and its settings, as `weight_settings` returns them.

    Returns:
        ω in fp32, shape (N,).
    """
    logp_N, logp_null_N = (target_logprobs(head, states, target_N) for states in (hidden_ND, hidden_null_ND))
    return token_weights(TokenEffects(logp_N, logp_null_N, token_effects(logp_N, logp_null_N)), **settings)


def training_strategy(model: Any, order: TrainOrder) -> Strategy:
    """Return how both branches are computed in training.

    ZeRO-3 needs the same number of forward calls on every rank, so all examples go in one call. Gradient checkpointing
    computes a layer again without its cache, so the keys and values of the shared prefix cannot be reused.
    """
    if order.train.deepspeed.zero_stage == 3:
        return "packed"
    if order.train.checkpoints_activations or not order.both_branches:
        return "plain" if device_of(model).type == "cpu" else "packed"
    with _without_dropout(model):
        return best_strategy(model)


def _feed_forward_parts(model: Any) -> list[nn.Module]:
    with _without_dropout(model):
        return feed_forward_parts(model, gated_forward)


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    """Turn dropout off for a trial, because with dropout any two passes differ."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _flat(values: Sequence[Sequence[float]], beside: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.tensor([value for row in values for value in row], device=beside.device, dtype=dtype)
