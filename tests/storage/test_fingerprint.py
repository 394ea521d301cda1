"""Fingerprints of JSON values, and the differences between two values."""

from __future__ import annotations

import pytest

from storage import differences, fingerprint
from storage.fingerprint import canonical_json


def test_fingerprints_ignore_order_and_see_values() -> None:
    assert fingerprint({"a": 1, "b": [2.0, None]}) == fingerprint({"b": [2.0, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_differences_name_the_field() -> None:
    old, new = {"train": {"alpha": 0.05, "r": 1}, "x": 1}, {"train": {"alpha": 0.1, "r": 1}, "y": 2}
    assert list(differences(old, new)) == ["train.alpha 0.05 → 0.1", "x 1 → (absent)", "y (absent) → 2"]


def test_a_fingerprint_is_the_start_of_the_sha256_of_canonical_json() -> None:
    """Computed outside: `printf '{"a":1}' | sha256sum`."""
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2d"
    assert canonical_json({"ü": [1.5, None, "é"], "a": True}) == '{"a":true,"ü":[1.5,null,"é"]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_differences_of_equal_values_of_other_types_and_of_long_values() -> None:
    """Equal values are skipped although they are other objects; a section against a value is shown whole."""
    old = {"a": [1, 2], "b": {"c": 1}, "d": "x", "e": "y" * 60, "f": "y" * 61}
    new = {"a": [1, 2], "b": 2, "d": "z", "e": 0, "f": 0}
    assert list(differences(old, new)) == [
        'b {"c":1} → 2', "d x → z", f"e {'y' * 60} → 0", f"f {'y' * 57}... → 0",
    ]  # fmt: skip
