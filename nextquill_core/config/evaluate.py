"""Settings of the evaluate stage: methods, decoding presets, metrics, and what each needs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from nextquill_core.config.base import NON_EMPTY, OPERATIONAL, MethodName, NonNegative, Positive, Section, variable_name
from nextquill_core.methods.registry import BASE_MODEL, METHODS
from nextquill_core.plugins import Plugins, suggestion

DecodingName = Literal["paper", "sane"]

ADDED_METRICS = Plugins[object]("metric", "nextquill.metrics", "evaluate.metrics", {})
"""The metrics of other packages by name; `evaluation.metrics.METRICS` has the built-in ones too."""


class RetrievalConfig(Section):
    """The encoders that the method `contriever`, the metric BERTScore and the author metric use."""

    encoder: Annotated[str, NON_EMPTY] = "facebook/contriever"
    """encoder of `contriever`: a folder or hub name with safetensors weights; minilm: all-MiniLM-L6-v2 from an
    installed package or the hub; base: the base model's own hidden states, which works offline"""
    revision: Annotated[str, NON_EMPTY] = "main"
    """branch, tag or commit of the encoder on the hub"""
    bertscore: Annotated[str | None, NON_EMPTY] = None
    """encoder of BERTScore: a folder or hub name; minilm: all-MiniLM-L6-v2 from an installed package or the hub; null:
    BERTScore is not measured"""
    bertscore_revision: Annotated[str, NON_EMPTY] = "main"
    """branch, tag or commit of the BERTScore encoder on the hub"""
    author: Annotated[str | None, NON_EMPTY] = None
    """encoder of the author metric: a folder or hub name; minilm: all-MiniLM-L6-v2 from an installed package or the
    hub; base: the base model's own hidden states; null: the author metric is not measured"""
    author_revision: Annotated[str, NON_EMPTY] = "main"
    """branch, tag or commit of the author metric's encoder on the hub"""


class SummariesConfig(Section):
    """How `llm-trsr` summarises a history: block by block, each summary is part of the prompt for the next."""

    newest: NonNegative = 2
    """number of newest reviews that are shown unsummarised"""
    block: Positive = 4
    """number of reviews added to the summary in one step"""
    max_tokens: Positive = 256
    """maximum number of tokens in one summary"""


PERSONAL_TARGETS = ("q_proj", "v_proj")
"""Names of the layers that a user's adapter changes."""


class PersonalConfig(Section):
    """How `oppu` and `cope` train one adapter per user on an adapter of other users (OPPU, arXiv 2402.04401)."""

    folds: Annotated[int, Field(ge=2)] = 2
    """number of parts of the users; one shared adapter is trained without each part"""
    r: Positive = 8
    """LoRA rank of a user's adapter"""
    alpha: Positive = 8
    """LoRA alpha; a user's adapter is scaled by alpha / r"""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """learning rate of AdamW for the users' adapters"""
    epochs: Positive = 2
    """number of passes over a user's history"""


class PeersConfig(Section):
    """The encoder by which `dpl` and `dep` compare a user's reviews with those of other users."""

    encoder: Annotated[str, NON_EMPTY] = "minilm"
    """a folder or hub name; minilm: all-MiniLM-L6-v2 from an installed package or the hub; base: the base model's own
    hidden states, which works offline"""
    revision: Annotated[str, NON_EMPTY] = "main"
    """branch, tag or commit of the encoder on the hub"""


class ProfilesConfig(Section):
    """What the base model writes about a user before `pag` and `dpl` generate."""

    reviews: Positive = 8
    """number of past reviews that a profile is made of: the newest of `pag`, those nearest to the query of `dpl`"""
    max_tokens: Positive = 256
    """maximum number of tokens in one profile"""
    compared: Positive = 8
    """maximum number of past reviews that `dpl` compares with reviews of other users, those nearest to the query"""
    others: Positive = 4
    """number of representative other users in one comparison; items with fewer other reviewers are not compared"""
    difference_tokens: Positive = 256
    """maximum number of tokens in one comparison"""


class DepConfig(Section):
    """How `dep` learns soft tokens from the differences of users' reviews to those of others (arXiv 2507.20849)."""

    reviews: Positive = 8
    """maximum number of past reviews with two soft tokens each: the newest ones whose items others have reviewed too"""
    epochs: Positive = 5
    """number of passes over the newest train example of each user"""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """learning rate of AdamW for the autoencoder and the networks that make soft tokens"""


class StyleConfig(Section):
    """How `stylevector` finds a user's style vector (StyleVector, arXiv 2503.05213)."""

    newest: Positive | None = None
    """number of newest past reviews that a user's vector is made of; null: all of them, as published"""
    max_tokens: Positive = 256
    """maximum number of tokens in one style-free text, which the base model writes for each of these reviews"""


class EndpointConfig(Section):
    """A server with an OpenAI-compatible API."""

    url: Annotated[str, NON_EMPTY, OPERATIONAL] = "http://127.0.0.1:8000/v1"
    """address of the server, up to and including /v1"""
    api_key_env: Annotated[str | None, OPERATIONAL] = None
    """name of the environment variable that holds the API key"""
    concurrency: Annotated[Positive, OPERATIONAL] = 16
    """number of requests in flight at a time"""
    timeout_s: Annotated[float, Field(gt=0), OPERATIONAL] = 600.0
    """seconds without any data after which a request fails"""
    retries: Annotated[NonNegative, OPERATIONAL] = 6
    """number of times a failed request is repeated"""

    _names_a_variable = field_validator("api_key_env")(variable_name)


class ServerConfig(EndpointConfig):
    """A server with an OpenAI-compatible API (vLLM, SGLang, TGI, `transformers serve`), for `engine: openai`."""

    models: dict[str, str] = {}
    """the server's model name for each method, and under `base` for all methods that do not train (vLLM serves each
    adapter under a name); a changed name generates the texts of its method again"""

    @field_validator("models")
    @classmethod
    def _of_known_methods(cls, models: dict[str, str]) -> dict[str, str]:
        known = (BASE_MODEL, *METHODS)
        for name in models:
            if name not in known:
                raise ValueError(f"`{name}` is no method; {suggestion(name, known)}")
        return models


class JudgeConfig(EndpointConfig):
    """A model behind an OpenAI-compatible API that judges texts by a rubric of the user's own aspects."""

    model: Annotated[str | None, NON_EMPTY] = None
    """the server's name of the judge; past reviews, true reviews and generated texts are sent to it; null: no judge"""
    reviews: Positive = 8
    """number of newest past reviews that a user's rubric is made of"""
    aspects: Positive = 5
    """number of aspects in a rubric"""
    max_tokens: Positive = 1024
    """maximum number of tokens in one answer of the judge"""


class EvaluateConfig(Section):
    """Methods, decoding presets and metrics."""

    split: Literal["test", "val"] = "test"
    """split that is generated for and measured on"""
    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] = ("qwen", "latestk", "contextsft", "nextquill")
    """methods to compare, the rows of the tables; see `nextquill methods`"""
    decoding: tuple[DecodingName, ...] = ("paper", "sane")
    """decoding presets: paper: as published; sane: no repetition penalty, greedy or sampled, whichever is better on
    val; an empty list: no texts are generated, and only likelihoods are measured"""
    engine: Literal["transformers", "openai"] = "transformers"
    """what generates the texts: transformers: this process; openai: the server evaluate.server"""
    server: ServerConfig = ServerConfig()
    judge: JudgeConfig = JudgeConfig()
    max_new_tokens: Positive = 512
    """maximum number of tokens generated under `sane`"""
    paper_max_new_tokens: Positive = 2048
    """maximum number of tokens generated under `paper`"""
    metrics: tuple[str, ...] = ()
    """metrics of other packages to measure beside the built-in ones; see `nextquill metrics`"""
    choose_by: Literal["rouge1", "rougeL", "rouge1_unicode", "rougeL_unicode", "meteor", "bleu"] = "rouge1"
    """metric of texts on val that chooses how `sane` decodes and how strongly a method steers; rouge1 and rougeL are
    replaced by their Unicode forms where they ignore more than 5 % of the letters of the reviews"""
    choose_strength_by: Literal["texts", "likelihood"] = "texts"
    """what decides on val how strongly a method steers: texts: choose_by, on texts generated with each strength;
    likelihood: the log-likelihood of the true reviews, which takes one pass for all strengths"""
    control: Literal["stranger", "likelihood", "none"] = "stranger"
    """stranger: methods that show the newest reviews are also measured with another user's history, which the personal
    gain needs; likelihood: the same without generating texts, by the likelihoods alone; none: no such control"""
    preference_tokens: Annotated[tuple[Literal["initial", "crossfit", "exact"], ...], Field(min_length=1)] = (
        "initial",
    )
    """sets of preference tokens to measure on: initial: those with an effect above weights.delta in the score stage,
    which weights the training; crossfit: the same under adapters that were trained without the user (score.folds);
    exact: words that a synthetic category drew by the user's taste"""
    repeated_targets: Literal["keep", "leave_out"] = "keep"
    """target reviews whose text occurs in an earlier review of the same user: keep: measure them, as published;
    leave_out: exclude them from the metrics (texts are generated in any case)"""
    retrieval: RetrievalConfig = RetrievalConfig()
    summaries: SummariesConfig = SummariesConfig()
    personal: PersonalConfig = PersonalConfig()
    style: StyleConfig = StyleConfig()
    peers: PeersConfig = PeersConfig()
    profiles: ProfilesConfig = ProfilesConfig()
    dep: DepConfig = DepConfig()
    batch_tokens: Annotated[int | None, Field(ge=1), OPERATIONAL] = None
    """maximum number of token positions in a generation batch, prompts and padding included; null: as many as fit into
    half of the free memory, at most 262,144"""
    pictured_tokens: NonNegative = 2000
    """maximum number of preference tokens whose hidden states the report shows in clusters; 0: none"""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 10000
    """number of bootstrap resamples of users for intervals and p-values"""

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in ADDED_METRICS:
                known = list(ADDED_METRICS)
                what = suggestion(name, known) if known else "no installed package adds one"
                raise PydanticCustomError(
                    "unknown_metric", "{message}", {"message": f"unknown metric `{name}`; {what}"}
                )
        return names

    @model_validator(mode="after")
    def _each_once(self) -> EvaluateConfig:
        for name in ("methods", "decoding", "metrics", "preference_tokens"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} names one twice")
        return self

    def measuring(self) -> dict[str, Any]:
        """Return the settings that decide the numbers once the texts exist, without the encoders of metrics."""
        keys = ["split", "methods", "decoding", "control", "bootstrap_samples", "repeated_targets"]
        keys += ["metrics"] if self.metrics else []
        keys += ["preference_tokens"] if self.preference_tokens != ("initial",) else []
        return {key: value for key, value in self.fingerprint_fields().items() if key in keys}
