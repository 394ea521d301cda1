"""Convert raw values into canonical ones, each by its type: the rules are the same for JSON lines, CSV and Parquet.

`ValueRules` converts one value. `convert` applies it to a column: usual spellings are converted by Polars expressions,
and every value that these leave open goes to `ValueRules`, so both ways give the same result.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import polars as pl

from nextquill_core.errors import DataError

Role = Literal["id", "rating", "count", "text", "list", "time"]
Convert = Callable[[pl.Expr], pl.Expr]
ROLES: Mapping[str, Role] = {
    "user_id": "id",
    "item_id": "id",
    "rating": "rating",
    "rating_number": "count",
    "title": "text",
    "text": "text",
    "timestamp_ms": "time",
    "description": "list",
    "categories": "list",
}
TYPES: Mapping[Role, pl.DataType] = {
    "id": pl.String(),
    "rating": pl.Float64(),
    "count": pl.Float64(),
    "text": pl.String(),
    "list": pl.List(pl.String),
    "time": pl.Int64(),
}
# What writers put where they have no value. A person or a book may be called "None" or "NA", so these do not count as
# missing where a name can stand; and texts keep all their words.
NULLS = frozenset({"", r"\N", "NULL", "null", "NaN", "nan", "<NA>"})
NULL_NUMBERS = NULLS | {"None", "none", "NA", "N/A", "n/a", "NaT", "#N/A", "Null"}
NULL_TEXTS = frozenset({r"\N"})
UNITS: Mapping[str, int] = {"s": -3, "ms": 0, "us": 3, "ns": 6}  # powers of ten by which a unit divides a millisecond
EXACT = 2**53  # from here on a float cannot hold every whole number
LAST_MS = 253_402_300_799_999  # the end of the year 9999
FIRST_MS = -62_135_596_800_000  # the beginning of the year 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
REFUSALS = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
"""What `ast` raises for text that is no literal of Python."""
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_INTEGER = r"^[+-]?[0-9]{1,18}$"
_NUMBER_RE, _ANY_INTEGER_RE = re.compile(_NUMBER), re.compile(r"[+-]?[0-9]+")
_DECIMAL_COMMA = re.compile(r"([+-]?[0-9]+),([0-9]{1,2})")
_THOUSANDS = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?")
_OF = re.compile(
    r"(?P<n>[0-9]+(?:[.,][0-9]+)?) *(?:/|out of|von|sur|de|su) *(?P<most>[0-9]+(?:[.,]0+)?)(?: *stars?)?", re.I
)
_STARS = re.compile(r"(?P<n>[0-9]+(?:[.,][0-9]+)?) *(?:stars?|★|⭐)", re.I)
_SIGNS = re.compile(r"(?P<full>(?:★|⭐)+)(?P<half>½?)(?P<empty>☆*)|(?P<none>☆+)")
_ISO = re.compile(
    r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})"
    r"(?:[Tt ]+([0-9]{2}):?([0-9]{2})(?::?([0-9]{2})(?:[.,]([0-9]+))?)?"
    r" *(?:(Z|UTC|GMT)|([+-])([0-9]{2})(?::?([0-9]{2}))?)?(?:\[[^\]]*\])?)?",
    re.I,
)
_ISO_LONG = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]([0-9]{2}:[0-9]{2})(:[0-9]{2}(?:\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?$"
)


class InvalidValueError(Exception):
    """A value cannot be converted; the message names the setting that would accept it, if there is one."""


@dataclass(frozen=True)
class ValueRules:
    """How single values become canonical; a missing value becomes None.

    Attributes:
        times: Unit of numbers that are times (s, ms, us, ns), `iso`, or a strftime pattern.
        ratings: Lowest and highest rating.
        rating_words: Rating by word, in lower case.
        nulls: Further texts that stand for a missing value, in every column.
        options: Whether the source has options, so that messages can name them.
    """

    times: str = "ms"
    ratings: tuple[float, float] = (1.0, 5.0)
    rating_words: Mapping[str, float] = field(default_factory=dict)
    nulls: frozenset[str] = frozenset()
    options: bool = True

    def value(self, role: Role, value: Any) -> Any:
        """Return the canonical value of `value` in a column of this role.

        Raises:
            InvalidValueError: It has none.
        """
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, Decimal) and value.is_nan():
            return None
        if isinstance(value, str) and self.is_null(role, value):
            return None
        return getattr(self, f"_{role}")(value)

    def is_null(self, role: Role, text: str) -> bool:
        """Return whether a text stands for a missing value."""
        if role in ("rating", "count", "time"):
            text = text.strip()
        return text in self.nulls or text in self.null_texts(role)

    def null_texts(self, role: Role) -> frozenset[str]:
        """Return the texts that always stand for a missing value in a column of this role."""
        if role in ("rating", "count", "time"):
            return NULL_NUMBERS
        return NULL_TEXTS if role == "text" else NULLS

    def _id(self, value: Any) -> str:
        if isinstance(value, bool):
            raise InvalidValueError
        if isinstance(value, str):
            return value
        if isinstance(value, int | UUID):
            return str(value)
        if isinstance(value, bytes) and len(value) == 16:
            return str(UUID(bytes=value))
        if isinstance(value, float) and value.is_integer():
            if abs(value) >= EXACT:
                raise InvalidValueError("floats of this size have lost digits: write ids as integers or as text")
            return str(int(value))
        if isinstance(value, Decimal) and value == value.to_integral_value():
            return str(int(value))
        raise InvalidValueError

    def _text(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            raise InvalidValueError
        if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
            return str(int(value))
        if isinstance(value, int | float | Decimal | UUID):
            return str(value)
        raise InvalidValueError

    def _list(self, value: Any) -> list[str]:
        if isinstance(value, str):
            return self._list_in_text(value)
        if isinstance(value, list | tuple):
            texts: list[str] = []
            for each in value:
                if isinstance(each, list | tuple):
                    texts += self._list(each)
                elif each is not None and not (isinstance(each, float) and math.isnan(each)):
                    texts.append(self._text(each))
            return texts
        return [self._text(value)]

    def _list_in_text(self, text: str) -> list[str]:
        """Parse a list that was written as text, in JSON or by Python; any other text is a list of one."""
        inner = text.strip()
        if not (inner.startswith("[") and inner.endswith("]")):
            return [text]
        try:
            found = json.loads(inner)
        except (ValueError, RecursionError):
            try:
                found = _python_list(inner)
            except REFUSALS:
                return [text]
        try:
            return self._list(found) if isinstance(found, list) else [text]
        except InvalidValueError:
            return [text]

    def _number(self, value: Any) -> float | None:
        if isinstance(value, bool):
            return float(value)
        if isinstance(value, int | float | Decimal):
            try:
                number = float(value)
            except OverflowError:
                return None
            return number + 0.0 if math.isfinite(number) else None  # -0.0 becomes 0.0, as the integer -0 is
        if isinstance(value, str) and _NUMBER_RE.match(value):
            number = float(value)
            return number + 0.0 if math.isfinite(number) else None
        return None

    def _count(self, value: Any) -> float:
        value = value.strip() if isinstance(value, str) else value
        if isinstance(value, str) and _THOUSANDS.fullmatch(value):
            value = value.replace(",", "")
        number = None if isinstance(value, bool) else self._number(value)
        if number is None:
            raise InvalidValueError
        return number

    def _rating(self, value: Any) -> float:
        if isinstance(value, str):
            value = value.strip()
            if value.casefold() in self.rating_words:
                return self.rating_words[value.casefold()]
        number = self._number(value)
        if number is not None:
            return number
        if not isinstance(value, str):
            raise InvalidValueError
        if value.casefold() in ("true", "false"):
            return float(value.casefold() == "true")
        if match := _DECIMAL_COMMA.fullmatch(value):
            return float(f"{match[1]}.{match[2]}")
        if match := _OF.fullmatch(value):
            return self._out_of(match["n"], float(match["most"].replace(",", ".")))
        if match := _STARS.fullmatch(value):
            return float(match["n"].replace(",", "."))
        if match := _SIGNS.fullmatch(value.replace(" ", "").replace("\ufe0f", "")):
            stars = len(match["full"] or "") + (0.5 if match["half"] else 0.0)
            empty = len(match["empty"] or match["none"] or "")
            return self._out_of(str(stars), math.ceil(stars) + empty) if empty else stars
        word = json.dumps(value[:40], ensure_ascii=False)
        raise InvalidValueError(
            self._option("rating_words", f"{{{word}: NUMBER}}") if re.search(r"[^\W\d_]", value) else ""
        )

    def _out_of(self, text: str, most: float) -> float:
        if most != self.ratings[1]:
            raise InvalidValueError(self._option("ratings", f"[{self.ratings[0]:g}, {most:g}]"))
        return float(text.replace(",", "."))

    def _time(self, value: Any) -> int:
        if isinstance(value, datetime):
            moment = value if value.tzinfo else value.replace(tzinfo=UTC)
            return (moment - EPOCH) // timedelta(milliseconds=1)
        if isinstance(value, date):
            return (value - EPOCH.date()).days * 86_400_000
        text = value.strip() if isinstance(value, str) else None
        if self.times not in UNITS:
            found = _iso(text) if text is not None and self.times == "iso" else None
            if found is None:
                raise InvalidValueError(self._times_that_fit(value))
            return found
        if text is not None:
            value = int(text) if _ANY_INTEGER_RE.fullmatch(text[:40]) and len(text) <= 40 else self._number(text)
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise InvalidValueError(self._times_that_fit(text))
        found = _in_ms(value, UNITS[self.times])
        if found is None:
            raise InvalidValueError(self._times_that_fit(value))
        return found

    def _times_that_fit(self, value: Any) -> str:
        """Return the setting of `timestamp` under which a value would be a time between 1973 and 2100."""
        if isinstance(value, str) and _iso(value) is not None and self.times != "iso":
            return self._option("timestamp", "iso")
        number = None if isinstance(value, bool) else self._number(value)
        if number is not None:
            for unit, tens in UNITS.items():
                found = _in_ms(number, tens)
                if unit != self.times and found is not None and 10**11 <= found < 4_102_444_800_000:
                    return self._option("timestamp", unit)
        elif isinstance(value, str) and any(sign.isdigit() for sign in value):
            return self._option("timestamp", 'a pattern such as "%d/%m/%Y %H:%M"')
        return ""

    def _option(self, name: str, value: str) -> str:
        return f"set ingest.options.{name}: {value}" if self.options else ""


def _in_ms(value: float | Decimal, tens: int) -> int | None:
    """Return a number of units as whole milliseconds, rounded; None if it is no possible date."""
    if isinstance(value, int):
        found = value * 1000 if tens < 0 else value // 10**tens
    else:
        number = float(value)
        if not math.isfinite(number):
            return None
        number = number * 1000 if tens < 0 else number / 10**tens
        if not abs(number) < EXACT:
            return None
        found = math.floor(number + 0.5)
    return found if FIRST_MS <= found <= LAST_MS else None


def _iso(text: str) -> int | None:
    match = _ISO.fullmatch(text)
    if not match:
        return None
    year, month, day, hour, minute, second, fraction, _, sign, hours, minutes = match.groups()
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC
        )
    except ValueError:
        return None
    found = (moment - EPOCH) // timedelta(milliseconds=1) + int((fraction or "")[:3].ljust(3, "0"))
    ahead = (int(hours or 0) * 60 + int(minutes or 0)) * (-1 if sign == "-" else 1)
    return found - ahead * 60_000


def _python_list(text: str) -> Any:
    """Parse a list as Python writes it, or as NumPy does, without commas between texts."""
    tree = ast.parse(text, mode="eval").body
    found = ast.literal_eval(tree)
    if isinstance(found, list) and re.search(r"""['"]\s+['"]""", text):
        parts = re.findall(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", text, re.DOTALL)
        rest = re.sub(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", "", text, flags=re.DOTALL)
        if rest.strip("[] \r\n\t") == "":
            return [ast.literal_eval(part) for part in parts]
    return found


def check_times(times: str) -> None:
    """Check that a strftime pattern can be read back as a date.

    Raises:
        DataError: It cannot, for example because it lacks the day.
    """
    if times in UNITS or times == "iso":
        return
    moment = datetime(2001, 12, 23, 4, 5, 6, tzinfo=UTC)
    try:
        read_ms = pl.select(_by_pattern(pl.lit(moment.strftime(times)), times)).item()
    except pl.exceptions.PolarsError:
        read_ms = None
    if read_ms is None or datetime.fromtimestamp(read_ms / 1000, UTC).date() != moment.date():
        raise DataError(
            f"`timestamp`: the pattern {times!r} does not give a date",
            "ingest.options",
            'a year, month and day are needed, as in "%Y-%m-%d"; a fraction of a second is .%f',
        )


def convert(
    values: pl.Series | Sequence[Any], role: Role, rules: ValueRules
) -> tuple[pl.Series, dict[int, InvalidValueError]]:
    """Convert a raw column into a canonical one.

    Args:
        values: The raw values: a column of one type, or a list of values of any types.
        role: What they mean.
        rules: How values become canonical.

    Returns:
        The canonical column, and the error of each value that does not fit, by its place; such values are null.
    """
    if not isinstance(values, pl.Series):
        return _convert_mixed(values, role, rules)
    expression = _expression(role, values.dtype, rules)
    if expression is None:
        return _convert_mixed(values.to_list(), role, rules)
    made = values.to_frame("value").select(expression(pl.col("value")).cast(TYPES[role])).to_series()
    rest = (made.is_null() & values.is_not_null()).arg_true()
    if not len(rest):
        return made, {}
    places = rest.to_list()
    slow, invalid = _one_by_one(values.gather(rest).to_list(), role, rules)
    patch: list[Any] = [None] * len(values)
    for place, value in zip(places, slow, strict=True):
        patch[place] = value
    made = pl.select(pl.coalesce(made, pl.Series(patch, dtype=TYPES[role]))).to_series()
    return made, {places[i]: error for i, error in invalid.items()}


def _convert_mixed(
    values: Sequence[Any], role: Role, rules: ValueRules
) -> tuple[pl.Series, dict[int, InvalidValueError]]:
    if role == "time" and rules.times not in UNITS and rules.times != "iso":  # a pattern is read by Polars alone
        texts = pl.Series([each if isinstance(each, str) else None for each in values], dtype=pl.String)
        made, invalid = convert(texts, role, rules)
        others = [None if isinstance(each, str) else each for each in values]
        slow, also_invalid = _one_by_one(others, role, rules)
        return pl.select(pl.coalesce(made, pl.Series(slow, dtype=TYPES[role]))).to_series(), invalid | also_invalid
    found, invalid = _one_by_one(values, role, rules)
    return pl.Series(found, dtype=TYPES[role]), invalid


def _one_by_one(values: Sequence[Any], role: Role, rules: ValueRules) -> tuple[list[Any], dict[int, InvalidValueError]]:
    known: dict[str, Any] = {}  # texts often repeat, as ratings do
    found: list[Any] = []
    invalid: dict[int, InvalidValueError] = {}
    for place, value in enumerate(values):
        made = known.get(value, known) if isinstance(value, str) else known
        if made is known:
            try:
                made = rules.value(role, value)
            except InvalidValueError as error:
                made = error
            if isinstance(value, str) and role != "text":
                known[value] = made
        if isinstance(made, InvalidValueError):
            invalid[place] = made
            made = None
        found.append(made)
    return found, invalid


def _expression(role: Role, kind: pl.DataType, rules: ValueRules) -> Convert | None:
    """Return an expression that converts the usual spellings, and makes all others null; None if there is none."""
    if isinstance(kind, pl.String):
        nulls = list(rules.null_texts(role) | rules.nulls)

        def given(value: pl.Expr) -> pl.Expr:
            return pl.when(~value.is_in(nulls)).then(value)

        found: dict[Role, Convert] = {
            "id": given,
            "text": given,
            "count": lambda value: _finite(_number(value)),
            "rating": lambda value: _finite(_number(value)),
            "list": lambda value: pl.when(given(value).is_not_null() & ~value.str.contains(r"^\s*\[")).then(
                pl.concat_list(value)
            ),
            "time": lambda value: _time_expression(value, rules.times),
        }
        if role == "rating" and rules.rating_words:
            return None
        return found[role]
    if role == "id" and kind.is_integer():
        return lambda value: value.cast(pl.String)
    if role in ("rating", "count") and (kind.is_integer() or isinstance(kind, pl.Float32 | pl.Float64)):
        return lambda value: _finite(value.cast(pl.Float64))
    if role == "list" and kind == pl.List(pl.String):
        return lambda value: pl.when(value.is_not_null()).then(value.list.drop_nulls())
    if role == "time" and rules.times in UNITS:
        tens = UNITS[rules.times]
        if kind.is_integer():
            return lambda value: _possible(_whole_ms(value.cast(pl.Int64, strict=False), tens))
        if isinstance(kind, pl.Float64):
            return lambda value: _nearest_ms(value, tens)
    if role == "time" and isinstance(kind, pl.Datetime | pl.Date):
        return lambda value: value.cast(pl.Datetime("ms")).dt.epoch("ms")
    return None


def _finite(value: pl.Expr) -> pl.Expr:
    # Polars leaves out a sum with zero, so that negative zero has to be named.
    return pl.when(value == 0).then(0.0).when(value.is_finite()).then(value)


def _number(value: pl.Expr) -> pl.Expr:
    return pl.when(value.str.contains(_NUMBER)).then(value).cast(pl.Float64, strict=False)


def _possible(value: pl.Expr) -> pl.Expr:
    return pl.when(value.is_between(FIRST_MS, LAST_MS)).then(value)


def _whole_ms(value: pl.Expr, tens: int) -> pl.Expr:
    """Convert whole units to whole milliseconds."""
    if tens < 0:
        return pl.when(value.is_between(FIRST_MS // 1000, LAST_MS // 1000)).then(value * 1000)
    return value // 10**tens if tens else value


def _nearest_ms(value: pl.Expr, tens: int) -> pl.Expr:
    number = value * 1000 if tens < 0 else value / 10**tens
    return _possible(pl.when(number.abs() < EXACT).then((number + 0.5).floor()).cast(pl.Int64, strict=False))


def _time_expression(value: pl.Expr, times: str) -> pl.Expr:
    if times in UNITS:
        whole = pl.when(value.str.contains(_INTEGER)).then(value).cast(pl.Int64, strict=False)
        return _possible(_whole_ms(whole, UNITS[times]))
    if times != "iso":
        return _by_pattern(value, times)
    day, minute, second, zone = (value.str.extract(_ISO_LONG, group) for group in range(1, 5))
    text = pl.concat_str(day, pl.lit("T"), minute.fill_null("00:00"), second.fill_null(":00"))
    ahead = zone.str.replace("Z", "+0000").str.replace(":", "").cast(pl.Int64, strict=False).fill_null(0)
    minutes = ahead.sign() * (ahead.abs() // 100 * 60 + ahead.abs() % 100)
    return _possible(text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False).dt.epoch("ms") - minutes * 60_000)


def _by_pattern(value: pl.Expr, times: str) -> pl.Expr:
    return value.str.to_datetime(times.replace(".%f", "%.f"), strict=False).dt.epoch("ms")
