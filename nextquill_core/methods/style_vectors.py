"""Style vectors: one direction a user in the states of one layer (StyleVector, Zhang et al. 2025, arXiv 2503.05213).

A past review y of the query x is compared with a style-free text ŷ that the model itself writes for the same query. The
difference of the states of their last tokens after layer ℓ holds how the user writes, since both are about the same
thing. The user's vector is the mean over the past reviews P, and decoding adds it to the states of that layer:

    s = 1 / |P| · Σ_{(x, y) in P} [ h_ℓ(x ⊕ y) − h_ℓ(x ⊕ ŷ) ]          h'_ℓ,t = h_ℓ,t + α · s

t runs over the positions whose states predict a token of the answer: the last token of the prompt, and the answer. The
prompt shows no history. Layer and strength are chosen on val.

    L chosen layers, D hidden size, B rows of a batch, T positions
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.errors import ModelError
from nextquill_core.generation.engines import BASE
from nextquill_core.methods.individual_model import IndividualModel
from nextquill_core.model.forward import answer_hidden_states, decoder_of, device_of
from nextquill_core.records import TokenPair

Vectors = Mapping[str, Tensor]
"""By example, the style vector after each chosen layer, (L, D), fp32 on the CPU."""


def blocks_of(model: Any) -> nn.ModuleList:
    """Return the layers of a causal language model, in order.

    Raises:
        ModelError: The model has no list of layers.
    """
    decoder = decoder_of(model)
    count = model.config.get_text_config().num_hidden_layers
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    name = model.config.name_or_path or type(model).__name__
    raise ModelError("it has no list of layers to add a style vector to", name, "leave out `stylevector`")


def layer_at(depth: float, layers: int) -> int:
    """Return the number of the layer after which a share of all layers is done, 1 for the first.

    Args:
        depth: The share, above 0 and up to 1.
        layers: Number of layers of the model.
    """
    return min(layers, max(1, math.ceil(depth * layers)))


@torch.inference_mode()
def last_states(model: Any, pairs: Sequence[TokenPair], layers: Sequence[int]) -> list[Tensor]:
    """Return the states of the last token of prompt and answer after some layers, from one pass for each pair.

    The stop token is left out, because it is the same for every author.

    Args:
        model: A causal language model in evaluation mode.
        pairs: Reviews to read; only their factual prompts count. One without an answer is an error.
        layers: Numbers of layers, 1 for the first.

    Returns:
        For each pair (L, D), fp32 on the CPU.
    """
    decoder, blocks = decoder_of(model), blocks_of(model)
    caught: dict[int, Tensor] = {}

    def catch(number: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            caught[number] = _states(output)[0, -1].float().cpu()

        return blocks[number - 1].register_forward_hook(hook)

    hooks = [catch(number) for number in layers]
    try:
        found = []
        for pair in pairs:
            ids = torch.tensor([[*pair.factual, *pair.target]], device=device_of(model))
            decoder(input_ids=ids, use_cache=False)
            found.append(torch.stack([caught[number] for number in layers]))
        return found
    finally:
        for hook in hooks:
            hook.remove()


def without_stop(pair: TokenPair, stop: int) -> TokenPair:
    """Return a pair without the stop token at the end of its answer."""
    target = pair.target[:-1] if pair.target[-1:] == [stop] else pair.target
    return TokenPair(pair.example_id, pair.factual, pair.counterfactual, target)


def style_differences(
    model: Any, own: Sequence[TokenPair], neutral: Sequence[TokenPair], layers: Sequence[int]
) -> list[Tensor | None]:
    """Return how the states of each review differ from those of the style-free text for the same query.

    Args:
        model: A causal language model in evaluation mode.
        own: The reviews, without stop tokens.
        neutral: The style-free texts for the same prompts, without stop tokens.
        layers: Numbers of layers, 1 for the first.

    Returns:
        For each review (L, D), fp32 on the CPU; None where either text is empty.
    """
    both = [row for row in range(len(own)) if own[row].target and neutral[row].target]
    written = last_states(model, [own[row] for row in both], layers)
    plain = last_states(model, [neutral[row] for row in both], layers)
    found: list[Tensor | None] = [None] * len(own)
    for row, mine, other in zip(both, written, plain, strict=True):
        found[row] = mine - other
    return found


def style_vector(differences: Sequence[Tensor | None], shape: tuple[int, int]) -> Tensor:
    """Return the mean of the differences of a user's reviews; zero, which changes nothing, without any.

    Args:
        differences: From `style_differences`.
        shape: (L, D).
    """
    known = [difference for difference in differences if difference is not None]
    return torch.stack(known).mean(dim=0) if known else torch.zeros(shape)


class StyledModel(IndividualModel):
    """A causal language model that adds a user's vector to the states of one layer, by row.

    Args:
        model: The base model; it is not changed, except for a hook until `remove` is called.
        layer: Number of the layer after which vectors are added, 1 for the first.
        vectors: By name, what is added, (D,).
    """

    def __init__(self, model: Any, layer: int, vectors: Vectors) -> None:
        super().__init__(model, vectors)
        self._vectors = {name: vector.to(model.device, model.dtype) for name, vector in vectors.items()}
        self._current = threading.local()
        self._hook = blocks_of(model)[layer - 1].register_forward_hook(self._add)

    def remove(self) -> None:
        """Take the hook off the base model."""
        self._hook.remove()

    def forward(self, *inputs: Any, adapter_names: Sequence[str] | None = None, **options: Any) -> Any:
        """Run the base model; the vector of each row is added at its last position.

        Args:
            inputs: Arguments of the base model.
            adapter_names: The name of each row's vector.
            options: Further arguments of the base model.
        """
        if adapter_names is None:
            return self.base(*inputs, **options)
        with self.adding(adapter_names, 1):
            return self.base(*inputs, **options)

    def answer_states(self, pair: TokenPair) -> Tensor:
        """Return the final states that predict each answer token; see `IndividualModel`."""
        with self.adding([pair.example_id], len(pair.target)):
            return answer_hidden_states(self.base, [pair.factual], [pair.target], packed=False)

    @contextmanager
    def adding(self, names: Sequence[str], positions: int) -> Iterator[None]:
        """Add vectors in passes of this thread within the block.

        Args:
            names: The name of each row's vector.
            positions: Number of last positions of each row that the vector is added to.
        """
        self._current.added = self._stacked(tuple(names)), positions
        try:
            yield
        finally:
            self._current.added = None

    def _stacked(self, names: tuple[str, ...]) -> Tensor:
        """Return the vectors of the rows, (B, 1, D); those of the previous step are reused, as decoding asks again."""
        known = getattr(self._current, "stacked", None)
        if known is None or known[0] != names:
            nothing = torch.zeros_like(next(iter(self._vectors.values())))
            rows = [nothing if name == BASE else self._vectors[name] for name in names]
            known = self._current.stacked = names, torch.stack(rows)[:, None]
        stacked: Tensor = known[1]
        return stacked

    def _add(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        added = getattr(self._current, "added", None)
        if added is None:
            return None
        vectors_B1D, positions = added
        states_BTD = _states(output).clone()
        states_BTD[:, -positions:] += vectors_B1D
        return (states_BTD, *output[1:]) if isinstance(output, tuple) else states_BTD


@contextmanager
def styled(model: Any, layer: int, vectors: Vectors) -> Iterator[StyledModel]:
    """Yield a model that adds vectors after a layer; afterwards the base model is as before.

    Args:
        model: The base model.
        layer: Number of the layer, 1 for the first.
        vectors: By name, what is added, (D,).
    """
    wrapped = StyledModel(model, layer, vectors).eval()
    try:
        yield wrapped
    finally:
        wrapped.remove()


def _states(output: Any) -> Tensor:
    """Return the states that a layer gives, (B, T, D); some models' layers give them with other values."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
