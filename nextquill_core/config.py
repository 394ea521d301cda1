"""Every setting of a run, one frozen model a stage: the YAML schema, the form in the Prefect UI and the record in a
manifest are all made from these classes.

Defaults are the paper's values (NextQuill, arXiv 2506.02368) unless a description says otherwise. A field tagged
`OPERATIONAL` says how a stage is run and never what it produces, so it takes no part in fingerprints.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from storage.errors import UserError

OPERATIONAL = {"operational": True}
MethodName = Literal["qwen", "latestk", "sft", "contextsft", "causal-only", "norm-only", "nextquill"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def semantic(self) -> dict[str, Any]:
        """The fields that decide what a stage produces, as JSON values; operational ones are left out, at any depth."""
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("operational"):
                continue
            value = getattr(self, name)
            values[name] = value.semantic() if isinstance(value, Section) else _plain(value)
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.semantic()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    return value


class TinyModelConfig(Section):
    """The offline base model that `model.name_or_path: tiny` trains: a byte-level BPE tokenizer and a small Qwen2."""

    vocab_size: Annotated[int, Field(ge=300, description="BPE vocabulary, special tokens included")] = 2048
    hidden_size: Annotated[int, Field(ge=16, multiple_of=16)] = 128
    layers: Positive = 3
    heads: Positive = 4
    steps: Annotated[int, Field(ge=1, description="AdamW steps of pretraining")] = 600
    batch_tokens: Annotated[int, Field(ge=128, description="tokens a step")] = 2048
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3


class ModelConfig(Section):
    """The initial model θ0."""

    name_or_path: Annotated[str, Field(description="a hub name, a local Hugging Face folder, or `tiny`")] = (
        "Qwen/Qwen2.5-3B"
    )
    revision: str = "main"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    attention: Annotated[
        Literal["auto", "eager", "sdpa", "flash_attention_2"], Field(json_schema_extra=OPERATIONAL)
    ] = "auto"
    trust_remote_code: Annotated[bool, Field(description="run Python code that comes with the model")] = False
    tiny: TinyModelConfig = TinyModelConfig()


class RawInput(Section):
    """One category's raw files."""

    category: Annotated[str, Field(min_length=1)]
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
    min_description_chars: NonNegative = 100
    max_description_chars: Positive = 2000
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
    options: Annotated[dict[str, Any], Field(description="what the source itself asks for; see docs/sources.md")] = {}
    inputs: Annotated[tuple[RawInput, ...], Field(min_length=1)] = (RawInput(category="Books"),)
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
    forget: Annotated[
        str | None, Field(description="text file of user ids, one a line, raw or as pseudonyms, who must not appear")
    ] = None


class PromptConfig(Section):
    """What the model reads."""

    max_history: Annotated[int, Field(ge=0, description="most recent past reviews shown")] = 8
    max_prompt_tokens: Annotated[int, Field(ge=32)] = 2048
    max_target_tokens: Annotated[int, Field(ge=1, description="longer reviews are cut at this many tokens")] = 2048
    template: Annotated[
        Literal["auto", "plain", "chat"], Field(description="auto: chat for instruct models, plain for base models")
    ] = "auto"


class ScoreConfig(Section):
    """Causal effects of every ground-truth token under θ0."""

    effect_source: Literal["initial"] = "initial"
    batch_tokens: Annotated[
        int, Field(ge=1, description="token budget of one forward pass", json_schema_extra=OPERATIONAL)
    ] = 16384


class WeightsConfig(Section):
    """Eq. 3: ω = high where the effect exceeds delta, else low."""

    delta: Annotated[float, Field(ge=-1, le=1, description="δ, a difference of probabilities")] = 0.05
    high: Annotated[float, Field(ge=0, description="λ, the weight of preference tokens")] = 0.9
    low: Annotated[float, Field(ge=0, description="ε, the weight of the other tokens")] = 0.1


class LoraSettings(Section):
    """LoRA; rank and targets are nowhere stated in the paper, these are the field's habit."""

    r: Positive = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: str = "all-linear"


class DeepSpeedConfig(Section):
    """What DeepSpeed is asked for."""

    zero_stage: Literal[0, 1, 2, 3] = 2


class LauncherConfig(Section):
    """Where the ranks run."""

    kind: Literal["local"] = "local"
    processes: Annotated[int | Literal["auto"], Field(description="ranks; auto: one an accelerator, one on a CPU")] = (
        "auto"
    )


class TrainConfig(Section):
    """A LoRA adapter on L = L_n + α·L_p (Eqs. 5 to 7)."""

    method: MethodName = "nextquill"
    alpha: Annotated[float, Field(ge=0, description="α, the share of the causal preference loss (Eq. 7)")] = 0.05
    normalization: Annotated[
        Literal["sequence", "weight"], Field(description="sequence: Eq. 5; weight: by Σω, as the official code")
    ] = "sequence"
    epochs: Positive = 5
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.025
    warmup_ratio: Share = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    global_batch: Annotated[int, Field(ge=1, description="examples an optimizer step, over all ranks")] = 16
    batch_tokens: Annotated[
        int, Field(ge=1, description="token budget of one micro-batch, both branches", json_schema_extra=OPERATIONAL)
    ] = 8192
    gradient_checkpointing: Annotated[bool, Field(json_schema_extra=OPERATIONAL)] = False
    checkpoint_every: Annotated[
        int, Field(ge=1, description="optimizer steps between checkpoints", json_schema_extra=OPERATIONAL)
    ] = 100
    keep_checkpoints: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 2
    lora: LoraSettings = LoraSettings()
    deepspeed: Annotated[DeepSpeedConfig, Field(json_schema_extra=OPERATIONAL)] = DeepSpeedConfig()
    launcher: Annotated[LauncherConfig, Field(json_schema_extra=OPERATIONAL)] = LauncherConfig()


class EvaluateConfig(Section):
    """Methods, decoding presets and metrics."""

    split: Literal["test", "val"] = "test"
    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] = ("qwen", "latestk", "contextsft", "nextquill")
    decoding: Annotated[tuple[Literal["paper", "sane"], ...], Field(min_length=1)] = ("paper", "sane")
    engine: Annotated[Literal["transformers"], Field(json_schema_extra=OPERATIONAL)] = "transformers"
    max_new_tokens: Positive = 512
    batch_tokens: Annotated[
        int, Field(ge=1, description="prompt tokens of one batch, with padding", json_schema_extra=OPERATIONAL)
    ] = 16384
    bootstrap_samples: Annotated[
        int, Field(ge=100, description="resamples of users behind each interval and p-value")
    ] = 10000


class Config(Section):
    """A whole run."""

    store: Annotated[str, Field(description="artifact store: a folder", json_schema_extra=OPERATIONAL)] = "./artifacts"
    seed: int = 42
    model: ModelConfig = ModelConfig()
    ingest: IngestConfig = IngestConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    prompt: PromptConfig = PromptConfig()
    score: ScoreConfig = ScoreConfig()
    weights: WeightsConfig = WeightsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


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
