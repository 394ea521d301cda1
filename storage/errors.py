"""The errors that are shown to the user as one line: what is wrong, where, and how to fix it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.redaction import redact

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UserError(ValueError):
    """An error in input or environment that only the user can fix; commands print it as one line and exit with 2.

    Attributes:
        what: What is wrong, in a few words.
        where: The file, key or folder that is wrong; may be empty.
        remedy: How to fix it.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)  # all three in args, so that processes can pass it on
        self.what, self.where, self.remedy = what, where, remedy

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if self.remedy:
            line = f"{line}; {self.remedy}"
        # The message may quote raw data: it stays one line, and control characters do not reach the terminal.
        return redact("".join(sign if sign.isprintable() else "·" for sign in " ".join(line.split())))


def system_error(error: BaseException) -> int:
    """Return the operating system's number of an error, or 0; libraries in Rust give it only in the message."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else 0


@contextmanager
def explain_full_disk(where: Path) -> Iterator[None]:
    """Turn the error of a full or read-only disk, whichever library raises it, into one line for the user.

    Args:
        where: The folder that the block writes to, for the message.

    Raises:
        UserError: The disk is full or read-only.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (number := system_error(error)) not in NO_SPACE:
            raise
        name = error.filename if isinstance(error, OSError) else None
        what = f"cannot be written ({os.strerror(number)}{f': {name}' if name else ''})"
        remedy = "free some space, or name another store; the same command resumes"
        raise UserError(what, str(where), remedy) from error


class Busy(UserError):  # noqa: N818  names the state of the artifact
    """Another process is making this artifact."""


class UnreadableManifest(UserError):  # noqa: N818  names the state of the file
    """A manifest cannot be used."""


class DamagedManifest(UnreadableManifest):
    """The text of a manifest is not valid; its artifact counts as absent and is made again."""


class NewerManifest(UnreadableManifest):
    """A newer version wrote a manifest; its artifact is not replaced."""


class Damaged(UserError):  # noqa: N818  names the state of the artifact
    """A file of an artifact is missing, or its bytes differ from the manifest."""
