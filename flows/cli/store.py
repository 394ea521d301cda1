"""Commands on models and artifacts: `promote`, `export`, `gc` and `verify`, and the listing of `status --all`."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import ConfigOption, ConfigsOption, Panel, finite, with_settings
from flows.cli.runner import run_flow
from storage.errors import UserError

if TYPE_CHECKING:
    from storage.garbage import StoredItem

DAMAGED = 1
"""Exit code of `verify` when it found damage and did not repair it."""
REJECTED = 3
"""Exit code of `promote` when the candidate is not accepted, which is neither invalid input nor a failure."""
DAY_S = 86_400.0

MethodOption = Annotated[
    str | None, typer.Option("--method", help="Method whose adapter is used; `train.method` by default.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for name, command in (("promote", _promote), ("export", _export), ("gc", _gc), ("verify", _verify)):
        app.command(name, rich_help_panel=Panel.registry)(with_settings(command))


def _promote(
    config: ConfigOption,
    settings: Any,
    method: MethodOption = None,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            help="Metric on val: log_likelihood, rouge1, rougeL, rouge1_unicode, rougeL_unicode, meteor or bleu.",
        ),
    ] = "log_likelihood",
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name of the pointer; the method by default.")
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Move the pointer back to the adapter accepted before.")] = False,
) -> None:
    """Accept a trained adapter if it is better on val than the accepted one, beyond chance.

    Exits with 3 if it is not better.
    """
    from flows.cli.announce import notice_if_slow
    from flows.runs import open_run
    from nextquill_core.registry.promote import back as move_back
    from nextquill_core.registry.promote import measuring_step, val_run

    chosen = method or settings.train.method
    if back:
        target = move_back(open_run(settings, fetch=False), name or chosen)
        print(f"{name or chosen}: back at {target.ref.fingerprint}, {target.note.get('metric')} on val "
              f"{target.note.get('value', float('nan')):.4f}")  # fmt: skip
        return
    with notice_if_slow():
        run = val_run(settings, chosen, open_run)
    measuring_step(run.plan, chosen, metric)  # finds invalid input before Prefect starts
    about = [f"nextquill promote: {config}, the adapter of {chosen} by {metric} on val"]
    verdict = run_flow("promote", settings, about=about, method=chosen, metric=metric, pointer=name)
    print(f"{'accepted' if verdict['accepted'] else 'refused'}: {verdict['reason']}")
    if not verdict["accepted"]:
        raise typer.Exit(REJECTED)


def _export(
    config: ConfigOption,
    settings: Any,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to create; it must not exist yet.")],
    method: MethodOption = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the adapter into the model and write it whole.")
    ] = False,
    weights: Annotated[
        bool,
        typer.Option("--weights", help="Write train examples as token ids and weights instead, for other trainers."),
    ] = False,
) -> None:
    """Write a trained adapter, or the merged model, with tokenizer and model card to a folder.

    With --weights, write the data that a trainer needs, one example a row.
    """
    from flows.runs import open_run
    from nextquill_core.registry.export import export, export_weights

    run = open_run(settings, fetch=False)
    if weights and merge:
        raise UserError("--weights writes no model", "--merge", "leave out one of them")
    if weights:
        export_weights(run, method or run.config.train.method, to)
    else:
        export(run, method or run.config.train.method, to, merge=merge)
    print(to)


def _gc(
    config: ConfigsOption,
    settings: Any,
    apply: Annotated[bool, typer.Option("--apply", help="Remove what is listed.")] = False,
    older_than: Annotated[
        float,
        typer.Option("--older-than", min=0, callback=finite, metavar="DAYS", help="Keep artifacts that are younger."),
    ] = 0,
) -> None:
    """List the artifacts that neither a configuration nor an accepted adapter needs; --apply removes them.

    Name every configuration in use with --config.
    """
    from humanize import naturalsize

    from flows.runs import open_run
    from nextquill_core.registry.garbage import accepted, current, what
    from storage.garbage import inventory, needed, removable, remove, total_bytes

    runs = [open_run(one, fetch=False) for one in settings]
    if len({run.store.location("", "") for run in runs}) > 1:
        raise UserError("the configurations name different stores", "gc", "set one store for all of them with --store")
    store = runs[0].store
    wanted = current(runs, partial(open_run, fetch=False)) | set(accepted(store))
    found = inventory(store)
    unneeded = removable(found, needed(found, wanted, younger_than_s=older_than * DAY_S))
    if apply:
        store.require_writable()
        gone = []
        for held, removed in remove(store, unneeded):
            print(f"{'removed' if removed else 'kept, another process is making it'}  {_line(held, what(held))}")
            gone += [held] if removed else []
        busy = len(unneeded) - len(gone)
        kept = f", {busy} kept" if busy else ""
        print(f"removed {len(gone)} of {len(found)}, {naturalsize(total_bytes(gone))}{kept}")
        return
    for held in unneeded:
        print(f"{_line(held, what(held))}  {_why(held)}")
    hint = "; --apply removes them" if unneeded else ""
    sizes = f"{naturalsize(total_bytes(unneeded))} of {naturalsize(total_bytes(found))}"
    print(f"{len(unneeded)} of {len(found)} can be removed, {sizes}{hint}")


def _verify(
    config: ConfigOption,
    settings: Any,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove damaged artifacts and run the pipeline to make them again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Compare every file in the store with its manifest; exit with 1 if one is damaged."""
    from storage.garbage import dependents, inventory, remove, verify_artifacts
    from storage.remote import open_store

    store = open_store(settings.store)
    verified, faults = 0, {}
    for name, fault in verify_artifacts(store):
        verified += 1
        if fault:
            faults[name] = fault
            if not as_json:
                print(f"{store.location(*name)}: {fault}")
    found = inventory(store)
    affected = dependents(found, faults) - faults.keys()
    if as_json:
        report = {
            "verified": verified,
            "damaged": [{"artifact": "/".join(name), "fault": fault} for name, fault in sorted(faults.items())],
            "dependents": sorted("/".join(name) for name in affected),
        }
        print(json.dumps(report, indent=2))
    else:
        for name in sorted(affected):
            print(f"{store.location(*name)}: made from a damaged artifact")
        print(f"{verified:,} artifacts verified, {len(faults):,} damaged, {len(affected):,} made from damaged ones")
    if not faults:
        return
    if not repair:
        raise typer.Exit(DAMAGED)
    for held, removed in remove(store, [held for held in found if held.name in faults]):
        what = "removed" if removed else "kept, another process is making it"
        print(f"{what}: {held.kind}/{held.fingerprint}", file=sys.stderr)
    run_flow("pipeline", settings, force=False)


def list_store(settings: Any, *, as_json: bool = False) -> None:
    """Print every artifact in the store with its size, its age, and whether it is current or accepted."""
    from humanize import naturalsize

    from flows.runs import open_run
    from nextquill_core.registry.garbage import accepted, current, what
    from storage.garbage import by_kind, inventory, total_bytes

    run = open_run(settings, fetch=False)
    wanted, pointed = current([run], partial(open_run, fetch=False)), accepted(run.store)
    found = inventory(run.store)
    rows: list[dict[str, Any]] = []
    for held in found:
        standing = ["current"] * (held.name in wanted) + [f"accepted {name}" for name in pointed.get(held.name, ())]
        rows.append(
            {
                "kind": held.kind,
                "fingerprint": held.fingerprint,
                "state": held.state,
                "bytes": held.bytes,
                "age_days": round(held.age_s / DAY_S, 2),
                "standing": standing,
                "what": what(held),
                "path": run.store.location(held.kind, held.fingerprint),
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for held, row in zip(found, rows, strict=True):
        shown = ", ".join(row["standing"]) or ("-" if held.state == "complete" else held.state)
        print(f"{_line(held, row['what'])}  {shown}")
    for kind, (count, size) in by_kind(found).items():
        print(f"{kind:<12}  {count:>6,}  {naturalsize(size):>10}")
    print(f"{'all':<12}  {len(found):>6,}  {naturalsize(total_bytes(found)):>10}")


def _line(held: StoredItem, what: str) -> str:
    """Return kind, fingerprint, age, size and content of an artifact in columns, as plain text."""
    from humanize import naturaldelta, naturalsize

    age = naturaldelta(held.age_s, months=False)
    return f"{held.kind:<12}  {held.fingerprint:<16}  {age:>10}  {naturalsize(held.bytes):>10}  {what:<24}"


def _why(held: StoredItem) -> str:
    if held.state == "removed":
        return "left over from an interrupted removal"
    if held.state != "complete":
        return f"unfinished ({held.state}), no config needs it"
    return "no config named and no accepted adapter needs it"
