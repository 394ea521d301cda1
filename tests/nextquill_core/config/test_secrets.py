"""Settings that hold secrets are refused with what to use instead, and the secret is not repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from nextquill_core.config import Config, load_config, parse_config
from nextquill_core.config.base import Section
from storage.errors import UserError
from storage.redaction import redact
from tests.nextquill_core.config.test_operational import nested

S = "pl4nt3d-S3cret"
URL = f"https://me:{S}@host/v1"
CASES: tuple[tuple[str, Any, str], ...] = (
    ("store", f"s3://key:{S}@bucket", "AWS_ACCESS_KEY_ID"),
    ("store", URL, "AWS_ACCESS_KEY_ID"),
    ("ingest.inputs", [{"category": "A", "reviews": URL, "items": "i"}], "AWS_ACCESS_KEY_ID"),
    (
        "ingest.inputs",
        [{"category": "A", "reviews": "r", "items": f"https://h/i?X-Amz-Credential=a&X-Amz-Signature={S}"}],
        "download what only a signed address gives",
    ),
    ("ingest.options", {"password": S}, "put it into an environment variable"),
    ("ingest.options", {"reviews": {"connection": URL}}, "put it into an environment variable"),
    ("model.name_or_path", URL, "HF_TOKEN"),
    ("model.revision", "hf_" + "a1B2c3D4" * 4, "HF_TOKEN"),
    ("evaluate.retrieval.encoder", URL, "HF_TOKEN"),
    ("evaluate.server.url", URL, r"evaluate\.server\.api_key_env"),
    ("evaluate.server.url", f"http://host/v1?api_key={S}", r"evaluate\.server\.api_key_env"),
    ("evaluate.server.models", {"base": URL}, "environment variable"),
    ("evaluate.server.api_key_env", f"sk-{S}-aaaaaaaaaaaaaaaa", "put the key into the variable"),
    ("evaluate.judge.url", URL, r"evaluate\.judge\.api_key_env"),
    ("evaluate.judge.api_key_env", f"sk-{S}-aaaaaaaaaaaaaaaa", "put the key into the variable"),
    ("evaluate.judge.api_key_env", "hf_" + "a1B2c3D4" * 4, "put the key into the variable"),
    ("privacy.key_env", "0123456789abcdef" * 4, "put the key into the variable"),
    ("privacy.key_env", "abcdef0123456789" * 4, "put the key into the variable"),
    ("train.launcher.remote_shell", f"sshpass -p {S} ssh", "SSHPASS.*`sshpass -e`"),
    ("train.launcher.remote_shell", f"tool --token={S}", "SSHPASS"),
    ("train.launcher.slurm.arguments", [f"--export=ALL,API_TOKEN={S}"], "environment variable"),
    ("train.launcher.slurm.arguments", ["--password", S], "environment variable"),
    ("slurm.common.arguments", [f"--export=ALL,API_TOKEN={S}"], "environment variable"),
    ("score.ray_address", f"ray://me:{S}@host", "environment variable"),
)


@pytest.mark.parametrize(("key", "value", "remedy"), CASES)
def test_a_secret_in_a_setting_is_refused(tmp_path: Path, key: str, value: Any, remedy: str) -> None:
    with pytest.raises(UserError, match=rf"`{key}.*(holds a|takes the name of an env).*; .*{remedy}") as caught:
        parse_config(nested(key, value), "the file")
    (tmp_path / "c.yaml").write_text("")
    with pytest.raises(UserError) as laid_over:
        load_config(
            tmp_path / "c.yaml", [f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...')}"]
        )
    with pytest.raises(ValidationError) as validated:  # what Prefect shows of a flow's parameters
        Config.model_validate(nested(key, value))
    for error in (caught, laid_over, validated):
        shown = str(error.value)
        assert S not in shown
        assert "0123456789" not in shown
        assert "a1B2c3D4" not in shown


def text_settings(section: type[Section] = Config, prefix: str = "") -> list[str]:
    """The dotted keys of all settings that take a free text."""
    found = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found += text_settings(inner, f"{prefix}{name}.")
        elif inner is str or inner == str | None:
            found.append(prefix + name)
    return found


def test_no_text_setting_takes_a_password(tmp_path: Path) -> None:
    keys = text_settings()
    assert {"store", "model.name_or_path", "privacy.forget", "slurm.folder", "train.deepspeed.config"} <= set(keys)
    for key in keys:
        for value in (URL, f"x --password {S}", f"Authorization: Bearer {S}"):
            with pytest.raises(UserError) as caught:
                parse_config(nested(key, value), "the file")
            assert S not in str(caught.value)


def test_settings_without_secrets_are_read(tmp_path: Path) -> None:
    for key, value in (
        ("privacy.key_env", "MY_KEY"),
        ("privacy.key_secret", "nextquill-key"),
        ("evaluate.server.api_key_env", "OPENAI_API_KEY"),
        ("train.launcher.remote_shell", "sshpass -e ssh -p 2222"),
        ("ingest.options", {"reviews": {"user_id": "token", "text": "password"}}),
        ("store", "s3://bucket/a@b"),
    ):
        parse_config(nested(key, value), "the file")


def test_variables_that_settings_name_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("privacy.key_env", "evaluate.server.api_key_env", "evaluate.judge.api_key_env"):
        name = f"PLAIN_{key.split('.')[1].upper()}"
        monkeypatch.setenv(name, f"value of {name}")
        parse_config(nested(key, name), "the file")
        assert redact(f"it said: value of {name}!") == "it said: ***!"
