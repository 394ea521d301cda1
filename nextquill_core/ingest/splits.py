"""Which target trains, which one validates and which one tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time

import polars as pl

from nextquill_core.config import ProtocolConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest.cohort import TARGET

SPLIT = "split"
NEEDED = 3  # reviews of a user under `dpl`: one for test, one for val, and one to train


@dataclass(frozen=True)
class Cuts:
    """The two points in time (UTC ms) of `global-time`: a target trains before the first and tests from the second."""

    val_from: int
    test_from: int

    def to_json(self) -> dict[str, int]:
        """As JSON values."""
        return asdict(self)


def cuts(targets: Sequence[pl.Series], protocol: ProtocolConfig) -> Cuts | None:
    """Where `global-time` cuts; None for a protocol without points in time.

    Dates that are not set follow from the targets of all categories together: the newest `test_share` of them test,
    and of the rest those that fill up `val_share` validate. Targets of one moment are never parted.

    Args:
        targets: The times of each category's targets.
        protocol: The dates, or the shares.

    Raises:
        DataError: One of the three splits is empty.
    """
    if protocol.name != "global-time":
        return None
    times = pl.concat(targets).sort(descending=True)
    n_test = max(1, round(protocol.test_share * len(times)))
    n_val = max(1, round(protocol.val_share * len(times)))
    test_from = _ms(protocol.test_from) if protocol.test_from else int(times[min(n_test, len(times)) - 1])
    earlier = times.filter(times < test_from)
    if protocol.val_from:
        val_from = _ms(protocol.val_from)
    else:
        val_from = int(earlier[min(n_val, len(earlier)) - 1]) if len(earlier) else test_from
    sizes = {
        "train": int((times < val_from).sum()),
        "val": int(((times >= val_from) & (times < test_from)).sum()),
        "test": int((times >= test_from).sum()),
    }
    if not all(sizes.values()):
        empty = next(name for name, size in sizes.items() if not size)
        raise DataError(
            f"no target is for {empty}: {sizes['train']:,} before {_day(val_from)}, {sizes['val']:,} before "
            f"{_day(test_from)}, {sizes['test']:,} from then on",
            "ingest.protocol",
            f"set val_from and test_from between {_day(int(times[-1]))} and {_day(int(times[0]))}",
        )
    return Cuts(val_from, test_from)


def labelled(rows: pl.DataFrame, points: Cuts | None) -> pl.DataFrame:
    """`rows` with `split` (str): train, val or test for a target, null for the rest.

    Args:
        rows: `user`, `time` and `target`, sorted by user, oldest first.
        points: Where to cut; None for the published split, by which a user's last target tests and the one before
            validates.
    """
    if points:
        later = (pl.col("time") >= points.test_from, pl.col("time") >= points.val_from)
    else:
        from_end = pl.int_range(pl.len(), 0, step=-1).over("user")
        later = (from_end == 1, from_end == 2)
    name = pl.when(later[0]).then(pl.lit("test")).when(later[1]).then(pl.lit("val")).otherwise(pl.lit("train"))
    return rows.with_columns(pl.when(TARGET).then(name).alias(SPLIT))


def _ms(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp() * 1000)


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).date().isoformat()
