"""The preference-weighted losses, at the price of one linear layer on answer positions.

    L_n = 1/|D| Σ_samples Σ_t ω_t · CE(f(x, h, y_<t), y_t)                      (Eq. 5)
    L_p = 1/|D| Σ_samples Σ_t ω_t · CE(f(x, h, y_<t) − f(x, ∅, y_<t), y_t)      (Eq. 6, f as logits)
    L   = L_n + α · L_p                                                          (Eq. 7)

With a linear head, f(x, h, ·) − f(x, ∅, ·) = W(h − h_∅): L_p is a second linear cross-entropy, on the difference of
hidden states. Neither needs a vocabulary-sized tensor: logits live for one chunk of rows at a time, and the gradient
of the hidden states is formed there and then.

The factor 1/|D| is one of three normalisations, here for one optimizer step with the samples B:

    sequence       1/|B| Σ_samples Σ_t ω_t · CE_t                          (the paper, Eq. 5)
    weight         Σ_samples Σ_t ω_t · CE_t / Σ_samples Σ_t ω_t            (MIRROR's re-implementation)
    sample_weight  1/|B| Σ_samples (Σ_t ω_t · CE_t / Σ_t ω_t)              (the official code)
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nextquill_core.model.cpu.half import linear, product
from nextquill_core.model.head import Head
from nextquill_core.training.spec import Normalization

Implementation = Literal["auto", "chunked", "dense"]
CHUNK = {"cpu": 2**25, "accelerator": 2**27}  # logits that are held at a time: 128 and 512 MB


class LossOutput(NamedTuple):
    """L, L_n and L_p (before α), each a scalar in nats."""

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
    """L = L_n + α·L_p over the N answer tokens of a batch.

    α = 0 is NormOnly, ω = 1 CausalOnly, both together plain fine-tuning.

    Args:
        hidden_ND: Final hidden states of the factual branch at the positions that predict each answer token.
        hidden_null_ND: The same without history; may be None where α = 0, and is not read there.
        head_VD: The LM head's matrix, or a `Head` with bias or soft cap, which takes the plain path.
        target_N: Answer token ids.
        weight_N: Preference weights ω.
        sequence_N: Which sample each token belongs to.
        alpha: α.
        normalization: `sequence` divides by the number of samples (Eq. 5), `weight` by Σω of all samples (MIRROR),
            `sample_weight` each sample by its own Σω and then by the number of samples (official code).
        impl: `dense` forms all logits at once, `chunked` never; `auto` is `chunked`.
        denominator: The number of samples, or under `weight` Σω, of the whole optimizer step, so that the losses of
            micro-batches add up to the loss of the step; None takes that of these tokens.
        causal_weight_N: Weights of L_p where they are not ω: ones for the official code's unweighted L_p, which is
            normalised as L_n is, with these weights.
        causal_denominator: As `denominator`, for L_p; is read only where `causal_weight_N` is given.
        effect_N: Stored causal effects. Where they are given, L_p is the weighted squared distance of the model's own
            effect on each token's probability from them, Σ_t ω_t · (p(y_t | x, h) − p(y_t | x, ∅) − effect_t)²,
            instead of Eq. 6.

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
    null_ND = _required(hidden_null_ND)
    if causal_weight_N is not None:
        coefficient_N = _coefficients(causal_weight_N.float(), sequence_N, normalization, causal_denominator)
    if effect_N is not None:
        causal = _effect_distance(head, hidden_ND, null_ND, target_N, coefficient_N, effect_N, rows)
    elif fast:
        causal = _chunked_cross_entropy(hidden_ND - null_ND, head.weight_VD, target_N, coefficient_N, rows)
    else:
        causal = _plain_cross_entropy(head, hidden_ND, null_ND, target_N, coefficient_N, rows)
    return LossOutput(normal + alpha * causal, normal, causal)


def _coefficients(
    weight_N: Tensor, sequence_N: Tensor, normalization: Normalization, denominator: float | None
) -> Tensor:
    """The factor of each token's cross-entropy in a loss; a sample whose weights are all 0 counts 0."""
    if denominator is None:
        denominator = float(weight_N.sum() if normalization == "weight" else sequence_N.unique().numel()) or 1.0
    if normalization == "sample_weight":
        _, sample_N = sequence_N.unique(return_inverse=True)
        sum_S = weight_N.new_zeros(len(weight_N)).index_add_(0, sample_N, weight_N)
        weight_N = weight_N / sum_S.masked_fill(sum_S == 0, 1.0)[sample_N]
    return weight_N / denominator


def _required(hidden_null_ND: Tensor | None) -> Tensor:
    if hidden_null_ND is None:
        raise ValueError("alpha > 0 needs the hidden states without history (hidden_null_ND)")
    return hidden_null_ND


def _chunked_cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, coefficient_N: Tensor, rows: int
) -> Tensor:
    total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, target_N, coefficient_N, rows
    )
    return total


def _cross_entropy(logits_NV: Tensor, target_N1: Tensor, coefficient_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_t c_t · CE(z_t, y_t), and its gradient by z in z's own memory."""
    of_target_N1 = logits_NV.gather(1, target_N1)
    largest_N1 = logits_NV.amax(dim=1, keepdim=True)
    exponentials_NV = logits_NV.sub_(largest_N1).exp_()
    sums_N1 = exponentials_NV.sum(dim=1, keepdim=True)
    loss = (coefficient_N1 * (largest_N1 + sums_N1.log() - of_target_N1)).sum()
    return loss, exponentials_NV.mul_(coefficient_N1 / sums_N1).scatter_add_(1, target_N1, -coefficient_N1)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Σ_t c_t · CE(W·h_t, y_t) with ∂/∂h_t = c_t · Wᵀ(softmax(W·h_t) − onehot(y_t)), formed chunk by chunk."""

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

    def of_chunk(hidden: Tensor, null: Tensor | None, target: Tensor, coefficient: Tensor) -> Tensor:
        logits = head.logits(hidden) if null is None else head.logits(hidden) - head.logits(null)
        return (F.cross_entropy(logits, target, reduction="none") * coefficient).sum()

    total = hidden_ND.new_zeros((), dtype=torch.float32)
    for start in range(0, len(target_N), rows):
        part = slice(start, start + rows)
        null = None if null_ND is None else null_ND[part]
        arguments = (hidden_ND[part], null, target_N[part], coefficient_N[part])
        whole = rows >= len(target_N)
        total = total + (of_chunk(*arguments) if whole else checkpoint(of_chunk, *arguments, use_reentrant=False))
    return total


def _effect_distance(
    head: Head, hidden_ND: Tensor, null_ND: Tensor, target_N: Tensor, coefficient_N: Tensor, effect_N: Tensor, rows: int
) -> Tensor:
    """Σ_t c_t · (p(y_t | h_t) − p(y_t | h_∅t) − effect_t)² through autograd, logits formed again in the backward."""

    def of_chunk(hidden: Tensor, null: Tensor, target: Tensor, coefficient: Tensor, effect: Tensor) -> Tensor:
        p, p_null = (
            torch.exp(-F.cross_entropy(head.logits(states), target, reduction="none")) for states in (hidden, null)
        )
        return ((p - p_null - effect) ** 2 * coefficient).sum()

    total = hidden_ND.new_zeros((), dtype=torch.float32)
    for start in range(0, len(target_N), rows):
        part = slice(start, start + rows)
        arguments = (hidden_ND[part], null_ND[part], target_N[part], coefficient_N[part], effect_N[part])
        total = total + checkpoint(of_chunk, *arguments, use_reentrant=False)
    return total
