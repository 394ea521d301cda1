"""Secrets in texts: detected where settings are read, and masked in everything that is stored or shown.

Two things count as a secret. The first is a text that has the form of one: a password in a URL, a signed query,
`--password x`, a bearer token, or a key with the known prefix of its issuer. The second is the value of an environment
variable that holds one, by its name (`OPENAI_API_KEY`), because a setting names it, or because it is a URL with a
password.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

MASK = "***"
SHORTEST = 6
"""Shortest value of a variable that is masked, in characters: masking `1` or `true` would hide half of a text."""

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

IN_ADDRESS = FORMS[:2]
"""Forms of credentials before the host of a URL."""

SECRET_NAME = re.compile(rf"(?:.*[-_.])?{NAME}", re.IGNORECASE)
"""Names of options whose values are secrets."""

_variables = {"PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "SSHPASS"}
"""Environment variables that hold secrets though their names do not match `SECRET_NAME`."""
_PLACES = {"GOOGLE_APPLICATION_CREDENTIALS", "PWD"}
"""Environment variables with names like secrets that hold paths."""
_NAMES_OF_SECRETS = {"key_secret"}
"""Settings that hold the name under which a secret is stored, and not the secret."""
_values: set[str] = set()


def register_secret(*, variable: str | None = None, value: str | None = None) -> None:
    """Mask a value, or the value of an environment variable, from now on in this process."""
    if variable:
        _variables.add(variable)
    if value and len(value) >= SHORTEST:
        _values.add(value)


def secret_in(text: str) -> str | None:
    """Return the kind of secret that a text holds by its form, or None."""
    return next((form.what for form in FORMS if any(_secrets(form, text))), None)


def holds_secret(variable: str) -> bool:
    """Return whether an environment variable holds a secret, by its name or because a setting named it."""
    return variable in _variables or _named_secret(variable)


def redact(text: str) -> str:
    """Return a text with each secret in it replaced by `***`."""
    for value in sorted(_known_values(), key=len, reverse=True):
        text = text.replace(value, MASK)
    for form in FORMS:
        for start, end in sorted(_secrets(form, text), reverse=True):
            text = text[:start] + MASK + text[end:]
    return text


def redact_values(value: Any) -> Any:
    """Return a JSON value with the secrets in all texts masked, and the values of keys whose names mean a secret."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            redact(str(name)): MASK
            if isinstance(inner, str) and name not in _NAMES_OF_SECRETS and SECRET_NAME.fullmatch(str(name))
            else redact_values(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        words = " ".join(item for item in value if isinstance(item, str))
        # An option and its value may be two words, neither of which has the form of a secret.
        split = secret_in(words) and not any(isinstance(item, str) and secret_in(item) for item in value)
        return [MASK if split and isinstance(item, str) else redact_values(item) for item in value]
    return value


@functools.cache
def _named_secret(variable: str) -> bool:
    return variable not in _PLACES and SECRET_NAME.fullmatch(variable) is not None


def _known_values() -> set[str]:
    """Return the registered secrets and those in the environment, as they are and as a URL writes them."""
    found = set(_values)
    for name, value in os.environ.items():
        if holds_secret(name):
            found.add(value.strip())
        elif "://" in value and "@" in value:
            found |= {unquote(value[start:end]) for form in IN_ADDRESS for start, end in _secrets(form, value)}
    # The environment may hold bytes that are not UTF-8; Python keeps them as surrogates.
    quoted = {quote(value, safe="", errors="surrogateescape") for value in found}
    return {form for form in found | quoted if len(form) >= SHORTEST}


def _secrets(form: _Form, text: str) -> Iterator[tuple[int, int]]:
    for match in form.pattern.finditer(text):
        if match["secret"] and match["secret"] != MASK:
            yield match.span("secret")
