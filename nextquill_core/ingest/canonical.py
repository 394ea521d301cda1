"""The canonical columns, how raw columns become them, and what is derived from them.

A row with a value that does not fit is left out and returned with its fault.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import RAW_CHARS, BadRow, Column, Kind, Part
from nextquill_core.ingest.formats.values import EXACT, ROLES, InvalidValueError, Role, ValueRules, convert

LINE = "line"
STRINGS = pl.List(pl.String)
# Times are UTC milliseconds. All values may be null but the ids.
CANONICAL: Mapping[Part, Mapping[str, pl.DataType]] = {
    "reviews": {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "rating": pl.Float64(),
        "title": pl.String(),
        "text": pl.String(),
        "timestamp_ms": pl.Int64(),
    },
    "items": {
        "item_id": pl.String(),
        "title": pl.String(),
        "description": STRINGS,
        "categories": STRINGS,
        "rating_number": pl.Float64(),
    },
}
# Of reviews, where a source publishes examples: the split, the `line` of the first review of the raw row that holds the
# example, and whether the review is its target. The others of the row are its history, oldest first.
PUBLISHED: Mapping[str, pl.DataType] = {"split": pl.String(), "example": pl.Int64(), "own": pl.Boolean()}
IDS: Mapping[Part, tuple[str, ...]] = {"reviews": ("user_id", "item_id"), "items": ("item_id",)}
MIXER = pl.lit(0x9E3779B97F4A7C15, dtype=pl.UInt64)  # odd, and 2⁶⁴ over the golden ratio: it spreads every bit
SHOWN_CHARS = 60  # of a value that does not fit
SHOWN_NAMES = 20  # of a file's columns, in a message
MAX_SECONDS = 2**63 // 1000  # what milliseconds can hold: 292 million years
RawColumn = pl.Series | Sequence[Any]
Converter = Callable[[RawColumn], tuple[pl.Series, dict[int, InvalidValueError]]]
ARROW_STRINGS = pa.list_(pa.string())
# The types of the raw columns of a published layout.
ARROW_TYPES: Mapping[Kind, pa.DataType] = {
    "string": pa.string(),
    "number": pa.float64(),
    "integer": pa.int64(),
    "seconds": pa.int64(),
    "strings": ARROW_STRINGS,
    "text": pa.string(),
    "lists": pa.list_(ARROW_STRINGS),
}
POLARS_TYPES: Mapping[Kind, pl.DataType] = {
    kind: pl.Series(pl.from_arrow(pa.nulls(0, arrow))).dtype for kind, arrow in ARROW_TYPES.items()
}


@dataclass(frozen=True)
class Field:
    """One canonical column and what it is read from.

    Attributes:
        name: The canonical column.
        keys: The raw columns; the first that has a value counts.
        convert: Converts a raw column into the canonical one.
        identifies: Whether a value must be there.
        required: Whether one of the keys must be there, if only with null. For JSON lines alone.
        arrow: Returns the Arrow type in which a JSON value like this one is read fastest; None where the values have
            to be looked at one by one.
    """

    name: str
    keys: tuple[str, ...]
    convert: Converter
    identifies: bool = False
    required: bool = False
    arrow: Callable[[Any], pa.DataType | None] = lambda _: None


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be read. The attributes are those of `BadRow`."""

    reason: str
    detail: str = ""
    remedy: str = ""

    def row(self, line: int, raw: str) -> BadRow:
        """Return the bad row on this line."""
        return BadRow(line, self.reason, raw[:RAW_CHARS], self.detail, self.remedy)


def mapped_fields(keys: Mapping[str, str], rules: ValueRules, part: Part) -> list[Field]:
    """Return the fields of a table whose columns are named in the configuration.

    Args:
        keys: Raw column by canonical column.
        rules: How values become canonical.
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
    """Return the fields of a published layout, in which each column has one type."""
    return [
        Field(
            name,
            column.keys,
            partial(_convert_strictly, column=column, kind=CANONICAL[part][name]),
            column.identifies,
            column.required,
            partial(_layout_type, column.kind),
        )
        for name, column in columns.items()
    ]


def read_fields(
    columns: Mapping[str, RawColumn], lines: Sequence[int] | npt.NDArray[np.int64], fields: Sequence[Field], part: Part
) -> tuple[pl.DataFrame, dict[int, Fault]]:
    """Convert raw columns into the canonical ones.

    Args:
        columns: The raw columns, by their names.
        lines: The `line` of each row.
        fields: What becomes of them.
        part: Reviews or items.

    Returns:
        The rows that can be read, and for each other line its fault.
    """
    made: dict[str, pl.Series] = {}
    faults: dict[int, Fault] = {}
    for field in fields:
        value: pl.Series | None = None
        for key in field.keys:
            found, invalid = field.convert(columns[key])
            for place, error in invalid.items():
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


def check_columns(keys: Mapping[str, str], names: Sequence[str], where: str, remedy: str = "") -> None:
    """Check that a file has every mapped column, once.

    Args:
        keys: Raw column by canonical column.
        names: The columns of the file.
        where: The file, for the message.
        remedy: What else could be set where one is missing.

    Raises:
        DataError: A column is missing (the nearest one is suggested) or is there twice.
    """
    for key in keys.values():
        if key not in names:
            near = nearest_column(key, [name for name in names if name])
            raise DataError(f"there is no column `{key}`", where, "; ".join(filter(None, (near, remedy))))
        if names.count(key) > 1:
            raise DataError(f"there are {names.count(key)} columns `{key}`", where, "rename all but one of them")


def nearest_column(name: str, names: Sequence[str]) -> str:
    """Return a remedy that names the nearest of a file's columns, or lists them."""
    same = [other for other in names if other.casefold() == name.casefold()]
    near = same or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean `{near[0]}`?"
    listed = ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")
    return f"the file has: {listed}" if names else "the file has none"


def canonical(rows: pl.DataFrame, part: Part) -> pl.DataFrame:
    """Return `line` and the canonical columns of a part in their order; those that `rows` lacks are null.

    The columns `PUBLISHED` stay, if `rows` has them.
    """
    return rows.select(
        pl.col(LINE).cast(pl.Int64),
        *(
            _cast(pl.col(name) if name in rows.columns else pl.lit(None), kind).alias(name)
            for name, kind in CANONICAL[part].items()
        ),
        *(pl.col(name).cast(kind) for name, kind in PUBLISHED.items() if name in rows.columns),
    )


def review_facts() -> tuple[pl.Expr, ...]:
    """Return what the protocol decides by without looking at the text, title and ids of a review.

    `text_hash` and `twin` (u64, hashes of the text and of the whole row), `chars` (u32, code points of the text) and
    `titled` (bool).
    """
    return (
        pl.col("text").hash().alias("text_hash"),
        _hash_of(tuple(CANONICAL["reviews"])).alias("twin"),
        pl.col("text").str.len_chars().fill_null(0).alias("chars"),
        (pl.col("title").fill_null("") != "").alias("titled"),
    )


def short_name(key: str) -> str:
    """Return a key in the form in which it is part of a reason's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", key)[:40].strip("_") or "column"


def _cast(value: pl.Expr, kind: pl.DataType) -> pl.Expr:
    value = value.cast(kind)
    # Readers differ in whether they read -0 as 0 or as the negative zero of floating-point numbers.
    return pl.when(value == 0).then(0.0).otherwise(value) if kind == pl.Float64 else value


def _hash_of(columns: Sequence[str]) -> pl.Expr:
    """Return one hash (u64) of several columns; hashing them as a struct is ten times slower."""
    mixed = pl.lit(0, dtype=pl.UInt64)
    for column in columns:
        mixed = mixed * MIXER + pl.col(column).hash()
    return mixed


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
    return ARROW_STRINGS if role == "list" and _are_texts(value) else None


def _layout_type(kind: Kind, value: Any) -> pa.DataType:
    # times and other integers may be written as floats
    return pa.float64() if isinstance(value, float) and kind in ("integer", "seconds") else ARROW_TYPES[kind]


def _convert_strictly(
    values: RawColumn, column: Column, kind: pl.DataType
) -> tuple[pl.Series, dict[int, InvalidValueError]]:
    """Convert a column of a published layout into the canonical one."""
    invalid: dict[int, InvalidValueError] = {}
    if isinstance(values, pl.Series) and values.dtype == POLARS_TYPES[column.kind]:
        made = values.to_frame("value").select(_as_canonical(column.kind, pl.col("value"))).to_series()
        if column.kind == "number":
            invalid = dict.fromkeys((made.is_infinite()).arg_true().to_list(), InvalidValueError())
            made = made.fill_nan(None) + 0.0
    else:
        found: list[Any] = []
        for place, value in enumerate(values):
            try:
                found.append(_strict_value(column.kind, value))
            except InvalidValueError as error:
                invalid[place] = error
                found.append(None)
        is_list = column.kind in ("strings", "text", "lists")
        made = pl.Series(found, dtype=pl.List(pl.String) if is_list else POLARS_TYPES[column.kind])
    if column.convert:
        given = made.is_not_null()
        made = made.to_frame("value").select(column.convert(pl.col("value"))).to_series()
        for place in (given & made.is_null()).arg_true().to_list():
            if not column.identifies:  # an id of which nothing is left is a missing one
                invalid.setdefault(place, InvalidValueError())
    return made.cast(kind), invalid


def _as_canonical(kind: Kind, value: pl.Expr) -> pl.Expr:
    if kind == "seconds":
        return value.clip(-MAX_SECONDS, MAX_SECONDS) * 1000
    if kind == "text":
        return pl.when(value.is_not_null()).then(pl.concat_list(value))
    if kind == "lists":
        return value.list.eval(pl.element().explode().drop_nulls())
    return value


def _strict_value(kind: Kind, value: Any) -> Any:
    """Return the canonical value of one that has the type of its column; NaN is a missing one.

    Raises:
        InvalidValueError: It has another type.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if kind in ("string", "text"):
        if isinstance(value, str):
            return value if kind == "string" else [value]
    elif kind == "strings":
        if _are_texts(value):
            return value
    elif kind == "lists":
        if isinstance(value, list) and all(each is None or _are_texts(each) for each in value):
            return [text for each in value if each for text in each if text is not None]
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidValueError
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
    raise InvalidValueError


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(each is None or isinstance(each, str) for each in value)
