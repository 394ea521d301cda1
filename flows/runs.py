"""Opening configurations: each is opened once in a command or flow run, however many stages use it.

Opening digests the raw files and plans every artifact. Within `shared_runs`, the stages of a pipeline see the raw files
as they were when the outermost flow or command began; a scan notices if they have changed since.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from nextquill_core.config import Config
    from nextquill_core.pipeline import FreshnessCache
    from nextquill_core.pipeline.run import Run


@dataclass
class _Shared:
    """The runs by configuration, with whether they fetch, and remembered states of steps by store."""

    runs: dict[str, tuple[Run, bool]] = field(default_factory=dict)
    caches: dict[str, FreshnessCache] = field(default_factory=dict)


_shared: ContextVar[_Shared | None] = ContextVar("shared_runs", default=None)


@contextmanager
def shared_runs() -> Iterator[None]:
    """Let `open_run` return the same run for the same configuration within the block, blocks inside it included."""
    if _shared.get() is not None:
        yield
        return
    token = _shared.set(_Shared())
    try:
        yield
    finally:
        _shared.reset(token)


def open_run(config: Config, *, fetch: bool = True, shared: bool = True) -> Run:
    """Return the run of a configuration, opened before within `shared_runs` or opened now.

    Args:
        config: The settings; if they set `privacy.key_secret`, the key of the pseudonyms comes from that Secret block.
        fetch: As for `Run`; a run that fetches serves readers too.
        shared: Whether a run that was opened before will do; a server looks at raw files and store again.

    Raises:
        UserError: There is no such Secret block, or what `Run` raises.
    """
    from nextquill_core.pipeline import FreshnessCache
    from nextquill_core.pipeline.run import Run

    opened, key = _shared.get() if shared else None, config.model_dump_json()
    known = opened.runs.get(key) if opened else None
    if known and (known[1] or not fetch):
        return known[0]
    run = Run(config, fetch=fetch, secret=_secret(config))
    if opened:
        opened.runs[key] = run, fetch
        run.cache = opened.caches.setdefault(run.store.name, FreshnessCache(run.store))
    return run


def _secret(config: Config) -> str | None:
    name = config.privacy.key_secret
    if not name or not config.privacy.pseudonymize:
        return None
    from prefect.blocks.system import Secret

    from flows.server.settings import require_server, server_settings
    from storage.errors import UserError

    require_server(server_settings())
    try:
        block = cast("Secret[str]", Secret.load(name))
    except ValueError:
        raise UserError(
            f"there is no Secret block `{name}` on this Prefect server", "privacy.key_secret", "make it, or use key_env"
        ) from None
    return block.get()
