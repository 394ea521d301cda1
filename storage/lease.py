"""Leases: one writer per artifact across machines, where no file lock reaches.

A lease is an object that its holder renews. A process that waits for a lease polls it: if the object changes, the
holder is alive; if it stays the same for `LIFE` seconds, the holder is dead and the lease is taken over. Clocks of
different machines are not compared. Two processes that take over a dead lease at the same moment may both believe that
they hold it. That only costs double work: an artifact stays intact, because each writer has its own subfolder and the
manifest is put on the condition that there is none yet.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from storage.errors import Busy, UserError
from storage.objects import Objects

BEAT = 10.0
"""Seconds between two renewals."""
LIFE = 45.0
"""Seconds without a renewal after which a holder counts as dead: a few beats, since a throttled renewal is late."""


class Lease:
    """A lease that this process can hold, once.

    Args:
        objects: The object store.
        key: Key of the lease.
        place: Name of the working copy whose file lock the caller holds: two holders from one place cannot both be
            alive.

    Attributes:
        lost: Whether another process has taken the lease over, because this one did not renew it in time.
    """

    def __init__(self, objects: Objects, key: str, place: str) -> None:
        self.lost = False
        self._objects, self._key = objects, key
        self._record = {"holder": uuid.uuid4().hex, "place": place, "host": socket.gethostname(), "pid": os.getpid()}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {key}", daemon=True)

    @contextmanager
    def hold(self, what: str, patience: float) -> Iterator[Lease]:
        """Hold the lease while the block runs.

        Args:
            what: Kind and fingerprint of the artifact, for the message.
            patience: Seconds to wait for a living holder.

        Raises:
            Busy: Another process is alive and still holds it.
        """
        patient_until = time.monotonic() + patience
        while not self._objects.create(self._key, self._value(0)):
            current = self._objects.get(self._key)
            # The caller holds the file lock of this place, so another holder from here no longer runs.
            if current is not None and _parsed(current).get("place") != self._record["place"]:
                current = self._wait_for_end(current, what, patient_until)
            if current is not None and self._objects.get(self._key) == current:
                self._objects.delete([self._key])
        self._thread.start()
        try:
            yield self
        finally:
            self._release()

    def _release(self) -> None:
        self._done.set()
        self._thread.join()
        try:
            if not self.lost and self._holds():
                self._objects.delete([self._key])
        except UserError:
            return  # the lease expires by itself, and an earlier error must not be hidden by this one

    def _wait_for_end(self, first: bytes, what: str, patient_until: float) -> bytes | None:
        """Wait until the lease is dead and return it, or None once it is gone."""
        deadline = time.monotonic() + LIFE
        while time.monotonic() < deadline:
            time.sleep(min(1.0, BEAT / 4))
            now = self._objects.get(self._key)
            if now is None:
                return None
            if now != first and time.monotonic() < patient_until:
                first, deadline = now, time.monotonic() + LIFE
            elif now != first:
                holder = _parsed(now)
                raise Busy(
                    f"another process is making {what}",
                    str(self._objects),
                    f"wait for process {holder.get('pid')} on {holder.get('host')}, or stop it",
                )
        return first

    def _renew(self) -> None:
        beat = 0
        while not self._done.wait(BEAT):
            try:
                if not self._holds():
                    self.lost = True
                    return
                beat += 1
                self._objects.put(self._key, self._value(beat))
            except UserError:
                continue  # the work itself reports that the store cannot be reached

    def _holds(self) -> bool:
        current = self._objects.get(self._key)
        return current is not None and _parsed(current).get("holder") == self._record["holder"]

    def _value(self, beat: int) -> bytes:
        return json.dumps({**self._record, "beat": beat, "time": datetime.now(UTC).isoformat()}).encode()


def is_leased_elsewhere(objects: Objects, key: str, place: str) -> bool:
    """Return whether a writer from another place seems to be at work; only for display, since it trusts both clocks.

    Args:
        objects: The object store.
        key: Key of the lease.
        place: Name of the working copy of this process.
    """
    current = objects.get(key)
    if current is None:
        return False
    record = _parsed(current)
    try:
        age = (datetime.now(UTC) - datetime.fromisoformat(record["time"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return False
    return bool(record.get("place") != place and age < 2 * LIFE)


def _parsed(value: bytes) -> dict[str, Any]:
    try:
        record = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
