"""Objects under a URI: what is refused, what is repeated, and how large files are sent."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from storage import UserError, objects
from storage.remote import open_store
from tests.proxy import Proxy, Times
from tests.s3 import elsewhere, opened
from tests.storage.helpers import BASIS, existing, fill, seal


@pytest.mark.parametrize(
    "uri", ["s3://AKID:hush-hush@bucket/p", "s3://bucket/p?secret=hush-hush", "gs://bucket/p#hush-hush"]
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UserError, match="must not carry credentials") as raised:
        open_store(uri)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("s3://", "names no bucket"),
        ("https://host/store", "nothing can be written to https://"),
        ("nowhere://host/store", "the protocol nowhere:// is unknown; name a folder, s3:// or gs://"),
    ],
)
def test_invalid_store_uris_are_refused(uri: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        open_store(uri)


@pytest.mark.parametrize(("scheme", "module", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gs")])
def test_a_missing_library_is_named_by_its_extra(
    scheme: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"not installed; pip install 'nextquill\[{extra}\]'"):
        open_store(f"{scheme}://bucket/prefix")


@pytest.mark.process
def test_throttling_is_waited_out(s3: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(server, Times("503", 12, lambda request: True)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        fill(opened(s3))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    assert opened(s3).find("kind", "a")


@pytest.mark.process
def test_a_store_that_never_answers_is_reported_in_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(objects, "ATTEMPTS", 2)
    with pytest.raises(UserError, match=r"no success in 2 attempts .*check the network") as raised:
        opened(s3).find("kind", "a")
    assert "secret" not in str(raised.value)


@pytest.mark.process
def test_invalid_bucket_names_are_refused_at_once(s3: str) -> None:
    with pytest.raises(UserError, match="the store does not accept this address"):
        opened("s3://No_Such,Name/p").find("kind", "a")


@pytest.mark.process
def test_large_files_go_in_parts_and_cut_connections_are_begun_again(
    s3: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PART_BYTES", 5 << 20)
    content = os.urandom(11 << 20)
    cut = Times("cut", 2, lambda request: request.method == "PUT" and request.size > 1 << 20)
    with Proxy(server, cut) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = opened(s3)
        with store.write("kind", "a", BASIS) as staging:
            staging.path("large.bin").write_bytes(content)
            seal(staging)
            store.commit("kind", "a")
        assert {number for request in proxy.seen for number in request.query.get("partNumber", ())} == {"1", "2", "3"}
        assert cut.left == 0
        assert max(request.size for request in proxy.seen) < 6 << 20
        found = existing(elsewhere(s3, tmp_path / "there"))
        assert (found.folder / "large.bin").read_bytes() == content


@pytest.mark.process
def test_only_parts_of_the_interrupted_upload_are_dropped(s3: str) -> None:
    store = opened(s3)
    bucket, _, prefix = s3.removeprefix("s3://").partition("/")
    for key in ("kind/a/data-0/large.bin", "kind/a/data-01/large.bin"):
        store.objects._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{prefix}/{key}")
    store.objects.drop_parts("kind/a/data-0")
    left = store.objects._fs.call_s3("list_multipart_uploads", Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == [f"{prefix}/kind/a/data-01/large.bin"]
    fill(store)  # moto says of every upload that it was begun in 2010
    assert "Uploads" not in store.objects._fs.call_s3("list_multipart_uploads", Bucket=bucket)
