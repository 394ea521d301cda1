"""Settings of the data: raw files, the data protocol, privacy, and the prompt."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nextquill_core.config.base import NON_EMPTY, OPERATIONAL, NonNegative, Positive, Section, Share, variable_name
from nextquill_core.records import TextKind


class SyntheticInput(Section):
    """A synthetic category in the layout of Amazon Reviews 2023, whose users have known tastes."""

    folder: Annotated[str, NON_EMPTY]
    """Folder of the files, which are written if they are missing"""
    users: Positive = 60
    """Number of regular users"""
    seed: NonNegative = 42
    """Seed of the category"""
    world: Literal["plain", "mixed"] = "plain"
    """How the users write. plain: each user in one style; mixed: in a main and a second style that other users share,
    with more common words and some reviews without any style"""


class RawInput(Section):
    """The raw files of one category."""

    category: Annotated[str, NON_EMPTY]
    """Name of the category; for a hub data set, its name there"""
    reviews: str | None = None
    """Path, address or glob of the review files; null downloads them from the hub"""
    items: str | None = None
    """Path, address or glob of the item metadata; null downloads it from the hub"""
    synthetic: SyntheticInput | None = None
    """Writes and reads a synthetic category instead of files of yours"""

    @model_validator(mode="after")
    def _one_place(self) -> RawInput:
        if self.synthetic and (self.reviews or self.items):
            raise ValueError("reviews and items name files, and synthetic writes others; leave one of them out")
        return self


class ProtocolConfig(Section):
    """Which reviews, users and items are kept, by the published data procedure (DPL), and how targets are split."""

    name: Literal["dpl", "global-time", "published"] = "dpl"
    """How targets are split. dpl: each user's last target is a test target; global-time: two points in time split the
    targets of all users, so that no training target is later than a test target; published: examples, histories and
    splits are those of the files (sources dpl and lamp), and no other setting of the protocol applies"""
    min_text_chars: NonNegative = 200
    """Minimum number of characters of a review text, blanks included"""
    min_user_reviews: Positive = 18
    """Minimum number of reviews of a user, not counting repeats"""
    max_user_reviews: Positive = 500
    """Maximum number of reviews of a user; users with more are left out"""
    min_item_users: Positive = 8
    """Minimum number of distinct users of an item"""
    n_targets: Annotated[int, Field(ge=3)] = 10
    """Number of targets per user, the newest reviews: all but two train, one is val, one is test"""
    min_profile_reviews: NonNegative = 8
    """Minimum number of reviews of a user before the first target"""
    min_profile_item_users: NonNegative = 5
    """Minimum number of distinct users of an item among these earlier reviews"""
    min_description_chars: NonNegative = 100
    """Minimum number of characters of an item description"""
    max_description_chars: Positive = 2000
    """Maximum number of characters of an item description; items with a longer one are left out"""
    require_rating: bool = True
    """Leave out reviews without a rating, if the data have ratings"""
    require_review_title: bool = True
    """Leave out reviews without a title, if the data have review titles"""
    require_item_title: bool = True
    """Leave out items without a title, if the data have item titles"""
    require_categories: bool = True
    """Leave out items without categories, if the data have categories"""
    require_rating_number: bool = True
    """Leave out items without a number of ratings, if the data have it"""
    val_from: date | None = None
    """For global-time: first day (UTC) of the val split"""
    test_from: date | None = None
    """For global-time: first day (UTC) of the test split"""
    val_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """For global-time without val_from: share of the targets in the val split"""
    test_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """For global-time without test_from: share of the targets in the test split, the newest"""

    @model_validator(mode="after")
    def _in_order(self) -> ProtocolConfig:
        if self.val_from and self.test_from and self.val_from >= self.test_from:
            raise ValueError("val_from must be earlier than test_from")
        if self.name != "global-time" and (self.val_from or self.test_from):
            raise ValueError("val_from and test_from belong to the protocol global-time")
        return self

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the settings that decide the examples; for published ones, no threshold does."""
        return {"name": self.name} if self.name == "published" else super().fingerprint_fields()


HtmlCleaning = Literal["keep", "unescape", "strip"]


class CleanConfig(Section):
    """What is cleaned in texts before the protocol counts characters and compares texts."""

    html: HtmlCleaning = "keep"
    """What happens to HTML in review texts, review titles, item titles and item descriptions. keep: nothing, as in the
    published procedure; unescape: `&quot;` and the like become characters; strip: tags are removed too"""


class IngestConfig(Section):
    """The ingest stage: from raw reviews and items to user sequences."""

    source: str = "amazon-2023"
    """Name of the source of raw data, as listed by `nextquill sources`"""
    options: dict[str, Any] = {}
    """Settings of the source itself; see docs/how-to/sources.md"""
    inputs: Annotated[tuple[RawInput, ...], Field(min_length=1)] = (RawInput(category="Books"),)
    """Categories with their raw files"""
    clean: CleanConfig = CleanConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    bad_rows: Literal["quarantine", "drop", "fail"] = "quarantine"
    """What happens to an unreadable row: list it in the quarantine, drop it, or fail"""
    max_bad_share: Share = 0.01
    """Maximum share of unreadable rows; with more the stage fails"""
    suspect_rows: Literal["list", "bad", "ignore"] = "list"
    """What happens to a row whose time is negative, in seconds or in the future, or whose rating is out of range. list:
    keep it, as the published procedure does, and list it in the quarantine; bad: treat it as unreadable; ignore: keep
    it"""

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

    pseudonymize: bool = False
    """Replace user ids by a keyed hash; raw texts of unreadable rows are then withheld"""
    key_env: Annotated[str, Field(min_length=1), OPERATIONAL] = "NEXTQUILL_PSEUDONYM_KEY"
    """Name of the environment variable that holds the key of the hash"""
    key_secret: Annotated[str | None, OPERATIONAL] = None
    """Name of a Prefect Secret block that holds the key of the hash"""
    _is_a_variable_name = field_validator("key_env")(variable_name)

    forget: str | None = None
    """Path of a text file of user ids to forget, one per line, raw or as pseudonyms"""


class PromptConfig(Section):
    """The prompt that a model reads."""

    max_history: NonNegative = 8
    """Maximum number of reviews in the shown history, the most recent ones"""
    max_prompt_tokens: Annotated[int, Field(ge=32)] = 2048
    """Maximum number of tokens in a prompt; a long item is cut to half of it, then the oldest reviews of the history
    are left out"""
    max_target_tokens: Positive = 2048
    """Maximum number of tokens in a target review; a longer one is cut"""
    template: Literal["auto", "plain", "chat"] = "auto"
    """Text around a prompt: none (plain) or the tokenizer's chat template (chat); auto decides by the model's name and
    files, and logs why"""
    writes: Literal["auto", TextKind] = "auto"
    """Kind of text that prompts ask for, which decides their words; auto: the kind that the source of the data holds"""

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the settings that decide a prompt; the plan adds the kind of text, which the source may decide."""
        values = super().fingerprint_fields()
        del values["writes"]
        return values
