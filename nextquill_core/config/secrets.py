"""Detection of secrets in settings. They are refused, because settings are stored with each artifact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from storage.redaction import SECRET_NAME, secret_in

CLOUD = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or GOOGLE_APPLICATION_CREDENTIALS in the environment"
)
HUB = "set HF_TOKEN in the environment"
VARIABLE = "name the environment variable here and put the key into the variable"
REMEDIES = {
    "evaluate.server.url": "name the environment variable that holds the key in evaluate.server.api_key_env",
    "evaluate.judge.url": "name the environment variable that holds the key in evaluate.judge.api_key_env",
    "train.launcher.remote_shell": "set SSHPASS in the environment and write `sshpass -e`, or use a key of ssh",
    "store": CLOUD,
    "read_store": CLOUD,
    "ingest.inputs": f"{CLOUD}; download what only a signed address gives, and name the file",
    "privacy.key_env": VARIABLE,
    "evaluate.server.api_key_env": VARIABLE,
    "evaluate.judge.api_key_env": VARIABLE,
    "model": HUB,
    "evaluate.retrieval": HUB,
}
OTHERWISE = "put it into an environment variable; all processes receive the environment"


def first_secret(settings: BaseModel) -> tuple[str, str, str] | None:
    """Return the first setting that holds a secret as key, kind of secret and remedy; None if there is none."""
    for key, text in _texts(settings):
        if kind := secret_in(text):
            return key, kind, _remedy(key)
        *_, last = key.rsplit(".", 1)
        if text and key.startswith(("ingest.options.", "evaluate.server.models.")) and SECRET_NAME.fullmatch(last):
            return key, "a secret, by its name", _remedy(key)
    return None


def _remedy(key: str) -> str:
    return next((remedy for start, remedy in REMEDIES.items() if f"{key}.".startswith(f"{start}.")), OTHERWISE)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text in the settings with its dotted key, including the names of free options."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _texts(getattr(value, name), f"{key}.{name}" if key else name)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield key, str(name)
            yield from _texts(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        words = [item for item in value if isinstance(item, str)]
        yield key, " ".join(words)  # an option and its value may be two words
        for item in value:
            yield from _texts(item, key)
