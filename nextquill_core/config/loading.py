"""A whole configuration: from a YAML file, with what the command line lays over it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import Field, ValidationError

from nextquill_core.config.base import OPERATIONAL, Section
from nextquill_core.config.data import IngestConfig, PrivacyConfig, PromptConfig
from nextquill_core.config.evaluate import EvaluateConfig
from nextquill_core.config.model import ModelConfig
from nextquill_core.config.score import ScoreConfig, WeightsConfig
from nextquill_core.config.slurm import SlurmJobs
from nextquill_core.config.train import TrainConfig
from storage.errors import UserError


class Config(Section):
    """A whole run."""

    store: Annotated[
        str,
        Field(
            description="artifact store: a folder, s3://bucket/prefix or gs://bucket/prefix",
            json_schema_extra=OPERATIONAL,
        ),
    ] = "./artifacts"
    seed: Annotated[int, Field(ge=0, description="of everything that is drawn at random")] = 42
    model: ModelConfig = ModelConfig()
    ingest: IngestConfig = IngestConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    prompt: PromptConfig = PromptConfig()
    score: ScoreConfig = ScoreConfig()
    weights: WeightsConfig = WeightsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    slurm: Annotated[SlurmJobs, Field(json_schema_extra=OPERATIONAL)] = SlurmJobs()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and lay `a.b=value` overrides over it (command line over file over defaults).

    Args:
        path: The YAML file.
        overrides: `dotted.key=value`, the value in YAML.

    Raises:
        UserError: The file is missing or not a YAML mapping, a key is unknown, or a value does not fit.
    """
    path = Path(path)
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config ({error.strerror})", str(path), "name a file with --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not valid YAML: {error}", str(path), "mend the file") from None
    values = loaded if loaded is not None else {}
    if not isinstance(values, dict):
        raise UserError("a config is a YAML mapping of sections", str(path), "see configs/demo.yaml")
    for override in overrides:
        _lay_over(values, override)
    return parse_config(values, where=str(path))


def parse_config(values: Mapping[str, Any], where: str) -> Config:
    """Check plain values against the schema; `where` names their origin in the error."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _first_fault(error, where) from None


def _lay_over(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set takes KEY=VALUE, got {override!r}", remedy="for example --set train.alpha=0.1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {key}: the value is not valid YAML", remedy="quote it") from None
    *parents, last = key.split(".")
    section = values
    for name in parents:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise UserError(f"--set {key}: {name} is a value, not a section", remedy="see docs/configuration.md")
    section[last] = value


def _first_fault(error: ValidationError, where: str) -> UserError:
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, list(known_keys()), n=1, cutoff=0.5) or difflib.get_close_matches(
            key.rpartition(".")[2], [known.rpartition(".")[2] for known in known_keys()], n=1
        )
        remedy = f"did you mean `{near[0]}`?" if near else "remove it"
        return UserError(f"unknown config key `{key}`", where, remedy)
    return UserError(f"`{key}`: {fault['msg']}", where, f"got {fault['input']!r}")


def known_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """The dotted name of every key, sections first."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from known_keys(kind, f"{prefix}{name}.")
