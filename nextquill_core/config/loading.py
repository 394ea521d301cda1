"""The whole configuration, and reading it from a YAML file and the command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from nextquill_core.config.base import NON_EMPTY, OPERATIONAL, NonNegative, Section, section_of
from nextquill_core.config.data import IngestConfig, PrivacyConfig, PromptConfig
from nextquill_core.config.evaluate import EvaluateConfig
from nextquill_core.config.messages import SEE, explained, first_error
from nextquill_core.config.model import ModelConfig
from nextquill_core.config.prices import PricesConfig
from nextquill_core.config.score import ScoreConfig, WeightsConfig
from nextquill_core.config.secrets import first_secret
from nextquill_core.config.slurm import SlurmJobs
from nextquill_core.config.train import TrainConfig
from nextquill_core.config.yaml_text import (
    DEEPEST,
    LARGEST_BYTES,
    LARGEST_SEED,
    InvalidYaml,
    first_odd_value,
    parse_yaml,
    shortened,
)
from storage.errors import UserError
from storage.redaction import register_secret

KEYS_OF_STUDIES = {"name", "title", "base"}
"""Keys that every study has and that no configuration has."""
STORES = "`store` takes one place, or two: {read: s3://team/prod, write: ./mine}"


class Config(Section):
    """The settings of a whole run."""

    store: Annotated[str, NON_EMPTY, OPERATIONAL] = "./artifacts"
    """Artifact store: a folder, s3://bucket/prefix or gs://bucket/prefix; or {read: …, write: …}, which sets read_store
    too"""
    read_store: Annotated[str | None, NON_EMPTY, OPERATIONAL] = None
    """Second artifact store, whose artifacts are used and which is never written, such as a team's; null: none"""
    seed: Annotated[NonNegative, Field(le=LARGEST_SEED)] = 42
    """Seed of all random draws"""
    model: ModelConfig = ModelConfig()
    ingest: IngestConfig = IngestConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    prompt: PromptConfig = PromptConfig()
    score: ScoreConfig = ScoreConfig()
    weights: WeightsConfig = WeightsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    slurm: Annotated[SlurmJobs, OPERATIONAL] = SlurmJobs()
    prices: Annotated[PricesConfig, OPERATIONAL] = PricesConfig()
    _overridden: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="before")
    @classmethod
    def _one_store_or_two(cls, values: Any) -> Any:
        places = values.get("store") if isinstance(values, Mapping) else None
        if not isinstance(places, Mapping):
            return values
        if set(places) != {"read", "write"} or values.get("read_store") is not None:
            raise PydanticCustomError("stores", STORES)
        return {**values, "store": places["write"], "read_store": places["read"]}

    @model_validator(mode="after")
    def _every_value_can_be_stored(self) -> Config:
        if found := first_odd_value(self):
            key, what = found
            raise PydanticCustomError("odd_value", "`{key}` {what}", {"key": key, "what": what})
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> Config:
        if found := first_secret(self):
            key, what, remedy = found
            raise PydanticCustomError("secret", "`{key}` holds {what}", {"key": key, "what": what, "remedy": remedy})
        return self

    @model_validator(mode="after")
    def _variables_are_masked(self) -> Config:
        for name in (self.privacy.key_env, self.evaluate.server.api_key_env, self.evaluate.judge.api_key_env):
            register_secret(variable=name)
        return self

    @property
    def overridden(self) -> tuple[str, ...]:
        """The dotted keys whose values replace those of the file; they name a run."""
        return self._overridden

    def with_overridden(self, keys: Iterable[str]) -> Config:
        """Return the same settings with a record of the keys that replace values of the file."""
        copy = self.model_copy()
        copy._overridden = tuple(dict.fromkeys(keys))
        return copy


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration; overrides replace values of the file, which replace the defaults.

    Args:
        path: The YAML file.
        overrides: `dotted.key=value`, the value in YAML.

    Raises:
        UserError: The file is missing or not a YAML mapping, a key is unknown, or a value is invalid.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would block and a device never ends
            raise UserError("the config is not a file", str(path), "name a file with --config")
        with path.open("rb") as file:
            text = file.read(LARGEST_BYTES + 1).decode("utf-8-sig")
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"the config is not UTF-8 text ({error.reason})", str(path), "save it as UTF-8") from None
    except (OSError, ValueError) as error:  # a NUL character in the name is a ValueError
        reason = error.strerror or type(error).__name__ if isinstance(error, OSError) else error
        raise UserError(
            f"cannot read the config ({reason})", shortened(str(path)), "name a file with --config"
        ) from None
    try:
        loaded = parse_yaml(text)
    except InvalidYaml as error:
        raise UserError(f"not valid YAML: {error}", str(path), "fix the file") from None
    values = loaded if loaded is not None else {}
    if not isinstance(values, dict):
        raise UserError("a config is a YAML mapping of sections", str(path), "see configs/demo.yaml")
    if values.keys() >= KEYS_OF_STUDIES:
        what = "this is a study, not a configuration"
        raise UserError(what, str(path), f"run it with `nextquill study --config {path}`")
    for override in overrides:
        lay_override(values, override)
    keys = (override.partition("=")[0] for override in overrides)
    return parse_config(values, where=str(path)).with_overridden(keys)


def parse_config(values: Mapping[str, Any], where: str) -> Config:
    """Return the configuration made of plain values; `where` is their origin, for messages.

    Raises:
        UserError: A key is unknown, or a value is invalid.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _explained(error, where) from None
    except RecursionError:
        raise UserError("a value is nested too deeply", where, SEE) from None


def lay_override(values: dict[str, Any], override: str) -> None:
    """Set one value of a configuration given as plain values.

    Args:
        values: The plain values; they are changed.
        override: `dotted.key=value`, the value in YAML.

    Raises:
        UserError: It has another form, or a part of the key before the last is a value and no section.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(
            f"--set takes KEY=VALUE, got {shortened(override)!r}", remedy="for example --set train.alpha=0.1"
        )
    try:
        value = parse_yaml(text)
    except InvalidYaml as error:
        raise UserError(f"--set {shortened(key)}: the value is not valid YAML ({error})", remedy="quote it") from None
    parts = key.split(".")
    if len(parts) > DEEPEST or not all(parts):
        raise UserError(f"--set {shortened(key)}: not a key", remedy=SEE)
    set_key(values, key, value, f"--set {key}")


def set_key(values: dict[str, Any], key: str, value: Any, where: str = "") -> None:
    """Set one value of a configuration given as plain values; sections that are missing or null are made.

    Args:
        values: The plain values; they are changed.
        key: The dotted key.
        value: The value.
        where: Where the key was given, for messages; by default the key itself.

    Raises:
        UserError: A part of the key before the last is a value and no section.
    """
    *parents, last = key.split(".")
    section: Any = values
    for name in parents:
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            raise UserError(f"{name} is a value, not a section", where or key, SEE)
    section[last] = value


def _explained(error: ValidationError, where: str) -> UserError:
    errors = error.errors(include_url=False)
    if odd := [each for each in errors if each["type"] == "odd_value"]:
        return UserError(odd[0]["msg"], where, "set another value")
    if secrets := [each for each in errors if each["type"] == "secret"]:
        key = ".".join(map(str, secrets[0]["loc"]))
        what = f"`{key}`: {secrets[0]['msg']}" if key else f"{secrets[0]['msg']}, and settings are stored"
        return UserError(what, where, secrets[0]["ctx"]["remedy"])
    key, errors_of_key = first_error(Config, errors)
    if errors_of_key[0]["type"] == "extra_forbidden":
        by_last = {known.rpartition(".")[2]: known for known in known_keys()}
        near = difflib.get_close_matches(key, list(known_keys()), n=1, cutoff=0.5) or [
            by_last[last] for last in difflib.get_close_matches(key.rpartition(".")[2], list(by_last), n=1)
        ]
        remedy = f"did you mean `{near[0]}`?" if near else "remove it"
        return UserError(f"unknown config key `{shortened(key)}`", where, remedy)
    what, remedy = explained(Config, errors_of_key)
    key = re.sub(r"(\.\d+)+$", "", key)  # the message names an element of a list by its value
    return UserError(f"`{key}`: {what}" if key else what, where, remedy)


def known_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key, each section before its keys."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from known_keys(kind, f"{prefix}{name}.")


def operational_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key and section that says how a stage runs and not what it makes."""
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("operational"):
            yield prefix + name
        elif (inner := section_of(field)) is not None:
            yield from operational_keys(inner, f"{prefix}{name}.")
