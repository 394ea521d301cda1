"""The output head of a model as data, so that log-probabilities can be computed in blocks of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nextquill_core.errors import ModelError
from nextquill_core.model.cpu import linear

EVERYTHING = slice(None)
BLOCK = {"cpu": (1024, 2048), "accelerator": (4096, 32768)}
"""Rows and columns of the fp32 logits that exist at a time.

On a CPU 8 MB, which stay in the cache (16 MB take twice as long); on an accelerator 512 MB, which keep it busy.
"""


@dataclass(frozen=True)
class Head:
    """The head logits = softcap(scale · (W·h + b)) with softcap(z) = c·tanh(z / c).

    Attributes:
        weight_VD: W, shape (V, D), in the model's dtype.
        bias_V: b, shape (V,), or None.
        softcap: c, as in Gemma 2, or None for no soft cap.
        scale: Factor of the logits.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @property
    def is_linear(self) -> bool:
        """Whether the logits are W·h, so that z_h − z_∅ = W(h_h − h_∅) holds."""
        return self.bias_V is None and self.softcap is None and self.scale == 1.0

    def logits(self, hidden_ND: Tensor, vocabulary: slice = EVERYTHING) -> Tensor:
        """Return the logits of a slice of the vocabulary in fp32, shape (N, size of the slice)."""
        weight, bias = self.weight_VD[vocabulary], None if self.bias_V is None else self.bias_V[vocabulary]
        logits = linear(hidden_ND.to(weight.dtype), weight, bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def head_of(model: Any) -> Head:
    """Return the head of a Hugging Face causal language model.

    Raises:
        ModelError: The output layer is not linear.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise ModelError(
            f"its output layer is {type(layer).__name__}, not linear", model.config.name_or_path or "model"
        )
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite divides
    return Head(layer.weight, layer.bias, getattr(config, "final_logit_softcapping", None), scale / divisor)


def target_logprobs(head: Head, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
    """Return log p(target) at each position, without gradient.

    The vocabulary is processed in blocks, whose log-sums of exponentials are combined, so the largest tensor has
    `BLOCK` elements for any size of the vocabulary.

    Args:
        head: Head of the model.
        hidden_ND: Final hidden states.
        target_N: Token ids.

    Returns:
        Log-probabilities in nats, fp32, shape (N,).
    """
    rows, columns = BLOCK["cpu" if hidden_ND.device.type == "cpu" else "accelerator"]
    chunks = zip(hidden_ND.split(rows), target_N.split(rows), strict=True)
    parts = [_chunk_logprobs(head, hidden, target, columns) for hidden, target in chunks]
    return torch.cat(parts) if parts else hidden_ND.new_zeros(0, dtype=torch.float32)


def _chunk_logprobs(head: Head, hidden_ND: Tensor, target_N: Tensor, columns: int) -> Tensor:
    of_target = torch.zeros(len(target_N), device=hidden_ND.device)
    sums = []
    for start in range(0, len(head.weight_VD), columns):
        logits = head.logits(hidden_ND, slice(start, start + columns))
        column = target_N - start
        inside = (column >= 0) & (column < logits.shape[1])
        here = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
        of_target = torch.where(inside, here, of_target)
        sums.append(logits.logsumexp(dim=1))
    return of_target - torch.stack(sums).logsumexp(dim=0)
