"""One writer per artifact where no file lock reaches: an object that its holder renews, and that dies with the holder.

Clocks of different machines are not compared. Who wants a lease that somebody has watches it: if it changes, its
holder is alive; if it stays the same for `LIFE` seconds, nobody renews it, and it is taken over. Two who take over a
dead lease in the same moment may both believe that they have it; a lease saves double work, and what keeps an artifact
whole is that each writer has a subfolder of its own and the manifest is put on a condition.
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
"""Seconds without a renewal after which a holder counts as dead; a few beats, since a throttled one may be late."""


class Lease:
    """What this process holds.

    Attributes:
        lost: Somebody else took it over; this process was silent too long.
    """

    def __init__(self, objects: Objects, key: str, place: str) -> None:
        self.lost = False
        self._objects, self._key = objects, key
        self._record = {"holder": uuid.uuid4().hex, "place": place, "host": socket.gethostname(), "pid": os.getpid()}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {key}", daemon=True)

    def take(self, what: str, patience: float) -> None:
        """Become the holder.

        Raises:
            Busy: Somebody else is, and is alive, and still is after `patience` seconds.
        """
        patient_until = time.monotonic() + patience
        while not self._objects.create(self._key, self._value(0)):
            standing = self._objects.get(self._key)
            # The caller has the lock of this place: a holder from here who lacks it no longer runs.
            if standing is not None and _parsed(standing).get("place") != self._record["place"]:
                standing = self._watched(standing, what, patient_until)
            if standing is not None and self._objects.get(self._key) == standing:
                self._objects.delete([self._key])
        self._thread.start()

    def release(self) -> None:
        """Let others have it."""
        self._done.set()
        self._thread.join()
        try:
            if not self.lost and self._holds():
                self._objects.delete([self._key])
        except UserError:
            return  # it dies by itself, and what went wrong before must be what is said

    def _watched(self, first: bytes, what: str, patient_until: float) -> bytes | None:
        """The lease once it is dead, None once it is gone."""
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
                continue  # the work itself says that the store is out of reach

    def _holds(self) -> bool:
        standing = self._objects.get(self._key)
        return standing is not None and _parsed(standing).get("holder") == self._record["holder"]

    def _value(self, beat: int) -> bytes:
        return json.dumps({**self._record, "beat": beat, "time": datetime.now(UTC).isoformat()}).encode()


@contextmanager
def held(objects: Objects, key: str, place: str, what: str, patience: float) -> Iterator[Lease]:
    """Hold a lease for as long as the block runs.

    Args:
        objects: Where it stands.
        key: Its key.
        place: Names the folder whose file lock the caller has: two holders from one place cannot both be alive.
        what: What is made under it, for the message.
        patience: Seconds to wait for a living holder.

    Raises:
        Busy: Another process holds it.
    """
    lease = Lease(objects, key, place)
    lease.take(what, patience)
    try:
        yield lease
    finally:
        lease.release()


def held_elsewhere(objects: Objects, key: str, place: str) -> bool:
    """Whether a writer from another place seems to be at work: for people to read, since it trusts both clocks."""
    standing = objects.get(key)
    if standing is None:
        return False
    record = _parsed(standing)
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
