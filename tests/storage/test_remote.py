"""The store on S3: against a server that speaks its protocol, through a network that fails in every known way."""

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
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import Artifact, Basis, InputRef, Manifest, Store, UserError, lease, objects
from storage import garbage as keeping
from storage.errors import Busy
from storage.garbage import inventory, needed, removable, remove
from tests.conftest import REPO
from tests.proxy import Proxy, Times
from tests.s3 import elsewhere, environment, new_store, opened, s3_server
from tests.world import small_config, small_settings, write_config

BASIS = Basis(tools="b")
NUMBER = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI in a bucket of its own; the environment leads there, and pauses are short."""
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


def fill(store: Store, name: str = "a", rows: int = 3, files: int = 2, **options: bool) -> Artifact:
    with store.write("kind", name, BASIS, **options) as staging:
        return finish(store, staging, name, rows, files)


def finish(store: Store, staging: object, name: str = "a", rows: int = 3, files: int = 2) -> Artifact:
    for number in range(files):
        staging.write_table(f"part/{number}.parquet", pa.table({"x": list(range(rows))}))  # type: ignore[attr-defined]
    staging.path("empty.txt").write_text("")  # type: ignore[attr-defined]
    seal(staging, name)
    return store.commit("kind", name)


def seal(staging: object, name: str = "a") -> None:
    staging.seal(  # type: ignore[attr-defined]
        kind="kind", fingerprint=name, identity={"a": 1}, config={}, inputs=[], stats={}, provenance={}
    )


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_one_machine_made_another_reads_file_by_file(uri: str, tmp_path: Path) -> None:
    made = fill(opened(uri))
    generation = made.manifest.generation
    there = elsewhere(uri, tmp_path / "there")
    assert there.objects.keys("kind") == [
        *(f"kind/a/{generation}/{name}" for name in ("empty.txt", "part/0.parquet", "part/1.parquet")),
        "kind/a/manifest.json",
    ]
    found = there.find("kind", "a")
    assert found is not None
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


def test_making_it_anew_takes_its_place_and_leaves_nothing_behind(uri: str, tmp_path: Path) -> None:
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    old = fill(here, rows=3)
    read = there.find("kind", "a")
    assert read is not None
    new = fill(here, rows=5, files=1, restart=True)
    assert len(here.objects.keys("kind")) == 3
    assert not any(old.manifest.generation in key for key in here.objects.keys("kind"))
    assert [path.name for path in here.folder("kind", "a").iterdir()] == [new.manifest.generation]
    with pytest.raises(UserError, match="removed or replaced while it was read; run the same command again"):
        _ = read.folder
    again = there.find("kind", "a")
    assert again is not None
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


def test_a_living_writer_elsewhere_is_not_disturbed(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "LIFE", 5.0)
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    with here.write("kind", "a", BASIS) as staging:
        with pytest.raises(Busy, match=f"another process is making kind a; wait for process {os.getpid()} on"):
            fill(there)
        assert there.progress("kind", "a") == ("running", "")
        finish(here, staging)
    assert there.progress("kind", "a") == ("absent", "")
    assert not [name for name in here.objects.children("kind") if name.startswith(".")]


def test_who_is_patient_gets_the_lease_of_a_living_writer(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    began, left = threading.Event(), threading.Event()

    def hold() -> None:
        with here.alone("kind", "a", patience=0):
            began.set()
            time.sleep(0.5)
            left.set()

    holder = threading.Thread(target=hold)
    holder.start()
    assert began.wait(10)
    with there.alone("kind", "a", patience=30):
        assert left.is_set()
    holder.join()


def test_a_dead_writers_lease_is_taken_over(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LIFE", 0.3)
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    here.objects.put("kind/.lease-a.json", json.dumps({"holder": "x", "place": "gone", "pid": 1}).encode())
    started = time.monotonic()
    fill(there)
    assert time.monotonic() - started >= 0.3
    # One that stood in this working copy is known to be dead at once, since its file lock is free.
    monkeypatch.setattr(lease, "LIFE", 60.0)
    here.objects.put("kind/.lease-b.json", json.dumps({"holder": "x", "place": here._place}).encode())
    fill(here, "b")
    assert here.find("kind", "b")


def test_damaged_bytes_are_never_read(uri: str, tmp_path: Path) -> None:
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    made = fill(here)
    key = f"kind/a/{made.manifest.generation}/part/0.parquet"
    size = here.objects.size(key)
    assert size
    here.objects.put(key, b"x" * size)
    found = there.find("kind", "a")
    assert found is not None
    with pytest.raises(UserError, match="its bytes are not those that its manifest names"):
        found.files("part/0")
    assert files_under(found.home) == []


def test_removing_takes_manifest_files_copies_and_what_others_left(uri: str, tmp_path: Path) -> None:
    here = opened(uri)
    first = fill(here)
    with here.write("other", "o", Basis((first.ref,))) as staging:
        staging.path("note.txt").write_text("made from it")
        staging.seal(kind="other", fingerprint="o", identity={}, config={}, inputs=[first.ref], stats={}, provenance={})
        here.commit("other", "o")
    fill(here, "unrelated")
    here.objects.put("kind/torn/data-0/part/0.parquet", b"of an upload that was interrupted")
    there = elsewhere(uri, tmp_path / "there")
    removed = there.remove_with_descendants([InputRef("kind", "a", "")])
    assert sorted(removed) == ["kind/a", "kind/torn", "other/o"]
    assert {key.split("/")[1] for kind in there.kinds() for key in there.objects.keys(kind)} == {"unrelated"}
    assert here.remove_with_descendants([]) == []


def test_a_manifest_cannot_lead_out_of_its_folder(uri: str) -> None:
    store = opened(uri)
    manifest = json.loads(fill(store).manifest.to_json())
    manifest["shards"][0]["path"] = "../../../.bashrc"
    store.objects.put("kind/a/manifest.json", json.dumps(manifest).encode())
    assert opened(uri).find("kind", "a") is None
    assert "outside its folder" in opened(uri).manifest_fault("kind", "a")


def test_a_store_that_was_copied_works_in_either_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTQUILL_CACHE", str(tmp_path / "here"))
    remote = opened(f"memory://store-{next(NUMBER)}")
    fill(remote)
    for key in remote.objects.keys(""):
        (tmp_path / "copy" / key).parent.mkdir(parents=True, exist_ok=True)
        remote.objects.download(key, tmp_path / "copy" / key)
    down = Store(tmp_path / "copy").find("kind", "a")
    assert down is not None
    assert pq.read_table(down.folder / "part/0.parquet").num_rows == 3
    made = fill(Store(tmp_path / "plain"), "b", rows=4)
    for path in made.folder.rglob("*"):
        if path.is_file():
            remote.objects.upload(path, f"kind/b/{path.relative_to(made.folder).as_posix()}")
    up = remote.find("kind", "b")
    assert up is not None
    assert pq.read_table(up.folder / "part/0.parquet").num_rows == 4


@pytest.mark.parametrize(
    "uri", ["s3://AKID:hush-hush@bucket/p", "s3://bucket/p?secret=hush-hush", "gs://bucket/p#hush-hush"]
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UserError, match="must not carry credentials") as raised:
        Store.open(uri)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("s3://", "names no bucket"),
        ("https://host/store", "nothing can be written to https://"),
        ("nowhere://host/store", "no store is known by nowhere://"),
    ],
)
def test_uris_that_are_no_store(uri: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        Store.open(uri)


@pytest.mark.parametrize(("scheme", "module", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gs")])
def test_a_missing_library_is_named_by_its_extra(
    scheme: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"not installed; pip install 'nextquill\[{extra}\]'"):
        Store.open(f"{scheme}://bucket/prefix")


@pytest.mark.process
def test_throttling_is_waited_out(s3: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(server, Times("503", 12, lambda request: True)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        fill(opened(s3))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    assert opened(s3).find("kind", "a")


@pytest.mark.process
def test_a_store_that_never_answers_is_said_in_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(objects, "ATTEMPTS", 2)
    with pytest.raises(UserError, match=r"no success in 2 attempts .*check the network") as raised:
        opened(s3).find("kind", "a")
    assert "secret" not in str(raised.value)


@pytest.mark.process
def test_names_that_no_bucket_has_are_refused_at_once(s3: str) -> None:
    with pytest.raises(UserError, match="not an address that the store takes"):
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
        found = elsewhere(s3, tmp_path / "there").find("kind", "a")
        assert found is not None
        assert (found.folder / "large.bin").read_bytes() == content


@pytest.mark.process
def test_an_answer_that_is_lost_does_not_make_a_writer_its_own_rival(
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
        found = elsewhere(s3, tmp_path / "there").find("kind", "a")
        assert found is not None
        assert pq.read_table(found.folder / "part/0.parquet").num_rows == 3
        assert [artifact.manifest.fingerprint for artifact in here.newest_first("kind")] == ["a"]
        assert here.remove_with_descendants([found.ref]) == ["kind/a"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    assert opened(s3).objects.keys("") == []


@pytest.mark.process
def test_the_manifest_goes_up_last_and_comes_down_first(s3: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = opened(s3)
        made = fill(store)
        put = [request.key for request in proxy.seen if request.method == "PUT" and "/.lease" not in request.key]
        store.remove_with_descendants([made.ref])
        gone = [request.key for request in proxy.seen if request.method == "DELETE" and "/.lease" not in request.key]
    assert len(put) == 4
    assert put[-1] == gone[0] == "a/prefix/kind/a/manifest.json"
    assert set(put) <= set(gone)


@pytest.mark.process
def test_parts_that_a_torn_upload_left_are_dropped_and_nobody_elses(s3: str) -> None:
    store = opened(s3)
    bucket, _, prefix = s3.removeprefix("s3://").partition("/")
    for key in ("kind/a/data-0/large.bin", "kind/a/data-01/large.bin"):
        store.objects._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{prefix}/{key}")
    store.objects.drop_parts("kind/a/data-0")
    left = store.objects._fs.call_s3("list_multipart_uploads", Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == [f"{prefix}/kind/a/data-01/large.bin"]
    fill(store)  # moto says of every upload that it was begun in 2010
    assert "Uploads" not in store.objects._fs.call_s3("list_multipart_uploads", Bucket=bucket)


@pytest.mark.process
def test_what_nobody_took_up_for_a_day_is_swept(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(s3)
    store.objects.put("kind/a/data-0/part/0.parquet", b"of a writer that stopped")
    fill(store)
    assert store.objects.size("kind/a/data-0/part/0.parquet")  # it may still be at work
    monkeypatch.setattr("storage.remote.ABANDONED", -1.0)
    fill(store, restart=True)
    assert not store.objects.size("kind/a/data-0/part/0.parquet")
    assert len(store.objects.keys("kind/a")) == 4


def test_what_nobody_took_up_is_also_swept_when_the_artifact_is_reused(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the new manifest and the removal of the files of the old one."""
    key = "kind/a/data-0/part/0.parquet"
    fill(opened(uri))
    there = elsewhere(uri, tmp_path / "there")
    there.objects.put(key, b"of the artifact that was replaced")

    def reuse() -> None:
        found = there.find("kind", "a")
        assert found is not None
        assert there.fault(found) == ""
        there.sweep("kind", "a")

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
    assert there.unnamed("kind") == {}
    assert there.find("kind", "b")


def _upload(uri: str, rows: int) -> None:
    fill(Store.open(uri), rows=rows, files=6)


@pytest.mark.process
def test_an_upload_that_was_killed_leaves_no_artifact_and_goes_on_with_the_rest(
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


def _race(uri: str, cache: str, rows: int, beat: float) -> None:
    os.environ["NEXTQUILL_CACHE"] = cache
    lease.BEAT = beat
    store = Store.open(uri)
    try:
        fill(store, rows=rows)
    except Busy:
        sys.exit(3)


@pytest.mark.process
def test_two_processes_make_one_artifact(s3: str, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn").Process
    writers = [spawn(target=_race, args=(s3, str(tmp_path / str(rows)), rows, 0.1)) for rows in (3, 4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert {writer.exitcode for writer in writers} <= {0, 3}
    store = opened(s3)
    found = store.find("kind", "a")
    assert found is not None
    assert pq.read_table(found.folder / "part/0.parquet").num_rows in (3, 4)
    assert len(store.objects.keys("kind")) == 4


def test_a_run_killed_after_the_manifest_only_settles_its_copy(uri: str) -> None:
    store = opened(uri)
    made = fill(store)
    staging = store.staging_folder("kind", "a")
    made.home.rename(staging)
    (staging / ".generation").write_text(made.manifest.generation)
    (staging / "manifest.json").write_text(Manifest(**{**vars(made.manifest), "generation": ""}).to_json())
    # Nothing is left to fetch, so what is found can only be what stood here.
    store.objects.delete(store.objects.keys(f"kind/a/{made.manifest.generation}"))
    again = store.find("kind", "a")
    assert again is not None
    assert files_under(again.folder) == ["empty.txt", "part/0.parquet", "part/1.parquet"]
    assert not staging.exists()


@pytest.mark.process
@pytest.mark.parametrize("fault", ["bucket", "credentials", "none"])
def test_what_keeps_the_user_out_is_one_line_and_exit_code_2(
    fault: str, s3: str, server: str, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(small_world, tmp_path)
    settings["store"] = "s3://no-such-bucket/p" if fault == "bucket" else s3
    if fault == "none":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    if fault == "credentials":  # from now on the server knows its users, and this is none of them
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
    assert "nobody-may-see" not in done.stderr + done.stdout


def _reset_auth(server: str, count: str) -> None:
    request = urllib.request.Request(f"{server}/moto-api/reset-auth", count.encode(), {"Content-Type": "text/plain"})  # noqa: S310
    urllib.request.urlopen(request).close()  # noqa: S310


@pytest.mark.process
def test_stages_run_with_their_store_on_s3(
    s3: str, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextquill_core.ingest.reader import read_examples
    from nextquill_core.pipeline import freshness
    from nextquill_core.pipeline import ingest as prepare
    from nextquill_core.pipeline.run import Run
    from nextquill_core.progress import silent

    run = Run(small_config(small_world, s3))
    for category in run.plan.scans:
        prepare.scan(run, category, silent)
    made = prepare.ingest(run, silent)
    assert not made.reused
    plain = Run(small_config(small_world, tmp_path / "plain"))
    for category in plain.plan.scans:
        prepare.scan(plain, category, silent)
    expected = prepare.ingest(plain, silent)
    assert made.artifact.manifest.content == expected.artifact.manifest.content

    monkeypatch.setenv("NEXTQUILL_CACHE", str(tmp_path / "there"))
    there = Run(small_config(small_world, s3))
    assert freshness(there.store, there.plan.ingest).state == "fresh"
    reused = prepare.ingest(there, silent)
    assert reused.reused
    examples = list(read_examples(reused.artifact.folder, ("test",)))
    assert examples == list(read_examples(expected.artifact.folder, ("test",)))
    assert examples
    assert "nobody-may-see" not in json.dumps(dict(reused.artifact.manifest.config))
