"""One adapter a user, trained from scratch on what that user wrote before (OPPU, Tan et al. 2024, arXiv 2402.04401).

The base model has the task's LoRA merged into it (`merged`). On top, each user gets a LoRA that has learned to write
the user's past reviews without history, and then writes the user's next one, likewise without.

The published loop wraps the model of the user before and adds to that user's examples. Here every user starts anew:
weights, order and dropout come from a seed that is a hash of the run's seed and the user's key, so that an adapter does
not depend on who else is trained, or when. LoRA's layers are put in once for all users, and taken out again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nextquill_core.errors import ModelError, first_line
from nextquill_core.model.forward import answer_hidden_states
from nextquill_core.model.head import head_of
from nextquill_core.model.loading import load_adapter
from nextquill_core.model.weights import tensor_faults
from nextquill_core.schemas import Example
from nextquill_core.tokens import TokenPair
from nextquill_core.training.batches import TrainExample, micro_batches, step_examples, steps_per_epoch
from nextquill_core.training.losses import nextquill_loss
from nextquill_core.training.plain_engine import PlainEngine
from nextquill_core.training.trainer import learning_rate_at
from storage.documents import form_expected
from storage.files import atomic_path

Adapter = Mapping[str, Tensor]
"""LoRA's matrices under the names of PEFT's own adapter files, fp32 on the CPU."""

FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")
"""Query, key and value as one layer: GPT-2; NeoX, BLOOM and Falcon; Phi-3; MPT."""

NOBODY = "nobody"
PARTS = ("lora_A", "lora_B")
METADATA = "personal"
ROUNDING = 1e-3
"""Relative difference of the log-likelihoods of the same adapter in training and loaded back."""


@dataclass(frozen=True)
class PersonalSpec:
    """How a user's adapter is trained.

    Rank, alpha, layers, rate and epochs are the paper's; dropout, batch, weight decay, warm-up and clipping those of
    its authors' code. The loss is the mean over a step's answer tokens, the scale that their clipping belongs to.

    Attributes:
        targets: Names of the layers that are adapted. A model without the default ones has its fused projection of
            query, key and value adapted instead (`FUSED`; GPT-2's `c_attn`), keys included.
        global_batch: Reviews an optimizer step.
        warmup_ratio: Share of the steps over which the rate rises; then it falls to 0, both linearly.
        max_grad_norm: Gradients are scaled down to this norm.
    """

    r: int = 8
    alpha: int = 8
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    learning_rate: float = 1e-4
    epochs: int = 2
    seed: int = 0
    dropout: float = 0.05
    global_batch: int = 16
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    max_grad_norm: float = 0.3


def own_reviews(example: Example) -> list[Example]:
    """Each past review of an example as something to write, without history; oldest first, ids `EXAMPLE_ID#i`."""
    return [
        Example(f"{example.example_id}#{number}", example.user_id, example.category, example.split, review, ())
        for number, review in enumerate(example.history)
    ]


def adapter_name(key: str) -> str:
    """The name under which PEFT holds the adapter of `key`: PEFT takes no dots, and no words that torch uses."""
    return f"user-{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def merged(base: Any, folder: Path) -> Any:
    """The base model with the task's adapter merged into it; `base` itself is changed.

    Raises:
        ModelError: There is no adapter in safetensors, it is another model's or incomplete, or merging it gives weights
            that are not finite.
    """
    remedy = "train the task's adapter again on this model"
    adapted = load_adapter(base, folder, remedy=remedy)
    try:
        return adapted.merge_and_unload(safe_merge=True).eval()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"cannot merge it ({first_line(error)})", str(folder), remedy) from error


def train_personal(
    model: Any,
    users: Mapping[str, Sequence[TokenPair]],
    spec: PersonalSpec,
    *,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda finished: None,
) -> dict[str, dict[str, Tensor]]:
    """An adapter for each user, from scratch, on that user's own reviews.

    Args:
        model: The base model, the task's adapter merged; afterwards it is bit for bit what it was.
        users: By the user's key, `own_reviews` as token pairs; may be none. Their factual prompts are read.
        spec: How.
        batch_tokens: Token positions that go through the model together; decides the rounding on a GPU alone.
        advance: Told of every user finished.

    Returns:
        The adapters by key. Who has no past review gets one that changes nothing: B is zero, as at every beginning.

    Raises:
        ModelError: The model has no layer to adapt, is in float16, which needs a scaled loss, or a gradient is not
            finite.
    """
    from peft import LoraConfig

    if model.dtype == torch.float16:
        raise ModelError("personal adapters are not trained in float16", "model.dtype", "choose bfloat16")
    config = LoraConfig(r=spec.r, lora_alpha=spec.alpha, lora_dropout=spec.dropout, **_where(model, spec))
    device = model.device
    found: dict[str, dict[str, Tensor]] = {}
    with (
        _wrapped(model, config) as adapted,
        torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type),
    ):
        trained = {
            name.replace(f".{NOBODY}.", "."): value  # as in PEFT's files
            for name, value in adapted.named_parameters()
            if value.requires_grad
        }
        for key, pairs in users.items():
            seed = _seed(spec, key)
            _start_anew(trained, seed)
            if not _train(adapted, trained, pairs, spec, batch_tokens, seed):
                remedy = "lower their learning rate or set model.dtype float32"
                raise ModelError(f"a gradient of {key} is not finite", "the personal adapters", remedy)
            found[key] = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in trained.items()}
            advance(1)
    return found


def check_stored(
    model: Any,
    path: Path,
    adapters: Mapping[str, Adapter],
    users: Mapping[str, Sequence[TokenPair]],
    spec: PersonalSpec,
) -> None:
    """Read a file of adapters back and compare it with what was trained.

    Every tensor has to be there, bit for bit. One user's adapter, put in as it will be for writing, has to find one of
    the user's reviews as likely as the model did in training.

    Args:
        model: The base model that the adapters were trained on; afterwards it is what it was.
        path: What `save_adapters` wrote.
        adapters: What `train_personal` returned.
        users: What it was given.
        spec: How they were trained.

    Raises:
        ModelError: The file cannot be read, or differs.
    """
    stored, _ = load_adapters(path)
    for key, adapter in adapters.items():
        found = stored.get(key, {})
        if found.keys() != adapter.keys() or not all(
            tensor.numel() > 0 and torch.equal(found[name], tensor) for name, tensor in adapter.items()
        ):
            raise ModelError(f"the stored adapter of {key} is not the trained one", str(path), "train them again")
    with_past = [key for key in adapters if users[key]]
    if not with_past:
        return
    key = with_past[0]
    expected = _likelihood(model, users[key][0], adapters[key], spec)
    with personalised(model, {key: stored[key]}, spec) as adapted:
        adapted.set_adapter(adapter_name(key))
        got = _summed_loss(adapted, users[key][0])
    if not abs(got - expected) <= ROUNDING * max(1.0, abs(expected)):
        reason = f"loaded back, the adapter of {key} gives log-likelihood {-got:.6g}; in training {-expected:.6g}"
        raise ModelError(reason, str(path), "train them again")


def _likelihood(model: Any, pair: TokenPair, adapter: Adapter, spec: PersonalSpec) -> float:
    """The negative log-likelihood of a review by the model as it was trained, LoRA put in by PEFT itself."""
    from peft import LoraConfig

    config = LoraConfig(r=spec.r, lora_alpha=spec.alpha, **_where(model, spec))
    with _wrapped(model, config) as adapted, torch.no_grad():
        for name, value in adapted.named_parameters():
            if value.requires_grad:
                value.copy_(adapter[name.replace(f".{NOBODY}.", ".")])
        return _summed_loss(adapted.eval(), pair)


@torch.no_grad()
def _summed_loss(model: Any, pair: TokenPair) -> float:
    return float(_loss(model, [pair], tokens=1))


@contextmanager
def personalised(model: Any, adapters: Mapping[str, Adapter], spec: PersonalSpec) -> Iterator[Any]:
    """A PEFT model that holds the adapters of many users on one base; afterwards the model is what it was.

    A batch may mix users: `adapter_names=[adapter_name(key), ...]` a row, `"__base__"` for the model without adapter.
    One user at a time goes by `set_adapter(adapter_name(key))`. Where nobody is named, nobody's adapter counts.

    Args:
        model: The base that the adapters were trained on.
        adapters: By the user's key; none at all gives the model itself.
        spec: How they were trained.

    Raises:
        ModelError: An adapter does not fit the model.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    if not adapters:
        yield model
        return
    # PEFT always has one adapter active: one that is zero, so that no user's counts unasked.
    config = LoraConfig(r=spec.r, lora_alpha=spec.alpha, inference_mode=True, **_where(model, spec))
    with _wrapped(model, config) as adapted:
        layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, LoraLayer)}
        for key, adapter in adapters.items():
            adapted.peft_config[adapter_name(key)] = config
            _put_in(layers, key, adapter)
        yield adapted.eval()


def save_adapters(path: Path, adapters: Mapping[str, Adapter], spec: PersonalSpec) -> None:
    """Write the adapters of many users to one safetensors file, tensors named `KEY/PARAMETER`, with the spec."""
    tensors = {
        f"{key}/{name}": tensor.contiguous() for key, adapter in adapters.items() for name, tensor in adapter.items()
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA: json.dumps(asdict(spec), sort_keys=True)})


def load_adapters(path: Path, keys: Collection[str] | None = None) -> tuple[dict[str, dict[str, Tensor]], PersonalSpec]:
    """What `save_adapters` wrote.

    Args:
        path: The file.
        keys: Whose adapters to read; None for all.

    Returns:
        The adapters by key, and how they were trained.

    Raises:
        ModelError: The file cannot be read, holds something else, or lacks the adapter of one of `keys`.
    """
    found: dict[str, dict[str, Tensor]] = {key: {} for key in keys or ()}
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})[METADATA])
            for name in file.keys():  # noqa: SIM118 - not a mapping
                key, _, parameter = name.rpartition("/")
                if keys is None or key in found:
                    found.setdefault(key, {})[parameter] = file.get_tensor(name)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = f"holds no personal adapters ({first_line(error)})"
        raise ModelError(reason, str(path), "train them again") from error
    if missing := sorted(key for key, adapter in found.items() if not adapter):
        raise ModelError(f"there is no adapter of {missing[0]}", str(path), "train them again")
    with form_expected(str(path), "train them again"):
        return found, PersonalSpec(**{**values, "targets": tuple(values["targets"])})


@contextmanager
def _wrapped(model: Any, config: Any) -> Iterator[Any]:
    """A PEFT model around a model that is as before when the block ends: PEFT freezes what it wraps."""
    from peft import get_peft_model

    thawed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    with torch.random.fork_rng([]):  # PEFT draws weights, which ours replace
        adapted = get_peft_model(model, config, adapter_name=NOBODY)
    try:
        yield adapted
    finally:
        adapted.unload()
        for parameter in thawed:
            parameter.requires_grad_(True)
        model.train(training)


def _where(model: Any, spec: PersonalSpec) -> dict[str, Any]:
    """Which layers are adapted, in PEFT's words.

    Raises:
        ModelError: The model has none of them.
    """
    from transformers.pytorch_utils import Conv1D

    linear = {
        name.rpartition(".")[2]: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    names = list(spec.targets)
    if not set(names) <= set(linear) and spec.targets == PersonalSpec.targets:
        names = [name for name in FUSED if name in linear][:1] or names
    if not set(names) <= set(linear):
        raise ModelError(
            f"it has no layers named {' and '.join(names)} to adapt to a user",
            model.config.name_or_path or "model",
            f"its linear layers are {', '.join(sorted(linear))}",
        )
    transposed = isinstance(linear[names[0]], Conv1D)  # GPT-2's layers hold their matrices the other way round
    return {"target_modules": names, "fan_in_fan_out": transposed, "task_type": "CAUSAL_LM"}


def _seed(spec: PersonalSpec, key: str) -> int:
    """40 bits, so that what others multiply it with still fits torch's 64."""
    return int.from_bytes(hashlib.sha256(f"{spec.seed}/{key}".encode()).digest()[:5], "big")


@torch.no_grad()
def _start_anew(trained: Mapping[str, Tensor], seed: int) -> None:
    """LoRA's usual beginning, A uniform in ±1/√(inputs) and B zero; drawn on the CPU, the same for every device."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in trained.items():
        if ".lora_A." in name:
            value.copy_(torch.empty(value.shape).uniform_(-1, 1, generator=generator) / math.sqrt(value.shape[1]))
        else:
            value.zero_()


def _train(
    model: Any,
    trained: Mapping[str, Tensor],
    pairs: Sequence[TokenPair],
    spec: PersonalSpec,
    batch_tokens: int,
    seed: int,
) -> bool:
    """All steps of one user; False where a gradient was not finite."""
    examples = [TrainExample(pair, []) for pair in pairs]
    optimizer = torch.optim.AdamW(trained.values(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    engine = PlainEngine(model, optimizer, spec.max_grad_norm)
    engine.train()
    torch.manual_seed(seed)
    steps = spec.epochs * steps_per_epoch(len(examples), spec.global_batch)
    for step in range(steps):
        batch = step_examples(examples, spec.global_batch, seed, step)
        tokens = sum(len(example.pair.target) for example in batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, spec.learning_rate, spec.warmup_ratio)
        for micro in micro_batches(batch, batch_tokens, ranks=1):
            engine.backward(_loss(model, [example.pair for example in micro.examples], tokens))
        engine.step()
        if not math.isfinite(engine.get_global_grad_norm()):
            return False
    return True


def _loss(model: Any, pairs: Sequence[TokenPair], tokens: int) -> Tensor:
    """These pairs' share of the mean cross-entropy over the answer tokens of a step: Eq. 7 with ω = 1 and α = 0."""
    hidden_ND = answer_hidden_states(model, [pair.factual for pair in pairs], [pair.target for pair in pairs])
    target_N = torch.tensor([token for pair in pairs for token in pair.target], device=hidden_ND.device)
    return nextquill_loss(
        hidden_ND,
        None,
        head_of(model),
        target_N,
        torch.ones_like(target_N),
        torch.zeros_like(target_N),
        alpha=0.0,
        normalization="weight",
        denominator=float(tokens),
    ).loss


def _put_in(layers: Mapping[str, Any], key: str, adapter: Adapter) -> None:
    """Give each LoRA layer a user's matrices, and whatever else it knows of an adapter as it knows it of nobody's.

    PEFT's `add_adapter` walks through all users' modules for each further user, which is minutes for some hundreds.

    Raises:
        ModelError: The adapter does not fit.
    """
    name = adapter_name(key)
    places = {f"{module}.{part}.weight": (layer, part) for module, layer in layers.items() for part in PARTS}
    nobodys = {place: getattr(layer, part)[NOBODY].weight for place, (layer, part) in places.items()}
    if faults := tensor_faults(adapter, {place: weight.shape for place, weight in nobodys.items()}):
        reason = f"the adapter of {key} is damaged or for another model: it {faults}"
        raise ModelError(reason, "the personal adapters", "train them again")
    for layer in layers.values():
        for held in (getattr(layer, attribute) for attribute in layer.other_param_names):
            if NOBODY in held:
                held[name] = held[NOBODY]
    for place, (layer, part) in places.items():
        outputs, inputs = adapter[place].shape
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
        linear.weight = nn.Parameter(adapter[place].to(nobodys[place].device), requires_grad=False)
        getattr(layer, part)[name] = linear
