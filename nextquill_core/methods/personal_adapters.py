"""Personal adapters: one LoRA per user, trained on the user's past reviews (OPPU, Tan et al. 2024, arXiv 2402.04401).

The base model has the task's LoRA merged into it (`merge_adapter`). On top, each user has a LoRA that is trained on the
user's past reviews, each without history, and then generates the user's next review, also without history.

The published loop draws new weights for each user, but it never empties its list of examples: the adapter of the n-th
user learns from the reviews of the first n users. Here an adapter learns from its user's reviews alone, as the paper
says. Weights, order and dropout come from a seed that is a hash of the run's seed and the user's key, so an adapter
does not depend on the other users. LoRA's layers are inserted once for all users and removed at the end.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nextquill_core.config.evaluate import PERSONAL_TARGETS, PersonalConfig
from nextquill_core.errors import ModelError, first_line
from nextquill_core.model.forward import answer_hidden_states
from nextquill_core.model.head import head_of
from nextquill_core.model.loading import load_adapter, tensor_faults
from nextquill_core.schemas import Example
from nextquill_core.tokens import TokenPair
from nextquill_core.training.data import TrainExample, micro_batches, step_examples, steps_per_epoch
from nextquill_core.training.engines import PlainEngine
from nextquill_core.training.losses import plain_loss
from nextquill_core.training.trainer import learning_rate_at
from storage.files import atomic_path
from storage.stored_json import expect_form

Adapter = Mapping[str, Tensor]
"""LoRA's matrices under their names in PEFT's adapter files, fp32 on the CPU."""

FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")
"""Names of fused query, key and value projections: GPT-2; NeoX, BLOOM and Falcon; Phi-3; MPT."""

EMPTY = "empty"
"""Name of the adapter that PEFT always needs and that belongs to no user."""
PARTS = ("lora_A", "lora_B")
METADATA = "personal"
ROUNDING = 1e-3
"""Tolerated relative difference between the log-likelihoods in training and after loading."""


class PersonalTraining(PersonalConfig):
    """How a user's adapter is trained: the config section with what it does not set.

    Rank, alpha, layers, learning rate, epochs, dropout, batch size, weight decay, warm-up and clipping are those of the
    authors' code. The loss is the mean over a step's answer tokens, the scale that their clipping belongs to. In their
    code the first step has the learning rate 0; here it has a share of the highest one.

    Attributes:
        r: Rank.
        alpha: Alpha; the adapter is scaled by alpha / r.
        targets: Names of the adapted layers. In a model without the default ones the fused projection of query, key and
            value is adapted instead (`FUSED`; GPT-2's `c_attn`), keys included.
        learning_rate: Highest learning rate of AdamW.
        epochs: Passes over a user's history.
        seed: Seed of the run.
        dropout: Dropout probability of LoRA.
        global_batch: Reviews per optimizer step.
        weight_decay: Weight decay of AdamW.
        warmup_ratio: Share of the steps in which the learning rate rises; then it falls to 0, both linearly.
        max_grad_norm: Gradients are scaled down to this norm.
    """

    targets: tuple[str, ...] = PERSONAL_TARGETS
    seed: int = 0
    dropout: float = 0.05
    global_batch: int = 16
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    max_grad_norm: float = 0.3


def review_examples(example: Example) -> list[Example]:
    """Return each past review as an example without history, oldest first, with ids `EXAMPLE_ID#i`."""
    return [
        Example(f"{example.example_id}#{number}", example.user_id, example.category, example.split, review, ())
        for number, review in enumerate(example.history)
    ]


def adapter_name(key: str) -> str:
    """Return PEFT's name for the adapter of `key`: PEFT accepts neither dots nor words that torch uses."""
    return f"user-{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def merge_adapter(base: Any, folder: Path) -> Any:
    """Merge the task's adapter into the base model.

    Args:
        base: The base model; it is changed.
        folder: The adapter's folder.

    Returns:
        The merged model.

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
    spec: PersonalTraining,
    *,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda finished: None,
) -> dict[str, dict[str, Tensor]]:
    """Train an adapter for each user, from scratch, on that user's past reviews.

    Args:
        model: The base model with the task's adapter merged; afterwards it is bit for bit as before.
        users: By the user's key, the token pairs of `review_examples`, possibly none; only their factual prompts count.
        spec: How to train.
        batch_tokens: Number of token positions in a pass; it only affects rounding on a GPU.
        advance: Called with 1 for every finished user.

    Returns:
        The adapters by key. A user without past reviews has one that changes nothing: its B is zero, as initialised.

    Raises:
        ModelError: The model has no layer to adapt, is in float16, which needs a scaled loss, or a gradient is not
            finite.
    """
    if model.dtype == torch.float16:
        raise ModelError("personal adapters are not trained in float16", "model.dtype", "choose bfloat16")
    config = _lora(model, spec, lora_dropout=spec.dropout)
    device = model.device
    found: dict[str, dict[str, Tensor]] = {}
    with (
        _wrapped(model, config) as adapted,
        torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type),
    ):
        trained = {
            name.replace(f".{EMPTY}.", "."): value  # as in PEFT's files
            for name, value in adapted.named_parameters()
            if value.requires_grad
        }
        for key, pairs in users.items():
            seed = _seed(spec, key)
            _initialise(trained, seed)
            if not _train(adapted, trained, pairs, spec, batch_tokens, seed):
                remedy = "lower evaluate.personal.learning_rate or set model.dtype to float32"
                raise ModelError(f"a gradient of {key} is not finite", "the personal adapters", remedy)
            found[key] = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in trained.items()}
            advance(1)
    return found


def check_stored(
    model: Any,
    path: Path,
    adapters: Mapping[str, Adapter],
    users: Mapping[str, Sequence[TokenPair]],
    spec: PersonalTraining,
) -> None:
    """Read a file of adapters back and compare it with the trained adapters.

    Every tensor must be equal bit for bit. One user's adapter, loaded as for generation, must give one of the user's
    reviews the same likelihood as in training.

    Args:
        model: The base model that the adapters were trained on; afterwards it is as before.
        path: The file that `save_adapters` wrote.
        adapters: The adapters that `train_personal` returned.
        users: The reviews that they were trained on.
        spec: How they were trained.

    Raises:
        ModelError: The file cannot be read, or it differs.
    """
    stored, _ = load_adapters(path)
    for key, adapter in adapters.items():
        found = stored.get(key, {})
        if found.keys() != adapter.keys() or not all(
            tensor.numel() > 0 and torch.equal(found[name], tensor) for name, tensor in adapter.items()
        ):
            raise ModelError(f"the stored adapter of {key} is not the trained one", str(path), "train them again")
    with_reviews = [key for key in adapters if users[key]]
    if not with_reviews:
        return
    key = with_reviews[0]
    expected = _likelihood(model, users[key][0], adapters[key], spec)
    with with_personal_adapters(model, {key: stored[key]}, spec) as adapted:
        adapted.set_adapter(adapter_name(key))
        got = _summed_loss(adapted, users[key][0])
    if not abs(got - expected) <= ROUNDING * max(1.0, abs(expected)):
        reason = f"after loading, the adapter of {key} gives log-likelihood {-got:.6g}; in training {-expected:.6g}"
        raise ModelError(reason, str(path), "train them again")


def _likelihood(model: Any, pair: TokenPair, adapter: Adapter, spec: PersonalTraining) -> float:
    """Return the negative log-likelihood of a review under the model as trained, with LoRA inserted by PEFT."""
    with _wrapped(model, _lora(model, spec)) as adapted, torch.no_grad():
        for name, value in adapted.named_parameters():
            if value.requires_grad:
                value.copy_(adapter[name.replace(f".{EMPTY}.", ".")])
        return _summed_loss(adapted.eval(), pair)


@torch.no_grad()
def _summed_loss(model: Any, pair: TokenPair) -> float:
    return float(_loss(model, [pair], tokens=1))


@contextmanager
def with_personal_adapters(model: Any, adapters: Mapping[str, Adapter], spec: PersonalTraining) -> Iterator[Any]:
    """Yield a PEFT model that holds the adapters of many users on one base; afterwards the model is as before.

    A batch may mix users: `adapter_names=[adapter_name(key), ...]` selects one per row, `"__base__"` none. For one user
    at a time use `set_adapter(adapter_name(key))`. Without a selection no user's adapter is active.

    Args:
        model: The base model that the adapters were trained on.
        adapters: Adapters by the user's key; without any, the model itself is yielded.
        spec: How they were trained.

    Raises:
        ModelError: An adapter does not fit the model.
    """
    from peft.tuners.lora import LoraLayer

    if not adapters:
        yield model
        return
    # PEFT always has one adapter active: an empty one, so that no user's is active without a selection.
    config = _lora(model, spec, inference_mode=True)
    with _wrapped(model, config) as adapted:
        layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, LoraLayer)}
        for key, adapter in adapters.items():
            adapted.peft_config[adapter_name(key)] = config
            _insert(layers, key, adapter)
        yield adapted.eval()


def save_adapters(path: Path, adapters: Mapping[str, Adapter], spec: PersonalTraining) -> None:
    """Write the adapters of many users to one safetensors file, tensors named `KEY/PARAMETER`.

    Args:
        path: The file.
        adapters: Adapters by the user's key.
        spec: How they were trained; it is stored in the file's metadata.
    """
    tensors = {
        f"{key}/{name}": tensor.contiguous() for key, adapter in adapters.items() for name, tensor in adapter.items()
    }
    with atomic_path(path) as temporary:
        save_file(
            tensors,
            temporary,
            metadata={METADATA: json.dumps(spec.model_dump(mode="json", exclude={"folds"}), sort_keys=True)},
        )


def load_adapters(path: Path) -> tuple[dict[str, dict[str, Tensor]], PersonalTraining]:
    """Return the adapters in a file of `save_adapters` by user, and how they were trained.

    Raises:
        ModelError: The file cannot be read, or holds something else.
    """
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})[METADATA])
            for name in file.keys():  # noqa: SIM118 - not a mapping
                key, _, parameter = name.rpartition("/")
                found.setdefault(key, {})[parameter] = file.get_tensor(name)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = f"holds no personal adapters ({first_line(error)})"
        raise ModelError(reason, str(path), "train them again") from error
    with expect_form(str(path), "train them again"):
        return found, PersonalTraining(**values)


@contextmanager
def _wrapped(model: Any, config: Any) -> Iterator[Any]:
    """Yield a PEFT model around a model, and undo the wrapping and freezing when the block ends."""
    from peft import get_peft_model

    thawed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    with torch.random.fork_rng([]):  # PEFT draws initial weights, which are replaced
        adapted = get_peft_model(model, config, adapter_name=EMPTY)
    try:
        yield adapted
    finally:
        adapted.unload()
        for parameter in thawed:
            parameter.requires_grad_(True)
        model.train(training)


def _lora(model: Any, spec: PersonalTraining, **options: Any) -> Any:
    """Return PEFT's configuration of a user's adapter; `options` are further arguments of it.

    Raises:
        ModelError: The model has no such layers.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    linear = {
        name.rpartition(".")[2]: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    names = list(spec.targets)
    if not set(names) <= set(linear) and spec.targets == PERSONAL_TARGETS:
        names = [name for name in FUSED if name in linear][:1] or names
    if not set(names) <= set(linear):
        raise ModelError(
            f"it has no layers named {' and '.join(names)} to adapt to a user",
            model.config.name_or_path or "model",
            f"its linear layers are {', '.join(sorted(linear))}",
        )
    transposed = isinstance(linear[names[0]], Conv1D)  # GPT-2's layers hold their matrices the other way round
    where = {"target_modules": names, "fan_in_fan_out": transposed, "task_type": "CAUSAL_LM"}
    return LoraConfig(r=spec.r, lora_alpha=spec.alpha, **where, **options)


def _seed(spec: PersonalTraining, key: str) -> int:
    """Return the seed of one user: 40 bits, so that products with it still fit torch's 64."""
    return int.from_bytes(hashlib.sha256(f"{spec.seed}/{key}".encode()).digest()[:5], "big")


@torch.no_grad()
def _initialise(trained: Mapping[str, Tensor], seed: int) -> None:
    """Initialise LoRA as usual, A uniform in ±1/√(inputs) and B zero; drawn on the CPU, equal on every device."""
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
    spec: PersonalTraining,
    batch_tokens: int,
    seed: int,
) -> bool:
    """Train one user; return False where a gradient was not finite."""
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
    """Return the pairs' part of a step's mean cross-entropy over its answer tokens."""
    hidden_ND = answer_hidden_states(model, [pair.factual for pair in pairs], [pair.target for pair in pairs])
    return plain_loss(head_of(model), hidden_ND, [token for pair in pairs for token in pair.target], tokens)


def _insert(layers: Mapping[str, Any], key: str, adapter: Adapter) -> None:
    """Give each LoRA layer a user's matrices, and copy its other settings from the empty adapter.

    PEFT's `add_adapter` walks through all users' modules for each further user, which takes minutes for some hundreds.

    Raises:
        ModelError: The adapter does not fit.
    """
    name = adapter_name(key)
    places = {f"{module}.{part}.weight": (layer, part) for module, layer in layers.items() for part in PARTS}
    empty = {place: getattr(layer, part)[EMPTY].weight for place, (layer, part) in places.items()}
    if faults := tensor_faults(adapter, {place: weight.shape for place, weight in empty.items()}):
        reason = f"the adapter of {key} is damaged or for another model: it {faults}"
        raise ModelError(reason, "the personal adapters", "train them again")
    for layer in layers.values():
        for held in (getattr(layer, attribute) for attribute in layer.other_param_names):
            if EMPTY in held:
                held[name] = held[EMPTY]
    for place, (layer, part) in places.items():
        outputs, inputs = adapter[place].shape
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
        linear.weight = nn.Parameter(adapter[place].to(empty[place].device), requires_grad=False)
        getattr(layer, part)[name] = linear
