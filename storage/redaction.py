"""Secrets in texts: found where settings are read, and masked in whatever is stored or shown.

Two things count as a secret: what has the form of one (a password in a URL, a signed query, `--password x`, a bearer
token, a key whose issuer gives it a known prefix), and the value of an environment variable that is known to hold one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

MASK = "***"
SHORTEST = 6
"""Characters below which a variable's value is not looked for: `1` or `true` would mask half of a text."""

NAME = (
    r"(?:password|passwd|passphrase|pwd|secret|token|api[-_]?key|access[-_]?key(?:[-_]?id)?|secret[-_]?key|"
    r"private[-_]?key|account[-_]?key|credentials?|authorization)"
)
_VALUE = r"""(?P<secret>'[^']*'|"[^"]*"|(?![$'"])[^\s,;'"]+)"""


class _Form(NamedTuple):
    what: str
    pattern: re.Pattern[str]


def _form(what: str, pattern: str, flags: int = re.IGNORECASE) -> _Form:
    return _Form(what, re.compile(pattern, flags))


FORMS = (
    _form("a password in an address", r"://[^\s/@:'\"]*:(?P<secret>(?!\d+(?:[/?#\s]|$))[^\s@'\"]+)@"),
    _form("a name or token in an address", r"(?:https?|s3a?|gc?s|hf)://(?P<secret>[^\s/?#@:'\"]+)@"),
    _form(
        "a key in an address",
        rf"(?<=[?&;])(?:[\w.%-]*{NAME}|x-(?:amz|goog)-[\w-]+|(?:[\w.%-]*[-_.])?(?:sig|signature|key|auth))"
        r"=(?P<secret>[^&\s#'\"]+)",
    ),
    _form("a password on a command line", rf"(?:^|(?<=[\s'\"\[,]))--?[\w-]*{NAME}(?:=|\s+){_VALUE}"),
    _form("a password on a command line", rf"\bsshpass\s+(?:-[veP]\S*\s+)*-p\s*{_VALUE}"),
    _form(
        "a password in an environment variable",
        rf"\b[A-Z0-9_]*(?:PASSWORD|PASSWD|TOKEN|SECRET|API_KEY|ACCESS_KEY|SECRET_KEY|SSHPASS)={_VALUE}",
        0,
    ),
    _form("an authorization header", rf"\bauthorization['\"]?\s*[:=]\s*(?:(?:basic|bearer|token)\s+)?{_VALUE}"),
    _form("a bearer token", r"\bbearer\s+(?P<secret>[\w.~+/=-]{8,})"),
    _form(
        "a key",
        r"\b(?P<secret>(?:AKIA|ASIA)[A-Z0-9]{16}|hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_\w{20,}|"
        r"github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|pn[ub]_[A-Za-z0-9]{20,}|"
        r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)",
        0,
    ),
    _form("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?P<secret>.+)", re.DOTALL),
)

SECRET_NAME = re.compile(rf"(?:.*[-_.])?{NAME}", re.IGNORECASE)
"""Names of options whose values are secrets."""

_variables = {
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SESSION_TOKEN",
    "GOOGLE_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
    "SSHPASS",
    "WANDB_API_KEY",
}
_values: set[str] = set()


def keep_secret(*, variable: str | None = None, value: str | None = None) -> None:
    """Mask the value of an environment variable, or a value, from now on in this process."""
    if variable:
        _variables.add(variable)
    if value and len(value) >= SHORTEST:
        _values.add(value)


def secret_in(text: str) -> str | None:
    """Return what kind of secret a text holds by its form, or None."""
    return next((form.what for form in FORMS if any(_secrets(form, text))), None)


def redact(text: str) -> str:
    """Return a text with each secret in it replaced by `***`."""
    known = _values | {os.environ.get(name, "").strip() for name in _variables}
    for value in sorted((value for value in known if len(value) >= SHORTEST), key=len, reverse=True):
        text = text.replace(value, MASK)
    for form in FORMS:
        for start, end in sorted(_secrets(form, text), reverse=True):
            text = text[:start] + MASK + text[end:]
    return text


def _secrets(form: _Form, text: str) -> Iterator[tuple[int, int]]:
    for match in form.pattern.finditer(text):
        if match["secret"] and match["secret"] != MASK:
            yield match.span("secret")
