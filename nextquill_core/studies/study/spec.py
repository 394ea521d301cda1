"""The YAML of a study: its base configuration, its seeds, and what each question varies."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from nextquill_core.config.base import OPERATIONAL, Positive, Section
from nextquill_core.config.loading import Config, lay_override, load_config, parse_config, set_key
from nextquill_core.config.packaged import FOLDER, leaves, named_file
from nextquill_core.config.yaml_text import InvalidYaml, parse_yaml
from nextquill_core.errors import UserError
from nextquill_core.methods.registry import METHODS
from nextquill_core.plugins import suggestion

STUDIES = FOLDER / "studies"
BASE = "base"
"""Name of the candidate that changes nothing."""
Overrides = dict[str, Any]
"""Values by dotted key, laid over the base configuration."""


class Choice(Section):
    """Candidates that are measured on val, and what the best of them is."""

    candidates: dict[str, Overrides] = {}
    """values by dotted key, by the candidate's name; `base` without any is always a candidate"""
    methods: tuple[str, ...] = ()
    """methods that choose, each for itself; empty: the study's `method`"""
    seeds: Positive = 1
    """number of seeds, the first ones, with which candidates run"""
    by: str = "personal_gain"
    """metric whose difference to the reference method under the same candidate is highest"""
    not_below: tuple[str, ...] = ("log_likelihood",)
    """metrics in which the candidate may not be below the reference method, as long as any is not"""

    @field_validator("by", "not_below")
    @classmethod
    def _measured_on_val(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        from nextquill_core.evaluation.metrics import METRICS

        known = [key for key, metric in METRICS.built_in.items() if not metric.judges_text]
        for name in (value,) if isinstance(value, str) else value:
            if name not in known:
                what = f"`{name}` is not measured on val, where no texts are generated"
                raise ValueError(f"{what}; {suggestion(name, known)}")
        return value

    @property
    def all_candidates(self) -> dict[str, Overrides]:
        """The candidates, `base` first."""
        return {BASE: {}, **self.candidates}


class StudyConfig(Section):
    """A study of one data set and one model."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    """name of the study in files and tables"""
    title: Annotated[str, Field(min_length=1)]
    """data and model in a few words, the heading of its results"""
    base: Annotated[str, Field(min_length=1)]
    """base configuration: a path, or the name of a packaged one"""
    settings: dict[str, Any] = {}
    """sections laid over the base configuration"""
    store: Annotated[str | None, OPERATIONAL] = None
    """artifact store; null: the base configuration's"""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    """seeds of the test rows"""
    first_seed_only: tuple[str, ...] = ()
    """rows that are measured under the first seed alone; they are compared under that seed"""
    method: str = "nextquill"
    """the method under study"""
    reference: str = "contextsft"
    """the method that all others are compared with"""
    methods: tuple[str, ...] = ()
    """rows of question 2, beside the two above"""
    effects: dict[str, Overrides] = {}
    """models whose effects question 1 compares with the exact ones, beside the base's: values by dotted key, by name;
    `ingest` may differ too"""
    parts: Choice = Choice()
    """α and λ of each method of question 2"""
    decoding_methods: tuple[str, ...] = ()
    """rows of question 4: methods that decode with an adapter of question 2"""
    decoding: tuple[str, ...] = ("sane",)
    """decoding presets of the test rows; empty: no texts are generated"""
    variants: Choice = Choice()
    """what question 5 varies; the best becomes the recommended setting"""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 10000
    """least number of resamples of users and seeds"""

    @model_validator(mode="after")
    def _is_consistent(self) -> StudyConfig:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds names one twice")
        if self.method in self.first_seed_only or self.reference in self.first_seed_only:
            raise ValueError(f"first_seed_only must not name {self.method} or {self.reference}")
        for name, choice in (("parts", self.parts), ("variants", self.variants)):
            if choice.seeds > len(self.seeds):
                raise ValueError(f"{name}.seeds is {choice.seeds}, but the study has {len(self.seeds)} seeds")
            if unknown := [method for method in choice.methods if method not in self.rows]:
                raise ValueError(f"{name}.methods names {unknown[0]}, which is not among methods")
        fixed = {"seed", "evaluate.split", "evaluate.methods", "evaluate.decoding", "train.method"}
        if taken := fixed & dict(leaves(self.settings)).keys():
            raise ValueError(f"settings sets {min(taken)}, which the study itself sets")
        varied = {"parts.candidates": self.parts.candidates, "variants.candidates": self.variants.candidates}
        for where, candidates in (*varied.items(), ("effects", self.effects)):
            if BASE in candidates:
                raise ValueError(f"{where} names one `{BASE}`, which stands for the base configuration; rename it")
            for candidate, overrides in candidates.items():
                if taken := (fixed | {"store"}) & overrides.keys():
                    raise ValueError(f"{where}.{candidate} sets {min(taken)}, which the study itself sets")
        return self

    @property
    def rows(self) -> tuple[str, ...]:
        """The methods of question 2 in the order of its table."""
        return tuple(dict.fromkeys((*self.methods, self.reference, self.method)))

    def choosing(self, choice: Choice) -> tuple[str, ...]:
        """Return the methods that choose among the candidates of a choice."""
        return choice.methods or (self.method,)

    def config(
        self, overrides: Mapping[str, Any], *, methods: Sequence[str], split: str, seed: int, decoding: Sequence[str]
    ) -> Config:
        """Return the configuration of a cell.

        Args:
            overrides: Values by dotted key.
            methods: The methods that it measures; the first that trains becomes `train.method`.
            split: `val` or `test`.
            seed: The seed.
            decoding: Decoding presets; none for likelihoods alone.

        Raises:
            UserError: The base is missing, a key is unknown, or a value does not fit.
        """
        values = load_config(named_file(self.base, FOLDER, "configuration", "base")).model_dump(mode="json")
        _lay(values, self.settings)
        if self.store:
            values["store"] = self.store
        trained = [name for name in methods if name in METHODS and METHODS[name].training]
        own: Overrides = {
            "evaluate.methods": list(methods),
            "evaluate.split": split,
            "evaluate.decoding": list(decoding),
        }
        own["seed"] = seed
        if trained:
            own["train.method"] = trained[0]
        for key, value in {**overrides, **own}.items():
            set_key(values, key, value)
        return parse_config(values, f"study {self.name}").with_overridden([*overrides, "seed", "evaluate.split"])


def load_study(name: str | Path, overrides: Sequence[str] = (), store: str | None = None) -> StudyConfig:
    """Read the YAML file of a study.

    Args:
        name: The file, or the name of a packaged study.
        overrides: `dotted.key=value` on the base configuration, the value in YAML; they replace the study's `settings`.
            `STUDY:dotted.key=value` is for the study of that name alone.
        store: Artifact store that replaces the study's.

    Raises:
        UserError: The file is missing or not a YAML mapping, a key is unknown, or a value is invalid.
    """
    path = named_file(str(name), STUDIES, "study", "--config")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config ({error.strerror})", str(path), "name a file with --config") from None
    except (InvalidYaml, UnicodeDecodeError) as error:
        raise UserError(f"not valid YAML: {error}", str(path), "fix the file") from None
    if not isinstance(values, dict):
        raise UserError("a study is a YAML mapping", str(path), "see configs/studies/quick.yaml")
    settings = values.setdefault("settings", {}) or {}
    if isinstance(settings, dict):
        for text in overrides:
            scope, separator, scoped = text.partition("=")[0].rpartition(":")
            if not separator:
                lay_override(settings, text)
            elif scope == values.get("name"):
                lay_override(settings, scoped + text[text.index("=") :])
        values["settings"] = settings
    return parse_study(values | ({"store": store} if store else {}), str(path))


def parse_study(values: Mapping[str, Any], where: str) -> StudyConfig:
    """Return the study made of plain values; `where` is their origin, for messages.

    Raises:
        UserError: A key is unknown, or a value is invalid.
    """
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        remedy = "see docs/how-to/study.md"
        raise UserError(f"`{key}`: {what}" if key else what, where, remedy) from None


def _lay(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Lay nested values over others, in place; a value that is no section replaces the other one whole."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _lay(values[key], value)
        else:
            values[key] = copy.deepcopy(value)
