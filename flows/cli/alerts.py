"""The command that sets alerts and the chain of stages on a Prefect server, and tells what is set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import urlsplit

import typer

from flows.server.settings import URL, refuse_credentials
from storage.errors import UserError

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation, AutomationCore

    from flows.server.automations import Alerting

BLOCK = "nextquill-alerts"
"""Name of the Custom Webhook block, which keeps the address secret."""
TIMEOUT_S = 10.0  # of a call
MINUTES_AT_LEAST = 0.2  # Prefect waits for what does not come for 10 s at least


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(alerts)


def alerts(
    webhook: Annotated[str | None, typer.Option("--webhook", metavar="URL", help="Where alerts go.")] = None,
    body: Annotated[
        str | None, typer.Option("--body", metavar="json|slack|teams", help="What the receiver understands; json.")
    ] = None,
    late: Annotated[
        float | None,
        typer.Option("--late", min=MINUTES_AT_LEAST, metavar="MINUTES", help="How long a run may wait; 10."),
    ] = None,
    long: Annotated[
        float | None,
        typer.Option("--long", min=MINUTES_AT_LEAST, metavar="MINUTES", help="How long a run may take; 1440."),
    ] = None,
    details: Annotated[
        bool | None, typer.Option("--details", help="Send a run's last message too; it may quote data.")
    ] = None,
    allow_private: Annotated[
        bool | None, typer.Option("--allow-private-urls", help="Let the server call private and loopback addresses.")
    ] = None,
    chain: Annotated[
        bool | None, typer.Option("--chain/--no-chain", help="Let a stage's deployment start the next one's.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take alerts, chain and webhook away.")] = False,
) -> None:
    """Set alerts to a webhook on the Prefect server, and the chain of stages; without options, list what is set."""
    options = {"--body": body, "--late": late, "--long": long, "--details": details}
    given = [name for name, value in {**options, "--allow-private-urls": allow_private}.items() if value is not None]
    if given and not webhook:
        raise UserError(f"{given[0]} says how alerts go to a webhook", "nextquill alerts", "name it with --webhook URL")
    if remove and (webhook or chain is not None):
        raise UserError("--remove takes everything away", "nextquill alerts", "give it alone")
    if webhook:
        how = _alerting(body, late, long, bool(details))
        _check(webhook, bool(allow_private))
    with _server() as client:
        changed = _remove(client) if remove else {}
        if webhook:
            changed |= _set_alerts(client, webhook, bool(allow_private), how)
        if chain is not None:
            changed |= _set_chain(client) if chain else _stop_chain(client)
        for line in _listing(client, changed):
            print(line)


def _alerting(body: str | None, late: float | None, long: float | None, details: bool) -> Alerting:
    from flows.server.automations import Alerting, Body

    if body is not None and body not in list(Body):
        raise UserError(f"no body `{body}`", "--body", f"name one of {', '.join(Body)}")
    usual = Alerting()
    return Alerting(
        body=Body(body) if body else usual.body,
        late_minutes=usual.late_minutes if late is None else late,
        long_minutes=usual.long_minutes if long is None else long,
        details=details,
    )


def _check(address: str, allow_private: bool) -> None:
    """Refuse what the server would refuse, when it is too late; the address itself is a secret and is not printed."""
    from prefect.utilities.urls import validate_restricted_url

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("that is no http or https address", "--webhook", "give the receiver's whole URL")
    if allow_private:
        return
    try:
        validate_restricted_url(address)
    except ValueError:
        raise UserError(
            f"{parts.hostname} is private, loopback or unknown here, and Prefect is not to call such addresses",
            "--webhook",
            "if it shall, add --allow-private-urls",
        ) from None


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    """A client of the server that PREFECT_API_URL names.

    Raises:
        UserError: None is named, it does not answer, or it refuses.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        remedy = "start one with `prefect server start` and export PREFECT_API_URL=http://127.0.0.1:4200/api"
        raise UserError("no Prefect server is named", "PREFECT_API_URL", remedy)
    shown = str(url)
    refuse_credentials(shown, URL)
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, RuntimeError) as error:
        cause = error if isinstance(error, httpx.HTTPError) else error.__cause__  # Prefect wraps the first request's
        if isinstance(cause, httpx.HTTPStatusError):
            what = f"the Prefect server answered {cause.response.status_code} to {cause.request.url.path}"
            raise UserError(what, shown, "look at its log, and at the key or password that it wants") from None
        if isinstance(cause, httpx.TransportError):
            what = f"the Prefect server does not answer ({type(cause).__name__})"
            raise UserError(what, shown, "start it, or mend the address") from None
        raise


def _set_alerts(client: SyncPrefectClient, address: str, allow_private: bool, how: Alerting) -> dict[str, str]:
    from flows.server.automations import alerts as wanted

    block, change = _save_webhook(address, allow_private)
    return {BLOCK: change} | _apply(client, wanted(block, how))


def _save_webhook(address: str, allow_private: bool) -> tuple[UUID, str]:
    """The block with this address; what else was set on it in the UI, headers for instance, stays."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.types import SecretDict

    known = _webhook()
    block = CustomWebhookNotificationBlock(
        name="NextQuill",
        url="{{url}}",
        form_data="{{body}}",
        headers={**((known and known.headers) or {}), "Content-Type": "application/json"},
        cookies=None,
        timeout=known.timeout if known else TIMEOUT_S,
        allow_private_urls=allow_private,
        secrets=SecretDict({**(known.secrets.get_secret_value() if known else {}), "url": address}),
    )
    if known and _fields(known) == _fields(block):
        return cast("UUID", known._block_document_id), "unchanged"
    return cast("UUID", block.save(BLOCK, overwrite=True)), "updated" if known else "created"


def _fields(block: Any) -> list[Any]:
    values = [getattr(block, name) for name in ("url", "form_data", "headers", "timeout", "allow_private_urls")]
    return [*values, block.secrets.get_secret_value()]


def _webhook() -> Any:
    """The block as the server has it, or None."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    try:
        return CustomWebhookNotificationBlock.load(BLOCK)
    except ValueError:
        return None


def _set_chain(client: SyncPrefectClient) -> dict[str, str]:
    from prefect.exceptions import ObjectNotFound

    from flows.server.automations import STAGES
    from flows.server.automations import chain as wanted

    found: dict[str, UUID] = {}
    for stage in STAGES:
        try:
            found[stage] = client.read_deployment_by_name(f"{stage}/{stage}").id
        except ObjectNotFound:
            remedy = "deploy the stages first: `prefect --no-prompt deploy --all`"
            raise UserError(f"there is no deployment {stage}/{stage}", str(client.api_url), remedy) from None
    return _apply(client, wanted(found))


def _stop_chain(client: SyncPrefectClient) -> dict[str, str]:
    from flows.server.automations import CHAIN, stopped

    return _apply(client, [stopped(one) for one in _known(client, CHAIN).values()])


def _apply(client: SyncPrefectClient, wanted: Sequence[AutomationCore]) -> dict[str, str]:
    """Create what is missing and update what differs; says by name what was done."""
    from flows.server.automations import same

    known = _known(client, [one.name for one in wanted])
    changed: dict[str, str] = {}
    for one in wanted:
        there = known.get(one.name)
        if there is None:
            client.create_automation(one)
            changed[one.name] = "created"
        elif same(there, one):
            changed[one.name] = "unchanged"
        else:
            client.update_automation(there.id, one)
            changed[one.name] = "updated"
    return changed


def _remove(client: SyncPrefectClient) -> dict[str, str]:
    from flows.server.automations import ALERTS, CHAIN

    changed: dict[str, str] = {}
    for name, there in _known(client, [*ALERTS, *CHAIN]).items():
        client.delete_automation(there.id)
        changed[name] = "removed"
    if (block := _webhook()) is not None:
        client.delete_block_document(block._block_document_id)
        changed[BLOCK] = "removed"
    return changed


def _known(client: SyncPrefectClient, names: Sequence[str]) -> dict[str, Automation]:
    from prefect.events.filters import AutomationFilter, AutomationFilterName

    wanted = AutomationFilter(name=AutomationFilterName(any_=list(names)))
    return {one.name: one for one in client.read_automations(automations=wanted)}


def _listing(client: SyncPrefectClient, changed: Mapping[str, str]) -> Iterator[str]:
    """A line an automation: what was done to it just now, whether it is on, its name, and what it fires on."""
    from flows.server.automations import ALERTS, CHAIN

    known, block = _known(client, [*ALERTS, *CHAIN]), _webhook()
    rows = [(changed.get(BLOCK, ""), "set" if block else "not set", "webhook", _host(block))]
    for name in (*ALERTS, *CHAIN):
        there = known.get(name)
        state = "not set" if there is None else "on" if there.enabled else "off"
        rows.append((changed.get(name, ""), state, name, there.description if there else ""))
    first = max(len(row[0]) for row in rows)
    for done, state, name, says in rows:
        yield f"{done:<{first + 2 if first else 0}}{state:<9}{name:<32}{says}".rstrip()


def _host(block: Any) -> str:
    """Where alerts go, without the part of the address that is the secret."""
    return str(urlsplit(block.secrets.get_secret_value()["url"]).hostname) if block else ""
