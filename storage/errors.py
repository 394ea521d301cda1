"""The one error a user is meant to read: what is wrong, where, and what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.redaction import redact

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UserError(ValueError):
    """Input or surroundings that only the user can correct; the command line prints it as one line and exits with 2.

    Attributes:
        what: The fault in a few words.
        where: The file, key or folder it concerns; may be empty.
        remedy: What the user can do about it.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)  # all three in args, so that it survives pickling between processes
        self.what, self.where, self.remedy = what, where, remedy

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if self.remedy:
            line = f"{line}; {self.remedy}"
        # One line whatever came in: raw data may be quoted here, and a terminal obeys control characters.
        return redact("".join(sign if sign.isprintable() else "·" for sign in " ".join(line.split())))


def system_error(error: BaseException) -> int:
    """Return the operating system's number of an error, 0 for none; Rust's libraries give it in the text alone."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else 0


@contextmanager
def space_needed(where: Path) -> Iterator[None]:
    """Turn the error of a full or read-only disk, whichever library raises it, into the user's one line.

    Args:
        where: The folder that is written to, for the message.

    Raises:
        UserError: The disk is full or read-only.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (number := system_error(error)) not in _NO_SPACE:
            raise
        name = error.filename if isinstance(error, OSError) else None
        what = f"cannot be written ({os.strerror(number)}{f': {name}' if name else ''})"
        remedy = "make room, or name another store; the same command resumes"
        raise UserError(what, str(where), remedy) from error


class Busy(UserError):  # noqa: N818  it says what the artifact is
    """Another process is making this artifact."""


class UnreadableManifest(UserError):  # noqa: N818  it says what the file is
    """A manifest that cannot be used."""


class DamagedManifest(UnreadableManifest):
    """A manifest whose text is not a manifest; its artifact counts as absent and is made again."""


class NewerManifest(UnreadableManifest):
    """A manifest that a newer version wrote; its artifact is not replaced."""
