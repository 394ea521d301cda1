"""The module that is trained, against the equations written out with the model's own full logits."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextquill_core.model.branches import Way
from nextquill_core.training.batches import TrainExample
from nextquill_core.training.objective import Denominators, PreferenceLoss, denominators, training_way
from nextquill_core.training.spec import TrainSpec
from tests.models import small_model
from tests.nextquill_core.model.test_branches import PAIRS

EXAMPLES = [
    TrainExample(one, [0.1 + 0.8 * (t % 2) for t in range(len(one.target))], [0.01 * t for t in range(len(one.target))])
    for one in PAIRS
]
SPEC = TrainSpec(
    output="", sequences="", effects=None, weighted=True, model=None, prompt=None, lora=None,  # type: ignore[arg-type]
    alpha=0.3, normalization="sequence", epochs=1, learning_rate=1e-3, weight_decay=0.0, warmup_ratio=0.0,
    max_grad_norm=1.0, global_batch=6, batch_tokens=10_000, gradient_checkpointing=False, checkpoint_every=1,
    keep_checkpoints=1, zero_stage=0, seed=0,
)  # fmt: skip


def lora(family: str = "qwen2") -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(small_model(family), config)


def written_out(model: Any, spec: TrainSpec) -> Tensor:
    """Eqs. 5 to 7, sample by sample."""
    total = torch.zeros(())
    for example in EXAMPLES:
        target = torch.tensor(example.pair.target)
        weight = torch.tensor(example.weights)
        z, z_null = (
            model(torch.tensor([[*prompt, *example.pair.target]])).logits[0, len(prompt) - 1 : -1]
            for prompt in (example.pair.factual, example.pair.counterfactual)
        )
        z_null = z_null if spec.counterfactual_grad == "through" else z_null.detach()
        causal = F.cross_entropy(z - z_null, target, reduction="none")
        if spec.causal_target == "effect":
            p, p_null = (states.softmax(1).gather(1, target[:, None]).squeeze(1) for states in (z, z_null))
            causal = (p - p_null - torch.tensor(example.effects)) ** 2
        total = total + (weight * (F.cross_entropy(z, target, reduction="none") + spec.alpha * causal)).sum()
    return total / len(EXAMPLES)


OFFICIAL: dict[str, Any] = {
    "alpha": 0.1,
    "normalization": "sample_weight",
    "causal_weighted": False,
    "live_weights": {"policy": "threshold", "delta": 0.0002, "high": 0.9, "low": 0.1},
}


def official(
    model: Any, delta: float = 0.0002, high: float = 0.9, low: float = 0.1
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The official code's objective in double precision with full logits.

    For each sample: effects are differences of the model's own probabilities, without gradient; L_n is Σ ω CE / Σ ω;
    L_p is the mean cross-entropy of the difference of logits; L = L_n + 0.1 L_p. Then the mean over the samples.
    """
    exact = copy.deepcopy(model).double()
    total = torch.zeros((), dtype=torch.float64)
    effects = []
    for example in EXAMPLES:
        target = torch.tensor(example.pair.target)
        z, z_null = (
            exact(torch.tensor([[*prompt, *example.pair.target]])).logits[0, len(prompt) - 1 : -1]
            for prompt in (example.pair.factual, example.pair.counterfactual)
        )
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


@pytest.mark.parametrize("way", ["reuse", "plain", "packed"])
@pytest.mark.parametrize("micro", [len(EXAMPLES), 1])
def test_the_official_objective_is_the_official_code_s(way: Way, micro: int) -> None:
    """All at once and one example at a time: the same loss, the same gradients."""
    model, spec = lora(), replace(SPEC, **OFFICIAL)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected, gradients = official(model)
    objective = PreferenceLoss(model, spec, way)
    whole = denominators(EXAMPLES, spec)
    parts = [objective(EXAMPLES[at : at + micro], whole).loss for at in range(0, len(EXAMPLES), micro)]
    loss = torch.stack(parts).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, trained), gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("way", ["reuse", "plain", "packed"])
def test_perce_takes_its_weights_from_the_model_in_training(way: Way) -> None:
    """ω = clip(log p(y | h) − log p(y | ∅), floor, ceiling), and nothing of it has a gradient; there is no L_p."""
    live = {"policy": "perce", "floor": 0.001, "ceiling": 0.01}
    model, spec = lora(), replace(SPEC, alpha=0.0, normalization="sample_weight", live_weights=live)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.zeros(())
    for example in EXAMPLES:
        target = torch.tensor(example.pair.target)
        losses = [
            F.cross_entropy(
                model(torch.tensor([[*prompt, *example.pair.target]])).logits[0, len(prompt) - 1 : -1],
                target,
                reduction="none",
            )
            for prompt in (example.pair.factual, example.pair.counterfactual)
        ]
        weight = (losses[1] - losses[0]).detach().clamp(0.001, 0.01)
        expected = expected + (weight * losses[0]).sum() / weight.sum() / len(EXAMPLES)
    got = PreferenceLoss(model, spec, way)(EXAMPLES, denominators(EXAMPLES, spec))
    assert got.causal.item() == 0
    torch.testing.assert_close(got.loss, expected, atol=1e-5, rtol=1e-5)
    gradients = zip(torch.autograd.grad(got.loss, trained), torch.autograd.grad(expected, trained), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def rows_of_the_last_layer(model: Any, spec: TrainSpec) -> list[int]:
    """Of each call of its feed-forward part's last product."""
    rows: list[int] = []
    part = model.get_base_model().get_decoder().layers[-1].mlp.down_proj
    hook = part.register_forward_pre_hook(lambda _part, inputs: rows.append(inputs[0].shape[1]))
    loss = PreferenceLoss(model, spec, "plain")
    rows.clear()  # those of the trial
    loss(EXAMPLES, Denominators(1.0, 1.0))
    hook.remove()
    return rows


def test_the_last_layer_computes_the_answers_rows_alone() -> None:
    answers = [len(example.pair.target) for example in EXAMPLES]
    differing = [len(pair.target) for pair in PAIRS if pair.factual != pair.counterfactual]
    assert rows_of_the_last_layer(lora(), SPEC) == answers + differing


def test_nothing_is_left_out_where_a_layer_is_computed_again() -> None:
    rows = rows_of_the_last_layer(lora(), replace(SPEC, gradient_checkpointing=True))
    assert rows[0] == len(PAIRS[0].factual) + len(PAIRS[0].target) - 1


@pytest.mark.parametrize("way", ["reuse", "plain", "packed"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 0.0},
        {"counterfactual_grad": "stop"},
        {"causal_target": "effect"},
        {"causal_target": "effect", "counterfactual_grad": "stop"},
    ],
    ids=str,
)
def test_value_and_every_gradient_of_the_adapter(way: Way, changes: dict[str, Any]) -> None:
    spec, model = replace(SPEC, **changes), lora()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = written_out(model, spec)
    got = PreferenceLoss(model, spec, way)(EXAMPLES, denominators(EXAMPLES, spec)).loss
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    gradients = zip(torch.autograd.grad(got, trained), torch.autograd.grad(expected, trained), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_a_capped_head_takes_the_plain_path() -> None:
    model = lora("gemma2")
    got = PreferenceLoss(model, SPEC, "reuse")(EXAMPLES, denominators(EXAMPLES, SPEC)).loss
    torch.testing.assert_close(got, written_out(model, SPEC), atol=1e-5, rtol=1e-5)


def test_the_way_of_training() -> None:
    model = lora().train()
    assert training_way(model, SPEC) == "reuse"
    assert model.training
    assert training_way(model, replace(SPEC, zero_stage=3)) == "packed"
    assert training_way(model, replace(SPEC, gradient_checkpointing=True)) == "plain"
    assert training_way(model, replace(SPEC, alpha=0.0)) == "plain"


def test_gradient_checkpointing_changes_nothing_but_rounding() -> None:
    spec, model = replace(SPEC, gradient_checkpointing=True), lora()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(written_out(model, SPEC), trained)
    model.train().get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    decoder = model.get_base_model().get_decoder()
    assert decoder.gradient_checkpointing
    loss = PreferenceLoss(model, spec, training_way(model, spec))(EXAMPLES, denominators(EXAMPLES, spec)).loss
    for ours, theirs in zip(torch.autograd.grad(loss, trained), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
