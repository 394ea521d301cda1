"""What counts as a secret in a text, what does not, and that nothing of it is left."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from storage.errors import UserError
from storage.provenance import provenance
from storage.redaction import holds_secret, redact, redact_values, register_secret, secret_in

S = "pl4nt3d-S3cret.value"
TEXTS = (
    f"http://me:{S}@host:8000/v1",
    f"http://me:{S}/with/slashes@host:8000/v1",
    f"https://{S}@host/v1",
    f"s3://key:{S}@bucket/prefix",
    f"s3://{S}@bucket/prefix",
    f"redis://:{S}@host",
    f"https://host/f.jsonl?X-Amz-Signature={S}&x=1",
    f"https://host/f.jsonl?x=1&token={S}",
    f"https://host/f.jsonl?AWSAccessKeyId={S}",
    f"https://host/f.jsonl?sv=1&sig={S}#top",
    f"https://host/f?api_key={S}",
    f"https://host/f?key={S}",
    f"sshpass -p {S} ssh -o BatchMode=yes",
    f"sshpass -p{S} ssh",
    f"sshpass -v -p '{S}' ssh",
    f"env SSHPASS={S} sshpass -e ssh",
    f"tool --password {S} x",
    f"tool --password={S}",
    f"tool --api-key '{S}'",
    f"--export=ALL,HF_TOKEN={S}",
    f"curl -H 'Authorization: Bearer {S}'",
    f"curl -H 'Authorization: Basic {S}'",
    f"Authorization: {S}",
    f"Bearer {S}",
    "hf_" + "abcdEFGH1234" * 3,
    "sk-" + "abcdEFGH1234" * 3,
    "AKIA" + "ABCDEFGH" * 2,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123",
    f"-----BEGIN OPENSSH PRIVATE KEY-----\n{S}",
)
HARMLESS = (
    "http://127.0.0.1:8000/v1",
    "http://host:8000/v1/a@b",
    "https://host/f.jsonl?versionId=3&region=eu&monkey=1&keyword=x",
    "s3://bucket/some@file.jsonl",
    "s3://bucket/a:b",
    "ssh -o BatchMode=yes -o ServerAliveInterval=15 -p 2222 -i ~/.ssh/id_ed25519",
    "sshpass -e ssh",
    "sshpass -f file ssh -p 2222",
    "--partition=gpu --gpus-per-node=8 --time=2-0",
    "--tokenizer x",
    "--set prompt.max_prompt_tokens=64",
    "tool --password $PASSWORD",
    "TOKENIZERS_PARALLELISM=false",
    "NEXTQUILL_PSEUDONYM_KEY",
    "user_token",
    "the bearer of this",
    "sklearn-models-of-mine",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_secret_is_found_and_masked(text: str) -> None:
    assert secret_in(text)
    shown = redact(text)
    assert S not in shown
    assert "***" in shown
    assert secret_in(shown) is None
    assert redact(shown) == shown
    assert redact(f"before {text} after").startswith("before ")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert secret_in(text) is None
    assert redact(text) == text


def test_values_of_variables_are_masked_in_errors_and_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_OWN_KEY", S)
    assert S in str(UserError(f"the server says: wrong key {S}"))
    register_secret(variable="MY_OWN_KEY")
    assert str(UserError(f"the server says: wrong key {S}")) == "the server says: wrong key ***"
    monkeypatch.setattr("sys.argv", ["nextquill", "run", "--set", "evaluate.server.url=http://a:b3c4d5@h", f"x={S}"])
    command = provenance(datetime.now(UTC), [])["command"]
    assert "b3c4d5" not in command
    assert S not in command
    monkeypatch.setenv("MY_OWN_KEY", "1")
    assert redact("1 of 1") == "1 of 1"


def test_variables_are_known_by_their_names_and_passwords_in_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "op3nai/key+x")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:p%40ssw0rd@proxy:3128")
    assert redact("wrong: op3nai/key+x, op3nai%2Fkey%2Bx") == "wrong: ***, ***"
    assert redact("the proxy took p@ssw0rd and p%40ssw0rd") == "the proxy took *** and ***"
    monkeypatch.setenv("MY_TOKEN", "bytes\udcff-that-are-not-UTF-8")
    assert redact("got bytes\udcff-that-are-not-UTF-8 or bytes%FF-that-are-not-UTF-8") == "got *** or ***"
    for name in ("AZURE_OPENAI_API_KEY", "GITHUB_TOKEN", "POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        assert holds_secret(name)
    for name in (
        "PWD",
        "HOME",
        "TOKENIZERS_PARALLELISM",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    ):
        assert not holds_secret(name)


def test_secrets_in_parameters_are_masked_and_the_rest_stays() -> None:
    harmless = {
        "seed": 42,
        "store": "/x",
        "privacy": {"key_secret": "block"},
        "slurm": {"arguments": ["--time=1", "-x"]},
    }
    assert redact_values(harmless) == harmless
    hidden = {"a": f"http://me:{S}@host", "options": {"password": S}, "arguments": ["--password", S], f"hf://{S}@x": 1}
    assert S not in str(redact_values(hidden))
