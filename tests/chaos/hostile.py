"""Strategies for JSON that NextQuill has not written: changed documents, and bytes that are not JSON."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

_NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, -0.0, float("inf"), float("nan"), 0.5]),
)
_TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", ".", "..", "../x", "/etc/passwd", "a/../../b", "a\x00b", "\ud800", "x" * 300, "\n", "~", "-"]),
)
_LEAVES = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)),
    max_leaves=6,
)

NO_JSON = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe\x00",
    b"\x00" * 100,
    b"[" * 100_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b"9" * 10_000,
    b'{"schema_version": ' + b"1" * 5_000 + b"}",
    b'{"a": 1, "a": 2}',
    b"NaN",
    b'"\\ud800"',
]


@st.composite
def documents(draw: st.DrawFn, valid: Any) -> bytes:
    """Draw a document with up to three values replaced, removed or added, sometimes cut off or with a flipped bit."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(NO_JSON))
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        document = _change(draw, document)
    data = json.dumps(document).encode("utf-8", errors="surrogatepass")
    damage = draw(st.integers(0, 9))
    if damage == 0:
        data = data[: draw(st.integers(0, len(data)))]
    elif damage == 1 and data:
        place = draw(st.integers(0, len(data) - 1))
        data = data[:place] + bytes([data[place] ^ (1 << draw(st.integers(0, 7)))]) + data[place + 1 :]
    return data


def _change(draw: st.DrawFn, value: Any) -> Any:
    """Change a JSON value as a whole, or something inside it."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    action = draw(st.integers(0, 7))
    if action == 0:
        del value[key]
    elif action == 1 and isinstance(value, dict):
        value[draw(_TEXTS)] = draw(VALUES)
    else:
        value[key] = _change(draw, value[key])
    return value
