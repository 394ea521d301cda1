"""Recognisable secrets are planted wherever users put them; then none is in any byte that was stored or printed."""

from __future__ import annotations

import base64
import gzip
import io
import json
import sqlite3
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nextquill_core.config import load_config
from nextquill_core.pipeline.run import Run
from tests.conftest import REPO
from tests.forked import Forked
from tests.prefect_server import Server
from tests.stages import make
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.flow, pytest.mark.process, pytest.mark.ranks]

MARK = "pl4nt3d"
"""Stands in every secret here and in nothing else."""


def secret(place: str) -> str:
    return f"{MARK}-{place}-0123456789"


VARIABLES = {
    name: secret(name.lower().replace("_", "-"))
    for name in (
        "OPENAI_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "WANDB_API_KEY",
        "SSHPASS", "MODEL_SERVER", "PSEUDONYMS",
    )
} | {"FTP_PROXY": f"http://me:{secret('proxy')}@127.0.0.1:9"}  # fmt: skip
"""`MODEL_SERVER` and `PSEUDONYMS` hold keys because settings name them."""

FAULTS = '''
"""Faults of a process: what fails, and the libraries' words about it, quote the secrets of the environment."""
import logging, os, sys, threading

def fail(event, arguments):
    where = os.environ.get("FAIL_AT", "")
    rank = "RANK" in os.environ
    if event == "open" and where and where in str(arguments[0]) and rank == (where == "metrics.jsonl"):
        said = " ".join(value for name, value in os.environ.items() if "pl4nt3d" in value)
        os.environ["FAIL_AT"] = ""
        if rank:
            os.write(2, f"a library's own words: {said}\\n".encode())
        logging.getLogger("library").warning("a log record: %s", said)
        thread = threading.Thread(target=int, args=(os.environ["HF_TOKEN"],))
        thread.start()
        thread.join()
        raise RuntimeError(f"the disk says {said}")

sys.addaudithook(fail)
'''

PARAMETERS = """
from flows.score import score
for settings in ({"model": {"name_or_path": "https://me:SECRET@host"}}, {"modell": {"name": "https://me:SECRET@host"}},
                 {"seed": "https://me:SECRET@host"}):
    try:
        score(settings)
    except Exception as error:
        print(type(error).__name__, error)
    else:
        raise SystemExit("these parameters were taken")
"""


class EchoingServer(BaseHTTPRequestHandler):
    """A model server that fails, then refuses, and quotes the key both times."""

    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        body = json.dumps({"error": {"message": f"wrong: {self.headers['Authorization']}"}}).encode()
        self.send_response(500 if self.asked == 1 else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Ran:
    """What the commands left: a folder with store and configuration, Prefect's folder, and what each printed."""

    folder: Path
    home: Path
    said: dict[str, subprocess.CompletedProcess[str]]

    def database(self) -> str:
        """All rows of Prefect's database as text."""
        with closing(sqlite3.connect(f"file:{self.home / 'prefect.db'}?mode=ro", uri=True)) as database:
            return "\n".join(database.iterdump())


@pytest.fixture(scope="module")
def ran(server: Server, small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Every kind of command that may meet a secret, run for real on one server."""
    folder = tmp_path_factory.mktemp("secrets")
    with ThreadingHTTPServer(("127.0.0.1", 0), EchoingServer) as models, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=models.serve_forever, daemon=True).start()
        settings = small_settings(small_world, folder / "store")
        settings["privacy"] = {"pseudonymize": True, "key_env": "PSEUDONYMS"}
        settings["evaluate"] |= {
            "methods": ["qwen"],
            "decoding": ["paper"],
            "engine": "openai",
            "server": {
                "url": f"http://127.0.0.1:{models.server_port}/v1",
                "api_key_env": "MODEL_SERVER",
                "models": {"base": "base"},
            },
        }
        config = write_config(folder / "config.yaml", settings)
        patch.setenv("PSEUDONYMS", VARIABLES["PSEUDONYMS"])
        prepared(config)
        faults = folder / "faults"
        faults.mkdir()
        (faults / "sitecustomize.py").write_text(FAULTS)
        (faults / "parameters.py").write_text(PARAMETERS.replace("SECRET", secret("parameter")))
        environment = server.environment | VARIABLES | {"PYTHONPATH": str(faults), "NO_PROXY": "127.0.0.1"}
        run = partial(command, config, environment)
        url = f"https://me:{secret('setting')}@host/v1"
        refused = write_config(folder / "refused.yaml", settings | {"store": f"s3://key:{secret('file')}@bucket"})
        hook = f"https://me:{secret('hook')}@hooks.invalid/x?token={secret('query')}"
        api = server.api.replace("://", f"://me:{secret('api')}@")
        alerts = ("flows", "alerts", "--webhook", hook, "--allow-private-urls")
        said = {
            "--set": run("run", "--set", f"evaluate.server.url={url}"),
            "file": command(refused, environment, "run"),
            "server": run("run", PREFECT_API_URL=api),
            "parameters": Forked(("parameters",), environment).finish(),
            "alerts": Forked(alerts, environment).finish(),
            "stage": run("score", "--force", FAIL_AT=str(folder / "store" / "score" / ".staging-")),
            "rank": run("train", "--set", "train.alpha=0.5", FAIL_AT="metrics.jsonl"),
            "echo": from_nothing(config, environment),
        }
        models.shutdown()
    yield Ran(folder, Path(server.environment["PREFECT_HOME"]), said)
    removed = Forked(("flows", "alerts", "--remove"), environment).finish()  # other tests set alerts on this server
    assert removed.returncode == 0, removed.stderr


def prepared(config: Path) -> None:
    """Make everything that comes before the evaluation."""
    run = Run(load_config(config))
    make(run, *run.plan.train.values())


def command(config: Path, environment: dict[str, str], name: str, *options: str, **more: str) -> Any:
    return Forked(("flows", name, "-c", str(config), *options), environment | more).finish(300)


def from_nothing(config: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run everything in a process that has the secrets in its environment while it imports the libraries."""
    whole = [sys.executable, "-m", "flows", "run", "-c", str(config)]
    return subprocess.run(whole, env=environment, cwd=REPO, capture_output=True, text=True, timeout=300)


def texts(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """A file as it is and, if it is packed, everything that is in it."""
    yield name, content
    if content[:2] == b"\x1f\x8b":
        yield from texts(f"{name} (gz)", gzip.decompress(content))
    elif content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            for inner in packed.namelist():
                yield from texts(f"{name}/{inner}", packed.read(inner))
    elif content[:4] == b"PAR1":
        table = pq.read_table(pa.BufferReader(content))
        yield f"{name} (rows)", repr((table.schema.metadata, table.to_pylist())).encode()


def found_in(folder: Path) -> list[str]:
    """The files below a folder that hold the mark, as it is or as a header or URL writes it."""
    forms = [base64.b64encode(f"{before}{MARK}".encode())[:-4] for before in ("", "m:", "me:")]
    files = (path for path in folder.rglob("*") if path.is_file())
    return [
        name
        for path in files
        for name, content in texts(str(path.relative_to(folder)), path.read_bytes())
        if any(form in content for form in (MARK.encode(), *forms))
    ]


def test_each_command_met_its_secret(ran: Ran) -> None:
    codes = {name: done.returncode for name, done in ran.said.items()}
    assert codes == {
        "--set": 2, "file": 2, "server": 2, "parameters": 0, "echo": 2, "stage": 1, "rank": 1,
        "alerts": 0,
    }, {name: done.stderr[-2000:] for name, done in ran.said.items()}  # fmt: skip
    for name, says in {
        "--set": "evaluate.server.api_key_env",
        "file": "AWS_ACCESS_KEY_ID",
        "server": "PREFECT_API_AUTH_STRING",
        "echo": "wrong: Bearer ***",
        "stage": "the disk says ***",
        "rank": "the disk says ***",
    }.items():
        assert says in ran.said[name].stderr, name
    assert "hooks.invalid" in ran.said["alerts"].stdout
    assert EchoingServer.asked > 1
    assert "Traceback" in ran.said["stage"].stderr


def test_nothing_printed_holds_a_secret(ran: Ran) -> None:
    assert [name for name, done in ran.said.items() if MARK in done.stdout + done.stderr] == []


def test_nothing_stored_holds_a_secret(ran: Ran) -> None:
    stored = found_in(ran.folder)
    assert [name for name in stored if not name.startswith(("refused.yaml", "faults/"))] == []
    assert "refused.yaml" in stored
    logs = [path.read_text() for path in (ran.folder / "store").rglob("*.log")]
    assert any("a library's own words: ***" in log and "a log record: ***" in log for log in logs)


def test_prefect_stores_no_secret(ran: Ran) -> None:
    rows = ran.database()
    assert MARK not in rows
    # SQLite leaves the former bytes of a changed row in its files until it needs their place.
    former = secret("parameter").encode()
    files = [path for path in ran.home.rglob("*") if path.is_file()]
    assert [path.name for path in files if MARK.encode() in path.read_bytes().replace(former, b"")] == []
    assert all(path.name.startswith("prefect.db") for path in files if former in path.read_bytes())
    assert rows.count("the disk says ***") > 2  # states of flow and task, and the log


def test_the_search_finds_what_is_packed(tmp_path: Path) -> None:
    text = secret("control").encode()
    pq.write_table(pa.table({"a": [{"b": secret("control")}] * 2}), tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "a.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("inner.gz", gzip.compress(text))
    (tmp_path / "a.txt").write_bytes(base64.b64encode(b"me:" + text))
    (tmp_path / "none").write_text("nothing here")
    assert {name.split()[0].split("/")[0] for name in found_in(tmp_path)} == {"a.parquet", "a.gz", "a.zip", "a.txt"}
