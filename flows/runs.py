"""A run of a configuration, with what only Prefect can give: the secret that a Secret block keeps."""

from __future__ import annotations

from typing import cast

from flows.server.settings import require_server, server_settings
from nextquill_core.config import Config
from nextquill_core.pipeline.run import Run
from storage.errors import UserError


def open_run(config: Config, *, fetch: bool = True) -> Run:
    """The configuration against its store; the key of the pseudonyms comes from `privacy.key_secret` if that is set.

    Raises:
        UserError: There is no such Secret block, or what `Run` raises.
    """
    name = config.privacy.key_secret
    if not name or not config.privacy.pseudonymize:
        return Run(config, fetch=fetch)
    require_server(server_settings())
    from prefect.blocks.system import Secret

    try:
        block = cast("Secret[str]", Secret.load(name))
    except ValueError:
        raise UserError(
            f"there is no Secret block `{name}` on this Prefect server", "privacy.key_secret", "make it, or use key_env"
        ) from None
    return Run(config, fetch=fetch, secret=block.get())
