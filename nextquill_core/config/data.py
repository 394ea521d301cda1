"""What the pipeline reads: raw files, who stays, who is hidden, and what of it a model sees."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nextquill_core.config.base import OPERATIONAL, NonNegative, Positive, Section, Share, variable_name


class RawInput(Section):
    """One category's raw files."""

    category: Annotated[str, Field(min_length=1, description="its name; of a hub data set the one that it has there")]
    reviews: Annotated[str | None, Field(description="path or glob; empty fetches the category from the hub")] = None
    items: Annotated[str | None, Field(description="path or glob of the item metadata")] = None


class ProtocolConfig(Section):
    """Who and what stays, by the published data procedure (DPL), and how targets are split."""

    name: Annotated[
        Literal["dpl", "global-time"],
        Field(
            description="dpl: each user's last target tests; global-time: two points in time part the targets of all "
            "users, so that nothing trains that is younger than a test target"
        ),
    ] = "dpl"
    min_text_chars: Annotated[int, Field(ge=0, description="characters a raw review text needs")] = 200
    min_user_reviews: Annotated[int, Field(ge=1, description="reviews a user needs, without repeats")] = 18
    max_user_reviews: Annotated[int, Field(ge=1, description="reviews above which a user is left out")] = 500
    min_item_users: Annotated[int, Field(ge=1, description="distinct users an item needs")] = 8
    n_targets: Annotated[
        int, Field(ge=3, description="newest reviews a user: all but two train, one val, one test")
    ] = 10
    min_profile_reviews: Annotated[int, Field(ge=0, description="reviews a base profile needs")] = 8
    min_profile_item_users: Annotated[int, Field(ge=0, description="distinct users an item of a profile needs")] = 5
    min_description_chars: Annotated[NonNegative, Field(description="characters an item's description needs")] = 100
    max_description_chars: Annotated[
        Positive, Field(description="characters of a description above which its item is left out")
    ] = 2000
    require_rating: Annotated[
        bool, Field(description="leave out reviews without a rating, where the data have ratings")
    ] = True
    require_review_title: Annotated[
        bool, Field(description="leave out reviews without a title, where the data have titles")
    ] = True
    require_item_title: Annotated[
        bool, Field(description="leave out items without a title, where the data have item titles")
    ] = True
    require_categories: Annotated[
        bool, Field(description="leave out items without categories, where the data have categories")
    ] = True
    require_rating_number: Annotated[
        bool, Field(description="leave out items without a number of ratings, where the data have that number")
    ] = True
    val_from: Annotated[date | None, Field(description="global-time: first day (UTC) of val")] = None
    test_from: Annotated[date | None, Field(description="global-time: first day (UTC) of test")] = None
    val_share: Annotated[float, Field(gt=0, lt=0.5, description="global-time: targets in val, without val_from")] = 0.1
    test_share: Annotated[
        float, Field(gt=0, lt=0.5, description="global-time: newest targets in test, without test_from")
    ] = 0.1

    @model_validator(mode="after")
    def _in_order(self) -> ProtocolConfig:
        if self.val_from and self.test_from and self.val_from >= self.test_from:
            raise ValueError("val_from must be earlier than test_from")
        if self.name == "dpl" and (self.val_from or self.test_from):
            raise ValueError("val_from and test_from belong to the protocol global-time")
        return self


class IngestConfig(Section):
    """Raw reviews and items into user sequences."""

    source: Annotated[str, Field(description="a name that `nextquill sources` lists")] = "amazon-2023"
    options: Annotated[
        dict[str, Any], Field(description="Settings of the source itself; see docs/how-to/sources.md")
    ] = {}
    inputs: Annotated[tuple[RawInput, ...], Field(min_length=1, description="categories with their raw files")] = (
        RawInput(category="Books"),
    )
    protocol: ProtocolConfig = ProtocolConfig()
    bad_rows: Annotated[
        Literal["quarantine", "drop", "fail"], Field(description="what happens to a row that cannot be read")
    ] = "quarantine"
    max_bad_share: Annotated[Share, Field(description="share of bad rows above which the stage stops")] = 0.01
    suspect_rows: Annotated[
        Literal["list", "bad", "ignore"],
        Field(
            description="a row whose time is negative, in seconds or in the future, or whose rating is out of range: "
            "list: kept, as the published procedure does, and listed in the quarantine; bad: treated as a row that "
            "cannot be read; ignore: kept"
        ),
    ] = "list"

    @model_validator(mode="after")
    def _categories_once(self) -> IngestConfig:
        names = [raw.category for raw in self.inputs]
        if len(set(names)) < len(names):
            raise ValueError("each category may be named once")
        if "all" in names:
            raise ValueError("a category may not be named `all`: that is what all of them together are called")
        return self


class PrivacyConfig(Section):
    """Whose ids are replaced, and who is forgotten."""

    pseudonymize: Annotated[
        bool, Field(description="replace user ids by a keyed hash; raw texts of bad rows are then withheld")
    ] = False
    key_env: Annotated[
        str,
        Field(min_length=1, description="environment variable with the key", json_schema_extra=OPERATIONAL),
    ] = "NEXTQUILL_PSEUDONYM_KEY"
    key_secret: Annotated[
        str | None, Field(description="name of a Prefect Secret block with the key", json_schema_extra=OPERATIONAL)
    ] = None
    _named_as_variables_are = field_validator("key_env")(variable_name)

    forget: Annotated[
        str | None, Field(description="text file of user ids, one a line, raw or as pseudonyms, who must not appear")
    ] = None


class PromptConfig(Section):
    """What the model reads."""

    max_history: Annotated[int, Field(ge=0, description="most recent past reviews shown")] = 8
    max_prompt_tokens: Annotated[
        int,
        Field(
            ge=32,
            description="maximum number of tokens in a prompt; a long item is cut to half of it, then the oldest "
            "reviews of the history are left out",
        ),
    ] = 2048
    max_target_tokens: Annotated[int, Field(ge=1, description="longer reviews are cut at this many tokens")] = 2048
    template: Annotated[
        Literal["auto", "plain", "chat"],
        Field(
            description="text around a prompt: none (plain) or the tokenizer's chat template (chat); auto decides by "
            "the model's names and files, and says why"
        ),
    ] = "auto"
