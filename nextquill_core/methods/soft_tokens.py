"""Soft tokens of how a user differs from others in vectors (DEP, Qiu et al. 2025, arXiv 2507.20849).

Each of the user's newest past reviews that others have reviewed too gives two vectors: its own, e, and its difference
to the vectors e_p of the other reviews of the item, weighted by how far apart the two users' mean reviews m are:

    d = Σ_p w_p · (e − e_p)          w = softmax over p of ‖m − m_p‖ / Σ_q ‖m − m_q‖

A sparse autoencoder compresses them, z = GELU(W_1 x + b_1) and x̂ = GELU(W_2 z + b_2), and two small networks turn z of
the reviews and of the differences into soft tokens of the frozen model's size. They stand before the text of the
prompt of `latestk`. Trained are the autoencoder and the networks alone, by

    L = cross-entropy of the answer + 100 · ( smooth L1(x, x̂) + 0.001 · mean KL(ρ ‖ ρ̂) )     ρ = 0.05

where ρ̂ is the mean of z over an example's vectors. Architecture, constants and optimizer are those of its authors'
code. Ours differs in three places. Soft tokens stand together and not beside the reviews (in the code the n-th soft
token stands beside the n-th newest review, whether or not it is of this review). m is the mean of the reviews that were
written before the target (in the code the training target is among them). And the factor is the 100 of the formula:
under the trainer of transformers that the code uses, a step adds up the autoencoder's losses of its 16 examples, which
makes it 1,600. Smaller differences are listed in docs/reference/paper.md.

    K reviews, P other reviews, E vector size, F features, D hidden size, T positions, B rows
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextquill_core.errors import ModelError, first_line
from nextquill_core.generation.engines import BASE
from nextquill_core.methods.example_tensors import AGAIN
from nextquill_core.methods.individual_model import IndividualModel
from nextquill_core.model.checkpoint import Checkpoint
from nextquill_core.model.forward import decoder_of, device_of, last_rows_read
from nextquill_core.model.head import head_of
from nextquill_core.records import TokenPair
from nextquill_core.training.data import step_examples, steps_per_epoch
from nextquill_core.training.losses import plain_loss
from nextquill_core.training.trainer import learning_rate_at

DENSITY = 0.05
"""ρ: mean activation of a feature that the sparsity term asks for."""
SPARSITY_WEIGHT, AUTOENCODER_WEIGHT = 1e-3, 100.0
FEATURES_SHARE = 0.5
"""Features of the autoencoder for each number of a vector: 512 for 1,024."""
WEIGHT_DECAY, WARMUP_RATIO, GLOBAL_BATCH, MAX_GRAD_NORM = 0.025, 0.01, 16, 1.0
EDGE = 1e-6

Inputs = Mapping[str, Tensor]
"""By example, the vectors of its reviews and their differences, (2, K, E), fp32 on the CPU; K may be 0."""


@dataclass(frozen=True)
class SoftTraining:
    """How the soft tokens are trained: the settings that its authors' code does not fix.

    Attributes:
        epochs: Passes over the examples.
        learning_rate: Highest learning rate of AdamW.
        seed: Seed of the initial weights and of the order.
    """

    epochs: int
    learning_rate: float
    seed: int


def difference(own_E: Tensor, others_PE: Tensor, profile_E: Tensor, profiles_PE: Tensor) -> Tensor:
    """Return the weighted difference of a review's vector to those of other reviews of the same item, (E,).

    Args:
        own_E: Vector of the user's review.
        others_PE: Vectors of the other reviews, at least one.
        profile_E: Mean vector of the user's reviews.
        profiles_PE: Mean vector of the reviews of each other user.
    """
    distances_P = (profile_E - profiles_PE).norm(dim=1)
    total = distances_P.sum()
    weights_P = torch.softmax(distances_P / total if total > 0 else distances_P, dim=0)
    return (weights_P[:, None] * (own_E - others_PE)).sum(dim=0)


class SoftTokens(nn.Module):
    """The trained part: from vectors of reviews to soft tokens.

    Args:
        size: E.
        hidden: D.
        seed: Seed of the initial weights: Xavier's uniform distribution; biases are 0.
    """

    def __init__(self, size: int, hidden: int, seed: int = 0) -> None:
        super().__init__()
        self.hidden = hidden
        features = max(1, round(FEATURES_SHARE * size))
        self.encoder = nn.Sequential(nn.Linear(size, features), nn.GELU())
        self.decoder = nn.Sequential(nn.Linear(features, size), nn.GELU())
        self.of_review = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.of_difference = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def forward(self, vectors_2KE: Tensor) -> tuple[Tensor, Tensor]:
        """Return the soft tokens, those of the reviews first, (2·K, D), and the autoencoder's loss.

        Args:
            vectors_2KE: Vectors of the reviews, and their differences; K at least 1.
        """
        features_2KF = self.encoder(vectors_2KE)
        restored_2KE = self.decoder(features_2KF)
        mean_F = features_2KF.flatten(0, 1).mean(dim=0).clamp(EDGE, 1 - EDGE)
        divergence_F = DENSITY * (DENSITY / mean_F).log() + (1 - DENSITY) * ((1 - DENSITY) / (1 - mean_F)).log()
        loss = F.smooth_l1_loss(restored_2KE, vectors_2KE) + SPARSITY_WEIGHT * divergence_F.mean()
        tokens = torch.cat([self.of_review(features_2KF[0]), self.of_difference(features_2KF[1])])
        return tokens, loss

    def no_tokens(self) -> Tensor:
        """Return the soft tokens of a user without any compared review, (0, D)."""
        return torch.zeros(0, self.hidden)


def place_of(prompt: Sequence[int], other: Sequence[int]) -> int:
    """Return where soft tokens stand in prompts: after the markup that opens them.

    Args:
        prompt: Token ids of a prompt.
        other: Those of a prompt whose text begins with another character.
    """
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(prompt, other, strict=False)))


def with_placeholders(pair: TokenPair, place: int, count: int) -> TokenPair:
    """Return a pair whose factual prompt has `count` more tokens at a place, where soft tokens will stand.

    They are copies of the prompt's last token, which a repetition penalty counts as seen anyway.

    Args:
        pair: Token ids of an example.
        place: Where the soft tokens will stand.
        count: Number of soft tokens.
    """
    prompt = [*pair.factual[:place], *[pair.factual[-1]] * count, *pair.factual[place:]]
    return replace(pair, factual=prompt)


def _answer_states(model: Any, pair: TokenPair, place: int, tokens_ND: Tensor) -> Tensor:
    """Return the final states that predict each answer token, with soft tokens at a place of the prompt."""
    decoder = decoder_of(model)
    ids_T = torch.tensor([*pair.factual, *pair.target[:-1]], device=device_of(model))
    with torch.no_grad():
        embedded_TD = model.get_input_embeddings()(ids_T)
    tokens_ND = tokens_ND.to(embedded_TD.dtype)
    inputs_TD = torch.cat([embedded_TD[:place], tokens_ND, embedded_TD[place + len(tokens_ND) :]])
    with last_rows_read(len(pair.target)):
        states: Tensor = decoder(inputs_embeds=inputs_TD[None], use_cache=False).last_hidden_state[0]
    return states[-len(pair.target) :]


def train_soft_tokens(
    model: Any,
    pairs: Sequence[TokenPair],
    inputs: Inputs,
    place: int,
    settings: SoftTraining,
    *,
    advance: Callable[[int], None] = lambda finished: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[SoftTokens, list[dict[str, float]]]:
    """Train the soft tokens of a frozen model.

    A step's loss is the mean over its examples of each example's mean over its answer tokens, plus the autoencoder's.
    Interrupted training resumes at its checkpoint; on a CPU it ends with the same weights.

    Args:
        model: The base model; afterwards it is as before.
        pairs: The examples; only their factual prompts count.
        inputs: Vectors of each example's reviews; examples without any are left out.
        place: Where soft tokens stand in a prompt.
        settings: How to train.
        advance: Receives 1 for every example of every epoch.
        checkpoint: Checkpoint to resume from and to write; None writes no checkpoint.

    Returns:
        The trained part on the CPU; and for each step `loss` and its parts `answer` and `autoencoder`.

    Raises:
        ModelError: There is no example to train on, the model is in float16, which needs a scaled loss, or a loss or
            gradient is not finite.
    """
    used = [pair for pair in pairs if inputs[pair.example_id].shape[1]]
    if model.dtype == torch.float16:
        raise ModelError("soft tokens are not trained in float16", "model.dtype", "choose bfloat16")
    if not used:
        what = "no train example has a past review whose item another user has reviewed"
        raise ModelError(what, "method dep", "leave it out, or ingest more users of the same items")
    size, hidden = inputs[used[0].example_id].shape[2], model.config.get_text_config().hidden_size
    soft = SoftTokens(size, hidden, settings.seed).to(device_of(model))
    optimizer = _optimizer(soft, settings.learning_rate)
    steps = settings.epochs * steps_per_epoch(len(used), GLOBAL_BATCH)
    batches = [step_examples(used, GLOBAL_BATCH, settings.seed, step) for step in range(steps)]
    found: list[tuple[float, float]] = checkpoint.restore(soft, optimizer) if checkpoint else []
    advance(sum(map(len, batches[: len(found)])))
    with _frozen(model):
        for step, batch in list(enumerate(batches))[len(found) :]:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, steps, settings.learning_rate, WARMUP_RATIO)
            parts = (0.0, 0.0)
            for pair in batch:
                answer, autoencoder = _losses(model, soft, pair, inputs[pair.example_id], place)
                ((answer + AUTOENCODER_WEIGHT * autoencoder) / len(batch)).backward()
                parts = parts[0] + answer.item() / len(batch), parts[1] + autoencoder.item() / len(batch)
                advance(1)
            norm = float(nn.utils.clip_grad_norm_(soft.parameters(), MAX_GRAD_NORM))
            if not (math.isfinite(norm) and math.isfinite(sum(parts))):
                remedy = "lower evaluate.dep.learning_rate or set model.dtype to float32"
                raise ModelError(f"the loss or gradient of step {step + 1} is not finite", "method dep", remedy)
            optimizer.step()
            optimizer.zero_grad()
            found.append(parts)
            if checkpoint:
                checkpoint.write_if_due(soft, optimizer, found)
    return soft.eval().cpu(), [
        {"loss": answer + AUTOENCODER_WEIGHT * autoencoder, "answer": answer, "autoencoder": autoencoder}
        for answer, autoencoder in found
    ]


def _optimizer(soft: SoftTokens, learning_rate: float) -> torch.optim.AdamW:
    """Return the optimizer: biases do not decay, as under the trainer of transformers that its authors use."""
    named = list(soft.named_parameters())
    biases = [parameter for name, parameter in named if name.endswith("bias")]
    weights = [parameter for name, parameter in named if not name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate)


def _losses(model: Any, soft: SoftTokens, pair: TokenPair, vectors: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of an example's answer tokens, and the autoencoder's loss."""
    tokens_ND, autoencoder = soft(vectors.to(device_of(model)))
    prepared = with_placeholders(pair, place, len(tokens_ND))
    states_ND = _answer_states(model, prepared, place, tokens_ND)
    return plain_loss(head_of(model), states_ND, pair.target, len(pair.target)), autoencoder


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Leave the base model's weights out of the backward pass within the block."""
    thawed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


class SoftModel(IndividualModel):
    """A causal language model in whose prompts each example's soft tokens stand.

    Args:
        model: The base model.
        tokens: By name, the soft tokens, (N, D); without any, the example's prompt is that of the base model.
        place: Where they stand in a prompt.
    """

    def __init__(self, model: Any, tokens: Mapping[str, Tensor], place: int) -> None:
        super().__init__(model, tokens)
        self._tokens = {name: value.to(self.device, model.dtype) for name, value in tokens.items()}
        self._place = place

    def prepared(self, pair: TokenPair) -> TokenPair:
        """Return the example with placeholders where its soft tokens will stand."""
        return with_placeholders(pair, self._place, len(self._tokens[pair.example_id]))

    def answer_states(self, pair: TokenPair) -> Tensor:
        """Return the final states that predict each answer token; see `IndividualModel`."""
        return _answer_states(self.base, pair, self._place, self._tokens[pair.example_id])

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        adapter_names: Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Run the base model; in a pass over prompts, the soft tokens of each row replace the placeholders.

        Args:
            input_ids: Token ids, (B, T).
            position_ids: The position of each token in its row, (B, T); placeholders are found by it.
            adapter_names: The name of each row's soft tokens.
            options: Further arguments of the base model.
        """
        if adapter_names is None or position_ids is None or input_ids.shape[1] == 1:
            return self.base(input_ids=input_ids, position_ids=position_ids, **options)
        embedded_BTD = self.base.get_input_embeddings()(input_ids).clone()
        for row, name in enumerate(adapter_names):
            tokens_ND = self._tokens[name] if name != BASE else embedded_BTD.new_zeros(0, embedded_BTD.shape[2])
            for number, token_D in enumerate(tokens_ND):
                embedded_BTD[row, position_ids[row] == self._place + number] = token_D
        return self.base(inputs_embeds=embedded_BTD, position_ids=position_ids, **options)


def soft_tokens_of(state: Mapping[str, Tensor], where: str) -> SoftTokens:
    """Return the trained part with stored weights.

    Args:
        state: The weights by name.
        where: Where they come from, for the error message.

    Raises:
        ModelError: They are something else.
    """
    try:
        soft = SoftTokens(state["encoder.0.weight"].shape[1], state["of_review.0.weight"].shape[0])
        soft.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"holds no soft tokens ({first_line(error)})", where, AGAIN) from error
    return soft.eval()
