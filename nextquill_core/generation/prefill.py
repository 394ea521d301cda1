"""Reading prompts, which is most of the work where answers are short: as few positions and as many cores as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from nextquill_core.generation.cache import Rows, read
from nextquill_core.model.cpu.feed_forward import feed_forward_parts, sparing
from nextquill_core.model.cpu.parallel_passes import passes_at_once, side_by_side
from nextquill_core.model.forward import last_rows_read

TOGETHER = 512  # prompts are read together up to so many positions; a longer one fills a thread alone


class Reader:
    """A model that reads prompts.

    On a CPU prompts go through it side by side, each on one thread, and the last layer's feed-forward part computes no
    more than each prompt's last token. Both leave the numbers as they are, but for rounding; a model that allows one of
    them only, or none, is read without it.

    Attributes:
        at_once: Passes that go side by side: prompts are best read in multiples of it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.at_once = passes_at_once(model)
        on_cpu = next(model.parameters()).device.type == "cpu"
        self._sparing = feed_forward_parts(model) if on_cpu else []

    def read(
        self, prompts: Sequence[Sequence[int]], options: Callable[[slice], dict[str, Any]]
    ) -> list[tuple[Rows, Tensor]]:
        """Read all prompts, neighbours that are short in one pass.

        Args:
            prompts: Of at least one token each.
            options: What the model is to be told besides, for a slice of the prompts.

        Returns:
            `cache.read` of one group of neighbours after the other.
        """
        groups = [(prompts[group], options(group)) for group in together(prompts)]
        told = any(options for _, options in groups)  # PEFT tells its layers by hooks, of which all passes would hear
        with sparing(self._sparing):
            return side_by_side(self._pass, groups, 1 if told else self.at_once)

    def _pass(self, group: tuple[Sequence[Sequence[int]], dict[str, Any]]) -> tuple[Rows, Tensor]:
        prompts, options = group
        with last_rows_read(1):
            return read(self.model, prompts, **options)


def together(prompts: Sequence[Sequence[int]]) -> Iterator[slice]:
    """Neighbours that are read in one pass."""
    start = longest = 0
    for end, prompt in enumerate(prompts):
        longest = max(longest, len(prompt))
        if end > start and longest * (end + 1 - start) > TOGETHER:
            yield slice(start, end)
            start, longest = end, len(prompt)
    if start < len(prompts):
        yield slice(start, len(prompts))
