"""What the errors of file-system libraries mean."""

from __future__ import annotations

import itertools
import socket
from typing import Any

import pytest

from storage.file_systems import connection_error, error_chain, error_code, first_line, http_status


def raised(*errors: BaseException) -> BaseException:
    """Chain errors as `raise … from …` does, the innermost last, and return the outermost."""
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


def answered(**attributes: Any) -> Exception:
    """Return an error of a client with the attributes of a server's answer."""
    error = Exception("answer")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def test_the_code_of_an_answer_is_found_below_other_errors() -> None:
    s3 = answered(response={"Error": {"Code": "SlowDown"}})
    assert error_code(raised(OSError("outer"), s3)) == "SlowDown"
    refused = type("NoCredentialsError", (Exception,), {})()
    assert error_code(raised(ValueError(), refused)) == "NoCredentialsError"
    google = type("HttpError", (Exception,), {"code": 403})()
    assert error_code(google) == "403"
    assert error_code(OSError("Forbidden: https://storage.googleapis.com")) == "Forbidden"
    assert error_code(OSError("disk")) == ""


def test_the_status_of_an_answer_is_found_in_the_chain() -> None:
    for answer in (answered(status=503), answered(response=type("Response", (), {"status_code": 503})())):
        assert http_status(error_chain(raised(OSError(), answer))) == 503
    assert http_status([OSError()]) is None


@pytest.mark.parametrize("kind", [ConnectionRefusedError, socket.gaierror, type("ConnectTimeout", (OSError,), {})])
def test_an_error_without_a_connection_is_recognised(kind: type[OSError]) -> None:
    error = kind()
    assert connection_error(error_chain(raised(OSError("outer"), error))) is error
    assert connection_error([ConnectionResetError(), TimeoutError()]) is None


def test_a_chain_that_leads_back_to_itself_ends() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert error_chain(first) == [first, second]


def test_messages_are_one_line_without_secrets() -> None:
    assert first_line(OSError("https://me:hush@host/a failed\nmore")) == "https://me:***@host/a failed"
    assert first_line(KeyError()) == "KeyError"
