"""The command `plan`: what a run takes in time, disk and money, before anything is spent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import ConfigOption, Panel, console, with_settings

if TYPE_CHECKING:
    from rich.table import Table

    from nextquill_core.costs.estimate import Estimate


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("plan", rich_help_panel=Panel.look)(with_settings(_plan))


def _plan(
    config: ConfigOption,
    settings: Any,
    here: Annotated[bool, typer.Option("--here", help="Measure this machine too, in about half a minute.")] = False,
    rates: Annotated[
        Path | None, typer.Option("--rates", help="File with what `python -m benchmarks.gpu` printed.")
    ] = None,
    users: Annotated[
        int | None, typer.Option("--users", min=1, help="Users to assume where the reviews have not been read.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Print what a run would make, and the hours of A100, H100 and H200, the disk and the money that it takes.

    Downloads, makes and writes nothing. Steps that are up to date cost nothing.
    """
    from flows.runs import open_run
    from nextquill_core.costs.estimate import estimate
    from nextquill_core.costs.rates import read_measured

    measured = read_measured(rates) if rates else []
    found = estimate(settings, partial(open_run, fetch=False), users=users, measured=measured, here=here)
    if as_json:
        print(json.dumps(found.document, indent=2))
        return
    terminal = console()
    print("\n".join(opening_lines(found, str(config))))
    terminal.print(table(found))
    for line in closing_lines(found):
        terminal.print(line, soft_wrap=True, highlight=False, markup=False)


def opening_lines(found: Estimate, where: str) -> Iterator[str]:
    """Yield what is known of the data and the model.

    Args:
        found: The estimate.
        where: File of the configuration.
    """
    sizes, tokens = found.sizes, found.sizes.lengths
    splits = ", ".join(f"{count:,} {split}" for split, count in sizes.examples.items())
    yield f"nextquill plan: {where}, store {found.config.store}"
    yield f"  examples: {splits}, of {sizes.users:,} users ({sizes.counted})"
    yield (
        f"  tokens: {tokens.prompt:,.0f} in a prompt with history, {tokens.bare:,.0f} in one without, "
        f"{tokens.answer:,.0f} in an answer ({sizes.measured})"
    )
    model = found.config.model
    yield f"  model: {model.name_or_path}, {parameters(found.shape.parameters)} parameters, {model.dtype}"


def table(found: Estimate) -> Table:
    """Return the rows of the estimate, with their sum last, as a table for the terminal."""
    from humanize import naturalsize
    from rich.table import Table

    names = [rates.name for rates in found.rates]
    shown = Table("step", "to make", *names, "processor", "disk", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in shown.columns[2:]:
        column.justify = "right"
    for row in found.rows:
        size = f", {row.examples:,.0f} examples" if row.examples else ""
        made = f"{row.missing} of {row.steps}{size}" if row.missing else "nothing, all up to date"
        times = [duration(row.seconds[name]) for name in names]
        shown.add_row(row.name, made, *times, duration(row.processor), naturalsize(row.stored) if row.stored else "")
    sums = [duration(3600 * found.hours(rates)) for rates in found.rates]
    processor = sum(row.processor for row in found.rows)
    shown.add_row("all", "", *sums, duration(processor), naturalsize(found.stored), style="bold")
    return shown


def closing_lines(found: Estimate) -> Iterator[str]:
    """Yield cards that are too small, downloads, money, the most that it can take, and where the rates are from."""
    from humanize import naturalsize

    if found.too_small:
        cards, weights = ", ".join(found.too_small), naturalsize(found.model_bytes)
        yield f"too small: {cards}; one card cannot hold the model, whose weights alone are {weights}"
    for what, size in found.downloads.items():
        yield f"download: {what}, about {naturalsize(size)}"
    costs = [
        f"${found.hours(rates) * price:,.2f} on {rates.name} (${price:.2f} an hour)"
        for rates in found.rates
        for price in [found.dollars(rates.name)]
        if price is not None
    ]
    yield f"money: {', '.join(costs)}; the prices are the settings prices.a100, prices.h100 and prices.h200"
    most = ", ".join(f"{duration(3600 * found.hours(rates, longest=True))} on {rates.name}" for rates in found.rates)
    yield f"texts are counted as long as the true reviews; if each ran to its limit: {most}"
    for source in dict.fromkeys(rates.source for rates in found.rates):
        names = [rates.name for rates in found.rates if rates.source == source]
        yield f"rates of {', '.join(names)}: {source}"


def parameters(count: float) -> str:
    """Return a number of parameters in words, such as `3.09 billion`."""
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.2f} million"


def duration(seconds: float) -> str:
    """Return a duration in words, such as `3.0 h`; "" for none."""
    if seconds <= 0:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
