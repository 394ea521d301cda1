"""Alerts and the chain of stages on a Prefect server: created, changed, listed and removed, each found by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.filters import AutomationFilter, AutomationFilterName
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.types import SecretDict
from prefect.utilities.urls import validate_restricted_url

from flows.server.automations import ALERTS, CHAIN, STAGES, Alerting, alerts, chain, same, switched_off
from flows.server.settings import URL, refuse_credentials
from storage.errors import UserError

BLOCK = "nextquill-alerts"
"""Name of the Custom Webhook block, which stores the address encrypted."""
TIMEOUT_S = 10.0
"""Seconds that the receiver of an alert has to answer."""


@contextmanager
def connected() -> Iterator[SyncPrefectClient]:
    """Connect to the Prefect server that PREFECT_API_URL names.

    Raises:
        UserError: No server is named, it does not answer, or it refuses a request.
    """
    url = str(PREFECT_API_URL.value() or "")
    if not url:
        remedy = "start one with `prefect server start` and export PREFECT_API_URL=http://127.0.0.1:4200/api"
        raise UserError("no Prefect server is named", URL, remedy)
    refuse_credentials(url, URL)
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, RuntimeError) as error:
        cause = error if isinstance(error, httpx.HTTPError) else error.__cause__  # Prefect wraps the first request's
        if isinstance(cause, httpx.HTTPStatusError):
            what = f"the Prefect server answered {cause.response.status_code} to {cause.request.url.path}"
            raise UserError(what, url, "read its log, and check the key or password that it needs") from None
        if isinstance(cause, httpx.TransportError):
            what = f"the Prefect server does not answer ({type(cause).__name__})"
            raise UserError(what, url, "start it, or fix the address") from None
        raise


def check_webhook(address: str, *, allow_private: bool) -> None:
    """Refuse an address that the server would refuse when an alert is due.

    The address is a secret, so messages do not repeat it.

    Args:
        address: URL to which alerts are sent.
        allow_private: Whether private and loopback addresses are allowed.

    Raises:
        UserError: The address is no URL, or private.
    """
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not close, or a port that is no number up to 65535
        usable = False
    if not usable:
        raise UserError("that is no http or https address", "--webhook", "give the receiver's whole URL")
    if allow_private:
        return
    try:
        validate_restricted_url(address)
    except ValueError:
        raise UserError(
            f"{parts.hostname} is private, loopback or unknown here, and Prefect does not call such addresses",
            "--webhook",
            "add --allow-private-urls to allow it",
        ) from None


def set_alerts(client: SyncPrefectClient, address: str, settings: Alerting, *, allow_private: bool) -> dict[str, str]:
    """Create or update the webhook and the alerts.

    Args:
        client: The server.
        address: URL to which alerts are sent.
        settings: When alerts are sent, and in which format.
        allow_private: Whether the server may call private and loopback addresses.

    Returns:
        What was done, by name: created, updated or unchanged.
    """
    block, change = _save_webhook(address, allow_private)
    return {BLOCK: change} | _apply(client, alerts(block, settings))


def set_chain(client: SyncPrefectClient) -> dict[str, str]:
    """Create or update the automations by which one stage's deployment starts the next one's.

    Returns:
        What was done, by name: created, updated or unchanged.

    Raises:
        UserError: A stage is not deployed.
    """
    found: dict[str, UUID] = {}
    for stage in STAGES:
        try:
            found[stage] = client.read_deployment_by_name(f"{stage}/{stage}").id
        except ObjectNotFound:
            remedy = "deploy the stages first: `prefect --no-prompt deploy --all`"
            raise UserError(f"there is no deployment {stage}/{stage}", str(client.api_url), remedy) from None
    return _apply(client, chain(found))


def stop_chain(client: SyncPrefectClient) -> dict[str, str]:
    """Switch off the automations of the chain, and return what was done by name."""
    return _apply(client, [switched_off(automation) for automation in _existing(client, CHAIN).values()])


def remove_all(client: SyncPrefectClient) -> dict[str, str]:
    """Remove alerts, chain and webhook, and return what was done by name."""
    changed: dict[str, str] = {}
    for name, automation in _existing(client, [*ALERTS, *CHAIN]).items():
        client.delete_automation(automation.id)
        changed[name] = "removed"
    if (block := _webhook()) is not None:
        client.delete_block_document(block._block_document_id)
        changed[BLOCK] = "removed"
    return changed


def listing(client: SyncPrefectClient, changed: Mapping[str, str]) -> Iterator[str]:
    """Yield one line per automation: what was just done to it, whether it is on, its name, and when it fires.

    Args:
        client: The server.
        changed: What was done, by name.
    """
    existing, block = _existing(client, [*ALERTS, *CHAIN]), _webhook()
    host = urlsplit(block.secrets.get_secret_value()["url"]).hostname if block else ""  # the rest is the secret
    rows = [(changed.get(BLOCK, ""), "set" if block else "not set", "webhook", str(host))]
    for name in (*ALERTS, *CHAIN):
        automation = existing.get(name)
        state = "not set" if automation is None else "on" if automation.enabled else "off"
        rows.append((changed.get(name, ""), state, name, automation.description if automation else ""))
    width = max(len(row[0]) for row in rows)
    for done, state, name, description in rows:
        yield f"{done:<{width + 2 if width else 0}}{state:<9}{name:<32}{description}".rstrip()


def _save_webhook(address: str, allow_private: bool) -> tuple[UUID, str]:
    """Save the address in the block; what users have set on it in the UI, such as headers, stays."""
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
    """Return the block on the server, or None."""
    try:
        return CustomWebhookNotificationBlock.load(BLOCK)
    except ValueError:
        return None


def _apply(client: SyncPrefectClient, wanted: Sequence[AutomationCore]) -> dict[str, str]:
    """Create automations that are missing, update those that differ, and return what was done by name."""
    existing = _existing(client, [automation.name for automation in wanted])
    changed: dict[str, str] = {}
    for automation in wanted:
        known = existing.get(automation.name)
        if known is None:
            client.create_automation(automation)
            changed[automation.name] = "created"
        elif same(known, automation):
            changed[automation.name] = "unchanged"
        else:
            client.update_automation(known.id, automation)
            changed[automation.name] = "updated"
    return changed


def _existing(client: SyncPrefectClient, names: Sequence[str]) -> dict[str, Automation]:
    wanted = AutomationFilter(name=AutomationFilterName(any_=list(names)))
    return {automation.name: automation for automation in client.read_automations(automations=wanted)}
