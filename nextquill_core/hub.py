"""Checks whether the Hugging Face hub can be reached, before its client retries each file for half a minute."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from nextquill_core.errors import HubUnreachableError, first_line
from nextquill_core.model.identity import is_hub_name

TIMEOUT_S = 5.0
CACHED_S = 60.0
_checked: dict[str, tuple[float, str]] = {}


def endpoint() -> str:
    """Return the hub's URL: the value of HF_ENDPOINT, or https://huggingface.co."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def unreachable() -> str:
    """Return why the hub cannot be reached, or "" if it answers anything.

    A name that cannot be resolved, a refused connection, a proxy that does not answer and HF_HUB_OFFLINE all count. The
    result is cached for a minute.
    """
    url = endpoint()
    when, reason = _checked.get(url, (0.0, ""))
    if url not in _checked or time.monotonic() - when > CACHED_S:
        reason = _reason(url)
        _checked[url] = (time.monotonic(), reason)
    return reason


@contextmanager
def offline_if_unreachable(name: str) -> Iterator[None]:
    """Set the hub's client to offline mode for a block if `name` is a hub name and the hub cannot be reached.

    The client then uses its cache only, without retries.
    """
    if not is_hub_name(name) or not unreachable():
        yield
        return
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def require_model(name: str, revision: str, remedy: str) -> None:
    """Check that a hub model is in the cache of this machine, or that the hub can be reached.

    Args:
        name: Name or folder of the model.
        revision: Branch, tag or commit on the hub.
        remedy: Another way to fix a failure, for the error message.

    Raises:
        HubUnreachableError: Neither is the case.
    """
    if is_hub_name(name) and not is_cached(name, revision) and (reason := unreachable()):
        raise HubUnreachableError(
            f"not in the cache, and the hub at {endpoint()} cannot be reached ({reason})",
            name,
            f"check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or {remedy}",
        )


def is_cached(name: str, revision: str) -> bool:
    """Return whether the cache of this machine has a model's configuration, and so most likely the model."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


def _reason(url: str) -> str:
    from huggingface_hub import get_session

    try:
        get_session().head(url, timeout=TIMEOUT_S)
    except Exception as error:  # of the client's HTTP library, which depends on its version
        return first_line(error)
    return ""
