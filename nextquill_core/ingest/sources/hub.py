"""Download a file of a hub data set into the hub client's cache, and resume a broken download.

The hub client deletes a partial download when its process ends or a connection is reset. Raw categories have up to
30 GB, so here the part that was received stays beside the cache's blobs until the rest is there. This is plain HTTP:
the client's Xet downloads, where they are used, cannot be resumed.
"""

from __future__ import annotations

import errno
import hashlib
import time
from pathlib import Path

from filelock import FileLock
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers

from nextquill_core import hub
from storage.files import write_text

# Seconds before each try that follows one without a new byte. The client itself tries for some seconds every time.
PAUSES = (1, 2, 4, 8, 16)


class NotInDataSetError(Exception):
    """The data set has no such file."""


class UnreachableError(Exception):
    """There is no local copy, and the hub cannot be reached; the message says why."""


class NotDownloadedError(Exception):
    """There is no local copy, and downloads are not allowed."""


def hub_file(repository: str, file: str, *, fetch: bool) -> Path:
    """Return the local copy of a data set's file, as of the newest commit.

    Without a network an earlier copy is used. On a terminal a bar shows the progress.

    Args:
        repository: The data set, as OWNER/NAME.
        file: The file's path in it.
        fetch: Whether to download; otherwise only an earlier copy counts.

    Raises:
        NotInDataSetError: The hub says that there is no such file.
        NotDownloadedError: There is no copy, and `fetch` is False.
        UnreachableError: There is no copy, and the hub cannot be reached.
        Exception: Whatever the hub client raises, such as no permission or no space.
    """

    def earlier_copy(error: Exception) -> Path:
        try:
            return Path(hf_hub_download(repository, file, repo_type="dataset", local_files_only=True))
        except LocalEntryNotFoundError:
            raise error from None

    if not fetch:
        return earlier_copy(NotDownloadedError(file))
    if away := hub.unreachable():
        return earlier_copy(UnreachableError(f"the hub at {hub.endpoint()} cannot be reached ({away})"))
    try:
        metadata = get_hf_file_metadata(hf_hub_url(repository, file, repo_type="dataset"))
    except EntryNotFoundError:
        raise NotInDataSetError(file) from None
    except Exception as error:
        return earlier_copy(error)
    if metadata.etag and metadata.size and metadata.commit_hash:
        blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="dataset"), "blobs")
        url = hf_hub_url(repository, file, repo_type="dataset", revision=metadata.commit_hash)
        _complete(blobs / metadata.etag, url, metadata.size, file.rpartition("/")[2])
    return Path(hf_hub_download(repository, file, repo_type="dataset"))  # finds the blob and names it


def hub_folder(repository: str, folder: str, *, fetch: bool) -> tuple[Path, ...]:
    """Return the local copies of the files in a folder of a data set, sorted by name.

    Without a network an earlier copy is used, if all files of the folder were downloaded.

    Args:
        repository: The data set, as OWNER/NAME.
        folder: The folder's path in it.
        fetch: As for `hub_file`.

    Raises:
        Exception: As `hub_file` for a file.
    """
    listed = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="dataset"))
    listed = listed / f"nextquill-{hashlib.sha256(folder.encode()).hexdigest()[:16]}.txt"

    def earlier_copy(error: Exception) -> tuple[Path, ...]:
        if not listed.is_file():
            raise error from None
        names = listed.read_text(encoding="utf-8").splitlines()
        return tuple(hub_file(repository, name, fetch=False) for name in names)

    if not fetch:
        return earlier_copy(NotDownloadedError(folder))
    if away := hub.unreachable():
        return earlier_copy(UnreachableError(f"the hub at {hub.endpoint()} cannot be reached ({away})"))
    try:
        tree = HfApi().list_repo_tree(repository, folder, recursive=True, repo_type="dataset")
        names = sorted(entry.path for entry in tree if isinstance(entry, RepoFile))
    except (RepositoryNotFoundError, EntryNotFoundError):
        raise NotInDataSetError(folder) from None
    except Exception as error:
        return earlier_copy(error)
    paths = tuple(hub_file(repository, name, fetch=True) for name in names)
    write_text(listed, "".join(f"{name}\n" for name in names))  # once all of them are here
    return paths


def _complete(blob: Path, url: str, size: int, shown: str) -> None:
    """Download what is missing of a blob, then rename it to its final name."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{blob.name}.nextquill-partial")
    with FileLock(f"{partial}.lock"):
        if blob.exists():
            return
        if _size(partial) > size:
            partial.unlink()
        resumed, tries = _size(partial) > 0, 0
        while (before := _size(partial)) < size:
            try:
                with partial.open("ab") as target:
                    http_get(
                        url,
                        target,
                        resume_size=before,
                        headers=build_hf_headers(),
                        expected_size=size,
                        displayed_filename=shown,
                    )
            except Exception as error:  # of the client's transport, which changes with its version
                answer = error.response if isinstance(error, HfHubHTTPError) else None
                if answer is not None and answer.status_code < 500:
                    raise
                tries = _wait_for_retry(error, tries, _size(partial) > before)
            resumed = resumed or before > 0
        if resumed and not _is_whole(partial, blob.name):
            partial.unlink()
            raise OSError("the download was damaged and was deleted: run the command again")
        partial.replace(blob)


def _wait_for_retry(error: Exception, tries: int, progressed: bool) -> int:
    """Wait before the next try and return the number of tries without a new byte; raise an error that would recur."""
    if isinstance(error, ValueError):  # the client cannot download this file over plain HTTP
        raise error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise error
    if progressed:
        tries = 0
    if tries == len(PAUSES):
        raise error
    time.sleep(PAUSES[tries])
    return tries + 1


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_whole(path: Path, etag: str) -> bool:
    """Return whether the bytes match the etag, which is the SHA-256 of all large files of the hub."""
    if len(etag) != 64:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == etag
