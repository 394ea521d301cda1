"""The store on S3, against a server that speaks its protocol and a network that fails in every known way."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage import Artifact, Basis, InputRef, Manifest, Store, UserError
from storage import garbage as keeping
from storage.garbage import inventory, needed, removable, remove, remove_with_dependents
from storage.remote import open_store
from tests.conftest import REPO
from tests.proxy import Proxy, Times
from tests.s3 import elsewhere, opened
from tests.storage.helpers import BASIS, existing, files_under, fill, finish, seal
from tests.world import small_config, small_settings, write_config

NUMBER = itertools.count()


def test_what_one_machine_made_another_reads_file_by_file(uri: str, tmp_path: Path) -> None:
    made = fill(opened(uri))
    generation = made.manifest.generation
    there = elsewhere(uri, tmp_path / "there")
    assert there.objects.keys("kind") == [
        *(f"kind/a/{generation}/{name}" for name in ("empty.txt", "part/0.parquet", "part/1.parquet")),
        "kind/a/manifest.json",
    ]
    found = existing(there)
    assert found.manifest == made.manifest
    assert not found.home.exists()
    (table,) = found.files("part/1")
    assert files_under(found.home) == ["part/1.parquet"]
    assert pq.read_table(table)["x"].to_pylist() == [0, 1, 2]
    assert files_under(found.folder) == files_under(made.folder) == ["empty.txt", "part/0.parquet", "part/1.parquet"]
    assert found.location == f"{uri}/kind/a"


def test_no_manifest_no_artifact_and_no_copy_of_it(uri: str, tmp_path: Path) -> None:
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    home = fill(here).folder
    there.objects.delete(["kind/a/manifest.json"])
    assert there.find("kind", "a") is None
    assert opened(uri).find("kind", "a") is None
    assert not home.exists()


def test_an_artifact_made_again_replaces_the_old_one_and_leaves_nothing_behind(uri: str, tmp_path: Path) -> None:
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    old = fill(here, rows=3)
    read = existing(there)
    new = fill(here, rows=5, files=1, restart=True)
    assert len(here.objects.keys("kind")) == 3
    assert not any(old.manifest.generation in key for key in here.objects.keys("kind"))
    assert [path.name for path in here.folder("kind", "a").iterdir()] == [new.manifest.generation]
    with pytest.raises(UserError, match="removed or replaced while it was read; run the same command again"):
        _ = read.folder
    again = existing(there)
    assert pq.read_table(again.folder / "part/0.parquet").num_rows == 5


def test_of_two_writers_one_wins_and_the_other_takes_what_it_made(uri: str, tmp_path: Path) -> None:
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    with here.write("kind", "a", BASIS) as staging:
        here.objects.delete(["kind/.lease-a.json"])  # as if this writer had been silent for too long
        theirs = fill(there, rows=7)
        taken = finish(here, staging, rows=3)
    assert taken.manifest == theirs.manifest
    assert pq.read_table(taken.folder / "part/0.parquet").num_rows == 7
    assert len(here.objects.keys("kind/a")) == 4
    assert here.progress("kind", "a") == ("absent", "")


@pytest.mark.process
def test_between_two_manifests_the_server_decides(
    s3: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = elsewhere(s3, tmp_path / "there")
    last = Times("stall", 1, lambda request: request.method == "PUT" and request.key.endswith("manifest.json"))
    with Proxy(server, last) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        here = opened(s3)
        taken: list[Artifact] = []
        slow = threading.Thread(target=lambda: taken.append(fill(here, rows=3)))
        slow.start()
        assert proxy.stalled.wait(30)  # it has found no manifest, and its own is on the way
        there.objects.delete(["kind/.lease-a.json"])
        theirs = fill(there, rows=7)
        proxy.gate.set()
        slow.join(30)
    assert taken[0].manifest == theirs.manifest
    assert len(there.objects.keys("kind/a")) == 4


def test_damaged_bytes_are_never_read(uri: str, tmp_path: Path) -> None:
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    made = fill(here)
    key = f"kind/a/{made.manifest.generation}/part/0.parquet"
    size = here.objects.size(key)
    assert size
    here.objects.put(key, b"x" * size)
    found = existing(there)
    with pytest.raises(UserError, match="the bytes differ from the manifest"):
        found.files("part/0")
    assert files_under(found.home) == []


def test_removing_takes_manifest_files_copies_and_what_others_left(uri: str, tmp_path: Path) -> None:
    here = opened(uri)
    first = fill(here)
    with here.write("other", "o", Basis((first.ref,))) as staging:
        staging.path("note.txt").write_text("made from it")
        seal(staging, "o", "other", [first.ref])
        here.commit("other", "o")
    fill(here, "unrelated")
    here.objects.put("kind/torn/data-0/part/0.parquet", b"of an upload that was interrupted")
    there = elsewhere(uri, tmp_path / "there")
    removed = remove_with_dependents(there, [InputRef("kind", "a", "")])
    assert sorted(removed) == ["kind/a", "kind/torn", "other/o"]
    assert {key.split("/")[1] for kind in there.kinds() for key in there.objects.keys(kind)} == {"unrelated"}
    assert remove_with_dependents(here, []) == []


def test_a_manifest_cannot_lead_out_of_its_folder(uri: str) -> None:
    store = opened(uri)
    manifest = json.loads(fill(store).manifest.to_json())
    manifest["shards"][0]["path"] = "../../../.bashrc"
    store.objects.put("kind/a/manifest.json", json.dumps(manifest).encode())
    assert opened(uri).find("kind", "a") is None
    assert "which is no place in its folder" in opened(uri).manifest_fault("kind", "a")


def test_a_store_that_was_copied_works_in_either_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTQUILL_CACHE", str(tmp_path / "here"))
    remote = opened(f"memory://store-{next(NUMBER)}")
    fill(remote)
    for key in remote.objects.keys(""):
        (tmp_path / "copy" / key).parent.mkdir(parents=True, exist_ok=True)
        remote.objects.download(key, tmp_path / "copy" / key)
    down = existing(Store(tmp_path / "copy"))
    assert pq.read_table(down.folder / "part/0.parquet").num_rows == 3
    made = fill(Store(tmp_path / "plain"), "b", rows=4)
    for path in made.folder.rglob("*"):
        if path.is_file():
            remote.objects.upload(path, f"kind/b/{path.relative_to(made.folder).as_posix()}")
    up = existing(remote, "b")
    assert pq.read_table(up.folder / "part/0.parquet").num_rows == 4
    # Its files have no generation, and stay when abandoned ones beside them are removed.
    monkeypatch.setattr("storage.remote.ABANDONED", -1.0)
    remote.objects.put("kind/b/data-0/part/0.parquet", b"of a writer that stopped")
    assert remote.fault(up) == ""
    remote.remove_leftovers("kind", "b")
    assert remote.objects.keys("kind/b") == [
        "kind/b/empty.txt", "kind/b/manifest.json", "kind/b/part/0.parquet", "kind/b/part/1.parquet",
    ]  # fmt: skip


@pytest.mark.process
def test_a_lost_answer_does_not_make_a_writer_its_own_rival(
    s3: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Times("lost", 1, lambda request: request.method == "PUT" and request.key.endswith("manifest.json"))
    with Proxy(server, lost) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        made = fill(opened(s3))
        assert lost.left == 0
        assert proxy.puts("manifest.json") >= 2
        assert len(opened(s3).objects.keys("kind")) == 4
        assert pq.read_table(made.folder / "part/0.parquet").num_rows == 3


@pytest.mark.process
def test_listings_that_lag_hide_nothing_that_is_asked_for_by_name(
    s3: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlisted(request: object) -> str | None:
        return "unlisted" if request.listing else None  # type: ignore[attr-defined]

    with Proxy(server, unlisted) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        here = opened(s3)
        fill(here)
        assert here.objects.keys("kind") == []
        found = existing(elsewhere(s3, tmp_path / "there"))
        assert pq.read_table(found.folder / "part/0.parquet").num_rows == 3
        assert [artifact.manifest.fingerprint for artifact in here.newest_first("kind")] == ["a"]
        assert remove_with_dependents(here, [found.ref]) == ["kind/a"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    assert opened(s3).objects.keys("") == []


@pytest.mark.process
def test_the_manifest_goes_up_last_and_comes_down_first(s3: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = opened(s3)
        made = fill(store)
        put = [request.key for request in proxy.seen if request.method == "PUT" and "/.lease" not in request.key]
        remove_with_dependents(store, [made.ref])
        gone = [request.key for request in proxy.seen if request.method == "DELETE" and "/.lease" not in request.key]
    assert len(put) == 4
    assert put[-1] == gone[0] == "a/prefix/kind/a/manifest.json"
    assert set(put) <= set(gone)


@pytest.mark.process
def test_abandoned_files_are_removed_after_a_day(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(s3)
    store.objects.put("kind/a/data-0/part/0.parquet", b"of a writer that stopped")
    fill(store)
    assert store.objects.size("kind/a/data-0/part/0.parquet")  # it may still be at work
    monkeypatch.setattr("storage.remote.ABANDONED", -1.0)
    fill(store, restart=True)
    assert not store.objects.size("kind/a/data-0/part/0.parquet")
    assert len(store.objects.keys("kind/a")) == 4


# As after a kill between the new manifest and the removal of the files of the old one.
def test_abandoned_files_are_also_removed_when_the_artifact_is_reused(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "kind/a/data-0/part/0.parquet"
    fill(opened(uri))
    there = elsewhere(uri, tmp_path / "there")
    there.objects.put(key, b"of the artifact that was replaced")

    def reuse() -> None:
        found = existing(there)
        assert there.fault(found) == ""
        there.remove_leftovers("kind", "a")

    reuse()
    assert there.objects.size(key)  # its writer may still be at work
    monkeypatch.setattr("storage.remote.ABANDONED", -1.0)
    reuse()
    assert not there.objects.size(key)
    assert len(there.objects.keys("kind")) == 4


def test_what_an_interrupted_removal_left_is_removed_by_gc(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(opened(uri))
    fill(opened(uri), "b")
    there = elsewhere(uri, tmp_path / "there")
    there.objects.delete(["kind/a/manifest.json"])
    (left,) = [held for held in inventory(there) if held.fingerprint == "a"]
    assert (left.state, left.bytes) == ("interrupted", sum(there.objects.sizes("kind/a").values()))
    assert left.name in needed([left], [])  # its writer may come back within a day
    monkeypatch.setattr(keeping, "DAY_S", -1.0)
    found = inventory(there)
    removed = list(remove(there, removable(found, needed(found, [("kind", "b")]))))
    assert [(held.name, gone) for held, gone in removed] == [(left.name, True)]
    assert there.objects.keys("kind/a") == []
    assert there.orphans("kind") == {}
    assert there.find("kind", "b")


def _upload(uri: str, rows: int) -> None:
    fill(open_store(uri), rows=rows, files=6)


@pytest.mark.process
def test_a_killed_upload_leaves_no_artifact_and_resumes_with_the_rest(
    s3: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(server, Times("stall", 9, lambda request: request.key.endswith("5.parquet"))) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        writer = multiprocessing.get_context("spawn").Process(target=_upload, args=(s3, 3))
        writer.start()
        assert proxy.stalled.wait(60)
        deadline = time.monotonic() + 30
        while proxy.puts(".parquet") + proxy.puts("empty.txt") < 7 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        proxy.fault = lambda request: None
        proxy.seen.clear()
        # The same machine again, at the same address, which is part of the working copy's name.
        here, there = opened(s3), elsewhere(s3, tmp_path / "there")
        assert there.find("kind", "a") is None
        assert there.objects.keys("kind/a") != []
        assert here.progress("kind", "a") == ("interrupted", "")
        with here.write("kind", "a", BASIS) as staging:
            assert staging.sealed
            made = here.commit("kind", "a")
        assert proxy.puts(".parquet") <= 2
        assert pq.read_table(made.folder / "part/5.parquet").num_rows == 3
        assert len(there.objects.keys("kind")) == 8


def test_a_run_killed_after_the_manifest_only_settles_its_copy(uri: str) -> None:
    store = opened(uri)
    made = fill(store)
    staging = store.staging_folder("kind", "a")
    made.home.rename(staging)
    (staging / ".generation").write_text(made.manifest.generation)
    (staging / "manifest.json").write_text(Manifest(**{**vars(made.manifest), "generation": ""}).to_json())
    # Nothing is left to download, so what is found can only be what was here.
    store.objects.delete(store.objects.keys(f"kind/a/{made.manifest.generation}"))
    again = existing(store)
    assert files_under(again.folder) == ["empty.txt", "part/0.parquet", "part/1.parquet"]
    assert not staging.exists()


@pytest.mark.process
@pytest.mark.parametrize("fault", ["bucket", "credentials", "none"])
def test_refused_access_is_one_line_and_exit_code_2(
    fault: str, s3: str, server: str, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(small_world, tmp_path)
    settings["store"] = "s3://no-such-bucket/p" if fault == "bucket" else s3
    if fault == "none":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    if fault == "credentials":  # from now on the server checks credentials, and these are unknown
        _reset_auth(server, "0")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flows", "status", "--config", write_config(tmp_path / "c.yaml", settings)],
            capture_output=True, text=True, check=False, cwd=REPO,
        )  # fmt: skip
    finally:
        _reset_auth(server, "inf")
    said = {
        "bucket": "there is no such bucket; create it",
        "credentials": "access is refused (InvalidAccessKeyId); check the credentials",
        "none": "access is refused (NoCredentialsError); check the credentials",
    }
    assert done.returncode == 2, done.stderr
    assert said[fault] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "must-stay-hidden" not in done.stderr + done.stdout


def _reset_auth(server: str, count: str) -> None:
    request = urllib.request.Request(f"{server}/moto-api/reset-auth", count.encode(), {"Content-Type": "text/plain"})  # noqa: S310
    urllib.request.urlopen(request).close()  # noqa: S310


@pytest.mark.process
def test_stages_run_with_their_store_on_s3(
    s3: str, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextquill_core.ingest.reader import read_examples
    from nextquill_core.pipeline import freshness
    from nextquill_core.pipeline.run import Run
    from tests.stages import make

    run = Run(small_config(small_world, s3))
    made = make(run, run.plan.ingest)
    assert not made.reused
    plain = Run(small_config(small_world, tmp_path / "plain"))
    expected = make(plain, plain.plan.ingest)
    assert made.artifact.manifest.content == expected.artifact.manifest.content

    monkeypatch.setenv("NEXTQUILL_CACHE", str(tmp_path / "there"))
    there = Run(small_config(small_world, s3))
    assert freshness(there.store, there.plan.ingest).state == "fresh"
    reused = there.make(there.plan.ingest)
    assert reused.reused
    examples = list(read_examples(reused.artifact.folder, ("test",)))
    assert examples == list(read_examples(expected.artifact.folder, ("test",)))
    assert examples
    assert "must-stay-hidden" not in json.dumps(dict(reused.artifact.manifest.config))
