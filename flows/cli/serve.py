"""The command `serve`: a server that writes drafts, until a signal ends it."""

from __future__ import annotations

import functools
import os
import warnings
from typing import Annotated, Any

import typer

from flows.cli import interruption
from flows.cli.options import ConfigOption, Panel, finite, with_settings
from storage.errors import UserError

END_S = 4.0
"""Seconds beyond those for the requests in flight that the server takes to end."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("serve", rich_help_panel=Panel.look)(with_settings(_serve))


def _serve(
    config: ConfigOption,
    settings: Any,
    host: Annotated[str, typer.Option("--host", help="Address at which the server listens.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port of the server; 0 for any free one.")
    ] = 8081,
    method: Annotated[
        str | None, typer.Option("--method", help="Method that writes by default; `train.method` by default.")
    ] = None,
    pointer: Annotated[
        str | None,
        typer.Option("--accepted", metavar="NAME", help="Name under which its adapter was accepted; the method's."),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option("--api-key-env", metavar="VARIABLE", help="Variable with a key that every request must have."),
    ] = None,
    page: Annotated[
        bool | None,
        typer.Option("--page/--no-page", help="Serve the page at / and its lists of users; on loopback by default."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Drafts that are written or wait at a time; others get 429.")
    ] = 256,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Largest body of a request.")] = 1_000_000,
    drain: Annotated[
        float,
        typer.Option(
            "--drain", min=1, callback=finite, metavar="SECONDS", help="Time for requests in flight after a signal."
        ),
    ] = 5.0,
    poll: Annotated[
        float,
        typer.Option(
            "--poll",
            min=0.1,
            callback=finite,
            metavar="SECONDS",
            help="Time between looks for another accepted adapter.",
        ),
    ] = 5.0,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Write prompts and texts to the log.")] = False,
) -> None:
    """Serve drafts over HTTP: /v1/drafts, OpenAI's chat API, and a page for people.

    The accepted adapter is served, and exchanged without a restart when `promote` accepts another one. The log goes to
    the standard error as JSON lines.
    """
    from flows.runs import open_run
    from nextquill_core.serving.logs import log_as_json
    from nextquill_core.serving.run import serve
    from nextquill_core.serving.settings import ServeSettings

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    chosen = ServeSettings(
        host=host,
        port=port,
        most_requests=concurrency,
        most_bytes=max_bytes,
        drain_s=drain,
        poll_s=poll,
        page=page,
        key=_key(api_key_env),
        log_texts=log_texts,
    )

    def started(url: str, models: dict[str, str]) -> None:
        interruption.set_patience(drain + END_S)
        served = ", ".join(name if name == model else f"{name} ({model})" for name, model in models.items())
        print(f"{url}: {served}", flush=True)

    log_as_json()
    open_now = functools.partial(open_run, settings, fetch=False, shared=False)
    serve(settings, open_now, chosen, method=method, pointer=pointer, started=started)


def _key(variable: str | None) -> str | None:
    """Return the key in an environment variable.

    Raises:
        UserError: The variable is not set, or empty.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not (key and key.isascii() and key.isprintable()):
        raise UserError("this variable is not set, or holds no key", variable, "set it to the key of the server")
    return key
