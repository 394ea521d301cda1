"""Commands that keep house: accept adapters, list the store, and remove what nothing needs any more."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.common import ConfigOption, PresetOption, SetOption, StoreOption, read_settings, readable_size, run_flow
from storage.errors import UserError

if TYPE_CHECKING:
    from nextquill_core.pipeline.run import Run
    from storage.garbage import Held

REFUSED = 3
"""Exit code of a candidate that is not accepted: nobody's input is wrong, and nothing went wrong."""
DAY_S = 86_400.0


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(promote)
    app.command()(gc)


def promote(
    config: ConfigOption,
    method: Annotated[str | None, typer.Option("--method", help="Whose adapter; train.method's by default.")] = None,
    metric: Annotated[
        str,
        typer.Option(
            "--metric", help="log_likelihood, rouge1, rougeL, rouge1_unicode, rougeL_unicode, meteor or bleu, on val."
        ),
    ] = "log_likelihood",
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Of the pointer; the method's.")] = None,
    back: Annotated[bool, typer.Option("--back", help="Move the pointer back to what was accepted before.")] = False,
    overrides: SetOption = None,
    preset: PresetOption = None,
    store: StoreOption = None,
) -> None:
    """Accept a trained adapter if it beats the last accepted one on val beyond noise; exit 3 if it does not."""
    from flows.cli.announce import said_if_slow
    from flows.runs import open_run
    from nextquill_core.registry.promote import back as move_back
    from nextquill_core.registry.promote import measuring_step, val_run

    settings = read_settings(config, overrides, store, preset)
    chosen = method or settings.train.method
    if back:
        target = move_back(open_run(settings, fetch=False), name or chosen)
        print(f"{name or chosen}: back at {target.ref.fingerprint}, {target.note.get('metric')} on val "
              f"{target.note.get('value', float('nan')):.4f}")  # fmt: skip
        return
    with said_if_slow():
        run = val_run(settings, chosen, open_run)
    measuring_step(run.plan, chosen, metric)  # finds what is wrong before Prefect starts
    about = [f"nextquill promote: {config}, the adapter of {chosen} by {metric} on val"]
    verdict = run_flow("promote", settings, about=about, method=chosen, metric=metric, pointer=name)
    print(f"{'accepted' if verdict['accepted'] else 'refused'}: {verdict['reason']}")
    if not verdict["accepted"]:
        raise typer.Exit(REFUSED)


def gc(
    configs: Annotated[
        list[Path], typer.Option("--config", "-c", help="A run's YAML file, or as an argument; all in use.")
    ],
    apply: Annotated[bool, typer.Option("--apply", help="Remove what is listed; otherwise nothing is.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="DAYS", help="Leave younger artifacts alone.")
    ] = 0,
    overrides: SetOption = None,
    preset: PresetOption = None,
    store: StoreOption = None,
) -> None:
    """List what nothing current or accepted depends on; with --apply, remove it."""
    from flows.runs import open_run
    from nextquill_core.registry.garbage import accepted, current, what
    from storage.garbage import inventory, needed, removable, remove, total_bytes

    runs = [open_run(read_settings(config, overrides, store, preset), fetch=False) for config in configs]
    if len({run.store.location("", "") for run in runs}) > 1:
        raise UserError("the configurations name different stores", "gc", "give all of them one by --store")
    place = runs[0].store
    wanted = current(runs, partial(open_run, fetch=False)) | set(accepted(place))
    found = inventory(place)
    doomed = removable(found, needed(found, wanted, younger_than_s=older_than * DAY_S))
    if apply:
        place.require_writable()
        gone, busy = [], 0
        for held, removed in remove(place, doomed):
            print(f"{'removed' if removed else 'left, it is being made'}  {_line(held, what(held))}")
            gone += [held] if removed else []
            busy += not removed
        left = f", {busy} left" if busy else ""
        print(f"removed {len(gone)} of {len(found)}, {readable_size(total_bytes(gone))}{left}")
        return
    for held in doomed:
        print(f"{_line(held, what(held))}  {_why(held)}")
    hint = "; --apply removes them" if doomed else ""
    sizes = f"{readable_size(total_bytes(doomed))} of {readable_size(total_bytes(found))}"
    print(f"{len(doomed)} of {len(found)} can go, {sizes}{hint}")


def list_store(settings: Any, *, as_json: bool = False) -> None:
    """Print everything in the store: size, age, and whether it is current, accepted or neither."""
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
        json.dump(rows, sys.stdout, indent=2)
        print()
        return
    for held, row in zip(found, rows, strict=True):
        shown = ", ".join(row["standing"]) or ("-" if held.state == "complete" else held.state)
        print(f"{_line(held, row['what'])}  {shown}")
    for kind, (count, size) in by_kind(found).items():
        print(f"{kind:<12}  {count:>6,}  {readable_size(size):>10}")
    print(f"{'all':<12}  {len(found):>6,}  {readable_size(total_bytes(found)):>10}")


def accepted_folder(run: Run, name: str) -> Path:
    """The folder of an accepted adapter's artifact; without a name, of `train.method`'s.

    Raises:
        UserError: None has been accepted, or it is gone.
    """
    from nextquill_core.registry.promote import accepted

    return accepted(run, name or run.config.train.method).folder


def _line(held: Held, what: str) -> str:
    """Kind, fingerprint, age, size and content in columns; plain text, for there may be thousands."""
    size = readable_size(held.bytes)
    return f"{held.kind:<12}  {held.fingerprint:<16}  {_age(held.age_s):>6}  {size:>10}  {what:<24}"


def _why(held: Held) -> str:
    if held.state == "removed":
        return "left behind by a removal that was stopped"
    if held.state != "complete":
        return f"unfinished ({held.state}), no config asks for it"
    return "no config named and nothing accepted needs it"


def _age(seconds: float) -> str:
    if seconds < DAY_S:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / DAY_S:,.1f} d"
