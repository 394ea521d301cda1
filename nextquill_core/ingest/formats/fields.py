"""Raw columns into the canonical columns of a part; a row with a value that does not fit is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from nextquill_core.errors import DataError
from nextquill_core.ingest.canonical import CANONICAL, IDS, LINE, canonical
from nextquill_core.ingest.formats.objects import short_name
from nextquill_core.ingest.formats.values import EXACT, ROLES, Role, Rules, UnfitError, convert
from nextquill_core.ingest.sources.base import BadRow, Part
from nextquill_core.ingest.sources.columns import Column, Kind
from nextquill_core.ingest.sources.options import nearest

RAW_CHARS = 2000  # of a bad row's raw text
SHOWN_CHARS = 60  # of a value that does not fit
MAX_SECONDS = 2**63 // 1000  # what milliseconds can hold: 292 million years
RawColumn = pl.Series | Sequence[Any]
Converter = Callable[[RawColumn], tuple[pl.Series, dict[int, UnfitError]]]
STRINGS = pa.list_(pa.string())


@dataclass(frozen=True)
class Field:
    """One canonical column and what it is read from.

    Attributes:
        name: The canonical column.
        keys: The raw columns; the first that has a value counts.
        convert: How a raw column becomes the canonical one.
        identifies: Whether a value must be there.
        required: Whether one of the keys must be there, if only with null. For JSON lines alone.
        arrow: The Arrow type in which a JSON value like this one is read fastest; None where the values have to be
            looked at one by one.
    """

    name: str
    keys: tuple[str, ...]
    convert: Converter
    identifies: bool = False
    required: bool = False
    arrow: Callable[[Any], pa.DataType | None] = lambda _: None


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be read.

    Attributes:
        reason: As in `BadRow`.
        detail: Which column holds which value.
        remedy: The setting that would accept it.
    """

    reason: str
    detail: str = ""
    remedy: str = ""

    def row(self, line: int, raw: str) -> BadRow:
        """The bad row on this line."""
        return BadRow(line, self.reason, raw[:RAW_CHARS], self.detail, self.remedy)


def mapped_fields(keys: Mapping[str, str], rules: Rules, part: Part) -> list[Field]:
    """The fields of a table whose columns are named in the configuration.

    Args:
        keys: Raw column by canonical column.
        rules: How single values become canonical.
        part: Reviews or items.
    """
    return [
        Field(
            name,
            (key,),
            partial(convert, role=ROLES[name], rules=rules),
            identifies=name in IDS[part],
            arrow=partial(_table_type, ROLES[name]),
        )
        for name, key in keys.items()
    ]


def layout_fields(columns: Mapping[str, Column], part: Part) -> list[Field]:
    """The fields of a published layout, in which each column has one type."""
    return [
        Field(
            name,
            column.keys,
            partial(_strictly, column=column, kind=CANONICAL[part][name]),
            column.identifies,
            column.required,
            partial(_layout_type, column.kind),
        )
        for name, column in columns.items()
    ]


def read_fields(
    columns: Mapping[str, RawColumn], lines: Sequence[int] | npt.NDArray[np.int64], fields: Sequence[Field], part: Part
) -> tuple[pl.DataFrame, dict[int, Fault]]:
    """Raw columns into the canonical ones.

    Args:
        columns: The raw columns, by their names.
        lines: The `line` of each row.
        fields: What becomes of them.
        part: Reviews or items.

    Returns:
        The rows that can be read, and for each line that cannot why.
    """
    made: dict[str, pl.Series] = {}
    faults: dict[int, Fault] = {}
    for field in fields:
        value: pl.Series | None = None
        for key in field.keys:
            found, unfit = field.convert(columns[key])
            for place, error in unfit.items():
                fault = Fault(f"wrong-type-{short_name(key)}", _shown(key, columns[key][place]), str(error))
                faults.setdefault(place, fault)
            value = found if value is None else pl.select(pl.coalesce(value, found)).to_series()
        if value is None:
            raise ValueError(f"{field.name} is read from no column")
        made[field.name] = value
    for field in fields:
        if field.identifies:
            value = made[field.name]
            for place in (value.is_null() | (value == "")).arg_true().to_list():
                faults.setdefault(place, _missing(field, columns, place))
    rows = pl.DataFrame({LINE: pl.Series(lines, dtype=pl.Int64), **made})
    if faults:
        good = pl.Series([True]).new_from_index(0, rows.height).scatter(list(faults), False)
        rows = rows.filter(good)
    return canonical(rows, part), {int(lines[place]): faults[place] for place in sorted(faults)}


def check_present(keys: Mapping[str, str], names: Sequence[str], where: str, remedy: str = "") -> None:
    """Check that every mapped column is there, once.

    Raises:
        DataError: It is not; the nearest column is suggested.
    """
    for key in keys.values():
        if key not in names:
            near = nearest(key, [name for name in names if name])
            raise DataError(f"there is no column `{key}`", where, "; ".join(filter(None, (near, remedy))))
        if names.count(key) > 1:
            raise DataError(f"there are {names.count(key)} columns `{key}`", where, "rename all but one of them")


def _missing(field: Field, columns: Mapping[str, RawColumn], place: int) -> Fault:
    key = next((key for key in field.keys if columns[key][place] is not None), field.keys[0])
    value = columns[key][place]
    return Fault(f"missing-{short_name(key)}", "" if value is None else _shown(key, value))


def _shown(key: str, value: Any) -> str:
    value = value.to_list() if isinstance(value, pl.Series) else value
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    text = text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."
    return f"{key} is {text}"


def _table_type(role: Role, value: Any) -> pa.DataType | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, int):
        return {"rating": pa.float64(), "count": pa.float64(), "id": pa.int64(), "time": pa.int64()}.get(role)
    if isinstance(value, float):
        return pa.float64() if role in ("rating", "count", "time", "id") else None
    if role == "list" and isinstance(value, list) and all(each is None or isinstance(each, str) for each in value):
        return STRINGS
    return None


def _layout_type(kind: Kind, value: Any) -> pa.DataType | None:
    if kind in ("integer", "seconds"):
        return pa.float64() if isinstance(value, float) else pa.int64()
    if kind == "number":
        return pa.float64()
    return {"strings": STRINGS, "lists": pa.list_(STRINGS)}.get(kind, pa.string())


def _strictly(values: RawColumn, column: Column, kind: pl.DataType) -> tuple[pl.Series, dict[int, UnfitError]]:
    """A column of a published layout as the canonical one."""
    unfit: dict[int, UnfitError] = {}
    if isinstance(values, pl.Series) and _quick(column.kind, values.dtype):
        made = values.to_frame("value").select(_as_canonical(column.kind, pl.col("value"))).to_series()
        if column.kind == "number":
            unfit = dict.fromkeys((made.is_infinite()).arg_true().to_list(), UnfitError())
            made = made.fill_nan(None) + 0.0
    else:
        found: list[Any] = []
        for place, value in enumerate(values):
            try:
                found.append(_strict(column.kind, value))
            except UnfitError as error:
                unfit[place] = error
                found.append(None)
        numbers: dict[Kind, pl.DataType] = {"number": pl.Float64(), "integer": pl.Int64(), "seconds": pl.Int64()}
        texts: pl.DataType = pl.String() if column.kind == "string" else pl.List(pl.String)
        made = pl.Series(found, dtype=numbers.get(column.kind, texts))
    if column.convert:
        given = made.is_not_null()
        made = made.to_frame("value").select(column.convert(pl.col("value"))).to_series()
        for place in (given & made.is_null()).arg_true().to_list():
            if not column.identifies:  # an id of which nothing is left is a missing one
                unfit.setdefault(place, UnfitError())
    return made.cast(kind), unfit


def _quick(kind: Kind, found: pl.DataType) -> bool:
    if kind in ("integer", "seconds"):
        return found == pl.Int64()
    if kind == "number":
        return found == pl.Float64()
    strings = {"strings": pl.List(pl.String), "lists": pl.List(pl.List(pl.String))}
    return found == strings.get(kind, pl.String())


def _as_canonical(kind: Kind, value: pl.Expr) -> pl.Expr:
    if kind == "seconds":
        return value.clip(-MAX_SECONDS, MAX_SECONDS) * 1000
    if kind == "text":
        return pl.when(value.is_not_null()).then(pl.concat_list(value))
    if kind == "lists":
        return value.list.eval(pl.element().explode().drop_nulls())
    return value


def _strict(kind: Kind, value: Any) -> Any:
    """The canonical value of one that has the type of its column; NaN is a missing one.

    Raises:
        UnfitError: It has another type.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if kind in ("string", "text"):
        if isinstance(value, str):
            return value if kind == "string" else [value]
    elif kind in ("strings", "lists"):
        if isinstance(value, list) and all(each is None or _has_type(kind, each) for each in value):
            return value if kind == "strings" else [text for each in value if each for text in each if text is not None]
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise UnfitError
    elif kind == "number":
        if abs(value) <= 1.7976931348623157e308:
            return float(value) + 0.0
    else:
        if kind == "seconds":
            value = max(-MAX_SECONDS, min(value, MAX_SECONDS)) * 1000 if -(2**63) <= value < 2**63 else math.inf
        if isinstance(value, int):
            if -(2**63) <= value < 2**63:
                return value
        elif abs(value) < EXACT:
            return math.floor(value + 0.5)
    raise UnfitError


def _has_type(kind: Kind, value: Any) -> bool:
    if kind == "lists":
        return isinstance(value, list) and all(each is None or isinstance(each, str) for each in value)
    return isinstance(value, str)
