"""The losses against hand-derived numbers and against the equations with full logits, those of a model too."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextquill_core.methods.registry import METHODS
from nextquill_core.model.forward import Strategy
from nextquill_core.model.head import Head
from nextquill_core.orders import TrainOrder
from nextquill_core.training import losses
from nextquill_core.training.data import TrainExample
from nextquill_core.training.losses import Denominators, PreferenceLoss, denominators, nextquill_loss, training_strategy
from tests.models import lora_model, small_model
from tests.nextquill_core.model.test_forward import PAIRS
from tests.orders import changed, train_order


def written_out(h: Any, h0: Any, w: Any, target: Any, weight: Any, sequence: Any, alpha: float, by: str) -> Any:
    # Eqs. 5 to 7 sample by sample, as a reader would write them down.
    z, z0 = h @ w.T, h0 @ w.T
    normal = causal = torch.zeros(())
    for sample in sequence.unique():
        mine = weight[sequence == sample]
        own = {"sample_weight": mine.sum(), "sample_tokens": len(mine)}.get(by, 1)
        for t in (sequence == sample).nonzero().flatten():
            normal = normal + weight[t] * F.cross_entropy(z[t], target[t]) / own
            causal = causal + weight[t] * F.cross_entropy(z[t] - z0[t], target[t]) / own
    divisor = weight.sum() if by == "weight" else len(sequence.unique())
    return normal / divisor + alpha * causal / divisor, normal / divisor, causal / divisor


def test_four_normalisations_by_hand() -> None:
    """V = 2, W = [1, −1], h = 0: every token's CE is ln 2, and with h_∅ = −1 its CE in L_p is c = ln(1 + e⁻²).

    Sample 0 has weights 1 and 3, sample 1 has 4. Σω·CE is 8 CE: over 2 samples 4, over Σω 1, each by its own Σω 1.
    Unweighted there are 3 tokens: over 2 samples 1.5, over 3 tokens 1, each mean averaged 1. For h = [0, ln 2 / 2] of
    sample 0, CE = ln 1.5 there: (1·ln 2 + 3·ln 1.5)/4 and ln 2 average to what `sample_weight` gives. An unweighted L_n
    is of ln 2 + ln 1.5 and ln 2: their sum over 2 samples or 3 tokens, and the mean of (ln 2 + ln 1.5)/2 and ln 2. By
    its number of tokens, sample 0 counts half: L_p is (4/2 + 4)/2 c, and unweighted, as every mean, c.
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
        "sample_tokens": (((two + 3 * low) / 2 + 4 * two) / 2, 3 * c, c),
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
        aligned = nextquill_loss(
            hidden, null, head, target, torch.ones(3), sample, alpha=0.1, normalization=by, causal_weight_N=weight
        )
        plain = {"sequence": two + low / 2, "weight": (2 * two + low) / 3}.get(by, 0.75 * two + low / 4)
        assert (aligned.normal.item(), aligned.causal.item()) == pytest.approx((plain, causal))
        assert aligned.loss.item() == pytest.approx(plain + 0.1 * causal)


def lowest(weight: Tensor, alpha: float, *, normal: float = 1.0) -> tuple[Tensor, Tensor, float]:
    # Both branches' logits at the minimum of normal·L_n + α·L_p, with every token as a target and any logits possible.
    logits = torch.zeros(2, len(weight), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    tokens, eye = torch.arange(len(weight)), torch.eye(len(weight), dtype=torch.float64)

    def loss() -> Tensor:
        search.zero_grad()
        with_history, without = (branch.expand(len(weight), -1) for branch in logits)
        parts = nextquill_loss(with_history, without, eye, tokens, weight, torch.zeros_like(tokens), alpha=alpha)
        found = normal * parts.normal + alpha * parts.causal
        found.backward()
        return found

    search.step(loss)
    return logits[0].detach(), logits[1].detach(), loss().item()


def test_weights_tilt_what_the_loss_converges_to() -> None:
    """With p = (0.6, 0.3, 0.1) and w = (0.1, 0.9, 0.1): w·p = (0.06, 0.27, 0.01), so q = (6, 27, 1)/34 and not p.

    Under q, the log-likelihood is lower by KL(p ‖ q) = log Σ w·p − Σ p·log w. One weight for all tokens leaves p.
    """
    p, w = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.1, 0.9, 0.1]).double()
    q = torch.tensor([6.0, 27.0, 1.0]).double() / 34
    assert lowest(p * w, 0)[0].softmax(0).tolist() == pytest.approx(q.tolist(), rel=1e-4)
    assert lowest(p * 0.1, 0)[0].softmax(0).tolist() == pytest.approx(p.tolist(), rel=1e-4)
    price = (p * (p / q).log()).sum().item()
    assert price == pytest.approx(math.log(0.34) - (0.7 * math.log(0.1) + 0.3 * math.log(0.9)))


def test_l_n_and_l_p_agree_only_if_nothing_is_predicted_without_history() -> None:
    """L_p alone wants softmax(z_h − z_∅) = q, whatever z_∅ is; with L_n it makes z_∅ the same for all tokens."""
    weight = torch.tensor([0.06, 0.27, 0.01]).double()
    q = (weight / weight.sum()).tolist()
    with_history, without, _ = lowest(weight, 1.0, normal=0.0)
    assert (with_history - without).softmax(0).tolist() == pytest.approx(q, rel=1e-3)
    with_history, without, least = lowest(weight, 0.5)
    assert with_history.softmax(0).tolist() == pytest.approx(q, rel=1e-3)
    assert without.softmax(0).tolist() == pytest.approx([1 / 3] * 3, rel=1e-3)
    entropy = -sum(share * math.log(share) for share in q)
    assert least == pytest.approx(1.5 * weight.sum().item() * entropy)


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


@pytest.mark.parametrize("by", ["sequence", "weight", "sample_weight", "sample_tokens"])
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
@pytest.mark.parametrize("by", ["sequence", "weight", "sample_weight", "sample_tokens"])
@pytest.mark.parametrize("weighted", [True, False])
def test_micro_batches_add_up_to_the_step(cuts: tuple[int, ...], by: Any, weighted: bool) -> None:
    # 1 × 5 = 5 × 1: parts with the step's denominators sum to the step's loss.
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


def test_chunks_hold_128_and_512_megabytes_of_fp32_logits() -> None:
    assert {kind: count * 4 / 2**20 for kind, count in losses.CHUNK.items()} == {"cpu": 128, "accelerator": 512}


@pytest.mark.parametrize(
    ("at_once", "rows"),
    [(7 * 31, [7, 7, 7, 2]), (8 * 31 - 1, [7, 7, 7, 2]), (30, [1] * 23), (23 * 31, [23]), (2**25, [23])],
)
def test_a_chunk_holds_as_many_whole_rows_as_fit_and_one_at_least(
    monkeypatch: Any, at_once: int, rows: list[int]
) -> None:
    """V = 31 and 23 tokens: 217 logits are 7 rows, 247 are not yet 8, and a row of 31 does not fit in 30."""
    monkeypatch.setattr(losses, "CHUNK", {"cpu": at_once, "accelerator": 31})
    seen: list[int] = []
    whole = losses._cross_entropy

    def watched(logits_NV: Any, *others: Any) -> Any:
        seen.append(len(logits_NV))
        return whole(logits_NV, *others)

    monkeypatch.setattr(losses, "_cross_entropy", watched)
    nextquill_loss(*batch(), alpha=0.5)
    assert seen == [*rows, *rows], "of L_n and of L_p"
    nextquill_loss(*batch(), alpha=0.5, impl="dense")
    assert seen == [*rows, *rows], "all logits at once are autograd's"


def test_only_parts_of_a_batch_are_computed_again_in_the_backward(monkeypatch: Any) -> None:
    """Recomputing saves memory where there are several chunks; of one chunk it would only cost a second pass."""
    monkeypatch.setitem(losses.CHUNK, "cpu", 7 * 31)
    again: list[int] = []

    def watched(function: Any, *arguments: Any, **options: Any) -> Any:
        again.append(len(h[arguments[0]]))
        return function(*arguments)

    monkeypatch.setattr(losses, "checkpoint", watched)
    h, h0, w, *rest = batch()
    nextquill_loss(h, h0, Head(w, softcap=3.0), *rest, alpha=0.0)
    assert again == [7, 7, 7, 2]
    nextquill_loss(h, h0, w, *rest, alpha=0.5, impl="dense")
    monkeypatch.setitem(losses.CHUNK, "cpu", 2**25)
    nextquill_loss(h, h0, Head(w, softcap=3.0), *rest, alpha=0.5)
    assert again == [7, 7, 7, 2]


def test_no_gradient_is_formed_that_is_not_asked_for(monkeypatch: Any) -> None:
    """A frozen head of Qwen2.5-3B would cost 1.2 GB of fp32 zeros; scoring needs no gradient of hidden states."""

    def refused(tensor: Any, **_: Any) -> Any:
        raise AssertionError(f"memory for a gradient of shape {tuple(tensor.shape)}")

    h, _, w, *rest = batch()
    frozen = nextquill_loss(h, None, w.detach(), *rest, alpha=0.0)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros_like", refused)
        nextquill_loss(h, None, w.detach(), *rest, alpha=0.0)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty_like", refused)
        full = nextquill_loss(h.detach(), None, w, *rest, alpha=0.0)
    frozen.loss.backward()
    assert h.grad is not None
    assert w.grad is None
    full.loss.backward()
    assert w.grad is not None


def test_chunked_and_dense_losses_and_gradients_agree_on_each_device(device: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(losses, "CHUNK", {"cpu": 7 * 31, "accelerator": 7 * 31})
    found = []
    for impl in ("chunked", "dense"):
        h, h0, w, *rest = (tensor.detach().to(device) for tensor in batch())
        for tensor in (h, h0, w):
            tensor.requires_grad_()
        loss = nextquill_loss(h, h0, w, *rest, alpha=0.3, impl=impl)  # type: ignore[arg-type]
        loss.loss.backward()
        found.append([loss.normal, loss.causal, h.grad, h0.grad, w.grad])
    for ours, theirs in zip(*found, strict=True):
        assert ours.device.type == device
        torch.testing.assert_close(ours, theirs)


EXAMPLES = [
    TrainExample(one, [0.1 + 0.8 * (t % 2) for t in range(len(one.target))], [0.01 * t for t in range(len(one.target))])
    for one in PAIRS
]
ORDER = train_order(Path(), alpha=0.3, global_batch=6, deepspeed={"zero_stage": 0}, weighted=True)


def lora(family: str = "qwen2") -> Any:
    return lora_model(small_model(family))


def branch_logits(model: Any, example: TrainExample) -> tuple[Tensor, Tensor]:
    """The logits at the positions that predict each answer token, with and without history."""
    pair = example.pair
    z, z_null = (
        model(torch.tensor([[*prompt, *pair.target]])).logits[0, len(prompt) - 1 : -1]
        for prompt in (pair.factual, pair.counterfactual)
    )
    return z, z_null


def assert_same_gradients(model: Any, loss: Tensor, expected: Tensor | tuple[Tensor, ...]) -> None:
    """Compare every gradient of the adapter with those of another loss, or with gradients that are given."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    theirs = torch.autograd.grad(expected, trained) if isinstance(expected, Tensor) else expected
    torch.testing.assert_close(torch.autograd.grad(loss, trained), theirs, atol=1e-4, rtol=1e-3)


def with_full_logits(model: Any, order: TrainOrder) -> Tensor:
    """Eqs. 5 to 7, sample by sample."""
    total = torch.zeros(())
    for example in EXAMPLES:
        target = torch.tensor(example.pair.target)
        weight = torch.tensor(example.weights)
        z, z_null = branch_logits(model, example)
        z_null = z_null if order.train.causal_loss.counterfactual_grad == "through" else z_null.detach()
        causal = F.cross_entropy(z - z_null, target, reduction="none")
        if order.train.causal_loss.target == "effect":
            p, p_null = (states.softmax(1).gather(1, target[:, None]).squeeze(1) for states in (z, z_null))
            causal = (p - p_null - torch.tensor(example.effects)) ** 2
        total = total + (weight * (F.cross_entropy(z, target, reduction="none") + order.train.alpha * causal)).sum()
    return total / len(EXAMPLES)


OFFICIAL: dict[str, Any] = {
    "alpha": 0.1,
    "normalization": "sample_weight",
    "causal_loss": {"weighted": False},
    "live_weights": {"policy": "threshold", "delta": 0.0002, "high": 0.9, "low": 0.1},
}


def official(
    model: Any, delta: float = 0.0002, high: float = 0.9, low: float = 0.1
) -> tuple[Tensor, tuple[Tensor, ...]]:
    # The official code's objective in double precision with full logits.
    #
    # For each sample: effects are differences of the model's own probabilities, without gradient; L_n is Σ ω CE / Σ ω;
    # L_p is the mean cross-entropy of the difference of logits; L = L_n + 0.1 L_p. Then the mean over the samples.
    exact = copy.deepcopy(model).double()
    total = torch.zeros((), dtype=torch.float64)
    effects = []
    for example in EXAMPLES:
        target = torch.tensor(example.pair.target)
        z, z_null = branch_logits(exact, example)
        p, p_null = (states.detach().softmax(1).gather(1, target[:, None]).squeeze(1) for states in (z, z_null))
        effects.append(p - p_null)
        weight = torch.where(effects[-1] > delta, high, low)
        normal = (weight * F.cross_entropy(z, target, reduction="none")).sum() / weight.sum()
        total = total + normal + 0.1 * F.cross_entropy(z - z_null, target, reduction="mean")
    together = torch.cat(effects)
    assert 0 < (together > delta).sum() < len(together), "both weights occur"
    assert (together - delta).abs().min() > 1e-5, "no effect is so near to δ that single precision decides"
    loss = total / len(EXAMPLES)
    gradients = torch.autograd.grad(loss, [value for value in exact.parameters() if value.requires_grad])
    return loss.detach(), gradients


@pytest.mark.parametrize("strategy", ["reuse", "plain", "packed"])
@pytest.mark.parametrize("micro", [len(EXAMPLES), 1])
def test_the_official_objective_is_the_official_code_s(strategy: Strategy, micro: int) -> None:
    """All at once and one example at a time: the same loss, the same gradients."""
    model, order = lora(), changed(ORDER, **OFFICIAL)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected, gradients = official(model)
    objective = PreferenceLoss(model, order, strategy)
    whole = denominators(EXAMPLES, order)
    parts = [objective(EXAMPLES[at : at + micro], whole).loss for at in range(0, len(EXAMPLES), micro)]
    loss = torch.stack(parts).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, trained), gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("strategy", ["reuse", "plain", "packed"])
def test_perce_takes_its_weights_from_the_model_in_training(strategy: Strategy) -> None:
    """ω = clip(log p(y | h) − log p(y | ∅), floor, ceiling), and nothing of it has a gradient; there is no L_p.

    The loss of a review is −1/n Σ_t ω_t log p_t over its n tokens, as published.
    """
    live = {"policy": "perce", "floor": 0.001, "ceiling": 0.01}
    method = METHODS["perce-live"].training
    assert method
    model, order = lora(), changed(ORDER, alpha=0.0, normalization=method.fixed["normalization"], live_weights=live)
    expected = torch.zeros(())
    for example in EXAMPLES:
        target = torch.tensor(example.pair.target)
        losses = [F.cross_entropy(logits, target, reduction="none") for logits in branch_logits(model, example)]
        weight = (losses[1] - losses[0]).detach().clamp(0.001, 0.01)
        expected = expected + (weight * losses[0]).sum() / len(target) / len(EXAMPLES)
    got = PreferenceLoss(model, order, strategy)(EXAMPLES, denominators(EXAMPLES, order))
    assert got.causal.item() == 0
    torch.testing.assert_close(got.loss, expected, atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, got.loss, expected)


@pytest.mark.parametrize(
    ("by", "live"),
    [
        ("sequence", False), ("weight", False), ("sample_weight", False), ("sequence", True), ("sample_weight", True),
        ("sample_tokens", False), ("sample_tokens", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("micro", [len(EXAMPLES), 1])
def test_preference_weights_in_l_p_alone(by: str, live: bool, micro: int) -> None:
    """The row MCE-DCE: in L_n every token counts 1, in L_p ω. All at once and one example at a time, with gradients."""
    policy = {"policy": "perce", "floor": 0.001, "ceiling": 0.01}
    model = lora()
    order = changed(ORDER, normalization=by, normal_loss={"weighted": False}, live_weights=policy if live else None)
    terms: list[list[Tensor]] = []  # of each example ω, its cross-entropies, and those of the difference of logits
    for example in EXAMPLES:
        target = torch.tensor(example.pair.target)
        z, z_null = branch_logits(model, example)
        losses = [F.cross_entropy(logits, target, reduction="none") for logits in (z, z_null, z - z_null)]
        ratio = (losses[1] - losses[0]).detach().clamp(0.001, 0.01)
        terms.append([ratio if live else torch.tensor(example.weights), losses[0], losses[2]])
    if by in ("sample_weight", "sample_tokens"):
        normal = torch.stack([plain.mean() for _, plain, _ in terms]).mean()
        own = [weight.sum() if by == "sample_weight" else len(weight) for weight, _, _ in terms]
        sums = [(weight * loss).sum() for weight, _, loss in terms]
        causal = torch.stack([total / divisor for total, divisor in zip(sums, own, strict=True)]).mean()
    else:
        weight, plain, loss = (torch.cat(column) for column in zip(*terms, strict=True))
        divisors = (len(plain), weight.sum()) if by == "weight" else (len(EXAMPLES), len(EXAMPLES))
        normal, causal = plain.sum() / divisors[0], (weight * loss).sum() / divisors[1]
    expected = normal + 0.3 * causal
    objective, whole = PreferenceLoss(model, order, "reuse"), denominators(EXAMPLES, order)
    parts = [objective(EXAMPLES[at : at + micro], whole) for at in range(0, len(EXAMPLES), micro)]
    found = [torch.stack([part[term] for part in parts]).sum() for term in range(3)]
    for ours, theirs in zip(found, (expected, normal, causal), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, found[0], expected)


def rows_of_the_last_layer(model: Any, order: TrainOrder) -> list[int]:
    """Of each call of its feed-forward part's last product."""
    rows: list[int] = []
    part = model.get_base_model().get_decoder().layers[-1].mlp.down_proj
    hook = part.register_forward_pre_hook(lambda _part, inputs: rows.append(inputs[0].shape[1]))
    loss = PreferenceLoss(model, order, "plain")
    rows.clear()  # those of the trial
    loss(EXAMPLES, Denominators(1.0, 1.0))
    hook.remove()
    return rows


def test_the_last_layer_computes_the_answers_rows_alone() -> None:
    expected = [len(pair.target) for pair in PAIRS for _ in range(2 if pair.has_history else 1)]
    assert rows_of_the_last_layer(lora(), ORDER) == expected


def test_nothing_is_left_out_where_a_layer_is_computed_again() -> None:
    rows = rows_of_the_last_layer(lora(), changed(ORDER, gradient_checkpointing=True))
    assert rows[0] == len(PAIRS[0].factual) + len(PAIRS[0].target) - 1


@pytest.mark.parametrize("strategy", ["reuse", "plain", "packed"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 0.0},
        {"causal_loss": {"counterfactual_grad": "stop"}},
        {"causal_loss": {"target": "effect"}},
        {"causal_loss": {"target": "effect", "counterfactual_grad": "stop"}},
    ],
    ids=str,
)
def test_value_and_every_gradient_of_the_adapter(strategy: Strategy, changes: dict[str, Any]) -> None:
    order, model = changed(ORDER, **changes), lora()
    expected = with_full_logits(model, order)
    got = PreferenceLoss(model, order, strategy)(EXAMPLES, denominators(EXAMPLES, order)).loss
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, got, expected)


def test_a_capped_head_takes_the_plain_path() -> None:
    model = lora("gemma2")
    got = PreferenceLoss(model, ORDER, "reuse")(EXAMPLES, denominators(EXAMPLES, ORDER)).loss
    torch.testing.assert_close(got, with_full_logits(model, ORDER), atol=1e-5, rtol=1e-5)


def test_the_strategy_of_training() -> None:
    model = lora().train()
    assert training_strategy(model, ORDER) == "reuse"
    assert model.training
    assert training_strategy(model, changed(ORDER, deepspeed={"zero_stage": 3})) == "packed"
    assert training_strategy(model, changed(ORDER, gradient_checkpointing=True)) == "plain"
    assert training_strategy(model, changed(ORDER, alpha=0.0)) == "plain"


def test_gradient_checkpointing_changes_nothing_but_rounding() -> None:
    order, model = changed(ORDER, gradient_checkpointing=True), lora()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(with_full_logits(model, ORDER), trained)
    model.train().get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    decoder = model.get_base_model().get_decoder()
    assert decoder.gradient_checkpointing
    loss = PreferenceLoss(model, order, training_strategy(model, order))(EXAMPLES, denominators(EXAMPLES, order)).loss
    assert_same_gradients(model, loss, expected)
