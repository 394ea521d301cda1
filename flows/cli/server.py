"""Commands about a Prefect server: `up`, `down` and `alerts`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import Panel, finite
from storage.errors import UserError

MIN_MINUTES = 0.2
"""Prefect waits at least 10 seconds for an event that does not come."""
MAX_MINUTES = 525_600.0
"""A year."""
HomeOption = Annotated[
    Path, typer.Option("--home", metavar="FOLDER", help="Folder for the server's database, its logs, and its state.")
]
HOME = Path(".nextquill")


def _minutes(name: str, about: str) -> Any:
    """Return an option for a number of minutes."""
    bounds: dict[str, Any] = {"min": MIN_MINUTES, "max": MAX_MINUTES, "callback": finite}
    return typer.Option(name, metavar="MINUTES", help=about, **bounds)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for name, command in (("up", _up), ("down", _down), ("alerts", _alerts)):
        app.command(name, rich_help_panel=Panel.server)(command)


def _up(
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="Port of the server; 4200 by default."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address at which the server listens.")] = "127.0.0.1",
    home: HomeOption = HOME,
    deploy: Annotated[bool, typer.Option("--deploy/--no-deploy", help="Deploy the flows in prefect.yaml.")] = True,
) -> None:
    """Start a Prefect server on this machine with work pools, limits, deployments and workers.

    What runs already is left alone.
    """
    from flows.server.local import StartFailed, start

    try:
        start(home, host, port, deploy=deploy)
    except StartFailed as error:
        print(f"nextquill: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _down(home: HomeOption = HOME) -> None:
    """End what `up` has started: flow runs, workers and server.

    Finished artifacts stay, and the next run resumes.
    """
    from flows.server.local import stop

    stop(home)


def _alerts(
    webhook: Annotated[str | None, typer.Option("--webhook", metavar="URL", help="URL that receives alerts.")] = None,
    body: Annotated[
        str | None,
        typer.Option("--body", metavar="json|slack|teams", help="Format that the receiver expects; json by default."),
    ] = None,
    late: Annotated[float | None, _minutes("--late", "How long a run may wait to start; 10 by default.")] = None,
    long: Annotated[float | None, _minutes("--long", "How long a run may take; 1440 by default.")] = None,
    details: Annotated[
        bool | None, typer.Option("--details", help="Send a run's last message too; it may quote data.")
    ] = None,
    allow_private: Annotated[
        bool | None, typer.Option("--allow-private-urls", help="Let the server call private and loopback addresses.")
    ] = None,
    chain: Annotated[
        bool | None, typer.Option("--chain/--no-chain", help="Let one stage's deployment start the next one's.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove alerts, chain and webhook.")] = False,
) -> None:
    """Set up alerts to a webhook and the chain of stages on the Prefect server.

    Without options, list what is set up.
    """
    options = {"--body": body, "--late": late, "--long": long, "--details": details}
    given = [name for name, value in {**options, "--allow-private-urls": allow_private}.items() if value is not None]
    if given and not webhook:
        raise UserError(f"{given[0]} needs a webhook", "nextquill alerts", "name it with --webhook URL")
    if remove and (webhook or chain is not None):
        raise UserError("--remove removes everything", "nextquill alerts", "use it without other options")
    from flows.server import alerting
    from flows.server.automations import Alerting, Body

    if body is not None and body not in list(Body):
        raise UserError(f"no body `{body}`", "--body", f"use one of {', '.join(Body)}")
    if webhook:
        alerting.check_webhook(webhook, allow_private=bool(allow_private))
    with alerting.connected() as client:
        changed = alerting.remove_all(client) if remove else {}
        if webhook:
            chosen: dict[str, Any] = {
                "body": body and Body(body),
                "late_minutes": late,
                "long_minutes": long,
                "details": details,
            }
            settings = Alerting(**{name: value for name, value in chosen.items() if value is not None})
            changed |= alerting.set_alerts(client, webhook, settings, allow_private=bool(allow_private))
        if chain is not None:
            changed |= alerting.set_chain(client) if chain else alerting.stop_chain(client)
        for line in alerting.listing(client, changed):
            print(line)
