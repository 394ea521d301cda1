"""The last step from hidden state to logits, as data, so that it can be run where and how it is cheapest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nextquill_core.errors import ModelError


@dataclass(frozen=True)
class Head:
    """logits = softcap(scale · (W·h + b)).

    Attributes:
        weight_VD: W, as the model holds it.
        softcap: c in c·tanh(z / c), as Gemma 2 has it; None for none.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @property
    def is_linear(self) -> bool:
        """Whether z_h − z_∅ = W(h_h − h_∅) holds and W alone gives the logits."""
        return self.bias_V is None and self.softcap is None and self.scale == 1.0

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits in fp32, shape (N, V)."""
        bias = self.bias_V
        logits = torch.nn.functional.linear(hidden_ND.to(self.weight_VD.dtype), self.weight_VD, bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def head_of(model: Any) -> Head:
    """The head of a Hugging Face causal language model.

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


def target_logprobs(head: Head, hidden_ND: Tensor, target_N: Tensor, chunk: int = 512) -> Tensor:
    """log p(target) at each position, in nats, fp32, shape (N,); never holds more than `chunk` rows of logits."""
    parts = []
    for hidden, target in zip(hidden_ND.split(chunk), target_N.split(chunk), strict=True):
        logits = head.logits(hidden)
        parts.append(logits.gather(1, target[:, None]).squeeze(1) - logits.logsumexp(dim=1))
    return torch.cat(parts) if parts else hidden_ND.new_zeros(0, dtype=torch.float32)
