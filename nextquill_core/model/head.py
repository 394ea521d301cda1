"""The last step from hidden state to logits, as data, so that it can be run where and how it is cheapest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nextquill_core.errors import ModelError
from nextquill_core.model.cpu.half import linear

EVERYTHING = slice(None)
# Rows and columns of logits that are held at a time: what stays in a processor's cache (8 MB; twice as fast as 16), or
# keeps an accelerator busy (512 MB).
BLOCK = {"cpu": (1024, 2048), "accelerator": (4096, 32768)}


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

    def logits(self, hidden_ND: Tensor, vocabulary: slice = EVERYTHING) -> Tensor:
        """Logits of a part of the vocabulary in fp32, shape (N, size of that part)."""
        weight, bias = self.weight_VD[vocabulary], None if self.bias_V is None else self.bias_V[vocabulary]
        logits = linear(hidden_ND.to(weight.dtype), weight, bias).float()
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


def target_logprobs(head: Head, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
    """log p(target) at each position, in nats, fp32, shape (N,), for inference.

    Goes through the vocabulary in blocks, so that the largest tensor has `BLOCK` elements whatever the vocabulary, and
    puts the blocks' log-sums of exponentials together.
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
        place = target_N - start
        inside = (place >= 0) & (place < logits.shape[1])
        here = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
        of_target = torch.where(inside, here, of_target)
        sums.append(logits.logsumexp(dim=1))
    return of_target - torch.stack(sums).logsumexp(dim=0)
