"""Hostile configs: each is read, or refused in one line; nothing else is raised and nothing takes long."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextquill_core.config import known_keys, load_config, parse_config
from storage import canonical_json
from storage.errors import UserError
from tests.effort import trials

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
DIGITS = "9" * 5000
REFUSED: tuple[tuple[str | bytes, str], ...] = (
    ("seed: 1\nseed: 2\n", "the key `seed` is there twice, line 2"),
    ("train:\n  alpha: 1\n  alpha: 2\n", "the key `alpha` is there twice, line 3"),
    (f"seed: {DIGITS}", r"`9+\.\.\.` is not a value .*, line 1"),
    ("seed: 0x" + "f" * 9999, "a whole number does not fit 64 bits, line 1"),
    ("seed: 9223372036854775808", "a whole number does not fit 64 bits"),
    ("seed: -1", "`seed`: .* greater than or equal to 0"),
    ("ingest: {protocol: {val_from: 2020-13-45}}", r"`2020-13-45` is not a value \(month must be in 1..12\), line 1"),
    ("ingest: {protocol: {val_from: 0000-01-01}}", "year 0 is out of range"),
    ("ingest: {options: {x: 2020-01-01}}", r"`ingest.options.x` is of type date; write a text"),
    ("ingest: {options: {x: !!set {a}}}", r"`ingest.options.x` is of type set"),
    ("ingest: {options: {x: .nan}}", r"`ingest.options.x` is not finite: nan"),
    ("train: {learning_rate: .inf}", r"`train.learning_rate`: Input should be a finite number; got inf"),
    ("train: {learning_rate: 1e400}", "finite number"),
    ("weights: {options: {temperature: .nan}}", "finite number"),
    ("evaluate: {server: {timeout_s: .inf}}", "finite number"),
    ('store: "a\\0b"', "`store` has a NUL character"),
    (b"store: a\0b", "special characters are not allowed"),
    ('store: "\\ud800"', "unicode"),
    ('store: ""', "`store`: .*at least 1 character"),
    ('store: " "', "`store`"),
    (f"store: {'x' * 10001}", "longer than 10,000 characters"),
    ("store: ~no-such-user-here/x", "`store` names a user that this machine does not have: ~no-such-user-here/x"),
    ("ingest: {inputs: [{category: A, reviews: ~no-such-user-here/x}]}", r"`ingest.inputs.reviews` names a user"),
    ("[" * 100_000, "nested more than 32 levels deep, line 1"),
    ("a: " + "{a: " * 5000 + "}" * 5000, "nested more than 32 levels deep"),
    (BOMB, "more than 100,000 values"),
    ("ingest: &a {options: *a}", "a value contains itself"),
    ("1: 2", "the key 1 is not a text; put it in quotes, line 1"),
    ("null: 2", "the key null is not a text"),
    ("ingest: {options: {on: 2}}", "the key on is not a text"),
    ("? [a, b]\n: c", "a list or mapping is not a text"),
    ("train:\n\talpha: 1", r"found character '\\t' that cannot start any token, line 2"),
    ("seed: 1\n---\nseed: 2", "another document, line 2"),
    ("x: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ("x: !!timestamp abc", "`abc` is not a value"),
    (b"\x83\x00\xff", "the config is not UTF-8 text"),
    ("seed: 1".encode("utf-16"), "the config is not UTF-8 text"),
    (b"#" * ((1 << 20) + 1), "longer than 1,048,576 characters"),
    ("[1]", "a config is a YAML mapping"),
)


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_a_hostile_config_is_refused_in_one_short_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (
        tmp_path,
        tmp_path / "absent",
        tmp_path / "pipe",
        "/dev/zero",
        "a\0b",
        "x" * 5000,
        "",
        tmp_path / "pipe" / "x",
    ):
        with pytest.raises(UserError, match="name a file with --config"):
            load_config(path)


@pytest.mark.parametrize(
    "override",
    [
        "=", "a", "=1", ".=1", "a..b=1", "seed.=1", "seed=[", "seed=\0", "seed=!!python/name:os", "seed=&a [*a]",
        f"seed={DIGITS}", "store=", f"{'x' * 100_000}=1", f"{'a.' * 5000}b=1", f"ingest.options.{'a.' * 3000}b=1",
        "seed=1\n---\n2", "store.x=1", "seed=" + "[" * 5000, "seed=2020-99-99", "ingest.options.x=&a [*a]",
        "train.alpha=.inf", "ingest.options={1: 2}", "store='~no-such-user-here'",
    ],
)  # fmt: skip
def test_odd_values_laid_over_a_config_are_refused(tmp_path: Path, override: str) -> None:
    (tmp_path / "c.yaml").write_text("")
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "c.yaml", [override])
    assert len(str(caught.value)) < 900


def test_what_is_harmless_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 9223372036854775807\ntrain: &t {alpha: 0.1}\nstore: ~/x\n")
    assert load_config(path).seed == 2**63 - 1
    path.write_text("ingest:\n  options: {<<: &o {a: 1}, b: '~|'}\n  inputs: [{category: A}, {category: B}]\n")
    assert load_config(path).ingest.options == {"a": 1, "b": "~|"}


KEYS = [tuple(key.split(".")) for key in known_keys()]
HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**62, max_value=2**70),
    st.floats(),
    st.text(),
    st.characters(),
    st.dates(),
    st.binary(max_size=3),
    st.sampled_from(["", " ", "~", "~unknown-user", "\0", "..", "/", "auto", "tiny", "x" * 300, "1e400", "nan", "-0"]),
)
VALUES = st.recursive(
    HOSTILE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
)


@settings(max_examples=trials(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=3))
def test_any_values_of_known_keys_give_a_config_or_one_line(chosen: list[tuple[tuple[str, ...], Any]]) -> None:
    values: dict[str, Any] = {}
    for path, value in chosen:
        section = values
        for name in path[:-1]:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        section[path[-1]] = value
    try:
        config = parse_config(values, "the test")
    except UserError as error:
        shown = str(error)
    else:
        shown = ""
    assert "\n" not in shown
    assert len(shown) < 2000
    if shown:
        return
    canonical_json(config.fingerprint_fields())  # what fingerprints are made of
    stored = json.loads(config.model_dump_json())  # what manifests and Prefect store
    assert parse_config(stored, "again") == config


def test_dates_are_settings_where_a_date_is_asked_for() -> None:
    config = parse_config({"ingest": {"protocol": {"name": "global-time", "val_from": date(2020, 1, 1)}}}, "the test")
    assert config.fingerprint_fields()["ingest"]["protocol"]["val_from"] == "2020-01-01"
