"""What a person asks for: one review to write, as a checked form, and a file with one such form a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from nextquill_core.config.base import Section
from nextquill_core.errors import UserError
from nextquill_core.records import Item, Review
from storage.stored_json import check_form

FORM = "docs/how-to/write.md lists the fields"
FLAT = {"item_title": "title", "item_description": "description"}
"""Fields of a past review that describe its item, as `nextquill_core.open(...).examples()` names them."""
LONGEST = 10_000_000
"""Characters of a text at most. Pydantic decodes a text that has a limit, and so refuses half of a surrogate pair."""
UNION = ("str", "constrained-str", "ItemFields")
"""Names of the forms of an item, which pydantic puts into the place of an error."""
Form = TypeVar("Form", bound=Section)


class TextForm(Section):
    """A form whose texts can be encoded as UTF-8."""

    model_config = ConfigDict(str_max_length=LONGEST)


class ItemFields(TextForm):
    """An item that need not be in a store."""

    title: str = ""
    description: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_record(cls, values: Any) -> Any:
        return {"title": values.title, "description": values.description} if isinstance(values, Item) else values

    @property
    def item(self) -> Item:
        """The record of the item."""
        return Item(self.title, self.description)


class PastReview(TextForm):
    """A review that a person wrote earlier.

    The item is an id of the store, or title and description: as `item`, or as `item_title` and `item_description`
    beside an `item_id` that is then ignored.
    """

    item: str | ItemFields
    rating: float | None = None
    title: str = ""
    text: Annotated[str, Field(min_length=1)]
    timestamp_ms: int = 0

    @model_validator(mode="before")
    @classmethod
    def _with_item(cls, values: Any) -> Any:
        if isinstance(values, Review):
            return {name: getattr(values, name) for name in cls.model_fields}
        if not isinstance(values, Mapping) or "item" in values:
            return values
        rest = {name: value for name, value in values.items() if name not in (*FLAT, "item_id")}
        fields = {FLAT[name]: values[name] or "" for name in FLAT if name in values}
        if fields:
            return {**rest, "item": fields}
        return {**rest, "item": values["item_id"]} if "item_id" in values else values

    def review(self, item: Item) -> Review:
        """Return the record; white space in the text is as ingest leaves it."""
        return Review(item, self.rating, self.title, " ".join(self.text.split()), self.timestamp_ms)


class WriteRequest(TextForm):
    """One review to write."""

    id: str | None = None
    """name for the answer in a file of many; any text"""
    user: str | None = None
    """id of a user of the store, whose stored reviews are the history"""
    history: tuple[PastReview, ...] | None = None
    """past reviews, oldest first, in place of a user's"""
    item: str | ItemFields | None = None
    """id of an item of the store, or title and description"""
    rating: float | None = None
    """rating of the review to write; null if it is open"""
    title: str = ""
    """title of the review to write; empty if it is open"""
    category: str | None = None
    """category of user and item, needed only if the store has them in several"""
    before: int | None = None
    """use only reviews of the user that are older than this time, UTC milliseconds"""
    example: str | None = None
    """id of an example of the store in place of all other fields, to write what evaluation writes for it"""

    @model_validator(mode="after")
    def _one_source(self) -> WriteRequest:
        given = sorted(self.model_fields_set & set(WriteRequest.model_fields) - {"id", "example"})
        if self.example is not None and any(getattr(self, name) not in (None, "") for name in given):
            raise ValueError(f"example names user, item, rating and title: leave out {', '.join(given)}")
        if self.example is None and self.item is None:
            raise ValueError("item is missing: give an id of the store, or title and description")
        if self.user is not None and self.history is not None:
            raise ValueError("user and history are two histories: leave out one of them")
        if self.before is not None and self.user is None:
            raise ValueError("before needs a user of the store")
        return self


def checked(form: type[Form], values: Any, where: str, remedy: str = FORM) -> Form:
    """Return plain values as a form.

    Args:
        form: A class of forms.
        values: The values.
        where: Where they come from, for the message.
        remedy: What to do about a wrong field.

    Raises:
        UserError: A field is unknown, missing or invalid.
    """
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise UserError(fault(error.errors(include_url=False)), where, remedy) from None


def fault(errors: Sequence[Any]) -> str:
    """Return one line about a wrong field, with its place in the form.

    Args:
        errors: What pydantic lists. For an item it lists what is wrong with a text and with a form; the place that lies
            deepest belongs to the one that was meant.
    """
    found = max(errors, key=lambda error: len(error["loc"]))
    field = ".".join(str(part) for part in found["loc"] if part not in UNION)
    unknown = found.get("type") == "extra_forbidden"
    what = "there is no such field" if unknown else str(found["msg"]).removeprefix("Value error, ")
    return f"`{field}`: {what}" if field else what


def read_forms(path: Path, form: type[Form]) -> list[Form]:
    """Return the forms in a file of JSON lines; empty lines are passed over.

    Args:
        path: The file.
        form: A class of forms.

    Raises:
        UserError: The file cannot be read, or a line is invalid; the message has its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path), "name a file of JSON lines") from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", str(path), "save it as UTF-8") from None
    places = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    return [checked(form, check_form(line, Any, where, "write one JSON object on it"), where) for where, line in places]
