"""The Prefect server that is set: its address and credentials, and a check that it answers before a command starts.

Importing Prefect to read its settings takes seconds. This module reads the few settings that the check needs from the
environment and the active profile.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import UserError

if TYPE_CHECKING:
    import httpx

URL = "PREFECT_API_URL"
KEY = "PREFECT_API_KEY"
CONNECT_S, ANSWER_S = 5.0, 10.0
"""Timeouts in seconds for the connection, and for the answer of a busy server."""
CLOUD = re.compile(r"https?://([\w-]+\.)*prefect\.cloud(/|:|$)")
CREDENTIALS = re.compile(r"(?:^|(?<=://))[^/]*@")
"""Name and password before a host, which may contain @, in an address with or without a scheme."""
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class ServerSettings:
    """Prefect's settings for the connection to its server.

    Attributes:
        values: Values by the name of the environment variable.
        profile: Name of the active profile if the URL comes from it, otherwise empty.
    """

    values: Mapping[str, str]
    profile: str = ""

    @property
    def url(self) -> str:
        """The API's URL; empty if none is set, so that a temporary server is started."""
        return self.values.get(URL, "").strip()

    @property
    def shown_url(self) -> str:
        """The URL without credentials, for messages."""
        return CREDENTIALS.sub("", self.url.rstrip("/"))

    @property
    def where(self) -> str:
        """Name of the setting to change, for messages."""
        return f"{URL} of the Prefect profile `{self.profile}`" if self.profile else URL

    @property
    def unset(self) -> str:
        """How to stop using this server, for messages."""
        return f"`prefect config unset {URL}`" if self.profile else f"unset {URL}"


def server_settings(environment: Mapping[str, str] = os.environ) -> ServerSettings:
    """Read the settings of the server from the environment and the active profile; the environment takes precedence."""
    home = Path(environment.get("PREFECT_HOME") or "~/.prefect").expanduser()
    file = Path(environment.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    try:
        stored: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = {}
    active = environment.get("PREFECT_PROFILE") or stored.get("active")
    profiles = stored.get("profiles")
    profile = profiles.get(active) if isinstance(profiles, dict) else None
    below = {name: str(value) for name, value in profile.items()} if isinstance(profile, dict) else {}
    set_here = {name: value for name, value in environment.items() if name.startswith("PREFECT_")}
    from_profile = URL in below and URL not in set_here
    return ServerSettings({**below, **set_here}, str(active) if from_profile else "")


def require_server(settings: ServerSettings) -> None:
    """Make sure that the server answers, is a Prefect server of the installed major version, and grants access.

    Args:
        settings: Settings of the server; without a URL there is nothing to check.

    Raises:
        UserError: The server cannot be used; the error names the setting to change.
    """
    if not settings.url:
        return
    url, shown = settings.url.rstrip("/"), settings.shown_url
    if not _is_url(url):
        raise UserError(
            f"{shown!r} is not the URL of a Prefect server", settings.where,
            f"write it with http:// or https:// and /api, for example http://127.0.0.1:4200/api, or {settings.unset}",
        )  # fmt: skip
    refuse_credentials(url, settings.where)
    cloud = CLOUD.match(url) is not None
    if cloud and not settings.values.get(KEY):
        raise UserError(
            f"{shown} is Prefect Cloud and no API key is set",
            KEY,
            f"set {KEY} (`prefect cloud login`), or {settings.unset}",
        )
    start_or_unset = f"start one (`nextquill up`) or {settings.unset}"
    try:
        answer = _get(f"{url}/health", settings)
    except OSError as error:
        raise UserError(
            f"no Prefect server answers at {shown} ({error}){_through_proxy(url)}", settings.where, start_or_unset
        ) from None
    if answer.status_code in (401, 403):
        raise UserError(
            f"the Prefect server at {shown} refuses access (HTTP {answer.status_code})", settings.where,
            f"set {KEY} (Prefect Cloud) or PREFECT_API_AUTH_STRING (a server with a password), or {settings.unset}",
        )  # fmt: skip
    if cloud:
        return
    if answer.status_code != 200 or _json(answer) is not True:
        said = f"HTTP {answer.status_code}" if answer.status_code != 200 else "another program"
        healthy = _json(_tried(f"{url}/api/health", settings)) is True
        remedy = f"set it to {shown}/api" if healthy else start_or_unset
        raise UserError(f"no Prefect server answers at {shown} ({said}){_through_proxy(url)}", settings.where, remedy)
    _require_version(url, shown, settings)


def refuse_credentials(url: str, where: str) -> None:
    """Make sure that the server's URL holds no name or password, because Prefect stores addresses made from it.

    Args:
        url: The API's URL.
        where: Name of the setting with the URL, for the message.

    Raises:
        UserError: The URL holds a name or password; the message does not repeat it.
    """
    if CREDENTIALS.search(url):
        raise UserError(
            "the URL holds a name or password, which Prefect would store and show",
            where,
            "remove it and set PREFECT_API_AUTH_STRING=NAME:PASSWORD, or PREFECT_API_KEY for Prefect Cloud",
        )


def bypass_proxy_for_loopback() -> None:
    """Exclude the loopback addresses from the proxy, so that a server on this machine is reached directly."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host.strip() for host in os.environ.get(name, "").split(",") if host.strip()]
        if "*" not in hosts:
            os.environ[name] = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])


def _require_version(url: str, shown: str, settings: ServerSettings) -> None:
    """Compare the major versions of server and library; Prefect itself reports a difference with a traceback."""
    from importlib.metadata import version

    found = _json(_tried(f"{url}/admin/version", settings))
    ours = version("prefect")
    major = ours.partition(".")[0]
    if isinstance(found, str) and found.partition(".")[0] != major:
        raise UserError(
            f"the server at {shown} is Prefect {found}, and Prefect {major} is needed ({ours} is installed)",
            settings.where, f"upgrade the server, use another (`nextquill up`), or {settings.unset}",
        )  # fmt: skip


def _get(url: str, settings: ServerSettings) -> httpx.Response:
    """Send a request as Prefect's client does: through the same proxies, with the same key or password.

    Raises:
        OSError: There is no answer; the message says why.
    """
    import httpx

    values = settings.values
    limit = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
    headers = {}
    if key := values.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    elif password := values.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
    custom = values.get("PREFECT_CLIENT_CUSTOM_HEADERS")
    insecure = values.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in ("1", "true", "yes", "on")
    certificates = values.get("PREFECT_API_SSL_CERT_FILE")
    try:
        if custom:
            headers |= json.loads(custom)
        verify: Any = not insecure
        if certificates and not insecure:
            import ssl

            verify = ssl.create_default_context(cafile=certificates)
        with httpx.Client(timeout=limit, verify=verify, follow_redirects=True, headers=headers) as client:
            return client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError, TypeError) as error:
        reason = next((part for part in str(error).splitlines() if part.strip()), type(error).__name__)
        raise OSError(reason) from error


def answers(settings: ServerSettings) -> bool:
    """Return whether the server answers at all; a refusal counts as an answer."""
    return _tried(f"{settings.url.rstrip('/')}/health", settings) is not None


def _tried(url: str, settings: ServerSettings) -> httpx.Response | None:
    """Return the answer to a request, or None if there is none."""
    try:
        return _get(url, settings)
    except OSError:
        return None


def _json(answer: httpx.Response | None) -> Any:
    try:
        return None if answer is None else answer.json()
    except ValueError:
        return None


def _through_proxy(url: str) -> str:
    """Return a part of a message that names the proxy between this machine and the server; empty without a proxy."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    hidden = CREDENTIALS.sub("", proxy)
    return f" through the proxy {hidden} ({parts.scheme.upper()}_PROXY; NO_PROXY={parts.hostname} goes around it)"


def _is_url(text: str) -> bool:
    import httpx

    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)
