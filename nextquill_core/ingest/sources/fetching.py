"""Errors of downloads from the hub, as one line with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nextquill_core.errors import DataError, HubUnreachableError
from nextquill_core.ingest.batches import Part


def fetched_from(
    repository: str, download: Callable[[], tuple[Path, ...]], wanted: str, unknown: str, category: str, part: Part
) -> tuple[Path, ...]:
    """Return what a download gives.

    Args:
        repository: The data set on the hub.
        download: Downloads the files and returns their local copies.
        wanted: What is downloaded, for messages.
        unknown: What is wrong if the hub does not have it, such as "there is no category `Bokks`".
        category: The category of the configuration.
        part: Reviews or items.

    Raises:
        DataError: The hub does not have it, there is no copy, or the download failed.
    """
    from nextquill_core.ingest.sources import hub  # imports the hub client, which takes a second

    local = f"name local files in ingest.inputs[].{part}"
    try:
        return download()
    except hub.NotInDataSetError:
        what, remedy = unknown, f"correct ingest.inputs[].category, or {local}"
    except hub.NotDownloadedError:
        what, remedy = "it is not downloaded yet", f"run `nextquill ingest` with a network, or {local}"
    except hub.UnreachableError as error:
        raise HubUnreachableError(
            f"cannot fetch {wanted}: {error}",
            f"ingest.inputs[].{part} of category {category}",
            f"check the network and HF_ENDPOINT, or {local}",
        ) from None
    except Exception as error:  # the hub client raises many kinds; each of them means that there is no file
        what = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
        remedy = f"check the network and run the command again, which resumes the download, or {local}"
    raise DataError(f"cannot fetch {wanted}: {what}", f"hub data set {repository}", remedy)
