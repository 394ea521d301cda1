"""A server that speaks S3's protocol, and URIs of stores that no other test uses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import objects
from tests.s3 import environment, new_store, s3_server

NUMBER = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


# A URI in an unused bucket; the environment leads there, and pauses between attempts are short.
@pytest.fixture
def s3(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in environment(server, tmp_path / "here").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "FIRST_PAUSE", 0.01)
    return new_store(server)


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.process)])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    monkeypatch.setenv("NEXTQUILL_CACHE", str(tmp_path / "here"))
    return f"memory://store-{next(NUMBER)}/a/prefix"
