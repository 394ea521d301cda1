"""Fingerprints: hashes of JSON values by which artifacts are named, and the differences between two such values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

_MISSING = object()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and without spaces: equal values give equal texts on every machine."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the differences between two identities field by field, such as `train.alpha 0.05 → 0.1`.

    Args:
        old: The earlier identity.
        new: The later identity.
        prefix: Dotted name of the section that both come from.
    """
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, _MISSING), new.get(key, _MISSING)
        if before == after:
            continue
        name = f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{name}.")
        else:
            yield f"{name} {_shown(before)} → {_shown(after)}"


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "(absent)"
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 60 else text[:57] + "..."
