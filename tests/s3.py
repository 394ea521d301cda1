"""A server on loopback that speaks S3's protocol, and the environment that leads to it."""

from __future__ import annotations

import itertools
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from storage.remote import RemoteStore, open_store

NUMBER = itertools.count()


@contextmanager
def s3_server() -> Iterator[str]:
    """Run the server and yield its address."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        running.stop()


def environment(server: str, cache: Path) -> dict[str, str]:
    """Return the environment variables for a store there, with `cache` as the folder of working copies."""
    return {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret-that-must-stay-hidden",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NEXTQUILL_CACHE": str(cache),
    }


def new_store(server: str) -> str:
    """Return the URI of a prefix in a new bucket."""
    bucket = f"bucket-{next(NUMBER)}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{bucket}", method="PUT")).close()  # noqa: S310
    return f"s3://{bucket}/a/prefix"


def elsewhere(uri: str, cache: Path) -> RemoteStore:
    """Return the store as another machine sees it."""
    with mock.patch.dict(os.environ, {"NEXTQUILL_CACHE": str(cache)}):
        return opened(uri)


def opened(uri: str) -> RemoteStore:
    store = open_store(uri)
    assert isinstance(store, RemoteStore)
    return store
