"""LoRA's shape, and which layers get an adapter, in the forms that PEFT's `target_modules` takes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from nextquill_core.config.base import Positive, Section

ALL_LINEAR = "all-linear"
NAME = re.compile(r"\w+(\.\w+)*")
"""A module's name or path. PEFT would read such a string as a regular expression, which matches no whole path."""


def checked_targets(targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return `targets` if PEFT can read them in any model.

    Raises:
        ValueError: They are neither `all-linear` nor a regular expression nor a list of names.
    """
    if not targets:
        raise ValueError("no layer is named: name layers, or set all-linear")
    if not isinstance(targets, str):
        if len(targets) == 1 and targets[0].lower() == ALL_LINEAR:
            return ALL_LINEAR
        if invalid := [name for name in targets if not NAME.fullmatch(name)]:
            raise ValueError(
                f"{invalid[0]!r} in a list is not the name of a module: write a regular expression without a list"
            )
        return targets
    if targets.lower() == ALL_LINEAR:
        return ALL_LINEAR
    names = [name.strip("\"' ") for name in re.split(r"[,;\s]+", targets.strip("[]() "))]
    if len(names) > 1 and all(map(NAME.fullmatch, names)):
        raise ValueError(f"{targets!r} is read as one regular expression: write a list, [{', '.join(names)}]")
    try:
        re.compile(targets)
    except re.error as error:
        raise ValueError(
            f"{targets!r} is not a regular expression ({error}): write one such as .*\\.(q_proj|v_proj), or a list of "
            "names such as [q_proj, v_proj]"
        ) from None
    return targets


class LoraSettings(Section):
    """LoRA; the paper states neither rank nor targets, so these are common values."""

    r: Positive = 16
    """rank of the adapter's matrices"""
    alpha: Positive = 32
    """scale of the update, which is multiplied by alpha / r"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """dropout on the adapter's input during training"""
    targets: str | tuple[str, ...] = ALL_LINEAR
    r"""linear layers that get an adapter, as in PEFT's target_modules: all-linear; a list of names such as [q_proj,
    v_proj]; or a regular expression that matches whole module paths, such as .*self_attn\.[qv]_proj"""

    _targets_are_valid = field_validator("targets")(checked_targets)

    @property
    def target_modules(self) -> str | list[str]:
        """The same layers as PEFT takes them: a single name becomes a list of one, and a list is sorted."""
        if isinstance(self.targets, str):
            is_name = self.targets != ALL_LINEAR and NAME.fullmatch(self.targets)
            return [self.targets] if is_name else self.targets
        return sorted(set(self.targets))

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the settings that decide the adapter; the order of a list of names does not count."""
        return super().fingerprint_fields() | {"targets": self.target_modules}
