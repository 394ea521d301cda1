"""Masking of secrets in the output of a process: log records, tracebacks, warnings, and the logs of its children.

Each kind of output is masked in one place. Log records are masked when they are created, before any handler prints or
sends them. Tracebacks that end a process or a thread are masked by the interpreter's hooks. What a child process prints
by other means, such as a library in C++, is masked in its log file after the child has ended. The message of an error,
which a workflow engine may store, is masked where the error leaves the function.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from storage.redaction import redact

_FORMATTER = logging.Formatter()


def mask_output() -> None:
    """Mask secrets in the log records, tracebacks and warnings of this process; each entry point calls it first."""
    if not isinstance(logging.getLogRecordFactory(), _MaskedRecords):
        logging.setLogRecordFactory(_MaskedRecords(logging.getLogRecordFactory()))
        warnings.formatwarning = partial(_masked_warning, warnings.formatwarning)
    sys.excepthook = _print_masked
    threading.excepthook = _print_masked_of_thread


class _MaskedRecords:
    """Creates log records whose message and traceback hold no secrets.

    Args:
        create: The factory that creates the unmasked records.
    """

    def __init__(self, create: Any) -> None:
        self._create = create

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._create(*args, **kwargs)
        try:
            message = record.getMessage()
        except Exception:  # the handler reports a message that does not match its arguments
            return record
        if (masked := redact(message)) != message:
            record.msg, record.args = masked, ()
        if record.exc_info and record.exc_info[0]:
            # Formatters use this text and do not format the exception again.
            record.exc_text = redact(_FORMATTER.formatException(record.exc_info))
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return record


class MaskedError(RuntimeError):
    """Replaces an error whose message held a secret; its cause is the original error."""


@contextmanager
def mask_errors() -> Iterator[None]:
    """Replace an error whose message holds a secret; also usable as a decorator.

    Raises:
        MaskedError: The block raised such an error. Other errors are raised unchanged.
    """
    try:
        yield
    except Exception as error:
        shown = str(error)
        if redact(shown) == shown:
            raise
        raise MaskedError(redact(f"{type(error).__name__}: {shown}")) from error


def masked_traceback(error: BaseException) -> str:
    """Return the traceback of an error as Python prints it, without secrets."""
    return redact("".join(traceback.format_exception(error)))


def mask_files(logs: Iterable[Path]) -> None:
    """Mask the secrets in log files, line by line, after their writers have ended.

    Args:
        logs: The files. Absent ones are skipped, and files without secrets are not rewritten.
    """
    for log in logs:
        text = partial(log.open, encoding="utf-8", errors="surrogateescape", newline="")
        with suppress(FileNotFoundError):
            with text() as file:
                if all(redact(line) == line for line in file):
                    continue
            masked = log.with_name(f"{log.name}.masked")
            with text() as file, masked.open("w", encoding="utf-8", errors="surrogateescape", newline="") as rest:
                rest.writelines(map(redact, file))
            masked.replace(log)


def _print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if sys.stderr is not None:
        print(masked_traceback(error.with_traceback(trace)), end="", file=sys.stderr, flush=True)


def _print_masked_of_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        name = failed.thread.name if failed.thread else "unknown"
        print(f"Exception in thread {name}:\n{masked_traceback(failed.exc_value)}", end="", file=sys.stderr, flush=True)


def _masked_warning(write: Any, *args: Any, **kwargs: Any) -> str:
    return redact(write(*args, **kwargs))
