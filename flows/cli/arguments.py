"""The configuration as an argument: `nextquill run demo.yaml` means `nextquill run --config demo.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

from flows.runs import shared_runs

LONG, SHORT = "--config", "-c"
ENDINGS = (".yaml", ".yml")


class Commands(TyperGroup):
    """Group of commands. Each takes `--config` as a plain argument, too, and opens a configuration once."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. The command and its flow share the runs that they open."""
        with shared_runs():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command, and insert `--config` before a file that is named without it.

        Args:
            ctx: Context of the group.
            args: Words of the command line, from the command's name on.
        """
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, with_config_option(command.params, rest) if command else rest


def with_config_option(params: Sequence[Any], arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments with `--config` before each configuration that is named without it.

    For a command that also has arguments, such as `path STAGE`, a configuration is a word that ends in .yaml or .yml.
    For any other command it is every word that is neither an option nor the value of one.

    Args:
        params: Options and arguments that the command declares.
        arguments: Words that follow the command's name.
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
