"""The one error a user is meant to read: what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(ValueError):
    """Input or surroundings that only the user can mend; the command line prints it as one line and exits with 2.

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
        return "".join(sign if sign.isprintable() else "·" for sign in " ".join(line.split()))


class Busy(UserError):  # noqa: N818  it says what the artifact is
    """Another process is making this artifact."""
