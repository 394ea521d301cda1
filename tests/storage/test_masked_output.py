"""What a process writes holds no secrets: log records, tracebacks, warnings, errors, and the logs of its children."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import UserError
from storage.masked_output import MaskedError, mask_errors, mask_files
from storage.redaction import register_secret

S = "pl4nt3d-S3cret.value"
CODE = f"""
import logging, threading, warnings
from storage.masked_output import mask_output
mask_output()
mask_output()
logging.basicConfig(format="%(message)s")
log = logging.getLogger("x")
log.warning("with %s and %d", "Bearer {S}", 7)
log.warning("without %s", "a secret")
try:
    raise ValueError("Bearer {S}") from KeyError("Bearer {S}")
except ValueError:
    log.exception("failed")
warnings.warn("Bearer {S}")
thread = threading.Thread(target=int, args=("Bearer {S}",), name="worker")
thread.start()
thread.join()
raise RuntimeError("at the end: Bearer {S}")
"""


@pytest.mark.process
def test_records_tracebacks_and_warnings_are_masked(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    # The lines of code are quoted in tracebacks, and the secret in them is masked too.
    done = subprocess.run([sys.executable, str(tmp_path / "code.py")], capture_output=True, text=True)
    assert done.returncode == 1
    assert S not in done.stdout + done.stderr
    assert "with Bearer *** and 7\nwithout a secret\nfailed\nKeyError: 'Bearer ***'\n" in done.stderr
    assert "Exception in thread worker:\nTraceback" in done.stderr
    assert done.stderr.endswith("RuntimeError: at the end: Bearer ***\n")
    assert "UserWarning: Bearer ***" in done.stderr


def test_an_error_with_a_secret_is_replaced_and_others_pass() -> None:
    @mask_errors()
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(MaskedError, match=r"^OSError: Bearer \*\*\*$") as caught:
        fail(OSError(f"Bearer {S}"))
    assert isinstance(caught.value.__cause__, OSError)  # what may pass is still recognised
    for error in (UserError(f"Bearer {S}"), KeyError("a")):
        with pytest.raises(type(error)) as passed:
            fail(error)
        assert passed.value is error


def test_files_are_masked_and_others_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKED_OUTPUT_KEY", S)
    register_secret(variable="MASKED_OUTPUT_KEY")
    secret, plain = tmp_path / "secret.log", tmp_path / "plain.log"
    secret.write_bytes(f"one\r\ntwo {S}\n".encode() + b"\xff\n")
    plain.write_bytes(b"\xff nothing\n")
    before = plain.stat()
    mask_files([secret, plain, tmp_path / "absent.log"])
    assert secret.read_bytes() == b"one\r\ntwo ***\n\xff\n"
    assert plain.stat().st_mtime_ns == before.st_mtime_ns
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.log", "secret.log"]
