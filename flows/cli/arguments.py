"""The run's YAML file as a plain argument: `nextquill run configs/demo.yaml` is `nextquill run --config …`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

LONG, SHORT = "--config", "-c"
ENDINGS = (".yaml", ".yml")


class Commands(TyperGroup):
    """The commands, each of which takes its `--config` as a plain argument too."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command, and put `--config` before a file that is named without it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, with_config_option(command.params, rest) if command else rest


def with_config_option(params: Sequence[Any], arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments with `--config` before each configuration that is named without it.

    A command that has arguments beside its options, such as `path STAGE`, takes those that end in .yaml or .yml for
    configurations. Any other command takes whatever stands alone.

    Args:
        params: The command's options and arguments.
        arguments: What follows the command's name on the command line.
    """
    options = {name: param for param in params if param.param_type_name == "option" for name in param.opts}
    given = any(text in (LONG, SHORT) or text.startswith(f"{LONG}=") for text in arguments)
    if LONG not in options or given:
        return list(arguments)
    alone = all(param.param_type_name == "option" for param in params)
    several = options[LONG].multiple
    found: list[str] = []
    is_value = False
    for number, text in enumerate(arguments):
        if text == "--":
            return [*found, *arguments[number:]]
        is_option = text.startswith("-") and not is_value
        named = not is_option and not is_value and (alone or text.endswith(ENDINGS))
        if named and (several or LONG not in found):
            found.append(LONG)
        found.append(text)
        takes_value = text in options and not options[text].is_flag
        is_value = is_option and takes_value
    return found
