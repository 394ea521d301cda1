"""The command `write`: one review for one person, or a file of drafts for a file of requests."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import NoConfigOption, Panel, console, with_settings
from storage.errors import UserError

if TYPE_CHECKING:
    from nextquill_core.progress import Progress
    from nextquill_core.writing.draft import Draft
    from nextquill_core.writing.writer import Writer

SHOWN_WORDS = 12


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("write", rich_help_panel=Panel.look)(with_settings(_write))


def _write(
    config: NoConfigOption = None,
    settings: Any = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", metavar="DIR", help="Folder that `nextquill export` wrote, instead of a store."),
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", metavar="FOLDER", help="Base model of --adapter, if it is not on the hub.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Id of a user of the store.")] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            "--history", metavar="FILE", help="JSON lines of past reviews, oldest first, instead of a user's."
        ),
    ] = None,
    item: Annotated[str | None, typer.Option("--item", help="Id of an item of the store.")] = None,
    item_title: Annotated[str | None, typer.Option("--item-title", help="Title of an item not in the store.")] = None,
    item_description: Annotated[
        str, typer.Option("--item-description", help="Description of an item not in the store.")
    ] = "",
    rating: Annotated[float | None, typer.Option("--rating", help="Rating of the review to write.")] = None,
    title: Annotated[str, typer.Option("--title", help="Title of the review to write.")] = "",
    category: Annotated[
        str | None, typer.Option("--category", help="Category, if the store has user and item in several.")
    ] = None,
    before: Annotated[
        int | None,
        typer.Option("--before", metavar="MS", help="Show only the user's reviews before this time, UTC milliseconds."),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option("--example", metavar="ID", help="Write for an example of the store, as evaluation does."),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Method whose model writes; `train.method` by default.")
    ] = None,
    decoding: Annotated[
        str, typer.Option("--decoding", help="Decoding preset: sane, paper, greedy or sampled.")
    ] = "sane",
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which words the user's history made likelier.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the draft as one JSON object, for scripts.")] = False,
    requests: Annotated[
        Path | None, typer.Option("--requests", metavar="FILE", help="JSON lines, one request each; needs --out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Parquet file for the drafts of --requests.")
    ] = None,
) -> None:
    """Write a review for one person, in that person's voice, or many of them with --requests.

    A person without reviews in the store gets a prompt without history, and never another person's. The same command
    resumes --requests after an interruption. With --adapter in place of --config, no store is needed; history and item
    then come with the request.
    """
    from nextquill_core.writing.requests import PastReview, WriteRequest, checked, read_forms

    described = item_title is not None or item_description != ""
    one: dict[str, Any] = {
        "user": user, "rating": rating, "title": title, "category": category, "before": before, "example": example,
        "item": {"title": item_title or "", "description": item_description} if described else item,
    }  # fmt: skip
    given = [name for name, value in one.items() if value not in (None, "")] + ["history"] * (history is not None)
    if (requests is None) != (out is None):
        raise UserError("--requests and --out belong together", "nextquill write", "name both files")
    if item is not None and described:
        raise UserError("--item and --item-title are two items", "nextquill write", "leave out one of them")
    if requests is not None and out is not None:
        if given or as_json:
            raise UserError(
                "the file of --requests names user and item", "nextquill write", "leave out the options for one review"
            )
        forms = read_forms(requests, WriteRequest)
        writer = _open_writer(settings, method, adapter, base)
        from nextquill_core.writing.bulk import write_drafts

        with _progress() as progress:
            write_drafts(writer, forms, out, decoding=decoding, explain=explain, progress=progress)
        print(out)
        return
    if history is not None:
        one["history"] = read_forms(history, PastReview)
    form = checked(WriteRequest, {name: value for name, value in one.items() if value is not None}, "nextquill write")
    writer = _open_writer(settings, method, adapter, base)
    writer.preset(decoding)
    writer.resolve(form)  # finds invalid input before the model is loaded
    (draft,) = writer.write_many([form], decoding=decoding, explain=explain)
    if as_json:
        print(json.dumps(draft.to_dict(), ensure_ascii=False))
    else:
        _show(draft, _delta(settings, writer))


def _open_writer(settings: Any, method: str | None, adapter: Path | None, base: Path | None) -> Writer:
    """Return the writer of a configuration or of an exported folder; the model is loaded when it first writes.

    Args:
        settings: The configuration; None for an exported folder.
        method: Name of the method; None for `train.method`.
        adapter: The exported folder.
        base: Folder of its base model.

    Raises:
        UserError: Both a configuration and a folder are named, or neither.
    """
    from nextquill_core.writing.writer import Writer

    if (settings is None) == (adapter is None):
        what = "--config and --adapter are two models" if adapter else "no model is named"
        raise UserError(what, "nextquill write", "name a configuration with --config, or a folder with --adapter")
    if adapter is None and base is not None:
        raise UserError("--base belongs to --adapter", "nextquill write", "leave it out")
    if adapter is not None and method is not None:
        raise UserError("an exported folder has one method", "--method", "leave it out")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if adapter is not None:
        return Writer.from_adapter(adapter, base=base)
    from flows.runs import open_run
    from nextquill_core.pipeline.writing import run_writer

    return run_writer(open_run(settings, fetch=False), method)


def _delta(settings: Any, writer: Writer) -> float:
    """Return the effect above which a token is a preference token: the configuration's, or the exported adapter's."""
    from nextquill_core.config.score import WeightsConfig

    if settings is not None:
        return float(settings.weights.delta)
    weights = writer.identity.settings.get("weights") or {}
    return float(weights.get("delta", WeightsConfig().delta))


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show finished texts as a bar in a terminal; other outputs get a line for every tenth."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    terminal = Console(stderr=True)
    tenths = -1
    columns = (TextColumn("drafts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=terminal, disable=not terminal.is_terminal) as bar:
        task = bar.add_task("drafts", total=None)

        def report(done: float, total: float, note: str = "", *, phase: str = "") -> None:
            nonlocal tenths
            bar.update(task, completed=done, total=total)
            if not terminal.is_terminal and total and int(10 * done / total) > tenths:
                tenths = int(10 * done / total)
                print(f"drafts: {done:,.0f} of {total:,.0f}", file=sys.stderr, flush=True)

        yield report


def _show(draft: Draft, delta: float) -> None:
    """Print the draft on the standard output, and what a reader should know about it beside it.

    Args:
        draft: The draft.
        delta: δ, the effect above which a token is a preference token.
    """
    from nextquill_core.analysis.token_colours import draft_units, terminal_safe, terminal_text

    if draft.tokens:
        console().print(terminal_text(draft_units(draft, delta)), soft_wrap=True)
        words = draft.likelier_words(delta)[:SHOWN_WORDS]
        named = ", ".join(f"{terminal_safe(word)} ({effect:+.2f})" for word, effect in words)
        print(f"likelier by the history: {named or 'no word'}", file=sys.stderr)
    else:
        print(terminal_safe(draft.text))
    sampler = "" if draft.sampler == draft.decoding else f", {draft.sampler}"
    cut = ", cut at the limit" if draft.finish_reason == "length" else ""
    shown = len(draft.history_shown)
    print(
        f"{draft.method}, decoding {draft.decoding}{sampler}; {draft.n_tokens} tokens{cut}; "
        f"{shown} past review{'' if shown == 1 else 's'} shown{f'; {draft.note}' if draft.note else ''}",
        file=sys.stderr,
    )
