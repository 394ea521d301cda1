"""Raw files that hold no row at all, as distributed writers leave them beside others: 0 bytes, or Parquet of 0 rows."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

LOOKED_AT = 64 << 10  # bytes of a file within which anything but white space has to come


def holds_nothing(path: Path) -> bool:
    """Return whether a file has no content: no bytes, only white space, or Parquet without rows.

    A file whose only content is a header of column names has content; reading it shows that it has no rows.
    """
    try:
        with path.open("rb") as file:
            head = file.read(LOOKED_AT + 1)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as unpacked:
                head = unpacked.read(LOOKED_AT + 1)
    except (OSError, EOFError, zlib.error):
        return False  # damaged; reading it says so
    if head[:4] == b"PAR1":
        return _rows(path) == 0
    return len(head) <= LOOKED_AT and not head.removeprefix(b"\xef\xbb\xbf").strip()


def _rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return -1
