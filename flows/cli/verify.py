"""The command `verify`: compare every file of a store with its manifest, and make damaged artifacts again."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from flows.cli.common import ConfigOption, PresetOption, SetOption, StoreOption, read_settings, run_flow

DAMAGED = 1
"""Exit code where damage was found and not repaired."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(verify)


def verify(
    config: ConfigOption,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove damaged artifacts and run the pipeline, which makes them again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
    overrides: SetOption = None,
    preset: PresetOption = None,
    store: StoreOption = None,
) -> None:
    """Compare every file in the store with its manifest; exit 1 if one is damaged."""
    from storage import Store
    from storage.garbage import damaged, dependents, inventory, remove

    settings = read_settings(config, overrides, store, preset)
    place = Store.open(settings.store)
    verified, faults = 0, {}
    for name, fault in damaged(place):
        verified += 1
        if fault:
            faults[name] = fault
            if not as_json:
                print(f"{place.location(*name)}: {fault}")
    found = inventory(place)
    affected = dependents(found, faults) - faults.keys()
    if as_json:
        report = {
            "verified": verified,
            "damaged": [{"artifact": "/".join(name), "fault": fault} for name, fault in sorted(faults.items())],
            "dependents": sorted("/".join(name) for name in affected),
        }
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        for name in sorted(affected):
            print(f"{place.location(*name)}: made from a damaged artifact")
        print(f"{verified:,} artifacts verified, {len(faults):,} damaged, {len(affected):,} made from damaged ones")
    if not faults:
        return
    if not repair:
        raise typer.Exit(DAMAGED)
    doomed = [held for held in found if held.name in faults]
    for held, removed in remove(place, doomed):
        print(f"{'removed' if removed else 'left, it is being made'}: {held.kind}/{held.fingerprint}", file=sys.stderr)
    run_flow("pipeline", settings, force=False)
