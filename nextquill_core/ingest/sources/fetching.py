"""Downloads from the hub; an error is one line with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nextquill_core.errors import DataError, HubUnreachableError
from nextquill_core.ingest.batches import Part


def fetched_from(
    repository: str, name: str, kind: Literal["category", "configuration"], category: str, part: Part, *, fetch: bool
) -> tuple[Path, ...]:
    """Return the local copies of a hub data set's files, in the hub client's cache.

    Args:
        repository: The data set, as OWNER/NAME.
        name: The file of a category, or the folder of a configuration.
        kind: What the data set has: a category is one file, a configuration all files of a folder.
        category: The category of the configuration.
        part: Reviews or items.
        fetch: Whether to download; otherwise only earlier copies count.

    Raises:
        DataError: The hub does not have it, there is no copy, or the download failed.
    """
    from nextquill_core.ingest.sources import hub  # imports the hub client, which takes a second

    local = f"name local files in ingest.inputs[].{part}"
    try:
        if kind == "category":
            return (hub.hub_file(repository, name, fetch=fetch),)
        return hub.hub_folder(repository, name, fetch=fetch)
    except hub.NotInDataSetError:
        what, remedy = f"there is no {kind} `{category}`", f"correct ingest.inputs[].category, or {local}"
    except hub.NotDownloadedError:
        what, remedy = "it is not downloaded yet", f"run `nextquill ingest` with a network, or {local}"
    except hub.UnreachableError as error:
        raise HubUnreachableError(
            f"cannot fetch {name}: {error}",
            f"ingest.inputs[].{part} of category {category}",
            f"check the network and HF_ENDPOINT, or {local}",
        ) from None
    except Exception as error:  # the hub client raises many kinds; each of them means that there is no file
        what = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
        remedy = f"check the network and run the command again, which resumes the download, or {local}"
    raise DataError(f"cannot fetch {name}: {what}", f"hub data set {repository}", remedy)
