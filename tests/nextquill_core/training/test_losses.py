"""The losses against hand-derived numbers and against the equations written out with full logits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nextquill_core.model.head import Head
from nextquill_core.training import losses
from nextquill_core.training.losses import nextquill_loss


def written_out(h: Any, h0: Any, w: Any, target: Any, weight: Any, sequence: Any, alpha: float, by: str) -> Any:
    """Eqs. 5 to 7 sample by sample, as a reader would write them down."""
    z, z0 = h @ w.T, h0 @ w.T
    normal = causal = torch.zeros(())
    for sample in sequence.unique():
        own = weight[sequence == sample].sum() if by == "sample_weight" else 1
        for t in (sequence == sample).nonzero().flatten():
            normal = normal + weight[t] * F.cross_entropy(z[t], target[t]) / own
            causal = causal + weight[t] * F.cross_entropy(z[t] - z0[t], target[t]) / own
    divisor = weight.sum() if by == "weight" else len(sequence.unique())
    return normal / divisor + alpha * causal / divisor, normal / divisor, causal / divisor


def test_three_normalisations_by_hand() -> None:
    """V = 2, W = [1, −1], h = 0: every token's CE is ln 2, and with h_∅ = −1 its CE in L_p is c = ln(1 + e⁻²).

    Sample 0 has weights 1 and 3, sample 1 has 4. Σω·CE is 8 CE: over 2 samples 4, over Σω 1, each by its own Σω 1.
    Unweighted there are 3 tokens: over 2 samples 1.5, over 3 tokens 1, each mean averaged 1. For h = [0, ln 2 / 2] of
    sample 0, CE = ln 1.5 there: (1·ln 2 + 3·ln 1.5)/4 and ln 2 average to what `sample_weight` gives.
    """
    half = math.log(2) / 2
    hidden, null = torch.tensor([[0.0], [half], [0.0]]), torch.tensor([[-1.0], [half - 1], [-1.0]])
    head, target = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0, 0])
    weight, sample = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([7, 7, 2])
    two, low, c = math.log(2), math.log(1.5), math.log(1 + math.exp(-2))
    expected: dict[Any, Any] = {
        "sequence": ((two + 3 * low + 4 * two) / 2, 4 * c, 1.5 * c),
        "weight": ((two + 3 * low + 4 * two) / 8, c, c),
        "sample_weight": (((two + 3 * low) / 4 + two) / 2, c, c),
    }
    for by, (normal, causal, unweighted) in expected.items():
        both = [
            nextquill_loss(
                hidden, null, head, target, weight, sample, alpha=0.1, normalization=by, causal_weight_N=ones
            )
            for ones in (None, torch.ones(3))
        ]
        assert [found.normal.item() for found in both] == pytest.approx([normal, normal])
        assert [found.causal.item() for found in both] == pytest.approx([causal, unweighted])
        assert both[1].loss.item() == pytest.approx(normal + 0.1 * unweighted)


def test_a_sample_without_any_weight_counts_nothing() -> None:
    h, h0, w, target, _, sequence = batch()
    for by, share in (("sample_weight", 4 / 5), ("weight", 1.0)):
        weight = (sequence > 0).float()
        got = nextquill_loss(h, h0, w, target, weight, sequence, alpha=0.1, normalization=by)  # type: ignore[arg-type]
        rest = slice(5, None)
        expected = nextquill_loss(
            h[rest], h0[rest], w, target[rest], weight[rest], sequence[rest], alpha=0.1, normalization=by  # type: ignore[arg-type]
        )  # fmt: skip
        torch.testing.assert_close(got.loss, expected.loss * share)
        none = nextquill_loss(h, h0, w, target, weight * 0, sequence, alpha=0.1, normalization=by)  # type: ignore[arg-type]
        assert none.loss.item() == 0


def batch(n: int = 23, d: int = 8, v: int = 31, seed: int = 0) -> list[Any]:
    g = torch.Generator().manual_seed(seed)
    h, h0, w = (torch.randn(*shape, generator=g, requires_grad=True) for shape in ((n, d), (n, d), (v, d)))
    target = torch.randint(0, v, (n,), generator=g)
    return [h, h0, w, target, torch.rand(n, generator=g), torch.arange(n) // 5]


def test_two_words_by_hand() -> None:
    """V = 2, D = 1, W = [1, −1]: z = [h, −h], CE(z, 0) = ln(1 + e^(−2h)).

    h = 0 gives ln 2 for L_n. h − h_∅ = 1 gives ln(1 + e⁻²) for L_p. One sample of weight 0.5 and 1 more of weight 1.
    """
    hidden = torch.tensor([[0.0], [0.0]])
    null = torch.tensor([[-1.0], [-1.0]])
    loss = nextquill_loss(
        hidden, null, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]), torch.tensor([0.5, 1.0]),
        torch.tensor([0, 1]), alpha=0.1,
    )  # fmt: skip
    assert loss.normal.item() == pytest.approx(1.5 * math.log(2) / 2)
    assert loss.causal.item() == pytest.approx(1.5 * math.log(1 + math.exp(-2)) / 2)
    assert loss.loss.item() == pytest.approx(loss.normal.item() + 0.1 * loss.causal.item())


@pytest.mark.parametrize("by", ["sequence", "weight", "sample_weight"])
@pytest.mark.parametrize("impl", ["auto", "chunked", "dense"])
@pytest.mark.parametrize("alpha", [0.0, 0.05, 1.0])
def test_value_and_every_gradient(monkeypatch: Any, by: Any, impl: Any, alpha: float) -> None:
    monkeypatch.setitem(losses.CHUNK, "cpu", 7 * 31)
    expected, got = batch(), batch()
    truth = written_out(*expected, alpha, by)
    truth[0].backward()
    loss = nextquill_loss(*got, alpha=alpha, normalization=by, impl=impl)
    loss.loss.backward()
    torch.testing.assert_close(loss.loss, truth[0])
    torch.testing.assert_close(loss.normal, truth[1])
    if alpha:
        torch.testing.assert_close(loss.causal, truth[2])
    for ours, theirs in zip(got[:3], expected[:3], strict=True):
        if alpha or ours is not got[1]:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_alpha_zero_never_reads_the_other_branch() -> None:
    h, _, w, *rest = batch()
    loss = nextquill_loss(h, None, w, *rest, alpha=0.0)
    assert loss.causal.item() == 0
    with pytest.raises(ValueError, match="hidden_null_ND"):
        nextquill_loss(h, None, w, *rest, alpha=0.1)


def test_effects_instead_of_labels_by_hand_and_by_autograd(monkeypatch: Any) -> None:
    """L_p is then Σ ω (p(y | h) − p(y | h_∅) − effect)², its gradient through both branches."""
    monkeypatch.setitem(losses.CHUNK, "cpu", 7 * 31)
    h, h0, w, target, weight, sequence = batch()
    effect = torch.linspace(-1, 1, len(target))
    p, p0 = ((states @ w.T).softmax(1).gather(1, target[:, None]).squeeze(1) for states in (h, h0))
    expected = (weight * (p - p0 - effect) ** 2).sum() / 5
    got = nextquill_loss(h, h0, w, target, weight, sequence, alpha=0.3, effect_N=effect)
    plain = nextquill_loss(h, None, w, target, weight, sequence, alpha=0)
    torch.testing.assert_close(got.causal, expected)
    torch.testing.assert_close(got.loss, plain.normal + 0.3 * expected)
    for tensor in (h, h0, w):
        (ours,) = torch.autograd.grad(got.causal, tensor, retain_graph=True)
        (theirs,) = torch.autograd.grad(expected, tensor, retain_graph=True)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cuts", [(0, 5, 23), (0, 5, 10, 15, 20, 23)])
@pytest.mark.parametrize("by", ["sequence", "weight", "sample_weight"])
@pytest.mark.parametrize("weighted", [True, False])
def test_micro_batches_add_up_to_the_step(cuts: tuple[int, ...], by: Any, weighted: bool) -> None:
    """1 × 5 = 5 × 1: parts with the step's denominators sum to the step's loss."""
    h, h0, w, target, weight, sequence = batch()
    ones = None if weighted else torch.ones_like(weight)
    whole = nextquill_loss(h, h0, w, target, weight, sequence, alpha=0.3, normalization=by, causal_weight_N=ones)
    normal, causal = (weight.sum().item(), weight.sum().item() if weighted else 23.0) if by == "weight" else (5.0, 5.0)
    parts = [
        nextquill_loss(
            h[a:b], h0[a:b], w, target[a:b], weight[a:b], sequence[a:b], alpha=0.3, normalization=by,
            denominator=normal, causal_weight_N=None if ones is None else ones[a:b], causal_denominator=causal,
        ).loss
        for a, b in itertools.pairwise(cuts)
    ]  # fmt: skip
    torch.testing.assert_close(sum(parts), whole.loss)


@pytest.mark.parametrize("head", [{"softcap": 3.0}, {"bias": True}, {"scale": 0.5}])
def test_heads_without_the_identity_take_the_plain_path(monkeypatch: Any, head: dict[str, Any]) -> None:
    monkeypatch.setitem(losses.CHUNK, "cpu", 7 * 31)
    h, h0, w, target, weight, sequence = batch()
    bias = torch.linspace(-1, 1, len(w)) if head.get("bias") else None
    plain = Head(w, bias, head.get("softcap"), head.get("scale", 1.0))
    z, z0 = plain.logits(h), plain.logits(h0)
    expected = (weight * (F.cross_entropy(z, target, reduction="none") + 0.2 * F.cross_entropy(
        z - z0, target, reduction="none"))).sum() / 5  # fmt: skip
    got = nextquill_loss(h, h0, plain, target, weight, sequence, alpha=0.2)
    torch.testing.assert_close(got.loss, expected)
    (expected_grad,) = torch.autograd.grad(expected, h, retain_graph=True)
    (got_grad,) = torch.autograd.grad(got.loss, h)
    torch.testing.assert_close(got_grad, expected_grad)


def test_bfloat16_stays_within_the_naive_computation_s_own_error() -> None:
    h, h0, w, target, weight, sequence = batch(n=64, d=64, v=500)
    exact = nextquill_loss(h, h0, w, target, weight, sequence, alpha=0.5, impl="dense").loss.item()
    low = [tensor.detach().bfloat16() for tensor in (h, h0, w)]
    z = (low[0] @ low[2].T).float()
    z0 = (low[1] @ low[2].T).float()
    naive = (weight * (F.cross_entropy(z, target, reduction="none") + 0.5 * F.cross_entropy(
        z - z0, target, reduction="none"))).sum().item() / len(sequence.unique())  # fmt: skip
    ours = nextquill_loss(*low, target, weight, sequence, alpha=0.5).loss.item()
    assert abs(ours - exact) <= abs(naive - exact) + 2e-3 * abs(exact)
