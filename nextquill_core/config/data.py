"""Settings of the data: raw files, the data protocol, privacy, and the prompt."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nextquill_core.config.base import OPERATIONAL, NonNegative, Positive, Section, Share, variable_name


class SyntheticInput(Section):
    """A synthetic category in the layout of Amazon Reviews 2023, whose users have known tastes."""

    folder: Annotated[
        str, Field(min_length=1, description="Folder of the files, which are written if they are missing")
    ]
    users: Annotated[Positive, Field(description="Number of regular users")] = 60
    seed: Annotated[int, Field(ge=0, description="Seed of the category")] = 42
    world: Annotated[
        Literal["plain", "mixed"],
        Field(
            description="How the users write. plain: each user in one style; mixed: in a main and a second style that "
            "other users share, with more common words and some reviews without any style"
        ),
    ] = "plain"


class RawInput(Section):
    """The raw files of one category."""

    category: Annotated[
        str, Field(min_length=1, description="Name of the category; for a hub data set, its name there")
    ]
    reviews: Annotated[
        str | None, Field(description="Path, address or glob of the review files; null downloads them from the hub")
    ] = None
    items: Annotated[
        str | None, Field(description="Path, address or glob of the item metadata; null downloads it from the hub")
    ] = None
    synthetic: Annotated[
        SyntheticInput | None, Field(description="Writes and reads a synthetic category instead of files of yours")
    ] = None

    @model_validator(mode="after")
    def _one_place(self) -> RawInput:
        if self.synthetic and (self.reviews or self.items):
            raise ValueError("reviews and items name files, and synthetic writes others; leave one of them out")
        return self


class ProtocolConfig(Section):
    """Which reviews, users and items are kept, by the published data procedure (DPL), and how targets are split."""

    name: Annotated[
        Literal["dpl", "global-time"],
        Field(
            description="How targets are split. dpl: each user's last target is a test target; global-time: two points "
            "in time split the targets of all users, so that no training target is later than a test target"
        ),
    ] = "dpl"
    min_text_chars: Annotated[
        int, Field(ge=0, description="Minimum number of characters of a review text, blanks included")
    ] = 200
    min_user_reviews: Annotated[
        int, Field(ge=1, description="Minimum number of reviews of a user, not counting repeats")
    ] = 18
    max_user_reviews: Annotated[
        int, Field(ge=1, description="Maximum number of reviews of a user; users with more are left out")
    ] = 500
    min_item_users: Annotated[int, Field(ge=1, description="Minimum number of distinct users of an item")] = 8
    n_targets: Annotated[
        int,
        Field(
            ge=3,
            description="Number of targets per user, the newest reviews: all but two train, one is val, one is test",
        ),
    ] = 10
    min_profile_reviews: Annotated[
        int, Field(ge=0, description="Minimum number of reviews of a user before the first target")
    ] = 8
    min_profile_item_users: Annotated[
        int, Field(ge=0, description="Minimum number of distinct users of an item among these earlier reviews")
    ] = 5
    min_description_chars: Annotated[
        NonNegative, Field(description="Minimum number of characters of an item description")
    ] = 100
    max_description_chars: Annotated[
        Positive,
        Field(description="Maximum number of characters of an item description; items with a longer one are left out"),
    ] = 2000
    require_rating: Annotated[
        bool, Field(description="Leave out reviews without a rating, if the data have ratings")
    ] = True
    require_review_title: Annotated[
        bool, Field(description="Leave out reviews without a title, if the data have review titles")
    ] = True
    require_item_title: Annotated[
        bool, Field(description="Leave out items without a title, if the data have item titles")
    ] = True
    require_categories: Annotated[
        bool, Field(description="Leave out items without categories, if the data have categories")
    ] = True
    require_rating_number: Annotated[
        bool, Field(description="Leave out items without a number of ratings, if the data have it")
    ] = True
    val_from: Annotated[date | None, Field(description="For global-time: first day (UTC) of the val split")] = None
    test_from: Annotated[date | None, Field(description="For global-time: first day (UTC) of the test split")] = None
    val_share: Annotated[
        float,
        Field(gt=0, lt=0.5, description="For global-time without val_from: share of the targets in the val split"),
    ] = 0.1
    test_share: Annotated[
        float,
        Field(
            gt=0,
            lt=0.5,
            description="For global-time without test_from: share of the targets in the test split, the newest",
        ),
    ] = 0.1

    @model_validator(mode="after")
    def _in_order(self) -> ProtocolConfig:
        if self.val_from and self.test_from and self.val_from >= self.test_from:
            raise ValueError("val_from must be earlier than test_from")
        if self.name == "dpl" and (self.val_from or self.test_from):
            raise ValueError("val_from and test_from belong to the protocol global-time")
        return self


HtmlCleaning = Literal["keep", "unescape", "strip"]


class CleanConfig(Section):
    """What is cleaned in texts before the protocol counts characters and compares texts."""

    html: Annotated[
        HtmlCleaning,
        Field(
            description="What happens to HTML in review texts, review titles, item titles and item descriptions. keep: "
            "nothing, as in the published procedure; unescape: `&quot;` and the like become characters; strip: tags "
            "are removed too"
        ),
    ] = "keep"


class IngestConfig(Section):
    """The ingest stage: from raw reviews and items to user sequences."""

    source: Annotated[str, Field(description="Name of the source of raw data, as listed by `nextquill sources`")] = (
        "amazon-2023"
    )
    options: Annotated[
        dict[str, Any], Field(description="Settings of the source itself; see docs/how-to/sources.md")
    ] = {}
    inputs: Annotated[tuple[RawInput, ...], Field(min_length=1, description="Categories with their raw files")] = (
        RawInput(category="Books"),
    )
    clean: CleanConfig = CleanConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    bad_rows: Annotated[
        Literal["quarantine", "drop", "fail"],
        Field(description="What happens to an unreadable row: list it in the quarantine, drop it, or fail"),
    ] = "quarantine"
    max_bad_share: Annotated[
        Share, Field(description="Maximum share of unreadable rows; with more the stage fails")
    ] = 0.01
    suspect_rows: Annotated[
        Literal["list", "bad", "ignore"],
        Field(
            description="What happens to a row whose time is negative, in seconds or in the future, or whose rating is "
            "out of range. list: keep it, as the published procedure does, and list it in the quarantine; bad: treat "
            "it as unreadable; ignore: keep it"
        ),
    ] = "list"

    @model_validator(mode="after")
    def _categories_once(self) -> IngestConfig:
        names = [raw.category for raw in self.inputs]
        if len(set(names)) < len(names):
            raise ValueError("each category may be named once")
        if "all" in names:
            raise ValueError("a category must not be named `all`, which stands for all categories together")
        return self


class PrivacyConfig(Section):
    """Pseudonyms for user ids, and users to forget."""

    pseudonymize: Annotated[
        bool, Field(description="Replace user ids by a keyed hash; raw texts of unreadable rows are then withheld")
    ] = False
    key_env: Annotated[
        str,
        Field(
            min_length=1,
            description="Name of the environment variable that holds the key of the hash",
            json_schema_extra=OPERATIONAL,
        ),
    ] = "NEXTQUILL_PSEUDONYM_KEY"
    key_secret: Annotated[
        str | None,
        Field(
            description="Name of a Prefect Secret block that holds the key of the hash", json_schema_extra=OPERATIONAL
        ),
    ] = None
    _is_a_variable_name = field_validator("key_env")(variable_name)

    forget: Annotated[
        str | None, Field(description="Path of a text file of user ids to forget, one per line, raw or as pseudonyms")
    ] = None


class PromptConfig(Section):
    """The prompt that a model reads."""

    max_history: Annotated[
        int, Field(ge=0, description="Maximum number of reviews in the shown history, the most recent ones")
    ] = 8
    max_prompt_tokens: Annotated[
        int,
        Field(
            ge=32,
            description="Maximum number of tokens in a prompt; a long item is cut to half of it, then the oldest "
            "reviews of the history are left out",
        ),
    ] = 2048
    max_target_tokens: Annotated[
        int, Field(ge=1, description="Maximum number of tokens in a target review; a longer one is cut")
    ] = 2048
    template: Annotated[
        Literal["auto", "plain", "chat"],
        Field(
            description="Text around a prompt: none (plain) or the tokenizer's chat template (chat); auto decides by "
            "the model's name and files, and logs why"
        ),
    ] = "auto"
