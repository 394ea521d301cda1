"""A base model with a part for each user that is no adapter: a vector in one layer, or soft tokens in the prompt.

The engine selects parts as it selects PEFT's adapters: by names in `peft_config`, and one of them for each row in
`adapter_names`. So a batch may mix users. Likelihoods are computed for one example at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.generation.engines import BASE
from nextquill_core.model.forward import device_of
from nextquill_core.records import TokenPair


class IndividualModel(nn.Module):
    """A base model with named parts; rows without a name, or with `engines.BASE`, are the base model's own.

    Args:
        model: The base model.
        names: Names of the parts.
    """

    active_adapter = BASE
    """What a pass uses that names no part."""

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        super().__init__()
        self.base = model
        self.config = model.config
        self.generation_config = getattr(model, "generation_config", None)
        self.peft_config = dict.fromkeys(names)

    @property
    def device(self) -> torch.device:
        """The device of the base model."""
        return device_of(self.base)

    def get_base_model(self) -> Any:
        """Return the base model."""
        return self.base

    def get_input_embeddings(self) -> Any:
        """Return the base model's embedding of tokens."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Return the base model's output layer."""
        return self.base.get_output_embeddings()

    def prepared(self, pair: TokenPair) -> TokenPair:
        """Return an example as this model reads it; its name is the example's id."""
        return pair

    def answer_states(self, pair: TokenPair) -> Tensor:
        """Return the final states that predict each answer token, with the part that has the example's id as its name.

        Args:
            pair: What `prepared` returned.

        Returns:
            (len(target), D) in the model's dtype.
        """
        raise NotImplementedError
