"""The table of methods: what of the history each shows, how it is trained, and how it is decoded.

A new method is one row here, or an entry point of the group `nextquill.methods` in another package; see
docs/how-to/extend.md. The configuration reads this table to check names, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from nextquill_core.plugins import Plugins

if TYPE_CHECKING:
    from nextquill_core.records import Example, Review

Settings = TypeVar("Settings", bound=BaseModel)

BASE_ENCODER = "base"
"""Name of an encoder: the mean of θ0's own final hidden states."""

BASE_MODEL = "base"
"""Key of `evaluate.server.models` for the initial model, which generates for every method that does not train."""


@dataclass(frozen=True)
class Training:
    """How an adapter is trained: the terms of the loss.

    Attributes:
        weighted: Use preference weights ω; otherwise ω = 1.
        causal: Add α·L_p.
        policy: Weight policy that computes ω; None for the configured one.
        fixed: Settings of `train` that belong to the method and override the configuration. A mapping overrides only
            the keys that it has.
    """

    weighted: bool
    causal: bool
    policy: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, configured: Settings) -> Settings:
        """Return the `train` section that this method is trained with.

        Raises:
            ValidationError: The configured settings do not go with those that belong to the method.
        """
        values = configured.model_dump()
        for key, value in self.fixed.items():
            values[key] = {**values[key], **value} if isinstance(value, Mapping) else value
        if not self.causal:
            values["normal_loss"] = {"weighted": True}  # without L_p, weights have no other place
        return type(configured).model_validate(values)


@dataclass(frozen=True)
class Style:
    """Where and how strongly decoding adds a user's style vector (StyleVector).

    Attributes:
        depth: Share of the model's layers after which it is added, above 0 and up to 1.
        strength: α, the factor of the vector.
    """

    depth: float
    strength: float

    @property
    def label(self) -> str:
        """The two numbers, as in `0.5x1`."""
        return f"{self.depth:g}x{self.strength:g}"


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: Name in `evaluate.methods`.
        summary: One line for people.
        shown: What of the user's history the prompt shows: `nothing`, the `newest` reviews, those nearest to the query
            by `contriever` or `bm25` (all up to `prompt.max_history`), a `summary` of the older reviews beside the
            newest, or a `profile` beside those nearest by BM25, made of the user's reviews alone or of their
            `differences` to other users' too, or the `newest` reviews after soft tokens of differences to the reviews
            of `peers`. A method with `select` names its own way; the name enters fingerprints.
        training: None for the base model without an adapter.
        personal: One more adapter per user, trained on the user's own history on top of an adapter of other users.
        adapter: Name of the method whose adapter this one uses instead of training its own.
        strengths: Values of λ for decoding that is steered away from the distribution without history (CoS):
            log p ∝ log p_h + λ(log p_h − log p_∅). The one that is best on val is used. Empty for no steering.
        samples: Decoding samples, by the decoding `sampled`, where the other methods decode as the preset `paper`.
        contrasted: Decoding contrasts the user's adapter with the adapter of other users (CoPe).
        styles: Layers and strengths for decoding that adds the user's style vector (StyleVector). The pair that is best
            on val is used. Empty for no style vector.
        select: Chooses the reviews to show: (example, number) to at most that many reviews of the example's history,
            oldest first. The example comes without the target's text. Only for methods that do not train.
    """

    name: str
    summary: str
    shown: str
    training: Training | None = None
    personal: bool = False
    select: Callable[[Example, int], Sequence[Review]] | None = None
    adapter: str | None = None
    strengths: tuple[float, ...] = ()
    samples: bool = False
    contrasted: bool = False
    styles: tuple[Style, ...] = ()

    @property
    def history(self) -> bool:
        """Whether the prompt shows anything of the history."""
        return self.shown != "nothing"

    @property
    def soft(self) -> bool:
        """Whether the prompt begins with soft tokens that are trained for the frozen model (DEP)."""
        return self.shown == "peers"

    @property
    def steered(self) -> bool:
        """Whether decoding is steered away from the distribution without history."""
        return bool(self.strengths)

    @property
    def controlled(self) -> bool:
        """Whether the method is also measured with a stranger's history: it shows the newest reviews."""
        return self.shown in ("newest", "peers")

    @property
    def tuned(self) -> bool:
        """Whether val decides how decoding is changed: how strongly it is steered, or which style vector is added."""
        return self.steered or bool(self.styles)

    @property
    def individual(self) -> bool:
        """Whether each measured user has a separate part of the model: an adapter, a vector or soft tokens."""
        return self.personal or bool(self.styles) or self.soft

    @property
    def trained_as(self) -> str:
        """Name of the method whose training gives the adapter, if there is one."""
        return self.adapter or self.name


SHOWN = ("nothing", "newest", "contriever", "bm25", "summary", "profile", "differences", "peers")
"""Values of `Method.shown` that need no `select`."""

PLAIN = Training(weighted=False, causal=False)
OFFICIAL = Training(
    weighted=True,
    causal=True,
    fixed={
        "alpha": 0.1,
        "normalization": "sample_weight",
        "weights_from": "live",
        "normal_loss": {"weighted": True},
        "causal_loss": {"weighted": False, "target": "label", "counterfactual_grad": "through"},
    },
)
"""The definition in the official code (juntaoyou/NextQuill, May 2025), which is not the paper's in these settings."""
LIVE_PERCE = Training(
    weighted=True,
    causal=False,
    policy="perce",
    fixed={"normalization": "sample_tokens", "weights_from": "live"},
)
"""PerCE as published (arXiv 2603.06595, Eqs. 6 to 8): weights of the model in training, and each review's loss divided
by its number of tokens."""
ALIGNMENT = Training(
    weighted=True, causal=True, fixed={"causal_loss": {"weighted": True}, "normal_loss": {"weighted": False}}
)
"""The row "MCE-DCE alignment" of the paper's second version, as we read it: preference weights in L_p alone."""
STORED = {"weights_from": "stored"}
"""Belongs to methods whose weight policy reads more than effects, which the model in training cannot give."""


def _wrong(name: str, found: Any) -> str:
    """Return what is wrong with a method of another package, or ""."""
    if not isinstance(found, Method):
        return "is not a Method"
    if found.name != name:
        return f"is registered under this name but named `{found.name}`"
    if (found.select is None) != (found.shown in SHOWN):
        return f"shows `{found.shown}`: give it `select`, or one of {', '.join(SHOWN)}"
    if found.training and found.shown not in ("nothing", "newest"):
        return "trains, which needs shown=`nothing` or `newest`"
    if found.contrasted and not found.personal:
        return "contrasts adapters, which needs personal=True"
    if found.strengths and found.personal:
        return "steers and has personal adapters: leave one of them out"
    if found.styles and (found.strengths or found.personal or found.training or found.adapter):
        return "adds style vectors to a model that is trained or steered: leave one of them out"
    if found.soft and (found.strengths or found.styles or found.personal or found.adapter):
        return "has soft tokens beside another change of the model: leave one of them out"
    if found.adapter and (found.training or found.personal):
        return f"uses the adapter of `{found.adapter}` and trains: leave one of them out"
    trained = METHODS.built_in.get(found.adapter or "")
    if trained and not (trained.training and trained.shown == found.shown):
        return f"uses the adapter of `{trained.name}`, which is not trained on what this method shows"
    return ""


def _steered(adapter: str) -> Method:
    """Return the method that decodes another one's adapter away from its distribution without history."""
    summary = f"{adapter}, decoded away from its own distribution without history"
    return Method(f"{adapter}-steered", summary, "newest", adapter=adapter, strengths=(0.0, 0.25, 0.5, 1.0, 2.0))


METHODS = Plugins[Method](
    "method",
    "nextquill.methods",
    "evaluate.methods",
    {
        method.name: method
        for method in (
            Method("qwen", "the base model, no history", "nothing"),
            Method(
                "contriever", "the base model with the past reviews nearest to the query by Contriever", "contriever"
            ),
            Method("bm25", "the base model with the past reviews nearest to the query by BM25", "bm25"),
            Method("latestk", "the base model with the newest past reviews", "newest"),
            Method("llm-trsr", "the base model with a running summary and the newest past reviews", "summary"),
            Method(
                "pag",
                "the base model with a profile that it wrote of the user and the past reviews nearest by BM25 (PAG)",
                "profile",
            ),
            Method(
                "dpl",
                "pag, its profile made of differences to representative other users too (DPL)",
                "differences",
            ),
            Method(
                "cos",
                "latestk, decoded away from the base model without history (CoS)",
                "newest",
                strengths=(0.5, 1.0, 2.0, 3.0),
                samples=True,
            ),
            Method(
                "stylevector",
                "the base model, no history, plus the user's style vector in one layer (StyleVector)",
                "nothing",
                styles=tuple(Style(depth, strength) for depth in (0.5, 0.75) for strength in (0.25, 0.5, 1.0)),
            ),
            Method("sft", "LoRA on query → review, no history", "nothing", PLAIN),
            Method(
                "oppu", "sft on other users, then one LoRA a user on the user's own reviews", "nothing", personal=True
            ),
            Method(
                "cope",
                "oppu, decoded by contrast of the user's adapter with that of other users (CoPe without its DPO stage)",
                "nothing",
                personal=True,
                contrasted=True,
            ),
            Method(
                "dep",
                "latestk after soft tokens of how the user's reviews differ from others' of the same items (DEP)",
                "peers",
            ),
            Method("contextsft", "LoRA on query and history → review", "newest", PLAIN),
            Method(
                "perce",
                "contextsft, tokens weighted by their clipped log-ratio with and without history",
                "newest",
                Training(weighted=True, causal=False, policy="perce"),
            ),
            Method(
                "perce-live",
                "perce, with the log-ratios of the model in training, as published",
                "newest",
                LIVE_PERCE,
            ),
            Method("causal-only", "contextsft + α·L_p, every token weighted 1", "newest", Training(False, causal=True)),
            Method("mce-dce", "unweighted L_n + α·L_p with preference weights", "newest", ALIGNMENT),
            _steered("contextsft"),
            Method("norm-only", "preference-weighted L_n alone (α = 0)", "newest", Training(True, causal=False)),
            Method("nextquill", "preference-weighted L_n + α·L_p", "newest", Training(True, causal=True)),
            _steered("nextquill"),
            Method(
                "nextquill-official",
                "as the official code: weights from the model in training, L_p unweighted, α 0.1",
                "newest",
                OFFICIAL,
            ),
            Method(
                "random-weights",
                "control: nextquill with each example's weights at random places in it",
                "newest",
                Training(weighted=True, causal=True, policy="random", fixed=STORED),
            ),
            Method(
                "grounded-weights",
                "control: nextquill with λ where the token's word occurs in the shown history",
                "newest",
                Training(weighted=True, causal=True, policy="grounded", fixed=STORED),
            ),
        )
    },
    check=_wrong,
)


def served_key(method: Method, models: Mapping[str, str]) -> str:
    """Return the key of `evaluate.server.models` that names the server's model of this method."""
    return method.name if method.training or method.name in models else BASE_MODEL


def served_model(method: Method, models: Mapping[str, str]) -> str | None:
    """Return the name of the server's model that generates for a method, or None where the settings name none.

    Args:
        method: A row of the table.
        models: `evaluate.server.models`.
    """
    return models.get(served_key(method, models))
